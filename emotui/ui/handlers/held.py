"""Reports of the console on what there is: models, probes, labels of features; which SAEs read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from emotui.cache.label_rows import label_rows, shown_rows
from emotui.cache.labels import label_files
from emotui.cache.prepare import ids_in_force
from emotui.core.errors import EmotuiError
from emotui.core.export.held import label_lines, probe_lines
from emotui.core.model_list import model_lines, summary_of
from emotui.core.sae_directory import NONE
from emotui.ui import edits
from emotui.ui.handlers.area import Area
from emotui.ui.messages import Fetched
from emotui.ui.paint import visible
from emotui.ui.screens.report import ReportScreen

if TYPE_CHECKING:
    from emotui.cache.store import Store

_MOST_ROWS = 200
"""Features of a file of labels that are listed."""


class HeldHandlers(Area):
    """Commands of the console that list what there is."""

    def models(self, query: str) -> None:
        """Show the models whose names hold `query`, or the SAEs of a release."""

        def look(_store: Store) -> Sequence[str]:
            lines, rows = model_lines(query)
            return [*lines, "", summary_of(rows)] if rows else lines

        self._look("Models and SAEs", look)

    def probes(self, _argument: str) -> None:
        """Show the probes there are, and which are in force."""
        self._look("Probes", lambda store: probe_lines(store.probes(), ids_in_force(store)))

    def labels(self, name: str) -> None:
        """Show the files of labels there are, or the features of one."""

        def look(store: Store) -> Sequence[str]:
            if name:
                return shown_rows(label_rows(store.root, name), limit=_MOST_ROWS)
            return label_lines(label_files(store.root)) or [
                "There are no labels yet. `emotui labels fit` measures those of SAE features, "
                "`emotui labels import` takes explanations."
            ]

        self._look("Labels of SAE features", look)

    def message(self, _argument: str) -> None:
        """Show the latest message whole."""
        notice = self._state.notice
        lines = ("There is no message.",) if notice is None else notice.lines
        self._close_console()
        self._report("Message", lines)

    def sae(self, names: str) -> None:
        """Read the text again with other SAEs, or with none."""
        chosen = tuple(dict.fromkeys(name for name in names.split() if name != NONE))
        self._screen.workbench.require_own()
        readings = self._state.readings
        lines = () if readings is None else readings.trace.edits
        kept, left = edits.without_features(lines)
        self._close_console()
        self._screen.workbench.settle(saes=chosen)
        self._screen.workbench.read(self._state.text, edits=kept)
        if left:
            self.say("hint", f"Features of other SAEs are not carried over: {', '.join(left)}.")

    def _close_console(self) -> None:
        if self._screen.pane == "console":
            self._screen.close_console()

    def _look(self, title: str, look: Callable[[Store], Sequence[str]]) -> None:
        def work(store: Store) -> None:
            lines = look(store)
            self._post(partial(self._report, title, lines))

        def failed(error: EmotuiError) -> None:
            self._post(partial(self.say, "error", error.what, error.why, error.todo))

        self._close_console()
        self._screen.workbench.with_store(work, failed)

    def _report(self, title: str, lines: Sequence[str]) -> None:
        self._screen.app.push_screen(ReportScreen(title, [visible(line) for line in lines]))

    def _post(self, show: Callable[[], object]) -> None:
        self._screen.post_message(Fetched(show))
