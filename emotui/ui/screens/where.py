"""Where an emotion of a text is: the sentence, and the numbers it was made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message

from emotui.core.export.where import table_of
from emotui.core.records import Where
from emotui.ui.paint import visible
from emotui.ui.screens.report import ReportScreen

_WIDEST = 110
_AROUND = 5
"""Cells of a line that border, padding and scroll bar take."""


class Told(Message, bubble=False):
    """A file was written, or why it was not."""

    def __init__(self, line: str) -> None:
        super().__init__()
        self.line = line


class WhereScreen(ReportScreen):
    """The report, which `x` writes as JSON."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("x", "export", show=False)]

    def __init__(
        self, where: Where, *, notes: tuple[str, ...], width: int, export: Callable[[], None]
    ) -> None:
        """Hold the lines for a screen of `width` cells; `export` writes the document."""
        self.where = where
        self._export = export
        super().__init__(
            f"Where {visible(where.emotion)} is", _lines(where, notes, min(width, _WIDEST))
        )

    def on_mount(self) -> None:
        """Name the keys."""
        self.query_one("#report").border_subtitle = "j k scroll   x writes JSON   esc closes this"

    def action_export(self) -> None:
        """Write the document."""
        self._export()

    def on_told(self, message: Told) -> None:
        """Say where the file is."""
        self.query_one("#report").border_subtitle = Content(visible(message.line))


def _lines(where: Where, notes: tuple[str, ...], width: int) -> list[Content | str]:
    claims = where.sentence.split("; ")
    return [
        Content.styled(visible(" ".join(where.text.raw.split())), "$quiet"),
        "",
        *(Content.styled(visible(claim), "bold") for claim in claims),
        *(Content.styled(visible(note), "$quiet") for note in notes),
        "",
        *(visible(line) for line in table_of(where, width=width - _AROUND)),
    ]
