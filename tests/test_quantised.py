"""Quantised weights: that they are what the papers say, and that the model is the plain one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support_models import plain_model, tiny_folder, tiny_model
from support_quantised import (
    KINDS,
    TEXT,
    in_float32,
    layers_of,
    needs_bitsandbytes,
    plain_of,
    quantised_model,
    rounded,
    turned,
)
from torch import Tensor, nn

from emotui.core.engine.attribute import Metric, gradients
from emotui.core.engine.capture import Hook, capture
from emotui.core.engine.quantised import import_bitsandbytes, with_own_products
from emotui.core.engine.rerun import adding, rerun
from emotui.core.engine.sites import SITE_TABLES
from emotui.core.engine.speak import generate
from emotui.core.engine.weights import parameters_of

pytestmark = needs_bitsandbytes
FAMILIES = tuple(SITE_TABLES)
BRIDGED = "stablelm"


def _close(found: Tensor, expected: Tensor, kind: str) -> None:
    """Assert equality but for numbers that lie between two steps, which may go either way."""
    other = (found - expected).abs() > 1e-5 * expected.abs().max()
    assert float(other.float().mean()) < 0.01
    # No two of the 16 numbers of nf4 are further apart than that.
    step = expected.abs().amax() * (1.01 / 127 if kind == "int8" else 0.31)
    assert float((found - expected).abs().max()) <= float(step)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "gpt_neox", "gemma3"])
def test_weights_are_the_files_rounded_as_the_papers_say(family: str, kind: str) -> None:
    """Rows of 48 numbers: blocks of 64 go over their ends."""
    plain = plain_model(tiny_folder(family))
    layers = layers_of(quantised_model(family, kind).hf)
    assert len(layers) >= 16
    for name, layer in layers.items():
        own = plain.get_submodule(name)
        weight = turned(own, own.weight.detach().bfloat16().float())
        _close(layer.weight_in(torch.float32), rounded(weight, kind), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(48, 64), (10, 12), (7, 5), (1, 3), (3, 1000)])
def test_layers_of_any_shape(shape: tuple[int, int], kind: str) -> None:
    """Rows shorter and longer than a block, odd ones, and a row of zeros."""
    torch.manual_seed(sum(shape))
    plain = nn.Linear(shape[1], shape[0])
    plain.weight.data = plain.weight.data.bfloat16().float()
    if shape[0] > 1:
        plain.weight.data[-1] = 0
    inputs = torch.randn(2, 3, shape[1], requires_grad=True)
    layer = _layer(plain, kind)
    weight = layer.weight_in(torch.float32)
    assert bool(torch.isfinite(weight).all())
    _close(weight, rounded(plain.weight.detach(), kind).nan_to_num(0), kind)
    expected = inputs @ weight.T + plain.bias.detach()
    found = layer(inputs)
    torch.testing.assert_close(found, expected)
    slope = torch.randn_like(found)
    (mine,) = torch.autograd.grad(found, inputs, slope, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected, inputs, slope)
    torch.testing.assert_close(mine, theirs)


def _layer(plain: nn.Linear, kind: str) -> Any:
    """Return a float32 layer quantised by bitsandbytes, with emotui's product."""
    bnb = import_bitsandbytes()
    made = (
        bnb.nn.Linear8bitLt(plain.in_features, plain.out_features, has_fp16_weights=False)
        if kind == "int8"
        else bnb.nn.Linear4bit(
            plain.in_features, plain.out_features, quant_type="nf4", compress_statistics=False
        )
    )
    made.load_state_dict(plain.state_dict())
    model = nn.Sequential(made).to("cpu")
    with_own_products(model)
    return model[0]


def _eighth(logits: Tensor, _resid: object) -> Tensor:
    return logits[7]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_quantised_model_is_the_plain_one_with_those_weights(family: str, kind: str) -> None:
    """Residuals, what attention and MLP add, heads, logits, and the gradient of a logit."""
    model = in_float32(quantised_model(family, kind))
    plain = plain_of(model, family)
    ids = model.reader.prompt_ids(TEXT)
    mine, theirs = (capture(one, ids, all_sites=True, z=True) for one in (model, plain))
    for name in ("resid", "attn", "mlp", "z", "logits"):
        torch.testing.assert_close(
            getattr(mine, name), getattr(theirs, name), rtol=1e-4, atol=1e-4, msg=name
        )
    metric = Metric("test", "test", _eighth)
    torch.testing.assert_close(
        gradients(model, ids, metric).resid,
        gradients(plain, ids, metric).resid,
        rtol=1e-3,
        atol=1e-4,
    )
    whole = capture(tiny_model(family), ids)
    apart = float((mine.resid - whole.resid).norm() / whole.resid.norm())
    assert 1e-4 < apart < (0.1 if kind == "int8" else 0.6), "quantisation changes something"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", [*FAMILIES, BRIDGED])
def test_hooked_is_plain_and_a_token_knows_no_later_one(family: str, kind: str) -> None:
    model = quantised_model(family, kind)
    assert (model.dtype, model.dtype_name) == (torch.bfloat16, kind)
    ids = model.reader.prompt_ids(TEXT)
    hooked = capture(model, ids, all_sites=True)
    assert hooked.resid.dtype == torch.bfloat16
    torch.testing.assert_close(hooked.logits, model.forward([ids])[0, -1], rtol=0, atol=0)
    short = capture(model, ids[:-4], all_sites=True)
    torch.testing.assert_close(
        hooked.resid[:, : len(ids) - 4].float(), short.resid.float(), rtol=0.02, atol=0.05
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["gemma2", "gpt2", "olmo2", BRIDGED])
def test_a_resumed_run_and_a_batch_give_what_a_full_run_gives(family: str, kind: str) -> None:
    model = in_float32(quantised_model(family, kind))
    ids = model.reader.prompt_ids(TEXT)
    clean = capture(model, ids)
    generator = torch.Generator().manual_seed(1)
    # A thousand times in one row: what shares a batch with it must not notice.
    deltas = torch.randn(3, len(ids), model.d_model, generator=generator)
    deltas[1] *= 1000
    rows = rerun(model, clean.at("resid", 1), start=2, n_rows=3, hooks=adding(deltas, "resid", 2))
    for row, delta in enumerate(deltas):
        full = capture(model, ids, hooks=[_adding(delta)])
        torch.testing.assert_close(rows.logits[row], full.logits, rtol=1e-3, atol=1e-3)


def _adding(delta: Tensor) -> Hook:
    return Hook("resid", 2, lambda h: h + delta)


@pytest.mark.parametrize("kind", KINDS)
def test_writing_takes_the_likeliest_token_of_a_full_run(kind: str) -> None:
    model = in_float32(quantised_model("llama", kind))
    ids = list(model.reader.prompt_ids(TEXT))
    for token in generate(model, ids, new_tokens=6):
        assert token == int(model.forward([ids])[0, -1].argmax())
        ids.append(token)


@pytest.mark.parametrize("kind", KINDS)
def test_one_large_number_changes_no_other_row(kind: str) -> None:
    """LLM.int8 spares the column of a large number, for all rows: none of it here."""
    torch.manual_seed(0)
    layer = _layer(nn.Linear(128, 32), kind)
    inputs = torch.randn(4, 128)
    alone = layer(inputs)
    inputs[2, 5] = 3e5  # beyond float16
    together = layer(inputs)
    assert bool(torch.isfinite(together).all())
    torch.testing.assert_close(together[[0, 1, 3]], alone[[0, 1, 3]], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_no_weights_are_kept_for_a_gradient(kind: str) -> None:
    layer = _layer(nn.Linear(256, 512), kind)
    kept: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        kept.append(tensor.nbytes)
        return tensor

    inputs = torch.randn(2, 256, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        layer(inputs).square().sum()
    assert sum(kept) <= 4 * 2 * 512 * 4


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_and_bytes_are_counted(kind: str) -> None:
    whole, model = tiny_model("llama"), quantised_model("llama", kind)
    assert parameters_of(model.hf) == parameters_of(whole.hf)
    numbers = sum(one.in_features * one.out_features for one in layers_of(model.hf).values())
    scales = sum(one.scales.nbytes for one in layers_of(model.hf).values())
    rest = (parameters_of(whole.hf) - numbers) * 2
    packed = numbers if kind == "int8" else numbers // 2
    buffers = sum(buffer.nbytes for name, buffer in whole.hf.named_buffers())
    assert model.memory_bytes == pytest.approx(packed + scales + rest + buffers, rel=0.01)
