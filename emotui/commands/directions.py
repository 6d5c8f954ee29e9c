"""`emotui probe export | import`: directions as llama.cpp control vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from emotui.cache.demo import is_demo
from emotui.commands.common import cache_for, say, wait_for
from emotui.commands.emotion import page_of
from emotui.commands.options import ModelOptions, in_groups
from emotui.commands.probe import AsJson, CacheDir, cards_in, print_json
from emotui.core.errors import ProbeError
from emotui.core.protocol import Defined, ImportDirectionRequest
from emotui.core.text import DEFAULT_TEMPLATE, clean


def add_directions(app: typer.Typer) -> None:
    """Add the two commands to those of the probes."""
    app.command("export")(export_directions)
    app.command("import")(import_directions)


class ExportedDirections(msgspec.Struct, frozen=True):
    """What `probe export --json` prints."""

    probe: str
    emotion: str
    file: str
    layers: tuple[int, ...]


def export_directions(
    probe: Annotated[str, typer.Argument(help="The probe's id, or the start of it.")],
    emotion: Annotated[str, typer.Argument(help="One of its emotions.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The GGUF file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite that file.")] = False,
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """Write an emotion's residual directions as a control vector, each of length 1."""
    from emotui.cache.control_vector import write_control_vector
    from emotui.cache.probes import card_named
    from emotui.cache.store import Store
    from emotui.core.export.json import exists_already, not_written

    card = card_named(cards_in(cache_dir), probe)
    if emotion not in card.emotions:
        raise ProbeError(
            f"The probe {card.id} does not tell {clean(emotion)!r}.",
            todo=f"It tells: {', '.join(card.emotions)}.",
        ).of_input()
    target = out.expanduser().absolute()
    if target.exists() and not force:
        raise exists_already(target)
    with cache_for(cache_dir, private=False) as root, Store.open(root) as store:
        payload = store.get_probe(card.id)
    import numpy
    from safetensors.numpy import load

    weight = load(payload)["weight"][:, :, card.emotions.index(emotion)]
    lengths = numpy.linalg.norm(weight, axis=1, keepdims=True)
    units = weight / numpy.maximum(lengths, 1e-30)
    directions = {
        score.layer: units[row]
        for row, score in enumerate(card.scores)
        if score.site == "resid" and lengths[row] > 0
    }
    try:
        layers = write_control_vector(
            target, directions, architecture="", name=f"emotui {emotion} ({card.id})"
        )
    except OSError as error:
        raise not_written(target, error) from error
    if as_json:
        print_json(ExportedDirections(card.id, emotion, str(target), layers))
    untrusted = [
        score.layer
        for score in card.scores
        if score.site == "resid" and score.layer >= 1 and score.trust != "trusted"
    ]
    say(f"Wrote {target}: layers {layers[0]} to {layers[-1]} (a control vector has none for 0).")
    if untrusted:
        say(f"Not trusted at layers: {', '.join(map(str, untrusted))}.")


@in_groups
def import_directions(
    file: Annotated[Path, typer.Argument(help="A control vector in GGUF.")],
    name: Annotated[str, typer.Option("--name", help="What its row is called.")],
    model: ModelOptions,
    template: Annotated[
        str, typer.Option("--template", help="The prompt around the texts.")
    ] = DEFAULT_TEMPLATE,
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """Read a control vector as the directions of an emotion; it is a row, and never trusted."""
    from emotui.cache.control_vector import read_control_vector
    from emotui.core.client import EngineClient

    path = file.expanduser().absolute()
    read_control_vector(path)  # what is wrong with it is said before a model is loaded
    spec = model.spec()
    with cache_for(cache_dir, private=False, demo=is_demo(spec)) as root:
        request = ImportDirectionRequest(
            spec=spec, cache_dir=str(root), name=name, path=str(path), template=template
        )
        with EngineClient(root, offline=spec.offline) as client:
            done = wait_for(client.submit(request))
    assert isinstance(done, Defined)
    if as_json:
        print_json(done)
        return
    typer.echo("\n".join(page_of(done)[:2]))
