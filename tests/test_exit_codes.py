"""Exit codes: 2 where the words of a command are at fault, 1 where the work failed, 130 cancelled.

Each row is one command; what it says on stderr is looked at too, so that no code stands for
another mistake.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support_command import emotui_here
from support_models import tiny_folder

from emotui.cache.demo import has_demo
from emotui.core.errors import CacheError, Cancelled, EmotuiError, UsageError, error_from_wire

TEXT = "She was so scared."
EDIT = ("--do", "ablate L5/12 at all")


class Place:
    """A cache with a trace, one of it with an edit, and files that are of no use."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "cache"
        (folder / "empty").mkdir()
        for name, data in {
            "bad.json": b'{"schema": 3',
            "noise.bin": b"\xff\xfe\x00",
            "one.csv": b"text,label\nhello,joy\n",
            "texts.csv": b"text\nhello there\nand you\n",
            "there.json": b"{}",
        }.items():
            (folder / name).write_bytes(data)
        self.names: dict[str, str] = {
            "TRACE": json.loads(self.run("inspect", TEXT, *EDIT, "--json")[1])["id"],
            "PROBE": json.loads(self.run("probe", "list", "--json")[1])[0]["id"],
            "BLANK": " ",
            "MODEL": str(tiny_folder("llama")),
        }

    def run(self, *arguments: str) -> tuple[int, str, str]:
        done = emotui_here(*arguments, cache_dir=self.cache)
        return done.returncode, done.stdout, done.stderr

    def filled(self, word: str) -> str:
        """Return a word of a row: @file is a path here, =name a recipe, capitals are filled in."""
        if word.startswith("@"):
            return str(self.folder / word[1:])
        return self.names.get(word, word).replace("=", "@", 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    if not has_demo():
        pytest.skip("this build carries no demo model")
    return Place(tmp_path_factory.mktemp("codes"))


OF_INPUT = (
    ("inspect", "no text to inspect"),
    ("inspect T --model @gone", "no model folder"),
    ("inspect T --model @empty", "no weights"),
    ("inspect T --model no/such-model --offline", "not on this machine"),
    ("inspect T --device cuda:99", "not available"),
    ("inspect T --template chat", "no chat template"),
    ("inspect T --sae @gone", "no SAE folder"),
    ("inspect T --sae @empty", "holds no SAE"),
    ("inspect T --sae no-such-release", "no SAEs called"),
    ("inspect T --sae gpt2-small-res-jb:none-such", "has no SAE called"),
    ("inspect T --do frobnicate", "not understood"),
    ("inspect T --do =nothing", "recipe"),
    ("inspect T --verify", "no edit to verify"),
    ("inspect --file @gone", "could not be read"),
    ("inspect T --json -o @there.json", "exists already"),
    ("inspect T --json -o @gone/new.json", "could not be written"),
    ("inspect T --json -o @empty", "is a folder"),
    ("generate T --new-tokens 0", "0 new tokens"),
    ("where T --emotion envy", "envy"),
    ("where T", "No emotion was named"),
    ("where T --emotion joy --neutral BLANK", "neutral rewrite is empty"),
    ("without T --placeholder BLANK", "placeholder is empty"),
    ("note TRACE BLANK", "has no words"),
    ("without rain", "lists of emotion words"),
    ("terms T --terms @gone", "could not be read"),
    ("consistency T --template nope", "nope"),
    ("feature nope T", "nope"),
    ("feature L99/1 T", "no SAE for resid.99"),
    ("feature L5/99999 T", "no feature L5/99999"),
    ("feature L5/12 T --sae none", "No SAE is loaded"),
    ("feature L5/12 T --emotion envy --no-corpus", "'envy' is no emotion"),
    ("feature L5/12 T --at 99 --no-corpus", "99"),
    ("compare ffff", "no trace 'ffff'"),
    ("compare TRACE ffff", "no trace 'ffff'"),
    ("compare @bad.json TRACE", "not an emotui document"),
    ("export ffff", "no trace 'ffff'"),
    ("export @there.json", "not an emotui document"),
    ("export TRACE --to gguf", "cannot be written as GGUF"),
    ("export TRACE -o @there.json", "exists already"),
    ("models no-such-model-at-all", "No model or SAE release"),
    ("doctor --model @gone", "no model folder"),
    ("cache show ffff", "no trace 'ffff'"),
    ("cache delete ffff", "no trace 'ffff'"),
    ("cache pin ffff", "no trace 'ffff'"),
    ("cache prune --to much", "no size"),
    ("cache list since:never", "never"),
    ("cache clear", "no terminal to ask on"),
    ("note ffff", "no trace 'ffff'"),
    ("recipe show nothing", "nothing"),
    ("recipe save calm ffff", "no trace 'ffff'"),
    ("probe show nothing", "no probe 'nothing'"),
    ("probe export nothing joy -o @a.gguf", "no probe 'nothing'"),
    ("probe export PROBE envy -o @a.gguf", "does not tell 'envy'"),
    ("probe export PROBE joy -o @there.json", "exists already"),
    ("probe export PROBE joy -o @gone/a.gguf", "could not be written"),
    ("probe import @gone.gguf --name x", "could not be read as a control vector"),
    ("probe import @noise.bin --name x", "could not be read as a control vector"),
    ("probe fit --model @gone", "no model folder"),
    ("probe fit --data @one.csv", "too few texts"),
    ("emotion define x --text once", "too few to define"),
    ("emotion remove nothing", "nothing"),
    ("labels fit --model MODEL", "No SAEs were named"),
    ("labels import @gone.gz", "could not be read"),
    ("labels import @noise.bin", "holds no explanation"),
    ("labels import @noise.bin --sae @gone", "no SAE folder"),
    ("labels show nothing", "0 files of labels"),
    ("labels remove nothing", "no feature labels called"),
    ("study nothing bundled", "no study called"),
    ("study readout @gone", "could not be read"),
    ("study readout @texts.csv --model @gone", "no model folder"),
    ("study phases bundled --sae none", "needs SAEs"),
    ("study show @empty", "no folder of a study"),
    ("study compare @empty", "no folder of a study"),
)


@pytest.mark.parametrize(("command", "said"), OF_INPUT, ids=[row[0] for row in OF_INPUT])
def test_words_that_cannot_be_meant_are_2(place: Place, command: str, said: str) -> None:
    words = [TEXT if word == "T" else place.filled(word) for word in command.split()]
    code, printed, told = place.run(*words)
    assert said in told and "Traceback" not in told, told
    assert (code, printed) == (2, "")


def test_work_that_failed_is_1(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_folder("llama").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    code, printed, told = place.run("inspect", TEXT, "--model", str(folder))
    assert (code, printed) == (1, "") and "cut short" in told
    lines = tmp_path / "texts.txt"
    lines.write_text("It rained.\n" + "and then " * 9000 + "\n")
    code, printed, told = place.run("inspect", "--file", str(lines), "--jsonl")
    assert code == 1 and len(printed.splitlines()) == 1 and "text 2 of 2" in told


def test_the_code_of_an_error_survives_the_way_from_the_engine() -> None:
    for error in (
        EmotuiError("It failed."),
        CacheError("It failed."),
        CacheError("It is not there.").of_input(),
        UsageError("It cannot be meant."),
        Cancelled("It was cancelled."),
    ):
        again = error_from_wire(error.to_wire())
        assert (type(again), again.exit_code) == (type(error), error.exit_code)
    assert CacheError("Another.").exit_code == 1, "one error's code is its own"
