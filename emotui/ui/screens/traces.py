"""All cached traces: search, open, pin, delete, export. Needs neither model nor engine."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

from textual import events
from textual.app import ComposeResult
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Input, Static

from emotui.cache.search import as_tree, found_by, parse_search
from emotui.cache.store import Store
from emotui.core.errors import EmotuiError
from emotui.ui.actions import Action
from emotui.ui.handlers import Handlers
from emotui.ui.paint import safe
from emotui.ui.panes.entry import Entry as LineEntry
from emotui.ui.panes.status import KeyBar
from emotui.ui.panes.traces import Entry, TraceFacts, TraceList
from emotui.ui.work import Workbench

_FIRST = 200
"""How many traces are shown before all of them were read."""
_HINT = "words of the text, model:NAME since:2026-11-21 until:DAY edits:WORD is:pinned|edited|root"
_SEARCH_KEYS = "enter to the list  esc all traces again"


class Listed(Message):
    """Traces that a search found."""

    def __init__(self, line: str, entries: list[Entry], *, complete: bool) -> None:
        super().__init__()
        self.line = line
        self.entries = entries
        self.complete = complete


class Told(Message):
    """What came of something done to a trace, or why it was not done."""

    def __init__(self, *lines: str, again: bool = False) -> None:
        super().__init__()
        self.lines = tuple(line for line in lines if line)
        self.again = again
        """Whether the list is out of date."""


class TracesScreen(Screen[str | None]):
    """A list of traces; closes with the id of the one to open, or None."""

    AUTO_FOCUS = "TraceList"

    def __init__(
        self,
        workbench: Workbench,
        handlers: Handlers,
        *,
        shown_id: str,
        actions: Sequence[Action],
        marked: str = "",
    ) -> None:
        """`marked` is the id of a trace that the one chosen by c is compared with."""
        super().__init__()
        self._workbench = workbench
        self._handlers = handlers
        self.line = ""
        """The search in force."""
        self.list = TraceList()
        self.list.shown_id = shown_id
        self.list.marked = marked
        self.facts = TraceFacts()
        self.search = LineEntry(placeholder=_HINT, id="trace-search", select_on_focus=False)
        self.said = Static("", id="trace-notice", markup=False)
        self.key_bar = KeyBar(actions)

    def compose(self) -> ComposeResult:
        """Compose the search line, the list, the facts and the keys."""
        yield self.search
        yield self.list
        yield self.facts
        yield self.said
        yield self.key_bar

    def on_mount(self) -> None:
        """Read the newest traces first, then all."""
        self.list.border_title = "Traces"
        self.key_bar.show("traces")
        self.find("")
        self.mark(self.list.marked)

    def mark(self, trace: str) -> None:
        """Mark a trace to compare another with; "" marks none."""
        self.list.marked = trace
        self.list.refresh()
        self.tell(f"c on another trace compares it with {trace}." if trace else "")

    def find(self, line: str) -> None:
        """Show what a search line finds."""
        self.line = line

        def work(store: Store) -> None:
            if line != self.line:
                return  # typed on meanwhile
            search = parse_search(line)
            first = found_by(search, store, limit=_FIRST)
            self.post_message(Listed(line, as_tree(first), complete=len(first) < _FIRST))
            if len(first) == _FIRST and line == self.line:
                self.post_message(Listed(line, as_tree(found_by(search, store)), complete=True))

        self._do(work)

    def change(self, work: Callable[[Store], str]) -> None:
        """Do something to the cache, say what `work` returns, and read the list again."""
        self._do(lambda store: self.post_message(Told(work(store), again=True)))

    def _do(self, work: Callable[[Store], object]) -> None:
        def failed(error: EmotuiError) -> None:
            self.post_message(Told(error.what, error.todo))

        self._workbench.with_store(work, failed)

    def on_listed(self, message: Listed) -> None:
        """Show what was found, unless another search is in force by now."""
        if message.line != self.line:
            return
        self.list.show(message.entries)
        count = f"{len(message.entries)}{'' if message.complete else '+'}"
        self.list.border_title = f"Traces · {count}{' found' if self.line.strip() else ''}"
        self.moved()
        if message.complete and not message.entries:
            searched = bool(self.line.strip())
            self.tell("No trace matches; esc shows all." if searched else "No trace yet.")

    def on_told(self, message: Told) -> None:
        """Show a message."""
        if message.again:
            self.find(self.line)
        self.tell(" ".join(message.lines))

    def tell(self, line: str) -> None:
        """Show a line until the next."""
        self.said.update(safe(line))
        self.said.display = bool(line)

    def moved(self) -> None:
        """Show the facts of the trace under the cursor."""
        self.facts.show(self.list.row)

    def on_descendant_focus(self) -> None:
        """Show the keys that are heard: in the search line, letters are letters."""
        self.key_bar.show_instead(_SEARCH_KEYS if self.focused is self.search else "")

    def on_input_changed(self, event: Input.Changed) -> None:
        """Search as it is typed."""
        self.tell("")
        self.find(event.value)

    def on_input_submitted(self) -> None:
        """Go to the list."""
        self.set_focus(self.list)

    def key_escape(self, event: events.Key) -> None:
        """From the search line: take the search back and go to the list, which stays open."""
        if self.focused is self.search:
            event.stop()
            self.search.value = ""
            self.set_focus(self.list)

    async def action_do(self, action: str) -> None:
        """Do an action of the table."""
        result = self._handlers.of(action)()
        if inspect.isawaitable(result):
            await result
