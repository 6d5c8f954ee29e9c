"""Measure the demo's SAEs, as shipped, on held-out text: GoEmotions' test rows, test topics.

    python benchmarks/demo_saes.py --data ../shared/data [--demo emotui/demo] [--json]

By layer, over the texts' own tokens (no BOS, no template): variance explained, centred on the
SAE's stored mean; features active per token; and the rise of the next-token cross-entropy on those
tokens when the residual is replaced by its reconstruction,
beside the rise when it is replaced by its mean. Dead are the features that fire nowhere, the
question's tokens included, since many serve the readout alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, Gemma2ForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts" / "demo"))

from demo_data import goemotions, situations
from demo_model import Encoded, capped, collate, encode
from demo_residuals import residuals

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("EMOTUI_DATA", ROOT.parent / "shared" / "data"))
_TOKENS_AT_ONCE = 16_384


class ShippedSae:
    """TopK in plain tensors, float32 from the shipped weights; independent of emotui's loader."""

    def __init__(self, folder: Path) -> None:
        weights = load_file(folder / "sae_weights.safetensors")
        self.weights = {name: tensor.float() for name, tensor in weights.items()}
        self.k = json.loads((folder / "cfg.json").read_text())["k"]
        self.mean = load_file(folder / "statistics.safetensors")["mean"]

    def encode(self, h: Tensor) -> Tensor:
        w = self.weights
        before = ((h - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
        values, indices = before.topk(self.k, dim=-1)
        return torch.zeros_like(before).scatter_(-1, indices, values)

    def decode(self, features: Tensor) -> Tensor:
        return features @ self.weights["W_dec"] + self.weights["b_dec"]

    def rebuilding(self, h: Tensor) -> tuple[float, float]:
        """Return the summed squared error over `h` [token, width], and features per token."""
        error, active = 0.0, 0
        for part in h.split(_TOKENS_AT_ONCE):
            features = self.encode(part)
            error += (part - self.decode(features)).square().sum().item()
            active += int((features > 0).sum())
        return error, active / len(h)

    def fires(self, h: Tensor) -> Tensor:
        """Return whether each feature is active anywhere in `h`."""
        return torch.stack([(self.encode(p) > 0).any(0) for p in h.split(_TOKENS_AT_ONCE)]).any(0)


@torch.inference_mode()
def cross_entropy(
    model: Gemma2ForCausalLM, rows: Sequence[Encoded], pad: int, layer: int | None, change: object
) -> float:
    """Return the mean cross-entropy of the texts' tokens, their residuals of `layer` changed."""
    total, count = 0.0, 0
    order = sorted(rows, key=lambda row: len(row.ids))
    for start in range(0, len(order), 64):
        batch = collate(order[start : start + 64], pad=pad)
        place = torch.arange(batch.ids.shape[1])
        text = (place > 0) & (place < batch.text_end[:, None])

        def splice(_module: object, _inputs: object, output: object, text: Tensor = text) -> object:
            h = output if isinstance(output, Tensor) else output[0]
            spliced = torch.where(text[..., None], change(h), h)
            return spliced if isinstance(output, Tensor) else (spliced, *output[1:])

        handle = None if layer is None else model.model.layers[layer].register_forward_hook(splice)
        try:
            hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
        finally:
            if handle is not None:
                handle.remove()
        logits = capped(model, hidden[:, :-1])
        wanted = text[:, 1:]
        total += functional.cross_entropy(
            logits[wanted], batch.ids[:, 1:][wanted], reduction="sum"
        ).item()
        count += int(wanted.sum())
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--demo", type=Path, default=ROOT / "emotui" / "demo")
    parser.add_argument("--model", type=Path, help="default: DEMO/emotui-demo")
    parser.add_argument("--saes", type=Path, help="default: DEMO/saes")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    path = options.model or options.demo / "emotui-demo"
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = Gemma2ForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    examples = [*goemotions(options.data, "test")[: options.texts], *situations("test")]
    rows = encode(examples, tokenizer)
    found = residuals(model, tokenizer, rows, question=True)
    few = rows[:: max(1, len(rows) // 600)]
    plain = cross_entropy(model, few, tokenizer.pad_token_id, None, None)
    report = []
    folders = (options.saes or options.demo / "saes").glob("resid.*")
    for folder in sorted(folders, key=lambda path: int(path.name.rpartition(".")[2])):
        layer = int(folder.name.rpartition(".")[2])
        sae = ShippedSae(folder)
        ever = sae.fires(found.layers[layer])
        h = found.layers[layer][found.in_text]
        error, active = sae.rebuilding(h)
        spliced = cross_entropy(
            model,
            few,
            tokenizer.pad_token_id,
            layer,
            lambda h, sae=sae: sae.decode(sae.encode(h)),
        )
        ablated = cross_entropy(
            model, few, tokenizer.pad_token_id, layer, lambda h, sae=sae: sae.mean.expand_as(h)
        )
        report.append(
            {
                "layer": layer,
                "variance_explained": round(1 - error / (h - sae.mean).square().sum().item(), 4),
                "active": round(active, 2),
                "tokens": len(h),
                "dead": round(1 - ever.float().mean().item(), 4),
                "cross_entropy": round(plain, 4),
                "rise_spliced": round(spliced - plain, 4),
                "rise_mean": round(ablated - plain, 4),
            }
        )
        if not options.json:
            print(report[-1], flush=True)
    if options.json:
        print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
