"""The arithmetic of the study `phases`: steps against bends, and what is there without signal."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.interpolate import make_lsq_spline
from scipy.stats import binomtest, ttest_1samp
from sklearn.linear_model import Ridge

from emotui.core.studies.phase_curves import (
    FOLDS,
    fold_of,
    onset,
    ranked,
    read_correctly,
    shuffled_within,
)
from emotui.core.studies.phase_report import report
from emotui.core.studies.phase_results import Measured, PhasesResult, measure, times_drawn
from emotui.core.studies.phase_segments import SMOOTH, segmentations, segmented


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _noisy(curves: torch.Tensor, sd: float, draws: int) -> torch.Tensor:
    noise = torch.randn(draws, *curves.shape, generator=_generator(), dtype=torch.float64)
    return curves + sd * noise


def _stepped(layers: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return three curves that step at a third and at two thirds, and two that do at a third."""
    one, two = layers // 3, 2 * layers // 3
    x = torch.arange(layers)
    parts = torch.stack([x < one, (x >= one) & (x < two), x >= two], dim=1).double()
    return parts, torch.stack([x < one, x >= one], dim=1).double()


def _smooth(layers: int) -> dict[str, torch.Tensor]:
    """Return curves without any step, one set a name."""
    x = torch.linspace(0, 1, layers, dtype=torch.float64)
    u = (2 * x - 1) ** 2
    found = {
        "ramp": [x],
        "ramps": [x, 1 - x, x**2],
        **{f"exponential {rate}": [1 - torch.exp(-rate * x)] for rate in (2, 4, 6)},
        **{f"sigmoid {slope}": [torch.sigmoid(slope * (x - 0.5))] for slope in (6, 8, 10)},
        "U": [u],
        "U and ramp": [u, x],
        "bump": [torch.sin(math.pi * x)],
        "one after the other": [
            torch.sigmoid(-8 * (x - 0.35)),
            torch.exp(-(((x - 0.5) / 0.2) ** 2) / 2),
            torch.sigmoid(8 * (x - 0.65)),
        ],
        "exponentials": [torch.exp(-4 * x), 1 - torch.exp(-3 * x)],
        "powers": [x**3, x**0.5],
    }
    return {name: torch.stack(curves, dim=1) for name, curves in found.items()}


@pytest.mark.parametrize("layers", [8, 16, 26, 42])
@pytest.mark.parametrize("sd", [0.0, 0.03, 0.08, 0.15])
def test_what_only_bends_has_no_phases(layers: int, sd: float) -> None:
    draws = 1 if not sd else 60
    for name, curves in _smooth(layers).items():
        found = segmentations(_noisy(curves, sd, draws))
        wrong = int((found.phases > 1).sum())
        assert binomtest(wrong, draws, 0.03, alternative="greater").pvalue > 0.005, name
    bent = segmentations(_smooth(layers)["U and ramp"][None])
    assert bool(bent.bent) and float(bent.smooth) < float(bent.stepped)


@pytest.mark.parametrize("layers", [16, 26, 42])
def test_steps_are_told_from_ramps(layers: int) -> None:
    one, two = layers // 3, 2 * layers // 3
    x = torch.arange(layers, dtype=torch.float64)
    step, halves = _stepped(layers)
    ramp = torch.stack([x / layers, 1 - x / layers, (x / layers) ** 2], dim=1)
    for seed in range(20):
        noise = torch.randn(layers, 3, generator=_generator(seed)).double() * 0.08
        three, gradual = segmented(step + noise), segmented(ramp + noise)
        pair = segmented(halves + noise[:, :2])
        assert (three.phases, pair.phases, gradual.phases) == (3, 2, 1)
        assert all(abs(a - b) <= 1 for a, b in zip(three.boundaries, (one, two), strict=True))
        assert abs(pair.boundaries[0] - one) <= 1 and gradual.boundaries == ()
    assert segmented(torch.ones(layers, 2)).phases == 1


@pytest.mark.parametrize(("layers", "least"), [(8, 0.6), (12, 0.9), (16, 0.97), (42, 0.99)])
def test_steps_are_found_at_every_noise(layers: int, least: float) -> None:
    step, halves = _stepped(layers)
    for sd in (0.0, 0.03, 0.08, 0.15):
        three, two = segmentations(_noisy(step, sd, 60)), segmentations(_noisy(halves, sd, 60))
        assert float((three.phases == 3).double().mean()) >= least
        assert float((two.phases == 2).double().mean()) >= least


def test_segmentation_is_the_best_there_is() -> None:
    """Against all ways to cut, by hand."""
    curves = torch.rand(5, 9, 2, generator=_generator()).double()
    found = segmentations(curves)
    for n, one in enumerate(curves):
        y = (one - one.amin(0)) / (one.amax(0) - one.amin(0))
        for phases in (2, 3):
            best = min(
                (
                    sum(
                        float((p - p.mean(0)).square().sum())
                        for p in (y[a:b] for a, b in itertools.pairwise((0, *cuts, 9)))
                    ),
                    cuts,
                )
                for cuts in itertools.combinations(range(2, 8), phases - 1)
                if all(b - a >= 2 for a, b in itertools.pairwise(cuts))
            )
            assert tuple(found.boundaries(phases)[n].tolist()) == best[1]
    alone = [segmented(one) for one in curves]
    assert [one.phases for one in alone] == found.phases.tolist()


def test_smooth_curves_are_the_splines_of_scipy() -> None:
    """What they leave, and the criterion, from scipy's least squares and the formula."""
    layers = 20
    x = np.linspace(-1, 1, layers)
    y = np.random.default_rng(0).random((layers, 2)).cumsum(axis=0)
    y = (y - y.min(axis=0)) / (y.max(axis=0) - y.min(axis=0))
    errors = {}
    for count in SMOOTH:
        degree = min(count - 1, 3)
        inside = np.linspace(-1, 1, count - degree + 1)[1:-1]
        knots = np.r_[[-1] * (degree + 1), inside, [1] * (degree + 1)]
        errors[count] = float(((y - make_lsq_spline(x, y, knots, k=degree)(x)) ** 2).sum())
    n = 2 * layers
    criteria = {
        count: n * math.log(error / n + 1e-4) + 2 * count * math.log(n)
        for count, error in errors.items()
    }
    best = min(criteria, key=lambda count: criteria[count])
    total = float(((y - y.mean(axis=0)) ** 2).sum())
    found = segmented(torch.from_numpy(y))
    assert found.smooth == pytest.approx(errors[best] / total, rel=1e-6)


def test_onset_is_the_first_of_two_layers_running() -> None:
    curve = torch.tensor([0.0, 0.9, 0.0, 0.4, 0.6, 0.7])
    assert onset(curve, 0.5) == 4 and onset(curve, 0.8) is None


def test_what_is_read_is_what_scikit_learn_reads() -> None:
    generator = _generator()
    h = torch.randn(90, 12, generator=generator)
    targets = torch.randint(3, (4, 90), generator=generator)
    h[torch.arange(90), targets[0]] += 2
    folds = fold_of(torch.arange(90) // 2, generator)
    found = read_correctly(h, targets, folds, classes=3)
    for target, right in zip(targets, found, strict=True):
        for fold in range(FOLDS):
            test = folds == fold
            train = h[~test].double()
            centre, spread = train.mean(0), train.std(0)
            model = Ridge(alpha=10.0).fit(
                ((train - centre) / spread).numpy(), np.eye(3)[target[~test].numpy()]
            )
            read = model.predict(((h[test].double() - centre) / spread).numpy()).argmax(axis=1)
            assert (read == target[test].numpy()).tolist() == right[test].tolist()
    assert float(found[0].double().mean()) > 0.6 > float(found[1].double().mean()) + 0.05


def test_values_are_dealt_among_units_of_a_stratum() -> None:
    units = torch.arange(12).repeat_interleave(3)
    strata, values = (units % 3), (units // 3)
    dealt = shuffled_within(values, units, strata, _generator())
    assert not torch.equal(dealt, values)
    for unit in range(12):
        assert len(set(dealt[units == unit].tolist())) == 1
    for stratum in range(3):
        mine = strata == stratum
        assert sorted(dealt[mine].tolist()) == sorted(values[mine].tolist())


def _measured(
    right: torch.Tensor, null: torch.Tensor, units: torch.Tensor, columns: torch.Tensor
) -> Measured:
    """Return what the study measures, of one semantic curve and curves of nothing."""
    n, layers = right.shape
    first = torch.arange(n) % 2 == 0
    names = ("hits", "base", "events", "mass", "valence_mass")
    return Measured(
        layers=tuple(range(layers)),
        semantic="subject",
        first=first,
        columns={
            **dict.fromkeys(names, columns),
            "whole": columns + 1,
            "null": torch.rand(20, layers, generator=_generator()).double(),
            "valence_null": torch.rand(20, layers, generator=_generator()).double(),
            "right": right,
            "semantic_null": null,
        },
        units=units,
        read_units=units,
        pairs=torch.zeros(0, 2, dtype=torch.long),
        source=torch.zeros(0, 2, dtype=torch.long),
        patched=torch.zeros(0, layers, dtype=torch.long),
        valence=torch.tensor([1, -1]),
    )


def _result(measured: Measured) -> PhasesResult:
    return measure(
        measured, generator=_generator(), texts=10, unreadable=0, labels={"joy": 10}, fits=()
    )


@pytest.mark.parametrize("crossed", [True, False])
def test_where_there_is_no_signal_the_interval_covers_zero(crossed: bool) -> None:
    """Texts of one unit are alike and every topic stands with every label: simulated, 95 %."""
    topics, labels, each, runs = 6, 5, 3, 60
    missed, values = 0, []
    for seed in range(runs):
        generator = _generator(seed)
        topic = torch.arange(topics).repeat_interleave(labels)
        if not crossed:
            topic = torch.randint(topics, (topics * labels,), generator=generator)
        unit = torch.arange(topics * labels).repeat_interleave(each)
        label = unit % labels
        of_label = 2 * torch.randn(labels, 8, generator=generator)
        of_unit = 0.7 * torch.randn(topics * labels, 8, generator=generator)
        h = of_label[label] + of_unit[unit] + torch.randn(len(unit), 8, generator=generator)
        value = topic[unit]
        dealt = [shuffled_within(value, unit, label, generator) for _ in range(199)]
        folds = fold_of(unit, generator)
        right = read_correctly(h, torch.stack([value, *dealt]), folds, classes=topics).double()
        null = right[1:].mean(dim=1)[:, None]
        nothing = torch.zeros(len(unit), 1).double()
        result = _result(_measured(right[0][:, None], null, unit, nothing))
        curve = next(one for one in result.curves if one.name == "semantic")
        missed += not curve.low[0] <= 0 <= curve.high[0]
        values.append(curve.net[0])
        assert curve.net[0] == pytest.approx(curve.observed[0] - curve.null[0])
    assert binomtest(missed, runs, 0.05, alternative="greater").pvalue > 0.01
    assert ttest_1samp(values, 0).pvalue > 0.01, "without bias"


def test_texts_of_a_unit_are_drawn_together() -> None:
    units = torch.tensor([4, 4, 7, 7, 7, 9])
    times = times_drawn(units, _generator(), draws=500)
    assert torch.equal(times[:, 0], times[:, 1]) and torch.equal(times[:, 2], times[:, 4])
    assert float(times.mean()) == pytest.approx(1, abs=0.05)
    assert set(times[:, [0, 2, 5]].sum(dim=1).tolist()) == {3.0}


def test_a_bend_is_reported_as_one_and_columns_say_what_they_hold() -> None:
    layers, n = 20, 400
    x = torch.linspace(0, 1, layers, dtype=torch.float64)
    chance = 0.2 + 0.6 * (1 - torch.exp(-5 * x))
    right = (torch.rand(n, layers, generator=_generator()) < chance).double()
    null = torch.full((199, layers), 0.2).double()
    nothing = torch.zeros(n, layers).double()
    result = _result(_measured(right, null, torch.arange(n), nothing))
    assert result.main.curves == ("semantic",) and result.main.phases == 1 and result.main.bent
    page = report(result)
    assert page.tables[0].columns == ("curve", "layer", "observed", "null", "net", "low", "high")
    for _, _, observed, null_value, net, low, high in page.tables[0].rows:
        assert net == pytest.approx(float(observed or 0) - float(null_value or 0))
        assert float(low or 0) - 1e-9 <= float(net or 0) <= float(high or 0) + 1e-9
    said = " ".join(page.sentences)
    assert "curves that bend say as much as phases" in said and "1,000 draws" in said
    assert "not a mechanism" in said and "subject dealt anew" in said


def test_features_are_ranked_once_for_all_labels() -> None:
    """What the share of mass is, text by text."""
    generator = _generator()
    f = torch.rand(60, 9, generator=generator).sub(0.5).clamp(min=0)
    labels = torch.arange(60) % 3
    f[labels == 1, 4] = 2
    first = torch.arange(60) < 30
    found = ranked(f, f * 3, first)
    members = torch.stack([labels == k for k in range(3)])
    chosen = found.selective(members)
    assert chosen.nonzero().flatten().tolist() == [4]
    by_text = (f * 3)[~first]
    expected = (by_text[:, 4] / by_text.sum(dim=1)).mean()
    assert float(found.mass_on(members)) == pytest.approx(float(expected), rel=1e-5)
