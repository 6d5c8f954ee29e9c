"""Random TopK and JumpReLU SAEs as SAELens folders, written without SAELens."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file


def write_sae(
    folder: Path,
    *,
    d_in: int,
    width: int = 64,
    hook: str,
    seed: int = 0,
    k: int | None = 8,
    decoder: torch.Tensor | None = None,
) -> Path:
    """Write an SAE of `hook` and return its folder; TopK with `k`, JumpReLU without."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True)
    directions = torch.randn(width, d_in, generator=generator) if decoder is None else decoder
    tensors = {
        "W_enc": torch.randn(d_in, width, generator=generator) * 0.3,
        "W_dec": directions / directions.norm(dim=-1, keepdim=True),
        "b_enc": torch.randn(width, generator=generator) * 0.1,
        "b_dec": torch.randn(d_in, generator=generator) * 0.05,
    }
    if k is None:
        tensors["threshold"] = torch.rand(width, generator=generator) * 0.2
    save_file(tensors, folder / "sae_weights.safetensors")
    config = {
        "architecture": "jumprelu" if k is None else "topk",
        "d_in": d_in,
        "d_sae": width,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"hook_name": hook, "prepend_bos": True},
    }
    if k is not None:
        config |= {"k": k, "rescale_acts_by_decoder_norm": False}
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def write_residual_saes(root: Path, *, d_in: int, layers: int, width: int = 64) -> Path:
    """Write one TopK SAE of the residual stream for each layer and return their folder."""
    for layer in range(layers):
        write_sae(
            root / f"layer_{layer}",
            d_in=d_in,
            width=width,
            hook=f"blocks.{layer}.hook_resid_post",
            seed=layer,
        )
    return root
