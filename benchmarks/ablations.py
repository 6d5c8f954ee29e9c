"""64 exact single-feature ablations against 64 hooked runs through TransformerLens, in one run.

    python benchmarks/ablations.py [--model FOLDER --saes FOLDER] [--tokens 64] [--rounds 5]

Without --model: random weights of the shape of GPT-2 small, TopK SAEs of random weights (k 32) at
every layer. The features are active at the last token and spread over all layers. Each of the
TransformerLens runs adds a vector that was computed before, so it pays for nothing but the run.
The two take turns; medians are printed with the ratio and the largest difference of a logit.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support_models import copied, tiny_folder
from support_saes import write_residual_saes
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel

from emotui.core.engine.capture import Activations, QuietJob, capture
from emotui.core.engine.exact import ablations
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.saes import Sae, load_saes
from emotui.core.protocol import ModelSpec

FEATURES = 64
BAR = 20.0
TOLERANCE = 1e-4


def random_gpt2(folder: Path) -> Path:
    """Write random weights of the shape of GPT-2 small, beside the tokenizer of the tests."""
    torch.manual_seed(0)
    copied(tiny_folder("gpt2"), folder)
    GPT2LMHeadModel(GPT2Config(bos_token_id=2, eos_token_id=1)).save_pretrained(folder)
    return folder


def chosen(saes: list[Sae], run: Activations) -> list[tuple[Sae, int]]:
    """Return features that are active at the last token, the strongest of each layer in turn."""
    share = -(-FEATURES // len(saes))
    tops = [sae.encode(run.at(sae.site, sae.layer)[-1]).topk(share).indices for sae in saes]
    found = [
        (sae, int(top[rank])) for rank in range(share) for sae, top in zip(saes, tops, strict=True)
    ]
    return found[:FEATURES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--saes")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        folder = options.model or str(random_gpt2(Path(root) / "gpt2"))
        model = load_model(ModelSpec(folder), QuietJob())
        source = options.saes or str(
            write_residual_saes(
                Path(root) / "saes", d_in=model.d_model, layers=model.n_layers, width=2048
            )
        )
        saes = list(load_saes(source, model))
        bridge = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, min(400, model.vocabulary), (options.tokens,), generator=generator)
        measure(model, bridge, saes, ids, options.rounds)


@torch.no_grad()
def measure(
    model: LoadedModel, bridge: TransformerBridge, saes: list[Sae], ids: Tensor, rounds: int
) -> None:
    prompt = ids.tolist()
    run = capture(model, prompt)
    features = chosen(saes, run)
    added = []
    for sae, index in features:
        f = sae.encode(run.at(sae.site, sae.layer)[-1])[index]
        added.append((f"blocks.{sae.layer}.hook_out", -f * sae.directions([index])[0]))

    def through_lens() -> Tensor:
        rows = []
        for name, vector in added:

            def added_to(value: Tensor, *, hook: object, vector: Tensor = vector) -> Tensor:
                del hook
                value[:, -1] += vector
                return value

            rows.append(bridge.run_with_hooks(ids[None], fwd_hooks=[(name, added_to)])[0, -1])
        return torch.stack(rows)

    def at_once() -> Tensor:
        return ablations(model, run, features, position=len(prompt) - 1).logits

    seconds: dict[str, list[float]] = {"TransformerLens": [], "emotui": []}
    results: dict[str, Tensor] = {}
    for turn in range(rounds + 1):
        for name, work in (("TransformerLens", through_lens), ("emotui", at_once)):
            started = time.perf_counter()
            results[name] = work()
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    apart = float((results["emotui"] - results["TransformerLens"]).abs().max())
    moved = float((results["emotui"] - run.logits).abs().amax(dim=-1).min())
    ratio = medians["TransformerLens"] / medians["emotui"]
    print(f"{model.spec.model}: {model.n_layers} layers, {len(prompt)} tokens")
    print(
        f"{len(features)} ablations in layers {min(s.layer for s, _ in features)} to "
        f"{max(s.layer for s, _ in features)}, {torch.get_num_threads()} threads"
    )
    for name, median in medians.items():
        print(f"{name:16} {median * 1e3:9.1f} ms")
    print(f"largest difference of a logit {apart:.2g}; the least moved row moved {moved:.2g}")
    met = ratio >= BAR and apart <= TOLERANCE
    print(f"{ratio:.1f} times as fast, bar {BAR:.0f}: {'met' if met else 'missed'}")
    sys.exit(not met)


if __name__ == "__main__":
    main()
