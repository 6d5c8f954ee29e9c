"""How quick the first run is: the bundled example painted, keys, and an edit with its controls.

    python benchmarks/demo_terminal.py [--rounds N] [--keys N] [--edits N]

On a pseudo-terminal of 160 x 45, as medians of interleaved rounds:

- filled: from the start of the program, on an empty cache, to all four panes filled with the
  example and its edit; as a share of `python -c "import torch"` in the same run;
- edit: from `a` on a feature to its effect painted beside all controls, the model loaded behind;
- keys while the engine loads the model and works on edits, 95th percentile.

Exits with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from support_terminal import PseudoTerminal
from terminal import KEY_BAR_MS, SHARE_BAR, import_torch, key_times, percentile

EDIT_BAR_SECONDS = 1.0


def opened(cache: str) -> PseudoTerminal:
    """Start the explorer with no model and no text."""
    command = [sys.executable, "-m", "emotui", "--cache-dir", cache]
    return PseudoTerminal(command, columns=160, lines=45)


def filled(text: str) -> bool:
    """Return whether all four panes show the example."""
    parts = ("1 Text", "2 Layers", "3 Features", "ablate L6/222", "KL of the next token", "emb")
    return all(part in text for part in parts)


def ready(screen: PseudoTerminal) -> None:
    """Wait for the example, then until the model has been loaded behind it."""
    screen.wait_for(filled, 60)
    screen.settle(0.5, 5)


def edit_times(screen: PseudoTerminal, count: int) -> list[float]:
    """Return the seconds from `a` to the painted effect, a new feature each time."""
    times = []
    screen.send("3")
    for number in range(count):
        screen.send("\x1b[B")
        screen.settle(0.2, 2)
        started = time.monotonic()
        screen.send("a")
        screen.wait_for(lambda text, n=number + 2: f"{n} edits" in text, 30)
        times.append(time.monotonic() - started)
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keys", type=int, default=120)
    parser.add_argument("--edits", type=int, default=6)
    options = parser.parse_args()
    torch, first = [], []
    for _ in range(options.rounds):
        torch.append(import_torch())
        with tempfile.TemporaryDirectory() as cache, opened(cache) as screen:
            first.append(screen.wait_for(filled, 60))
    base, paint = statistics.median(torch), statistics.median(first)
    print(f"import torch   {base:.2f} s")
    print(f"filled         {paint:.2f} s  {paint / base:.2f} of it (bar {SHARE_BAR})")
    with tempfile.TemporaryDirectory() as cache, opened(cache) as screen:
        ready(screen)
        busy = key_times(screen, options.keys)
        time.sleep(15)
        edits = edit_times(screen, options.edits)
    worst, edit = percentile(busy, 0.95), statistics.median(edits)
    print(f"keys, loading  {worst:.0f} ms at the 95th percentile (bar {KEY_BAR_MS:.0f})")
    shown = " ".join(f"{seconds:.2f}" for seconds in edits)
    print(f"edit           {edit:.2f} s median (bar {EDIT_BAR_SECONDS}); each: {shown}")
    missed = paint / base >= SHARE_BAR or worst >= KEY_BAR_MS or edit >= EDIT_BAR_SECONDS
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
