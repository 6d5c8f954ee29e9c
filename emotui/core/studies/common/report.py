"""What a study says of its result: sentences, tables and plots, the same for every study."""

from __future__ import annotations

import msgspec

Cell = str | int | float | None


class Table(msgspec.Struct, frozen=True):
    """A table; the first of a report is also its CSV, unless the study writes rows of its own."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


class Line(msgspec.Struct, frozen=True):
    """One line of a plot; None leaves a gap."""

    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    """A band around the line; () for none."""
    control: bool = False
    """Drawn dashed: what the others must be held against."""


class Plot(msgspec.Struct, frozen=True):
    """Lines over one axis."""

    title: str
    x_label: str
    """`layer` makes the plot one that `emotui study compare` can set beside others."""
    y_label: str
    lines: tuple[Line, ...]


class Heat(msgspec.Struct, frozen=True):
    """A matrix of numbers, drawn as shaded cells."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


class Report(msgspec.Struct, frozen=True):
    """A result as it is read."""

    sentences: tuple[str, ...]
    """What was found, in words, the controls beside it."""
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    heats: tuple[Heat, ...] = ()


def shown_p(p: float) -> str:
    """Return a p value as it is read: never as zero."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
