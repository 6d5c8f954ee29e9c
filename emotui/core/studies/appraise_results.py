"""What the study `appraise` finds, and how it is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from emotui.core.studies.common.report import Cell, Heat, Line, Plot, Report, Table, shown_p
from emotui.core.studies.label_mix import LabelMix, table_of
from emotui.core.studies.promote_results import Control

Projection = Literal["projected", "released"]
Against = Literal["means", "partial"]
"""The signs of mean ratings, or those with the other appraisals held."""


_ENOUGH = 6  # cells; of fewer, chance alone agrees in all too often
_LEVEL = 0.05
_READABLE = 0.05  # below, R² on other texts is about none
_HELD = 0.1  # standard deviations that a kept appraisal may move by
_AGAINST: dict[str, str] = {
    "means": "mean ratings",
    "partial": "ratings, the other appraisals held",
}


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """How well the appraisals can be read, layer by layer."""

    appraisal: str
    r_squared: tuple[float, ...]
    """On texts the direction was not fitted on."""


class AppraiseCurve(msgspec.Struct, frozen=True, kw_only=True):
    """What one change of appraisals does, by the middle layer of its window."""

    projection: Projection | Control
    condition: str
    """As in `+pleasantness -other_responsblt`; of a control both signs of all draws together."""
    changed: tuple[str, ...]
    kept: tuple[str, ...]
    strength: float
    """Of each layer, in units of the corpus mean of the residual's norm there."""
    layer: tuple[int, ...]
    share: tuple[tuple[float, ...], ...]
    """[layers, labels]: of answers."""
    probability: tuple[tuple[float, ...], ...]
    """[layers, labels]: mean over texts."""
    moved: tuple[float, ...]
    """Half the sum of absolute changes of the shares: 0 nothing, 1 every answer."""
    surviving: tuple[float | None, ...]
    """Share of the direction's norm that the projection leaves, least over the window; None where
    there is no direction, or for a control."""
    shifts: tuple[tuple[float | None, ...], ...]
    """[layers, appraisals]: how far each reading moves at the next layer, in standard deviations
    of the clean readings; for a control the mean size. None after the last layer."""


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """Whether raising an appraisal raises the emotions it goes with in the ratings."""

    projection: Projection
    against: Against
    strength: float
    layer: tuple[int, ...]
    cells: int
    """How many the ratings decide."""
    agreement: tuple[float | None, ...]
    """Share of (appraisal, emotion) cells whose sign is that of the ratings; None without any."""
    p: tuple[float | None, ...]
    """Share of 1,000 permutations of the emotions that agree as well or better."""
    isotropic: tuple[float | None, ...]
    """Mean agreement of random directions in the appraisals' places."""
    isotropic_95: tuple[float | None, ...]
    covariance: tuple[float | None, ...]
    covariance_95: tuple[float | None, ...]
    best_p: float | None = None
    """Share of the permutations that agree at their best layer as well as this does at its own."""
    isotropic_best_95: float | None = None
    """95th percentile, over random directions, of the agreement at their best layer."""
    covariance_best_95: float | None = None


class AppraiseResult(msgspec.Struct, frozen=True, kw_only=True):
    """All of it; layers count from 0."""

    texts: int
    unreadable: int
    source: str
    """Where the ratings are from."""
    fitted_on: int
    """Texts the directions were fitted on."""
    held: dict[str, int]
    """Label to texts the directions are added in."""
    labels: tuple[str, ...]
    """Of the label set."""
    clean: tuple[float, ...]
    """Share of answers, before anything is added."""
    appraisals: tuple[str, ...]
    emotions: tuple[str, ...]
    """Those the ratings have."""
    ratings: tuple[tuple[float, ...], ...]
    """[appraisals, emotions]: mean rating less the mean over emotions."""
    decided: tuple[tuple[bool, ...], ...]
    """[appraisals, emotions]: whether that is more than two standard errors from none."""
    partial: tuple[tuple[float, ...], ...]
    """[appraisals, emotions]: coefficients of a logistic regression of the emotion on all
    appraisals there are ratings of, each of unit variance."""
    partial_decided: tuple[tuple[bool, ...], ...]
    regressed: tuple[str, ...] = ()
    """Those appraisals; () in results of before this, when it was least squares on `appraisals`."""
    span: int
    strengths: tuple[float, ...]
    norms: tuple[float, ...]
    """The unit of strength at each layer."""
    fits: tuple[Fit, ...]
    shown_layer: int
    """Of the matrices and of generations: as asked, else where the fits are best on average."""
    without: tuple[int, ...]
    """Layers where some change has no direction."""
    curves: tuple[AppraiseCurve, ...]
    agreements: tuple[Agreement, ...]
    generations: tuple[LabelMix, ...]


def report(result: AppraiseResult) -> Report:
    """Say what moves, what stays where it was, and how both compare with the ratings."""
    columns = (
        *("projection", "condition", "strength", "layer", "moved", "surviving"),
        *(f"shift_{name}" for name in result.appraisals),
        *(f"share_{label}" for label in result.labels),
        *(f"p_{label}" for label in result.labels),
    )
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            *(c.projection, c.condition, c.strength, c.layer[n], c.moved[n], c.surviving[n]),
            *c.shifts[n],
            *c.share[n],
            *c.probability[n],
        )
        for c in result.curves
        for n in range(len(c.layer))
    )
    agreements = Table(
        "Sign agreement with the ratings",
        (
            *("projection", "against", "strength", "layer", "cells", "agreement", "p", "isotropic"),
            *("isotropic_95", "covariance", "covariance_95", "p of the best layer"),
            *("isotropic_95 of the best layer", "covariance_95 of the best layer"),
        ),
        tuple(
            (
                *(a.projection, a.against, a.strength, a.layer[n], a.cells, a.agreement[n], a.p[n]),
                *(a.isotropic[n], a.isotropic_95[n], a.covariance[n], a.covariance_95[n]),
                *(a.best_p, a.isotropic_best_95, a.covariance_best_95),
            )
            for a in result.agreements
            for n in range(len(a.layer))
        ),
    )
    tables = [Table("Changes by strength and layer", columns, rows), agreements, _drifts(result)]
    if result.generations:
        seen = [label for mix in result.generations for label in mix.answers]
        tables.append(table_of(result.generations, [x for x in result.labels if x in seen]))
    return Report(
        tuple(_sentences(result)), tuple(tables), tuple(_plots(result)), tuple(_heats(result))
    )


def _drifts(result: AppraiseResult) -> Table:
    """Return how far readings move at the next layer, mean over changes."""
    rows: list[tuple[Cell, ...]] = []
    for projection in _projections(result):
        for strength in result.strengths:
            curves = _of(result, projection, strength)
            changed, kept = gain(curves, result.appraisals), drift(curves, result.appraisals)
            random = _of(result, "covariance", strength)[0].shifts
            rows += [
                (projection, strength, layer, changed[n], kept[n], _mean(random[n]))
                for n, layer in enumerate(curves[0].layer)
            ]
    return Table(
        "How far readings move at the next layer, in standard deviations of the clean ones",
        ("projection", "strength", "layer", "changed", "kept", "random_covariance"),
        tuple(rows),
    )


def _projections(result: AppraiseResult) -> list[Projection]:
    found: dict[Projection, None] = dict.fromkeys(a.projection for a in result.agreements)
    return list(found)


def _of(result: AppraiseResult, projection: str, strength: float) -> list[AppraiseCurve]:
    return [c for c in result.curves if (c.projection, c.strength) == (projection, strength)]


def drift(curves: Sequence[AppraiseCurve], names: Sequence[str]) -> list[float | None]:
    """Return the mean size of the shifts of kept appraisals at each layer, over conditions."""
    return [
        _mean(
            [
                value
                for c in curves
                for name, value in zip(names, c.shifts[n], strict=True)
                if name in c.kept
            ]
        )
        for n in range(len(curves[0].layer))
    ]


def gain(curves: Sequence[AppraiseCurve], names: Sequence[str]) -> list[float | None]:
    """Return the mean shift of changed appraisals in the direction they are changed."""
    return [
        _mean(
            [
                value if f"+{name}" in c.condition.split() else -value
                for c in curves
                for name, value in zip(names, c.shifts[n], strict=True)
                if name in c.changed and value is not None
            ],
            sizes=False,
        )
        for n in range(len(curves[0].layer))
    ]


def _mean(values: Sequence[float | None], *, sizes: bool = True) -> float | None:
    known = [abs(v) if sizes else v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _plots(result: AppraiseResult) -> list[Plot]:
    x = tuple(map(float, range(len(result.norms))))
    plots = [
        Plot(
            "How well each appraisal is read",
            "layer",
            "R² on other texts",
            tuple(Line(name=fit.appraisal, x=x, y=fit.r_squared) for fit in result.fits),
        )
    ]
    for strength in result.strengths:
        for against in ("means", "partial"):
            agreements = [
                a for a in result.agreements if (a.strength, a.against) == (strength, against)
            ]
            lines = [Line(name=a.projection, x=x, y=a.agreement) for a in agreements]
            for name in ("isotropic", "covariance"):
                for suffix in ("", "_95"):
                    said = f"random, {name}" + (", 95 %" if suffix else "")
                    values = getattr(agreements[0], name + suffix)
                    lines.append(Line(name=said, x=x, y=values, control=True))
            plots.append(
                Plot(
                    f"Sign agreement with the {_AGAINST[against]}, strength {strength:g}",
                    "layer",
                    "share of cells",
                    tuple(lines),
                )
            )
        lines = []
        for projection in _projections(result):
            curves = _of(result, projection, strength)
            names = result.appraisals
            lines.append(Line(name=f"changed, {projection}", x=x, y=tuple(gain(curves, names))))
            lines.append(Line(name=f"kept, {projection}", x=x, y=tuple(drift(curves, names))))
        for control in ("isotropic", "covariance"):
            (curve,) = _of(result, control, strength)
            sizes = tuple(_mean(curve.shifts[n]) for n in range(len(x)))
            lines.append(Line(name=f"random, {control}", x=x, y=sizes, control=True))
        plots.append(
            Plot(
                f"How far readings move at the next layer, strength {strength:g}",
                "layer",
                "standard deviations",
                tuple(lines),
            )
        )
    return plots


def _heats(result: AppraiseResult) -> list[Heat]:
    heats = [
        Heat(
            f"Mean rating less the mean over emotions ({result.source})",
            result.appraisals,
            result.emotions,
            result.ratings,
        )
    ]
    for strength in result.strengths:
        curves = [c for c in result.curves if c.strength == strength]
        heats.append(
            Heat(
                f"Share of answers at layer {result.shown_layer}, strength {strength:g}",
                (
                    "none",
                    *(c.condition if c.projection == "projected" else _name(c) for c in curves),
                ),
                result.labels,
                (result.clean, *(c.share[result.shown_layer] for c in curves)),
            )
        )
    return heats


def _name(curve: AppraiseCurve) -> str:
    return f"{curve.condition}, {curve.projection}" if curve.changed else curve.condition


def _sentences(result: AppraiseResult) -> list[str]:
    counts = ", ".join(f"{label} {n}" for label, n in result.held.items())
    layer = result.shown_layer
    fits = ", ".join(f"{fit.appraisal} {fit.r_squared[layer]:.2f}" for fit in result.fits)
    decided = sum(map(sum, result.decided))
    partial = sum(map(sum, result.partial_decided))
    cells = len(result.appraisals) * len(result.emotions)
    found = [
        f"Directions of {', '.join(result.appraisals)} fitted on {result.fitted_on} texts "
        f"(ratings: {result.source}), added in {sum(result.held.values())} others ({counts}).",
        f"R² on other texts at layer {layer}: {fits}. Where it is near 0, the direction is noise.",
        f"The mean ratings decide the sign of {decided} of {cells} cells (two standard errors), "
        f"with the other appraisals held {partial} (logistic regression on the "
        f"{len(result.regressed) or len(result.appraisals)} that are rated). Appraisals go "
        "together in people, so that a change of one alone is to be held against the latter.",
    ]
    for projection in _projections(result):
        for strength in result.strengths:
            found += _changes(result, projection, strength)
    if result.without:
        layers = ", ".join(map(str, result.without))
        found.append(f"At layer {layers} some change has no direction: nothing was added for it.")
    if result.generations:
        found.append(
            f"{result.generations[0].texts} texts were continued under each change at layer "
            f"{layer} and read again unmoved."
        )
    if result.unreadable:
        found.append(f"Texts too long for the model with the prompt: {result.unreadable:,}.")
    return found


def _held_against(found: Agreement) -> str:
    """Return the agreement at its best layer, beside what choosing one gives by chance."""
    if found.cells < _ENOUGH:
        return f"{found.cells} cells are decided by {_AGAINST[found.against]}: too few to tell"
    values = [value or 0.0 for value in found.agreement]
    best = max(range(len(values)), key=values.__getitem__)
    said = (
        f"in {values[best]:.2f} of {found.cells} cells of the {_AGAINST[found.against]} at layer "
        f"{found.layer[best]}"
    )
    if found.best_p is None or found.covariance_best_95 is None:
        return f"{said} (not corrected for the choice of the layer)"
    chance = found.best_p >= _LEVEL or values[best] <= found.covariance_best_95
    return (
        f"{said} (p {shown_p(found.best_p)}; of random directions with the covariance, each at its "
        f"best layer, 95 % reach at most {found.covariance_best_95:.2f}"
        f"{': no more than chance' if chance else ''})"
    )


def _changes(result: AppraiseResult, projection: Projection, strength: float) -> list[str]:
    """Say what one kind of change does at the layer where it agrees best with the ratings."""
    both = {
        a.against: a
        for a in result.agreements
        if (a.projection, a.strength) == (projection, strength)
    }
    main = both["partial"] if both["partial"].cells >= _ENOUGH else both["means"]
    known = [n for n in range(len(main.layer)) if main.agreement[n] is not None]
    if not known:
        return []
    best = max(known, key=lambda n: main.agreement[n] or 0.0)
    curves = _of(result, projection, strength)
    moved = sum(c.moved[best] for c in curves) / len(curves)
    random = _of(result, "covariance", strength)[0].moved[best]
    how = "with the projection" if projection == "projected" else "as released, without it"
    read = [fit.r_squared[best] for fit in result.fits]
    line = (
        f"Strength {strength:g}, {how}: signs agree most, of {len(main.layer)} layers and "
        "corrected for choosing one, "
        f"{'; '.join(_held_against(a) for a in both.values() if a.cells)}. At layer "
        f"{main.layer[best]} {moved:.2f} of the answers move, by a random direction with the "
        f"covariance {random:.2f}"
    )
    if max(read) < _READABLE:
        line += f"; R² there is at most {max(read):.2f}, so that the directions are noise"
    kept = drift(curves, result.appraisals)[best]
    changed = gain(curves, result.appraisals)[best]
    if kept is not None and changed is not None:
        line += (
            f"; at the next layer the changed appraisals move {changed:+.2f} standard deviations, "
            f"the kept ones {kept:.2f} on average: {'' if kept <= _HELD else 'not '}held (bar "
            f"{_HELD:g})"
        )
    return [line + "."]
