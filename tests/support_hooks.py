"""Ordinary PyTorch hooks on the modules of each family, found by hand: what edits are held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from emotui.core.engine.model import LoadedModel

Change = Callable[[Tensor], Tensor]
"""Gets [1, tokens, width] of a site and returns what stands there instead."""


def plain_module(model: LoadedModel, site: str, layer: int) -> torch.nn.Module:
    """Return the module whose output is the site; for `z` the one whose input it is."""
    module = _module_at(model, model.hf, site, layer)
    assert isinstance(module, torch.nn.Module)
    return module


def _module_at(model: LoadedModel, hf: Any, site: str, layer: int) -> Any:
    if model.architecture == "gpt2":
        block = hf.transformer.h[layer]
        names = {"resid": block, "mlp": block.mlp, "attn": block.attn, "z": block.attn.c_proj}
        return names[site]
    block = hf.model.layers[layer]
    if site == "z":
        return block.self_attn.o_proj
    if model.architecture == "gemma2":
        return {
            "resid": block,
            "mlp": block.post_feedforward_layernorm,
            "attn": block.post_attention_layernorm,
        }[site]
    return {"resid": block, "mlp": block.mlp, "attn": block.self_attn}[site]


def changed_run(
    model: LoadedModel, ids: Sequence[int], changes: Mapping[tuple[str, int], Change]
) -> Tensor:
    """Run transformers with one ordinary hook at each site and return the last logits."""
    with ExitStack() as stack:
        for (site, layer), change in changes.items():
            module = plain_module(model, site, layer)
            if site == "z":
                handle = module.register_forward_pre_hook(_on_input(change))
            else:
                handle = module.register_forward_hook(_on_output(change))
            stack.callback(handle.remove)
        with torch.no_grad():
            logits: Tensor = model.hf(torch.tensor([list(ids)]), use_cache=False).logits[0, -1]
            return logits


def adding(vector: Tensor) -> Change:
    """Return the change that adds `vector` at the last token."""

    def change(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        changed[0, -1] += vector
        return changed

    return change


def putting(vector: Tensor) -> Change:
    """Return the change that puts `vector` at the last token."""

    def change(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        changed[0, -1] = vector
        return changed

    return change


def plain_run(model: LoadedModel, ids: list[int], site: str, layer: int, added: Tensor) -> Tensor:
    """Run transformers with one ordinary hook that adds a given tensor, and return the logits."""
    return changed_run(model, ids, {(site, layer): lambda tensor: tensor + added})


def arriving(model: LoadedModel, ids: Sequence[int], site: str, layer: int) -> Tensor:
    """Return the tensor at a site, [tokens, width], by an ordinary hook."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor[0].clone())
        return tensor

    changed_run(model, ids, {(site, layer): keep})
    return kept[0]


def _on_output(change: Change) -> Callable[[object, object, object], object]:
    def hook(_module: object, _inputs: object, output: object) -> object:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        assert isinstance(output, Tensor)
        return change(output)

    return hook


def _on_input(change: Change) -> Callable[[object, Any], object]:
    def hook(_module: object, inputs: Any) -> object:
        return (change(inputs[0]), *inputs[1:])

    return hook
