"""Which emotion an SAE feature singles out: areas under the curve, with a family-wise p.

The texts are dealt into two halves. On the first: for each feature the emotion with the largest
area under the curve against all other texts (Mann-Whitney), and p, the share of shufflings of the
labels in which the largest area of *any* feature and emotion of the family is as large (Westfall
and Young's maximum statistic, so p holds over hundreds of thousands of features). On the second:
the area of that same emotion, which no choice was made on. Texts of one unit (the two halves of a
pair) share a label and are shuffled as one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SHUFFLES = 500
LEVEL = 0.05
SPECIFIC_AREA = 0.75
CONFIRMED_AREA = 0.70
SPECIFIC_BREADTH = 1.5
_NORMAL_95 = 1.6448536
_CHUNK = 1024  # features ranked at a time


@dataclass(frozen=True)
class Halves:
    """Who is who among n texts; K labels."""

    labels: Tensor
    """[n], long, on the CPU as the others."""
    classes: int
    neutral: int | None
    """The label that the others are counted above; None counts them above the mean."""
    select: Tensor
    """[n], bool: the half that emotions are chosen on."""
    units: Tensor
    """[n], long: texts of equal number share a label and are shuffled together."""


@dataclass(frozen=True)
class Selectivity:
    """What was measured of F features."""

    emotion: Tensor
    """[F], long: the label with the largest area on the first half."""
    area: Tensor
    """[F], that area, from 0 to 1."""
    confirmed: Tensor
    """[F], the area of the same label on the second half."""
    p: Tensor
    """[F], over the whole family."""
    breadth: Tensor
    """[F], effective number of emotions above neutral: (sum a)^2 / sum a^2 of mean activations."""
    named: Tensor
    """[F], bool: p < 0.05, and above chance on the second half (one-sided 5 %)."""
    specific: Tensor
    """[F], bool: area >= 0.75 with p < 0.05, at most 1.5 emotions, and 0.70 on the second half."""


def mid_ranks(values: Tensor) -> Tensor:
    """Return the ranks from 1 on of each column of `values` [n, F]; ties share their mean."""
    ordered, order = values.sort(dim=0)
    rows = torch.arange(len(values), device=values.device).unsqueeze(1).expand_as(ordered)
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    ends = torch.ones_like(begins)
    ends[:-1] = begins[1:]
    first = torch.where(begins, rows, 0).cummax(dim=0).values
    last = torch.where(ends, rows, len(values)).flip(0).cummin(dim=0).values.flip(0)
    middle = (first + last).to(torch.float32) / 2 + 1
    return torch.empty_like(middle).scatter_(0, order, middle)


def areas(ranks: Tensor, members: Tensor) -> Tensor:
    """Return areas under the curve [..., K, F] of `members` [..., K, n] by `ranks` [n, F].

    Mann-Whitney: (R - k(k + 1) / 2) / (k (n - k)), with R the sum of the k members' ranks; 0.5
    where a label has no text, or all. In float32: sums of ranks of up to 4,000 texts are exact.
    """
    inside = members.to(torch.float32)
    count = inside.sum(dim=-1, keepdim=True)
    rest = members.shape[-1] - count
    found = (inside @ ranks - count * (count + 1) / 2) / (count * rest).clamp(min=1)
    return torch.where((count > 0) & (rest > 0), found, 0.5)


def _membership(labels: Tensor, classes: int) -> Tensor:
    return torch.stack([labels == label for label in range(classes)])


class SelectivityMeter:
    """Measures features chunk by chunk; what is kept grows by five numbers a feature.

    Every chunk is judged under the same shufflings, so that the maximum is over the family.
    """

    def __init__(
        self,
        halves: Halves,
        *,
        device: torch.device | None = None,
        shuffles: int = SHUFFLES,
        seed: int = 0,
    ) -> None:
        self._halves = halves
        self._device = device or torch.device("cpu")
        first = halves.select
        self._first, self._second = first.to(self._device), (~first).to(self._device)
        self._members = _membership(halves.labels[first], halves.classes).to(self._device)
        self._held_out = _membership(halves.labels[~first], halves.classes).to(self._device)
        self._shuffled = self._shufflings(shuffles, seed).to(self._device)
        self._highest = torch.zeros(shuffles, device=self._device)
        self._parts: list[tuple[Tensor, ...]] = []

    def _shufflings(self, shuffles: int, seed: int) -> Tensor:
        """Return [shuffles, K, n first half] memberships with the units' labels shuffled."""
        labels, units = self._halves.labels, self._halves.units
        chosen = self._halves.select
        names, of_text = torch.unique(units[chosen], return_inverse=True)
        of_unit = torch.zeros(len(names), dtype=torch.long)
        of_unit[of_text] = labels[chosen]
        generator = torch.Generator().manual_seed(seed)
        return torch.stack(
            [
                _membership(
                    of_unit[torch.randperm(len(names), generator=generator)][of_text],
                    self._halves.classes,
                )
                for _ in range(shuffles)
            ]
        )

    def add(self, features: Tensor) -> None:
        """Measure further features, activations [n, F], in chunks."""
        for start in range(0, features.shape[1], _CHUNK):
            self._add(features[:, start : start + _CHUNK].to(self._device, torch.float32))

    def _add(self, features: Tensor) -> None:
        ranks = mid_ranks(features[self._first])
        best, emotion = areas(ranks, self._members).max(dim=0)
        flat = self._shuffled.flatten(0, 1)
        null = areas(ranks, flat).view(*self._shuffled.shape[:2], -1)
        self._highest = torch.maximum(self._highest, null.amax(dim=(1, 2)))
        second = areas(mid_ranks(features[self._second]), self._held_out)
        confirmed = second.gather(0, emotion[None])[0]
        means = torch.stack([features[self._first][m].mean(dim=0) for m in self._members])
        means = means.nan_to_num()
        neutral = self._halves.neutral
        floor = means.mean(dim=0) if neutral is None else means[neutral]
        above = (means - floor).clamp(min=0)
        breadth = above.sum(0).square() / above.square().sum(0).clamp(min=1e-12)
        self._parts.append((emotion.cpu(), best.cpu(), confirmed.cpu(), breadth.cpu()))

    def critical_area(self) -> float:
        """Return the area that a feature must exceed for p < 0.05, of the features added so far."""
        highest = self._highest.cpu().sort(descending=True).values
        allowed = int(LEVEL * (1 + len(highest)) - 1e-9) - 1
        return float(highest[allowed]) if allowed >= 0 else 1.0

    def result(self) -> Selectivity:
        """Return what was measured, in the order in which features were added."""
        columns = [torch.cat(column) for column in zip(*self._parts, strict=True)]
        emotion, area, confirmed, breadth = columns
        highest = self._highest.cpu().sort().values
        # float32 areas that are equal may differ in the last bit by the order of summation.
        as_large = len(highest) - torch.searchsorted(highest, area - 1e-6)
        p = (1 + as_large) / (1 + len(highest))
        chance = 0.5 + _NORMAL_95 * self._held_out_error()[emotion]
        named = (p < LEVEL) & (confirmed > chance)
        neutral = self._halves.neutral
        narrow = breadth <= SPECIFIC_BREADTH
        if neutral is not None:  # breadth counts emotions only, so it says nothing of neutral
            narrow |= emotion == neutral
        strong = (area >= SPECIFIC_AREA) & (confirmed >= CONFIRMED_AREA)
        return Selectivity(emotion, area, confirmed, p, breadth, named, named & narrow & strong)

    def _held_out_error(self) -> Tensor:
        """Return [K], the sd of an area by chance on the second half, without ties (the widest).

        sqrt((n + 1) / (12 k (n - k))) over units, which are what is independent.
        """
        held_out = ~self._halves.select
        texts = int(held_out.sum())
        share = len(set(self._halves.units[held_out].tolist())) / max(texts, 1)
        count = self._held_out.sum(dim=1).cpu().double() * share
        n = texts * share
        return ((n + 1) / (12 * (count * (n - count)).clamp(min=1))).sqrt().float()
