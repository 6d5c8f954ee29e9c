"""Options in groups: as typer sees them, and as a command gets them."""

from __future__ import annotations

from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from emotui.cache.demo import demo_spec
from emotui.commands.options import (
    NO_SAES,
    KeepOptions,
    ModelOptions,
    PromptOptions,
    SaeOptions,
    in_groups,
    request_of,
)
from emotui.core.errors import UsageError

app = typer.Typer()
taken: dict[str, object] = {}


@app.command()
@in_groups
def example(
    model: ModelOptions,
    keep: KeepOptions,
    word: Annotated[str | None, typer.Argument()] = None,
    count: Annotated[int, typer.Option("--count")] = 3,
) -> None:
    """Say what was given."""
    taken.update(word=word, model=model, count=count, keep=keep)


def test_a_group_is_its_options_on_the_command_line() -> None:
    arguments = ["word", "--model", "m", "--device-map", "auto", "--offline", "--count", "5"]
    done = CliRunner().invoke(app, [*arguments, "--private"])
    assert done.exit_code == 0, done.output
    assert taken["model"] == ModelOptions(model="m", device_map="auto", offline=True)
    keep = taken["keep"]
    assert isinstance(keep, KeepOptions)
    assert keep.private
    assert (taken["word"], taken["count"]) == ("word", 5)
    shown = CliRunner().invoke(app, ["--help"]).output
    for part in ("--dtype", "--cache-dir", "A local folder, a hub id", "Say what was given."):
        assert part in shown


def test_what_does_not_exist_is_refused_by_typer() -> None:
    assert CliRunner().invoke(app, ["--modl", "m"]).exit_code == 2
    assert CliRunner().invoke(app, ["--count", "many"]).exit_code == 2


def test_without_a_model_the_bundled_one_is_meant() -> None:
    assert ModelOptions().spec() == demo_spec()
    named = ModelOptions(model="m", revision="r", dtype="bfloat16").spec()
    assert (named.model, named.revision, named.dtype, named.offline) == (
        "m",
        "r",
        "bfloat16",
        False,
    )
    with pytest.raises(UsageError, match="--device-map cannot be 'all'"):
        ModelOptions(device_map="all").spec()


def test_a_request_has_the_bundled_saes_unless_none_are_wanted() -> None:
    prompt = PromptOptions(template="raw")
    bundled = request_of("hello", ModelOptions(), SaeOptions(), prompt, cache_dir=None)
    assert bundled.saes
    assert bundled.template == "raw"
    assert request_of(None, ModelOptions(), NO_SAES, prompt, cache_dir=None).saes == ()
