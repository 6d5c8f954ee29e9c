"""Train one TopK SAE per layer on the demo model's own residuals, with SAELens.

    python scripts/demo/train_saes.py --data ../shared/data --model build/demo/model/best \
        --out build/demo/saes

Trained on text and question tokens without BOS, written in bf16 as SAELens folders
(`resid.L/cfg.json`, `sae_weights.safetensors`) with the site's mean in `statistics.safetensors`.
A layer whose folder is complete is skipped, so a broken run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from demo_data import goemotions, situations, xed
from demo_model import WIDTH, encode
from demo_residuals import residuals
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, Gemma2ForCausalLM

FEATURES = 1024
_BATCH = 1024


def shuffled(tokens: Tensor, *, seed: int) -> Iterator[Tensor]:
    """Yield batches of rows for ever, in a new order each time through."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(tokens), generator=generator)
        for start in range(0, len(tokens) - _BATCH + 1, _BATCH):
            yield tokens[order[start : start + _BATCH]]


def train(tokens: Tensor, layer: int, *, samples: int, active: int) -> TopKTrainingSAE:
    """Return the SAE of one layer, trained on `tokens` [token, width]."""
    torch.manual_seed(layer)
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=WIDTH,
            d_sae=FEATURES,
            k=active,
            normalize_activations="expected_average_only_in",
            decoder_init_norm=0.1,
        )
    )
    metadata = sae.cfg.metadata
    metadata.hook_name = f"blocks.{layer}.hook_resid_post"
    metadata.model_name = "emotui-demo"
    metadata.prepend_bos = True
    config = SAETrainerConfig(
        total_training_samples=samples,
        train_batch_size_samples=_BATCH,
        lr=1e-3,
        lr_end=1e-5,
        lr_warm_up_steps=100,
        lr_decay_steps=samples // _BATCH // 2,
        dead_feature_window=200,
        feature_sampling_window=500,
        n_batches_for_norm_estimate=50,
        device="cpu",
        logger=LoggingConfig(log_to_wandb=False),
    )
    SAETrainer(
        cfg=config, sae=sae, data_provider=shuffled(tokens, seed=layer), evaluator=None
    ).fit()
    return sae


def write(sae: TopKTrainingSAE, mean: Tensor, folder: Path) -> None:
    """Write the SAE in bf16; decoder rows have norm 1 but for that rounding."""
    sae.save_inference_model(str(folder))
    for name in folder.iterdir():
        if name.name not in {"cfg.json", "sae_weights.safetensors"}:
            name.unlink()
    weights = load_file(folder / "sae_weights.safetensors")
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    save_file(weights, folder / "sae_weights.safetensors")
    config = json.loads((folder / "cfg.json").read_text())
    # Saving folded the norms into the encoder; ranking by the rounded ones would add noise.
    config |= {"dtype": "bfloat16", "device": "cpu", "rescale_acts_by_decoder_norm": False}
    (folder / "cfg.json").write_text(json.dumps(config, indent=1, sort_keys=True))
    save_file({"mean": mean.float().contiguous()}, folder / "statistics.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=22_000)
    parser.add_argument("--samples", type=int, default=2_000_000, help="tokens seen, per layer")
    parser.add_argument("--active", type=int, default=32, help="features per token (k)")
    parser.add_argument("--layers", type=int, nargs="*", help="only these")
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = Gemma2ForCausalLM.from_pretrained(
        options.model, dtype=torch.float32, attn_implementation="eager"
    )
    examples = [*goemotions(options.data, "train"), *xed(options.data)]
    random.Random(0).shuffle(examples)
    examples = [*examples[: options.texts], *situations("train")]
    found = residuals(model, tokenizer, encode(examples, tokenizer), question=True)
    print(f"{len(examples)} texts, {found.layers.shape[1]} tokens", flush=True)
    for layer in options.layers or range(len(found.layers)):
        folder = options.out / f"resid.{layer}"
        if (folder / "statistics.safetensors").exists():
            continue
        tokens = found.layers[layer]
        write(
            train(tokens.clone(), layer, samples=options.samples, active=options.active),
            tokens[found.in_text].mean(dim=0),
            folder,
        )
        print(f"layer {layer} -> {folder}", flush=True)


if __name__ == "__main__":
    main()
