"""The list of traces: moving in it, and what is done to the trace under the cursor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from emotui.cache.store import Store
from emotui.ui.exports import export_trace
from emotui.ui.handlers.area import Area
from emotui.ui.handlers.compare import compare
from emotui.ui.handlers.copying import copy
from emotui.ui.screens.help import AskScreen

if TYPE_CHECKING:
    from emotui.ui.screens.traces import TracesScreen


class ListHandlers(Area):
    """Actions in the list of traces."""

    @property
    def _traces(self) -> TracesScreen:
        return cast("TracesScreen", self._screen.app.screen)

    def do_leave(self) -> None:
        """Close the list; with a search in force, show all traces again first."""
        if self._traces.line.strip():
            self._traces.search.value = ""
        else:
            self._traces.dismiss(None)

    def do_open(self) -> None:
        """Open the trace under the cursor."""
        if (row := self._traces.list.row) is not None:
            self._traces.dismiss(row.id)

    def do_search(self) -> None:
        """Type in the search line."""
        self._traces.set_focus(self._traces.search)

    def do_up(self) -> None:
        """Go to the trace above."""
        self._by(-1)

    def do_down(self) -> None:
        """Go to the trace below."""
        self._by(1)

    def do_page_up(self) -> None:
        """Go a page up."""
        self._by(1 - self._traces.list.size.height)

    def do_page_down(self) -> None:
        """Go a page down."""
        self._by(self._traces.list.size.height - 1)

    def do_first(self) -> None:
        """Go to the first trace."""
        self._by(-1_000_000)

    def do_last(self) -> None:
        """Go to the last trace."""
        self._by(1_000_000)

    def _by(self, by: int) -> None:
        self._traces.list.move(by)
        self._traces.moved()

    def do_pin(self) -> None:
        """Keep the trace whatever the cache's budget, or no longer."""
        row = self._traces.list.row
        if row is None:
            return
        pinned = not row.pinned

        def work(store: Store) -> str:
            store.pin(row.id, pinned)
            return f"Pinned {row.id}." if pinned else f"No longer pinned: {row.id}."

        self._traces.change(work)

    def do_delete(self) -> None:
        """Delete the trace, after asking."""
        traces, row = self._traces, self._traces.list.row
        if row is None:
            return

        def work(store: Store) -> str:
            return f"Deleted {store.delete(row.id)}."

        def answered(delete: bool | None) -> None:
            if delete:
                traces.change(work)

        question = f"Delete trace {row.id}{' (pinned)' if row.pinned else ''}?"
        self._screen.app.push_screen(AskScreen(question), answered)

    def do_compare(self) -> None:
        """Mark the trace, or compare the marked one with it."""
        traces, row = self._traces, self._traces.list.row
        if row is None:
            return
        if traces.list.marked in ("", row.id):
            traces.mark("" if traces.list.marked else row.id)
        else:
            compare(self._screen, traces.list.marked, row.id, traces.tell)

    def do_copy(self) -> None:
        """Copy the id of the trace."""
        row = self._traces.list.row
        if row is not None:
            copy(self._screen, row.id, f"the id {row.id}", self._traces.tell)

    def do_export(self) -> None:
        """Write the trace into the current folder."""
        row = self._traces.list.row
        if row is None:
            return

        def work(store: Store) -> str:
            path, already = export_trace(store, store.get_trace(row.id), Path.cwd())
            return f"{'Already there' if already else 'Wrote'}: {path}"

        self._traces.change(work)
