"""How quick the list of traces is where the cache holds 10,000 of them.

    python benchmarks/traces.py [--traces N] [--searches N] [--folder FOLDER]

Fills a cache with made-up traces (a third of them what-ifs), opens the explorer on the demo at
160x45 and prints, as medians with the longest in brackets: from `t` to the first rows on the
terminal, and from the last letter of a search to the rows it finds. `--folder` keeps the cache.

Exits with 1 where a median misses its bar: 200 ms and 100 ms.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support_terminal import PseudoTerminal, painted
from support_traces import made_up_trace

from emotui.cache.store import Store

LIST_BAR_MS, SEARCH_BAR_MS = 200.0, 100.0
WORDS = ("letter", "fire", "window", "spider", "garden", "promise", "train")


def fill(folder: Path, count: int) -> None:
    """Put made-up traces into a cache; not each is waited for until it is on the disk."""
    plain = made_up_trace(tokens=8, layers=2, features_at_readout=2, features_elsewhere=1)
    parent = None
    with mock.patch("os.fsync"), Store.open(folder) as store:
        for number in range(count):
            word = WORDS[number % len(WORDS)]
            text = f"Nobody had said a word about the {word} number {number:05d}."
            edited = number % 3 == 2
            trace = msgspec.structs.replace(
                plain,
                id=f"{number:016x}",
                parent=parent if edited else None,
                edits=("ablate L1/12 at all",) if edited else (),
                text=msgspec.structs.replace(plain.text, raw=text),
            )
            store.put_trace(trace, f"{number:016x}".ljust(64, "0"))
            parent = trace.id


def until(screen: PseudoTerminal, keys: str, seen: Callable[[str], bool]) -> float:
    """Return the milliseconds from keys until something is seen."""
    screen.settle(0.3, 3.0)
    started = time.monotonic()
    screen.send(keys)
    screen.wait_for(seen, 20.0)
    return 1000 * (time.monotonic() - started)


def typed(screen: PseudoTerminal, word: str, seen: Callable[[str], bool]) -> float:
    """Type a search as a person does; return the milliseconds from its last letter."""
    for letter in word[:-1]:
        screen.send(letter)
        screen.settle(0.08, 0.08)
    started = time.monotonic()
    screen.send(word[-1])
    screen.wait_for(seen, 20.0)
    return 1000 * (time.monotonic() - started)


def _found(wanted: str, text: str) -> bool:
    return wanted in text and "· 1 found" in text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=int, default=10_000)
    parser.add_argument("--searches", type=int, default=10)
    parser.add_argument("--folder", help="where the cache is kept")
    options = parser.parse_args()
    cache = Path(options.folder or tempfile.mkdtemp()) / "cache"
    if not cache.is_dir():
        cache.mkdir(parents=True, mode=0o700)
        fill(cache, options.traces)
    os.chdir(tempfile.mkdtemp())
    lists, searches = [], []
    command = [sys.executable, "-m", "emotui", "--cache-dir", str(cache)]
    with PseudoTerminal(command, columns=160, lines=45) as screen:
        screen.wait_for(lambda text: painted(text) and "cache" in text, 60)
        screen.settle(2.0, 15.0)
        for number in range(options.searches):
            lists.append(until(screen, "t", lambda text: "number" in text))
            screen.wait_for(lambda text: "+" not in text.splitlines()[1], 20.0)
            screen.send("/")
            screen.settle(0.2)
            wanted = f"{(options.traces // 2 + 101 * number) % options.traces:05d}"
            searches.append(typed(screen, wanted, partial(_found, wanted)))
            screen.send("\x1b")
            screen.settle(0.5, 3.0)
            screen.send("\x1b")
            screen.wait_for(painted, 10.0)
    missed = False
    for what, times, bar in (
        ("first rows", lists, LIST_BAR_MS),
        ("search", searches, SEARCH_BAR_MS),
    ):
        median = statistics.median(times)
        print(f"{what:<12} {median:4.0f} ms (longest {max(times):.0f}, bar {bar:.0f})")
        missed |= median >= bar
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
