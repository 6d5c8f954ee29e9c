"""The arithmetic of the study `trace`: what is matched, and at which rate it errs."""

from __future__ import annotations

import itertools
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from scipy.stats import binomtest, permutation_test

from emotui.core.studies.trace_measures import (
    CALIPER,
    SHORTLIST,
    Balance,
    Effects,
    beyond_controls,
    judged,
    listed,
    phase_of,
    sign_flip_p,
    too_few,
)
from emotui.core.studies.trace_report import report
from emotui.core.studies.trace_results import CellRuns, TraceResult, TraceRuns, measure


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _confounded(
    count: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return attribution, rate and size: what fires often and strongly has much of it."""
    rate = torch.rand(count, generator=generator)
    size = (rate * 2 + torch.randn(count, generator=generator)).exp()
    slope = torch.randn(count, generator=generator) * 0.7
    return size * rate * slope, rate, size


@pytest.mark.parametrize("controls", [1, 3])
def test_controls_are_alike_in_rate_and_size(controls: int) -> None:
    """Balance by numpy; without matching the listed ones are far larger and fire more."""
    attribution, rate, size = _confounded(3000, _generator())
    found = listed(attribution, rate, size, controls=controls)
    order = attribution.abs().argsort(descending=True)[:SHORTLIST].tolist()
    assert list(found.shortlist) == order and found.paired > SHORTLIST / (2 * controls)
    used = [index for own in found.controls for index in own]
    assert len(used) == len(set(used)) == controls * found.paired
    assert not set(used) & set(found.shortlist) and not set(used) & set(found.overlooked)
    log = np.log(size.numpy())
    for values, before, after in (
        (rate.numpy(), found.balance.rate_before, found.balance.rate),
        (log, found.balance.size_before, found.balance.size),
    ):
        rest = np.delete(values, order)
        scale = np.sqrt((values[order].var(ddof=1) + rest.var(ddof=1)) / 2)
        assert before == pytest.approx((values[order].mean() - rest.mean()) / scale, rel=1e-4)
        pairs = [(i, j) for i, own in zip(order, found.controls, strict=True) for j in own]
        apart = np.array([values[i] - values[j] for i, j in pairs])
        assert after == pytest.approx(apart.mean() / scale, abs=1e-6)
        assert np.abs(apart).max() <= CALIPER * values.std(ddof=1) * (1 + 1e-6)
        assert abs(after or 0) < 0.15 < 0.7 < (before or 0)


def test_what_has_no_like_is_unmatched() -> None:
    attribution, rate, size = _confounded(800, _generator(1))
    attribution[5], rate[5], size[5] = 1e6, 1.0, 1e6
    found = listed(attribution, rate, size)
    assert found.shortlist[0] == 5 and found.controls[0] == ()
    few = listed(attribution[:20], rate[:20], size[:20])
    assert len(few.shortlist) == 4, "one in six, so that others are left"
    none = listed(attribution[:3] * 0, torch.zeros(3), torch.zeros(3))
    assert none.shortlist == () and none.balance == Balance(None, None, None, None)


@pytest.mark.parametrize("texts", [3, 4, 8, 11, 12])
def test_p_of_sign_flips_is_that_of_all_flips(texts: int) -> None:
    effects = torch.randn(texts, 6, generator=_generator()).double() + 0.4
    effects[:, 5] = 1.0
    flips = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=texts))).double()
    exact = ((flips @ effects).abs() >= effects.sum(dim=0).abs() - 1e-9).double().mean(dim=0)
    assert torch.allclose(sign_flip_p(effects), exact, atol=1e-12)
    assert float(sign_flip_p(effects)[5]) == 2.0 ** (1 - texts), "the least that n texts can give"
    assert sign_flip_p(torch.zeros(texts, 1)).tolist() == [1.0]


def test_p_of_sign_flips_is_that_of_scipy_and_keeps_its_level() -> None:
    for texts, tolerance in ((10, 1e-9), (30, 0.02)):
        effects = torch.randn(texts, 3, generator=_generator(texts)).double() + 0.3
        for column, p in zip(effects.T, sign_flip_p(effects).tolist(), strict=True):
            theirs = permutation_test(
                (column.numpy(),),
                np.mean,
                permutation_type="samples",
                n_resamples=20_000,
                rng=np.random.default_rng(0),
            )
            assert p == pytest.approx(theirs.pvalue, abs=tolerance)
    skewless = torch.randn(8, 4000, generator=_generator()).double() ** 3
    held = int((sign_flip_p(skewless) < 0.05).sum())
    assert binomtest(held, 4000, 0.05, alternative="greater").pvalue > 0.01


def _by_hand(sets: np.ndarray, level: float) -> set[int]:
    """SeqStep+ as it is written: the longest prefix that holds."""
    m = sets.shape[1] - 1
    order = sorted(range(len(sets)), key=lambda n: -sets[n].max())
    won = [sets[n, 0] > sets[n, 1:].max() for n in order]
    best = 0
    for k in range(1, len(order) + 1):
        right = sum(won[:k])
        if right and (1 + k - right) / right <= m * level:
            best = k
    return {n for n, won_it in zip(order[:best], won, strict=False) if won_it}


@pytest.mark.parametrize("controls", [1, 4])
def test_features_beyond_their_controls_are_those_of_the_step_up(controls: int) -> None:
    for seed in range(20):
        sets = torch.rand(80, 1 + controls, generator=_generator(seed)).double()
        sets[:50, 0] += torch.rand(50, generator=_generator(seed + 100)).double()
        q = beyond_controls(sets)
        for level in (0.05, 0.2):
            assert set((q <= level).nonzero().flatten().tolist()) == _by_hand(sets.numpy(), level)
    assert beyond_controls(torch.zeros(30, 2)).tolist() == [1.0] * 30
    assert beyond_controls(torch.ones(30, 2)).tolist() == [1.0] * 30, "no larger is not beyond"


def _features(
    n: int, count: int, generator: torch.Generator, *, extra: torch.Tensor | None = None
) -> torch.Tensor:
    """Return effects [n, count] of features that all have some, of both signs, heavy-tailed."""
    mean = torch.randn(count, generator=generator) ** 3 * 0.05
    if extra is not None:
        mean = mean + extra
    together = torch.randn(n, 1, generator=generator) * 0.01  # texts that move all alike
    return mean + together + torch.randn(n, count, generator=generator) * 0.03


@pytest.mark.parametrize(("texts", "controls"), [(12, 1), (10, 4), (8, 2)])
def test_where_listing_means_nothing_hardly_anything_is_causal(texts: int, controls: int) -> None:
    """Every feature has an effect, listed or not: simulated null, level 5 %."""
    runs, wrong = 100, 0
    for seed in range(runs):
        generator = _generator(seed)
        cells = [
            Effects(
                _features(texts, 40, generator),
                _features(texts, 40 * controls, generator).view(texts, 40, controls),
                torch.zeros(texts, 0),
            )
            for _ in range(6)
        ]
        wrong += any(bool(one.sign.any()) for one in judged(cells, generator))
    assert binomtest(wrong, runs, 0.05, alternative="greater").pvalue > 0.01


def test_of_what_is_called_causal_few_are_false() -> None:
    shares, power = [], []
    for seed in range(40):
        generator = _generator(seed)
        cells, truth = [], []
        for _ in range(6):
            extra = torch.zeros(40)
            extra[:8] = 1.5 * torch.tensor([1, -1]).repeat(4)
            listed_ones = _features(12, 40, generator, extra=extra)
            control = _features(12, 40, generator)[:, :, None]
            cells.append(Effects(listed_ones, control, torch.zeros(12, 0)))
            truth.append(extra != 0)
        found = torch.cat([one.sign != 0 for one in judged(cells, generator)])
        false = found & ~torch.cat(truth)
        shares.append(float(false.sum()) / max(int(found.sum()), 1))
        power.append(float((found & torch.cat(truth)).sum()) / 48)
    assert sum(shares) / len(shares) <= 0.05 and sum(power) / len(power) > 0.8


def test_planted_causes_are_found_and_keep_their_sign() -> None:
    generator = _generator()
    cells, planted = [], set()
    for number in range(12):
        effects = torch.randn(20, 64, generator=generator) * 0.05
        causal = torch.randperm(60, generator=generator)[:8]
        effects[:, causal] += 0.4
        effects[:, causal[0]] -= 0.8
        effects[:, 63] += 0.4  # as large, but with nothing alike
        planted |= {(number, int(j), -1 if j == causal[0] else 1) for j in causal}
        null = torch.randn(20, 64, 1, generator=generator) * 0.05
        null[:, 63] = float("nan")
        cells.append(Effects(effects, null, torch.randn(20, 16, generator=generator) * 0.05))
    verdicts = judged(cells, generator)
    found = {
        (n, j, int(one.sign[j]))
        for n, one in enumerate(verdicts)
        for j in one.sign.nonzero().flatten().tolist()
    }
    assert 2 * len(found & planted) / (len(found) + len(planted)) >= 0.95
    first = verdicts[0]
    assert bool(first.q[63].isnan()) and int(first.sign[63]) == 0 and float(first.p[63]) < 1e-4
    inside = (first.low <= first.mean) & (first.mean <= first.high)
    assert bool(inside.all()) and float((first.high - first.low).median()) == pytest.approx(
        2 * 1.96 * 0.05 / 20**0.5, rel=0.15
    )


@pytest.mark.parametrize("texts", [1, 2, 3, 5])
def test_few_texts_prove_nothing_however_large_the_effect(texts: int) -> None:
    effects = torch.full((texts, 40), 5.0)
    (one,) = judged(
        [Effects(effects, torch.zeros(texts, 40, 1), torch.zeros(texts, 4))], _generator()
    )
    assert too_few(texts) and not bool(one.sign.any()) and one.missed == 0
    assert one.participation is None and one.top_share is None
    assert not too_few(6)


def _result(texts: dict[str, int]) -> TraceResult:
    """Return the result of effects of 3 logits of 24 features in each emotion's one phase."""
    cells = []
    for e, n in enumerate(texts.values()):
        effects = Effects(torch.full((n, 24), 3.0), torch.zeros(n, 24, 1), torch.zeros(n, 0))
        cells.append(
            CellRuns(
                emotion=e,
                phase=0,
                features=tuple((0, j) for j in range(24)),
                controls=tuple(((0, 30 + j),) for j in range(24)),
                balance=Balance(2.0, 2.0, 0.01, 0.02),
                effects=effects,
                estimates=torch.rand(n, 48, generator=_generator()),
                exact=torch.rand(n, 48, generator=_generator(1)),
                flipped=torch.zeros(24),
                random=torch.ones(1),
                size=torch.ones(1),
                written=torch.ones(24),
            )
        )
    sizes = (1, 2, 4, 8, 16, 32)
    return measure(
        TraceRuns(
            emotions=tuple(texts),
            labels=tuple(texts),
            layers=(0,),
            names=("",),
            boundaries=(),
            phases=1,
            joint=sizes,
            cells=tuple(cells),
            own=[[torch.ones(2, 6)] for _ in texts],
            cross=torch.ones(len(texts), len(texts)),
            divergence=torch.full((len(texts),), float("nan")),
            answers=torch.zeros(sum(texts.values()), dtype=torch.long),
            answered_for=torch.repeat_interleave(torch.tensor(list(texts.values()))),
        ),
        generator=_generator(),
    )


def test_no_story_is_told_of_a_few_texts() -> None:
    result = _result({"anger": 20, "disgust": 2})
    causal = {one.emotion: one.causal for one in result.cells}
    assert causal == {"anger": 24, "disgust": 0} and result.too_few == ("disgust",)
    said = report(result).sentences
    assert any("nothing is called causal for: disgust" in line for line in said)
    assert not any(line.startswith("Disgust against anger") for line in said)
    carried = next(line for line in said if "participation" in line)
    assert "anger 24.0" in carried and "disgust" not in carried
    (phase,) = [line for line in said if line.startswith("Phase 1")]
    assert "anger 24 of 24" in phase and "disgust" not in phase
    assert any("bootstrap" in line and "1,000 draws" in line for line in said)
    assert result.cells[0].joint[-1] is None, "there are no 32 with controls"
    both = report(_result({"anger": 20, "disgust": 20})).sentences
    assert any(line.startswith("Disgust against anger") for line in both)


def test_a_poor_balance_is_said() -> None:
    result = _result({"joy": 20})
    assert not any("still differ" in line for line in report(result).sentences)
    far = replace(result.cells[0].balance, size=0.4)
    cells = tuple(msgspec.structs.replace(one, balance=far) for one in result.cells)
    worse = msgspec.structs.replace(result, cells=cells)
    assert any("up to 0.40 standard" in line for line in report(worse).sentences)


def test_layers_fall_into_phases() -> None:
    assert phase_of(6, (2, 4)) == [0, 0, 1, 1, 2, 2]
