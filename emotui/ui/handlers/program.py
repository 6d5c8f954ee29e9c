"""The program: work that runs, the console, help, the end."""

from __future__ import annotations

from dataclasses import replace

from emotui.ui.appearance import own_names
from emotui.ui.handlers.area import Area


class WorkHandlers(Area):
    """Actions on work that runs."""

    def do_cancel(self) -> None:
        """Cancel the work that runs; without any, take the last message away, then the marks."""
        if self._screen.workbench.cancel():
            return
        if self._state.notice is not None:
            self._update(replace(self._state, notice=None))
        elif self._state.marks:
            self._update(replace(self._state, marks=()))

    def do_interrupt(self) -> None:
        """Cancel from anywhere; say how to close where there is nothing to cancel."""
        if not self._screen.workbench.cancel():
            self.say("hint", "Nothing runs. q closes emotui (esc first where you edit).")


class AppHandlers(Area):
    """Actions on the program."""

    def do_console(self) -> None:
        """Open the console."""
        self._update(replace(self._state, notice=None))
        self._screen.open_console()

    def do_theme(self) -> None:
        """Take the next of the project's and the user's themes."""
        app, themes = self._screen.app, own_names(self._screen.options.themes)
        place = themes.index(app.theme) + 1 if app.theme in themes else 0
        app.theme = themes[place % len(themes)]
        self.say("hint", f"Theme {app.theme}.")

    def do_palette(self) -> None:
        """Choose from what the focused pane can do."""
        from emotui.ui.screens.palette import palette

        self._screen.app.push_screen(palette())

    def do_help(self) -> None:
        """Show the keys of the focused pane."""
        from emotui.ui.screens.help import HelpScreen
        from emotui.ui.screens.traces import TracesScreen

        app = self._screen.app
        pane = "traces" if isinstance(app.screen, TracesScreen) else self._screen.pane
        app.push_screen(HelpScreen(pane, table=self._screen.options.actions))

    def do_close(self) -> None:
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
