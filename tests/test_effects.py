"""What an effect is measured by: divergence, and the floor that rounding sets."""

from __future__ import annotations

import pytest
import torch

from emotui.core.engine.effects import NOISE_FACTOR, divergence, rounding_of


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rounding_is_told_from_an_effect_in_every_metric(dtype: torch.dtype) -> None:
    """Rounding logits to the dtype stays under three times the floor; a real change does not."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(200, 64, generator=generator, dtype=torch.float64)
    p, q = (some.softmax(dim=-1) for some in (logits, logits.to(dtype).double()))
    for before, after in zip(p.flatten().tolist(), q.flatten().tolist(), strict=True):
        assert abs(after - before) < NOISE_FACTOR * rounding_of("answer.joy", before, dtype)
    for row in range(200):
        kl = float(divergence(logits[row], logits[row].to(dtype)))
        assert kl < NOISE_FACTOR * rounding_of("kl", 0.0, dtype)
    assert NOISE_FACTOR * rounding_of("answer.joy", 0.1, dtype) < 0.03
    assert NOISE_FACTOR * rounding_of("kl", 0.0, dtype) < 0.02


def test_divergence_equals_scipy() -> None:
    special = pytest.importorskip("scipy.special")
    before, after = torch.randn(40) * 3, torch.randn(3, 40) * 3
    p = special.softmax(before.double().numpy())
    for row in range(3):
        q = special.softmax(after[row].double().numpy())
        expected = special.rel_entr(p, q).sum()
        assert float(divergence(before, after)[row]) == pytest.approx(expected, rel=1e-5)
