"""The editor of the Text pane. Imported when it is first opened: it costs start time."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import events
from textual.binding import BindingType
from textual.widgets import TextArea

from emotui.core.text import clean
from emotui.ui.panes.lines import act_in_turn, bindings_of


class TextEditor(TextArea):
    """A many-line editor that holds a text as it is and shows it cleaned."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_of("editor", priority=True)

    def __init__(self) -> None:
        super().__init__(id="editor", soft_wrap=True, show_line_numbers=False, theme="css")
        self.cursor_blink = False
        self.placeholder = "Type or paste a text, then press enter."

    def hold(self, text: str) -> None:
        """Hold another text, cursor at its end; undo leads back."""
        if text != self.text:
            self.replace(text, self.document.start, self.document.end)
        self.move_cursor(self.document.end)

    def get_line(self, line_index: int) -> Text:
        """Return a line cleaned, character by character, so that columns stay."""
        return Text(clean(self.document.get_line(line_index)), end="", no_wrap=True)

    async def _on_key(self, event: events.Key) -> None:
        """Act on a key in its turn; others are typed."""
        await act_in_turn(self, event)

    async def _on_paste(self, event: events.Paste) -> None:
        """Insert pasted text with line ends as the editor writes them."""
        event.prevent_default()
        event.stop()
        self.insert_paste(event.text)

    def insert_paste(self, text: str) -> None:
        """Insert a pasted text over the selection."""
        plain = text.replace("\r\n", "\n").replace("\r", "\n")
        if result := self._replace_via_keyboard(plain, *self.selection):
            self.move_cursor(result.end_location)
