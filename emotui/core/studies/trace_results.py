"""What the study `trace` finds, and how it follows from the ablations."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor

from emotui.core.studies.common.statistics import pearson
from emotui.core.studies.trace_measures import (
    DRAWS,
    LEVEL,
    Balance,
    Effects,
    Judged,
    judged,
    too_few,
)

_VERDICTS = {1: "causal", -1: "suppressor", 0: ""}
TOP = 8
"""Features of a set whose effect on other emotions and on neutral texts is measured."""


class TracedFeature(msgspec.Struct, frozen=True, kw_only=True):
    """One shortlisted feature."""

    feature: str
    emotion: str
    phase: int
    layer: int
    estimate: float
    """By attribution, on the texts it was ablated in."""
    effect: float
    """Mean of the margin before less after."""
    low: float
    high: float
    """95 % bootstrap interval over texts."""
    p: float
    """Sign-flip test of an effect of zero; exact up to 24 texts."""
    control: float | None
    """Effect of its control, the farthest from zero of several; None where nothing is alike."""
    q: float | None
    """Least false discovery rate at which it counts as beyond its controls; 1 where one of these
    has the larger effect or p does not hold, None without any."""
    flips: float
    """Share of the texts whose answer changed."""
    relative: float | None
    """Effect over that of a random direction of the same norm at the same layer."""
    verdict: str
    """`causal`, `suppressor`, `unmatched` (nothing alike to hold it against) or ""."""


class TraceCell(msgspec.Struct, frozen=True, kw_only=True):
    """One emotion in one phase."""

    emotion: str
    phase: int
    texts: int
    judged: bool
    """Whether there are texts enough for any feature to be called causal."""
    listed: int
    paired: int
    """Listed features that have controls."""
    balance: Balance
    """How alike features and controls are in firing rate and log size."""
    overlooked: int
    causal: int
    suppressors: int
    control_low: float | None
    """The controls' effects: smallest and largest mean; None without any."""
    control_high: float | None
    largest: float
    top_share: float | None
    """The five largest effects over all positive ones; None with too few texts."""
    participation: float | None
    """Participation ratio of the positive effects."""
    missed: int
    """Overlooked features with an effect as large as the smallest called causal here."""
    attribution_r: float | None
    """Pearson's r of estimate and exact effect over all ablated features."""
    random: float | None
    """Mean absolute effect of random directions."""
    joint: tuple[float | None, ...]
    """Effect of the 1, 2, 4, ... strongest that have controls together, in other texts; None
    where there are fewer."""
    joint_controls: tuple[float | None, ...]
    """That of one control of each."""
    summed: tuple[float | None, ...]
    """The sum of their single effects."""
    others: float | None
    """Mean effect of the eight strongest on the other emotions' margins in their texts."""
    divergence: float | None
    """KL of the next token in neutral texts, the eight strongest ablated; None without any."""


class TraceResult(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    emotions: dict[str, int]
    """Emotion to texts that features were ablated in."""
    too_few: tuple[str, ...]
    """Emotions with too few texts for anything to be called causal."""
    controls: int
    """Controls of each feature that has any."""
    level: float
    """Bar of q, over all emotions and phases."""
    draws: int
    """Bootstrap draws of each interval."""
    phases: int
    boundaries: tuple[int, ...]
    joint_sizes: tuple[int, ...]
    cells: tuple[TraceCell, ...]
    features: tuple[TracedFeature, ...]
    overlap: tuple[tuple[float | None, ...], ...]
    """[emotions, emotions]: Jaccard overlap of the causal features; None where neither has any."""
    cross: tuple[tuple[float, ...], ...]
    """[emotions, emotions]: effect of the eight strongest of the last phase (rows) on the own
    margin in texts of each emotion (columns)."""
    answered: tuple[tuple[int, ...], ...]
    """[emotions, labels]: the model's answers to the texts of each."""
    labels: tuple[str, ...]


@dataclass(frozen=True)
class CellRuns:
    """One emotion in one phase as it was run; n texts."""

    emotion: int
    phase: int
    features: tuple[tuple[int, int], ...]
    controls: tuple[tuple[tuple[int, int], ...], ...]
    """Of each feature; () for none."""
    balance: Balance
    effects: Effects
    estimates: Tensor
    """[n, shortlist + controls + overlooked]."""
    exact: Tensor
    """Likewise, the effects."""
    flipped: Tensor
    """[shortlist]."""
    random: Tensor
    """[SAEs], NaN where none was drawn."""
    size: Tensor
    """[SAEs]: norm of the random directions."""
    written: Tensor
    """[shortlist]: mean norm of what the feature writes."""


@dataclass(frozen=True)
class TraceRuns:
    """All runs."""

    emotions: tuple[str, ...]
    labels: tuple[str, ...]
    layers: tuple[int, ...]
    """Of each SAE."""
    names: tuple[str, ...]
    """What stands before `L` in its features' names."""
    boundaries: tuple[int, ...]
    phases: int
    joint: tuple[int, ...]
    cells: tuple[CellRuns, ...]
    own: list[list[Tensor]]
    """Of each cell: [2, sizes] of each text, the strongest with controls, and their controls."""
    cross: Tensor
    """[cells, emotions]."""
    divergence: Tensor
    """[cells]."""
    answers: Tensor
    """[texts]: the model's answer, of `labels`."""
    answered_for: Tensor
    """[texts]: the emotion, of `emotions`."""


def measure(runs: TraceRuns, *, generator: torch.Generator) -> TraceResult:
    """Judge every emotion and phase."""
    found = judged([cell.effects for cell in runs.cells], generator)
    causal: list[set[tuple[int, int]]] = [set() for _ in runs.emotions]
    for cell, one in zip(runs.cells, found, strict=True):
        signs = one.sign.tolist()
        causal[cell.emotion] |= {
            feature for feature, sign in zip(cell.features, signs, strict=True) if sign > 0
        }
    last = [n for n, cell in enumerate(runs.cells) if cell.phase == runs.phases - 1]
    texts = {name: int((runs.answered_for == n).sum()) for n, name in enumerate(runs.emotions)}
    return TraceResult(
        emotions=texts,
        too_few=tuple(name for name, n in texts.items() if too_few(n)),
        controls=runs.cells[0].effects.controls.shape[2] if runs.cells else 0,
        level=LEVEL,
        draws=DRAWS,
        phases=runs.phases,
        boundaries=runs.boundaries,
        joint_sizes=runs.joint,
        cells=tuple(_cell(runs, n, one) for n, one in enumerate(found)),
        features=tuple(
            feature for n, one in enumerate(found) for feature in _features(runs, n, one)
        ),
        overlap=tuple(
            tuple(len(a & b) / len(a | b) if a | b else None for b in causal) for a in causal
        ),
        cross=tuple(tuple(runs.cross[n].tolist()) for n in last),
        answered=tuple(
            tuple(
                torch.bincount(
                    runs.answers[runs.answered_for == n], minlength=len(runs.labels)
                ).tolist()
            )
            for n in range(len(runs.emotions))
        ),
        labels=runs.labels,
    )


def _features(runs: TraceRuns, number: int, one: Judged) -> list[TracedFeature]:
    cell = runs.cells[number]
    found = []
    for row, (sae, index) in enumerate(cell.features):
        expected = float(cell.random[sae]) / float(cell.size[sae]) * float(cell.written[row])
        sign = int(one.sign[row])
        found.append(
            TracedFeature(
                feature=f"{runs.names[sae]}L{runs.layers[sae]}/{index}",
                emotion=runs.emotions[cell.emotion],
                phase=cell.phase + 1,
                layer=runs.layers[sae],
                estimate=float(cell.estimates[:, row].mean()),
                effect=float(one.mean[row]),
                low=float(one.low[row]),
                high=float(one.high[row]),
                p=float(one.p[row]),
                control=_known(one.control[row]),
                q=_known(one.q[row]),
                flips=float(cell.flipped[row]),
                relative=float(one.mean[row]) / expected if expected > 0 else None,
                verdict=_VERDICTS[sign] if cell.controls[row] else "unmatched",
            )
        )
    return sorted(found, key=lambda feature: -feature.effect)


def _cell(runs: TraceRuns, number: int, one: Judged) -> TraceCell:
    cell = runs.cells[number]
    exact = cell.exact.mean(dim=0)
    r = None
    if len(exact) > 2:
        value = float(pearson(cell.estimates.mean(dim=0)[:, None], exact[:, None])[0])
        r = value if value == value else None
    joint = torch.stack(runs.own[number]).mean(dim=0)
    paired = torch.tensor([bool(own) for own in cell.controls], dtype=torch.bool)
    ordered = one.mean[paired].sort(descending=True).values
    controls = one.control[paired]
    others = [n for n in range(len(runs.emotions)) if n != cell.emotion]
    divergence = float(runs.divergence[number])
    drawn = cell.random[~cell.random.isnan()]
    return TraceCell(
        emotion=runs.emotions[cell.emotion],
        phase=cell.phase + 1,
        texts=len(cell.effects.shortlist),
        judged=not too_few(len(cell.effects.shortlist)),
        listed=len(cell.features),
        paired=len(ordered),
        balance=cell.balance,
        overlooked=cell.effects.overlooked.shape[1],
        causal=int((one.sign > 0).sum()),
        suppressors=int((one.sign < 0).sum()),
        control_low=float(controls.min()) if len(controls) else None,
        control_high=float(controls.max()) if len(controls) else None,
        largest=float(one.mean.max()) if len(one.mean) else 0.0,
        top_share=one.top_share,
        participation=one.participation,
        missed=one.missed,
        attribution_r=r,
        random=float(drawn.mean()) if len(drawn) else None,
        joint=_where_enough(joint[0], runs.joint, len(ordered)),
        joint_controls=_where_enough(joint[1], runs.joint, len(ordered)),
        summed=_where_enough(
            torch.stack([ordered[:k].sum() for k in runs.joint]), runs.joint, len(ordered)
        ),
        others=float(runs.cross[number, others].mean()) if others else None,
        divergence=divergence if divergence == divergence else None,
    )


def _where_enough(values: Tensor, sizes: tuple[int, ...], count: int) -> tuple[float | None, ...]:
    """Return a value for each size of a set, None for one of more features than there are."""
    return tuple(
        value if size <= count else None for value, size in zip(values.tolist(), sizes, strict=True)
    )


def _known(value: Tensor) -> float | None:
    return None if bool(value.isnan()) else float(value)
