"""Setting results beside each other, layer by layer and by fraction of depth; torch-free."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from emotui.core.studies.common.folder import StudyDocument
from emotui.core.studies.common.report import Line

STEPS = 10
"""Depth is compared in tenths."""


class Curve(msgspec.Struct, frozen=True):
    """One line of one plot in all results."""

    plot: str
    line: str
    layers: tuple[float, ...]
    """Layers that any result has; -1 is the embedding."""
    by_layer: tuple[tuple[float | None, ...], ...]
    """[layers, results]; None where a result has no such layer or line."""
    depths: tuple[float, ...]
    """0 is layer 0, 1 the last layer."""
    by_depth: tuple[tuple[float | None, ...], ...]
    """[depths, results], read between the two nearest layers."""


class Comparison(msgspec.Struct, frozen=True):
    """Several results of one study."""

    study: str
    results: tuple[str, ...]
    """Name of each: model, revision, template, and data where they differ."""
    curves: tuple[Curve, ...]


def compare(documents: Sequence[StudyDocument]) -> Comparison:
    """Return every line over layers that the results have, side by side; ValueError without any."""
    plots: dict[tuple[str, str], list[Line | None]] = {}
    for number, document in enumerate(documents):
        for plot in document.report.plots:
            if plot.x_label != "layer":
                continue
            for line in plot.lines:
                found = plots.setdefault((plot.title, line.name), [None] * len(documents))
                found[number] = line
    if not plots:
        raise ValueError("nothing over layers")
    last = [document.run.layers - 1 for document in documents]
    return Comparison(
        study=documents[0].run.study,
        results=_names(documents),
        curves=tuple(_curve(*key, lines, last) for key, lines in plots.items()),
    )


def _curve(plot: str, name: str, lines: Sequence[Line | None], last: Sequence[int]) -> Curve:
    points = [dict(zip(line.x, line.y, strict=True)) if line else {} for line in lines]
    layers = tuple(sorted({layer for each in points for layer in each}))
    depths = tuple(step / STEPS for step in range(STEPS + 1))
    return Curve(
        plot=plot,
        line=name,
        layers=layers,
        by_layer=tuple(tuple(each.get(layer) for each in points) for layer in layers),
        depths=depths,
        by_depth=tuple(
            tuple(_at(each, depth * end) for each, end in zip(points, last, strict=True))
            for depth in depths
        ),
    )


def _at(points: dict[float, float | None], layer: float) -> float | None:
    """Return the value between the two nearest layers; None where one of them has none."""
    low = float(int(layer))
    high = low if layer == low else low + 1
    below, above = points.get(low), points.get(high)
    if below is None or above is None:
        return None
    return below + (above - below) * (layer - low)


def _names(documents: Sequence[StudyDocument]) -> tuple[str, ...]:
    """Return names that tell the results apart, as short as they can be."""
    parts = [
        (
            document.run.model.rsplit("/", 1)[-1],
            document.run.revision or "",
            document.run.template.name,
            document.run.dataset.name,
            f"seed {document.run.seed}",
        )
        for document in documents
    ]
    differing = [n for n in range(len(parts[0])) if len({part[n] for part in parts}) > 1]
    names = [" ".join(filter(None, (part[n] for n in (differing or [0])))) for part in parts]
    return tuple(
        name if names.count(name) == 1 else f"{name} ({number})"
        for number, name in enumerate(names, start=1)
    )
