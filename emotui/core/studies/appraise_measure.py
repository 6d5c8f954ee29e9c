"""The arithmetic of appraisal modulation: signs of the ratings, and how well changes agree."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

PERMUTATIONS = 1000
ASSIGNMENTS = 200
_ERRORS = 2.0


@dataclass(frozen=True)
class Ratings:
    """What goes with which emotion."""

    difference: Tensor
    """[appraisals, emotions], float64: mean rating less the mean over emotions."""
    decided: Tensor
    """[appraisals, emotions], bool: more than two standard errors from none."""


def ratings_of(values: Tensor, labels: Tensor, emotions: int) -> Ratings:
    """Return the ratings [n, appraisals] of texts by label [n]; NaN are left out.

    An emotion with fewer than two ratings of an appraisal decides nothing there.
    """
    difference = torch.zeros(values.shape[1], emotions, dtype=torch.float64)
    error = torch.full_like(difference, float("inf"))
    for emotion in range(emotions):
        for appraisal in range(values.shape[1]):
            some = values[labels == emotion, appraisal].double()
            some = some[~some.isnan()]
            if len(some) > 1:
                difference[appraisal, emotion] = some.mean()
                error[appraisal, emotion] = some.std() / len(some) ** 0.5
    known = error.isfinite()
    centre = (difference * known).sum(dim=1) / known.sum(dim=1).clamp_min(1)
    difference = torch.where(known, difference - centre[:, None], 0.0)
    return Ratings(difference, known & (difference.abs() > _ERRORS * error))


def partial_of(values: Tensor, labels: Tensor, emotions: int) -> Ratings:
    """Return what each appraisal says of each emotion with the others held, from the same ratings.

    Coefficients of an ordinary least squares regression of "is this emotion" on all appraisals,
    each of unit variance; decided beyond two standard errors. Nothing is decided where the
    appraisals cannot be told apart.
    """
    known = ~values.isnan().any(dim=1)
    x, y = values[known].double(), labels[known]
    n, count = x.shape
    nothing = torch.zeros(count, emotions, dtype=torch.float64)
    x = x - x.mean(dim=0)
    spread = x.std(dim=0) if n > 1 else torch.zeros(count)
    if n <= count + 1 or not bool((spread > 0).all()):
        return Ratings(nothing, nothing.bool())
    x = x / spread
    sizes = torch.linalg.svdvals(x)
    if float(sizes[-1]) <= 1e-6 * float(sizes[0]):
        return Ratings(nothing, nothing.bool())
    target = one_hot(y, emotions).double()
    target = target - target.mean(dim=0)
    inverse = torch.linalg.inv(x.T @ x)
    beta = inverse @ (x.T @ target)
    variance = (target - x @ beta).square().sum(dim=0) / (n - count - 1)
    error = (inverse.diagonal()[:, None] * variance).sqrt()
    return Ratings(beta, beta.abs() > _ERRORS * error)


def agreement(effect: Tensor, ratings: Ratings) -> float | None:
    """Return the share of decided cells where `effect` [appraisals, emotions] has their sign.

    None without a decided cell. No effect at all agrees with nothing.
    """
    if not bool(ratings.decided.any()):
        return None
    same = effect.sign() == ratings.difference.sign()
    return float(same[ratings.decided].double().mean())


def permutation_p(effect: Tensor, ratings: Ratings, generator: torch.Generator) -> float | None:
    """Return how often the emotions of the ratings, permuted, agree as well or better.

    (1 + count) / (1 + permutations); whole emotions change places, so that what goes together
    stays together.
    """
    found = agreement(effect, ratings)
    if found is None:
        return None
    emotions = effect.shape[1]
    orders = torch.rand(PERMUTATIONS, emotions, generator=generator).argsort(dim=1)
    signs = ratings.difference.sign()[:, orders]  # [appraisals, permutations, emotions]
    decided = ratings.decided[:, orders]
    same = ((effect.sign()[:, None] == signs) & decided).sum(dim=(0, 2))
    share = same.double() / ratings.decided.sum()
    return (1 + int((share >= found - 1e-12).sum())) / (1 + PERMUTATIONS)


def random_agreement(
    effects: Tensor, ratings: Ratings, generator: torch.Generator
) -> tuple[float | None, float | None]:
    """Return mean and 95th percentile of agreement with random directions for appraisals.

    `effects` is [draws, emotions]; each of many assignments puts a draw, of either sign, in the
    place of each appraisal.
    """
    if not bool(ratings.decided.any()):
        return None, None
    shape = (ASSIGNMENTS, len(ratings.difference))
    rows = torch.randint(len(effects), shape, generator=generator)
    signs = 2.0 * torch.randint(2, shape, generator=generator) - 1
    drawn = signs[..., None] * effects[rows]  # [assignments, appraisals, emotions]
    same = (drawn.sign() == ratings.difference.sign()) & ratings.decided
    values = same.sum(dim=(1, 2)).double() / ratings.decided.sum()
    return float(values.mean()), float(values.quantile(0.95))
