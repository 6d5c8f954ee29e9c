"""Tests of paired differences and of counts; float64 on the CPU, each equal to scipy's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from emotui.core.studies.common.statistics import ranks


def wilcoxon(differences: Tensor) -> float | None:
    """Return the two-sided p of Wilcoxon's signed-rank test of [n], by the normal approximation.

    Differences of zero are left out and ties corrected for, without continuity correction: scipy's
    `wilcoxon(method="asymptotic", correction=False)`. None where all are zero.
    """
    values = differences.double().cpu()
    values = values[values != 0]
    if not len(values):
        return None
    rank = ranks(values.abs())
    n = len(values)
    above = float(rank[values > 0].sum())
    _, counts = torch.unique(values.abs(), return_counts=True)
    ties = float((counts.double() ** 3 - counts.double()).sum())
    variance = n * (n + 1) * (2 * n + 1) / 24 - ties / 48
    z = (above - n * (n + 1) / 4) / math.sqrt(variance)
    return math.erfc(abs(z) / math.sqrt(2))


def holm(p: list[float | None]) -> list[float | None]:
    """Return p values corrected by Holm's method; None stay None and are not counted."""
    known = sorted((value, place) for place, value in enumerate(p) if value is not None)
    corrected: list[float | None] = [None] * len(p)
    largest = 0.0
    for number, (value, place) in enumerate(known):
        largest = max(largest, min(1.0, value * (len(known) - number)))
        corrected[place] = largest
    return corrected


def chi_square(observed: Tensor, expected: Tensor) -> tuple[float, float | None]:
    """Return the statistic of counts [k] against expected counts, and its p with k - 1 degrees.

    As scipy's `chisquare`. Cells where nothing is expected are left out; p is None with fewer than
    two.
    """
    seen, wanted = observed.double().cpu(), expected.double().cpu()
    some = wanted > 0
    statistic = float(((seen - wanted).square()[some] / wanted[some]).sum())
    freedom = int(some.sum()) - 1
    if freedom < 1:
        return statistic, None
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return statistic, float(torch.special.gammaincc(half[0], half[1]))


def cohen_d(differences: Tensor) -> float | None:
    """Return the mean of paired differences [n] over their sd; None where they do not vary."""
    values = differences.double()
    if len(values) < 2 or not float(values.std()):
        return None
    return float(values.mean() / values.std())
