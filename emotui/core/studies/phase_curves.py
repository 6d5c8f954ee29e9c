"""Curves over layers, each example apart so that they can be drawn again (METHODS 2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from emotui.core.engine.selectivity import SPECIFIC_AREA, areas, mid_ranks
from emotui.core.studies.common.statistics import ridge

FOLDS = 5
_RIDGE = 10.0
_LEAST_FIRING = 5


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


def shuffled_within(
    values: Tensor, units: Tensor, strata: Tensor, generator: torch.Generator
) -> Tensor:
    """Return `values` [n] with the units' values dealt anew among units of the same stratum.

    Texts of one unit share value and stratum. That is what folds by unit leave exchangeable: where
    every value stands once with every stratum, what holds out a unit takes its value from the
    stratum's others, so that a reader of the stratum alone does worse than a guess, and so it does
    here. Shuffled text by text, the control would be read too well.
    """
    names, of_text = torch.unique(units, return_inverse=True)
    of_unit, stratum = (torch.empty(len(names), dtype=torch.long) for _ in range(2))
    of_unit[of_text], stratum[of_text] = values, strata
    dealt = of_unit.clone()
    for one in sorted(set(stratum.tolist())):
        members = (stratum == one).nonzero().flatten()
        dealt[members] = of_unit[members[torch.randperm(len(members), generator=generator)]]
    return dealt[of_text]


def read_correctly(h: Tensor, targets: Tensor, folds: Tensor, *, classes: int) -> Tensor:
    """Return whether ridge regression, out of fold, reads classes from `h` [n, d]: [S, n] bool.

    `targets` [S, n] are S ways to label the same texts.
    """
    hot = torch.nn.functional.one_hot(targets, classes).double()
    right = torch.zeros(targets.shape, dtype=torch.bool)
    for fold in range(FOLDS):
        test = folds == fold
        if not bool(test.any()) or bool(test.all()):
            continue
        train = h[~test].double()
        centre, spread = train.mean(dim=0), train.std(dim=0).clamp(min=1e-6)
        wanted = hot[:, ~test].transpose(0, 1).flatten(1)
        weights, bias = ridge((train - centre) / spread, wanted, strength=_RIDGE)
        read = ((h[test].double() - centre) / spread) @ weights + bias
        answer = read.view(len(read), len(targets), classes).argmax(dim=2).T
        right[:, test] = answer == targets[:, test]
    return right


@dataclass(frozen=True)
class Ranked:
    """Features of n texts, ranked in the half `first` [n] once for all ways to label the texts."""

    ranks: Tensor
    """[n first half, F]."""
    often: Tensor
    """[F], bool: fires often enough there to be selective."""
    share: Tensor
    """[F]: share of the mass of a text, mean over the texts of the other half."""
    first: Tensor

    def selective(self, members: Tensor) -> Tensor:
        """Return which features [F] tell a class of `members` [classes, n] apart, bool."""
        area = areas(self.ranks, members[:, self.first]).amax(dim=0)
        return (area >= SPECIFIC_AREA) & self.often

    def mass_on(self, members: Tensor) -> Tensor:
        """Return the share of mass, in the other half, on the features that do; a scalar."""
        return self.share[self.selective(members)].double().sum()


def ranked(f: Tensor, mass: Tensor, first: Tensor) -> Ranked:
    """Rank activations `f` [n, F]; `mass` [n, F] is f times decoder norm."""
    other = mass[~first]
    whole = other.sum(dim=1, keepdim=True).clamp(min=1e-12)
    often = (f[first] > 0).sum(dim=0) >= _LEAST_FIRING
    return Ranked(mid_ranks(f[first]), often, (other / whole).mean(dim=0), first)


def onset(curve: Tensor, threshold: float) -> int | None:
    """Return the first layer above a threshold two layers running; None without one."""
    above = (curve > threshold).tolist()
    return next((n for n, (one, two) in enumerate(pairwise(above)) if one and two), None)
