"""Appraisal modulation: what a hand-built model must show, its arithmetic, ordinary hooks."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from support_hooks import adding, arriving, changed_run
from support_planted import deciding_tokens, planted_model, planted_texts, run_planted, text_scored
from support_studies import files_of, result_of, run_here

from emotui.core.errors import UsageError
from emotui.core.studies.appraise_measure import (
    Ratings,
    agreement,
    drawn_agreement,
    partial_of,
    permuted,
    ratings_of,
    reached,
)
from emotui.core.studies.appraise_results import AppraiseCurve, AppraiseResult, drift, gain
from emotui.core.studies.common.chunks import Chunks

# Four emotions span three dimensions: with three kept, nothing of a fourth would be left.
APPRAISALS = ("pleasantness", "other_responsblt", "chance_control")
SETTINGS = {
    **{"appraisals": ",".join(APPRAISALS), "strengths": "6", "projection": "yes,no"},
    **{"draws": "2", "generations": "1"},
}
EMOTIONS = ("anger", "fear", "joy", "sadness")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("appraise")
    run_planted(found, "appraise", settings=SETTINGS)
    return found


@pytest.fixture(scope="module")
def result(folder: Path) -> AppraiseResult:
    return result_of(folder, AppraiseResult)


def curve(result: AppraiseResult, condition: str, projection: str = "projected") -> AppraiseCurve:
    return next(
        c
        for c in result.curves
        if (c.condition, c.projection, c.strength) == (condition, projection, 6)
    )


def test_ratings_are_read_from_the_layer_that_holds_them(result: AppraiseResult) -> None:
    assert result.source == "the dataset" and result.emotions == EMOTIONS
    by_name = {fit.appraisal: fit.r_squared for fit in result.fits}
    assert abs(by_name["pleasantness"][0]) < 0.2 < 0.5 < min(by_name["pleasantness"][1:])
    assert result.without == (0,)
    assert all(value is None for value in [curve(result, "+pleasantness").surviving[0]])
    pleasant = dict(zip(result.emotions, result.ratings[0], strict=True))
    assert pleasant["joy"] > 2 and all(pleasant[e] < 0 for e in EMOTIONS if e != "joy")


def test_answers_follow_the_ratings_and_random_directions_do_not(result: AppraiseResult) -> None:
    joy = result.labels.index("joy")
    up, down = curve(result, "+pleasantness"), curve(result, "-pleasantness")
    for layer in (2, 3):
        assert up.share[layer][joy] > 0.9 > 0.1 > down.share[layer][joy]
    # At the first layer there is nothing to add.
    assert up.moved[0] == 0 and up.share[0] == result.clean
    agreements = [a for a in result.agreements if (a.projection, a.strength) == ("projected", 6)]
    assert {a.against for a in agreements} == {"means", "partial"}
    for a in agreements:
        assert a.cells >= 6 and a.agreement[0] == 0, "no effect agrees with nothing"
        found, chance, high = a.agreement[2], a.isotropic[2], a.isotropic_95[2]
        assert found is not None and chance is not None and high is not None
        assert found >= 0.8 > 0.7 > chance > 0.3 and found > high - 1e-9
        best, at_layer = a.best_p, min(p for p in a.p if p is not None)
        assert best is not None and at_layer <= best < 0.1


def test_the_kept_ones_stay_with_the_projection_and_move_as_released(
    result: AppraiseResult,
) -> None:
    """Layer 3 is idle: what is read there is what was left at layer 2, by other regressions."""
    for projection, stays in (("projected", True), ("released", False)):
        curves = [c for c in result.curves if (c.projection, c.strength) == (projection, 6)]
        moved, kept = gain(curves, APPRAISALS)[2], drift(curves, APPRAISALS)[2]
        assert moved is not None and kept is not None and moved > 1
        assert (kept < 1e-3) is stays and (kept > 0.1) is not stays
    assert curve(result, "+pleasantness").shifts[3] == (None,) * 3, "no layer comes after"
    released = curve(result, "+pleasantness", "released").surviving
    assert curve(result, "+pleasantness").surviving == released
    assert released[2] is not None and 0 < released[2] < 1


def test_one_change_is_that_of_the_formula_under_ordinary_hooks(
    folder: Path, result: AppraiseResult
) -> None:
    model = planted_model()
    fitted, kept = Chunks(folder / "run", "directions", 4), Chunks(folder / "run", "changes", 6)
    rows = fitted.joined("rows").double().numpy()
    ids, deciding = text_scored(folder, kept.joined("clean")[0]), deciding_tokens()
    for projection, kind in enumerate(("projected", "released")):
        for layer in (1, 2):
            w = rows[layer]
            fixed = w[1:]  # pleasantness is the first; the others are kept
            wanted = -w[0]
            if kind == "projected":
                wanted = wanted - fixed.T @ np.linalg.solve(fixed @ fixed.T, fixed @ wanted)
            added = 6 * result.norms[layer] * wanted / np.linalg.norm(wanted)
            vector = torch.from_numpy(added).float()
            plain = changed_run(model, ids, {("resid", layer): adding(vector)})[deciding]
            # -pleasantness is the second of 10 changes; there are 4 layers.
            at = (projection * 10 + 1) * 4 + layer
            assert torch.allclose(kept.joined("scores")[0, at], plain, atol=2e-3)
    # Layer 3 is idle, so that what arrives there is what was added at layer 2.
    before = arriving(model, ids, "resid", 3)[-1].double().numpy()
    shift = kept.joined("shift")[0, at].double().numpy()
    assert np.allclose(shift, rows[3] @ added, atol=1e-2)
    assert np.allclose(kept.joined("read")[0, 3].numpy(), rows[3] @ before, atol=1e-2)


def test_mean_ratings_and_what_they_decide() -> None:
    values = torch.tensor([[5.0], [4.0], [1.0], [2.0], [3.0], [float("nan")], [3.1]]).double()
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    found = ratings_of(values, labels, 4)
    centre = (4.5 + 1.5 + 3.05) / 3
    expected = [4.5 - centre, 1.5 - centre, 3.05 - centre, 0]
    assert found.difference[0].tolist() == pytest.approx(expected)
    # Standard errors are .5, .5 and .05; the fourth emotion has no text.
    assert found.decided.tolist() == [[True, True, False, False]]


def test_partial_signs_are_those_of_a_logistic_regression_on_all_that_is_rated() -> None:
    noise = np.random.default_rng(0)
    x = noise.normal(size=(200, 3))
    x[:, 1] += x[:, 0]  # goes together with the first
    y = (x[:, 0] + 0.3 * noise.normal(size=200) > 0).astype(int)
    found = partial_of(torch.from_numpy(x), torch.from_numpy(y), 2, named=2)
    scaled = (x - x.mean(axis=0)) / x.std(axis=0, ddof=1)
    theirs = LogisticRegression(tol=1e-10, max_iter=1000).fit(scaled, y)
    assert found.difference.shape == (2, 2)
    assert np.allclose(found.difference[:, 1].numpy(), theirs.coef_[0, :2], atol=1e-5)
    # Its standard errors: the inverse Hessian of the penalised likelihood.
    p = theirs.predict_proba(scaled)[:, 1]
    whole = np.c_[scaled, np.ones(200)]
    hessian = (whole * (p * (1 - p))[:, None]).T @ whole + np.diag([1, 1, 1, 0])
    z = theirs.coef_[0, :2] / np.sqrt(np.linalg.inv(hessian).diagonal()[:2])
    assert found.decided[:, 1].tolist() == (abs(z) > 2).tolist() == [True, False]
    # Held or not is another question: without the first, the second says it.
    alone = partial_of(torch.from_numpy(x[:, 1:]), torch.from_numpy(y), 2, named=1)
    assert alone.decided[0].tolist() == [True, True]
    same = torch.from_numpy(np.stack([x[:, 0], 2 * x[:, 0]], axis=1))
    assert not partial_of(same, torch.from_numpy(y), 2, named=2).decided.any()


def test_the_best_of_many_layers_is_held_against_the_best_of_many_draws() -> None:
    """Effects of pure noise at eight layers: one layer's p is low too often, the best's is not."""
    draw = torch.Generator().manual_seed(0)
    ratings = Ratings(torch.randn(4, 6, generator=draw).double(), torch.ones(4, 6).bool())
    single = corrected = 0
    for _ in range(200):
        effects = torch.randn(8, 4, 6, generator=draw).double()
        values = [agreement(one, ratings) or 0.0 for one in effects]
        null = permuted(effects, ratings, draw, draws=200)
        best = max(range(8), key=values.__getitem__)
        single += reached(null[:, best], values[best]) <= 0.05
        corrected += reached(null.amax(dim=1), values[best]) <= 0.05
    assert single > 30 and corrected <= 18  # 10 are expected of 200


def test_random_directions_are_assigned_alike_at_every_layer() -> None:
    ratings = Ratings(torch.tensor([[1.0, -1.0]]).double(), torch.ones(1, 2).bool())
    effects = torch.tensor([[[1.0, -1.0]], [[-1.0, 1.0]]])  # two layers that disagree
    found = drawn_agreement(effects, ratings, torch.Generator().manual_seed(0))
    assert bool((found.sum(dim=1) == 1).all()) and 0.3 < float(found[:, 0].mean()) < 0.7


def test_agreement_and_its_permutations() -> None:
    difference = torch.tensor([[1.0, -1, 2, -2], [1, 1, -1, -3]]).double()
    ratings = Ratings(difference, torch.ones(2, 4).bool())
    assert agreement(difference, ratings) == 1
    assert agreement(torch.zeros(2, 4), ratings) == 0
    one = Ratings(difference, torch.tensor([[True, False, False, False]] * 2))
    assert agreement(torch.tensor([[1.0, 9, 9, 9], [-1, 9, 9, 9]]), one) == 0.5
    assert agreement(difference, Ratings(difference, torch.zeros(2, 4).bool())) is None
    exact = (
        sum(
            bool((difference[:, list(order)].sign() == difference.sign()).all())
            for order in itertools.permutations(range(4))
        )
        / 24
    )
    null = permuted(difference[None], ratings, torch.Generator().manual_seed(0))
    drawn = reached(null[:, 0], 1.0)
    assert drawn == pytest.approx(exact, abs=0.03)


def test_a_dataset_without_ratings_takes_those_of_the_situations(tmp_path: Path) -> None:
    rows = list(csv.DictReader(planted_texts(tmp_path / "rated.csv", 16).open()))
    path = tmp_path / "texts.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "emotion"))
        writer.writerows((row["text"], row["emotion"]) for row in rows)
    settings = {"strengths": "1", "draws": "1", "joint": ""}
    document = run_here(planted_model(), tmp_path, "appraise", path, settings=settings)
    found = msgspec.convert(document.result, AppraiseResult)
    assert found.source.startswith("author-assigned, of the situations")
    assert sum(found.held.values()) == 16 and "neutral" in found.emotions
    assert any(found.decided[0])


def test_the_same_run_has_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    run_planted(tmp_path, "appraise", settings=SETTINGS)
    assert files_of(tmp_path / "run") == files_of(folder / "run")


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"appraisals": "pleasantness,kindness"}, "no appraisal called 'kindness'"),
        ({"appraisals": "pleasantness"}, "At least two different appraisals"),
        ({"joint": "pleasantness:effort"}, "cannot be changed jointly"),
        ({"projection": "maybe"}, "projection cannot be 'maybe'"),
        ({"strengths": "-1"}, "strengths cannot hold -1"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    settings: dict[str, str], what: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=what):
        run_planted(tmp_path, "appraise", count=16, settings=settings)
