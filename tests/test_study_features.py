"""What the study `features` counts beside its findings: what chance alone gives."""

from __future__ import annotations

import pytest
import torch

from emotui.core.studies.feature_kinds import KINDS, NULL_DRAWS, Groups, kinds_of

CLASSES, EACH = 4, 4


def _groups(count: int) -> Groups:
    units = torch.arange(count).repeat_interleave(EACH)
    return Groups(
        labels=units % CLASSES,
        classes=CLASSES,
        neutral=None,
        positive=torch.tensor([True, True, False, False]),
        negative=torch.tensor([False, False, True, True]),
        first=units < count // 2,
        units=units,
    )


def _noise(count: int, generator: torch.Generator, features: int = 60) -> torch.Tensor:
    """Return activations that tell no label: texts of one unit are alike."""
    of_unit = torch.randn(count, features, generator=generator).repeat_interleave(EACH, dim=0)
    own = 0.5 * torch.randn(count * EACH, features, generator=generator)
    return (of_unit + own).clamp(min=0)


def test_what_chance_gives_is_what_is_found_where_there_is_nothing() -> None:
    """Few units, so that chance finds valence features by the dozen; simulated null."""
    found, expected = [], []
    for seed in range(25):
        values = _noise(16, torch.Generator().manual_seed(seed))
        kinds = kinds_of(values, _groups(16), shuffles=40, seed=0)
        found.append(float((kinds.valence != 0).sum()))
        expected.append(float(kinds.shuffled[:, KINDS.index("valence")].mean()))
        assert kinds.shuffled.shape == (NULL_DRAWS, len(KINDS) + CLASSES)
        specific = kinds.shuffled[:, KINDS.index("specific")]
        assert torch.equal(specific, kinds.shuffled[:, len(KINDS) :].sum(dim=1))
    error = torch.tensor(found).std() / 5
    mean, chance = sum(found) / 25, sum(expected) / 25
    assert chance > 1 and abs(mean - chance) < 3 * float(error), (mean, chance)


def test_what_was_planted_is_far_beyond_chance() -> None:
    values, groups = _noise(64, torch.Generator().manual_seed(1)), _groups(64)
    for label in range(CLASSES):
        values[groups.labels == label, label * 5 : label * 5 + 5] += 8
    kinds = kinds_of(values, groups, shuffles=200, seed=0)
    assert torch.bincount(kinds.specific[kinds.specific >= 0]).tolist() == pytest.approx(
        [5] * CLASSES, abs=2
    )
    assert float(kinds.shuffled[:, 0].quantile(0.95)) < 5
