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
_TRUST = (
    "Trust is of a probe at a layer: t trusted, it beats shuffled labels and the words alone (the "
    "mean embedding) on texts it was not fitted on; l lexical, no better than the words alone; u "
    "untrusted, no better than shuffled labels."
)
_RAMP = (
    "The glyph is the size of z, whatever its sign: · from 0.5, ░ from 1, ▒ from 2, ▓ from 3, "
    "█ from 4."
)
_READING = {
    "text": (
        "Each token is shaded by the chosen emotion at the cursor's layer: orange above what "
        "neutral texts show, blue below. The line of signs below says the same without colour: "
        "+ or -, and the size.",
        _RAMP,
        "Last line: what the probe reads at the cursor's token and layer, the label word that "
        "the logit lens ranks first there (#4: fourth of all tokens, 1/7: first of the labels), "
        "what the model answers; ≠ where they differ, fear→joy where the last edit changed it.",
        "labels hold 0.55: what the labels have of the whole next token; the answer is among them "
        "alone. (beginnings): labels compared by a token that may begin another word.",
        _TRUST,
    ),
    "layers": (
        "A cell is z: how many standard deviations above neutral texts. * is above what neutral "
        "texts of this length reach; L a logit, as the probe saw no neutral texts.",
        _RAMP,
        _TRUST,
        "Untrusted cells are written without a fill; an emotion whose trust is not "
        "the row's (one you defined) has its own letter after the number. ( ) and hollow: read "
        "where the probe was not fitted to be read. [ ] is the cursor; c by construction, the edit "
        "was along that very row. emb is the embedding, below layer 0.",
        "After w, R U W say where the chosen emotion is readable, used, and written by an output "
        "of that layer.",
    ),
    "features": (
        "The bar is the activation, as a share of its largest in this text. Attribution estimates, "
        "by one backward pass, what removing the feature does to the metric named at the bottom: "
        "negative, it would fall. An ablation (a) measures it.",
        "fear .87: the feature tells texts of fear from the others with an area under the curve "
        "(AUC) of .87 on held-out texts: .5 is chance, 1 never wrong. A star (.81*): specific to "
        "that emotion. Then the tokens it promotes, or an explanation that was imported.",
        "The share of variance at the bottom says how much of the activation the SAE rebuilds.",
    ),
    "interventions": (
        "Each row is a number before and after the last edit. answer: the probability of a label; "
        "readout: z of the probe at the layer named. Arrows say how much it changed: ▲ or ▼ from "
        ".01, two from .05, three from .2 (of z ten times that).",
        "matched a/b: rank a among b, the edit and b - 1 other features of the nearest sizes that "
        "are active there, edited the same way. 1/32: none of 31 did as much. random a/b: the same "
        "beside directions as long as the edit, drawn as the activations vary. other: what the "
        "feature that writes most of another emotion does.",
        "best-of-N draws: the feature was picked among N, so it is held against 79 draws of N "
        "random directions each, of which the best counts. beyond 79: it did more than all of "
        "these best ones.",
        "not measurable: less than three times what an edit of nothing changes. by construction: "
        "the edit moves that readout itself.",
    ),
}


_BELOW = "How to read it; the keys stand below, end goes to the last."


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
    """Return the help of a pane: how to read it, then its actions from the table."""
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
    reading = [line for part in _READING.get(pane, ()) for line in textwrap.wrap(part, _WIDTH)]
    return [_BELOW, "", *reading, "", "Keys", *lines] if reading else lines


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
        body.border_title = f"How to read · Keys: {_TITLES[self._pane]}"
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
