"""Which features are listed, and which of them are causal: the arithmetic of `trace`.

Every listed feature is paired with controls: active features that attribution did not list, alike
in firing rate and size (a caliper on each; one without is never called causal). If listing means
nothing, a feature and its controls are exchangeable, so it has the largest effect of its set in
one of m + 1. Sets are ordered by their largest effect; with R features above their controls and
A controls above their features so far, (1 + A) / (m R) bounds the share of false ones: SeqStep+
of Barber and Candes (2015), exact for any number of features. An effect counts only where its own
sign-flip test holds, corrected over features and controls alike: a swap of the two changes
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emotui.core.studies.common.statistics import benjamini_hochberg

SHORTLIST, OVERLOOKED = 64, 16
"""Features listed by |attribution|; and the largest of those with little attribution, whose
effects say what attribution misses."""
LISTED_SHARE = 6
"""One in so many active features is listed at most, so that alike ones are left for controls."""
MOST_CONTROLS = 4
CALIPER = 0.2
"""How far a control may be in rate and in log size, in standard deviations of active features."""
LEVEL = 0.05
DRAWS = 1000
"""Bootstrap draws of the texts."""
EXACT = 24
"""Texts up to which all 2^n flips of signs are counted."""


@dataclass(frozen=True)
class Balance:
    """Standardised mean differences, listed features less the others.

    Over the standard deviation before matching; None without two features on both sides.
    """

    rate_before: float | None
    """Against all active features that are not listed."""
    size_before: float | None
    """Of the logarithm of the size."""
    rate: float | None
    """Those with controls against their controls."""
    size: float | None


@dataclass(frozen=True)
class Listed:
    """Indices, into the candidates of one phase."""

    shortlist: tuple[int, ...]
    controls: tuple[tuple[int, ...], ...]
    """Of each of the shortlist: equally many, or () where too few are alike."""
    overlooked: tuple[int, ...]
    balance: Balance

    @property
    def paired(self) -> int:
        """How many of the shortlist have controls."""
        return sum(bool(one) for one in self.controls)


def listed(attribution: Tensor, rate: Tensor, size: Tensor, *, controls: int = 1) -> Listed:
    """List candidates [m] by mean attribution, with `controls` each of like firing rate and mean
    size (f times decoder norm), none of them used twice."""
    active = (rate > 0).nonzero().flatten()
    order = active[attribution[active].abs().argsort(descending=True, stable=True)]
    n_short = min(SHORTLIST, math.ceil(len(active) / LISTED_SHARE))
    short, rest = order[:n_short], order[n_short:]
    place = torch.stack([rate, size.clamp(min=1e-12).log()], dim=1).double()
    alike = _controls(place, short, rest, active, controls)
    taken = torch.tensor([index for one in alike for index in one], dtype=torch.long)
    low = rest[len(rest) // 2 :]
    low = low[~torch.isin(low, taken)]
    over = low[size[low].argsort(descending=True, stable=True)][:OVERLOOKED]
    return Listed(
        tuple(short.tolist()), alike, tuple(over.tolist()), _balance(place, short, rest, alike)
    )


def _controls(
    place: Tensor, wanted: Tensor, free: Tensor, active: Tensor, count: int
) -> tuple[tuple[int, ...], ...]:
    """Return `count` nearest free features within the caliper of each, or () for too few.

    In rounds, those with the fewest left first; the last of several rounds may fail for some,
    whose controls are then nobody's.
    """
    if not len(wanted) or not len(free):
        return ((),) * len(wanted)
    spread = place[active].std(dim=0).nan_to_num(0).clamp(min=1e-9)
    apart = (place[wanted][:, None] - place[free][None]).abs() / spread
    near = (apart <= CALIPER).all(dim=-1)
    distance = apart.norm(dim=-1).masked_fill(~near, float("inf"))
    found: list[list[int]] = [[] for _ in wanted]
    for _ in range(count):
        options = distance.isfinite().sum(dim=1)
        for row in options.argsort(stable=True).tolist():
            best = int(distance[row].argmin())
            if bool(distance[row, best].isfinite()):
                found[row].append(int(free[best]))
                distance[:, best] = float("inf")
    return tuple(tuple(one) if len(one) == count else () for one in found)


def _balance(
    place: Tensor, short: Tensor, rest: Tensor, controls: Sequence[Sequence[int]]
) -> Balance:
    if len(short) < 2 or len(rest) < 2:
        return Balance(None, None, None, None)
    one, other = place[short], place[rest]
    scale = ((one.var(dim=0) + other.var(dim=0)) / 2).sqrt().clamp(min=1e-9)
    before = ((one.mean(dim=0) - other.mean(dim=0)) / scale).tolist()
    pairs = [(n, control) for n, own in enumerate(controls) for control in own]
    if not pairs:
        return Balance(before[0], before[1], None, None)
    rows, with_them = (torch.tensor(column) for column in zip(*pairs, strict=True))
    after = ((one[rows] - place[with_them]).mean(dim=0) / scale).tolist()
    return Balance(before[0], before[1], after[0], after[1])


def matched(
    wanted: Tensor,
    free: Tensor,
    rate: Tensor,
    size: Tensor,
    count: int,
    generator: torch.Generator,
) -> list[int]:
    """Return free features, each the nearest of a wanted one drawn at random, none twice."""
    if not count:
        return []
    both = torch.cat([wanted, free])
    place = torch.stack([rate, size.clamp(min=1e-12).log()], dim=1).double()
    spread = place[both].std(dim=0).nan_to_num(0).clamp(min=1e-9)
    place = place / spread
    left = torch.ones(len(free), dtype=torch.bool)
    found = []
    order = torch.randperm(len(wanted), generator=generator).tolist()
    for number in range(count):
        near = (place[free] - place[wanted[order[number % len(order)]]]).norm(dim=1)
        best = int(near.masked_fill(~left, float("inf")).argmin())
        left[best] = False
        found.append(int(free[best]))
    return found


def sign_flip_p(effects: Tensor) -> Tensor:
    """Return the two-sided p [m] that the mean of `effects` [n, m] is zero, by flipping signs.

    Exact up to 24 texts: of all 2^n flips the share whose sum is as far from zero, so n texts
    cannot give less than 2^(1 - n). Beyond, the normal limit z = sum / sqrt(sum of squares).
    """
    values = effects.double()
    total = values.sum(dim=0).abs()
    if not len(values) or not values.shape[1]:
        return torch.ones(values.shape[1], dtype=torch.float64)
    if len(values) > EXACT:
        size = values.square().sum(dim=0).sqrt()
        return torch.erfc(total / size.clamp(min=1e-300) / math.sqrt(2))  # 1 where all are zero
    # Sums over each half of the texts; then, for each of one half, how many of the other reach.
    middle = len(values) // 2
    first, second = _flipped_sums(values[:middle]), _flipped_sums(values[middle:])
    ordered = second.sort(dim=0).values.T.contiguous()
    bar = total - 1e-9 * values.abs().sum(dim=0)
    below = torch.searchsorted(ordered, (bar - first).T.contiguous())
    as_far = (ordered.shape[1] - below).sum(dim=1).double()
    p: Tensor = (2 * as_far / 2 ** len(values)).clamp(max=1)
    return p


def _flipped_sums(values: Tensor) -> Tensor:
    """Return the sums [2^n, m] of `values` [n, m] under all flips of signs."""
    sums = torch.zeros(1, values.shape[1], dtype=values.dtype)
    for row in values:
        sums = torch.cat([sums + row, sums - row])
    return sums


@dataclass(frozen=True)
class Effects:
    """One emotion in one phase: n texts, their features ablated one by one."""

    shortlist: Tensor
    """[n, s]: margin of the emotion before less after."""
    controls: Tensor
    """[n, s, c]: of the controls of each; NaN where it has none."""
    overlooked: Tensor
    """[n, o]."""


@dataclass(frozen=True)
class Judged:
    """What follows for one emotion in one phase."""

    mean: Tensor
    """[s]."""
    low: Tensor
    """[s]: 95 % bootstrap interval over texts, by percentiles of 1,000 draws."""
    high: Tensor
    p: Tensor
    """[s]: sign-flip test of an effect of zero."""
    control: Tensor
    """[s]: the mean effect farthest from zero among the feature's controls; NaN without any."""
    q: Tensor
    """[s], over all emotions and phases: least share of false ones at which it counts as beyond
    its controls; 1 for one that is not, NaN without controls."""
    sign: Tensor
    """[s]: 1 causal, -1 a suppressor, 0 neither."""
    missed: int
    """Overlooked features with an effect as large as the smallest called causal here."""
    top_share: float | None
    """The five largest effects as a share of all positive ones; None with too few texts."""
    participation: float | None
    """(sum E)^2 / sum E^2 of the positive ones: how many features carry the effect; likewise."""


def too_few(texts: int) -> bool:
    """Return whether no flip of signs over so many texts can have p below .05."""
    return 2.0 ** (1 - texts) > LEVEL


def judged(cells: Sequence[Effects], generator: torch.Generator) -> list[Judged]:
    """Judge all emotions and phases at once, since q is over all of them."""
    own = [sign_flip_p(cell.shortlist) for cell in cells]
    paired = [~cell.controls[0, :, 0].isnan() for cell in cells]
    flat = [
        sign_flip_p(cell.controls[:, some].flatten(1))
        for cell, some in zip(cells, paired, strict=True)
    ]
    # Over features and controls together: what a swap of the two leaves as it is.
    corrected = benjamini_hochberg(torch.cat([*own, *flat]))
    counts = torch.split(corrected < LEVEL, [len(one) for one in (*own, *flat)])
    sets = [
        _of_sets(cell, some, counts[n], counts[len(cells) + n])
        for n, (cell, some) in enumerate(zip(cells, paired, strict=True))
    ]
    q = torch.split(beyond_controls(torch.cat(sets)), [len(one) for one in sets])
    return [
        _judged(cell, p, some, mine, generator)
        for cell, p, some, mine in zip(cells, own, paired, q, strict=True)
    ]


def _of_sets(cell: Effects, paired: Tensor, own: Tensor, theirs: Tensor) -> Tensor:
    """Return |mean effect| [pairs, 1 + c] of features and controls; 0 where p does not hold."""
    features = cell.shortlist[:, paired].double().mean(dim=0) * own[paired]
    controls = cell.controls[:, paired].double().mean(dim=0)
    controls = controls * theirs.view(controls.shape)
    return torch.cat([features[:, None], controls], dim=1).abs()


def beyond_controls(sets: Tensor) -> Tensor:
    """Return q [n] of `sets` [n, 1 + m]: a statistic of each feature and of its m controls.

    The least false discovery rate at which a feature is accepted by SeqStep+; 1 for a feature
    that is not the largest of its set. What is zero throughout takes no part.
    """
    m = sets.shape[1] - 1
    largest = sets.amax(dim=1)
    won = (sets[:, 0] > sets[:, 1:].amax(dim=1)) if m else torch.zeros(len(sets)).bool()
    # Of equal ones those that lost first, which errs to the careful side.
    by_size = won.long().argsort(stable=True)
    order = by_size[largest[by_size].argsort(descending=True, stable=True)]
    order = order[largest[order] > 0]
    right = won[order].double().cumsum(dim=0)
    wrong = (~won[order]).double().cumsum(dim=0)
    share = ((1 + wrong) / (m * right).clamp(min=1e-9)).clamp(max=1)
    share = share.flip(0).cummin(dim=0).values.flip(0) if len(share) else share
    q = torch.ones(len(sets), dtype=torch.float64)
    q[order] = torch.where(won[order], share, 1.0)
    return q


def _judged(
    cell: Effects, p: Tensor, paired: Tensor, mine: Tensor, generator: torch.Generator
) -> Judged:
    effects = cell.shortlist.double()
    mean = effects.mean(dim=0)
    low, high = _interval(effects, generator)
    q = torch.full((len(mean),), float("nan"), dtype=torch.float64)
    q[paired] = mine
    accepted = q <= LEVEL + 1e-12  # (1 + 0) / 20 is .05 in any rounding
    sign = torch.where(accepted, mean.sign(), 0).long()
    averages = cell.controls.double().mean(dim=0)
    farthest = averages.abs().nan_to_num(-1).argmax(dim=1, keepdim=True)
    over = cell.overlooked.double()
    least = float(mean[accepted].abs().min()) if bool(accepted.any()) else float("inf")
    as_large = (over.mean(dim=0).abs() >= least) & (sign_flip_p(over) < LEVEL)
    positive = mean.clamp(min=0).sort(descending=True).values
    total = float(positive.sum()) if not too_few(len(effects)) else 0.0
    return Judged(
        mean=mean,
        low=low,
        high=high,
        p=p,
        control=averages.gather(1, farthest)[:, 0],
        q=q,
        sign=sign,
        missed=int(as_large.sum()),
        top_share=float(positive[:5].sum()) / total if total > 0 else None,
        participation=total**2 / float(positive.square().sum()) if total > 0 else None,
    )


def _interval(effects: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the 2.5th and 97.5th percentile [s] of the mean over resampled texts."""
    n = len(effects)
    if not effects.shape[1]:
        return effects.new_zeros(0), effects.new_zeros(0)
    drawn = torch.randint(n, (DRAWS, n), generator=generator)
    weights = torch.zeros(DRAWS, n, dtype=torch.float64)
    weights.scatter_add_(1, drawn, torch.full(drawn.shape, 1 / n, dtype=torch.float64))
    low, high = (weights @ effects).quantile(torch.tensor([0.025, 0.975]).double(), dim=0)
    return low, high


def phase_of(n_layers: int, boundaries: Sequence[int]) -> list[int]:
    """Return the phase of each layer, from 0; `boundaries` are the first layers of later ones."""
    return [sum(layer >= begin for begin in boundaries) for layer in range(n_layers)]
