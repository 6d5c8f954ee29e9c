"""What each action does: `area.verb` of the table is `do_area_verb` here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from emotui.core.errors import EditError
from emotui.ui import edits
from emotui.ui import state as states
from emotui.ui.state import Notice, NoticeKind, ScreenState

if TYPE_CHECKING:
    from emotui.ui.screens.explore import ExploreScreen

Handler = Callable[[], Awaitable[None] | None]


class Handlers:
    """The actions over one screen."""

    def __init__(self, screen: ExploreScreen) -> None:
        self._screen = screen
        self._undone: list[str] = []
        """Edits that were taken back, the last one last."""

    def of(self, action: str) -> Handler:
        """Return what an action calls; AttributeError for one that is not built."""
        handler: Handler = getattr(self, f"do_{action.replace('.', '_')}")
        return handler

    @property
    def _state(self) -> ScreenState:
        return self._screen.state

    def _update(self, state: ScreenState) -> None:
        self._screen.update(state)

    def say(self, kind: NoticeKind, *lines: str) -> None:
        """Show a message until the next one."""
        self._update(replace(self._state, notice=Notice(kind, lines)))

    # Text

    async def do_text_edit(self) -> None:
        """Open the editor with the present text, or with what was left there."""
        text = None if self._state.draft else self._state.text
        await self._screen.text_pane.open_editor(text)
        self._screen.resize_text()
        self._screen.workbench.warm_up()

    async def take_paste(self, text: str) -> None:
        """Make a text that was pasted outside the editor the editor's."""
        editor = await self._screen.text_pane.open_editor()
        if not editor.text and not self._state.draft:
            editor.hold(self._state.text)
        editor.select_all()
        editor.insert_paste(text)
        self._screen.resize_text()
        self._screen.workbench.warm_up()

    def do_text_run(self) -> None:
        """Read what the editor holds."""
        editor = self._screen.text_pane.editor
        if editor is None:
            return
        text = editor.text
        self._screen.text_pane.close_editor()
        self.read(text)

    def read(self, text: str) -> None:
        """Ask for the trace of a text; what is on the screen stays until it is there."""
        if not text.strip():
            self._update(replace(self._state, draft=False))
        else:
            self._update(replace(self._state, text=text, draft=False, notice=None))
        self._undone.clear()
        kept, left = edits.carried_over(self._edits)
        self._screen.workbench.read(text, edits=kept)
        if left:
            self.say("hint", f"Not carried over to the new text: {', '.join(left)}.")

    def do_text_newline(self) -> None:
        """Begin a new line in the editor."""
        if self._screen.text_pane.editor is not None:
            self._screen.text_pane.editor.insert_paste("\n")

    def do_text_leave(self) -> None:
        """Leave the editor; what was typed stays in it."""
        text = self._screen.text_pane
        draft = text.editor is not None and text.editor.text not in (self._state.text, "")
        text.close_editor()
        self._update(replace(self._state, draft=draft))
        self._screen.resize_text()

    # Moving

    def do_move_left(self) -> None:
        """Go to the token or emotion to the left."""
        self._sideways(-1)

    def do_move_right(self) -> None:
        """Go to the token or emotion to the right."""
        self._sideways(1)

    def _sideways(self, by: int) -> None:
        if self._screen.pane == "layers" and self._state.view == "emotions":
            self._update(states.emotion_by(self._state, by, around=False))
        else:
            self._update(states.token_by(self._state, by))

    def do_move_up(self) -> None:
        """Go to the line, layer or feature above."""
        self._vertically(-1)

    def do_move_down(self) -> None:
        """Go to the line, layer or feature below."""
        self._vertically(1)

    def _vertically(self, by: int) -> None:
        pane = self._screen.pane
        if pane == "layers":
            self._update(states.layer_by(self._state, -by))
        elif pane == "features":
            self._update(states.feature_by(self._state, by))
        elif pane == "interventions":
            self._screen.interventions_pane.scroll_relative(y=by, animate=False)
        elif (token := self._screen.text_pane.strip.token_in_line(by)) is not None:
            self._update(states.at_token(self._state, token))

    def do_move_first(self) -> None:
        """Go to the first token, column or feature."""
        self._to_end(-1_000_000)

    def do_move_last(self) -> None:
        """Go to the last token, column or feature."""
        self._to_end(1_000_000)

    def _to_end(self, by: int) -> None:
        if self._screen.pane == "features":
            self._update(states.feature_by(self._state, by))
        else:
            self._sideways(by)

    # What is shown

    def do_look_open(self) -> None:
        """Open a token's layers, or a cell's features."""
        if self._screen.pane == "text":
            self._update(replace(self._state, view="emotions"))
            self._screen.focus_pane("layers")
        else:
            self._screen.focus_pane("features")

    def do_look_emotion(self) -> None:
        """Choose the next emotion."""
        self._update(states.emotion_by(self._state, 1))

    def do_look_emotion_back(self) -> None:
        """Choose the emotion before."""
        self._update(states.emotion_by(self._state, -1))

    def do_look_view(self) -> None:
        """Change between emotions at a token and tokens for an emotion."""
        self._update(states.next_view(self._state))
        if self._screen.pane != "layers":
            self._screen.focus_pane("layers")

    def do_look_site(self) -> None:
        """Choose the next site."""
        self._update(states.next_site(self._state))

    def do_look_position(self) -> None:
        """Send the cursor to the readout, the last token, and back."""
        self._update(states.next_position(self._state))

    def do_look_sort(self) -> None:
        """Sort the features otherwise."""
        self._update(states.next_sorting(self._state))

    # Panes

    def do_pane_text(self) -> None:
        """Go to the text."""
        self._screen.focus_pane("text")

    def do_pane_layers(self) -> None:
        """Go to the layers."""
        self._screen.focus_pane("layers")

    def do_pane_features(self) -> None:
        """Go to the features."""
        self._screen.focus_pane("features")

    def do_pane_interventions(self) -> None:
        """Go to the interventions."""
        self._screen.focus_pane("interventions")

    def do_pane_next(self) -> None:
        """Go to the next pane."""
        self._screen.focus_by(1)

    def do_pane_previous(self) -> None:
        """Go to the pane before."""
        self._screen.focus_by(-1)

    # Edits

    @property
    def _edits(self) -> tuple[str, ...]:
        readings = self._state.readings
        return () if readings is None else readings.trace.edits

    def do_edit_ablate_here(self) -> None:
        """Ablate the feature under the cursor at the cursor's token."""
        self._ablate(edits.here(self._state))

    def do_edit_ablate_all(self) -> None:
        """Ablate the feature under the cursor at every token of the text."""
        self._ablate("all")

    def _ablate(self, positions: str) -> None:
        line = edits.ablation(self._state, positions)
        if line is None:
            self.say("hint", "There is no feature under the cursor.")
        else:
            self.edit(line)

    def edit(self, line: str) -> bool:
        """Put one more edit in force; say what is wrong with it, and return whether it was well."""
        try:
            printed = edits.understood(line, self._state)
        except EditError as error:
            self._update(replace(self._state, notice=Notice.of_error(error)))
            return False
        self._undone.clear()
        self._put_in_force((*self._edits, *printed))
        return True

    def _put_in_force(self, lines: tuple[str, ...]) -> None:
        self._update(replace(self._state, notice=None))
        self._screen.workbench.read(self._state.text, edits=lines)

    def do_edit_undo(self) -> None:
        """Take the last edit back."""
        if not self._edits:
            self.say("hint", "There is no edit to take back.")
            return
        self._undone.append(self._edits[-1])
        self._put_in_force(self._edits[:-1])

    def do_edit_redo(self) -> None:
        """Make the edit again that was taken back last."""
        if not self._undone:
            self.say("hint", "No edit was taken back.")
            return
        self._put_in_force((*self._edits, self._undone.pop()))

    def do_app_console(self) -> None:
        """Open the console."""
        self._update(replace(self._state, notice=None))
        self._screen.open_console()

    def do_edit_steer(self) -> None:
        """Open the console with a steering of the feature under the cursor."""
        self._suggest(edits.steering(self._state), "There is no feature under the cursor.")

    def do_edit_knock(self) -> None:
        """Open the console with a knockout at the cursor's layer."""
        self._suggest(edits.knockout(self._state), "The embedding row cannot be knocked out.")

    def do_edit_patch(self) -> None:
        """Open the console with a patch at the cursor's layer."""
        self._suggest(edits.patch(self._state), "The embedding row cannot be patched.")

    def do_edit_promote(self) -> None:
        """Open the console with a promotion of the chosen emotion."""
        self._suggest(edits.promotion(self._state), "No probe reads an emotion here yet.")

    def _suggest(self, line: str | None, otherwise: str) -> None:
        if line is None:
            self.say("hint", otherwise)
        else:
            self._update(replace(self._state, notice=None))
            self._screen.open_console(line)

    def do_console_leave(self) -> None:
        """Close the console."""
        self._screen.close_console()

    def do_console_run(self) -> None:
        """Make the edit that the console holds; it stays open where it was not understood."""
        line = self._screen.console.value.strip()
        if not line or self.edit(line):
            self._screen.close_console()

    # Work

    def do_probe_fit(self) -> None:
        """Fit probes where there are none."""
        readings = self._state.readings
        if readings is not None and readings.emotions:
            self.say("hint", "This model has probes already; `emotui probe fit` fits others.")
        elif self._state.text.strip():
            self._screen.workbench.fit(self._state.text)

    def do_trace_export(self) -> None:
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

    def do_work_cancel(self) -> None:
        """Cancel the work that runs; without any, take the last message away."""
        if not self._screen.workbench.cancel() and self._state.notice is not None:
            self._update(replace(self._state, notice=None))

    def do_work_interrupt(self) -> None:
        """Cancel from anywhere; say how to close where there is nothing to cancel."""
        if not self._screen.workbench.cancel():
            self.say("hint", "Nothing runs. q closes emotui (esc first where you edit).")

    # The program

    def do_app_help(self) -> None:
        """Show the keys of the focused pane."""
        from emotui.ui.screens.help import HelpScreen

        self._screen.app.push_screen(HelpScreen(self._screen.pane))

    def do_app_close(self) -> None:
        """Close; ask first while work runs."""
        if not self._screen.workbench.at_work:
            self._screen.app.exit(0)
            return
        from emotui.ui.screens.help import AskScreen

        def answered(close: bool | None) -> None:
            if close:
                self._screen.app.exit(0)

        question = "Work is running. Close emotui and cancel it?"
        self._screen.app.push_screen(AskScreen(question), answered)
