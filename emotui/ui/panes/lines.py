"""What the panes that paint line by line have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget

from emotui.themes import MONO
from emotui.ui.actions import PaneName, actions_of
from emotui.ui.paint import Palette, fit, palette_of, strip_of
from emotui.ui.state import ScreenState

_TAKEN_SECONDS = 1.0


async def act_in_turn(widget: Widget, event: events.Key) -> None:
    """Do what a key is bound to on a widget that is typed in, before the keys that follow it.

    Textual's bindings run when the key has come up through all widgets: what was typed after it
    would stand before it.
    """
    found = widget.screen.active_bindings.get(event.key)
    if found is not None and found.node is widget and found.enabled:
        event.stop()
        event.prevent_default()
        await widget.app.run_action(found.binding.action, widget)


async def taken(widget: Widget) -> None:
    """Wait until a widget has taken the keys that were sent to it.

    Bindings with priority run ahead of them: enter would run a text without its last letters.
    """
    done = asyncio.Event()
    if widget.call_later(done.set):
        with suppress(TimeoutError):  # it may close meanwhile
            await asyncio.wait_for(done.wait(), _TAKEN_SECONDS)


def bindings_of(pane: PaneName, *, priority: bool = False) -> list[BindingType]:
    """Return the bindings of a pane from the table of actions."""
    return [
        Binding(
            ",".join(action.keys),
            f"screen.do('{action.id}')",
            action.label,
            show=False,
            priority=priority,
            id=f"{pane}.{action.id}",
        )
        for action in actions_of(pane)
    ]


class PaintedView(ScrollView, can_focus=True):
    """A scrolled view that paints its own lines, with the palette of the theme in force."""

    _palette: Palette | None = None

    @property
    def palette(self) -> Palette:
        """The styles in force."""
        if self._palette is None:
            app = self.app
            coloured = not app.no_color and app.current_theme.name != MONO
            self._palette = palette_of(app.theme_variables, coloured=coloured)
        return self._palette

    def notify_style_update(self) -> None:
        """Forget the styles of the theme before."""
        self._palette = None
        super().notify_style_update()


class LinePane(PaintedView):
    """A pane that draws a `ScreenState` line by line, with frozen header lines on top.

    A subclass says what it needs repainting for (`frame`, and `cursor` for the cursor's lines),
    how large its content is (`extent`), and draws lines: `header_line()` and `body_line(row)`,
    unscrolled and of any width.
    """

    HEADER_LINES: ClassVar[int] = 0
    """0 or 1."""
    GUTTER: ClassVar[int] = 0
    """Cells at the left that do not scroll."""

    def __init__(self, *, name: str, title: str, classes: str = "pane") -> None:
        super().__init__(id=name, classes=classes)
        self.border_title = title
        self.state: ScreenState | None = None
        self._laid_out_for = 0
        """The width that the content was laid out for."""

    @property
    def frozen(self) -> int:
        """Cells at the left that do not scroll, as things are."""
        return self.GUTTER

    def show(self, state: ScreenState) -> None:
        """Draw a state: nothing, some lines or everything, as this pane's view of it differs."""
        former, self.state = self.state, state
        if former is None or self.frame(former) != self.frame(state):
            self.rebuild()
        elif self.cursor(former) != self.cursor(state):
            for row in {*self.cursor_rows(former), *self.cursor_rows(state)}:
                self.refresh_line(row + self.HEADER_LINES)
            if self.HEADER_LINES:
                self.refresh(Region(0, 0, self.size.width, self.HEADER_LINES))
            self._keep_in_sight()

    def rebuild(self) -> None:
        """Lay out anew, keep the cursor in sight and repaint."""
        if self.state is None or not self.is_mounted:
            return
        self._laid_out_for = self.scrollable_content_region.width
        self.prepare(self.state)
        self.virtual_size = self.extent()
        self.refresh()
        self.call_after_refresh(self._keep_in_sight)

    def _keep_in_sight(self) -> None:
        if self.scrollable_content_region.width > self._laid_out_for:
            self.rebuild()  # a scroll bar went away
            return
        region = self.cursor_region()
        if region is None:
            return
        width, height = self.scrollable_content_region.size
        left, top = self.scroll_offset
        inner_width, inner_height = width - self.frozen, height - self.HEADER_LINES
        if inner_width <= 0 or inner_height <= 0:
            return
        x = min(max(left, region.right - inner_width), region.x)
        x = -(-x // region.width) * region.width  # whole columns at the left
        y = min(max(top, region.bottom - inner_height), region.y)
        if (x, y) != (left, top):
            self.scroll_to(x, y, animate=False)

    def on_resize(self) -> None:
        """Lay out for the new size."""
        self.rebuild()

    def render_line(self, y: int) -> Strip:
        """Return a line as it stands on the screen."""
        width = self.scrollable_content_region.width
        left, top = self.scroll_offset
        if self.state is None:
            return Strip.blank(width, self.palette.base)
        header = y < self.HEADER_LINES
        line = self.header_line() if header else self.body_line(top + y - self.HEADER_LINES)
        if line is None:
            return Strip.blank(width, self.palette.base)
        if left:
            gutter, rest = line.crop(0, self.frozen), line.crop(self.frozen + left)
            line = Strip.join([gutter, rest])
        return line.adjust_cell_length(width, self.palette.base)

    def message(self, row: int, lines: list[str]) -> Strip | None:
        """Return line `row` of a message, wrapped, in place of the content."""
        width = max(2, self.scrollable_content_region.width)
        shown = [part.plain for line in lines for part in Content(line).wrap(width - 1)]
        if row >= len(shown):
            return None
        return strip_of([(" " + fit(shown[row], width - 1), self.palette.quiet)], width,
                        self.palette.base)  # fmt: skip

    # For subclasses.

    def frame(self, state: ScreenState) -> object:
        """Return what everything that is painted depends on."""
        raise NotImplementedError

    def cursor(self, state: ScreenState) -> object:
        """Return what only the cursor's lines depend on."""
        raise NotImplementedError

    def cursor_rows(self, state: ScreenState) -> Iterable[int]:
        """Return the rows of the content the cursor is on."""
        raise NotImplementedError

    def prepare(self, state: ScreenState) -> None:
        """Prepare for drawing; the width is known."""

    def extent(self) -> Size:
        """Return the size of the content, gutter and header lines included."""
        raise NotImplementedError

    def cursor_region(self) -> Region | None:
        """Return where the cursor is in the scrolled part, gutter and header left out."""
        return None

    def header_line(self) -> Strip | None:
        """Return a header line."""
        raise NotImplementedError

    def body_line(self, row: int) -> Strip | None:
        """Return a line of the content; None past its end."""
        raise NotImplementedError
