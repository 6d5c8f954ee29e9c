"""Plots as SVG, drawn by hand: lines with bands, and shaded matrices; no dependency."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import TypeGuard

from emotui.core.studies.common.report import Heat, Line, Plot
from emotui.core.text import clean

_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 160, 16, 44
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")
"""Okabe and Ito's, which colour-blind readers tell apart; every line is also named and marked."""
_DASHES = ("", "8 3", "2 3", "8 3 2 3")
_CELL = 26


def svg_of_plot(plot: Plot) -> str:
    """Return a plot as one `<svg>` element; lines without a number are named all the same."""
    xs = [x for line in plot.lines for x in line.x]
    ys = [y for line in plot.lines for y in (*line.y, *line.low, *line.high) if _is_number(y)]
    if not xs or not ys:
        return "<p>No numbers to draw.</p>"
    x_of = _Scale(min(xs), max(xs), _LEFT, _WIDTH - _RIGHT)
    low, high = _limits(ys)
    y_of = _Scale(low, high, _HEIGHT - _BOTTOM, _TOP)
    parts = [*_axes(plot, (min(xs), max(xs)), (low, high), x_of, y_of)]
    for number, line in enumerate(plot.lines):
        parts += _line(line, number, x_of, y_of)
    label = escape(clean(f"{plot.title}: {plot.y_label} by {plot.x_label}"))
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg>'
    )


def svg_of_heat(heat: Heat) -> str:
    """Return a matrix as one `<svg>` element: the number in each cell, its size as the shade."""
    numbers = [abs(v) for row in heat.values for v in row if _is_number(v)]
    largest = max(numbers, default=0.0) or 1.0
    left = 8 * max((len(name) for name in heat.rows), default=0) + 16
    width = left + 2 * _CELL * len(heat.columns) + 8
    height = _CELL * (len(heat.rows) + 1) + 8
    parts = [
        _text(left + 2 * _CELL * column + _CELL, 16, name, anchor="middle")
        for column, name in enumerate(heat.columns)
    ]
    for row, (name, values) in enumerate(zip(heat.rows, heat.values, strict=True)):
        top = _CELL * (row + 1)
        parts.append(_text(left - 8, top + 17, name, anchor="end"))
        for column, value in enumerate(values):
            if not _is_number(value):
                continue
            x = left + 2 * _CELL * column
            colour = _COLOURS[0] if value >= 0 else _COLOURS[1]
            parts.append(
                f'<rect x="{x}" y="{top}" width="{2 * _CELL - 2}" height="{_CELL - 2}" '
                f'fill="{colour}" fill-opacity="{0.6 * abs(value) / largest:.3f}"/>'
            )
            parts.append(_text(x + _CELL, top + 17, _short(value), anchor="middle"))
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(clean(heat.title))}">{"".join(parts)}</svg>'
    )


def _is_number(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _limits(ys: Sequence[float]) -> tuple[float, float]:
    low, high = min(ys), max(ys)
    if low >= 0 and high <= 1:
        return 0.0, 1.0  # shares and accuracies: the same axis everywhere
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


class _Scale:
    """A number of the data to a place in the picture."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._span = low, (high - low) or 1.0
        self._start, self._length = start, end - start

    def __call__(self, value: float) -> str:
        place = self._start + self._length * (value - self._low) / self._span
        return f"{place:.1f}"


def _axes(
    plot: Plot, x: tuple[float, float], y: tuple[float, float], x_of: _Scale, y_of: _Scale
) -> Iterator[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for tick in _ticks(*y):
        yield f'<path d="M{_LEFT} {y_of(tick)}H{right}" stroke="#ddd"/>'
        yield _text(_LEFT - 6, float(y_of(tick)) + 4, _short(tick), anchor="end")
    for tick in _ticks(*x):
        yield _text(float(x_of(tick)), bottom + 16, _short(tick), anchor="middle")
    yield f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="#333"/>'
    yield _text((_LEFT + right) / 2, _HEIGHT - 8, plot.x_label, anchor="middle")
    yield (
        f'<text transform="translate(14 {(_TOP + bottom) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(clean(plot.y_label))}</text>'
    )


def _line(line: Line, number: int, x_of: _Scale, y_of: _Scale) -> Iterator[str]:
    colour = "#777" if line.control else _COLOURS[number % len(_COLOURS)]
    dash = "4 3" if line.control else _DASHES[number // len(_COLOURS) % len(_DASHES)]
    if line.low and line.high:
        band = [
            (x, low, high)
            for x, low, high in zip(line.x, line.low, line.high, strict=True)
            if _is_number(low) and _is_number(high)
        ]
        edge = [f"{x_of(x)},{y_of(high)}" for x, _, high in band]
        edge += [f"{x_of(x)},{y_of(low)}" for x, low, _ in reversed(band)]
        yield f'<polygon points="{" ".join(edge)}" fill="{colour}" fill-opacity="0.15"/>'
    path, pen = [], "M"
    for x, y in zip(line.x, line.y, strict=True):
        if not _is_number(y):
            pen = "M"
            continue
        path.append(f"{pen}{x_of(x)} {y_of(y)}")
        pen = "L"
    style = f'stroke="{colour}" stroke-width="2"' + (f' stroke-dasharray="{dash}"' if dash else "")
    yield f'<path d="{" ".join(path)}" fill="none" {style}/>'
    top = _TOP + 8 + 16 * number
    if top < _HEIGHT:
        start = _WIDTH - _RIGHT + 10
        yield f'<path d="M{start} {top}h20" {style}/>'
        yield _text(start + 26, top + 4, line.name[:18], anchor="start")


def _ticks(low: float, high: float) -> list[float]:
    step = 10 ** math.floor(math.log10((high - low) or 1.0))
    if (high - low) / step < 3:
        step /= 5
    elif (high - low) / step < 6:
        step /= 2
    first = math.ceil(low / step - 1e-9)
    return [step * n for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    return f"{value:.3g}"


def _text(x: float, y: float, words: str, *, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(clean(words))}</text>'
