"""What the study `trace` finds, and how it follows from the ablations."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor

from emotui.core.studies.common.statistics import pearson
from emotui.core.studies.trace_measures import Effects, Judged, judged

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
    q: float
    flips: float
    """Share of the texts whose answer changed."""
    relative: float | None
    """Effect over that of a random direction of the same norm at the same layer."""
    verdict: str
    """`causal`, `suppressor` or ""."""


class TraceCell(msgspec.Struct, frozen=True, kw_only=True):
    """One emotion in one phase."""

    emotion: str
    phase: int
    texts: int
    listed: int
    matched: int
    overlooked: int
    causal: int
    suppressors: int
    null_low: float
    null_high: float
    largest: float
    top_share: float | None
    """The five largest effects over all positive ones."""
    participation: float | None
    """Participation ratio of the positive effects."""
    missed: int
    """Overlooked features with an effect beyond the null."""
    attribution_r: float | None
    """Pearson's r of estimate and exact effect over all ablated features."""
    random: float | None
    """Mean absolute effect of random directions."""
    joint: tuple[float, ...]
    """Effect of the 1, 2, 4, ... strongest together, in other texts."""
    joint_matched: tuple[float, ...]
    """That of as many matched features."""
    summed: tuple[float, ...]
    """The sum of their single effects."""
    others: float | None
    """Mean effect of the eight strongest on the other emotions' margins in their texts."""
    divergence: float | None
    """KL of the next token in neutral texts, the eight strongest ablated; None without any."""


class TraceResult(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    emotions: dict[str, int]
    """Emotion to texts that features were ablated in."""
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
    matched: tuple[tuple[int, int], ...]
    effects: Effects
    estimates: Tensor
    """[n, shortlist + matched + overlooked]."""
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
    """Of each cell: [2, sizes] of each text, the strongest and the matched."""
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
    return TraceResult(
        emotions={
            name: int((runs.answered_for == n).sum()) for n, name in enumerate(runs.emotions)
        },
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
                q=float(one.q[row]),
                flips=float(cell.flipped[row]),
                relative=float(one.mean[row]) / expected if expected > 0 else None,
                verdict="causal" if sign > 0 else "suppressor" if sign < 0 else "",
            )
        )
    return sorted(found, key=lambda feature: -feature.effect)


def _cell(runs: TraceRuns, number: int, one: Judged) -> TraceCell:
    cell = runs.cells[number]
    exact = torch.cat(
        [cell.effects.shortlist, cell.effects.matched, cell.effects.overlooked], dim=1
    ).mean(dim=0)
    r = None
    if len(exact) > 2:
        value = float(pearson(cell.estimates.mean(dim=0)[:, None], exact[:, None])[0])
        r = value if value == value else None
    joint = torch.stack(runs.own[number]).mean(dim=0)
    others = [n for n in range(len(runs.emotions)) if n != cell.emotion]
    divergence = float(runs.divergence[number])
    drawn = cell.random[~cell.random.isnan()]
    ordered = one.mean.sort(descending=True).values
    return TraceCell(
        emotion=runs.emotions[cell.emotion],
        phase=cell.phase + 1,
        texts=len(cell.effects.shortlist),
        listed=len(cell.features),
        matched=cell.effects.matched.shape[1],
        overlooked=cell.effects.overlooked.shape[1],
        causal=int((one.sign > 0).sum()),
        suppressors=int((one.sign < 0).sum()),
        null_low=one.null_low,
        null_high=one.null_high,
        largest=float(one.mean.max()) if len(one.mean) else 0.0,
        top_share=one.top_share,
        participation=one.participation,
        missed=one.missed,
        attribution_r=r,
        random=float(drawn.mean()) if len(drawn) else None,
        joint=tuple(joint[0].tolist()),
        joint_matched=tuple(joint[1].tolist()),
        summed=tuple(float(ordered[:k].sum()) for k in runs.joint),
        others=float(runs.cross[number, others].mean()) if others else None,
        divergence=divergence if divergence == divergence else None,
    )
