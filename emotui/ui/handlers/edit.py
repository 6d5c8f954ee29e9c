"""Edits: put in force, taken back, suggested in the console."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from emotui.core.errors import EditError, UsageError
from emotui.ui import edits
from emotui.ui.handlers.area import Area
from emotui.ui.state import Notice

if TYPE_CHECKING:
    from emotui.ui.screens.explore import ExploreScreen


class EditHandlers(Area):
    """Actions on the edits in force."""

    def __init__(self, screen: ExploreScreen) -> None:
        super().__init__(screen)
        self._undone: list[str] = []
        """Edits that were taken back, the last one last."""

    @property
    def _edits(self) -> tuple[str, ...]:
        readings = self._state.readings
        return () if readings is None else readings.trace.edits

    def do_ablate_here(self) -> None:
        """Ablate the feature under the cursor at the cursor's token."""
        self._ablate(edits.here(self._state))

    def do_ablate_all(self) -> None:
        """Ablate the feature under the cursor at every token of the text."""
        self._ablate("all")

    def _ablate(self, positions: str) -> None:
        line = edits.ablation(self._state, positions)
        if line is None:
            self.say("hint", "There is no feature under the cursor.")
        elif self.put(line):
            # Ablated features leave the list: marks on them would act again, unseen.
            self._update(replace(self._state, marks=()))

    def put(self, line: str) -> bool:
        """Put one more edit in force; say what is wrong with it, and return whether it was well."""
        try:
            printed = edits.understood(line, self._state)
        except EditError as error:
            self._update(replace(self._state, notice=Notice.of_error(error)))
            return False
        self.make(printed)
        return True

    def make(self, lines: tuple[str, ...]) -> None:
        """Put edits, in their printed form, in force after those that are."""
        self._undone.clear()
        self._put_in_force((*self._edits, *lines))

    def forget_undone(self) -> None:
        """Forget what was taken back: it was so on another trace."""
        self._undone.clear()

    def carried_over(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the edits that hold for another text too, and those that do not.

        The bundled example's edit is no choice of the user's: it stays with the example.
        """
        self.forget_undone()
        if self._screen.workbench.foreign is not None:
            return (), self._edits  # layers and features are another model's
        shown = edits.of_example(self._state)
        kept, left = edits.carried_over(self._edits[len(shown) :])
        return kept, (*shown, *left)

    def _put_in_force(self, lines: tuple[str, ...]) -> None:
        try:
            self._screen.workbench.require_own()
        except UsageError as error:
            self._update(replace(self._state, notice=Notice.of_error(error)))
            return
        self._update(replace(self._state, notice=None))
        self._screen.workbench.read(self._state.text, edits=lines)

    def do_undo(self) -> None:
        """Take the last edit back."""
        if not self._edits:
            self.say("hint", "There is no edit to take back.")
            return
        self._undone.append(self._edits[-1])
        self._put_in_force(self._edits[:-1])

    def do_redo(self) -> None:
        """Make the edit again that was taken back last."""
        if not self._undone:
            self.say("hint", "No edit was taken back.")
            return
        self._put_in_force((*self._edits, self._undone.pop()))

    def do_steer(self) -> None:
        """Open the console with a steering of the feature under the cursor."""
        self._suggest(edits.steering(self._state), "There is no feature under the cursor.")

    def do_knock(self) -> None:
        """Open the console with a knockout at the cursor's layer."""
        self._suggest(edits.knockout(self._state), "The embedding row cannot be knocked out.")

    def do_patch(self) -> None:
        """Open the console with a patch at the cursor's layer."""
        self._suggest(edits.patch(self._state), "The embedding row cannot be patched.")

    def do_promote(self) -> None:
        """Open the console with a promotion of the chosen emotion."""
        self._suggest(edits.promotion(self._state), "No probe reads an emotion here yet.")

    def _suggest(self, line: str | None, otherwise: str) -> None:
        if line is None:
            self.say("hint", otherwise)
        else:
            self._update(replace(self._state, notice=None))
            self._screen.open_console(line)
