"""What attribution costs beside one plain forward, on this machine, in one run.

    python benchmarks/attribution.py [--model FOLDER] [--tokens 64] [--rounds 30]

Without --model: random weights of the shape of GPT-2 small. Every feature that is active (TopK
SAEs with random weights at every layer, k 32) at every token is attributed, and every attention
and MLP output. The three timings take turns in every round; medians are printed with the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from transformers import GPT2Config, GPT2LMHeadModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support_saes import write_sae

from emotui.core.engine.attribute import Gradients, Metric, estimates, gradients, margin
from emotui.core.engine.capture import QuietJob, capture
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.saes import load_saes
from emotui.core.engine.sites import SITE_TABLES, Sites
from emotui.core.protocol import ModelSpec

BAR = 4.0


def random_gpt2() -> LoadedModel:
    hf = GPT2LMHeadModel(GPT2Config(attn_implementation="sdpa")).eval()
    return LoadedModel(
        spec=ModelSpec("random GPT-2 small"),
        hf=hf,
        reader=cast(Any, argparse.Namespace(begins_with_bos=True)),
        sites=Sites(hf, SITE_TABLES["gpt2"]),
        fingerprint="",
        folder=Path(),
        hub_id=None,
        revision=None,
        architecture="gpt2",
        attention="sdpa",
        dtype=torch.float32,
        device=torch.device("cpu"),
        d_model=768,
        vocabulary=hf.config.vocab_size,
        context_length=1024,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--width", type=int, default=2048)
    options = parser.parse_args()
    model = load_model(ModelSpec(options.model), QuietJob()) if options.model else random_gpt2()
    ids = torch.randint(model.vocabulary, (options.tokens,)).tolist()
    deciding = list(range(7))
    metric = Metric("answer", "answer", lambda logits, _resid: margin(logits[deciding], 0))
    with tempfile.TemporaryDirectory() as root:
        for layer in range(model.n_layers):
            hook = f"blocks.{layer}.hook_resid_post"
            write_sae(
                Path(root) / f"{layer}", d_in=model.d_model, width=options.width, hook=hook, k=32
            )
        saes = load_saes(root, model)
        run = capture(model, ids)
        rows = []
        for sae in saes:
            features = sae.encode(run.at("resid", sae.layer))
            position, index = features.nonzero(as_tuple=True)
            size = features[position, index]
            rows.append((sae, index.tolist(), position.tolist(), size.tolist()))

        def every_feature(found: Gradients) -> None:
            for sae, index, position, size in rows:
                slopes = found.at("resid", sae.layer)
                estimates(sae, slopes, index=index, position=position, activation=size)

        work: dict[str, Callable[[], object]] = {
            "plain forward": lambda: model.forward([ids]),
            "backward pass": lambda: gradients(model, ids, metric),
            "attribution": lambda: every_feature(gradients(model, ids, metric)),
        }
        seconds: dict[str, list[float]] = {name: [] for name in work}
        for turn in range(options.rounds + 2):
            for name, function in work.items():
                started = time.perf_counter()
                function()
                if turn >= 2:  # the first two warm up
                    seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    count = sum(len(index) for _, index, _, _ in rows)
    print(f"{model.spec.model}: {model.n_layers} layers, {len(ids)} tokens, {count:,} features")
    for name, median in medians.items():
        print(f"{name:16} {median * 1e3:8.2f} ms  {median / medians['plain forward']:5.2f} x")
    ratio = medians["attribution"] / medians["plain forward"]
    print(f"bar {BAR} x: {'met' if ratio <= BAR else 'missed'}")
    sys.exit(ratio > BAR)


if __name__ == "__main__":
    main()
