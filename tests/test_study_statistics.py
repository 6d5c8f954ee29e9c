"""Statistics of the studies against scipy and scikit-learn, to 1e-6."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import jensenshannon
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, roc_auc_score

from emotui.core.engine.logistic import fit_logistic
from emotui.core.studies.common import statistics
from emotui.core.studies.probe_controls import projected, word_weights


def _drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("step", [0.0, 0.5])
def test_auc_and_ranks_with_and_without_ties(step: float) -> None:
    scores = _drawn(60, 4)
    if step:
        scores = (scores / step).round() * step
    positive = _drawn(60, seed=1) > 0.4
    found = statistics.auc(scores, positive)
    for column in range(4):
        expected = roc_auc_score(positive.numpy(), scores[:, column].numpy())
        assert float(found[column]) == pytest.approx(expected, abs=1e-6)
    assert np.allclose(statistics.ranks(scores), stats.rankdata(scores, axis=0))
    assert bool(statistics.auc(scores, torch.ones(60, dtype=torch.bool)).isnan().all())


def test_benjamini_hochberg() -> None:
    p = torch.rand(50, generator=torch.Generator().manual_seed(3)).double() ** 3
    p[10] = p[20]
    expected = stats.false_discovery_control(p.numpy())
    assert np.abs(statistics.benjamini_hochberg(p).numpy() - expected).max() < 1e-6


def test_kappas() -> None:
    generator = torch.Generator().manual_seed(4)
    first = torch.randint(4, (80,), generator=generator)
    other = torch.randint(4, (80,), generator=generator)
    second = torch.where(torch.rand(80, generator=generator) < 0.6, first, other)
    expected = cohen_kappa_score(first.numpy(), second.numpy())
    assert statistics.cohen_kappa(first, second, classes=5) == pytest.approx(expected, abs=1e-6)
    same = torch.zeros(5, dtype=torch.long)
    assert math.isnan(statistics.cohen_kappa(same, same, classes=2))
    # Fleiss (1971), the example of ten subjects and fourteen raters.
    rows = (
        *((0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1)),
        *((7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7)),
    )
    assert statistics.fleiss_kappa(torch.tensor(rows)) == pytest.approx(0.20993, abs=1e-5)


def test_jensen_shannon_is_the_square_of_the_distance() -> None:
    p, q = _drawn(6, 5).softmax(dim=1).double(), _drawn(6, 5, seed=1).softmax(dim=1).double()
    p[0, 2] = 0.0
    p[0] /= p[0].sum()
    expected = jensenshannon(p.numpy(), q.numpy(), axis=1) ** 2
    assert np.abs(statistics.jensen_shannon(p, q).numpy() - expected).max() < 1e-6
    assert float(statistics.jensen_shannon(p, p).max()) == 0


@pytest.mark.parametrize("shape", [(60, 9), (12, 30)])
def test_ridge_by_the_dual_and_directly(shape: tuple[int, int]) -> None:
    inputs, targets = _drawn(*shape).double() + 2, _drawn(shape[0], 3, seed=1).double() - 5
    weights, intercepts = statistics.ridge(inputs, targets, strength=5.0)
    theirs = Ridge(alpha=5.0).fit(inputs.numpy(), targets.numpy())
    assert np.abs(weights.T.numpy() - theirs.coef_).max() < 1e-6
    assert np.abs(intercepts.numpy() - theirs.intercept_).max() < 1e-6


def test_logistic() -> None:
    inputs = _drawn(150, 6).double()
    labels = (inputs[:, :3] + _drawn(150, 3, seed=1)).argmax(dim=1)
    ours = fit_logistic(
        *(inputs[None], labels[None]),
        classes=3,
        strength=torch.tensor(0.7, dtype=torch.float64),
        weights=torch.ones(1, 150),
        tolerance=1e-10,
    )
    theirs = LogisticRegression(C=0.7, tol=1e-12, max_iter=10_000).fit(inputs, labels)
    assert np.abs(ours.weight[0, 0].T.numpy() - theirs.coef_).max() < 1e-6
    expected = theirs.predict_proba(inputs.numpy())
    assert np.abs(ours.logits(inputs[None])[0, 0].softmax(1).numpy() - expected).max() < 1e-6


def test_balanced_accuracy_and_pearson() -> None:
    labels = torch.tensor([0, 0, 0, 2, 2, 3])
    guesses = torch.tensor([0, 1, 0, 2, 0, 3])
    expected = balanced_accuracy_score(labels, guesses)
    found = statistics.balanced(guesses == labels, labels, classes=4)
    assert float(found) == pytest.approx(expected, abs=1e-6)
    a, b = _drawn(40, 2), _drawn(40, 2, seed=1)
    r = [stats.pearsonr(a[:, k], b[:, k]).statistic for k in range(2)]
    assert np.abs(statistics.pearson(a, b).numpy() - r).max() < 1e-6


def test_the_bootstrap_covers_a_mean() -> None:
    values = _drawn(400)
    low, high = statistics.bootstrap(
        lambda rows: values[rows].mean(), 400, torch.Generator().manual_seed(0), draws=2000
    )
    half = 1.96 * float(values.std()) / 20
    assert float(low) == pytest.approx(float(values.mean()) - half, abs=0.01)
    assert float(high) == pytest.approx(float(values.mean()) + half, abs=0.01)


def test_word_weights_are_those_of_scikit_learn() -> None:
    texts = ["the dog ran", "the dog slept", "a cat slept", "the cat ran off"]
    found = word_weights(texts, [0, 1, 2])
    vectorizer = TfidfVectorizer(token_pattern=r"\w+", min_df=2).fit(texts[:3])
    expected = vectorizer.transform(texts).toarray()
    assert np.abs(np.sort(found.numpy(), axis=1) - np.sort(expected, axis=1)).max() < 1e-6


def test_what_is_projected_without_a_probe_does_not_hold_it() -> None:
    h, without = _drawn(20, 12), _drawn(12, 3, seed=1)
    free = projected(h, without, count=4, generator=torch.Generator().manual_seed(5))
    moved = projected(
        h + 10 * without[:, 1], without, count=4, generator=torch.Generator().manual_seed(5)
    )
    assert torch.allclose(free, moved, atol=1e-4)
    assert not torch.allclose(
        free, projected(h, None, count=4, generator=torch.Generator().manual_seed(5)), atol=0.1
    )
