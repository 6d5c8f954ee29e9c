"""Which features are listed, and which of them are causal: the arithmetic of `trace`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emotui.core.studies.common.statistics import benjamini_hochberg, bootstrap

SHORTLIST, MATCHED, OVERLOOKED = 64, 32, 16
"""Features listed by |attribution|; active ones matched to these in firing rate and size; and the
largest of those with little attribution, whose effects say what attribution misses."""
LEVEL = 0.05
NULL_PERCENTILE = 0.99


@dataclass(frozen=True)
class Listed:
    """Indices, into the candidates of one phase, of the three kinds."""

    shortlist: tuple[int, ...]
    matched: tuple[int, ...]
    overlooked: tuple[int, ...]


def listed(attribution: Tensor, rate: Tensor, size: Tensor, generator: torch.Generator) -> Listed:
    """List candidates [m] by mean attribution, firing rate and mean size (f times decoder norm).

    Where fewer than 112 are active, the three kinds share them in the same proportion.
    """
    active = (rate > 0).nonzero().flatten()
    whole = SHORTLIST + MATCHED + OVERLOOKED
    share = min(1.0, len(active) / whole)
    n_short, n_over = math.ceil(SHORTLIST * share), int(OVERLOOKED * share)
    order = active[attribution[active].abs().argsort(descending=True, stable=True)]
    short, rest = order[:n_short], order[n_short:]
    low = rest[len(rest) // 2 :]
    over = low[size[low].argsort(descending=True, stable=True)][:n_over]
    free = rest[~torch.isin(rest, over)]
    alike = matched(short, free, rate, size, min(MATCHED, len(free)), generator)
    return Listed(tuple(short.tolist()), tuple(alike), tuple(over.tolist()))


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
    """Return the two-sided p [m] that the mean of `effects` [n, m] is zero.

    The sign-flip test at its normal limit, z = sum / sqrt(sum of squares), which far out
    errs to the careful side: n texts cannot give more than z = sqrt(n).
    """
    total, square = effects.double().sum(dim=0), effects.double().square().sum(dim=0)
    z = total / square.sqrt().clamp(min=1e-300)
    p = torch.erfc(z.abs() / math.sqrt(2))
    return torch.where(square > 0, p, 1.0)


@dataclass(frozen=True)
class Effects:
    """One emotion in one phase: n texts, their features ablated one by one."""

    shortlist: Tensor
    """[n, s]: margin of the emotion before less after."""
    matched: Tensor
    """[n, r]."""
    overlooked: Tensor
    """[n, o]."""


@dataclass(frozen=True)
class Judged:
    """What follows for one emotion in one phase."""

    mean: Tensor
    """[s]."""
    low: Tensor
    """[s]: 95 % bootstrap interval."""
    high: Tensor
    q: Tensor
    """[s], over all emotions and phases."""
    sign: Tensor
    """[s]: 1 causal, -1 a suppressor, 0 neither."""
    null_low: float
    """1st percentile of the matched features' effects; 0 without any."""
    null_high: float
    """99th."""
    missed: int
    """Overlooked features whose effect is beyond the null's and whose own p is below .05."""
    top_share: float | None
    """The five largest effects as a share of all positive ones."""
    participation: float | None
    """(sum E)^2 / sum E^2 of the positive ones: how many features carry the effect."""


def judged(cells: Sequence[Effects], generator: torch.Generator) -> list[Judged]:
    """Judge all emotions and phases at once, since q is over all of them."""
    p = [sign_flip_p(cell.shortlist) for cell in cells]
    q = torch.split(benjamini_hochberg(torch.cat(p)), [len(one) for one in p])
    return [_judged(cell, mine, generator) for cell, mine in zip(cells, q, strict=True)]


def _judged(cell: Effects, q: Tensor, generator: torch.Generator) -> Judged:
    effects = cell.shortlist.double()
    mean = effects.mean(dim=0)
    low, high = bootstrap(lambda rows: effects[rows].mean(dim=0), len(effects), generator)
    null = cell.matched.double().mean(dim=0)
    below = float(null.quantile(1 - NULL_PERCENTILE)) if len(null) else 0.0
    above = float(null.quantile(NULL_PERCENTILE)) if len(null) else 0.0
    sign = torch.zeros(len(mean), dtype=torch.long)
    sign[(mean > max(above, 0)) & (q < LEVEL)] = 1
    sign[(mean < min(below, 0)) & (q < LEVEL)] = -1
    over = cell.overlooked.double()
    beyond = (over.mean(dim=0) > max(above, 0)) | (over.mean(dim=0) < min(below, 0))
    positive = mean.clamp(min=0).sort(descending=True).values
    total = float(positive.sum())
    return Judged(
        mean=mean,
        low=low,
        high=high,
        q=q,
        sign=sign,
        null_low=below,
        null_high=above,
        missed=int((beyond & (sign_flip_p(over) < LEVEL)).sum()),
        top_share=float(positive[:5].sum()) / total if total > 0 else None,
        participation=total**2 / float(positive.square().sum()) if total > 0 else None,
    )


def phase_of(n_layers: int, boundaries: Sequence[int]) -> list[int]:
    """Return the phase of each layer, from 0; `boundaries` are the first layers of later ones."""
    return [sum(layer >= begin for begin in boundaries) for layer in range(n_layers)]
