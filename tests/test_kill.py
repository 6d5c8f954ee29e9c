"""kill -9 of the engine and of the whole program, at random moments of real work.

Each program inspects texts of its own and loses its engine several times, then its life, always
a moment after its last sign of life. What it printed must be there afterwards.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import msgspec
import pytest
from support_process import runs, wait_until

from emotui.cache.store import Store
from emotui.core.export.json import document_bytes

PROGRAMS_AT_ONCE = 5
ENGINE_KILLS = 4
"""Kills of the engine before the program itself is killed."""
TEXTS = 900
MOST_SECONDS = 2.0
"""Between a printed line and the kill: several texts are read and written in it."""
START_SECONDS = 90.0
GONE_SECONDS = 1.5

_ID = re.compile(rb'"id":"([0-9a-f]{16})"')


class Tally(msgspec.Struct):
    """What one program printed and what was killed of it."""

    lines: list[bytes] = []
    torn: bytes = b""
    killed: int = 0


class Program:
    """`emotui inspect --file` on new texts, its standard output read as it comes."""

    def __init__(self, name: str, folder: Path, cache: Path, model: Path) -> None:
        texts = folder / f"{name}.jsonl"
        texts.write_text(
            "".join(json.dumps({"text": f"{name}: toy {i} was lost."}) + "\n" for i in range(TEXTS))
        )
        self.name = name
        self.cache = cache
        self.errors = folder / f"{name}.err"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "emotui", "inspect", "--file", str(texts), "--jsonl"),
                    *("--model", str(model), "--cache-dir", str(cache)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self.tally = Tally()
        self._grown = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._grown:
                if line.endswith(b"\n"):
                    self.tally.lines.append(line)
                else:
                    self.tally.torn = line
                self._grown.notify_all()

    def wait_for_another_line(self) -> None:
        with self._grown:
            seen = len(self.tally.lines)
            came = self._grown.wait_for(lambda: len(self.tally.lines) > seen, START_SECONDS)
        assert came, f"{self.name} printed nothing more: {self.errors.read_text()}"

    def engines(self) -> list[int]:
        """Process ids of this program's engines: the name of their log holds its process id."""
        mark = f"-{self.process.pid}.log"
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            ours = any(word.startswith(str(self.cache)) and word.endswith(mark) for word in words)
            if ours and runs(int(entry.name)):
                found.append(int(entry.name))
        return found

    def wait_for_its_engine(self) -> int:
        """Process id of its one engine; a line under way may be read before that is up."""
        assert wait_until(lambda: len(self.engines()) == 1, START_SECONDS), self.engines()
        (engine,) = self.engines()
        return engine

    def end(self) -> None:
        """Kill the program, then see that its engine ends without help."""
        self.process.kill()
        self.process.wait()
        gone = wait_until(lambda: not self.engines(), GONE_SECONDS)
        self._reader.join(5)
        assert gone, f"{self.name}: an engine outlived its program by {GONE_SECONDS} s"


def _is_gone(pid: int) -> bool:
    return not runs(pid)


def _kill_again_and_again(program: Program, moments: random.Random) -> Tally:
    try:
        for _ in range(ENGINE_KILLS):
            program.wait_for_another_line()
            time.sleep(moments.uniform(0, MOST_SECONDS))
            (engine,) = program.engines()
            os.kill(engine, signal.SIGKILL)
            program.tally.killed += 1
            assert wait_until(partial(_is_gone, engine), GONE_SECONDS)
        program.wait_for_another_line()
        time.sleep(moments.uniform(0, MOST_SECONDS))
        assert program.process.poll() is None, f"ended by itself: {program.errors.read_text()}"
        program.tally.killed += 1
    finally:
        program.end()
    return program.tally


def _check(cache: Path, tallies: list[Tally]) -> None:
    """Every printed trace reads back as it was printed; nothing in the cache is torn."""
    with Store.open(cache) as store:
        for tally in tallies:
            for line in tally.lines:
                document = json.loads(line)
                trace = store.get_trace(document["id"])
                assert trace.text.raw == document["text"]["raw"]
                assert document_bytes(trace, all_tokens=False).rstrip() == line.rstrip()
            for found in _ID.findall(tally.torn):
                store.get_trace(found.decode())
        report = store.verify()
        printed = sum(len(tally.lines) for tally in tallies)
        assert report.checked >= printed > 0
        assert report.damaged == ()
        assert len(store.traces()) >= printed


def _kill(programs: int, folder: Path, model: Path, seed: int) -> int:
    caches = [folder / "cache 0", folder / "cache 1"]  # two programs share one, in pairs

    def run(number: int) -> Tally:
        cache = caches[number % len(caches)]
        program = Program(f"case {number}", folder, cache, model)
        return _kill_again_and_again(program, random.Random(seed + number))

    with ThreadPoolExecutor(PROGRAMS_AT_ONCE) as pool:
        tallies = list(pool.map(run, range(programs)))
    for number, cache in enumerate(caches):
        _check(cache, tallies[number :: len(caches)])
    return sum(tally.killed for tally in tallies)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds engines in /proc")
def test_fifty_kills_lose_nothing_that_was_printed(tmp_path: Path, stories: Path) -> None:
    assert _kill(10, tmp_path, stories, seed=20_000) == 50


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds engines in /proc")
@pytest.mark.parametrize("seed", range(1, 6))
def test_many_kills_lose_nothing_that_was_printed(tmp_path: Path, stories: Path, seed: int) -> None:
    assert _kill(20, tmp_path, stories, seed=seed * 1000) == 100
