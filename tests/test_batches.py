"""`inspect --file`: texts go through the model in chunks that grow, and nothing is lost by it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest
from support_process import runs, wait_until

from emotui.cache.prepare import Prepared
from emotui.commands import batches as module
from emotui.commands.batches import Batches
from emotui.core.client import EngineClient
from emotui.core.errors import Cancelled, EmotuiError, EngineError, TextError
from emotui.core.pending import Pending
from emotui.core.protocol import (
    InspectRequest,
    ModelSpec,
    Operation,
    Outcome,
    Prefetched,
    PrefetchRequest,
    Request,
)


class Engine:
    """A client that notes what it was asked to prefetch, and answers or fails."""

    def __init__(self, error: EmotuiError | None = None, *, refuses: bool = False) -> None:
        self.asked: list[tuple[str, ...]] = []
        self._error = error
        self._refuses = refuses

    def submit(self, operation: Operation) -> Pending:
        assert isinstance(operation, PrefetchRequest)
        assert operation.like.text == ""
        self.asked.append(operation.texts)
        if self._refuses:
            raise TextError("The request is not valid Unicode.")
        pending = Pending(Request(1, operation), lambda _: None)
        outcome: Outcome = Prefetched(texts=len(operation.texts), forwards=2, seconds=0.1)
        pending.finish(None if self._error else outcome, self._error)
        return pending


def prepared(text: str) -> Prepared:
    if text == "bad":
        raise TextError("The text is bad.")
    request = InspectRequest(ModelSpec("m"), text, "cache")
    return Prepared(request, "f", "0123456789abcdef" if text.startswith("known") else None)


def batches(engine: Engine) -> Batches:
    return Batches(cast(EngineClient, engine), prepared)


def test_chunks_grow_and_hold_what_must_be_computed_in_order() -> None:
    engine = Engine()
    texts = [f"text {number}" for number in range(600)]
    texts[1], texts[2], texts[5] = "bad", "known", "known too"
    run = batches(engine)
    found = list(run.of(texts))
    assert [text for text, _ in found] == texts
    assert [ready is None for _, ready in found[:4]] == [False, True, False, False]
    assert [len(asked) for asked in engine.asked] == [2, 7, 16, 32, 64, 128, 256, 92]
    assert [text for asked in engine.asked for text in asked] == [
        text for text in texts if text.startswith("text")
    ]
    assert (run.texts, run.forwards) == (597, 16)


def test_one_text_alone_is_no_batch() -> None:
    engine = Engine()
    assert len(list(batches(engine).of(["one"]))) == 1
    list(batches(engine).of(["known", "one", "bad"]))
    assert engine.asked == []


def test_a_slow_chunk_is_followed_by_a_smaller_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SECONDS", -1.0)
    engine = Engine()
    list(batches(engine).of([f"text {number}" for number in range(20)]))
    assert [len(asked) for asked in engine.asked] == [4, 4, 4, 4, 4]


def test_after_an_engine_that_died_texts_go_one_by_one() -> None:
    engine = Engine(EngineError("The engine ended."))
    texts = [f"text {number}" for number in range(40)]
    found = list(batches(engine).of(texts))
    assert [text for text, _ in found] == texts
    assert all(ready is not None for _, ready in found), "each still has its own request"
    assert len(engine.asked) == 1


def test_what_cannot_be_sent_leaves_the_next_chunk_a_batch() -> None:
    engine = Engine(refuses=True)
    assert len(list(batches(engine).of([f"text {number}" for number in range(12)]))) == 12
    assert len(engine.asked) == 2


def test_a_cancel_is_no_failure_of_a_batch() -> None:
    with pytest.raises(Cancelled):
        list(batches(Engine(Cancelled("The work was cancelled."))).of(["one", "two"]))


def _command(stories: Path, file: Path, cache: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "emotui", "inspect", "--file", str(file), "--jsonl"),
        *("--model", str(stories), "--cache-dir", str(cache), "--stats", "json"),
    ]


def test_bad_texts_among_many_fail_alone(stories: Path, tmp_path: Path, cache_dir: Path) -> None:
    texts = [f"Toy {number} was lost." for number in range(10, 40)]
    texts[2], texts[9], texts[20] = " ", "Lily was sad. " * 300, texts[0]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps(text) + "\n" for text in texts))
    done = subprocess.run(
        _command(stories, file, cache_dir), capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 1
    read = [json.loads(line)["text"]["raw"] for line in done.stdout.splitlines()]
    assert read == [text for place, text in enumerate(texts) if place not in (2, 9)]
    errors = done.stderr.decode()
    assert errors.count("The text is empty.") == 1 and errors.count("too long") == 1
    (line,) = (line for line in errors.splitlines() if line.startswith("{"))
    stats: dict[str, Any] = json.loads(line)
    assert (stats["texts"], stats["failed"], stats["cache_hits"]) == (30, 2, 1)
    # A forward and a backward pass for each group of texts of one length in each chunk.
    assert stats["batched"] == 27
    assert stats["forwards"] < 2 * 27 / 2


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the engine in /proc")
def test_ctrl_c_ends_a_file_of_texts(stories: Path, tmp_path: Path, cache_dir: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("".join(f"Toy {number} was lost.\n" for number in range(3000)))
    process = subprocess.Popen(
        _command(stories, file, cache_dir),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None and process.stderr is not None
    for _ in range(30):  # inside the later, larger chunks
        assert process.stdout.readline().endswith(b"\n")
    children = Path(f"/proc/{process.pid}/task").glob("*/children")
    engines = [int(pid) for path in children for pid in path.read_text().split()]
    assert engines
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    errors = process.stderr.read().decode()
    assert process.wait(10) == 130
    assert time.monotonic() - began < 5
    assert "Traceback" not in errors
    assert wait_until(lambda: not any(runs(pid) for pid in engines))
