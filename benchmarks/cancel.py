"""How soon a cancelled request is answered, and whether its engine lived on, on this machine.

    python benchmarks/cancel.py [--model FOLDER] [--rounds 8]

Each kind of work is begun and cancelled at moments spread over its length (at most its first four
seconds). The client answers within 0.9 s in any case, by killing an engine that does not; kills
are counted, because the next request then loads the model anew. Without --model: the demo.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from emotui.cache.demo import demo_saes, demo_spec, install_demo
from emotui.cache.prepare import prepare
from emotui.cache.store import Store
from emotui.core.client import EngineClient
from emotui.core.corpus import load_situations
from emotui.core.errors import Cancelled
from emotui.core.protocol import (
    FitRequest,
    GenerateRequest,
    GenerationSpec,
    InspectRequest,
    LoadRequest,
    ModelSpec,
    Operation,
    PrefetchRequest,
    WhereRequest,
)

BAR_SECONDS = 1.0
LONGEST_WAIT = 4.0

LAYER = 3

Work = Callable[[int], Operation]
"""Gives the request of one round; each round's is new, so that nothing is found in the cache."""


def works(request: InspectRequest) -> dict[str, Work]:
    """Return each kind of work by its name."""
    spec, folder = request.spec, request.cache_dir
    dtypes = ("bfloat16", "float32")
    edit = f"ablate L{LAYER}/12 at all" if request.saes else f"knock attn L{LAYER} mean"

    def texts(number: int, count: int) -> tuple[str, ...]:
        return tuple(f"Round {number}: {one.text}" for one in load_situations()[:count])

    def changed(number: int, **changes: object) -> InspectRequest:
        return msgspec.structs.replace(request, text=texts(number, 1)[0], **changes)

    return {
        "load": lambda n: LoadRequest(
            msgspec.structs.replace(spec, dtype=dtypes[n % 2]), folder, template="ask"
        ),
        "inspect": lambda n: changed(n),
        "inspect with an edit": lambda n: changed(1000 + n, edits=(edit,)),
        "generation": lambda n: changed(2000 + n, generation=GenerationSpec(150, 1.0, 5)),
        "plain generation": lambda n: GenerateRequest(spec, texts(3000 + n, 1)[0], 150),
        "texts in batches": lambda n: PrefetchRequest(request, texts(4000 + n, 256)),
        "where": lambda n: WhereRequest(
            spec, texts(5000 + n, 1)[0], folder, "sadness", probes=request.probes
        ),
        "probe fit": lambda n: FitRequest(spec, folder, seed=n),
    }


def measure(
    client: EngineClient, loaded: LoadRequest, work: Work, rounds: int
) -> tuple[list[float], int, int]:
    """Return seconds until the answer, kills of the engine, and rounds that ended before.

    `loaded` is done before each round, so that all begin alike.
    """
    began = time.monotonic()
    pending = client.submit(work(0))
    while not pending.done and time.monotonic() - began < LONGEST_WAIT:
        time.sleep(0.01)
    length = time.monotonic() - began
    pending.cancel()
    seconds: list[float] = []
    kills = early = 0
    for number in range(1, rounds + 1):
        client.submit(loaded).result()
        before = client.pid
        pending = client.submit(work(number))
        time.sleep(length * number / (rounds + 1))
        if pending.done:
            early += 1
            continue
        began = time.monotonic()
        pending.cancel()
        try:
            pending.result()
            early += 1
        except Cancelled:
            seconds.append(time.monotonic() - began)
        client.wait_until_ready()
        kills += client.pid != before
    return seconds, kills, early


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    worst = 0.0
    with tempfile.TemporaryDirectory(prefix="emotui-cancel-") as folder:
        root = Path(folder)
        request = InspectRequest(ModelSpec(options.model or ""), "", folder)
        if options.model is None:
            install_demo(root)
            spec = demo_spec(dtype="auto", device="auto")
            request = InspectRequest(spec, "", folder, saes=tuple(demo_saes()))
        loaded = LoadRequest(request.spec, folder)
        with Store.open(root) as store, EngineClient(root) as client:
            client.submit(loaded).result()
            request = prepare(request, store).request
            for name, work in works(request).items():
                seconds, kills, early = measure(client, loaded, work, options.rounds)
                worst = max([worst, *seconds])
                shown = (
                    "all ended before"
                    if not seconds
                    else (
                        f"median {statistics.median(seconds) * 1000:5.0f} ms, "
                        f"worst {max(seconds) * 1000:5.0f} ms"
                    )
                )
                print(f"{name:<22} {shown}, engine killed {kills}, ended before {early}")
    print(f"worst of all: {worst * 1000:.0f} ms (bar {BAR_SECONDS * 1000:.0f} ms)")
    sys.exit(worst >= BAR_SECONDS)


if __name__ == "__main__":
    main()
