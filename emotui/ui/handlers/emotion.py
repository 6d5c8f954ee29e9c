"""Emotions of the user's own: defined from the console, then read as any row."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from emotui.core.errors import UsageError
from emotui.core.protocol import Defined, DefineRequest, InspectRequest, Outcome
from emotui.ui.definition import PREFILLED, definition_in
from emotui.ui.handlers.area import Answer, Area
from emotui.ui.paint import visible
from emotui.ui.state import Notice

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.protocol import Operation


class EmotionHandlers(Area):
    """Actions on which emotions there are."""

    def answers(self) -> dict[type[Outcome], Answer]:
        """Take what was defined."""
        return {Defined: self._defined}

    def do_define(self) -> None:
        """Open the console on a definition, to be completed."""
        self._screen.open_console(PREFILLED)

    def define(self, line: str) -> bool | None:
        """Define what a line of the console says; return whether it could be understood.

        None where the line is no definition.
        """
        try:
            found = definition_in(line)
            if found is None:
                return None
            self._screen.workbench.require_own()
        except UsageError as error:
            self._update(replace(self._state, notice=Notice.of_error(error)))
            return False

        def question(request: InspectRequest, _store: Store) -> Operation:
            return DefineRequest(
                spec=request.spec,
                cache_dir=request.cache_dir,
                name=found.name,
                texts=found.texts,
                word=found.word,
                template=request.template,
                label_set=request.label_set,
                seed=request.seed,
            )

        self._screen.workbench.ask(
            question, f"defining {visible(found.name)}", text=self._state.text
        )
        return True

    def _defined(self, outcome: Outcome) -> None:
        """Show the row, and how far it can be trusted."""
        if not isinstance(outcome, Defined):
            return
        from emotui.ui.screens.report import ReportScreen

        readings = self._state.readings
        edits = () if readings is None else readings.trace.edits
        self._screen.workbench.read(self._state.text, edits=edits)
        title = f"The emotion {visible(outcome.name)}"
        self._screen.app.push_screen(ReportScreen(title, report_of(outcome)))


def report_of(done: Defined) -> list[str]:
    """Return what is said of a new emotion, line by line."""
    lines = [f"Defined from {visible(done.data)}.", f"Judged on {visible(done.judged_on)}.", ""]
    for kind, (layer, accuracy, trust) in zip(("readout", "token"), done.best, strict=True):
        place = "emb" if layer < 0 else f"layer {layer}"
        lines.append(
            f"{kind}: {accuracy:.2f} balanced accuracy on texts left out in turn, best at {place}: "
            f"{trust}"
        )
    if all(trust != "trusted" for _, _, trust in done.best):
        lines += ["", "Not trusted at either: it says little beyond the words of the texts."]
    return [*lines, "", "Its row is among the emotions (e), and in every trace from now on."]
