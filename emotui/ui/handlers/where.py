"""Where the chosen emotion is: readable, used, written."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from emotui.cache.located import kept_where, where_request
from emotui.core.errors import EmotuiError
from emotui.core.protocol import InspectRequest, Located, Outcome
from emotui.ui.exports import export_folder
from emotui.ui.handlers.area import Answer, Area

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.protocol import Operation
    from emotui.core.records import Where
    from emotui.ui.screens.where import WhereScreen

_EDITED = "The edits in force are left out here: this is the text as it is."


class WhereHandlers(Area):
    """The question where, and its answer."""

    def answers(self) -> dict[type[Outcome], Answer]:
        """Take what was located."""
        return {Located: self._located}

    def do_open(self) -> None:
        """Ask for the chosen emotion, beside neutral texts of the corpus."""
        self.ask(None)

    def ask(self, neutral: str | None) -> None:
        """Ask, beside a neutral rewrite of the text where one is given."""
        readings = self._state.readings
        if readings is None:
            self.say("hint", "There is no text to look into yet.")
            return
        answer = readings.trace.answer
        emotion = self._state.emotion
        if not emotion and answer is not None:
            emotion = max(answer.labels, key=lambda label: answer.labels[label])

        def question(request: InspectRequest, store: Store) -> Operation | Outcome:
            wanted = where_request(request, emotion, neutral)
            where = kept_where(store, wanted)
            return wanted if where is None else Located(where, forwards=0)

        self._screen.workbench.ask(
            question, f"looking where {emotion} is", text=readings.trace.text.raw
        )

    def _located(self, outcome: Outcome) -> None:
        from emotui.ui.screens.where import WhereScreen

        readings = self._state.readings
        if not isinstance(outcome, Located) or readings is None:
            return
        where, run = outcome.where, readings.trace.run
        self._update(replace(self._state, where=where))
        notes = (_EDITED,) if readings.trace.edits else ()
        width = self._screen.app.size.width
        screen = WhereScreen(
            where,
            notes=notes,
            width=width,
            export=lambda: self._export(
                screen, where, model=run.model, fingerprint=run.fingerprint
            ),
        )
        self._screen.app.push_screen(screen)

    def _export(self, screen: WhereScreen, where: Where, *, model: str, fingerprint: str) -> None:
        from emotui.core.export.json import write_numbered
        from emotui.core.export.where import document_bytes
        from emotui.ui.screens.where import Told

        def write(_store: Store) -> None:
            data = document_bytes(where, model=model, fingerprint=fingerprint)
            stem = f"emotui-where-{hashlib.sha256(data).hexdigest()[:16]}"
            path, already = write_numbered(export_folder(), stem, data)
            screen.post_message(Told(f"{'Already there' if already else 'Wrote'}: {path}"))

        def failed(error: EmotuiError) -> None:
            screen.post_message(Told(error.what))

        self._screen.workbench.with_store(write, failed)
