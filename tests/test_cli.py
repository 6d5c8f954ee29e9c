"""The command line as a user meets it: output on stdout, errors on one screen, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from support_command import emotui_bytes_here

from emotui.cli import nearest_command, with_command

SCHEMA = Path(__file__).resolve().parent.parent / "docs" / "schemas" / "trace.schema.json"
LILY = "Lily was sad because her toy was lost."


def emotui(
    *arguments: str, cache_dir: Path, stdin: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "emotui", *arguments],
        input=stdin,
        capture_output=True,
        timeout=120,
        check=False,
        env={**os.environ, "EMOTUI_CACHE_DIR": str(cache_dir), **environment},
    )


def stats_of(done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    lines = [line for line in done.stderr.decode().splitlines() if line.startswith("{")]
    assert len(lines) == 1, done.stderr.decode()
    stats: dict[str, Any] = json.loads(lines[0])
    return stats


def assert_one_screen(done: subprocess.CompletedProcess[bytes], *, code: int, says: str) -> None:
    """One clear message on stderr, nothing on stdout, no traceback, no control characters."""
    errors = done.stderr.decode()
    assert done.returncode == code, errors
    assert says in errors
    assert done.stdout == b""
    assert "Traceback" not in errors
    assert len(errors.splitlines()) <= 12
    assert not [c for c in errors if ord(c) < 32 and c != "\n"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["open"]),
        (["some text"], ["open", "some text"]),
        (["--model", "m", "text"], ["open", "--model", "m", "text"]),
        (["inspect", "text"], ["inspect", "text"]),
        (["--version"], ["--version"]),
        (["cache", "list"], ["cache", "list"]),
    ],
)
def test_open_is_the_default_command(arguments: list[str], expected: list[str]) -> None:
    assert with_command(arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["inpsect", "a text"], "inspect"),
        (["Stduy", "list"], "study"),
        (["whre", "a", "--emotion", "joy"], "where"),
        (["inspect", "a", "b"], None),
        (["inpsect"], None),
        (["My dog died.", "--model", "m"], None),
    ],
)
def test_a_mistyped_command_is_told_from_a_text(arguments: list[str], meant: str | None) -> None:
    assert nearest_command(arguments) == meant


def test_the_command_that_was_meant_is_said(cache_dir: Path) -> None:
    done = emotui("inpsect", "a text", cache_dir=cache_dir)
    assert done.returncode == 2
    assert b"Did you mean: emotui inspect?" in done.stderr


def test_version_and_help_need_no_torch(cache_dir: Path) -> None:
    done = emotui("--version", cache_dir=cache_dir)
    assert done.returncode == 0
    assert done.stdout.startswith(b"emotui ")
    code = (
        "import sys; from emotui.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'sae_lens', 'transformer_lens', 'textual'}\n"
        "sys.exit(len(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    for command in (b"open", b"inspect", b"probe", b"cache", b"export", b"doctor"):
        assert command in done.stdout


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli-cache")


@pytest.fixture(scope="module")
def first(stories: Path, module_cache: Path) -> subprocess.CompletedProcess[bytes]:
    """The first inspection of the text by the real model, through the real engine."""
    return emotui(
        *("inspect", LILY, "--model", str(stories), "--json", "--stats", "json"),
        cache_dir=module_cache,
    )


@pytest.mark.xdist_group("cli")
class TestInspect:
    def test_prints_one_valid_document(self, first: subprocess.CompletedProcess[bytes]) -> None:
        assert first.returncode == 0, first.stderr.decode()
        document = json.loads(first.stdout)
        jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(document)
        assert document["text"]["raw"] == LILY
        assert abs(sum(document["answer"]["labels"].values()) - 1) < 1e-3
        assert document["run"]["model"] == "stories260K", "no path of this machine"
        assert b"No probes are fitted" in first.stderr
        assert stats_of(first)["forwards"] >= 1

    def test_again_takes_no_forward_and_gives_the_same_bytes(
        self,
        first: subprocess.CompletedProcess[bytes],
        stories: Path,
        module_cache: Path,
    ) -> None:
        again = emotui(
            *("inspect", LILY, "--model", str(stories), "--json", "--stats", "json"),
            cache_dir=module_cache,
        )
        assert again.stdout == first.stdout
        stats = stats_of(again)
        assert (stats["forwards"], stats["cache_hits"]) == (0, 1)

    def test_export_by_the_beginning_of_an_id(
        self, first: subprocess.CompletedProcess[bytes], module_cache: Path, tmp_path: Path
    ) -> None:
        trace_id = json.loads(first.stdout)["id"]
        target = tmp_path / "out.json"
        done = emotui("export", trace_id[:6], "-o", str(target), cache_dir=module_cache)
        assert done.returncode == 0
        assert str(target).encode() in done.stderr
        assert target.read_bytes() == first.stdout
        done = emotui_bytes_here("export", trace_id, "-o", str(target), cache_dir=module_cache)
        assert_one_screen(done, code=2, says="exists already")
        done = emotui_bytes_here("export", "ffffffff", cache_dir=module_cache)
        assert_one_screen(done, code=2, says="ffffffff")

    def test_a_file_of_texts_with_bad_ones_among_them(
        self, stories: Path, module_cache: Path, tmp_path: Path
    ) -> None:
        texts = [
            LILY,
            "",
            "   \n ",
            "The park was big. " * 200,
            "[bold]loud[/bold] and [/nope]",
            "\x1b[31mred\x1b[0m \x07bell \x9b2J",
            "first line\nsecond line\n\nthird",
            "\N{GRINNING FACE} \N{FAMILY} \N{HEBREW LETTER ALEF}\N{ARABIC LETTER BEH}",
        ]
        file = tmp_path / "texts.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        done = emotui_bytes_here(
            *("inspect", "--file", str(file), "--model", str(stories), "--jsonl"),
            *("--stats", "json"),
            cache_dir=module_cache,
        )
        errors = done.stderr.decode()
        assert done.returncode == 1
        documents = [json.loads(line) for line in done.stdout.splitlines()]
        read = [document["text"]["raw"] for document in documents]
        assert read == [texts[0], *texts[4:]]
        assert "512" in errors, "the limit of the context is told"
        assert "Traceback" not in errors
        assert "3 of 8 texts" in errors
        assert stats_of(done)["failed"] == 3

    def test_standard_input_and_plain_report(self, stories: Path, module_cache: Path) -> None:
        done = emotui_bytes_here(
            "inspect", "-", "--model", str(stories), cache_dir=module_cache, stdin=LILY
        )
        report = done.stdout.decode()
        assert done.returncode == 0
        assert LILY in report
        assert "answer" in report and "lens" in report
        assert "\x1b" not in report

    def test_a_private_run_leaves_nothing(self, stories: Path, tmp_path: Path) -> None:
        cache = tmp_path / "cache"
        done = emotui(
            *("inspect", "A secret nobody may read.", "--private", "--json"),
            *("--model", str(stories)),
            cache_dir=cache,
            TMPDIR=str(tmp_path),
        )
        assert done.returncode == 0, done.stderr.decode()
        left = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert not [path for path in left if b"secret" in path.read_bytes()]
        assert not list(tmp_path.glob("emotui-private-*"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["inspect"], "no text"),
        (["inspect", "a", "--file", "b"], "--file"),
        (["inspect", "a", "--template", "nope", "--model", "MODEL"], "'nope'"),
        (["inspect", "a", "--labels", "nope", "--model", "MODEL"], "'nope'"),
        (["inspect", "a", "--tokens", "some", "--model", "MODEL"], "--tokens"),
        (["inspect", "--file", "absent.jsonl", "--model", "MODEL"], "absent.jsonl"),
        (["inspect", "a", "--nonsense"], "--nonsense"),
    ],
    ids=str,
)
def test_wrong_usage_is_exit_code_2(
    arguments: list[str], says: str, stories: Path, cache_dir: Path
) -> None:
    words = [str(stories) if word == "MODEL" else word for word in arguments]
    done = emotui_bytes_here(*words, "--model", str(stories), cache_dir=cache_dir)
    assert done.returncode == 2, done.stderr.decode()
    assert says in done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert done.stdout == b""


def test_blank_text_and_a_model_that_does_not_exist(stories: Path, cache_dir: Path) -> None:
    done = emotui_bytes_here("inspect", " \n", "--model", str(stories), cache_dir=cache_dir)
    assert_one_screen(done, code=2, says="text")
    done = emotui_bytes_here("inspect", "a", "--model", "./no-such-model", cache_dir=cache_dir)
    assert_one_screen(done, code=2, says="no-such-model")


def test_a_cache_that_cannot_be_written(stories: Path, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    done = emotui("inspect", LILY, "--model", str(stories), cache_dir=blocker / "cache")
    assert_one_screen(done, code=1, says="--cache-dir")
    assert blocker.read_text() == "in the way"


def test_no_terminal_points_to_inspect(stories: Path, cache_dir: Path) -> None:
    done = emotui(LILY, "--model", str(stories), cache_dir=cache_dir)
    assert done.returncode == 2
    assert b"emotui inspect" in done.stderr
    assert len(done.stderr.splitlines()) == 1
