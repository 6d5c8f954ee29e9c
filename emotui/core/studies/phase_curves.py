"""Segmentation of curves over layers, and the curves themselves, each example apart so that they
can be drawn again (METHODS 2.2).

Curves [layers, curves] are scaled to 0..1 each and fitted by exact dynamic programming with 1, 2
or 3 constant pieces of at least two layers. With SSE_k their squared error and SSE_line that of a
straight line for each curve:

    S = (SSE_line - SSE_3) / SSE_1      G = (SSE_2 - SSE_3) / SSE_1

S < .10: gradual, no phases; else G < .10: two; else three. The number of phases is not chosen by
BIC or an elbow, which find five segments in a ramp.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from emotui.core.engine.selectivity import SPECIFIC_AREA, areas, mid_ranks
from emotui.core.studies.common.statistics import ridge

LEAST_STEPS = 0.10
SHORTEST = 2
"""Layers of a phase at least."""
UNSTABLE = 0.15
"""Share of the layers above which an interval of a boundary is called unstable."""
FOLDS = 5
_RIDGE = 10.0
_LEAST_FIRING = 5


@dataclass(frozen=True)
class Segmentation:
    """How curves fall into phases."""

    steps: float
    """S."""
    third: float
    """G."""
    phases: int
    """1 (gradual), 2 or 3."""
    boundaries: tuple[int, ...]
    """The first layer of each phase but the first."""


def scaled(curves: Tensor) -> Tensor:
    """Return curves [layers, C] scaled to 0..1 each; constant ones are zero."""
    low, high = curves.amin(dim=0), curves.amax(dim=0)
    span = high - low
    return torch.where(span > 1e-9, (curves - low) / span.clamp(min=1e-9), 0.0)


def segmented(curves: Tensor, *, phases: int | None = None) -> Segmentation:
    """Segment curves [layers, C]; `phases` forces a number instead of the verdict's.

    Fewer than six layers cannot be three phases, fewer than four are gradual.
    """
    y = scaled(curves.double())
    cost = _costs(y)
    best = {k: _pieces(cost, k) for k in (1, 2, 3)}
    total = best[1][0]
    if total <= 1e-9:
        return Segmentation(0.0, 0.0, 1, ())
    x = torch.arange(len(y), dtype=torch.float64)
    x = x - x.mean()
    slope = (x[:, None] * y).sum(dim=0) / x.square().sum()
    line = float((y - y.mean(dim=0) - x[:, None] * slope).square().sum())
    three, two = best[3][0], best[2][0]
    finite = three if three < float("inf") else two
    steps = (line - finite) / total if finite < float("inf") else 0.0
    third = (two - three) / total if three < float("inf") else 0.0
    found = 1 if steps < LEAST_STEPS else 2 if third < LEAST_STEPS else 3
    return Segmentation(steps, third, found, best[phases or found][1])


def _costs(y: Tensor) -> Tensor:
    """Return the squared error [L + 1, L + 1] of one constant over layers [i, j)."""
    zero = torch.zeros(1, y.shape[1], dtype=y.dtype)
    sums = torch.cat([zero, y.cumsum(dim=0)])
    squares = torch.cat([zero, y.square().cumsum(dim=0)]).sum(dim=1)
    count = len(y) + 1
    cost = torch.full((count, count), float("inf"), dtype=y.dtype)
    for i in range(count):
        for j in range(i + SHORTEST, count):
            inside = sums[j] - sums[i]
            cost[i, j] = squares[j] - squares[i] - inside.square().sum() / (j - i)
    return cost.clamp(min=0)


def _pieces(cost: Tensor, phases: int) -> tuple[float, tuple[int, ...]]:
    """Return the least error of exactly `phases` pieces, and where the later ones begin."""
    last = len(cost) - 1
    if phases == 1:
        return float(cost[0, last]), ()
    options: list[tuple[float, tuple[int, ...]]]
    if phases == 2:
        options = [(float(cost[0, a] + cost[a, last]), (a,)) for a in range(1, last)]
    else:
        options = [
            (float(cost[0, a] + cost[a, b] + cost[b, last]), (a, b))
            for a in range(1, last)
            for b in range(a + 1, last)
        ]
    return min(options, default=(float("inf"), ()))


def token_hits(
    text: Tensor, feature: Tensor, token: Tensor, first: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each text [n], how often a firing feature gave its token away, how often the
    commonest token was there, and how many firings there were.

    The token of a feature is the one it fires on most in the texts `first` [n]; firings are judged
    in the others, where nothing was chosen, so a feature that fires once proves nothing. Features
    that never fire in `first` are left out.
    """
    n = len(first)
    chosen = first[text]
    hits, base, events = (torch.zeros(n, dtype=torch.float64) for _ in range(3))
    if not bool(chosen.any()) or bool(chosen.all()):
        return hits, base, events
    size = int(token.max()) + 1
    pairs, counts = torch.unique(feature[chosen] * size + token[chosen], return_counts=True)
    own = _most_frequent(pairs, counts, size, features=int(feature.max()) + 1)
    commonest = torch.bincount(token[chosen]).argmax()
    judged = ~chosen & (own[feature] >= 0)
    at = text[judged]
    hits.index_add_(0, at, (own[feature[judged]] == token[judged]).double())
    base.index_add_(0, at, (token[judged] == commonest).double())
    events.index_add_(0, at, torch.ones(len(at), dtype=torch.float64))
    return hits, base, events


def _most_frequent(pairs: Tensor, counts: Tensor, size: int, *, features: int) -> Tensor:
    """Return the token [features] that each fires on most; -1 for one that does not fire."""
    feature, token = pairs // size, pairs % size
    best = torch.zeros(features, dtype=counts.dtype).scatter_reduce_(0, feature, counts, "amax")
    winner = counts == best[feature]
    found = torch.full((features,), size)
    # Of equally frequent tokens the lowest, so that the order of writing decides nothing.
    found.scatter_reduce_(0, feature[winner], token[winner], "amin")
    return torch.where(found == size, -1, found)


def fold_of(units: Tensor, generator: torch.Generator) -> Tensor:
    """Return the fold [n] of each text; texts of one unit share it."""
    names, of_text = torch.unique(units, return_inverse=True)
    order = torch.randperm(len(names), generator=generator)
    folds: Tensor = torch.empty_like(order).scatter_(0, order, torch.arange(len(order))) % FOLDS
    return folds[of_text]


def read_correctly(h: Tensor, target: Tensor, folds: Tensor, *, classes: int) -> Tensor:
    """Return whether ridge regression, out of fold, reads a class from `h` [n, d]: [n] bool."""
    hot = torch.nn.functional.one_hot(target, classes).double()
    right = torch.zeros(len(target), dtype=torch.bool)
    for fold in range(FOLDS):
        test = folds == fold
        if not bool(test.any()) or bool(test.all()):
            continue
        train = h[~test].double()
        centre, spread = train.mean(dim=0), train.std(dim=0).clamp(min=1e-6)
        weights, bias = ridge((train - centre) / spread, hot[~test], strength=_RIDGE)
        read = ((h[test].double() - centre) / spread) @ weights + bias
        right[test] = read.argmax(dim=1) == target[test]
    return right


def selective(f: Tensor, members: Tensor, first: Tensor) -> Tensor:
    """Return which features [..., F] tell a class of `members` [..., classes, n] apart."""
    fires = f[first] > 0
    often = fires.sum(dim=0) >= _LEAST_FIRING
    area = areas(mid_ranks(f[first]), members[..., first]).amax(dim=-2)
    return (area >= SPECIFIC_AREA) & often


def onset(curve: Tensor, threshold: float) -> int | None:
    """Return the first layer above a threshold two layers running; None without one."""
    above = (curve > threshold).tolist()
    return next((n for n, (one, two) in enumerate(pairwise(above)) if one and two), None)
