"""How much sooner many texts are done when they share forwards, on this machine, in one run.

    python benchmarks/batched.py [--model FOLDER] [--texts 200] [--rounds 3]

Situations of the bundled corpus, as different in length as they are, through one engine: one
request after the other, and in batches as `emotui inspect --file` does it. Both take turns in
every round, each on an empty cache; medians are printed with the ratio, of the seconds on the
clock and of those the processor worked (here and in the engine), which other programs on the
machine disturb less. Without --model: the bundled demo.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import msgspec

from emotui.cache.demo import demo_saes, demo_spec, install_demo
from emotui.cache.prepare import Prepared, prepare
from emotui.cache.store import Store
from emotui.commands.batches import Batches
from emotui.core.client import EngineClient
from emotui.core.corpus import load_situations
from emotui.core.protocol import Inspected, InspectRequest, ModelSpec


def request_for(model: str | None, metric: str) -> InspectRequest:
    if model is not None:
        return InspectRequest(ModelSpec(model), "", "", metric=metric)
    spec = demo_spec(dtype="auto", device="auto")
    return InspectRequest(spec, "", "", saes=tuple(demo_saes()), metric=metric)


def run(
    client: EngineClient, like: InspectRequest, texts: list[str], *, batched: bool
) -> tuple[float, float, int]:
    """Return seconds, processor seconds and forwards of all texts on an empty cache."""
    root = Path(tempfile.mkdtemp(prefix="emotui-batched-"))
    try:
        if not like.spec.model.endswith("stories260K"):
            install_demo(root)
        with Store.open(root) as store:
            like = msgspec.structs.replace(like, cache_dir=str(root))

            def prepared(text: str) -> Prepared:
                return prepare(msgspec.structs.replace(like, text=text), store)

            ask(client, prepared("Opening the store, the probes and the SAEs."))
            began, worked = time.monotonic(), processor_seconds(client)
            batches = Batches(client, prepared)
            pairs = batches.of(texts) if batched else ((text, prepared(text)) for text in texts)
            forwards = 0
            for _, ready in pairs:
                assert ready is not None
                forwards += ask(client, ready)
            return (
                time.monotonic() - began,
                processor_seconds(client) - worked,
                forwards + batches.forwards,
            )
    finally:
        shutil.rmtree(root)


def processor_seconds(client: EngineClient) -> float:
    """Return the processor seconds of this process and of its engine so far."""
    fields = Path(f"/proc/{client.pid}/stat").read_text().rpartition(")")[2].split()
    return time.process_time() + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask(client: EngineClient, prepared: Prepared) -> int:
    done = client.submit(prepared.request).result()
    assert isinstance(done, Inspected)
    return done.forwards


def middle(runs: list[tuple[float, float, int]], column: int) -> float:
    return statistics.median(run[column] for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    corpus = [situation.text for situation in load_situations()]
    texts = corpus[:: max(1, len(corpus) // options.texts)][: options.texts]
    logs = Path(tempfile.mkdtemp(prefix="emotui-batched-"))
    with EngineClient(logs) as client:
        for metric in ("none", "top"):
            like = request_for(options.model, metric)
            run(client, like, texts[:8], batched=True)
            single, batched = [], []
            for _ in range(options.rounds):
                single.append(run(client, like, texts, batched=False))
                batched.append(run(client, like, texts, batched=True))
            print(f"{len(texts)} texts, --metric {metric}:")
            for name, runs in (("one by one", single), ("in batches", batched)):
                print(
                    f"  {name}: {middle(runs, 0):6.2f} s, processor {middle(runs, 1):6.2f} s, "
                    f"{runs[0][2]} forwards"
                )
            ratios = (middle(single, column) / middle(batched, column) for column in (0, 1))
            print("  times as quick: {:.2f}, by the processor {:.2f}".format(*ratios))
    shutil.rmtree(logs)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
