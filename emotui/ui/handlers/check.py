"""Checks on what is shown: the edit on other texts, the text without its emotion words."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from emotui.cache.findings import kept_verification
from emotui.cache.prepare import prepare
from emotui.cache.without import known_without
from emotui.core.export import verification as verifications
from emotui.core.export import without as withouts
from emotui.core.protocol import (
    InspectRequest,
    MaskedWords,
    Outcome,
    Verified,
    VerifyRequest,
    WithoutRequest,
)
from emotui.core.wording import emotion_words, none_listed
from emotui.ui.handlers.area import Answer, Area
from emotui.ui.paint import visible
from emotui.ui.screens.report import ReportScreen

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.protocol import Operation


class CheckHandlers(Area):
    """Actions that check what is shown."""

    def answers(self) -> dict[type[Outcome], Answer]:
        """Take what was found."""
        return {Verified: self._verified, MaskedWords: self._masked}

    def do_verify(self) -> None:
        """Repeat the last edit on other texts, or show again what that gave."""
        readings = self._state.readings
        if readings is None or not readings.trace.edits:
            self.say("hint", "No edit is in force, so there is nothing to verify.")
            return
        trace = readings.trace

        def question(request: InspectRequest, store: Store) -> Operation | Outcome:
            # As the trace on the screen was made, so that it is this one that is verified.
            picked = trace.intervention is not None and trace.intervention.selected
            asked = VerifyRequest(msgspec.structs.replace(request, selected=picked))
            kept = kept_verification(store, trace.id, asked)
            return asked if kept is None else Verified(trace.id, kept, True, 0, 0.0)

        self._screen.workbench.ask(
            question, "repeating the edit on other texts", text=trace.text.raw, edits=trace.edits
        )

    def _verified(self, outcome: Outcome) -> None:
        readings = self._state.readings
        if not isinstance(outcome, Verified) or readings is None:
            return
        if readings.trace.id == outcome.trace_id:
            self._update(replace(self._state, verification=outcome.verification))
        self._report("The edit on other texts", verifications.lines_of(outcome.verification))

    def do_without(self) -> None:
        """Read the text again with its emotion words masked, no edit in force."""
        readings = self._state.readings
        if readings is None:
            self.say("hint", "There is no text to read again yet.")
            return
        text, emotion = readings.trace.text.raw, self._state.emotion
        if not emotion_words(text):
            self.say("hint", f"The text holds {none_listed()}: there is nothing to mask.")
            return
        if readings.trace.answer is not None and emotion not in readings.trace.answer.labels:
            emotion = ""

        def question(request: InspectRequest, store: Store) -> Operation | Outcome:
            asked = WithoutRequest(request, emotion)
            fingerprint = prepare(request, store).fingerprint
            kept = known_without(asked, store, fingerprint=fingerprint)
            return asked if kept is None else MaskedWords(kept, True, 0, 0.0)

        self._screen.workbench.ask(question, "reading the text without its words", text=text)

    def _masked(self, outcome: Outcome) -> None:
        if not isinstance(outcome, MaskedWords):
            return
        found = outcome.without
        self.say("good", found.sentence)
        lines = withouts.lines_of(found)
        if self._state.readings is not None and self._state.readings.trace.edits:
            lines = ["The text as it is: no edit is in force here.", "", *lines]
        self._report("Without the emotion words", lines)

    def _report(self, title: str, lines: list[str]) -> None:
        self._screen.app.push_screen(ReportScreen(title, [visible(line) for line in lines]))
