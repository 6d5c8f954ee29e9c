"""No path of the user's machine is in any file that is exported, nor in any JSON about a text."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support_command import emotui_bytes_here
from support_studies import write_texts

from emotui.cache.demo import DEMO_MODEL, demo_saes, has_demo
from emotui.core.studies.table import recorded_settings, study_named

HOME = "home-of-somebody"
TEXT = "She was so scared of the dark."
EDITS = ("--do", "steer L1/5 +0.2 at all", "--do", 'patch resid L2 from "It was a fine day."')


class Somebody:
    """A model, SAEs, a cache and data, all under one folder whose name must not be told."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / HOME
        self.cache = self.home / "cache"
        self.model, self.saes = self.home / "my-model", self.home / "my-saes"
        shutil.copytree(DEMO_MODEL, self.model)
        shutil.copytree(demo_saes()[0], self.saes)
        self.given = ("--model", str(self.model), "--sae", str(self.saes))

    def run(self, *arguments: str) -> bytes:
        done = emotui_bytes_here(*arguments, cache_dir=self.cache)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout


@pytest.fixture(scope="module")
def somebody(tmp_path_factory: pytest.TempPathFactory) -> Somebody:
    if not has_demo():
        pytest.skip("this build carries no demo model")
    return Somebody(tmp_path_factory.mktemp("private"))


@pytest.mark.parametrize("to", ["json", "md", "html", "neuronpedia", "py"])
def test_exports_of_a_trace(somebody: Somebody, to: str) -> None:
    edits = EDITS[:2] if to == "py" else EDITS
    trace = json.loads(somebody.run("inspect", TEXT, *somebody.given, *edits, "--json"))
    assert trace["run"]["model"] == "my-model"
    data = somebody.run("export", trace["id"], "--to", to, "--tokens", "all")
    assert b"my-model" in data, "the model is named"
    assert HOME.encode() not in data


SOAKED = ("without", "terms", "consistency", "generate", "emotion")
"""Commands whose documents are looked at by `make soak` alone: all are written by one function."""


def documents() -> Iterator[tuple[str, ...]]:
    yield ("inspect", TEXT, *EDITS, "--verify", "--verify-texts", "2")
    yield ("feature", "L1/5", TEXT, "--no-corpus")
    yield ("where", TEXT, "--emotion", "fear")
    yield ("without", TEXT)
    yield ("terms", TEXT)
    yield ("consistency", TEXT)
    yield ("generate", TEXT, "--new-tokens", "2")
    yield ("emotion", "define", "longing", "--word", "longing")


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(words, marks=[pytest.mark.soak] if words[0] in SOAKED else [])
        for words in documents()
    ],
    ids=lambda words: words[0],
)
def test_documents_about_a_text(somebody: Somebody, command: tuple[str, ...]) -> None:
    with_saes = command[0] in ("inspect", "feature", "terms", "generate")
    given = somebody.given if with_saes else somebody.given[:2]
    assert HOME.encode() not in somebody.run(*command, *given, "--json")
    assert HOME.encode() not in somebody.run(*command, *given)
    assert HOME.encode() not in somebody.run("probe", "list", "--json")
    assert HOME.encode() not in somebody.run("cache", "list", "--json")


def test_files_of_a_study(somebody: Somebody, tmp_path: Path) -> None:
    data = write_texts(somebody.home / "texts.csv", 8)
    items = somebody.home / "items.csv"
    with items.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("statement", "negation", "axis", "key"))
        writer.writerow(("I am glad.", "I am not glad.", "joy", "+"))
        writer.writerow(("I am afraid.", "I am not afraid.", "fear", "-"))
    for study, options in (
        ("readout", ()),
        ("consistency", ("--items", str(items))),
    ):
        out = tmp_path / study
        given = (str(data), *somebody.given, "--html", "--out", str(out), *options)
        printed = somebody.run("study", study, *given)
        assert HOME.encode() not in printed
        assert HOME.encode() not in somebody.run("study", "show", str(out), "--json")
        names = {path.name for path in out.iterdir() if path.is_file()}
        assert {"result.json", "result.md", "result.html", "result.csv"} <= names
        for path in out.rglob("*"):
            if path.is_file() and path.name != "study.json":  # what resuming needs
                assert HOME.encode() not in path.read_bytes(), path.name


def test_files_named_in_options_are_recorded_by_name_and_hash(tmp_path: Path) -> None:
    folder = tmp_path / HOME
    folder.mkdir()
    for name in ("one.csv", "two.csv", "a.json", "b.json"):
        (folder / name).write_text(name)
    one, two, a, b = (str(folder / name) for name in ("one.csv", "two.csv", "a.json", "b.json"))
    given = {"eval": f"{one},{two}", "eval_maps": f"{a}+{b},", "shots": "1,2", "save": "mine"}
    recorded = recorded_settings(study_named("steer"), given)
    digests = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12] for path in (one, b)}
    names = recorded["eval"].split(",")
    assert names[0] == f"one.csv ({digests[one]})" and names[1].startswith("two.csv (")
    assert recorded["eval_maps"].endswith(f"+b.json ({digests[b]}),")
    assert (recorded["shots"], recorded["save"]) == ("1,2", "mine")
    (folder / "two.csv").write_text("changed")
    assert recorded_settings(study_named("steer"), given)["eval"].split(",")[1] != names[1]
    assert HOME not in str(recorded)
    gone = recorded_settings(study_named("consistency"), {"items": str(folder / "a+b, c.csv")})
    assert gone["items"] == "a+b, c.csv"
