"""What stands on stdout and stderr where a command found little, or could not write it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support_command import emotui_here

FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="no device that is always full")
@pytest.mark.parametrize("command", [("models",), ("cache", "path"), ("study", "list")])
def test_results_that_cannot_be_written_are_an_error_on_one_screen(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    with FULL.open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "emotui", *command],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
            env={**os.environ, "EMOTUI_CACHE_DIR": str(tmp_path)},
        )
    errors = done.stderr.decode()
    assert done.returncode == 1, errors
    assert "Traceback" not in errors and "Exception ignored" not in errors
    assert "could not be written" in errors and "No space left" in errors


def test_a_text_of_a_file_that_failed_is_named(stories: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps(text) + "\n" for text in ("It rained.", "", "It was dark.")))
    done = emotui_here(
        *("inspect", "--file", str(file), "--model", str(stories), "--jsonl"),
        cache_dir=tmp_path / "cache",
    )
    assert done.returncode == 1
    assert "text 2 of 3: The text is empty." in done.stderr


def test_an_empty_list_says_how_to_fill_it(tmp_path: Path) -> None:
    for command, words in (("labels", "labels fit"), ("emotion", "emotion define")):
        done = emotui_here(command, "list", cache_dir=tmp_path / "cache")
        assert done.returncode == 0 and done.stdout == ""
        assert f"`emotui {words}" in done.stderr
        asked = emotui_here(command, "list", "--json", cache_dir=tmp_path / "cache")
        assert json.loads(asked.stdout) == []


def test_the_table_of_probes_shows_every_number_whole(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    emotui_here("inspect", "It rained.", cache_dir=cache)
    done = emotui_here(
        *("emotion", "define", "longing-for-home", "--word", "longing"), cache_dir=cache
    )
    assert done.returncode == 0, done.stderr
    listed = emotui_here("probe", "list", cache_dir=cache)
    found = json.loads(emotui_here("probe", "list", "--json", cache_dir=cache).stdout)
    assert len(found) >= 2
    assert "\N{HORIZONTAL ELLIPSIS}" not in listed.stdout
    for card in found:
        assert card["id"] in listed.stdout
        resid = [score for score in card["scores"] if score["site"] == "resid"]
        assert any(f"{score['bag_accuracy']:.2f} bag" in listed.stdout for score in resid)
