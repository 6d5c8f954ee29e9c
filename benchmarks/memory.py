"""How much an engine's resident memory grows over many different texts, on this machine.

    python benchmarks/memory.py [--model FOLDER] [--texts 500] [--file]

One engine, a cache that is removed at the end, no text twice. Resident memory is read from /proc
after every 50 texts; the bar is 1 % between the 50th and the last. With --file the texts go
through the model in batches, as with `emotui inspect --file`; batches grow with the chunks of the
file, so there the bar counts from the 300th text. Without --model: the demo.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import msgspec

from emotui.cache.demo import demo_saes, demo_spec, install_demo
from emotui.cache.prepare import Prepared, prepare
from emotui.cache.store import Store
from emotui.commands.batches import Batches
from emotui.core.client import EngineClient
from emotui.core.protocol import InspectRequest, ModelSpec

BAR = 0.01
STEP = 50
FULL_BATCHES = 6
"""Steps after which the chunks of a file grow no more."""


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def sizes_of(model: str | None, *, n_texts: int, batched: bool = False) -> list[int]:
    """Return the engine's resident bytes after every 50 of `n_texts` different texts."""
    sizes: list[int] = []
    with tempfile.TemporaryDirectory(prefix="emotui-memory-") as folder:
        root = Path(folder)
        request = InspectRequest(ModelSpec(model or ""), "", folder)
        if model is None:
            install_demo(root)
            spec = demo_spec(dtype="auto", device="auto")
            request = InspectRequest(spec, "", folder, saes=tuple(demo_saes()))
        # Lengths that come back, so that growth is not that of longer texts.
        texts = [
            f"Text {number}: it was late{', and it rained' * (number % 7)}."
            for number in range(100, 100 + n_texts)
        ]
        with Store.open(root) as store, EngineClient(root) as client:

            def prepared(text: str) -> Prepared:
                return prepare(msgspec.structs.replace(request, text=text), store)

            ahead = Batches(client, prepared).of(texts) if batched else ((t, None) for t in texts)
            for done, (text, _) in enumerate(ahead, 1):
                client.submit(prepared(text).request).result()
                if done % STEP == 0:
                    assert client.pid is not None
                    sizes.append(resident_bytes(client.pid))
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--file", action="store_true")
    options = parser.parse_args()
    sizes = sizes_of(options.model, n_texts=options.texts, batched=options.file)
    print("MB after every 50 texts:", " ".join(f"{size / 1e6:.1f}" for size in sizes))
    base = (FULL_BATCHES if options.file else 1) - 1
    growth = sizes[-1] / sizes[base] - 1
    print(f"grew by {growth:.2%} after the first {STEP * (base + 1)} (bar {BAR:.0%})")
    sys.exit(growth >= BAR)


if __name__ == "__main__":
    main()
