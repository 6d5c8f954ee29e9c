"""The lines below the panes: what happened or goes on, what is in force, which keys there are."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from textual.content import Content
from textual.geometry import Size
from textual.widget import Widget

from emotui.core.probe_words import data_name
from emotui.core.protocol import PER_CENT
from emotui.core.records import ProbeSummary
from emotui.core.sizes import in_time
from emotui.ui.actions import ACTIONS, Action, PaneName, actions_of, shown_key
from emotui.ui.effect_rows import changed_nothing
from emotui.ui.paint import bar, fit, safe, visible
from emotui.ui.state import ScreenState, Work, place_name

_HINT = "arrows move · 1 2 3 4 panes · 0 other view · ? all keys"
_MOST_LINES, _MOST_LINES_OF_ERROR = 4, 7
_SHORTENED = "… (:message shows all)"
_LEAST_SHORTENED = 3
"""Lines of which some can be left out: the first, a word that there are more, the last."""
_SHORT_NAME = 24
"""Cells of the name of a probe's data where there is little room."""
_ALWAYS = ("app.help", "app.close", "list.leave")


class Notice(Widget):
    """The latest message, and the work that goes on.

    Of a message that does not fit, the first line and the last, what to do, are kept whole.
    """

    def __init__(self) -> None:
        super().__init__(id="notice")
        self._lines: tuple[Content, ...] = ()
        self._most = _MOST_LINES

    def show(self, state: ScreenState) -> None:
        """Draw a state."""
        lines: list[Content] = []
        if state.notice is not None:
            lines += [safe(line) for line in state.notice.lines if line]
        if state.work is not None:
            lines.append(_work(state.work))
        kind = state.notice.kind if state.notice is not None else "hint"
        self.set_class(kind == "error", "-error")
        self.set_class(kind == "good", "-good")
        shown, most = tuple(lines), _MOST_LINES_OF_ERROR if kind == "error" else _MOST_LINES
        if (shown, most) != (self._lines, self._most):
            width = self.content_size.width or 80
            before = self._height(width)
            self._lines, self._most = shown, most
            self.refresh(layout=before != self._height(width))

    def _height(self, width: int) -> int:
        return len(fitting(self._lines, width, self._most)) or 1

    def get_content_height(self, _container: Size, _viewport: Size, width: int) -> int:
        """Return as many lines as are shown at a width."""
        return self._height(width)

    def render(self) -> Content:
        """Return the lines."""
        lines = fitting(self._lines, self.content_size.width or 80, self._most)
        return Content("\n").join(lines or [Content(_HINT)])


def fitting(lines: Sequence[Content], width: int, most: int) -> list[Content]:
    """Return lines wrapped to a width, at most so many: those left out are of the middle."""
    wrapped = [line.wrap(width) for line in lines]
    whole = [row for rows in wrapped for row in rows]
    if len(whole) <= most or most < _LEAST_SHORTENED:
        return whole[:most]
    last = wrapped[-1][-(most - 2) :]
    first = whole[: most - 1 - len(last)]
    return [*first, Content(fit(_SHORTENED, width)), *last]


def _work(work: Work) -> Content:
    parts: list[str | Content] = [safe(work.phase or work.what)]
    if work.total > 0:
        share = work.done / work.total
        # Of bytes the phase says how many; what is counted then is per cent.
        count = f"{work.done} %" if work.total == PER_CENT else f"{work.done}/{work.total}"
        parts.append(f" {count} ▕{bar(share, 16)}▏")
        if work.seconds_left is not None:
            parts.append(f" {in_time(work.seconds_left)} left")
    else:
        parts.append(" …")
    parts.append(" esc cancels")
    return Content.assemble(*parts)


class StatusLine(Widget):
    """Model, device, template, position, probe, where the numbers come from."""

    def __init__(self, *, model: str, template: str, private: bool) -> None:
        super().__init__(id="status")
        self._model = model
        self._template = template
        self._private = private
        self._state: ScreenState | None = None
        self._facts: list[tuple[str, ...]] = []

    def show(self, state: ScreenState) -> None:
        """Draw a state."""
        self._state = state
        facts = self.facts()
        if facts != self._facts:
            self._facts = facts
            self.refresh()

    def render(self) -> Content:
        """Return the line: shorter words, then less, where it is narrow."""
        facts = self.facts()
        width = self.content_size.width or 80
        shown = [fact[0] for fact in facts]
        for step in (1, 2):
            for index, words in enumerate(facts):
                if _joined_width(shown) > width:
                    shown[index] = words[min(step, len(words) - 1)]
        kept = shown[:1]
        for fact in shown[1:]:
            if _joined_width([*kept, fact]) <= width:
                kept.append(fact)
        return Content(" · ").join(safe(fact) for fact in kept)

    def facts(self) -> list[tuple[str, ...]]:
        """Return what is in force, the most important first: in full, and shorter; uncleaned."""
        state = self._state
        model = self._model
        if state is not None and state.readings is not None:
            model = state.readings.trace.run.model
        name = model.rstrip("/").rsplit("/", 1)[-1]
        facts: list[tuple[str, ...]] = [(name, name)]
        if self._private:
            facts.append(("private: nothing is kept", "private"))
        readings = state.readings if state is not None else None
        if state is None or readings is None:
            return [*facts, (f"template {self._template}", self._template)]
        run, place = readings.trace.run, f"{place_name(state)} {state.emotion}".strip()
        if readings.trace.edits:
            count = len(readings.trace.edits)
            words = f"EDITED: {count} {'edit' if count == 1 else 'edits'}"
            if changed_nothing(readings.trace):
                words = f"{words}, {'it' if count == 1 else 'the last'} changed nothing"
                facts.append((words, "EDITED, no change" if count == 1 else "EDITED"))
            else:
                facts.append((words, "EDITED"))
        # Before all that may be left out: numbers mean nothing without what they are read with.
        probe = readings.probe_at(state.site, state.position)
        facts.append(_probe(probe) if probe is not None else ("no probe", "no probe"))
        answer = readings.trace.answer
        if answer is not None and answer.fragments:
            tokens = " ".join(repr(token) for token in answer.fragments.values())
            facts.append((f"answer by beginnings of labels: {tokens}", "answer by beginnings"))
        if run.note:
            facts.append(("trained on labels: no evidence about others", "demo"))
        facts.append((place, place))
        facts.append(_origin(state))
        facts.append((f"{run.device} {run.dtype}", f"{run.device} {run.dtype}"))
        facts.append((f"template {run.template}", run.template))
        return facts


def _joined_width(facts: list[str]) -> int:
    return sum(cell_len(visible(fact)) for fact in facts) + 3 * (len(facts) - 1)


def _probe(probe: ProbeSummary) -> tuple[str, str, str]:
    """Return which probe reads: its data and whether it is a preview are in the shortest too."""
    name = data_name(probe.data)
    long, short = "not measured", "not measured"
    if probe.held_out_accuracy is not None and probe.bag_accuracy is not None:
        long = f"{probe.held_out_accuracy:.2f} held out, {probe.bag_accuracy:.2f} bag"
        short = f"{probe.held_out_accuracy:.2f}, bag {probe.bag_accuracy:.2f}"
    return (
        f"{probe.kind} probe on {probe.data}: {long}",
        f"{probe.kind} probe on {name}: {long}",
        f"probe {fit(name, min(cell_len(name), _SHORT_NAME))} {short}",
    )


def _origin(state: ScreenState) -> tuple[str, str]:
    if state.cached or state.seconds is None:
        return "from the cache", "cached"
    return f"computed in {state.seconds:.1f} s", f"{state.seconds:.1f} s"


class KeyBar(Widget):
    """The keys of the focused pane, from the table of actions."""

    def __init__(self, actions: Sequence[Action] = ACTIONS) -> None:
        super().__init__(id="keys")
        self._actions = actions
        self._pane: PaneName = "text"
        self._instead = ""

    def show_instead(self, line: str) -> None:
        """Show other words, where the keys of the pane are not heard; "" shows its keys again."""
        self._instead = line
        self.refresh()

    def show(self, pane: PaneName) -> None:
        """Show the keys of a pane."""
        if pane != self._pane:
            self._pane = pane
            self.refresh()

    def render(self) -> Content:
        """Return as many keys as fit; help and close always."""
        if self._instead:
            return Content(self._instead)
        built = actions_of(self._pane, actions=self._actions)
        # What only this pane can do comes first: the rest is the same in every one.
        shown = sorted(
            (action for action in built if action.footer), key=lambda one: len(one.panes) > 1
        )
        entries = [f"{shown_key(action.keys[0])} {action.label}" for action in shown]
        fixed = [
            entry for entry, action in zip(entries, shown, strict=True) if action.id in _ALWAYS
        ]
        free = [entry for entry in entries if entry not in fixed]
        width = self.content_size.width or 80
        while free and len("  ".join([*free, *fixed])) > width:
            free.pop()
        return Content("  ".join([*free, *fixed]))
