"""The trace on the screen, and the probes that read it."""

from __future__ import annotations

from pathlib import Path

from emotui.core.probe_words import data_name
from emotui.ui.handlers.area import Area
from emotui.ui.handlers.compare import compare
from emotui.ui.handlers.copying import copy


class ProbeHandlers(Area):
    """Actions on probes."""

    def do_fit(self) -> None:
        """Fit probes where there are none."""
        readings = self._state.readings
        if readings is not None and readings.emotions:
            fitted_on = dict.fromkeys(data_name(probe.data) for probe in readings.trace.probes)
            self.say(
                "hint",
                f"This model is read already, with probes on {', '.join(fitted_on)}; "
                "`emotui probe fit` fits others.",
            )
        elif self._state.text.strip():
            self._screen.workbench.fit(self._state.text)


class TraceHandlers(Area):
    """Actions on the trace."""

    def do_list(self) -> None:
        """List all cached traces, and open the one that is chosen."""
        self._list()

    def do_compare(self) -> None:
        """Show the edited trace beside its parent; without an edit, choose one to compare with."""
        readings = self._state.readings
        if readings is None:
            self.say("hint", "There is no trace to compare yet.")
        elif readings.trace.parent is None:
            self._list(marked=readings.trace.id)
        else:
            trace = readings.trace
            compare(self._screen, readings.trace.parent, trace.id, self._told)

    def _told(self, line: str) -> None:
        self.say("error", line)

    def do_copy(self) -> None:
        """Copy the feature's name, the text, or the trace's id."""
        state = self._state
        if state.readings is None:
            self.say("hint", "There is nothing to copy yet.")
            return
        text, what = state.readings.trace.id, f"the trace's id {state.readings.trace.id}"
        if self._screen.pane == "text":
            text, what = state.readings.trace.text.raw, "the text"
        elif self._screen.pane == "features" and state.features:
            text = what = state.features[state.feature].name
        copy(self._screen, text, what, lambda line: self.say("good", line))

    def _list(self, *, marked: str = "") -> None:
        from emotui.ui.screens.traces import TracesScreen

        def chosen(trace_id: str | None) -> None:
            if trace_id is not None:
                self._screen.handlers.edit.forget_undone()
                self._screen.workbench.open_trace(trace_id)

        readings = self._state.readings
        shown = readings.trace.id if readings is not None else ""
        screen = TracesScreen(
            self._screen.workbench,
            self._screen.handlers,
            shown_id=shown,
            actions=self._screen.options.actions,
            marked=marked,
        )
        self._screen.app.push_screen(screen, chosen)

    def do_export(self) -> None:
        """Write the trace into the current folder."""
        readings = self._state.readings
        if readings is None:
            self.say("hint", "There is no trace to export yet.")
            return
        try:
            folder = Path.cwd()
        except OSError:
            self.say("error", "Nothing was written: the current folder is gone.")
        else:
            self._screen.workbench.export(readings.trace, folder)
