"""What the study `promote` finds, and how it is read."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Literal

import msgspec

from emotui.core.studies.common.report import Cell, Heat, Line, Plot, Report, Table
from emotui.core.studies.label_mix import LabelMix, table_of

Along = Literal["means", "row"]
Control = Literal["isotropic", "covariance"]
Kind = Literal["means", "row", "isotropic", "covariance"]
ALONG: tuple[Along, ...] = ("means", "row")
CONTROLS: tuple[Control, ...] = ("isotropic", "covariance")
_NOTHING = 0.005
_HALF = 0.5
_SAID = {
    "means": "the difference of means",
    "row": "the probe's row",
    "isotropic": "random, isotropic",
    "covariance": "random, with the covariance",
}


class PromoteCurve(msgspec.Struct, frozen=True, kw_only=True):
    """What adding one kind of direction does to one emotion, by the middle layer of its window."""

    along: Kind
    emotion: str
    strength: float
    """Of each layer of the window, in units of the corpus mean of the residual's norm there."""
    layer: tuple[int, ...]
    before: float
    """Share of texts answered so."""
    after: tuple[float, ...]
    """The same after; mean over draws for a control."""
    score: tuple[float, ...]
    low: tuple[float, ...]
    """95 % bootstrap interval over texts; for a control its lowest and highest draw."""
    high: tuple[float, ...]
    margin: tuple[float, ...]
    """Mean change of the emotion's score less the mean of the others'."""
    leak: tuple[float, ...]
    """Largest mean rise of the probability of another label."""


class Directions(msgspec.Struct, frozen=True, kw_only=True):
    """The probes whose rows are added, layer by layer."""

    held_accuracy: tuple[float, ...]
    """Balanced, on the half they were not fitted on."""
    shuffled_95: tuple[float, ...]
    dev_accuracy: tuple[float, ...]
    """On the texts the layer of generations is chosen on."""
    cosine: tuple[float, ...]
    """Of rows and differences of means, mean over emotions."""
    without: tuple[int, ...]
    """Layers where the readout is the same after every text, so that there is no direction."""


class PromoteResult(msgspec.Struct, frozen=True, kw_only=True):
    """All of it; layers count from 0."""

    texts: int
    unreadable: int
    fitted_on: int
    chosen_on: int
    labels: dict[str, int]
    """Label to texts of the half the directions are added in."""
    left_out: tuple[str, ...]
    """Labels with too few texts."""
    answers: dict[str, int]
    """Answer to texts of that half, before anything is added."""
    span: int
    strengths: tuple[float, ...]
    norms: tuple[float, ...]
    """The unit of strength at each layer: of the corpus, over tokens of its texts."""
    readout_norms: tuple[float, ...]
    """Mean norm of what the vectors are added to: the readout, over the texts fitted on."""
    draws: int
    directions: Directions
    curves: tuple[PromoteCurve, ...]
    generations_layer: int | None
    """Where texts were written: as asked, else where the probe was best on dev."""
    generations: tuple[LabelMix, ...]


def report(result: PromoteResult) -> Report:
    """Say what promotes, from which layer on, and lay every curve beside random directions."""
    columns = (
        *("along", "emotion", "strength", "layer", "score", "low", "high", "before", "after"),
        *("margin", "leak"),
    )
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            *(c.along, c.emotion, c.strength, c.layer[n], c.score[n], c.low[n], c.high[n]),
            *(c.before, c.after[n], c.margin[n], c.leak[n]),
        )
        for c in result.curves
        for n in range(len(c.layer))
    )
    tables = [Table("Promotion by direction, emotion, strength and layer", columns, rows)]
    if result.generations:
        tables.append(table_of(result.generations, _labels(result)))
    plots = [
        _plot(result, along, strength)
        for along in ALONG
        for strength in result.strengths
        if any(c.along == along for c in result.curves)
    ]
    heats = [
        _heat(result, along) for along in ALONG if any(c.along == along for c in result.curves)
    ]
    return Report(tuple(_sentences(result)), tuple(tables), tuple(plots), tuple(heats))


def _labels(result: PromoteResult) -> tuple[str, ...]:
    seen = dict.fromkeys(label for mix in result.generations for label in mix.answers)
    return tuple(dict.fromkeys((*result.labels, *seen)))


def _of(result: PromoteResult, along: Kind, strength: float) -> list[PromoteCurve]:
    return [c for c in result.curves if (c.along, c.strength) == (along, strength)]


def _means(curves: Sequence[PromoteCurve]) -> list[float]:
    """Return the mean score over emotions at each layer."""
    return [mean(c.score[n] for c in curves) for n in range(len(curves[0].layer))]


def _plot(result: PromoteResult, along: Along, strength: float) -> Plot:
    lines = [
        Line(
            name=c.emotion,
            x=tuple(map(float, c.layer)),
            y=c.score,
            low=c.low,
            high=c.high,
        )
        for c in _of(result, along, strength)
    ]
    for control in CONTROLS:
        curves = _of(result, control, strength)
        x = tuple(map(float, curves[0].layer))
        highest = tuple(max(c.high[n] for c in curves) for n in range(len(x)))
        lines.append(Line(name=_SAID[control], x=x, y=tuple(_means(curves)), control=True))
        lines.append(Line(name=f"{_SAID[control]}, highest", x=x, y=highest, control=True))
    return Plot(
        f"Promotion along {_SAID[along]}, strength {strength:g}",
        "layer",
        "promotion score",
        tuple(lines),
    )


def _heat(result: PromoteResult, along: Along) -> Heat:
    """Return the mean score over emotions by strength and layer, controls below."""
    kinds: list[Kind] = [along, *CONTROLS]
    layers = tuple(str(n) for n in range(len(result.norms)))
    return Heat(
        f"Mean score over emotions, {_SAID[along]} and random directions",
        tuple(
            f"{'' if kind == along else kind + ' '}{strength:g}"
            for kind in kinds
            for strength in result.strengths
        ),
        layers,
        tuple(
            tuple(_means(_of(result, kind, strength)))
            for kind in kinds
            for strength in result.strengths
        ),
    )


def _sentences(result: PromoteResult) -> list[str]:
    counts = ", ".join(f"{label} {n}" for label, n in result.labels.items())
    answers = ", ".join(f"{label} {n}" for label, n in result.answers.items())
    found = [
        f"Directions fitted on {result.fitted_on} texts, {result.chosen_on} more to choose on, "
        f"added in {sum(result.labels.values())} of the other half ({counts}), which the model "
        f"answers {answers}."
    ]
    for along in ALONG:
        for strength in result.strengths:
            curves = _of(result, along, strength)
            if not curves:
                continue
            scores = _means(curves)
            how = f"Along {_SAID[along]}, strength {strength:g}"
            if result.span > 1:
                how += f" at each of {result.span} layers ({strength * result.span:g} in all)"
            best = max(range(len(scores)), key=lambda n: scores[n])
            if scores[best] < _NOTHING:
                found.append(f"{how}: no layer where the mean score over emotions rises.")
                continue
            beside = "; ".join(
                f"{_SAID[control]} {_means(_of(result, control, strength))[best]:+.2f}, its "
                "highest for any emotion and draw "
                f"{max(c.high[best] for c in _of(result, control, strength)):+.2f}"
                for control in CONTROLS
            )
            half = [
                layer for layer, one in zip(curves[0].layer, scores, strict=True) if one >= _HALF
            ]
            layers = ", ".join(map(str, half))
            found.append(
                f"{how}: mean score over emotions {scores[best]:+.2f} at its best, layer "
                f"{curves[0].layer[best]} (chosen on these texts); there {beside}. "
                + (f"At least half at layers {layers}." if half else "At no layer half or more.")
            )
    ratios = [own / unit for own, unit in zip(result.readout_norms, result.norms, strict=True)]
    found.append(
        f"What the vectors are added to is {min(ratios):.2g} to {max(ratios):.2g} times the unit."
    )
    if result.directions.without:
        layers = ", ".join(map(str, result.directions.without))
        found.append(
            f"At layer {layers} the readout is the same after every text: nothing was added there."
        )
    if result.left_out:
        found.append(f"Left out for too few texts: {', '.join(result.left_out)}.")
    if result.generations:
        found.append(
            f"{result.generations[0].texts} texts were continued with each direction at layer "
            f"{result.generations_layer} and read again unmoved."
        )
    if result.unreadable:
        found.append(f"Texts too long for the model with the prompt: {result.unreadable:,}.")
    return found
