"""From what every change gave, text by text, to curves over layers and their agreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from emotui.core.studies.appraise_measure import (
    Ratings,
    agreement,
    drawn_agreement,
    permuted,
    reached,
)
from emotui.core.studies.appraise_results import Against, Agreement, AppraiseCurve, Projection
from emotui.core.studies.common.chunks import Chunks
from emotui.core.studies.promote_results import CONTROLS, Control
from emotui.core.studies.variants import Window


@dataclass(frozen=True)
class Condition:
    """One change of appraisals."""

    changed: tuple[tuple[int, str], ...]
    """Sign and name of each."""
    kept: tuple[str, ...]

    @property
    def name(self) -> str:
        """As it is written: `+pleasantness -other_responsblt`."""
        return " ".join(f"{'+' if sign > 0 else '-'}{name}" for sign, name in self.changed)


@dataclass(frozen=True)
class Plan:
    """The variants of every text, in their order: directions by strengths by windows."""

    rows: tuple[tuple[Projection | Control, int, int], ...]
    """Kind, number of the condition or of the draw, and sign."""
    conditions: tuple[Condition, ...]
    strengths: tuple[float, ...]
    windows: tuple[Window, ...]
    appraisals: tuple[str, ...]


def curves_of(stage: Chunks, plan: Plan, fitted: Chunks, labels: int) -> tuple[AppraiseCurve, ...]:
    """Return what each change does to the answers and to the readings."""
    shape = (-1, len(plan.rows), len(plan.strengths), len(plan.windows))
    scores = stage.joined("scores").double().view(*shape, labels)
    answers = one_hot(scores.argmax(dim=-1), labels).double().mean(dim=0)
    clean = one_hot(stage.joined("clean").argmax(dim=1), labels).double().mean(dim=0)
    probability = scores.softmax(dim=-1).mean(dim=0)
    each = stage.joined("shift").double().view(*shape, len(plan.appraisals))
    # In standard deviations of the clean readings of the layer behind each window.
    spread = stage.joined("read").double().std(dim=0)
    last = len(spread) - 1
    behind = [min(window.layers[-1] + 1, last) for window in plan.windows]
    known = torch.tensor([window.layers[-1] < last for window in plan.windows])
    scale = torch.where(spread > 0, spread, float("nan"))[behind]
    scale[~known] = float("nan")
    curves = []
    for kind in dict.fromkeys(kind for kind, _, _ in plan.rows):
        control = kind in CONTROLS
        groups = [
            [row for row, (one, n, _) in enumerate(plan.rows) if one == kind and n == number]
            for number in range(len(plan.conditions))
        ]
        if control:
            groups = [[row for row, (one, _, _) in enumerate(plan.rows) if one == kind]]
        for number, rows in enumerate(groups):
            condition = None if control else plan.conditions[number]
            left = None if control else fitted.joined(f"{kind} surviving")[:, number]
            for s, strength in enumerate(plan.strengths):
                share = answers[rows, s]
                shift = each[:, rows, s].mean(dim=0) / scale
                if control:
                    shift = shift.abs()
                curves.append(
                    AppraiseCurve(
                        projection=kind,
                        condition=condition.name if condition else f"random, {kind}",
                        changed=tuple(name for _, name in condition.changed) if condition else (),
                        kept=condition.kept if condition else (),
                        strength=strength,
                        layer=tuple(window.center for window in plan.windows),
                        share=_rows(share.mean(dim=0)),
                        probability=_rows(probability[rows, s].mean(dim=0)),
                        moved=tuple(((share - clean).abs().sum(dim=-1) / 2).mean(dim=0).tolist()),
                        surviving=tuple(
                            None if left is None else _number(min_of(left, window.layers))
                            for window in plan.windows
                        ),
                        shifts=tuple(
                            tuple(map(_number, row)) for row in shift.mean(dim=0).tolist()
                        ),
                    )
                )
    return tuple(curves)


def min_of(values: Tensor, rows: Sequence[int]) -> float:
    """Return the least of some values; NaN where one of them is."""
    return float(values[list(rows)].min())


def _rows(values: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, values.tolist()))


def _number(value: float) -> float | None:
    return value if value == value else None


def agreements_of(
    stage: Chunks,
    plan: Plan,
    signs: Mapping[Against, Ratings],
    columns: list[int],
    generator: torch.Generator,
) -> tuple[Agreement, ...]:
    """Return how the effects of single appraisals agree with the ratings, layer by layer.

    The effect of an appraisal on an emotion is its mean probability where the appraisal is raised
    less that where it is lowered. `signs` are what it is held against; `columns` are the emotions
    among the labels.
    """
    probability = (
        stage.joined("scores")
        .double()
        .softmax(dim=-1)
        .mean(dim=0)
        .view(len(plan.rows), len(plan.strengths), len(plan.windows), -1)
    )[..., columns]

    def effects(pairs: Sequence[tuple[int, int]], s: int, window: int) -> Tensor:
        rows = [probability[up, s, window] - probability[down, s, window] for up, down in pairs]
        found: Tensor = torch.stack(rows)
        return torch.where(found.abs() > 1e-12, found, 0.0)  # rounding has no sign

    numbered = {row: n for n, row in enumerate(plan.rows)}
    draws = {
        control: [
            (numbered[control, n, 1], numbered[control, n, -1])
            for n in range(sum(kind == control for kind, _, _ in plan.rows) // 2)
        ]
        for control in CONTROLS
    }
    found = []
    for projection in (p for p in ("projected", "released") if (p, 0, 1) in numbered):
        pairs = [
            (
                numbered[projection, _single(plan, 1, name), 1],
                numbered[projection, _single(plan, -1, name), 1],
            )
            for name in plan.appraisals
        ]
        for (s, strength), (against, ratings) in product(enumerate(plan.strengths), signs.items()):
            at_each = torch.stack([effects(pairs, s, n) for n in range(len(plan.windows))])
            random: dict[str, Tensor] = {
                control: torch.stack([effects(those, s, n) for n in range(len(plan.windows))])
                for control, those in draws.items()
            }
            found.append(
                _agreement(
                    at_each,
                    random,
                    ratings,
                    generator,
                    projection="projected" if projection == "projected" else "released",
                    against=against,
                    strength=strength,
                    layers=tuple(window.center for window in plan.windows),
                )
            )
    return tuple(found)


def _agreement(
    effects: Tensor,
    random: Mapping[str, Tensor],
    ratings: Ratings,
    generator: torch.Generator,
    *,
    projection: Projection,
    against: Against,
    strength: float,
    layers: tuple[int, ...],
) -> Agreement:
    """Return the agreement of effects [layers, appraisals, emotions], beside random ones
    [layers, draws, emotions]: at each layer, and at the best against the best of every draw.
    """
    cells = int(ratings.decided.sum())
    if not cells:
        nothing = (None,) * len(layers)
        return Agreement(
            projection=projection,
            against=against,
            strength=strength,
            layer=layers,
            cells=0,
            agreement=nothing,
            p=nothing,
            isotropic=nothing,
            isotropic_95=nothing,
            covariance=nothing,
            covariance_95=nothing,
        )
    values = [agreement(one, ratings) or 0.0 for one in effects]
    null = permuted(effects, ratings, generator)
    drawn = {name: drawn_agreement(those, ratings, generator) for name, those in random.items()}
    high = {name: one.quantile(0.95, dim=0) for name, one in drawn.items()}
    highest = {name: float(one.amax(dim=1).quantile(0.95)) for name, one in drawn.items()}
    return Agreement(
        projection=projection,
        against=against,
        strength=strength,
        layer=layers,
        cells=cells,
        agreement=tuple(values),
        p=tuple(reached(null[:, n], value) for n, value in enumerate(values)),
        isotropic=tuple(drawn["isotropic"].mean(dim=0).tolist()),
        isotropic_95=tuple(high["isotropic"].tolist()),
        covariance=tuple(drawn["covariance"].mean(dim=0).tolist()),
        covariance_95=tuple(high["covariance"].tolist()),
        best_p=reached(null.amax(dim=1), max(values)),
        isotropic_best_95=highest["isotropic"],
        covariance_best_95=highest["covariance"],
    )


def _single(plan: Plan, sign: int, name: str) -> int:
    return next(
        n for n, condition in enumerate(plan.conditions) if condition.changed == ((sign, name),)
    )
