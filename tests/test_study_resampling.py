"""Bootstrap intervals of the studies: against a loop over rows, and against simulated truth."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score
from torch import Tensor

from emotui.core.studies.common.resampling import (
    balanced_interval,
    cohen_interval,
    fleiss_interval,
    mean_interval,
    pair_interval,
)
from emotui.core.studies.common.statistics import fleiss_kappa


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _by_rows(statistic: Callable[[np.ndarray], float], n: int) -> np.ndarray:
    draw = np.random.default_rng(1)
    found = [statistic(draw.integers(n, size=n)) for _ in range(4000)]
    return np.nanquantile(found, [0.025, 0.975])


def _mean_of(values: Tensor, rows: np.ndarray) -> float:
    return float(values[torch.from_numpy(rows)].mean())


def _near(found: tuple[Tensor, Tensor], wanted: np.ndarray) -> None:
    width = float(wanted[1] - wanted[0])
    bounds = [float(one) for one in found]
    assert bounds == pytest.approx(list(wanted), abs=0.08 * width)


def test_a_mean_is_bounded_as_by_resampling_its_rows() -> None:
    values = torch.randn(60, 2, generator=_seeded()).double()
    low, high = mean_interval(values, _seeded(), draws=4000)
    for column in range(2):
        plain = values[:, column]
        wanted = _by_rows(partial(_mean_of, plain), 60)
        _near((low[column], high[column]), wanted)


def test_kappas_are_bounded_as_by_resampling_their_texts() -> None:
    coded = torch.randint(3, (50, 4), generator=_seeded())
    coded[:30] = coded[:30, :1]
    counts = torch.nn.functional.one_hot(coded, 3).sum(dim=1)
    wanted = _by_rows(lambda rows: fleiss_kappa(counts[torch.from_numpy(rows)]), 50)
    _near(fleiss_interval(counts, _seeded(), draws=4000), wanted)
    first, second = coded[:, 0] > 0, coded[:, 1] > 0
    wanted = _by_rows(
        lambda rows: float(cohen_kappa_score(first.numpy()[rows], second.numpy()[rows])), 50
    )
    found = cohen_interval(first, second, torch.arange(50), _seeded(), classes=2, draws=4000)
    _near(found, wanted)


def test_a_constant_coding_has_no_interval() -> None:
    same = torch.ones(20, dtype=torch.long)
    found = cohen_interval(same, same, torch.arange(20), _seeded(), classes=2)
    assert all(bool(one.isnan()) for one in found)
    counts = torch.tensor([[0, 5]]).repeat(20, 1)
    assert all(bool(one.isnan()) for one in fleiss_interval(counts, _seeded()))


def test_codings_of_one_text_are_drawn_together() -> None:
    first = torch.randint(2, (40,), generator=_seeded(3)).repeat_interleave(5)
    second = torch.randint(2, (40,), generator=_seeded(4)).repeat_interleave(5)
    texts = torch.arange(40).repeat_interleave(5)
    apart = cohen_interval(first, second, torch.arange(200), _seeded(), classes=2)
    together = cohen_interval(first, second, texts, _seeded(), classes=2)
    # Five copies of each text are no more evidence than one: sqrt(5) times as wide.
    ratio = float((together[1] - together[0]) / (apart[1] - apart[0]))
    assert 1.9 < ratio < 2.6


def test_balanced_accuracy_is_bounded_around_its_value_and_every_label_is_in_every_draw() -> None:
    labels = torch.tensor([0] * 100 + [1] * 3)
    right = torch.cat([torch.ones(50), torch.zeros(50), torch.tensor([1.0, 0.0, 1.0])])
    low, high = balanced_interval(right, labels, _seeded())
    value = (0.5 + 2 / 3) / 2
    assert float(low) < value < float(high)
    assert float(high - low) > 0.3  # three texts say little, whatever the hundred say


def test_intervals_of_pairs_cover_where_texts_repeat_and_naive_ones_do_not() -> None:
    """Texts with effects of their own; 100 pairs over few texts; the truth is 0."""
    draw = np.random.default_rng(0)
    covered = naive = 0
    runs = 200
    for seed in range(runs):
        source = draw.integers(12, size=100)
        target = 12 + draw.integers(40, size=100)
        effects = draw.normal(size=52)
        values = torch.from_numpy(effects[source] + effects[target] + 0.5 * draw.normal(size=100))
        members = [(int(a), int(b)) for a, b in zip(source, target, strict=True)]
        low, high = pair_interval(values, members, _seeded(seed), draws=400)
        covered += bool(low <= 0 <= high)
        low, high = mean_interval(values, _seeded(seed), draws=400)
        naive += bool(low <= 0 <= high)
    assert naive / runs < 0.75
    assert covered / runs >= 0.9
