"""The heat map of a difference: layer by emotion at a token, or layer by token for an emotion."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from rich.style import Style
from textual.geometry import Region, Size
from textual.strip import Strip

from emotui.core.difference import Difference
from emotui.core.export.compare import layer_name
from emotui.core.records import Site, Trust
from emotui.themes import STEPS
from emotui.ui.paint import fit, strip_of, visible
from emotui.ui.panes.lines import PaintedView
from emotui.ui.readings import SITES

CELL = 8
"""Cells of a column: sign, number, a space."""
GUTTER = 5
_EDGES = (0.05, 0.25, 0.5, 0.75)
"""Share of the largest change of the site from which the colour is that of step 1, 2, 3, 4."""


@dataclass(frozen=True)
class DifferenceCell:
    """The change of one readout."""

    first: float
    second: float
    trust: Trust
    hollow: bool
    by_construction: bool

    @property
    def change(self) -> float:
        """Second minus first."""
        return self.second - self.first


class DifferenceIndex:
    """A difference as the map asks for it; built once, then only read."""

    def __init__(self, difference: Difference) -> None:
        self.difference = difference
        columns = difference.readouts
        self._cells: dict[tuple[Site, int, int, str], DifferenceCell] = {}
        self.largest: dict[Site, float] = {}
        """By site, the largest change in size: what the colours are a share of."""
        for row, site in enumerate(columns.site):
            cell = DifferenceCell(
                columns.first[row],
                columns.second[row],
                columns.trust[row],
                columns.outside[row],
                columns.by_construction[row],
            )
            place = (site, columns.layer[row], columns.pair[row], columns.emotion[row])
            self._cells[place] = cell
            self.largest[site] = max(self.largest.get(site, 0.0), abs(cell.change))
        self.emotions = tuple(dict.fromkeys(columns.emotion))
        features = difference.features
        self.layers = tuple(sorted({*columns.layer, *features.layer}, reverse=True))
        for site in features.site:
            self.largest.setdefault(site, 0.0)
        self.unit = columns.unit[0] if columns.unit else "z"

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """The sites that both have readouts of."""
        return tuple(site for site in SITES if site in self.largest) or ("resid",)

    def cell(self, site: Site, layer: int, pair: int, emotion: str) -> DifferenceCell | None:
        """Return one change; None where it is not told."""
        return self._cells.get((site, layer, pair, emotion))


@dataclass(frozen=True)
class DifferenceView:
    """What of a difference is shown, and where the cursor is."""

    site: Site
    layer: int
    pair: int
    emotion: str
    view: Literal["emotions", "tokens"] = "emotions"


def change_step(change: float, largest: float) -> int:
    """Return the step of the ramp, -4 to 4, of a change beside the largest of its site."""
    if largest <= 0:
        return 0
    size = sum(abs(change) >= edge * largest for edge in _EDGES)
    return min(size, STEPS) * (1 if change > 0 else -1)


def change_text(cell: DifferenceCell | None, largest: float, *, cursor: bool) -> str:
    """Return a change in seven cells: ▲ or ▼ for its sign where it has a colour, and the number.

    Round brackets: read where the probe was not fitted; c: along the probe's own direction.
    """
    if cell is None:
        return "[     ]" if cursor else "       "
    step = change_step(cell.change, largest)
    left = "▲" if step > 0 else "▼" if step < 0 else " "
    number = f"{cell.change:+.2f}" if abs(cell.change) < 10 else f"{cell.change:+.1f}"
    if not number.strip("+-0."):
        number = " 0.00"
    right = "c" if cell.by_construction else " "
    if cell.hollow:
        left, right = "(", ")"
    if cursor:
        left, right = "[", "]"
    return f"{left}{fit(number, 5)}{right}"


class DifferenceMap(PaintedView):
    """Rows are layers, the top one above; a frozen gutter, a frozen header line."""

    def __init__(self, index: DifferenceIndex, view: DifferenceView) -> None:
        super().__init__(id="difference-map")
        self.index = index
        self.view = view

    @property
    def heads(self) -> tuple[str, ...]:
        """The names of the columns."""
        if self.view.view == "emotions":
            return tuple(visible(emotion) for emotion in self.index.emotions)
        difference = self.index.difference
        return tuple(visible(difference.second.tokens[second]) for _, second in difference.pairs)

    @property
    def column(self) -> int:
        """The cursor's column."""
        if self.view.view == "tokens":
            return self.view.pair
        emotions = self.index.emotions
        return emotions.index(self.view.emotion) if self.view.emotion in emotions else 0

    def show(self, view: DifferenceView) -> None:
        """Draw another view, the cursor in sight."""
        self.view = view
        # Room at the right, so that the last column too is reached by whole columns.
        width = GUTTER + CELL * len(self.heads)
        slack = CELL - 1 if width > self.scrollable_content_region.width else 0
        self.virtual_size = Size(width + slack, 1 + len(self.index.layers))
        self.refresh()
        self.call_after_refresh(self._keep_in_sight)

    def on_resize(self) -> None:
        """Lay out for the new size."""
        self.show(self.view)

    def _keep_in_sight(self) -> None:
        width, height = self.scrollable_content_region.size
        if self.view.layer not in self.index.layers or width <= GUTTER or height <= 1:
            return
        left, top = self.scroll_offset
        here = Region(self.column * CELL, self.index.layers.index(self.view.layer), CELL, 1)
        x = min(max(left, here.right - (width - GUTTER)), here.x)
        x = -(-x // CELL) * CELL
        y = min(max(top, here.bottom - (height - 1)), here.y)
        if (x, y) != (left, top):
            self.scroll_to(x, y, animate=False)

    def render_line(self, y: int) -> Strip:
        """Return a line as it stands on the screen."""
        width = self.scrollable_content_region.width
        left, top = self.scroll_offset
        line = self._header() if y == 0 else self._layer(top + y - 1)
        if line is None:
            return Strip.blank(width, self.palette.base)
        if left:
            line = Strip.join([line.crop(0, GUTTER), line.crop(GUTTER + left)])
        return line.adjust_cell_length(width, self.palette.base)

    def _header(self) -> Strip:
        parts: list[tuple[str, Style]] = [(" " * GUTTER, self.palette.quiet)]
        for column, head in enumerate(self.heads):
            chosen = column == self.column
            style = self.palette.strong + Style(underline=True) if chosen else self.palette.quiet
            parts += [(fit(head.strip(), CELL - 1), style), (" ", self.palette.quiet)]
        return strip_of(parts, GUTTER + CELL * len(self.heads), self.palette.base)

    def _layer(self, row: int) -> Strip | None:
        if row >= len(self.index.layers):
            return None
        view, layer = self.view, self.index.layers[row]
        here = layer == view.layer
        gutter = f"{'▸' if here else ' '}{layer_name(layer).removeprefix('L'):>3} "
        parts = [(gutter, self.palette.strong if here else self.palette.quiet)]
        largest = self.index.largest.get(view.site, 0.0)
        for column in range(len(self.heads)):
            pair, emotion = view.pair, view.emotion
            if view.view == "emotions":
                emotion = self.index.emotions[column]
            else:
                pair = column
            cell = self.index.cell(view.site, layer, pair, emotion)
            cursor = here and column == self.column
            text = change_text(cell, largest, cursor=cursor)
            parts += [(text, self._style(cell, largest, cursor=cursor)), (" ", self.palette.base)]
        return strip_of(parts, GUTTER + CELL * len(self.heads), self.palette.base)

    def _style(self, cell: DifferenceCell | None, largest: float, *, cursor: bool) -> Style:
        if cursor:
            return self.palette.cursor
        if cell is None:
            return self.palette.quiet
        filled = cell.trust != "untrusted" and not cell.hollow
        styles = self.palette.fills if filled else self.palette.inks
        return styles[change_step(cell.change, largest)]
