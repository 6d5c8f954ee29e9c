"""How much faster the ablations of `study trace` are than one hooked forward for each.

    python benchmarks/study_trace.py [--texts N] [--rounds N]

The bundled demo, 112 active features in each third of its layers. The texts are a subset of the
20 a label of a whole study: the ratio is per text and feature, so it does not depend on how many.
Both ways run interleaved, text by text, and medians are compared; the effects must agree to 1e-4.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from emotui.cache.demo import demo_saes, demo_spec
from emotui.core.corpus import load_situations
from emotui.core.engine.answer import label_tokens
from emotui.core.engine.attribute import margin
from emotui.core.engine.capture import Activations, Hook, QuietJob, capture, hooked
from emotui.core.engine.exact import ablations
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.saes import Sae, load_saes
from emotui.core.text import template_named

FEATURES = 112
PHASES = 3
Feature = tuple[Sae, int]


def of_phase(saes: list[Sae], run: Activations, phase: int) -> list[Feature]:
    """Return the largest features at the readout of one phase: 112, active ones first."""
    mine = [sae for sae in saes if sae.layer * PHASES // len(saes) == phase]
    found = []
    for sae in mine:
        f = sae.encode(run.at("resid", sae.layer)[-1]).float()
        best = f.topk(FEATURES)
        found += [
            (value, sae, index)
            for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
    return [(sae, index) for _, sae, index in sorted(found, key=lambda row: -row[0])[:FEATURES]]


def hooked_one(model: LoadedModel, ids: list[int], sae: Sae, index: int) -> torch.Tensor:
    """Return the logits of a whole forward with one feature ablated at the readout."""

    def remove(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        f = sae.encode(tensor[:, -1])[:, [index]]
        changed[:, -1] -= f @ sae.directions([index])
        return changed

    with torch.no_grad(), hooked(model, [Hook("resid", sae.layer, remove)]):
        return model.forward([ids])[0, -1]


def main() -> None:
    """Print the medians, the ratio and the largest difference."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--texts", type=int, default=6, help="one of each emotion")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    model = load_model(demo_spec(), QuietJob())
    saes = [sae for source in demo_saes() for sae in load_saes(source, model)]
    saes = [sae for sae in saes if sae.site == "resid"]
    template = template_named("ask")
    tokens = label_tokens(model.reader, "ekman7", template)
    emotions = [label for label in tokens.labels if label != "neutral"]
    situations = load_situations()
    chosen = [next(s for s in situations if s.emotion == label) for label in emotions]
    quick, slow, apart = [], [], 0.0
    for situation in chosen[: given.texts]:
        ids = [token.id for token in model.reader.read(situation.text, template).tokens]
        own, deciding = tokens.labels.index(situation.emotion), list(tokens.deciding)
        lists = [of_phase(saes, capture(model, ids), phase) for phase in range(PHASES)]
        for _ in range(given.rounds):
            started = time.perf_counter()
            run = capture(model, ids)
            rows = [ablations(model, run, one, position=len(ids) - 1).logits for one in lists]
            quick.append(time.perf_counter() - started)
            started = time.perf_counter()
            full = [torch.stack([hooked_one(model, ids, *one) for one in phase]) for phase in lists]
            slow.append(time.perf_counter() - started)
            for one, other in zip(rows, full, strict=True):
                first, second = (margin(x[:, deciding].float(), own) for x in (one, other))
                apart = max(apart, float((first - second).abs().max()))
    ratio = statistics.median(slow) / statistics.median(quick)
    print(
        f"{Path(__file__).stem}: {len(chosen[: given.texts])} texts x {PHASES} phases x {FEATURES}"
    )
    print(f"features, {given.rounds} rounds, {torch.get_num_threads()} threads")
    print(f"one hooked forward each: median {statistics.median(slow):.3f} s a text")
    print(f"rows of one batch:       median {statistics.median(quick):.3f} s a text")
    print(f"ratio {ratio:.1f}; largest difference of a margin {apart:.1e}")


if __name__ == "__main__":
    main()
