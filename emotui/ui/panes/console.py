"""The console: one line to type an edit in."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import BindingType
from textual.widgets import Input

from emotui.ui.panes.lines import bindings_of


class Console(Input):
    """A line that is open only while it is typed in."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_of("console", priority=True)

    def __init__(self) -> None:
        super().__init__(
            id="console", placeholder="an edit, as in: ablate L5/12 at here", select_on_focus=False
        )

    def open(self, line: str = "") -> None:
        """Show `line`, the cursor at its end, and take the keys."""
        self.value = line
        self.add_class("-open")
        self.focus()
        self.cursor_position = len(line)

    def close(self) -> None:
        """Hide the line."""
        self.remove_class("-open")
