"""What kind of feature each is: specific to one emotion, shared, of valence, or unselective.

METHODS 2.3. The texts are dealt into halves. On the first, for a feature that fires on at least
five texts and on a tenth of some label: the area under the curve (AUC) of each label against all
other texts, its family-wise p within the layer (`engine.selectivity`), and its breadth
(sum t)^2 / sum t^2, t the mean activation above neutral's. On the second half the same AUC must
hold up; nothing was chosen there.

    specific   AUC >= .75, p < .05, breadth <= 1.5, and >= .70 on the second half
    valence    not specific; AUC of positive against negative texts >= .75 or <= .25, held up
    shared     neither; AUC of emotional against neutral texts >= .75, held up, breadth >= K/2

Valence is asked before shared: what fires on five negative emotions is broad, but no general
feature of emotion. `shuffled` counts what the same rules find when units of texts have each
other's labels (for p the area it needs): what a count is held against. There is no interval of a
count. Texts drawn with replacement stand in both halves or several times in one, which makes what
is chosen look confirmed, and features are not independent, so neither bootstrap nor binomial
interval would cover what it says.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emotui.core.engine.selectivity import (
    CONFIRMED_AREA,
    SPECIFIC_AREA,
    SPECIFIC_BREADTH,
    Halves,
    SelectivityMeter,
    areas,
    mid_ranks,
)

LEAST_FIRING = 5
LEAST_RATE = 0.10
NULL_DRAWS = 100
KINDS = ("specific", "valence", "shared")
TOP = 10
"""Features of a label whose firing is compared with that of others'."""
STRONGEST = 20
"""Texts on which it is looked where a feature is strongest."""
_CHUNK = 2048


@dataclass(frozen=True)
class Groups:
    """Who is who among n texts."""

    labels: Tensor
    """[n], long."""
    classes: int
    neutral: int | None
    positive: Tensor
    """[classes], bool."""
    negative: Tensor
    """[classes], bool."""
    first: Tensor
    """[n], bool: the half that choices are made on."""
    units: Tensor
    """[n], long: texts of one number are shuffled together."""


@dataclass(frozen=True)
class Kinds:
    """The kind of each of F features of one layer."""

    tested: Tensor
    """[F], bool: it fires often enough."""
    specific: Tensor
    """[F], long: the label it is specific to, or -1."""
    valence: Tensor
    """[F], long: 1 positive, -1 negative, 0 neither."""
    shared: Tensor
    """[F], bool."""
    area: Tensor
    """[classes, F], on the first half."""
    confirmed: Tensor
    """[F], on the second half, of the label with the largest area on the first."""
    valence_area: Tensor
    """[2, F]: AUC of positive against negative texts, on each half."""
    shared_area: Tensor
    """[2, F]: AUC of emotional against neutral texts, on each half."""
    shuffled: Tensor
    """[draws, 3 + classes]: features of each of `KINDS` under shuffled labels, and of these the
    specific ones of each label."""


def kinds_of(values: Tensor, groups: Groups, *, shuffles: int, seed: int) -> Kinds:
    """Measure features, `values` [n, F] activations of 0 and above."""
    first = groups.first
    fires = values > 0
    rates = torch.stack([_mean(fires[first & (groups.labels == k)]) for k in range(groups.classes)])
    tested = (fires[first].sum(dim=0) >= LEAST_FIRING) & (rates.amax(dim=0) >= LEAST_RATE)
    chosen = tested.nonzero().flatten()
    width = values.shape[1]
    specific = torch.full((width,), -1)
    valence, shared = torch.zeros(width, dtype=torch.long), torch.zeros(width, dtype=torch.bool)
    area, confirmed = torch.full((groups.classes, width), 0.5), torch.full((width,), 0.5)
    contrasts = torch.full((2, 2, width), 0.5)
    shuffled = torch.zeros(NULL_DRAWS, len(KINDS) + groups.classes, dtype=torch.float64)
    if not len(chosen):
        return Kinds(
            tested, specific, valence, shared, area, confirmed, contrasts[0], contrasts[1], shuffled
        )
    v = values[:, chosen]
    meter = SelectivityMeter(
        Halves(groups.labels, groups.classes, groups.neutral, first, groups.units),
        shuffles=shuffles,
        seed=seed,
    )
    meter.add(v)
    found = meter.result()
    specific[chosen] = torch.where(found.specific, found.emotion, -1)
    confirmed[chosen] = found.confirmed
    area[:, chosen] = areas(mid_ranks(v[first]), _members(groups.labels[first], groups.classes))
    contrasts[0][:, chosen], contrasts[1][:, chosen] = _contrasts(v, groups)
    sign, broad = _valence_and_shared(v, groups)
    valence[chosen] = torch.where(found.specific, 0, sign)
    shared[chosen] = broad & ~found.specific & (sign == 0)
    generator = torch.Generator().manual_seed(seed)
    critical = max(SPECIFIC_AREA, meter.critical_area())
    ranks = (mid_ranks(v[first]), mid_ranks(v[~first]))
    for draw in range(NULL_DRAWS):
        shuffled[draw] = _shuffled_counts(v, ranks, groups, critical, generator)
    return Kinds(
        tested, specific, valence, shared, area, confirmed, contrasts[0], contrasts[1], shuffled
    )


def _members(labels: Tensor, classes: int) -> Tensor:
    return torch.stack([labels == k for k in range(classes)])


def _mean(rows: Tensor) -> Tensor:
    return rows.float().mean(dim=0) if len(rows) else torch.zeros(rows.shape[1])


def _between(values: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Return the AUC [F] of texts `one` against texts `other`; 0.5 where either is empty."""
    inside = one | other
    if not bool(one.any()) or not bool(other.any()):
        return torch.full((values.shape[1],), 0.5)
    return areas(mid_ranks(values[inside]), one[inside][None])[0]


def _breadth(values: Tensor, groups: Groups, first: Tensor) -> Tensor:
    means = torch.stack(
        [_mean(values[first & (groups.labels == k)]) for k in range(groups.classes)]
    )
    floor = means.mean(dim=0) if groups.neutral is None else means[groups.neutral]
    above = (means - floor).clamp(min=0)
    breadth: Tensor = above.sum(0).square() / above.square().sum(0).clamp(min=1e-12)
    return breadth


def _contrasts(values: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
    """Return AUC [2, F], on each half, of positive against negative texts, and of emotional
    against neutral ones."""
    positive, negative = groups.positive[groups.labels], groups.negative[groups.labels]
    neutral = -1 if groups.neutral is None else groups.neutral
    calm = groups.labels == neutral
    sides = (groups.first, ~groups.first)
    return (
        torch.stack([_between(values, positive & side, negative & side) for side in sides]),
        torch.stack([_between(values, ~calm & side, calm & side) for side in sides]),
    )


def _valence_and_shared(values: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
    """Return the sign of valence [F], and whether a feature tells emotional from neutral [F]."""
    valence, emotional = _contrasts(values, groups)
    sign = torch.zeros(values.shape[1], dtype=torch.long)
    sign[(valence[0] >= SPECIFIC_AREA) & (valence[1] >= CONFIRMED_AREA)] = 1
    sign[(valence[0] <= 1 - SPECIFIC_AREA) & (valence[1] <= 1 - CONFIRMED_AREA)] = -1
    broad = _breadth(values, groups, groups.first) >= (groups.classes - 1) / 2
    return sign, (emotional[0] >= SPECIFIC_AREA) & (emotional[1] >= CONFIRMED_AREA) & broad


def _shuffled_counts(
    values: Tensor,
    ranks: tuple[Tensor, Tensor],
    groups: Groups,
    critical: float,
    generator: torch.Generator,
) -> Tensor:
    """Return how many features there are [3 + classes] when units have each other's labels.

    Of each kind, and specific ones by label; `ranks` are those of both halves.
    """
    names, of_text = torch.unique(groups.units, return_inverse=True)
    of_unit = torch.zeros(len(names), dtype=torch.long)
    of_unit[of_text] = groups.labels
    labels = of_unit[torch.randperm(len(names), generator=generator)][of_text]
    drawn = Groups(
        labels,
        groups.classes,
        groups.neutral,
        groups.positive,
        groups.negative,
        groups.first,
        groups.units,
    )
    first = groups.first
    best, label = areas(ranks[0], _members(labels[first], groups.classes)).max(0)
    second = areas(ranks[1], _members(labels[~first], groups.classes))
    held = second.gather(0, label[None])[0] >= CONFIRMED_AREA
    narrow = _breadth(values, drawn, first) <= SPECIFIC_BREADTH
    if groups.neutral is not None:
        narrow |= label == groups.neutral
    specific = (best >= critical) & held & narrow
    sign, broad = _valence_and_shared(values, drawn)
    counts = (specific, (sign != 0) & ~specific, broad & ~specific & (sign == 0))
    of_label = torch.bincount(label[specific], minlength=groups.classes)
    return torch.cat([torch.stack([kind.sum() for kind in counts]), of_label]).double()


def coactivation(values: Tensor, kinds: Kinds, groups: Groups) -> Tensor:
    """Return J [classes, classes]: mean Jaccard overlap of the texts that top features fire on.

    The ten tested features of largest AUC of each label, chosen on the first half, their firing
    taken on the second; a feature is never compared with itself. NaN without two features.
    """
    fires = (values[~groups.first] > 0).float()
    tested = int(kinds.tested.sum())
    top = [
        kinds.area[k].masked_fill(~kinds.tested, -1).topk(min(TOP, tested)).indices
        for k in range(groups.classes)
    ]
    found = torch.full((groups.classes, groups.classes), float("nan"))
    for a, one in enumerate(top):
        for b, other in enumerate(top):
            both = fires[:, one].T @ fires[:, other]
            either = fires[:, one].sum(0)[:, None] + fires[:, other].sum(0) - both
            apart = (one[:, None] != other) & (either > 0)
            if bool(apart.any()):
                found[a, b] = (both / either.clamp(min=1))[apart].mean()
    return found


def lexical_share(values: Tensor, on_words: Tensor, features: Tensor) -> float | None:
    """Return the share of the strongest activations of some features that are on emotion words.

    The 20 texts on which each feature is strongest; None without a feature.
    """
    chosen = features.nonzero().flatten()
    if not len(chosen):
        return None
    hits = total = 0.0
    for part in torch.split(chosen, _CHUNK):
        v = values[:, part]
        best = v.topk(min(STRONGEST, len(v)), dim=0)
        fired = best.values > 0
        words = on_words[:, part].gather(0, best.indices) & fired
        hits += float(words.sum())
        total += float(fired.sum())
    return hits / total if total else None
