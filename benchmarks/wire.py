"""How many bytes the screen sends: what a key costs over SSH.

    python benchmarks/wire.py [--cache FOLDER]

On the bundled example at 160x45, in 256 colours and in all of them: the largest number of bytes
that answer a key.

- a layer move: the first answer, then the features, which follow when the cursor rests;
- a token move, in the text and in the layer-by-token view;
- a full repaint: another theme, help over the panes, and what was below it.

Exits with 1 where a bar is missed in 256 colours.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support_terminal import PseudoTerminal, answer_to, painted

COLUMNS, LINES = 160, 45
BARS = {"layer": (2_000, 8_000), "token": (20_000,), "repaint": (48_000,)}
"""Bytes of the first answer and of what follows; where there is one number, of both."""
AT_256 = "256 colours"


def measured(cache: str, environment: dict[str, str]) -> dict[str, list[tuple[int, int]]]:
    """Return, by what was done, the bytes of each answer."""
    command = [sys.executable, "-m", "emotui", "--cache-dir", cache]
    found: dict[str, list[tuple[int, int]]] = {}

    def take(what: str, keys: str) -> None:
        found.setdefault(what, []).append(answer_to(screen, keys))

    settings = {"columns": COLUMNS, "lines": LINES, "environment": environment}
    with PseudoTerminal(command, **settings) as screen:
        screen.wait_for(lambda text: painted(text) and "cache" in text, 60)
        screen.settle(2.0, 20.0)
        answer_to(screen, "2")
        for key in ("k", "k", "j", "j", "j", "k"):
            take("layer", key)
        answer_to(screen, "1")
        for key in ("h", "h", "h", "l", "l", "h"):
            take("token", key)
        answer_to(screen, "0")
        for key in ("h", "h", "l", "h"):
            take("token by layers", key)
        answer_to(screen, "0")
        for _ in range(3):
            take("repaint, theme", "\x14")
        answer_to(screen, "\x14\x14")
        for _ in range(2):
            take("repaint, help", "?")
            take("repaint, closed", "\x1b")
        screen.send("q")
        screen.wait()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", help="a cache to open the example in")
    options = parser.parse_args()
    os.chdir(tempfile.mkdtemp())
    missed = []
    for name, colours in ((AT_256, {}), ("truecolor", {"COLORTERM": "truecolor"})):
        with tempfile.TemporaryDirectory() as made:
            found = measured(options.cache or made, colours)
        print(f"{name}, {COLUMNS}x{LINES}")
        for what, answers in found.items():
            bars = BARS[what.partition(",")[0].partition(" ")[0]]
            parts = answers if len(bars) > 1 else [(sum(answer),) for answer in answers]
            worst = [max(column) for column in zip(*parts, strict=True)]
            shown = ", then ".join(
                f"{value:>6,} (bar {bar:,})" for value, bar in zip(worst, bars, strict=True)
            )
            print(f"  {what:<16} {shown}", flush=True)
            if name == AT_256 and any(v >= bar for v, bar in zip(worst, bars, strict=True)):
                missed.append(what)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
