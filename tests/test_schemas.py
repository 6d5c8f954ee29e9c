"""Every JSON document that a command prints follows its published schema."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
from support_command import emotui_here
from support_studies import write_texts

from emotui import cli
from emotui.cache.demo import demo_saes, has_demo
from emotui.commands.schemas import COMMANDS, DOCUMENTS, document_schema
from emotui.core.export.schema import schema_bytes

DOCS = Path(__file__).resolve().parent.parent / "docs"
SCHEMAS = DOCS / "schemas"
TEXT = "She was so scared of the dark that she cried all night."
EDIT = ("--do", "ablate L5/12 at all")


def test_published_schemas_are_those_of_the_records_and_no_other() -> None:
    published = {path.name.removesuffix(".schema.json") for path in SCHEMAS.glob("*.schema.json")}
    assert published == set(DOCUMENTS)
    for name in DOCUMENTS:
        schema = document_schema(name)
        jsonschema.Draft202012Validator.check_schema(schema)
        file = SCHEMAS / f"{name}.schema.json"
        assert file.read_bytes() == schema_bytes(schema), "run `make schema`"


def commands_with_json() -> Iterator[str]:
    """Yield the commands that take --json, read off the command line's own parser."""
    groups, commands = list(cli.app.registered_groups), list(cli.app.registered_commands)
    try:
        cli._add_groups()
        root: Any = typer.main.get_command(cli.app)
    finally:
        cli.app.registered_groups[:], cli.app.registered_commands[:] = groups, commands
    for name, command in root.commands.items():
        for inner, one in getattr(command, "commands", {"": command}).items():
            if any("--json" in parameter.opts for parameter in one.params):
                yield f"{name} {inner}".strip()


def test_every_command_that_prints_json_has_a_schema_and_is_listed_in_the_docs() -> None:
    assert set(commands_with_json()) == set(COMMANDS)
    assert {name for names in COMMANDS.values() for name in names} == set(DOCUMENTS)
    page = (DOCS / "json.md").read_text(encoding="utf-8")
    for command, names in COMMANDS.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{command}"))
        for name in names:
            assert f"[{name}](schemas/{name}.schema.json)" in row


def closed(schema: Any) -> Any:
    """Return a schema that takes no field beyond those it names."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: closed(value) for name, value in schema.items()}
    if inner.get("type") == "object" and isinstance(inner.get("properties"), dict):
        inner.setdefault("additionalProperties", False)
    return inner


class Printed:
    """What commands print, on the demo and one cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *arguments: str) -> Any:
        done = emotui_here(*arguments, cache_dir=self.folder / "cache")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout else None

    def check(self, command: str, schema: str, *arguments: str) -> Any:
        """Run `COMMAND ARGUMENTS --json` and hold what it prints against a published schema."""
        assert schema in COMMANDS[command]
        document = self(*command.split(), *arguments, "--json")
        published = json.loads((SCHEMAS / f"{schema}.schema.json").read_bytes())
        jsonschema.Draft202012Validator(published).validate(document)
        # No field that the schema does not know, however deep, and no schema that takes anything.
        strict = jsonschema.Draft202012Validator(closed(published))
        strict.validate(document)
        assert document, "an empty document proves nothing"
        first = document[0] if isinstance(document, list) else document
        for name in first:
            broken = {**first, name: [[[]]]}
            assert not strict.is_valid([broken] if isinstance(document, list) else broken), name
        return document


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Printed:
    if not has_demo():
        pytest.skip("this build carries no demo model")
    return Printed(tmp_path_factory.mktemp("printed"))


def test_documents_about_texts(printed: Printed) -> None:
    before = printed.check("inspect", "trace", TEXT)
    after = printed.check("inspect", "trace", TEXT, *EDIT, "--verify", "--verify-texts", "3")
    assert "verification" in after
    printed.check("compare", "compare", before["id"], after["id"], "--tokens", "all")
    printed.check("generate", "generate", TEXT, *EDIT, "--new-tokens", "4", "--temperature", "1")
    printed.check("where", "where", TEXT, "--emotion", "fear")
    printed.check("without", "without", TEXT)
    printed.check("terms", "terms", TEXT, "--do", "promote joy L5 +0.1")
    printed.check("consistency", "consistency", TEXT)
    printed.check("feature", "feature", "L5/12", TEXT, "--no-corpus")


def test_documents_about_what_is_kept(printed: Printed, tmp_path: Path) -> None:
    trace = printed("inspect", TEXT, *EDIT, "--json")["id"]
    printed("note", trace, "look again")
    printed.check("note", "notes", trace)
    printed("recipe", "save", "calm", trace)
    printed.check("recipe list", "recipes")
    printed.check("recipe show", "recipe", "calm")
    printed.check("cache list", "cache-list")
    printed.check("cache show", "cache-show", trace)
    printed.check("cache size", "cache-size")
    printed.check("cache verify", "cache-verify")
    printed.check("cache prune", "cache-freed", "--to", "100GB")
    probe = printed.check("probe list", "probes")[0]
    printed.check("probe show", "probe", probe["id"])
    vector = str(tmp_path / "joy.gguf")
    printed.check("probe export", "probe-export", probe["id"], "joy", "-o", vector)
    printed.check("probe import", "emotion", vector, "--name", "imported-joy")
    printed.check("emotion define", "emotion", "longing-for-home", "--word", "longing")
    printed.check("emotion list", "emotions")
    data = str(write_texts(tmp_path / "texts.csv", 160))
    printed.check("labels fit", "labels-fit", "--data", data, "--sae", demo_saes()[0])
    batch = tmp_path / "batch-0.jsonl.gz"
    line = {"modelId": "m", "layer": "0-res", "index": "3", "description": "words of fear"}
    batch.write_bytes(gzip.compress(json.dumps(line).encode() + b"\n"))
    printed.check("labels import", "labels-import", str(batch))
    kept = printed.check("labels list", "labels-list")
    measured = next(one["path"] for one in kept if one["meta"]["kind"] == "measured")
    printed.check("labels show", "labels-show", measured)
    printed.check("models", "models", "gpt2")


def test_documents_about_studies(printed: Printed, tmp_path: Path) -> None:
    data = str(write_texts(tmp_path / "texts.csv", 4))
    given = ("readout", data, "--sae", "none")
    both = ("--template", "ask,tak1")
    printed.check("study run", "study-plan", *given, "--dry-run")
    printed.check("study run", "study-plans", *given, *both, "--dry-run")
    printed.check("study run", "study", *given)
    printed.check("study run", "study-runs", *given, *both, "--out", str(tmp_path / "runs"))
    runs = printed.check("study list", "study-list")["runs"]
    printed.check("study show", "study", runs[0]["folder"])
    printed.check("study resume", "study", runs[0]["folder"])
