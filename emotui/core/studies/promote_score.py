"""The arithmetic of promotion: scores, leaks and their intervals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emotui.core.studies.common.resampling import Interval, resampled
from emotui.core.studies.promote_results import CONTROLS, Kind, PromoteCurve
from emotui.core.studies.variants import Window


@dataclass(frozen=True)
class Plan:
    """The variants of every text, in their order: directions by strengths by windows."""

    rows: tuple[tuple[Kind, int], ...]
    """Kind of direction, and its number: of the emotion, or of the draw."""
    strengths: tuple[float, ...]
    windows: tuple[Window, ...]


@dataclass(frozen=True)
class Promotion:
    """Scores of the labels before and after."""

    clean: Tensor
    """[texts, labels]."""
    scores: Tensor
    """[texts, variants, labels], variants in the order of a plan."""


def promotion_score(before: Tensor, after: Tensor) -> Tensor:
    """Return Tak et al.'s score of shares before and after: -1 all lost, 0 nothing, 1 all won."""
    change = after - before
    room = torch.where(change > 0, 1 - before, before)
    score: Tensor = torch.where(change == 0, 0.0, change / room.clamp_min(1e-12))
    return score


def measure(
    found: Promotion,
    plan: Plan,
    emotions: tuple[str, ...],
    columns: list[int],
    generator: torch.Generator,
) -> tuple[PromoteCurve, ...]:
    """Return the curves of each direction and, for each emotion, of each control.

    `columns` are the indices of the emotions among the labels.
    """
    n, _, labels = found.scores.shape
    shape = (n, len(plan.rows), len(plan.strengths), len(plan.windows), labels)
    scores = found.scores.double().view(shape)
    answers, before = scores.argmax(dim=-1), found.clean.argmax(dim=1)
    p = scores.softmax(dim=-1) - found.clean.double().softmax(dim=1)[:, None, None, None]
    layers = tuple(window.center for window in plan.windows)
    curves = []
    for number, (emotion, column) in enumerate(zip(emotions, columns, strict=True)):
        was = (before == column).double()
        others = [other for other in range(labels) if other != column]
        margin = (
            _margin(scores, column, others)
            - _margin(found.clean.double(), column, others)[:, None, None, None]
        )
        rises = p[..., others].mean(dim=0).amax(dim=-1)
        for kind in dict.fromkeys(kind for kind, _ in plan.rows):
            control = kind in CONTROLS
            rows = [
                row
                for row, (one, which) in enumerate(plan.rows)
                if one == kind and (control or which == number)
            ]
            for s, strength in enumerate(plan.strengths):
                now = (answers[:, rows, s] == column).double()  # [texts, draws, windows]

                each = promotion_score(was.mean(), now.mean(dim=0))
                low, high = each.amin(dim=0), each.amax(dim=0)
                if not control:
                    low, high = _interval(was, now[:, 0], generator)
                curves.append(
                    PromoteCurve(
                        along=kind,
                        emotion=emotion,
                        strength=strength,
                        layer=layers,
                        before=float(was.mean()),
                        after=tuple(now.mean(dim=(0, 1)).tolist()),
                        score=tuple(each.mean(dim=0).tolist()),
                        low=tuple(low.tolist()),
                        high=tuple(high.tolist()),
                        margin=tuple(margin[:, rows, s].mean(dim=(0, 1)).tolist()),
                        leak=tuple(rises[rows, s].mean(dim=0).tolist()),
                    )
                )
    return tuple(curves)


def _interval(was: Tensor, now: Tensor, generator: torch.Generator) -> Interval:
    """Return the bounds of the score over resampled texts: `was` [n], `now` [n, windows]."""

    def score(counts: Tensor) -> Tensor:
        return promotion_score((counts @ was)[:, None] / len(was), counts @ now / len(was))

    return resampled(score, len(was), generator)


def _margin(scores: Tensor, column: int, others: list[int]) -> Tensor:
    """Return the score of a label less the mean of the others', of scores [..., labels]."""
    return scores[..., column] - scores[..., others].mean(dim=-1)
