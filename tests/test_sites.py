"""Hooks: they see what TransformerLens sees, add up to the residual, and always come off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support_models import LAYERS, plain_model, tiny_folder, tiny_model
from torch import Tensor, nn

from emotui.core.engine.capture import Activations, Hook, QuietJob, capture, hooked
from emotui.core.engine.model import LoadedModel
from emotui.core.engine.sites import SITE_TABLES
from emotui.core.errors import Cancelled

TEXT = "My dog died last week, and the house is very quiet now. It was because I was sad."
FAMILIES = tuple(SITE_TABLES)


def _ids(model: LoadedModel) -> list[int]:
    return model.reader.prompt_ids(TEXT)


def _hook_count(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


@pytest.fixture(scope="module")
def bridge_class() -> Any:
    return pytest.importorskip("transformer_lens.model_bridge").TransformerBridge


@pytest.mark.parametrize("family", FAMILIES)
def test_hooked_logits_equal_plain_logits(family: str) -> None:
    model = tiny_model(family)
    ids = _ids(model)
    assert len(ids) > 20, "longer than the sliding window"
    kept: list[Tensor] = []
    hooks = [
        Hook(site, layer, kept.append)
        for site in ("resid", "attn", "mlp", "z")
        for layer in range(LAYERS)
    ]
    with torch.no_grad():
        plain = plain_model(tiny_folder(family))(torch.tensor([ids])).logits
    with hooked(model, hooks, job=QuietJob()):
        ours = model.forward([ids], keep=0)
    assert len(kept) == len(hooks)
    assert plain.std() > 0.3, "the comparison must have something to compare"
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_add_up_to_the_residual(family: str) -> None:
    model = tiny_model(family)
    kept = capture(model, _ids(model), all_sites=True)
    assert kept.resid.shape == (LAYERS + 1, len(_ids(model)), model.d_model)
    torch.testing.assert_close(
        kept.resid[:-1] + kept.attn + kept.mlp, kept.resid[1:], rtol=0, atol=1e-5
    )
    # Neither part is idle, or the sum would prove nothing about it.
    assert kept.attn.abs().mean() > 0.01
    assert kept.mlp.abs().mean() > 0.01


# Not gemma3: for a model with eyes TransformerLens 3.9 runs `pip install torchvision`.
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"gemma3"}))
def test_sites_equal_those_of_transformer_lens(family: str, bridge_class: Any) -> None:
    model = tiny_model(family)
    ids = _ids(model)
    folder = str(tiny_folder(family))
    bridge = bridge_class.boot_transformers(folder, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(torch.tensor([ids]))
    kept = capture(model, ids, all_sites=True, z=True)
    assert kept.z is not None

    def compare(name: str, ours: Tensor, theirs: Tensor) -> None:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5, msg=lambda m: f"{name}: {m}")

    compare("resid.-1", kept.at("resid", -1), cache["blocks.0.hook_in"][0])
    for layer in range(LAYERS):
        block = f"blocks.{layer}"
        pairs = {
            "resid": (kept.at("resid", layer), cache[f"{block}.hook_out"]),
            "attn": (kept.at("attn", layer), cache[f"{block}.hook_attn_out"]),
            "mlp": (kept.at("mlp", layer), cache[f"{block}.hook_mlp_out"]),
            "z": (kept.z[layer], cache[f"{block}.attn.hook_z"].flatten(2)),
        }
        for site, (ours, theirs) in pairs.items():
            compare(f"{site}.{layer}", ours, theirs[0])
    compare("logits", kept.logits, logits[0, -1])


def test_readout_capture_is_the_last_row_of_the_full_one() -> None:
    model = tiny_model("gemma2")
    full, narrow = capture(model, _ids(model), all_sites=True), capture(model, _ids(model))
    assert narrow.site_positions == (narrow.readout,)
    narrowed = full.narrowed(all_sites=False)
    for one, other in ((narrow.attn, narrowed.attn), (narrow.mlp, narrowed.mlp)):
        assert torch.equal(one, other)
    assert torch.equal(narrow.resid, narrowed.resid)
    assert narrow.positions("attn") == narrowed.positions("attn") == (len(_ids(model)) - 1,)


def test_activations_survive_their_bytes() -> None:
    model = tiny_model("llama")
    kept = capture(model, _ids(model), all_sites=True, z=True)
    back = Activations.from_bytes(kept.to_bytes(), key="0" * 64, devices=model.devices)
    assert back.token_ids == kept.token_ids
    assert back.site_positions == kept.site_positions
    for name in ("resid", "attn", "mlp", "logits", "z"):
        assert torch.equal(getattr(back, name), getattr(kept, name)), name


@pytest.mark.parametrize("site", ["resid", "attn", "mlp", "z"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_hook_that_returns_a_tensor_replaces_it(family: str, site: Any) -> None:
    """Zeroing attn or mlp at the hook equals leaving that term out of the sum."""
    model = tiny_model(family)
    before = capture(model, _ids(model), all_sites=True, z=True)
    zero = Hook(site, 2, torch.zeros_like)
    after = capture(model, _ids(model), all_sites=True, z=True, hooks=[zero])
    # Layer 2 is row 3 of the residuals; below it nothing may move.
    assert torch.equal(after.resid[:3], before.resid[:3])
    expected = {
        "resid": torch.zeros_like(before.resid[3]),
        "attn": after.resid[2] + after.mlp[2],
        "mlp": after.resid[2] + after.attn[2],
        "z": after.resid[2] + after.attn[2] + after.mlp[2],
    }[site]
    torch.testing.assert_close(after.resid[3], expected, rtol=0, atol=1e-5)
    assert not torch.allclose(after.resid[3], before.resid[3], atol=1e-2)
    assert not torch.allclose(after.logits, before.logits, atol=1e-3)


def test_embedding_hook_replaces_the_input_of_block_0() -> None:
    model = tiny_model("gemma2")
    before = capture(model, _ids(model))
    after = capture(model, _ids(model), hooks=[Hook("resid", -1, lambda h: h + 1.0)])
    torch.testing.assert_close(after.resid[0], before.resid[0] + 1.0)
    with pytest.raises(ValueError, match="below layer 0"):
        model.sites.point("attn", -1)


class _CancelsAt(QuietJob):
    def __init__(self, checks: int) -> None:
        self.left = checks

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Cancelled("The work was cancelled.")


@pytest.mark.parametrize("checks", range(LAYERS))
def test_cancel_inside_the_forward_removes_all_hooks(checks: int) -> None:
    model = tiny_model("gpt2")
    before = _hook_count(model.hf)
    with pytest.raises(Cancelled):
        capture(model, _ids(model), all_sites=True, z=True, job=_CancelsAt(checks))
    assert _hook_count(model.hf) == before


def test_failing_hook_removes_all_hooks_and_the_model_still_runs() -> None:
    model = tiny_model("llama")
    before = _hook_count(model.hf)
    expected = capture(model, _ids(model)).logits

    def fail(_tensor: Tensor) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        capture(model, _ids(model), hooks=[Hook("mlp", 1, fail)])
    assert _hook_count(model.hf) == before
    assert torch.equal(capture(model, _ids(model)).logits, expected)


def test_hook_on_a_missing_layer_leaves_none_behind() -> None:
    model = tiny_model("llama")
    before = _hook_count(model.hf)
    with (
        pytest.raises(IndexError),
        hooked(model, [Hook("resid", 0, torch.clone), Hook("resid", 99, torch.clone)]),
    ):
        pass
    assert _hook_count(model.hf) == before
