"""How well attribution finds what exact ablation finds, on texts of the held-out topics.

    python benchmarks/attribution_exact.py --model FOLDER --sae FOLDER [--texts 50] [--json OUT]

For each text: every active feature of every layer at the readout is estimated by one backward pass
and ablated exactly (rows of one batch a layer). The metric is the margin of the model's likeliest
answer. Reported: Spearman of the two over the features of a text (mean and quartiles over texts),
and the mean share of the ten largest exact effects among the 64 largest estimates.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch
from torch import Tensor

from emotui.core.corpus import load_situations
from emotui.core.engine.answer import label_tokens
from emotui.core.engine.attribute import answer_metric, estimates, gradients, margin
from emotui.core.engine.capture import Hook, HookFunction, QuietJob, capture, hooked
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.saes import SaeSet, load_saes
from emotui.core.protocol import ModelSpec
from emotui.core.text import template_named

TRUE_TOP, SHORTLIST = 10, 64
BAR = 0.9


def compared(model: LoadedModel, saes: SaeSet, text: str) -> tuple[Tensor, Tensor]:
    """Return estimates and exact effects of all active features at the readout."""
    template = template_named("ask")
    labels = label_tokens(model.reader, "ekman7", template)
    ids = [token.id for token in model.reader.read(text, template).tokens]
    readout = len(ids) - 1
    full = [*ids, *labels.prefix]
    deciding = list(labels.deciding)
    top = int(capture(model, full).logits[deciding].argmax())
    metric = answer_metric(labels, labels.labels[top])
    if metric is None:
        sys.exit("the labels are not told apart by one token of this model")
    found, run = gradients(model, ids, metric), capture(model, ids)
    given, exact = [], []
    for sae in saes:
        if sae.site != "resid":
            continue
        features = sae.encode(run.at("resid", sae.layer)[readout])
        active = features.nonzero().flatten().tolist()
        sizes = features[active]
        given.append(
            estimates(
                sae,
                found.at("resid", sae.layer),
                index=active,
                position=[readout] * len(active),
                activation=sizes.tolist(),
            )
        )
        removed = -sizes[:, None] * sae.directions(active)
        hook = Hook("resid", sae.layer, ablating(removed, readout))
        with hooked(model, [hook]):
            logits = model.forward([full] * len(active))[:, -1]
        exact.append(margin(logits[:, deciding].float(), top) - found.value)
    return torch.cat(given), torch.cat(exact)


def ablating(removed: Tensor, position: int) -> HookFunction:
    def function(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        changed[:, position] += removed
        return changed

    return function


def spearman(one: Tensor, other: Tensor) -> float:
    ranks = torch.stack([values.argsort().argsort().double() for values in (one, other)])
    return float(torch.corrcoef(ranks)[0, 1])


def recall(estimate: Tensor, exact: Tensor) -> float:
    true = set(exact.abs().topk(min(TRUE_TOP, len(exact))).indices.tolist())
    short = set(estimate.abs().topk(min(SHORTLIST, len(estimate))).indices.tolist())
    return len(true & short) / len(true)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--sae", required=True)
    parser.add_argument("--texts", type=int, default=50)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = load_model(ModelSpec(options.model), QuietJob())
    saes = load_saes(options.sae, model)
    held_out = [one.text for one in load_situations() if one.split == "test"]
    step = len(held_out) / options.texts
    rhos, recalls, counts = [], [], []
    for number in range(options.texts):
        estimate, exact = compared(model, saes, held_out[int(number * step)])
        rhos.append(spearman(estimate, exact))
        recalls.append(recall(estimate, exact))
        counts.append(len(exact))
    quartiles = statistics.quantiles(rhos, n=4)
    print(f"{options.texts} texts, {statistics.mean(counts):.0f} features each")
    print(f"Spearman mean {statistics.mean(rhos):.3f}, quartiles {quartiles}")
    mean = statistics.mean(recalls)
    print(f"recall of the true top {TRUE_TOP} in the top {SHORTLIST}: {mean:.3f} (bar {BAR})")
    if options.json:
        figures = {"spearman": rhos, "recall": recalls, "features": counts}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.exit(mean < BAR)


if __name__ == "__main__":
    main()
