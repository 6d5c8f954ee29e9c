"""Writing on from the text, without edits and with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from emotui.cache.prepare import prepare
from emotui.core.errors import Cancelled, EmotuiError, ExportError
from emotui.core.protocol import GenerationSpec, Inspected, InspectRequest, Outcome, Progress
from emotui.ui import writing
from emotui.ui.handlers.area import Answer, Area

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.protocol import Operation
    from emotui.core.records import Trace
    from emotui.ui.screens.explore import ExploreScreen
    from emotui.ui.screens.generate import GenerateScreen, TraceRead


class GenerateHandlers(Area):
    """Actions on what the model writes; also what the screen of it asks for."""

    def __init__(self, screen: ExploreScreen) -> None:
        super().__init__(screen)
        self._shown: GenerateScreen | None = None
        self._edited = False
        """Which side is being written."""
        self._traces: dict[bool, Trace] = {}
        """The finished ones, by side."""
        self._export_due = False
        """Whether it is to be exported as soon as it is finished."""

    def answers(self) -> dict[type[Outcome], Answer]:
        """Take the traces that were asked for."""
        return {Inspected: self._answered}

    def do_open(self) -> None:
        """Write on from the text, without edits and with those in force."""
        self.start(GenerationSpec(writing.NEW_TOKENS))

    def start(self, spec: GenerationSpec) -> None:
        """Open the screen, or let the open one begin anew, and write."""
        from emotui.ui.screens.generate import GenerateScreen

        readings = self._state.readings
        if readings is None:
            self.say("hint", "There is no text to write on from yet.")
            return
        trace = readings.trace
        doubts = writing.doubts_of(trace)
        fresh = writing.Writing(trace.text.raw, trace.edits, self._state.emotion, spec, doubts)
        self._traces.clear()
        self._export_due = False
        # A paste closes every screen over the panes, this one too.
        if self._shown is None or self._shown not in self._screen.app.screen_stack:
            self._shown = GenerateScreen(fresh, self)
            self._screen.app.push_screen(self._shown)
        else:
            self._shown.show(fresh)
        self._ask(edited=False)

    def _ask(self, *, edited: bool) -> None:
        if self._shown is None:
            return
        self._edited = edited
        now = self._shown.writing

        def question(request: InspectRequest, store: Store) -> Operation | Outcome:
            prepared = prepare(msgspec.structs.replace(request, generation=now.spec), store)
            if prepared.trace_id is None:
                return prepared.request
            return Inspected(prepared.trace_id, cached=True, forwards=0, seconds=0.0)

        self._screen.workbench.ask(
            question, "writing", text=now.text, edits=now.edits if edited else ()
        )

    def _answered(self, outcome: Outcome) -> None:
        from emotui.ui.screens.generate import Told, TraceRead

        shown, edited = self._shown, self._edited
        if shown is None or not isinstance(outcome, Inspected):
            return
        spec = shown.writing.spec
        self._screen.workbench.with_store(
            lambda store: shown.post_message(
                TraceRead(store.get_trace(outcome.trace_id), spec, edited=edited)
            ),
            lambda error: shown.post_message(Told.of_error(error)),
        )

    def progressed(self, progress: Progress) -> None:
        """Let the text grow."""
        if self._shown is not None and self._shown.writing.running:
            now = writing.progressed(self._shown.writing, progress, edited=self._edited)
            self._shown.show(now)

    def failed(self, error: EmotuiError) -> None:
        """Say why nothing more is written."""
        if self._shown is None or not self._shown.writing.running:
            return
        lines = [line for line in (error.what, error.why, error.todo) if line]
        if isinstance(error, Cancelled):
            lines = ["Cancelled. The texts that were finished are kept; n or g goes on from them."]
        if self._export_due:
            lines.append("Nothing was exported; x exports what was finished.")
        self._export_due = False
        self._shown.show(writing.stopped(self._shown.writing, *lines))

    # For the screen.

    def read(self, message: TraceRead) -> None:
        """Show what one side wrote, then write the other."""
        shown, generation = self._shown, message.trace.generation
        if shown is None or generation is None or message.spec != shown.writing.spec:
            return
        self._traces[message.edited] = message.trace
        now = writing.finished(shown.writing, generation, edited=message.edited)
        shown.show(now)
        if now.running:
            self._ask(edited=True)
        elif self._export_due:
            self.export()

    def escape(self) -> None:
        """Cancel; close where nothing is written."""
        if self._shown is not None and self._shown.writing.running:
            self._screen.workbench.cancel()
        else:
            self.leave()

    def leave(self) -> None:
        """Close, and cancel what is being written."""
        shown, self._shown = self._shown, None
        if shown is None:
            return
        if shown.writing.running:
            self._screen.workbench.cancel()
        shown.dismiss(None)

    def more(self) -> None:
        """Draw more samples."""
        if self._shown is not None:
            self.start(writing.more(self._shown.writing.spec))

    def longer(self) -> None:
        """Write twice as much."""
        if self._shown is not None:
            self.start(writing.longer(self._shown.writing.spec))

    def export(self) -> None:
        """Write the document of `emotui generate --json` into the current folder.

        While it is being written, that is done at its end.
        """
        from emotui.core.export.json import write_numbered
        from emotui.core.export.written import document_bytes, document_of
        from emotui.ui.screens.generate import Told

        shown, before = self._shown, self._traces.get(False)
        if shown is None:
            return
        after = self._traces.get(True)
        self._export_due = shown.writing.running
        if self._export_due:
            shown.post_message(Told("It is exported as soon as it is finished."))
            return
        if before is None:
            shown.post_message(Told("There is nothing finished to export."))
            return

        def write(_store: Store) -> None:
            stem = f"emotui-generation-{(after or before).id}"
            data = document_bytes(document_of(before, after))
            path, already = write_numbered(_folder(), stem, data)
            verb = "Already there" if already else "Wrote"
            shown.post_message(Told(f"{verb}: {path}"))

        self._screen.workbench.with_store(
            write, lambda error: shown.post_message(Told.of_error(error))
        )


def _folder() -> Path:
    try:
        return Path.cwd()
    except OSError:
        raise ExportError("Nothing was written: the current folder is gone.") from None
