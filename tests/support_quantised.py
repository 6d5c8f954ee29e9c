"""Quantisation by the papers' words, and a plain model that holds quantised weights."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from support_models import plain_model, tiny_folder
from torch import Tensor, nn

from emotui.core.engine.capture import QuietJob
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.quantised import QuantisedLinear
from emotui.core.engine.sites import SITE_TABLES, Sites
from emotui.core.protocol import ModelSpec

TEXT = "My dog died last week, and the house is very quiet now."
KINDS = ("int8", "nf4")
BLOCK = 64
NF4 = torch.tensor(
    [
        *(-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0),
        *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
    ]
)
"""The 16 numbers of appendix E of the QLoRA paper (Dettmers et al. 2023), to 8 digits."""

needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (`quantised` extra)"
)


def rounded(weight: Tensor, kind: str) -> Tensor:
    """Return float32 weights, [out, in], as they are after quantisation.

    int8: 127 steps up to the largest of a row. nf4: of 64 numbers after one another (in a row,
    then in the next) each is the nearest of 16 times the largest of them.
    """
    if kind == "int8":
        step = weight.abs().amax(1, keepdim=True) / 127
        return (weight / step).round() * step
    flat = nn.functional.pad(weight.reshape(-1), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
    largest = flat.abs().amax(1, keepdim=True)
    nearest = (flat / largest)[..., None].sub(NF4).abs().argmin(-1)
    return (NF4[nearest] * largest).view(-1)[: weight.numel()].view(weight.shape)


def quantised_model(family: str, kind: str) -> LoadedModel:
    """Return a tiny checkpoint quantised while it is loaded."""
    spec = ModelSpec(str(tiny_folder(family)), dtype=kind, device="cpu")
    return load_model(spec, QuietJob())


def in_float32(model: LoadedModel) -> LoadedModel:
    """Return the model with all but its quantised weights in float32: less to blame rounding for.

    transformers refuses this for a quantised model, as it could do bitsandbytes' layers harm.
    """
    nn.Module.float(model.hf)
    return dataclasses.replace(model, dtype=torch.float32)


def layers_of(model: nn.Module) -> dict[str, QuantisedLinear]:
    """Return the quantised layers by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, QuantisedLinear)}


def plain_of(model: LoadedModel, family: str) -> LoadedModel:
    """Return the plain float32 model of transformers that has a quantised model's numbers."""
    plain: Any = plain_model(tiny_folder(family))
    for parameter in plain.parameters():
        parameter.data = parameter.data.bfloat16().float()
    made = dict(model.hf.named_buffers())
    for name, buffer in plain.named_buffers():
        buffer.copy_(made[name])  # Gemma's scale of embeddings is rounded to bfloat16
    for name, layer in layers_of(model.hf).items():
        own = plain.get_submodule(name)
        own.weight.data = turned(own, layer.weight_in(torch.float32))
    return dataclasses.replace(
        model, hf=plain, sites=Sites(plain, SITE_TABLES[family]), quantised=None
    )


def turned(layer: nn.Module, weight: Tensor) -> Tensor:
    """Return [out, in] weights as a layer holds them, or back: GPT-2's the other way round."""
    return weight if type(layer) is nn.Linear else weight.T.contiguous()
