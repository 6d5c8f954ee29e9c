"""The Layers pane: layer by emotion at one token, or layer by token for one emotion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

from rich.cells import cell_len
from rich.style import Style
from textual import events
from textual.binding import BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.strip import Strip

from emotui.core.records import EMBEDDING_LAYER, Trust
from emotui.ui import state as states
from emotui.ui.paint import GLYPHS, fit, glyph_of, number, safe, step_of, strip_of, visible
from emotui.ui.panes.lines import LinePane, bindings_of
from emotui.ui.readings import Cell, Readings
from emotui.ui.state import ScreenState, place_name

_TRUST_LETTERS = {"trusted": "t", "lexical": "l", "untrusted": "u"}
_LEGENDS = (
    "t trusted  l lexical  u untrusted  ( ) not fitted here  * above neutral",
    "t trusted  l lexical  u untrusted",
)
_LOGIT = "L"
_BEFORE_PROBES = ("reading the text", "fitting probes")
"""Work after which there are probes, where there were none."""
_LOGIT_LEGEND = "L logit, no z"
_PHASES = 4
"""Cells of the phases of a layer."""
_PHASES_LEGEND = "R readable  U used  W written"
_WIDTHS = (9, 8, 7, 6, 5, 4, 3)
_ROOMY, _READABLE = 60, 5
"""Where there are so many cells, columns of tokens are at least so wide, and scroll."""
_LENS_LEAST = 22
"""Cells below which the lens is left out."""


def cell_text(
    cell: Cell | None, width: int, *, cursor: bool, row_trust: Trust | None = None
) -> str:
    """Return a cell in `width` (3 to 9) cells: size as a glyph, sign, digits, mark.

    Round brackets stand around a number that is read where its probe was not fitted, square
    ones around the cursor. L before it: a logit, of a probe without z. The letter of its own trust
    stands after it where that is not `row_trust`, which the row's letter says.
    """
    if cell is None:
        return (("[" + " " * (width - 2) + "]") if cursor else "").ljust(width)
    digits = number(cell.z, 4 if width >= 6 else 2)
    left, right = glyph_of(cell.shade) if cell.standardised else _LOGIT, " "
    if cell.marked:
        right = "*"
    elif cell.by_construction:
        right = "c"
    if row_trust is not None and cell.trust != row_trust:
        right = _TRUST_LETTERS[cell.trust]
    if cell.hollow:
        left, right = "(" if cell.standardised else _LOGIT, ")"
    if cursor:
        left, right = "[" if cell.standardised else _LOGIT, "]"
    return fit(f"{left}{digits}{right}", width) if width >= 4 else f"{left}{digits}"


class LayersPane(LinePane):
    """The heat map. Rows are layers, the top one above, the embedding row below layer 0."""

    HEADER_LINES: ClassVar[int] = 1
    GUTTER: ClassVar[int] = 6
    BINDINGS: ClassVar[list[BindingType]] = bindings_of("layers")

    def __init__(self) -> None:
        super().__init__(name="layers", title="2 Layers")
        self._width = 6
        self._lens = 0
        """Cells for the lens at the right; 0 where it is not shown."""
        self._heads: tuple[str, ...] = ()
        self._blank = 0
        """Columns at the left that nothing is read in."""
        self._phases: tuple[str, ...] = ()
        """R, U and W for each layer from 0; () where they were not computed."""

    @property
    def frozen(self) -> int:
        """With room for the phases, where these were computed."""
        return self.GUTTER + (_PHASES if self._phases else 0)

    def frame(self, state: ScreenState) -> object:
        """The trace, the view, what the view is of, and the phases."""
        of = state.position if state.view == "emotions" else state.emotion
        phases = states.phases(state)
        return (id(state.readings), state.view, state.site, of, phases, state.work is None)

    def cursor(self, state: ScreenState) -> object:
        """The cell under the cursor."""
        return (state.layer, self._column(state))

    def cursor_rows(self, state: ScreenState) -> Iterable[int]:
        """The row of the cursor's layer."""
        layers = state.readings.layers if state.readings is not None else ()
        return (layers.index(state.layer),) if state.layer in layers else ()

    def _columns(self, state: ScreenState, readings: Readings) -> tuple[str, ...]:
        if state.view == "emotions":
            return tuple(visible(emotion) for emotion in readings.emotions)
        return readings.token_texts

    def prepare(self, state: ScreenState) -> None:
        """Choose the width of a cell: the widest with which all columns are seen, else 4."""
        readings = state.readings
        self._phases = states.phases(state)
        legend = _LEGENDS[self.size.width < len(_LEGENDS[0]) + 6]
        if self._phases:
            legend = f"{_PHASES_LEGEND}  {_LEGENDS[1]}"
        if readings is not None and not readings.all_standardised:
            legend = f"{_LOGIT_LEGEND}  {_LEGENDS[1]}"
        self.border_subtitle = legend if readings is not None and readings.emotions else ""
        self.border_title = safe(self._title(state))
        if readings is None:
            self._heads = ()
            return
        self._heads = self._columns(state, readings)
        self._blank = self._blank_columns(state, readings)
        room = self.scrollable_content_region.width - self.frozen
        widths = _WIDTHS if state.view == "emotions" else _WIDTHS[3:]
        has_lens = state.view == "emotions" and readings.lens_at(state.position)
        for width in widths:
            self._lens = room - width * len(self._heads) if has_lens and width >= 6 else 0
            if self._lens >= _LENS_LEAST:
                self._width = width
                return
        self._lens = 0
        fitting = (width for width in widths if width * len(self._heads) <= room)
        self._width = next(fitting, 4)
        if state.view == "tokens" and room >= _ROOMY:
            self._width = max(self._width, _READABLE)

    def _blank_columns(self, state: ScreenState, readings: Readings) -> int:
        """Return how many columns from the left have no readout of the site at any layer."""
        if not readings.emotions:
            return 0
        layer = next((layer for layer in readings.layers if layer >= 0), 0)
        if state.view == "emotions":
            read = (
                readings.cell(state.site, state.position, layer, emotion)
                for emotion in readings.emotions
            )
            return len(self._heads) if all(cell is None for cell in read) else 0
        for place in range(len(self._heads)):
            if readings.cell(state.site, place, layer, state.emotion) is not None:
                return place
        return len(self._heads)

    def _title(self, state: ScreenState) -> str:
        if state.readings is None:
            return "2 Layers"
        if state.view == "emotions":
            token = state.readings.tokens[state.position].string.strip()
            return f"2 Layers · {state.site} · emotions at {place_name(state)} {token!r}"
        return f"2 Layers · {state.site} · {state.emotion or 'no emotion'} at every token"

    def _column(self, state: ScreenState) -> int:
        if state.view == "tokens":
            return state.position
        emotions = state.readings.emotions if state.readings is not None else ()
        return emotions.index(state.emotion) if state.emotion in emotions else 0

    @property
    def _columns_in_sight(self) -> range:
        """The columns that are not scrolled away: a long text has thousands."""
        count, first = len(self._heads), self.scroll_offset.x // self._width
        room = self.scrollable_content_region.width - self.frozen
        return range(min(first, count), min(first + max(0, room) // self._width + 2, count))

    @property
    def _full_width(self) -> int:
        return self.frozen + self._width * len(self._heads) + self._lens

    def extent(self) -> Size:
        """Gutter and columns; header and layers."""
        readings = self.state.readings if self.state is not None else None
        if readings is None or not readings.emotions:
            return Size(1, 1)
        width = self._full_width
        return Size(width, self.HEADER_LINES + len(readings.layers))

    def cursor_region(self) -> Region | None:
        """Return the cursor's cell."""
        state = self.state
        if state is None or state.readings is None or state.layer not in state.readings.layers:
            return None
        row = state.readings.layers.index(state.layer)
        return Region(self._column(state) * self._width, row, self._width, 1)

    def header_line(self) -> Strip | None:
        """Return the names of the columns."""
        state = self.state
        if state is None or state.readings is None or not state.readings.emotions:
            return None
        column, width = self._column(state), self._full_width
        parts: list[tuple[str, Style]] = [(" " * self.frozen, self.palette.quiet)]
        sight = self._columns_in_sight
        parts.append((" " * (self._width * sight.start), self.palette.quiet))
        for index in sight:
            head, chosen = self._heads[index], index == column
            style = self.palette.strong + Style(underline=True) if chosen else self.palette.quiet
            parts.append((_head(head, self._width - 1), style))
            parts.append((" ", self.palette.quiet))
        if self._lens:
            parts.append((" next token (lens)", self.palette.quiet))
        return strip_of(parts, width, self.palette.base)

    def body_line(self, row: int) -> Strip | None:
        """Return one layer."""
        state = self.state
        if state is None:
            return None
        if state.readings is None or not state.readings.emotions:
            return self.message(row, _explanation(state))
        if row >= len(state.readings.layers):
            return None
        layer = state.readings.layers[row]
        width = self._full_width
        return strip_of(self._row(state, state.readings, layer), width, self.palette.base)

    def _row(
        self, state: ScreenState, readings: Readings, layer: int
    ) -> Iterator[tuple[str, Style]]:
        here = layer == state.layer
        trust = readings.trust_of(state.site, state.position, layer)
        name = "emb" if layer == EMBEDDING_LAYER else str(layer)
        letter = _TRUST_LETTERS[trust] if trust is not None else " "
        gutter = f"{'▸' if here else ' '}{name:>3}{letter} "
        if self._phases:
            gutter += (self._phases[layer] if layer >= 0 else "").ljust(_PHASES)
        yield gutter, self.palette.strong if here else self.palette.quiet
        chosen = self._column(state)
        sight = self._columns_in_sight
        yield " " * (self._width * sight.start), self.palette.quiet
        blank = range(sight.start, min(self._blank, sight.stop))
        row = readings.layers.index(layer) - self.scroll_offset.y
        said = _why_blank(state.site, row) if blank else ""
        if said:
            yield fit(said, self._width * len(blank)), self.palette.quiet
            sight = range(blank.stop, sight.stop)
        for column in sight:
            if state.view == "emotions":
                place, emotion = state.position, readings.emotions[column]
            else:
                place, emotion = column, state.emotion
            cell = readings.cell(state.site, place, layer, emotion)
            cursor = here and column == chosen
            text = cell_text(cell, self._width, cursor=cursor, row_trust=trust)
            if cursor:
                yield text, self.palette.cursor
            elif cell is None:
                yield text, self.palette.quiet
            else:
                less = trust == "trusted" and cell.trust != trust
                filled = cell.trust != "untrusted" and not cell.hollow and not less
                style = self.palette.shade(cell.shade, filled=filled)
                glyph = self.palette.glyphs[step_of(cell.shade)] if filled else style
                yield text[:1], glyph if text[0] in GLYPHS[2:] else style
                yield text[1:], style
        if self._lens:  # only where all columns are in sight
            yield fit(_lens_text(readings.lens(layer), self._lens), self._lens), self.palette.quiet

    def on_click(self, event: events.Click) -> None:
        """Put the cursor on the cell that was clicked."""
        offset = event.get_content_offset(self)
        if offset is None or self.state is None or self.state.readings is None:
            return
        row = offset.y - self.HEADER_LINES + self.scroll_offset.y
        column = (offset.x - self.frozen + self.scroll_offset.x) // self._width
        if 0 <= row < len(self.state.readings.layers) and 0 <= column < len(self._heads):
            self.post_message(CellChosen(self.state.readings.layers[row], column))


class CellChosen(Message):
    """A cell was clicked."""

    def __init__(self, layer: int, column: int) -> None:
        super().__init__()
        self.layer = layer
        self.column = column


def _lens_text(tokens: Sequence[tuple[str, float]], width: int) -> str:
    """Return as many tokens with their probabilities as fit whole in `width` cells."""
    shown = ""
    for token, probability in tokens:
        more = f"{shown} {visible(repr(token))} {probability:.2f} "
        if shown and cell_len(more) > width:
            break
        shown = more
    return shown


def _head(text: str, width: int) -> str:
    """Return the beginning of a column's name, cut without an ellipsis, in `width` cells."""
    cut = fit(text.strip(), width + 1)
    return fit(cut[:width].replace("…", ""), width)


def _why_blank(site: str, row: int) -> str:
    """Return what stands in place of absent cells, in the first two rows in sight."""
    if row not in (0, 1):
        return ""
    if site in ("attn", "mlp"):
        return (
            f"{site}: kept at the readout only (P goes there)",
            "emotui open --all-sites keeps all tokens",
        )[row]
    return (f"No probe reads {site} here.", "")[row]


def _explanation(state: ScreenState) -> list[str]:
    if state.readings is None:
        if state.work is not None:
            return ["The model is being read: layers appear here."]
        return ["No text has been read yet: press i, type one, press enter."]
    if state.work is not None and state.work.what in _BEFORE_PROBES:
        return ["No probes for this model and prompt yet: they are being fitted, once.",
                "The trace is already here; esc cancels the fit."]  # fmt: skip
    return ["No probes for this model and prompt: layers are not read.", "F fits them."]
