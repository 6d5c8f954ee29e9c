"""A result in lines, over the panes, to be read and scrolled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widget import Widget


class Report(Widget):
    """Lines as they are given; a long one is wrapped."""

    DEFAULT_CSS = "Report { height: auto; width: 1fr; }"

    def __init__(self, lines: Sequence[Content | str]) -> None:
        super().__init__()
        self._content = _joined(lines)

    def show(self, lines: Sequence[Content | str]) -> None:
        """Show other lines."""
        self._content = _joined(lines)
        self.refresh(layout=True)

    def render(self) -> Content:
        """Return the lines."""
        return self._content


def _joined(lines: Sequence[Content | str]) -> Content:
    # Plain text becomes content as it is: nothing is parsed as markup.
    return Content("\n").join(
        line if isinstance(line, Content) else Content(line) for line in lines
    )


class ReportScreen(ModalScreen[None]):
    """A titled report; escape closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "dismiss", show=False),
        Binding("down,j", "scroll(1)", show=False),
        Binding("up,k", "scroll(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
    ]

    def __init__(self, title: str, lines: Sequence[Content | str]) -> None:
        """Hold `lines`, already cleaned."""
        super().__init__()
        self._title = title
        self._lines = tuple(lines)

    def compose(self) -> ComposeResult:
        """Compose the report."""
        body = VerticalScroll(Report(self._lines), id="report")
        body.border_title = Content(self._title)
        body.border_subtitle = "j k scroll   esc closes this"
        yield body

    def action_scroll(self, by: int) -> None:
        """Scroll by a line."""
        self.query_one("#report").scroll_relative(y=by, animate=False)

    def action_page(self, by: int) -> None:
        """Scroll by a page."""
        body = self.query_one("#report")
        body.scroll_relative(y=by * max(1, body.size.height - 1), animate=False)
