"""The console: the line that edits are typed in."""

from __future__ import annotations

from emotui.ui.handlers.area import Area


class ConsoleHandlers(Area):
    """Actions in the console."""

    def do_leave(self) -> None:
        """Close the console."""
        self._screen.close_console()

    def do_run(self) -> None:
        """Make the edit that the console holds; it stays open where it was not understood."""
        line = self._screen.console.value.strip()
        defined = self._screen.handlers.emotion.define(line)
        if defined:
            self._screen.close_console()
        if defined is not None:
            return
        if not line or self._screen.handlers.edit.put(line):
            self._screen.close_console()
