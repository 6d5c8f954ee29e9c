"""What a probe must beat before it is believed: shuffled labels and the bag of embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from emotui.core.records import Trust

SHUFFLES = 20
"""Permutations of the training labels that the chance level is drawn from."""
CHANCE_QUANTILE = 0.95
MARK_QUANTILE = 0.95
MARGIN_QUANTILE = 0.95
FLIPS = 2000
"""Draws of signs that the margin over the bag of embeddings is held against."""
_TEXTS_PER_BIN = 40
_MOST_BINS = 4


def class_recalls(correct: Tensor, labels: Tensor, *, classes: int) -> Tensor:
    """Return the mean of `correct` [..., n] within each class: [..., classes], NaN where empty.

    `correct` holds one number a row (1 right, 0 wrong, or a difference of two such).
    """
    members = one_hot(labels, classes).to(torch.float64)
    return (correct.to(torch.float64) @ members) / members.sum(dim=0)


def balanced_accuracy(predicted: Tensor, labels: Tensor, *, classes: int) -> Tensor:
    """Return the mean recall of `predicted` [..., n] over the classes that occur, [...]."""
    return class_recalls(predicted == labels, labels, classes=classes).nanmean(dim=-1)


def margin(
    predicted: Tensor, rival: Tensor, labels: Tensor, *, classes: int
) -> tuple[Tensor, Tensor]:
    """Return by how much `predicted` [..., n] beats `rival` [n] in balanced accuracy, and the
    standard error of that difference.

    The texts are the same, so the error is that of paired differences, class by class:
    sqrt(sum_k var_k / n_k) / K over the K classes that occur.
    """
    difference = (predicted == labels).to(torch.float64) - (rival == labels).to(torch.float64)
    counts = one_hot(labels, classes).to(torch.float64).sum(dim=0)
    mean = class_recalls(difference, labels, classes=classes)
    square = class_recalls(difference.square(), labels, classes=classes)
    variance = (square - mean.square()).clamp(min=0) / (counts - 1).clamp(min=1)
    error = variance.nansum(dim=-1).sqrt() / (counts > 0).sum()
    return mean.nanmean(dim=-1), error


def margin_needed(predicted: Tensor, rival: Tensor, labels: Tensor, *, classes: int) -> float:
    """Return how many standard errors a `margin` must reach before luck is ruled out at 5 %.

    95th percentile, over random signs of each text's difference, of the largest ratio of margin to
    error among the layers of `predicted` [layers, n] (the maximum statistic of Westfall and Young
    1993): where no layer beats the rival, one in twenty sites has any layer above it. A text's sign
    is the same at every layer, so what layers share is kept. Infinite where none ever differs.
    """
    difference = (predicted == labels).to(torch.float64) - (rival == labels).to(torch.float64)
    members = one_hot(labels, classes).to(torch.float64)
    counts = members.sum(dim=0)
    members, counts = members[:, counts > 0], counts[counts > 0]
    square = difference.square() @ members / counts
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (FLIPS, len(labels)), generator=generator).double().mul_(2).sub_(1)
    signs = signs.to(labels.device)
    largest = torch.full((FLIPS,), -torch.inf, dtype=torch.float64, device=labels.device)
    for layer, row in enumerate(difference):
        mean = signs @ (row[:, None] * members) / counts
        variance = (square[layer] - mean.square()).clamp(min=0) / (counts - 1).clamp(min=1)
        ratio = mean.sum(dim=-1) / variance.sum(dim=-1).sqrt()
        largest = torch.maximum(largest, ratio.nan_to_num(nan=-torch.inf))
    needed = float(largest.quantile(MARGIN_QUANTILE))
    return needed if needed > 0 else float("inf")


def chance_level(accuracies: Tensor) -> tuple[float, float]:
    """Return mean and 95th percentile, over shuffles, of the best layer of one site.

    `accuracies` is [layers, shuffles]: taking the best layer pays for looking at all of them.
    """
    best = accuracies.to(torch.float64).amax(dim=0)
    return float(best.mean()), float(best.quantile(CHANCE_QUANTILE))


def verdict(
    *,
    accuracy: float,
    shuffled_95: float,
    bag_margin: float,
    bag_error: float,
    needed: float,
    may_trust: bool,
) -> Trust:
    """Return whether a cell is trusted: above shuffled labels, and above the bag of embeddings by
    more than `needed` standard errors of that difference; lexical where only the first holds, or
    where the texts it is judged on cannot earn trust (not `may_trust`), being of the same source.
    """
    if accuracy <= shuffled_95:
        return "untrusted"
    return "trusted" if may_trust and bag_margin > needed * bag_error else "lexical"


def length_bins(lengths: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Return up to four bins of about equally many texts: longest length, and the texts in it.

    At least 40 texts a bin (or a single bin); equal lengths are never parted.
    """
    order = sorted(range(len(lengths)), key=lambda text: lengths[text])
    count = max(1, min(_MOST_BINS, len(order) // _TEXTS_PER_BIN))
    bins: list[tuple[int, list[int]]] = []
    start = 0
    for number in range(1, count + 1):
        end = round(len(order) * number / count)
        while end < len(order) and lengths[order[end]] == lengths[order[end - 1]]:
            end += 1
        if end > start:
            bins.append((lengths[order[end - 1]], order[start:end]))
            start = end
    return bins


def mark_above(highest: Tensor) -> float | None:
    """Return the 95th percentile of the highest z of neutral texts; None where none is finite."""
    finite = highest[torch.isfinite(highest)].to(torch.float64)
    return float(finite.quantile(MARK_QUANTILE)) if finite.numel() else None
