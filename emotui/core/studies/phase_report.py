"""The result of `phases` as it is read."""

from __future__ import annotations

from itertools import pairwise

from emotui.core.studies.common.report import Cell, Line, Plot, Report, Table
from emotui.core.studies.features import fit_sentences
from emotui.core.studies.phase_results import VERDICTS, PhasesResult, Verdict
from emotui.core.studies.phase_segments import AHEAD

CALIBRATED = 16
"""Fewest layers on which the bars of S and G were tried, by simulation."""


def report(result: PhasesResult) -> Report:
    """Give the verdict with its S and G, and the curves beside their controls."""
    rows: list[tuple[Cell, ...]] = [
        (curve.name, *row)
        for curve in result.curves
        for row in zip(
            *(result.layers, curve.observed, curve.null, curve.net, curve.low, curve.high),
            strict=True,
        )
    ]
    boundaries: list[tuple[Cell, ...]] = [
        (
            *(", ".join(verdict.curves), boundary.layer, boundary.median, boundary.low),
            *(boundary.high, "unstable" if boundary.unstable else ""),
        )
        for verdict in (result.main, result.decodable)
        for boundary in verdict.boundaries
    ]
    tables = [
        Table(
            "Curves by layer: net is observed less null, low and high are of net",
            ("curve", "layer", "observed", "null", "net", "low", "high"),
            tuple(rows),
        )
    ]
    if boundaries:
        tables.append(
            Table(
                "Where phases begin",
                ("curves", "layer", "median", "low", "high", "note"),
                tuple(boundaries),
            )
        )
    return Report(tuple(_sentences(result)), tuple(tables), tuple(_plots(result)))


def _sentences(result: PhasesResult) -> list[str]:
    counts = ", ".join(f"{label} {n}" for label, n in result.labels.items())
    found = [
        f"{result.texts:,} texts ({counts}); {result.pairs} pairs of {result.pair_texts} texts "
        "patched."
    ]
    found.append(_said(result.main, result))
    if result.main.curves != result.decodable.curves:
        found.append("With what can be read in the place of what is used: " + _said(
            result.decodable, result
        ))  # fmt: skip
    if result.noise:
        found.append(
            f"Left out of the segmentation, as no more than noise: {', '.join(result.noise)}."
        )
    if result.main.phases == 3 and "semantic" not in result.main.curves:
        found.append(
            "Three steps without a semantic curve are not the three phases of the paper: nothing "
            "here shows that meaning comes between."
        )
    if result.main.phases > 1 or result.main.bent:
        found.append(
            "The draws are of texts: they do not allow for layers being alike, nor for other ways "
            "in which curves may bend. A step here is a fit to few points, one a layer, not a "
            "mechanism."
        )
    if len(result.layers) < CALIBRATED:
        found.append(
            f"S and G were calibrated on {CALIBRATED} layers and more; on {len(result.layers)} "
            "steps and bends are hard to tell apart, and what is gradual may be unnoticed steps."
        )
    for name, layer in result.onset.items():
        where = f"begins at layer {layer}" if layer is not None else "begins at no layer"
        found.append(
            f"{name} {where}: first of two layers running above the 95th percentile of the "
            f"largest value over layers of its null ({_null_of(result, name)})."
        )
    nulls = "; ".join(f"{curve.name}: {curve.null_is}" for curve in result.curves)
    found.append(f"Net is observed less null. Nulls: {nulls}.")
    found.append(
        f"low and high: 95 % bootstrap intervals of net, percentiles of {result.draws:,} draws, "
        "texts of one group and label drawn together, pairs by their texts; of the semantic curve "
        "the wider of this and what dealing its values anew gives. Boundaries: 90 %, likewise."
    )
    if not result.semantic:
        found.append(
            "There is no semantic curve: no column was named (--set semantic=COLUMN), or too few "
            "texts share a topic, so the verdict rests on two curves."
        )
    else:
        found.append(f"The semantic curve reads {result.semantic} from the readout.")
    if not result.pairs:
        found.append("The model answers all texts alike, so no pairs could be patched.")
    return found + fit_sentences(result.fits, result.unreadable)


def _null_of(result: PhasesResult, name: str) -> str:
    return next(curve.null_is for curve in result.curves if curve.name == name)


def _said(verdict: Verdict, result: PhasesResult) -> str:
    said = (
        f"{VERDICTS[verdict.phases].capitalize()} (S {verdict.steps:.2f}, G {verdict.third:.2f}; "
        f"below .10 there are no steps, or no third phase), in {verdict.agree:.0%} of the draws "
        "of the texts."
    )
    if not verdict.curves:
        return f"{VERDICTS[1].capitalize()}: no curve is more than noise."
    if verdict.bent or verdict.phases > 1:
        beside = (
            f" Steps leave {verdict.stepped:.1%} of the error, smooth curves {verdict.smooth:.1%}: "
            f"with parameters counted the steps are {'ahead' if verdict.ahead >= 0 else 'behind'} "
            f"by {abs(verdict.ahead):.1f} in BIC, and {AHEAD:g} ahead is the bar."
        )
        said += beside
    if verdict.bent:
        said += " So curves that bend say as much as phases do."
    if verdict.boundaries:
        begins = "; ".join(
            f"layer {one.layer} (90 % interval {one.low:g} to {one.high:g}"
            f"{', unstable' if one.unstable else ''})"
            for one in verdict.boundaries
        )
        said += f" Phases begin at layer {result.layers[0]}; {begins}. {_peaks(verdict, result)}"
    return said


def _peaks(verdict: Verdict, result: PhasesResult) -> str:
    """Say in which phase each curve is highest: steps alone are not the order of the paper."""
    starts = [result.layers[0], *(one.layer for one in verdict.boundaries), result.layers[-1] + 1]
    said, order = [], []
    for name in verdict.curves:
        curve = next(one for one in result.curves if one.name == name)
        means = []
        for begin, end in pairwise(starts):
            inside = [
                v for at, v in zip(result.layers, curve.net, strict=True) if begin <= at < end
            ]
            means.append(sum(inside) / len(inside))
        order.append(means.index(max(means)))
        said.append(f"{name} is highest in phase {order[-1] + 1}")
    if len(order) < 2:
        return f"{', '.join(said)}."
    forward = order == sorted(order) and len(set(order)) == len(order)
    verdict_of_order = "as" if forward else "not as"
    return f"{', '.join(said)}: {verdict_of_order} the paper's order, tokens first, emotion last."


def _plots(result: PhasesResult) -> list[Plot]:
    x = tuple(float(layer) for layer in result.layers)
    curves = [
        Line(name=curve.name, x=x, y=curve.net, low=curve.low, high=curve.high)
        for curve in result.curves
    ]
    nulls = [
        Line(name=f"{curve.name}, null", x=x, y=curve.null, control=True)
        for curve in result.curves
        if any(curve.null)
    ]
    return [
        Plot("Curves over the layers, net of their nulls", "layer", "net", tuple(curves)),
        Plot("What was taken off", "layer", "null", tuple(nulls)),
    ]
