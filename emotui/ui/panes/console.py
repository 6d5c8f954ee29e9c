"""The console: one line to type an edit or a command in, what may stand next, what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len
from textual import events
from textual.binding import BindingType
from textual.content import Content
from textual.suggester import Suggester
from textual.widget import Widget
from textual.widgets.input import Selection

from emotui.core.text import clean
from emotui.ui.definition import PLACEHOLDER, PREFILLED
from emotui.ui.edits import ANOTHER_TEXT
from emotui.ui.paint import fit, safe, visible
from emotui.ui.panes.entry import Entry
from emotui.ui.panes.lines import act_in_turn, bindings_of

if TYPE_CHECKING:
    from emotui.core.edits.completion import Completion

Completer = Callable[[str, int], "list[Completion]"]
"""What may stand at the cursor of a line."""

_WORD = 26
"""Most cells of a word in the list; its note stands behind it."""
_NOTHING = "enter runs it · up and down: lines before · esc leaves"
_PADDING = 1


class Choices(Widget):
    """What may stand next, a line each; the one that tab takes is marked."""

    def __init__(self) -> None:
        super().__init__(id="choices")
        self.found: list[Completion] = []
        self.chosen = 0

    def show(self, found: list[Completion], chosen: int = 0) -> None:
        """List completions; the chosen one is kept in sight."""
        if (found, chosen) != (self.found, self.chosen):
            self.found, self.chosen = found, chosen
            self.refresh()

    def render(self) -> Content:
        """Return as many lines as there is room for."""
        width, height = self.content_size.width or 80, self.content_size.height or 1
        if not self.found:
            return Content(fit(_NOTHING, width))
        room = height if len(self.found) <= height else height - 1
        first = max(0, min(self.chosen - room // 2, len(self.found) - room))
        longest = max(cell_len(visible(one.text)) for one in self.found[first : first + room])
        column = min(longest, _WORD, width - 4)
        lines = [
            fit(
                f"{'▸' if number == self.chosen else ' '} "
                f"{fit(visible(one.text), column)}  {visible(one.note)}",
                width,
            )
            for number, one in enumerate(self.found[first : first + room], start=first)
        ]
        if room < len(self.found):
            lines.append(
                fit(f"  {self.chosen + 1} of {len(self.found)} · tab takes, again: next", width)
            )
        return Content("\n").join(safe(line) for line in lines)


class Pointer(Widget):
    """Points at the word that is wrong, under the line."""

    def __init__(self) -> None:
        super().__init__(id="pointer")
        self._marks = ""

    def point(self, before: int, width: int) -> None:
        """Put `width` signs after `before` cells."""
        self._marks = " " * max(0, before) + "^" * max(1, width)
        self.add_class("-open")
        self.refresh()

    def clear(self) -> None:
        """Point nowhere."""
        self.remove_class("-open")

    def render(self) -> Content:
        """Return the line."""
        return Content(fit(self._marks, self.content_size.width or 80))


class _First(Suggester):
    """The first completion, as the text behind the cursor."""

    def __init__(self, console: Console) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self._console = console

    async def get_suggestion(self, value: str) -> str | None:
        """Return the line with the first completion in it, where that only adds to the line."""
        found = self._console.completions()
        line = found[0].put_in(value) if found else ""
        return line if line.startswith(value) and line == clean(line) else None


class Console(Entry):
    """A line that is open only while it is typed in."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_of("console", priority=True)

    def __init__(self) -> None:
        super().__init__(
            id="console",
            placeholder="an edit, as in: ablate L5/12 at here; or a command: help",
            select_on_focus=False,
            suggester=_First(self),
        )
        self.choices = Choices()
        self.pointer = Pointer()
        self.completer: Completer = lambda _line, _cursor: []
        self._taken: tuple[str, list[Completion], int] | None = None
        """While tab goes round: the line before, what may stand there, and which does."""

    async def _on_key(self, event: events.Key) -> None:
        """Act on a key in its turn; others are typed."""
        await act_in_turn(self, event)

    def open(self, line: str = "") -> None:
        """Show `line`, the cursor at its end or on the word to be typed over, and take the keys."""
        self.value = line
        for widget in (self, self.choices):
            widget.add_class("-open")
        self.focus()
        self.cursor_position = len(line)
        words = PLACEHOLDER if line.startswith(PREFILLED) else ANOTHER_TEXT
        if (start := line.find(words)) >= 0:
            self.selection = Selection(start, start + len(words))  # typed over
        self._look()

    def close(self) -> None:
        """Hide the line."""
        for widget in (self, self.choices, self.pointer):
            widget.remove_class("-open")

    def put(self, line: str) -> None:
        """Put another line in the place of the present one."""
        self.value = line
        self.cursor_position = len(line)

    def completions(self) -> list[Completion]:
        """Return what may stand at the cursor."""
        return self.completer(self.value, self.cursor_position)

    def take(self, by: int) -> None:
        """Put the first completion in the line; called again, the next or the one before."""
        if self._taken is None:
            line, found, chosen = self.value, self.completions(), 0 if by > 0 else -1
        else:
            line, found, chosen = self._taken
            chosen += by
        if not found:
            return
        chosen %= len(found)
        one = found[chosen]
        alone = len(found) == 1
        value = one.put_in(line)
        end = one.start + len(one.text)
        if alone and not value[end:].startswith(" "):
            value = f"{value[:end]} {value[end:]}"
        self._taken = None if alone else (line, found, chosen)
        self.value = value
        self.cursor_position = end + alone
        self._look()

    def point_at(self, start: int, end: int) -> None:
        """Point at a part of the line; what is typed next takes it away."""
        before = cell_len(visible(self.value[:start])) - self.scroll_offset.x
        self.pointer.point(before, cell_len(visible(self.value[start:end])) or 1)
        self.choices.remove_class("-open")

    def watch_value(self, value: str) -> None:
        """Look again at what may stand next, and stop pointing."""
        self.pointer.clear()
        if self.has_class("-open"):
            self.choices.add_class("-open")
        if self._taken is not None:
            line, found, chosen = self._taken
            if value != found[chosen].put_in(line):
                self._taken = None
        self._look()

    def refresh_choices(self) -> None:
        """Look again: there is more to name."""
        self._look()

    def watch_selection(self) -> None:
        """Look again: the cursor moved."""
        self._look()

    def _look(self) -> None:
        if not self.is_mounted or not self.has_class("-open"):
            return
        if self._taken is not None:
            self.choices.show(self._taken[1], self._taken[2])
        else:
            self.choices.show(self.completions())

    def on_blur(self, _event: events.Blur) -> None:
        """Point nowhere once the keys are elsewhere."""
        self.pointer.clear()
