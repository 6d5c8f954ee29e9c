"""The feature under the cursor in detail: asked for, shown, edited from there."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from emotui.cache.details import kept_feature
from emotui.core.details import FeatureDetail
from emotui.core.edits import position_of_token
from emotui.core.protocol import Featured, FeatureRequest, InspectRequest, Outcome
from emotui.core.text import clean
from emotui.ui.handlers.area import Answer, Area
from emotui.ui.handlers.copying import copy
from emotui.ui.messages import Fetched

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.errors import EmotuiError
    from emotui.core.protocol import Operation
    from emotui.ui.readings import FeatureRow
    from emotui.ui.screens.explore import ExploreScreen
    from emotui.ui.screens.feature import FeatureScreen


class FeatureHandlers(Area):
    """The detail of a feature. The corpus is read after the rest is shown."""

    def __init__(self, screen: ExploreScreen) -> None:
        super().__init__(screen)
        self._shown: FeatureScreen | None = None
        self._row: FeatureRow | None = None
        self._position = 0

    def answers(self) -> dict[type[Outcome], Answer]:
        """Take what was found out."""
        return {Featured: self._answered}

    def do_open(self) -> None:
        """Ask for the detail of the feature under the cursor."""
        state = self._state
        if state.readings is None or not state.features:
            self.say("hint", "There is no feature under the cursor.")
            return
        self._shown = None
        self._row, self._position = state.features[state.feature], state.position
        if self._screen.workbench.foreign is None:
            self._ask(corpus=False)
        else:
            self._look_up()

    def _look_up(self) -> None:
        """Show what is kept of the feature; its model is not the one that could be asked."""
        readings, row = self._state.readings, self._row
        if readings is None or row is None:
            return
        trace = readings.trace
        asked = FeatureRequest(
            self._screen.options.request,
            feature=row.name,
            sae=row.sae,
            position=str(position_of_token(self._position, trace.text)),
            corpus=False,
        )
        otherwise = f"{row.name} was not looked at while {clean(trace.run.model)} was loaded."

        def show(detail: FeatureDetail | None) -> None:
            if detail is None:
                self.say("hint", otherwise)
            else:
                self._answered(Featured(detail, forwards=0))

        def look(store: Store) -> None:
            found = kept_feature(store, trace.id, asked)
            self._screen.post_message(Fetched(partial(show, found)))

        def failed(error: EmotuiError) -> None:
            self._screen.post_message(Fetched(partial(self.say, "error", error.what)))

        self._screen.workbench.with_store(look, failed)

    def _ask(self, *, corpus: bool) -> None:
        readings, row = self._state.readings, self._row
        if readings is None or row is None:
            return
        trace = readings.trace
        position = str(position_of_token(self._position, trace.text))

        def question(request: InspectRequest, store: Store) -> Operation | Outcome:
            asked = FeatureRequest(
                request, feature=row.name, sae=row.sae, position=position, corpus=corpus
            )
            kept = kept_feature(store, trace.id, asked)
            return asked if kept is None else Featured(kept, forwards=0)

        what = "reading the corpus" if corpus else f"looking at {row.name}"
        self._screen.workbench.ask(question, what, text=trace.text.raw, edits=trace.edits)

    def _answered(self, outcome: Outcome) -> None:
        from emotui.ui.screens.feature import FeatureScreen

        if not isinstance(outcome, Featured):
            return
        detail = outcome.detail
        if self._shown is None:
            self._shown = FeatureScreen(
                detail,
                self,
                emotion=self._state.emotion,
                width=self._screen.app.size.width,
            )
            self._screen.app.push_screen(self._shown, self._closed)
            if detail.corpus is None and self._screen.workbench.foreign is None:
                self._ask(corpus=True)
        elif self._shown.is_attached and self._shown.detail.name == detail.name:
            self._shown.show(detail)

    def _closed(self, _result: None) -> None:
        self._shown = None

    def failed(self, error: EmotuiError) -> None:
        """Say on the open detail why the rest of it does not come."""
        if self._shown is not None and self._shown.is_attached:
            self._shown.tell(error.what)

    # What the screen asks for.

    def working(self) -> str:
        """Return how far the work is, in a line; "" where none runs."""
        work = self._state.work
        if work is None:
            return ""
        count = f" {work.done}/{work.total}" if work.total else ""
        return f"{work.phase or work.what}{count} · esc cancels"

    def leave(self) -> None:
        """Cancel what runs; without any, close the detail."""
        if not self._screen.workbench.cancel():
            self._close()

    def _close(self) -> None:
        self._screen.workbench.cancel()
        if self._shown is not None:
            self._shown.dismiss(None)

    def ablate(self, position: int | None) -> None:
        """Close the detail and ablate its feature at a token, None for all of the text."""
        if self._row is not None:
            self._close()
            where = "all" if position is None else self._named(position)
            self._screen.handlers.edit.put(f"ablate {self._row.name} at {where}")

    def steer(self) -> None:
        """Close the detail and suggest a steering in the console."""
        if self._row is not None:
            self._close()
            line = f"steer {self._row.name} +0.1 at {self._named(self._position)}"
            self._screen.open_console(line)

    def _named(self, position: int) -> str:
        readings = self._state.readings
        assert readings is not None
        return str(position_of_token(position, readings.trace.text))

    def copy_page(self) -> None:
        """Copy the address of the feature's page at Neuronpedia, else its name."""
        shown = self._shown
        if shown is None:
            return
        detail = shown.detail
        if detail.page is None:
            copy(self._screen, detail.name, f"{detail.name} (it has no page known)", shown.tell)
        else:
            copy(self._screen, detail.page, detail.page, shown.tell)
