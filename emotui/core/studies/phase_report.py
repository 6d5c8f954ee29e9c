"""The result of `phases` as it is read."""

from __future__ import annotations

from itertools import pairwise

from emotui.core.studies.common.report import Cell, Line, Plot, Report, Table
from emotui.core.studies.features import fit_sentences
from emotui.core.studies.phase_results import VERDICTS, PhasesResult, Verdict

CALIBRATED = 16
"""Fewest layers on which the bars of S and G were tried, by simulation."""


def report(result: PhasesResult) -> Report:
    """Give the verdict with its S and G, and the curves beside their controls."""
    rows: list[tuple[Cell, ...]] = [
        (curve.name, layer, value, low, high, null)
        for curve in result.curves
        for layer, value, low, high, null in zip(
            result.layers, curve.value, curve.low, curve.high, curve.null, strict=True
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
        Table("Curves by layer", ("curve", "layer", "value", "low", "high", "null"), tuple(rows))
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
    found = [f"{result.texts:,} texts ({counts}); {result.pairs} pairs patched."]
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
    if len(result.layers) < CALIBRATED and result.main.phases > 1:
        found.append(
            f"S and G were calibrated on {CALIBRATED} layers and more; on {len(result.layers)} a "
            "curve that bends may pass for steps."
        )
    for name, layer in result.onset.items():
        where = f"begins at layer {layer}" if layer is not None else "begins at no layer"
        found.append(
            f"{name} {where}: first of two layers running above the 95th percentile of the "
            "largest value over layers that shuffled labels give."
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


def _said(verdict: Verdict, result: PhasesResult) -> str:
    said = (
        f"{VERDICTS[verdict.phases].capitalize()} (S {verdict.steps:.2f}, G {verdict.third:.2f}; "
        f"below .10 there are no steps, or no third phase), in {verdict.agree:.0%} of the draws "
        "of the texts."
    )
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
                v for at, v in zip(result.layers, curve.value, strict=True) if begin <= at < end
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
        Line(name=curve.name, x=x, y=curve.value, low=curve.low, high=curve.high)
        for curve in result.curves
    ]
    nulls = [
        Line(name=f"{curve.name}, null", x=x, y=curve.null, control=True)
        for curve in result.curves
        if any(curve.null)
    ]
    return [Plot("Curves over the layers", "layer", "score", tuple(curves + nulls))]
