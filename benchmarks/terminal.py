"""How quick the screen is, on a pseudo-terminal, beside `import torch` in the same run.

    python benchmarks/terminal.py [--model FOLDER] [--rounds N] [--keys N] [--cache FOLDER]

Prints, as medians of interleaved rounds:

- first paint: from the start of the program to the answer to `?`, all pane titles and the text
  painted, on a cache that does not know the text; as a share of `python -c "import torch"`;
- reopening: the same to the cached heat map, painted;
- keys: from a key (`1` and `2` in turn, which paint two panes anew) to the pane's new border on
  the terminal, 95th percentile, idle on a cached trace, and while the engine starts, loads,
  reads and fits.

Exits with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support_terminal import PseudoTerminal, explorer, painted

ROOT = Path(__file__).resolve().parents[1]
TEXT = "Lily was sad because her toy was lost."
FOCUSED = "\N{BOX DRAWINGS HEAVY DOWN AND RIGHT}".encode()
SHARE_BAR, KEY_BAR_MS = 0.5, 50.0


def import_torch() -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.monotonic() - started


def answers_help(terminal: PseudoTerminal) -> float:
    """Return the time from the start until `?` is answered."""
    terminal.wait_for(lambda text: painted(text) and "Lily" in text, 60)
    terminal.send("?")
    return terminal.wait_for(lambda text: "Keys: Text" in text, 60)


def first_paint(model: str) -> float:
    with tempfile.TemporaryDirectory() as cache, explorer(TEXT, model=model, cache=cache) as screen:
        return answers_help(screen)


def reopening(model: str, cache: str) -> float:
    with explorer(TEXT, model=model, cache=cache) as screen:
        return screen.wait_for(lambda text: painted(text) and "cached" in text, 60)


def key_times(screen: PseudoTerminal, count: int) -> list[float]:
    """Return the milliseconds from each key to the border of the pane it goes to."""
    times: list[float] = []
    for index in range(count):
        screen.settle(0.03, 0.3)
        before = len(screen.output)
        started = time.monotonic()
        screen.send("21"[index % 2])
        while FOCUSED not in screen.output[before:] and time.monotonic() - started < 2:
            screen.read(0.5, draw=False)
        times.append(1000 * (time.monotonic() - started))
    return times


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def prepare_cache(model: str, cache: str) -> None:
    command = [sys.executable, "-m", "emotui", "inspect", TEXT, "--model", model, "--fit"]
    subprocess.run([*command, "--cache-dir", cache], check=True, stdout=subprocess.DEVNULL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = Path(os.environ.get("EMOTUI_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("--model", default=str(data / "stories260K"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--keys", type=int, default=120)
    parser.add_argument("--cache", help="a cache that holds the text already, with probes")
    options = parser.parse_args()
    os.chdir(tempfile.mkdtemp())
    with tempfile.TemporaryDirectory() as made:
        cache = options.cache or made
        if cache == made:
            prepare_cache(options.model, cache)
        torch, first, again = [], [], []
        for _ in range(options.rounds):
            torch.append(import_torch())
            first.append(first_paint(options.model))
            again.append(reopening(options.model, cache))
        base = statistics.median(torch)
        shares = {
            "first paint": statistics.median(first) / base,
            "reopening": statistics.median(again) / base,
        }
        print(f"import torch   {base:.2f} s", flush=True)
        for name, share in shares.items():
            print(f"{name:<14} {share * base:.2f} s  {share:.2f} of it (bar {SHARE_BAR})")

        with explorer(TEXT, model=options.model, cache=cache) as screen:
            screen.wait_for(lambda text: painted(text) and "cached" in text, 60)
            idle = key_times(screen, options.keys)
        fresh = tempfile.mkdtemp()
        with explorer(TEXT, model=options.model, cache=fresh) as screen:
            screen.wait_for(painted, 60)
            busy = key_times(screen, options.keys)
            still = "esc cancels" in screen.text
        shutil.rmtree(fresh, ignore_errors=True)
    worst = {"keys, idle": percentile(idle, 0.95), "keys, engine at work": percentile(busy, 0.95)}
    for name, value in worst.items():
        print(f"{name:<22} {value:.0f} ms at the 95th percentile (bar {KEY_BAR_MS:.0f})")
    print(f"engine still at work at the end of the keys: {'yes' if still else 'no'}")
    missed = any(share >= SHARE_BAR for share in shares.values())
    return int(missed or any(value >= KEY_BAR_MS for value in worst.values()))


if __name__ == "__main__":
    sys.exit(main())
