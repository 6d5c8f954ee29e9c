"""`emotui generate`: one document, paired intervals, wrong usage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support_command import emotui_bytes_here

from emotui.core.export.written import changes_of, readings_of
from emotui.core.records import Answer, Generation, Written, WrittenReadings


def emotui(*arguments: str, cache_dir: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "emotui", *arguments],
        capture_output=True,
        timeout=120,
        check=False,
        env={**os.environ, "EMOTUI_CACHE_DIR": str(cache_dir)},
    )


def written(seed: int, joy: float, z: float | None = None) -> Written:
    readings = WrittenReadings(
        how=("while_written", "read_again"),
        probe=("p", "p"),
        kind=("token", "token"),
        layer=(1, 1),
        emotion=("joy", "joy"),
        value=(0.0, 0.0),
        z=(z, None),
    )
    answer = Answer({"joy": joy, "fear": 1 - joy}, "two", "first_token", 1)
    return Written("text", (1, 2), seed, 0, answer, readings)


def generation(*samples: Written) -> Generation:
    return Generation(2, 1.0, samples)


def test_changes_are_paired_by_seed_and_bracket_their_mean() -> None:
    before = generation(*(written(seed, 0.2 + 0.1 * seed, z=0.0) for seed in range(5)))
    # Each differs from its own partner by 0.1 or 0.2; unpaired they overlap widely.
    after = generation(
        *(written(seed, 0.3 + 0.1 * seed + 0.1 * (seed % 2), z=1.0) for seed in range(5))
    )
    changes = {change.metric: change for change in changes_of(before, after)}
    assert set(changes) == {"answer.joy", "answer.fear", "while_written.joy"}
    joy = changes["answer.joy"]
    assert joy.n == 5 and joy.before == pytest.approx(0.4)
    assert joy.after == pytest.approx(0.54)
    assert joy.low is not None and joy.high is not None
    assert 0.0999 <= joy.low < 0.14 < joy.high <= 0.2001
    assert changes["while_written.joy"].low == pytest.approx(1.0)
    assert changes_of(before, after) == changes_of(before, after), "drawn with a seed of its own"


def test_one_sample_has_no_interval_and_no_edits_no_change() -> None:
    one = changes_of(generation(written(0, 0.2)), generation(written(0, 0.5)))
    assert {(change.low, change.high) for change in one} == {(None, None)}
    alone = changes_of(generation(written(0, 0.2)), None)
    assert [change.after for change in alone] == [None, None]
    assert "token.joy" not in readings_of(written(0, 0.2, z=1.0)), "what has no z is left out"


def test_a_document_of_both_texts_from_the_command_line(stories: Path, cache_dir: Path) -> None:
    done = emotui(
        *("generate", "Once upon a time, there was", "--model", str(stories), "--json"),
        *("--do", "knock mlp L1 zero at all", "--new-tokens", "12"),
        cache_dir=cache_dir,
    )
    assert done.returncode == 0, done.stderr.decode()
    document = json.loads(done.stdout)
    assert document["schema"] == "emotui-generation"
    assert document["edits"] == ["knock mlp L1 zero at all"]
    (before,), (after,) = document["before"]["samples"], document["after"]["samples"]
    story = (stories / "expected.txt").read_text(encoding="utf-8")
    assert story.startswith(document["text"] + before["text"])
    assert before["fired"] == 0 and after["fired"] > len(after["tokens"])
    assert document["before_trace"] != document["after_trace"]
    assert {change["metric"].split(".")[0] for change in document["changes"]} == {"answer"}


def test_samples_that_would_all_be_the_same_are_wrong_usage(stories: Path, cache_dir: Path) -> None:
    done = emotui_bytes_here(
        *("generate", "Once", "--model", str(stories), "--samples", "3"), cache_dir=cache_dir
    )
    assert done.returncode == 2 and done.stdout == b""
    assert "temperature" in done.stderr.decode()
