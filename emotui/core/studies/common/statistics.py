"""Statistics that several studies need, in float64 on the CPU; each equal to scipy's or
scikit-learn's where these have it (tested to 1e-6).

Fits live in the engine: `engine.logistic.fit_logistic`, `engine.appraisals.ridge`; `ridge` here is
the plain one, with a penalty that is given.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import one_hot

DRAWS = 200
"""Bootstrap draws of an interval."""


def ranks(values: Tensor) -> Tensor:
    """Return the ranks from 1 along dimension 0, ties averaged (scipy's `rankdata`), float64."""
    columns = values.double().reshape(len(values), -1)
    order = columns.argsort(dim=0, stable=True)
    arranged = columns.gather(0, order)
    found = torch.empty_like(columns)
    for column in range(columns.shape[1]):
        _, group, counts = torch.unique_consecutive(
            arranged[:, column], return_inverse=True, return_counts=True
        )
        ends = counts.cumsum(0).double()
        found[order[:, column], column] = (ends - (counts.double() - 1) / 2)[group]
    return found.view(values.shape)


def auc(scores: Tensor, positive: Tensor) -> Tensor:
    """Return the area under the ROC curve, ties counted half, of each column of `scores`.

    `scores` is [n] or [n, features], `positive` [n] bool. NaN where one class is empty.
    """
    chosen = positive.bool().cpu()
    n_positive = int(chosen.sum())
    n_negative = len(chosen) - n_positive
    total = ranks(scores.cpu())[chosen].sum(dim=0)
    area: Tensor = (total - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative or 1)
    return area if n_positive and n_negative else torch.full_like(area, float("nan"))


def benjamini_hochberg(p: Tensor) -> Tensor:
    """Return the q values of p values [m]: the smallest false discovery rate that accepts each."""
    values = p.double().cpu()
    order = values.argsort(descending=True)
    rank = torch.arange(len(values), 0, -1, dtype=torch.float64)
    q = (values[order] * len(values) / rank).cummin(dim=0).values.clamp(max=1)
    return torch.empty_like(q).scatter_(0, order, q)


def cohen_kappa(first: Tensor, second: Tensor, *, classes: int) -> float:
    """Return Cohen's kappa of two codings [n]; NaN where chance alone agrees everywhere."""
    table = torch.zeros(classes, classes, dtype=torch.float64)
    ones = torch.ones(len(first), dtype=torch.float64)
    table.index_put_((first.long().cpu(), second.long().cpu()), ones, accumulate=True)
    table /= table.sum()
    expected = float(table.sum(dim=0) @ table.sum(dim=1))
    observed = float(table.trace())
    return (observed - expected) / (1 - expected) if expected < 1 else float("nan")


def fleiss_kappa(counts: Tensor) -> float:
    """Return Fleiss' kappa of [texts, classes], how many raters chose each; the same number a text.

    NaN where chance alone agrees everywhere.
    """
    table = counts.double().cpu()
    raters = table.sum(dim=1)[0]
    agreement = ((table.square().sum(dim=1) - raters) / (raters * (raters - 1))).mean()
    expected = table.sum(dim=0).div(table.sum()).square().sum()
    return float((agreement - expected) / (1 - expected)) if expected < 1 else float("nan")


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence in nats of distributions [..., K] (each sums to 1).

    The square of scipy's `jensenshannon`, which is a distance.
    """
    first, second = p.double(), q.double()
    middle = (first + second) / 2

    def to_middle(one: Tensor) -> Tensor:
        summands: Tensor = torch.special.xlogy(one, one / middle.clamp_min(1e-300))
        return summands.sum(dim=-1)

    divergence: Tensor = (to_middle(first) + to_middle(second)) / 2
    return divergence.clamp_min(0)


def ridge(inputs: Tensor, targets: Tensor, *, strength: float) -> tuple[Tensor, Tensor]:
    """Return weights [d, targets] and intercepts [targets] of scikit-learn's `Ridge(alpha)`.

    `inputs` [n, d], `targets` [n, targets]; by the dual where n < d (METHODS 3).
    """
    x, y = inputs.double(), targets.double()
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    x, y = x - x_mean, y - y_mean
    n, d = x.shape
    if n < d:
        gram = x @ x.T + strength * torch.eye(n, dtype=x.dtype)
        weights = x.T @ torch.linalg.solve(gram, y)
    else:
        gram = x.T @ x + strength * torch.eye(d, dtype=x.dtype)
        weights = torch.linalg.solve(gram, x.T @ y)
    return weights, y_mean - x_mean @ weights


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Return Pearson's r of the columns of two [n, k]; NaN where one is constant."""
    a = first.double() - first.double().mean(dim=0)
    b = second.double() - second.double().mean(dim=0)
    r: Tensor = (a * b).sum(dim=0) / (a.norm(dim=0) * b.norm(dim=0))
    return r


def bootstrap(
    statistic: Callable[[Tensor], Tensor], n: int, generator: torch.Generator, *, draws: int = DRAWS
) -> tuple[Tensor, Tensor]:
    """Return the 2.5th and 97.5th percentile of a statistic over resampled rows.

    `statistic(rows)` gets the indices [n] of one draw and returns any tensor; NaN are left out.
    """
    found = [statistic(torch.randint(n, (n,), generator=generator)).double() for _ in range(draws)]
    low, high = torch.stack(found).nanquantile(torch.tensor([0.025, 0.975]).double(), dim=0)
    return low, high


def balanced(correct: Tensor, labels: Tensor, *, classes: int) -> Tensor:
    """Return the mean over classes of the mean of `correct` [..., n]; NaN without any class."""
    members = one_hot(labels, classes).double()
    recalls = (correct.double() @ members) / members.sum(dim=0)
    return recalls.nanmean(dim=-1)
