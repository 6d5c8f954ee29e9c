"""The Text pane: tokens shaded by the chosen emotion, the cursor's token, the answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len
from rich.style import Style
from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container
from textual.content import Content
from textual.geometry import Region, Size
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from emotui.core.agreement import parts_of
from emotui.core.records import EMBEDDING_LAYER
from emotui.ui.paint import bar, fit, glyph_of, number, safe, strip_of, visible
from emotui.ui.panes.lines import LinePane, bindings_of
from emotui.ui.state import ScreenState, part_of, place_name

if TYPE_CHECKING:
    from emotui.ui.panes.editor import TextEditor
    from emotui.ui.readings import Readings


@dataclass(frozen=True)
class Placed:
    """A token on a line."""

    index: int
    text: str
    start: int
    width: int


def wrapped(texts: tuple[str, ...], breaks: tuple[bool, ...], width: int) -> list[list[Placed]]:
    """Lay tokens out on lines of `width` cells; `breaks` says after which a line ends."""
    lines: list[list[Placed]] = [[]]
    used = 0
    for index, text in enumerate(texts):
        shown = text or "∅"
        size = cell_len(shown)
        if size > width:
            shown, size = fit(shown, width), width
        if used + size > width:
            lines.append([])
            used = 0
        lines[-1].append(Placed(index, shown, used, size))
        used += size
        if breaks[index]:
            lines.append([])
            used = 0
    return lines if lines[-1] else lines[:-1] or [[]]


class TokenStrip(LinePane):
    """The tokens of the prompt, each shaded by the chosen emotion at the cursor's layer."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_of("text")

    def __init__(self) -> None:
        super().__init__(name="strip", title="", classes="")
        self._lines: list[list[Placed]] = []
        self._wrapped_for: tuple[Readings, int] | None = None
        """The trace and the width that the lines are of."""
        self._doubled = False
        self._raw: list[str] = []

    def frame(self, state: ScreenState) -> object:
        """Tokens, and what shades them."""
        return (id(state.readings), state.text, state.site, state.layer, state.emotion)

    def cursor(self, state: ScreenState) -> object:
        """The token under the cursor."""
        return state.position

    def cursor_rows(self, state: ScreenState) -> Iterable[int]:
        """The line of the cursor's token and the line of its sign."""
        here = self._place_of(state.position)
        if here is None:
            return ()
        return (2 * here[0], 2 * here[0] + 1) if self._doubled else (here[0],)

    def prepare(self, state: ScreenState) -> None:
        """Wrap the tokens; a line of signs below each where there is room, or no colour."""
        width = max(1, self.scrollable_content_region.width)
        readings = state.readings
        if readings is None or readings.trace.text.raw != state.text:
            self._lines, self._doubled, self._wrapped_for = [], False, None
            self._raw = _wrapped_text(state.text, width)
            return
        self._raw = []
        if self._wrapped_for != (readings, width):
            breaks = tuple("\n" in token.string for token in readings.tokens)
            self._lines = wrapped(readings.token_texts, breaks, width)
            self._wrapped_for = (readings, width)
        room = 2 * len(self._lines) <= self.scrollable_content_region.height
        self._doubled = bool(readings.emotions) and (room or not self.palette.coloured)

    def extent(self) -> Size:
        """Lines of tokens, with or without their signs."""
        count = len(self._raw) if self._raw else len(self._lines) * (2 if self._doubled else 1)
        return Size(self.scrollable_content_region.width, count)

    def needed_height(self, width: int) -> int:
        """Return the lines this text takes at a width, signs included."""
        state = self.state
        if state is None:
            return 1
        if state.readings is None or state.readings.trace.text.raw != state.text:
            return len(_wrapped_text(state.text, width))
        breaks = tuple("\n" in token.string for token in state.readings.tokens)
        return 2 * len(wrapped(state.readings.token_texts, breaks, width))

    def cursor_region(self) -> Region | None:
        """Return the lines of the cursor's token."""
        place = self._place_of(self.state.position) if self.state else None
        if place is None:
            return None
        height = 2 if self._doubled else 1
        return Region(0, place[0] * height, 1, height)

    def _place_of(self, position: int) -> tuple[int, Placed] | None:
        for row, line in enumerate(self._lines):
            for placed in line:
                if placed.index == position:
                    return row, placed
        return None

    def token_in_line(self, by: int) -> int | None:
        """Return the token nearest to the cursor's column `by` lines further down."""
        here = self._place_of(self.state.position) if self.state else None
        if here is None or not 0 <= here[0] + by < len(self._lines):
            return None
        middle = here[1].start + here[1].width / 2
        line = self._lines[here[0] + by]
        return min(line, key=lambda placed: abs(placed.start + placed.width / 2 - middle)).index

    def body_line(self, row: int) -> Strip | None:
        """Return a line of tokens, or of their signs."""
        width = self.scrollable_content_region.width
        if self._raw:
            if row >= len(self._raw):
                return None
            return strip_of([(self._raw[row], self.palette.base)], width, self.palette.base)
        line, signs = divmod(row, 2) if self._doubled else (row, 0)
        if line >= len(self._lines):
            return None
        parts = self._signs(line) if signs else self._tokens(line)
        return strip_of(parts, width, self.palette.base)

    def _tokens(self, line: int) -> Iterator[tuple[str, Style]]:
        state = self.state
        if state is None or state.readings is None:
            return
        for placed in self._lines[line]:
            token = state.readings.tokens[placed.index]
            cell = state.readings.cell(state.site, placed.index, state.layer, state.emotion)
            style = self.palette.base if token.part == "text" else self.palette.quiet
            if cell is not None and not cell.hollow:
                style = self.palette.shade(cell.shade, filled=cell.trust != "untrusted")
                if token.part != "text":
                    style += Style(italic=True)
            if placed.index == state.position:
                style = self.palette.cursor + Style(underline=True)
            yield placed.text, style

    def _signs(self, line: int) -> Iterator[tuple[str, Style]]:
        state = self.state
        if state is None or state.readings is None:
            return
        for placed in self._lines[line]:
            cell = state.readings.cell(state.site, placed.index, state.layer, state.emotion)
            sign = ""
            if placed.index == state.position:
                sign = "^"
            elif cell is not None and glyph_of(cell.shade) != " ":
                sign = ("+" if cell.z > 0 else "-") + glyph_of(cell.shade)
            indent = 1 if placed.text.startswith(" ") and placed.width > len(sign) else 0
            yield (" " * indent + sign).ljust(placed.width)[: placed.width], self.palette.quiet

    def on_click(self, event: events.Click) -> None:
        """Put the cursor on the token that was clicked."""
        row = event.y + self.scroll_offset.y
        line = row // 2 if self._doubled else row
        if 0 <= line < len(self._lines):
            for placed in self._lines[line]:
                if placed.start <= event.x < placed.start + placed.width:
                    self.post_message(TokenChosen(placed.index))


class TokenChosen(Message):
    """A token was clicked."""

    def __init__(self, position: int) -> None:
        super().__init__()
        self.position = position


def _wrapped_text(text: str, width: int) -> list[str]:
    """Return a text that has no tokens yet, on lines of at most `width` cells."""
    lines: list[str] = []
    for paragraph in text.splitlines() or [""]:
        rest = visible(paragraph)
        while cell_len(rest) > width:
            cut = len(fit(rest, width)) - 1
            space = rest.rfind(" ", 0, cut) + 1
            cut = max(1, space or cut)
            lines.append(rest[:cut])
            rest = rest[cut:]
        lines.append(rest)
    return lines


class TokenLine(Widget):
    """The token under the cursor, in words and with its numbers."""

    def __init__(self) -> None:
        super().__init__(id="token")
        self._content = Content("")

    def show(self, state: ScreenState) -> None:
        """Draw a state."""
        content = _token_content(state)
        if content != self._content:
            self._content = content
            self.refresh()

    def render(self) -> Content:
        """Return the line."""
        return self._content


def _token_content(state: ScreenState) -> Content:
    readings = state.readings
    if readings is None:
        return Content("")
    token = readings.tokens[state.position]
    cell = readings.cell(state.site, state.position, state.layer, state.emotion)
    parts: list[str | Content] = [f"{place_name(state)} ", safe(repr(token.string))]
    if cell is not None:
        name, shown = "z" if cell.standardised else "logit (no z)", number(cell.z).strip()
        reading = f"({shown}) outside" if cell.hollow else f"{shown} {cell.trust}"
        parts += [" · ", safe(state.emotion), f" {name} {reading}"]
        if cell.by_construction:
            parts.append(", by construction")
    parts.append(f" · id {token.id} {part_of(token)}")
    return Content.assemble(*parts)


class AnswerLine(Widget):
    """The model's own answer among the labels."""

    def __init__(self) -> None:
        super().__init__(id="answer")
        self._parts: tuple[Content, ...] = ()

    def show(self, state: ScreenState) -> None:
        """Draw a state."""
        parts = _answer_parts(state)
        if parts != self._parts:
            self._parts = parts
            self.refresh()

    def render(self) -> Content:
        """Return as many whole parts as fit: half a number would be read as another one."""
        width = self.content_size.width or 80
        line = Content("")
        for part in self._parts:
            if line.cell_length + part.rstrip().cell_length > width:
                if part.plain.startswith("("):
                    continue  # a remark: what follows may still fit
                break
            line += part
        return line.rstrip()


def _answer_parts(state: ScreenState) -> tuple[Content, ...]:
    """Return the answer in parts, the most important first."""
    answer = state.readings.trace.answer if state.readings is not None else None
    if answer is None:
        return ()
    ranked = sorted(answer.labels.items(), key=lambda item: (-item[1], item[0]))
    edited = bool(state.readings and state.readings.trace.edits)
    parts = [Content("EDITED answer " if edited else "answer ")]
    for place, (label, probability) in enumerate(ranked[:4]):
        parts.append(Content.assemble(safe(label), f" {probability:.2f} {bar(probability, 4)} "))
        if place == 0 and answer.fragments:
            parts.append(Content("(beginnings) "))  # the status line says of what
        if place == 1:
            # Before the labels that matter less: how much of the next token all of them share.
            if answer.rule == "whole_label":
                parts.append(Content("(whole labels) "))
            if answer.mass is not None:
                parts.append(Content(f"(labels hold {answer.mass:.2f}) "))
    return tuple(parts)


class SaidLine(Widget):
    """What the probe reads, the lens ranks and the model answers, and whether they agree."""

    def __init__(self) -> None:
        super().__init__(id="said-line")
        self._parts: tuple[str, ...] = ()

    def show(self, state: ScreenState) -> None:
        """Draw a state."""
        parts = _said_parts(state)
        if parts != self._parts:
            self._parts = parts
            self.refresh()

    def render(self) -> Content:
        """Return whole parts, the most important first: what does not fit is left out."""
        width = self.content_size.width or 80
        shown = ""
        for part in self._parts:
            longer = f"{shown} · {part}" if shown else part
            if not shown or cell_len(longer) <= width:
                shown = longer
        return Content(shown)


def _said_parts(state: ScreenState) -> tuple[str, ...]:
    """Return what is said, cleaned: read, answered, whether they differ, then the lens."""
    readings = state.readings
    if readings is None:
        return ()
    parent, before = readings.parent, None
    if parent is not None and parent.tokens == readings.tokens:
        before = parent.said(state.position, state.layer)
    layer = "emb" if state.layer == EMBEDDING_LAYER else f"L{state.layer}"
    reads, lens, answers, verdict = parts_of(readings.said(state.position, state.layer), before)
    found = (f"{layer} {reads}", answers, verdict, lens)
    return tuple(visible(part) for part in found if part)


class TextPane(Container):
    """Tokens or editor, the token under the cursor, the answer."""

    def __init__(self) -> None:
        super().__init__(id="text", classes="pane")
        self.border_title = "1 Text"
        self.strip = TokenStrip()
        self.token = TokenLine()
        self.answer = AnswerLine()
        self.said = SaidLine()
        self.editor: TextEditor | None = None

    def compose(self) -> ComposeResult:
        """Compose without the editor, which is made when it is first wanted."""
        yield self.strip
        yield self.token
        yield self.answer
        yield self.said

    @property
    def editing(self) -> bool:
        """Whether the editor is open."""
        return self.has_class("-editing")

    def show(self, state: ScreenState) -> None:
        """Draw a state."""
        subtitle = "edited, not run" if state.draft and not self.editing else ""
        if state.readings is not None and state.text != state.readings.trace.text.raw:
            subtitle = "not read yet: the numbers are of the text before"
        if subtitle != self.border_subtitle:  # or the whole pane would be painted anew
            self.border_subtitle = subtitle
        for part in (self.strip, self.token, self.answer, self.said):
            part.show(state)

    async def open_editor(self, text: str | None = None) -> TextEditor:
        """Open the editor, with `text` in the place of what it holds where it is given."""
        editor = await self.made_editor()
        self.add_class("-editing")
        if text is not None:
            editor.hold(text)
        self.screen.set_focus(editor)
        return editor

    async def made_editor(self) -> TextEditor:
        """Return the editor, made now where there is none."""
        if self.editor is None:
            from emotui.ui.panes.editor import TextEditor

            self.editor = TextEditor()
            await self.mount(self.editor, before=self.strip)
        return self.editor

    def close_editor(self) -> None:
        """Show the tokens again."""
        self.remove_class("-editing")
        self.screen.set_focus(self.strip)
