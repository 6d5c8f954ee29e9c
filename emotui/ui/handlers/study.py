"""One text asked in other ways, and the results of studies."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from emotui.cache.asked import (
    consistency_request,
    known_consistency,
    known_terms,
    terms_request,
)
from emotui.core.errors import EmotuiError
from emotui.core.export.asked import consistency_lines, terms_lines
from emotui.core.protocol import AskedInForms, InspectRequest, Outcome, TermsScored
from emotui.ui import state as states
from emotui.ui.handlers.area import Answer, Area
from emotui.ui.messages import Fetched
from emotui.ui.paint import visible
from emotui.ui.screens.report import ReportScreen

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.protocol import Operation
    from emotui.core.studies.common.saved import Place

_PLAIN = "The text as it is: no edit is in force here."


class StudyHandlers(Area):
    """Actions on the text in other forms, and on studies."""

    def answers(self) -> dict[type[Outcome], Answer]:
        """Take what was asked."""
        return {AskedInForms: self._asked, TermsScored: self._scored}

    def do_consistency(self) -> None:
        """Ask for the emotion in other prompts, orders of the labels, and as a statement."""
        readings = self._state.readings
        if readings is None:
            self.say("hint", "There is no text to ask again yet.")
            return

        def question(request: InspectRequest, store: Store) -> Operation | Outcome:
            asked = consistency_request(request)
            kept = known_consistency(asked, store)
            return asked if kept is None else AskedInForms(kept, True, 0, 0.0)

        self._screen.workbench.ask(question, "asking in other forms", text=readings.trace.text.raw)

    def _asked(self, outcome: Outcome) -> None:
        if not isinstance(outcome, AskedInForms):
            return
        found = outcome.consistency
        self.say("good", f"The answer: {found.badge}.")
        edited = self._state.readings is not None and self._state.readings.trace.edits
        self._report("Consistency", [*([_PLAIN, ""] if edited else []), *consistency_lines(found)])

    def do_terms(self) -> None:
        """Score the emotion words after the text, beside the edits in force."""
        readings = self._state.readings
        if readings is None:
            self.say("hint", "There is no text to describe yet.")
            return

        def question(request: InspectRequest, store: Store) -> Operation | Outcome:
            asked = terms_request(request)
            kept = known_terms(asked, store)
            return asked if kept is None else TermsScored(kept, True, 0, 0.0)

        self._screen.workbench.ask(
            question,
            "scoring the words",
            text=readings.trace.text.raw,
            edits=readings.trace.edits,
        )

    def _scored(self, outcome: Outcome) -> None:
        if isinstance(outcome, TermsScored):
            self._report("Emotion words", terms_lines(outcome.terms))

    def _report(self, title: str, lines: list[str]) -> None:
        self._screen.app.push_screen(ReportScreen(title, [visible(line) for line in lines]))

    def do_list(self) -> None:
        """List the results in the cache; one that is read leads to a layer, feature or text."""
        from emotui.ui.screens.studies import StudiesScreen

        def chosen(place: Place | None) -> None:
            if place is not None:
                self._go(place)

        self._screen.app.push_screen(StudiesScreen(self._screen.workbench), chosen)

    def _go(self, place: Place) -> None:
        if place.item:
            self._open_text(place.item)
            return
        state = self._state
        if state.readings is None:
            self.say("hint", "There is no trace on the screen to show it in.")
            return
        if place.layer is None or place.layer not in state.readings.layers:
            self.say("hint", f"This trace has no layer {place.layer}.")
            return
        # A study reads at the readout.
        state = states.at_token(state, state.readings.trace.text.readout)
        state = states.at_layer(replace(state, site=place.site), place.layer)
        if place.feature is None:
            self._update(state)
            self._screen.focus_pane("layers")
            return
        active = [row.index for row in state.features]
        if place.feature in active:
            state = replace(state, feature=active.index(place.feature))
        self._update(state)
        self._screen.focus_pane("features")
        if place.feature not in active:
            name = f"L{place.layer}/{place.feature}"
            self.say("hint", f"{name} is not among the features of this text's readout.")

    def _open_text(self, item: str) -> None:
        """Open the newest trace of a text of a study, where it was read here too."""
        from emotui.core.studies.common.dataset import item_id

        screen = self._screen

        def work(store: Store) -> None:
            rows = (row for row in store.traces() if item_id(row.text) == item)
            screen.post_message(Fetched(partial(self._open, next((row.id for row in rows), ""))))

        def failed(error: EmotuiError) -> None:
            screen.post_message(Fetched(partial(self.say, "error", error.what)))

        screen.workbench.with_store(work, failed)

    def _open(self, trace_id: str) -> None:
        if trace_id:
            self._screen.handlers.edit.forget_undone()
            self._screen.workbench.open_trace(trace_id)
        else:
            self.say("hint", "This text was not read here: results hold no texts, only their ids.")
