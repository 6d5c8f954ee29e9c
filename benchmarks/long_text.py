"""How the screen keeps up with a text of 4,000 tokens.

    python benchmarks/long_text.py [--tokens N] [--keys N] [--folder FOLDER]

Makes a random tiny model with that context and SAEs at every layer, reads a text of N tokens with
it, opens the trace on a pseudo-terminal at 160x45, and prints the longest and the median time from
a key to the first paint it causes: moves and scrolls in the text, in the heat map of emotions and
in that of tokens. `--folder` keeps what was made for the next run.

Exits with 1 where a key took longer than 50 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support_terminal import PseudoTerminal, painted

BAR_MS = 50.0
SENTENCE = "Lily was sad because her toy was lost. "
ARROWS = {"up": "\x1b[A", "down": "\x1b[B", "home": "\x1b[H", "end": "\x1b[F"}


def make_model(folder: Path, *, context: int) -> tuple[Path, Path]:
    """Write a random tiny model with a long context, and an SAE for each of its layers."""
    from support_models import LAYERS, WIDTH, copied, tiny_folder
    from support_saes import write_sae

    model = copied(tiny_folder("llama"), folder / "model")
    config = json.loads((model / "config.json").read_text())
    config["max_position_embeddings"] = context
    (model / "config.json").write_text(json.dumps(config))
    for layer in range(LAYERS):
        write_sae(folder / "saes" / f"layer_{layer}", d_in=WIDTH, width=512, k=32,
                  hook=f"blocks.{layer}.hook_resid_post", seed=layer)  # fmt: skip
    return model, folder / "saes"


def text_of(model: Path, tokens: int) -> str:
    """Return a text of about so many tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    each = len(tokenizer(SENTENCE)["input_ids"])
    return (SENTENCE * (tokens // max(1, each - 1))).strip()


def prepare(folder: Path, tokens: int) -> None:
    """Make the model, read the text, and leave its trace in the folder's cache."""
    model, saes = make_model(folder, context=2 * tokens)
    text = text_of(model, tokens)
    (folder / "text.txt").write_text(text)
    command = [sys.executable, "-m", "emotui", "inspect", text, "--model", str(model)]
    command += ["--sae", str(saes), "--fit", "--cache-dir", str(folder / "cache")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def first_paint(screen: PseudoTerminal, keys: str) -> float:
    """Return the milliseconds from keys to the first byte that answers them."""
    screen.settle(0.15, 2.0)
    before, started = len(screen.output), time.monotonic()
    screen.send(keys)
    while len(screen.output) == before and time.monotonic() - started < 5:
        screen.read(0.5, draw=False)
    return 1000 * (time.monotonic() - started)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--keys", type=int, default=30)
    parser.add_argument("--folder", help="where the model and the cache are kept")
    options = parser.parse_args()
    folder = Path(options.folder or tempfile.mkdtemp())
    if not (folder / "cache").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        prepare(folder, options.tokens)
    os.chdir(tempfile.mkdtemp())
    command = [sys.executable, "-m", "emotui", "--cache-dir", str(folder / "cache")]
    command += ["--model", str(folder / "model"), "--sae", str(folder / "saes")]
    command.append((folder / "text.txt").read_text())
    worst = 0.0
    with PseudoTerminal(command, columns=160, lines=45) as screen:
        opened = screen.wait_for(lambda text: painted(text) and "cache" in text, 60)
        screen.settle(1.0, 10.0)
        print(f"opened in {opened:.2f} s")
        steps = {
            "text, by token": ("1", "h"),
            "text, by line": ("1", ARROWS["up"]),
            "text, ends": ("1", None),
            "layers, by layer": ("2", None),
            "layers, by token": ("0", "h"),
        }
        for what, (enter, key) in steps.items():
            first_paint(screen, enter)
            keys = {"text, ends": (ARROWS["home"], ARROWS["end"]), "layers, by layer": "kj"}
            pair = keys.get(what, (key, key))
            times = [first_paint(screen, str(pair[n % 2])) for n in range(options.keys)]
            median = statistics.median(times)
            print(f"{what:<18} median {median:4.0f} ms, longest {max(times):4.0f} ms", flush=True)
            worst = max(worst, *times)
    print(f"longest {worst:.0f} ms (bar {BAR_MS:.0f})")
    return int(worst >= BAR_MS)


if __name__ == "__main__":
    sys.exit(main())
