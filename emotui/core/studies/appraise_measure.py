"""The arithmetic of appraisal modulation: signs of the ratings, and how well changes agree."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PERMUTATIONS = 1000
ASSIGNMENTS = 200
_ERRORS = 2.0
_NEWTON_STEPS = 100


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


def partial_of(values: Tensor, labels: Tensor, emotions: int, *, named: int) -> Ratings:
    """Return what each of the first `named` appraisals says of each emotion, all others held.

    `values` [n, appraisals] are all appraisals there are ratings of (METHODS 4), `labels` [n].
    Coefficients of a logistic regression of "is this emotion" on all of them, each of unit
    variance, with a penalty of half their squared sum (scikit-learn's C=1); decided beyond two
    standard errors (of the inverse Hessian, penalty included). Nothing is decided where the
    appraisals cannot be told apart, or of an emotion with fewer than two texts.
    """
    known = ~values.isnan().any(dim=1)
    x, y = values[known].double(), labels[known]
    n, count = x.shape
    found = Ratings(
        torch.zeros(named, emotions, dtype=torch.float64),
        torch.zeros(named, emotions, dtype=torch.bool),
    )
    x = x - x.mean(dim=0)
    spread = x.std(dim=0) if n > 1 else torch.zeros(count)
    if n <= count + 1 or not bool((spread > 0).all()):
        return found
    x = x / spread
    sizes = torch.linalg.svdvals(x)
    if float(sizes[-1]) <= 1e-6 * float(sizes[0]):
        return found
    for emotion in range(emotions):
        target = (y == emotion).double()
        if 2 <= float(target.sum()) < n:
            coefficients, errors = _logistic(x, target)
            found.difference[:, emotion] = coefficients[:named]
            found.decided[:, emotion] = coefficients[:named].abs() > _ERRORS * errors[:named]
    return found


def _logistic(inputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return coefficients [d] and their standard errors by Newton's method; the intercept is free.

    The objective is convex; steps are halved while they do not lower it.
    """
    x = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=inputs.dtype)], dim=1)
    penalty = torch.ones(x.shape[1], dtype=x.dtype)
    penalty[-1] = 0
    weights = torch.zeros(x.shape[1], dtype=x.dtype)

    def loss(at: Tensor) -> float:
        scores = x @ at
        summed = torch.nn.functional.softplus(scores).sum() - target @ scores
        return float(summed + (penalty * at.square()).sum() / 2)

    hessian = torch.eye(x.shape[1], dtype=x.dtype)
    for _ in range(_NEWTON_STEPS):
        p = (x @ weights).sigmoid()
        gradient = x.T @ (p - target) + penalty * weights
        hessian = (x * (p * (1 - p))[:, None]).T @ x + penalty.diag()
        step = torch.linalg.solve(hessian, gradient)
        size, before = 1.0, loss(weights)
        while loss(weights - size * step) > before and size > 1e-6:
            size /= 2
        weights = weights - size * step
        if float(step.abs().max()) < 1e-10:
            break
    errors = torch.linalg.inv(hessian).diagonal().clamp_min(0).sqrt()
    return weights[:-1], errors[:-1]


def agreement(effect: Tensor, ratings: Ratings) -> float | None:
    """Return the share of decided cells where `effect` [appraisals, emotions] has their sign.

    None without a decided cell. No effect at all agrees with nothing.
    """
    if not bool(ratings.decided.any()):
        return None
    same = effect.sign() == ratings.difference.sign()
    return float(same[ratings.decided].double().mean())


def permuted(
    effects: Tensor, ratings: Ratings, generator: torch.Generator, *, draws: int = PERMUTATIONS
) -> Tensor:
    """Return the agreement [draws, layers] where the emotions of the ratings change places.

    `effects` is [layers, appraisals, emotions]; the same draws at every layer. Whole emotions
    change places, so that what goes together stays together.
    """
    orders = torch.rand(draws, effects.shape[-1], generator=generator).argsort(dim=1)
    signs = ratings.difference.sign()[:, orders].movedim(1, 0)  # [draws, appraisals, emotions]
    decided = ratings.decided[:, orders].movedim(1, 0)
    same = [((one.sign() == signs) & decided).sum(dim=(1, 2)) for one in effects]
    return torch.stack(same, dim=1).double() / ratings.decided.sum()


def drawn_agreement(effects: Tensor, ratings: Ratings, generator: torch.Generator) -> Tensor:
    """Return the agreement [assignments, layers] with random directions for appraisals.

    `effects` is [layers, draws, emotions]; each of many assignments puts a draw, of either sign,
    in the place of each appraisal, the same at every layer.
    """
    shape = (ASSIGNMENTS, len(ratings.difference))
    rows = torch.randint(effects.shape[1], shape, generator=generator)
    signs = 2.0 * torch.randint(2, shape, generator=generator) - 1
    wanted = ratings.difference.sign()
    same = [
        (((signs[..., None] * one[rows]).sign() == wanted) & ratings.decided).sum(dim=(1, 2))
        for one in effects
    ]
    return torch.stack(same, dim=1).double() / ratings.decided.sum()


def reached(null: Tensor, found: float) -> float:
    """Return the p of a value against draws [n]: (1 + as high or higher) / (1 + n)."""
    return (1 + int((null >= found - 1e-12).sum())) / (1 + len(null))
