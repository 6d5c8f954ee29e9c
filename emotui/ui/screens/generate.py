"""What the model writes after the text: without edits and with them, side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Protocol

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Static

from emotui.core.errors import EmotuiError
from emotui.core.protocol import GenerationSpec
from emotui.core.records import Trace
from emotui.ui.paint import safe, visible
from emotui.ui.writing import Writing, how, paragraphs, reading_lines, remarks

NARROWEST_SIDE_BY_SIDE = 100
_KEYS = "n more samples · l twice as long · x export · j k scroll · "


class TraceRead(Message, bubble=False):
    """The trace of a side was read from the cache."""

    def __init__(self, trace: Trace, spec: GenerationSpec, *, edited: bool) -> None:
        super().__init__()
        self.trace = trace
        self.spec = spec
        self.edited = edited


class Told(Message, bubble=False):
    """A file was written, or something went wrong."""

    def __init__(self, *lines: str) -> None:
        super().__init__()
        self.lines = tuple(line for line in lines if line)

    @classmethod
    def of_error(cls, error: EmotuiError) -> Told:
        """Return an error in lines."""
        return cls(error.what, error.why, error.todo)


class Writer(Protocol):
    """What the screen asks to be done."""

    def escape(self) -> None:
        """Cancel; close where nothing is written."""

    def leave(self) -> None:
        """Close, and cancel what is being written."""

    def more(self) -> None:
        """Draw more samples."""

    def longer(self) -> None:
        """Write twice as much."""

    def export(self) -> None:
        """Write what was generated into a file."""

    def read(self, message: TraceRead) -> None:
        """Show what one side wrote, then write the other."""


class GenerateScreen(Screen[None]):
    """Two columns of texts, or one over the other where it is narrow, and what is read in them."""

    CSS = """
    GenerateScreen { layout: vertical; }
    GenerateScreen #written { height: 1fr; layout: horizontal; }
    GenerateScreen.-stacked #written { layout: vertical; }
    GenerateScreen .side {
        width: 1fr; height: 1fr; border: round $secondary; background: $surface;
        padding: 0 1; scrollbar-size: 1 1;
    }
    GenerateScreen .side Static { width: 1fr; height: auto; }
    GenerateScreen #readings {
        height: auto; max-height: 50%; border: round $secondary; background: $surface;
        padding: 0 1; scrollbar-size: 1 1; display: none;
    }
    GenerateScreen.-stacked #readings { max-height: 9; }
    GenerateScreen #readings Static { width: 1fr; height: auto; }
    GenerateScreen #said { height: auto; max-height: 4; padding: 0 1; }
    GenerateScreen #generate-keys { height: 1; padding: 0 1; color: $quiet; text-wrap: nowrap; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "call('escape')", show=False),
        Binding("q", "call('leave')", show=False),
        Binding("n", "call('more')", show=False),
        Binding("l", "call('longer')", show=False),
        Binding("x", "call('export')", show=False),
        Binding("down,j", "scroll(1)", show=False),
        Binding("up,k", "scroll(-1)", show=False),
        Binding("pagedown", "scroll(10)", show=False),
        Binding("pageup", "scroll(-10)", show=False),
    ]
    AUTO_FOCUS = ""

    def __init__(self, writing: Writing, writer: Writer) -> None:
        super().__init__()
        self.writing = writing
        self._writer = writer
        self._texts = {edited: Static() for edited in (False, True)}
        self._sides = {
            edited: VerticalScroll(self._texts[edited], classes="side", can_focus=False)
            for edited in (False, True)
        }
        self._readings = Static()
        self._table = VerticalScroll(self._readings, id="readings", can_focus=False)
        self._said = Static(id="said")
        self._keys = Static(id="generate-keys")

    def compose(self) -> ComposeResult:
        """Compose the columns; the second only where edits are in force."""
        with Container(id="written"):
            yield self._sides[False]
            if self.writing.edits:
                yield self._sides[True]
        yield self._table
        yield self._said
        yield self._keys

    def on_mount(self) -> None:
        """Draw what there is."""
        self.show(self.writing)

    def on_resize(self, event: events.Resize) -> None:
        """Put the columns beside or over each other."""
        self.set_class(event.size.width < NARROWEST_SIDE_BY_SIDE, "-stacked")

    def show(self, writing: Writing) -> None:
        """Draw."""
        ended = self.writing.running and not writing.running
        self.writing = writing
        if not self.is_mounted:
            return
        self._texts[False].update(_paragraphs(writing, edited=False))
        self._sides[False].border_title = safe(f"without edits · after {_ending(writing.text)}")
        self._sides[False].border_subtitle = how(writing.spec)
        if writing.edits:
            self._texts[True].update(_paragraphs(writing, edited=True))
            self._sides[True].border_title = safe(f"edited · {'; '.join(writing.edits)}")
        lines = reading_lines(writing)
        self._table.display = bool(lines)
        self._table.border_title = "read in what was written" + (
            ", before → after" if writing.edits else ""
        )
        head, rest = lines[:1], lines[1:]
        self._readings.update(
            Content("\n").join(
                [
                    *(Content.styled(line, "bold") for line in head),
                    *(
                        Content.styled(line, "bold") if row == 0 else Content(line)
                        for row, line in enumerate(rest)
                    ),
                ]
            )
        )
        self._said.update(Content("\n").join(Content(line) for line in _said(writing)))
        self._keys.update(_KEYS + ("esc cancels" if writing.running else "esc closes"))
        if writing.running:
            for edited in (False, True):
                if writing.side(edited=edited).growing is not None:
                    self._sides[edited].scroll_end(animate=False)
        elif ended:
            for edited in (False, True):
                self._sides[edited].scroll_home(animate=False)

    def on_trace_read(self, message: TraceRead) -> None:
        """Take the finished texts of a side."""
        self._writer.read(message)

    def on_told(self, message: Told) -> None:
        """Say what happened."""
        self.show(replace(self.writing, notice=message.lines))

    def action_call(self, name: str) -> None:
        """Hand a key on."""
        what: Callable[[], None] = getattr(self._writer, name)
        what()

    def action_scroll(self, by: int) -> None:
        """Scroll both columns and the table."""
        for part in (*self._sides.values(), self._table):
            if part.is_mounted:
                part.scroll_relative(y=by, animate=False)


def _ending(text: str, most: int = 40) -> str:
    shown = visible(" ".join(text.split()))
    return repr(shown) if len(shown) <= most else "…" + repr(shown[-most:])


def _paragraphs(writing: Writing, *, edited: bool) -> Content:
    found = paragraphs(writing, edited=edited)
    parts: list[Content] = []
    for heading, text in found:
        parts += [Content.styled(heading, "$quiet"), Content(text), Content("")]
    if not found:
        parts.append(Content.styled("waiting" if writing.running else "not written", "$quiet"))
    return Content("\n").join(parts)


def _said(writing: Writing) -> list[str]:
    lines = [visible(line) for line in writing.notice]
    lines += remarks(writing)
    if writing.running:
        lines.append(f"{visible(writing.phase) or 'writing'} … esc cancels; what is finished stays")
    return lines
