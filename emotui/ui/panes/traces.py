"""The list of cached traces, line by line, and the lines about the one under the cursor."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from rich.style import Style
from textual.binding import BindingType
from textual.content import Content
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.widget import Widget

from emotui.cache.index import TraceRow
from emotui.ui.paint import fit, strip_of, visible
from emotui.ui.panes.lines import PaintedView, bindings_of

Entry = tuple[TraceRow, int]
"""A trace, and how deep it stands under the one it came from."""
_MODEL_CELLS = 14
_TEMPLATE_CELLS = 4
_INDENT = 2
_WIDEST = 1000
"""Characters of a text that are looked at for a line."""


class TraceList(PaintedView):
    """Traces, newest family first, what-ifs under their parent; one line each."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_of("traces")

    def __init__(self) -> None:
        super().__init__(id="trace-list")
        self.entries: list[Entry] = []
        self.cursor = 0
        self.shown_id = ""
        """The trace the explorer shows, marked in the list."""
        self.marked = ""
        """The trace that another is to be compared with; "" for none."""

    @property
    def row(self) -> TraceRow | None:
        """The trace under the cursor; None in an empty list."""
        return self.entries[self.cursor][0] if self.entries else None

    def show(self, entries: list[Entry]) -> None:
        """Show other traces; the cursor stays on its trace where that is among them."""
        former = self.row.id if self.row is not None else self.shown_id
        self.entries = entries
        places = {row.id: place for place, (row, _) in enumerate(entries)}
        self.cursor = places.get(former, min(self.cursor, max(0, len(entries) - 1)))
        self.virtual_size = Size(self.size.width, len(entries))
        self.refresh()
        self.call_after_refresh(self._keep_in_sight)

    def move(self, by: int) -> None:
        """Move the cursor."""
        former = self.cursor
        self.cursor = max(0, min(len(self.entries) - 1, self.cursor + by))
        for row in {former, self.cursor}:
            self.refresh(Region(0, row - self.scroll_offset.y, self.size.width, 1))
        self._keep_in_sight()

    def _keep_in_sight(self) -> None:
        top, height = self.scroll_offset.y, self.size.height
        wanted = min(max(top, self.cursor - height + 1), self.cursor)
        if wanted != top and height > 0:
            self.scroll_to(0, wanted, animate=False)

    def render_line(self, y: int) -> Strip:
        """Return a line as it stands on the screen."""
        width = self.scrollable_content_region.width
        place = y + self.scroll_offset.y
        if place >= len(self.entries):
            return Strip.blank(width, self.palette.base)
        (row, depth), here = self.entries[place], place == self.cursor
        ink = self.palette.strong if here else self.palette.base
        if here:
            ink += Style(reverse=True)
        when = datetime.fromtimestamp(row.created).astimezone().strftime("%m-%d %H:%M")
        mark = "▸" if here else "•" if row.id == self.shown_id else " "
        model = fit(visible(row.model.rstrip("/").rsplit("/", 1)[-1]), _MODEL_CELLS)
        pin = "c" if row.id == self.marked else "*" if row.pinned else " "
        template = fit(visible(row.template), _TEMPLATE_CELLS)
        line = f"{mark}{pin} {when}  {model}  {template} {_branch(depth)}{_what(row, depth)}"
        return strip_of([(fit(line, width), ink)], width, ink)


def _branch(depth: int) -> str:
    return " " * (_INDENT * (depth - 1)) + "└ " if depth else ""


def _what(row: TraceRow, depth: int) -> str:
    """Return what tells a trace from its neighbours: under its parent the last edit."""
    if depth and row.edits:
        return visible(row.edits[-1])
    text = visible(_beginning(row))
    return f"{text}  [{'; '.join(visible(edit) for edit in row.edits)}]" if row.edits else text


def _beginning(row: TraceRow) -> str:
    """Return as much of the text, on one line, as any terminal is wide."""
    return " ".join(row.text[:_WIDEST].split())


class TraceFacts(Widget):
    """What is known of the trace under the cursor, in three lines."""

    def __init__(self) -> None:
        super().__init__(id="trace-facts")
        self._row: TraceRow | None = None

    def show(self, row: TraceRow | None) -> None:
        """Show a trace's facts; None shows none."""
        self._row = row
        self.refresh()

    def render(self) -> Content:
        """Return the lines."""
        row = self._row
        if row is None:
            return Content("")
        size = f"{max(1, row.size // 1000)} kB"
        facts = f"{row.id} · {row.model} · {row.template} · {row.tokens} tokens · {size}"
        text = _beginning(row)
        edits = "; ".join(row.edits) or "no edit"
        return Content("\n").join(
            Content(fit(visible(line), self.size.width)) for line in (text, edits, facts)
        )
