"""The help of a pane, and the question before closing."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widget import Widget

from emotui.ui.actions import ACTIONS, Action, PaneName, actions_of, shown_key

_TITLES = {
    "text": "Text",
    "editor": "Editor",
    "layers": "Layers",
    "features": "Features",
    "interventions": "Interventions",
    "console": "Console",
    "traces": "Traces",
}
_WIDTH = 70
"""Cells of a line of help."""
_READING = {
    "text": (
        "Each token is shaded by the chosen emotion at the cursor's layer: orange above what",
        "neutral texts show, blue below. The line of signs says the same without colour.",
        "Last line: what the probe reads at the cursor's token and layer, the label word that",
        "the logit lens ranks first there (#4: fourth of all tokens, 1/7: first of the labels),",
        "what the model answers; ≠ where they differ, fear→joy where the last edit changed it.",
    ),
    "layers": (
        "A cell is z: how many standard deviations above neutral texts. Left of the number its",
        "size, * above what neutral texts reach. L: a logit, as the probe saw no neutral texts.",
        "t trusted, l lexical (no better than the words themselves), u untrusted: written",
        "without a fill. ( ) read where the probe was not fitted to be read. emb is the",
        "embedding, below layer 0. After w, R U W say where the chosen emotion is readable,",
        "used, and written by an output of that layer.",
    ),
    "features": (
        "The bar is the activation, as a share of its largest in this text. ×: an edit in force",
        "changes this feature here, and the numbers are what the SAE reads after it: an ablated",
        "feature may still be read, smaller. ≠: its explanation names an emotion that was not",
        "measured.",
    ),
}


class Lines(Widget):
    """Lines of text, as they are."""

    DEFAULT_CSS = "Lines { height: auto; width: auto; }"

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._content = Content("\n").join(Content(line) for line in lines)

    def render(self) -> Content:
        """Return the lines."""
        return self._content


def help_lines(pane: PaneName, *, table: Sequence[Action] = ACTIONS) -> list[str]:
    """Return the help of a pane: its actions from the table, and how to read it."""
    actions = actions_of(pane, actions=table)
    keys = {action.id: " ".join(shown_key(key) for key in action.keys) for action in actions}
    width = max(len(shown) for shown in keys.values())
    lines = [
        line
        for action in actions
        for line in textwrap.wrap(
            action.help,
            _WIDTH,
            initial_indent=f"{keys[action.id]:<{width}}  ",
            subsequent_indent=" " * (width + 2),
        )
    ]
    reading = _READING.get(pane, ())
    return [*lines, "", *reading] if reading else lines


class HelpScreen(ModalScreen[None]):
    """The keys of one pane."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q,enter", "dismiss", show=False),
        Binding("down,j", "scroll(1)", show=False),
        Binding("up,k", "scroll(-1)", show=False),
    ]

    def __init__(self, pane: PaneName, *, table: Sequence[Action] = ACTIONS) -> None:
        super().__init__()
        self._pane: PaneName = pane
        self._table = table

    def compose(self) -> ComposeResult:
        """Compose the list of keys."""
        body = VerticalScroll(Lines(help_lines(self._pane, table=self._table)), id="help")
        body.border_title = f"Keys: {_TITLES[self._pane]}"
        body.border_subtitle = "esc closes this"
        yield body

    def action_scroll(self, by: int) -> None:
        """Scroll by a line."""
        self.query_one("#help").scroll_relative(y=by, animate=False)


class AskScreen(ModalScreen[bool]):
    """A question answered with y or n."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y,enter", "answer(True)", show=False),
        Binding("n,escape,q", "answer(False)", show=False),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        """Compose the question."""
        body = VerticalScroll(Lines([self._question, "", "y  yes        n  no"]), id="ask")
        yield body

    def action_answer(self, answer: bool) -> None:
        """Close with the answer."""
        self.dismiss(answer)
