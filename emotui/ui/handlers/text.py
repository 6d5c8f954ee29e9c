"""The text: edit it, read it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from emotui.ui.handlers.area import Area

if TYPE_CHECKING:
    from emotui.ui.screens.explore import ExploreScreen


class TextHandlers(Area):
    """Actions on the text."""

    def __init__(self, screen: ExploreScreen) -> None:
        super().__init__(screen)
        self._left = ("", "")
        """The text that was asked for last, and which edits do not hold for it."""

    async def do_edit(self) -> None:
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

    def do_run(self) -> None:
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
        kept, left = self._screen.handlers.edit.carried_over()
        self._left = (text, f"Not carried over to the new text: {', '.join(left)}." if left else "")
        self._screen.workbench.read(text, edits=kept)

    def left_behind(self, text: str) -> str:
        """Return what to say of edits that do not hold for a text now shown; "" for none."""
        asked, line = self._left
        self._left = ("", "")
        return line if asked == text else ""

    def failed(self) -> None:
        """Go back to the text that was read; the one that could not be is kept in the editor."""
        state, editor = self._state, self._screen.text_pane.editor
        if state.readings is None or editor is None or editor.text != state.text:
            return
        raw = state.readings.trace.text.raw
        if raw != state.text:
            self._update(replace(state, text=raw, draft=True))

    def do_newline(self) -> None:
        """Begin a new line in the editor."""
        if self._screen.text_pane.editor is not None:
            self._screen.text_pane.editor.insert_paste("\n")

    def do_leave(self) -> None:
        """Leave the editor; what was typed stays in it."""
        text = self._screen.text_pane
        draft = text.editor is not None and text.editor.text not in (self._state.text, "")
        text.close_editor()
        self._update(replace(self._state, draft=draft))
        self._screen.resize_text()
