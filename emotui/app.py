"""The application: wiring only. Themes, the screen, the workbench, and keys on their way in."""

from __future__ import annotations

import asyncio
import gc
import signal
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.driver import Driver

from emotui.cache.demo import is_demo
from emotui.cache.session import Session
from emotui.cache.store import Store, default_root
from emotui.core.client import EngineClient
from emotui.core.errors import Cancelled, EngineError
from emotui.core.private import traceback_without_private
from emotui.core.protocol import InspectRequest
from emotui.themes import STYLE_SHEET, THEMES, VARIABLE_DEFAULTS
from emotui.ui import messages
from emotui.ui.actions import PaneName, action_for
from emotui.ui.appearance import load_appearance, theme_at_start
from emotui.ui.asking import Engine
from emotui.ui.driver import PasteAwareDriver
from emotui.ui.gated import GatedApp
from emotui.ui.keymap import as_textual
from emotui.ui.screens.explore import ExploreScreen
from emotui.ui.state import Notice, OpenOptions, Work
from emotui.ui.terminal import Terminal, append_private, shielded
from emotui.ui.work import Workbench

_SETTLED_SECONDS = 1.0


class EmotuiApp(GatedApp):
    """The explorer. `start_engine` may be replaced, by tests for instance."""

    TITLE = "emotui"
    CSS_PATH = STYLE_SHEET
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c", "interrupt", show=False, priority=True),
        Binding("ctrl+q", "close", show=False, priority=True),
    ]

    def __init__(
        self,
        options: OpenOptions,
        *,
        engine: Engine | None = None,
        driver_class: type[Driver] | None = None,
    ) -> None:
        # Without colours Textual must not turn them into greys, which it would send as colours.
        ansi_color = None if options.coloured else True
        super().__init__(driver_class=driver_class, ansi_color=ansi_color)
        self.options = options
        self.log_file: Path | None = None
        """Where the traceback of an unexpected error goes."""
        for theme in (*THEMES, *options.themes):
            self.register_theme(theme)
        self.theme = options.theme
        self.set_keymap(as_textual(options.actions))
        self.workbench = Workbench(
            options.request,
            self.post_message,
            open_store=lambda: Store.open(_folder(options)),
            start_engine=lambda root: engine or _engine(root, options),
            load_behind=is_demo(options.request.spec),
        )
        self.explorer = ExploreScreen(options, self.workbench)
        self.ended_by: int | None = None
        """The signal that ended it; None where the user did."""

    def on_ready(self) -> None:
        """Collect garbage again, without what the start made: a full collection delays a key."""
        self.set_timer(_SETTLED_SECONDS, _collect_from_now_on)
        if self.gate_keys:
            for number in (signal.SIGTERM, signal.SIGHUP):
                asyncio.get_running_loop().add_signal_handler(number, self._end_by, number)

    def _end_by(self, number: int) -> None:
        """Close as on `q`, without asking: the connection dropped, or the machine goes down."""
        self.ended_by = number
        self.exit(0)

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Return the project's own variables, for themes that lack them."""
        return dict(VARIABLE_DEFAULTS)

    def get_default_screen(self) -> ExploreScreen:
        """Return the only screen, so that the first paint is already its own."""
        return self.explorer

    # What happened.

    def _is_current(self, fact: messages.Fact) -> bool:
        return fact.number == self.workbench.number

    def on_work_started(self, fact: messages.WorkStarted) -> None:
        """Show that something runs."""
        if self._is_current(fact):
            self.explorer.update(replace(self.explorer.state, work=Work(fact.what)))

    def on_work_progressed(self, fact: messages.WorkProgressed) -> None:
        """Show how far it is."""
        state = self.explorer.state
        if self._is_current(fact) and state.work is not None:
            work = replace(
                state.work,
                phase=fact.phase,
                done=fact.done,
                total=fact.total,
                seconds_left=fact.seconds_left,
            )
            self.explorer.update(replace(state, work=work))

    def on_work_told(self, fact: messages.WorkTold) -> None:
        """Show a fact about the work until the next message."""
        if self._is_current(fact):
            notice = Notice("hint", (fact.line,))
            self.explorer.update(replace(self.explorer.state, notice=notice))

    def on_text_written(self, fact: messages.TextWritten) -> None:
        """Show what is being written."""
        if self._is_current(fact):
            self.explorer.handlers.progressed(fact.progress)

    def on_trace_ready(self, fact: messages.TraceReady) -> None:
        """Show a trace."""
        if self._is_current(fact):
            self.explorer.show_trace(fact.readings, cached=fact.cached, seconds=fact.seconds)

    def on_work_finished(self, fact: messages.WorkFinished) -> None:
        """Take the progress away."""
        if self._is_current(fact):
            self.explorer.update(replace(self.explorer.state, work=None))

    def on_work_failed(self, fact: messages.WorkFailed) -> None:
        """Say what went wrong; what was there before stays."""
        if self._is_current(fact):
            error = fact.error
            hint = Notice("hint", ("Cancelled. What was finished is kept.",))
            notice = hint if isinstance(error, Cancelled) else Notice.of_error(error)
            self.explorer.update(replace(self.explorer.state, work=None, notice=notice))
            self.explorer.handlers.failed(error)

    def on_answered(self, fact: messages.Answered) -> None:
        """Show the answer to a question."""
        if self._is_current(fact):
            self.explorer.update(replace(self.explorer.state, work=None))
            self.explorer.handlers.answered(fact.outcome)

    def on_trace_exported(self, fact: messages.TraceExported) -> None:
        """Say where the file is."""
        verb = "Already there" if fact.already else "Wrote"
        self.explorer.handlers.app.say("good", f"{verb}: {fact.path}")

    def on_export_failed(self, fact: messages.ExportFailed) -> None:
        """Say why there is no file."""
        self.explorer.update(replace(self.explorer.state, notice=Notice.of_error(fact.error)))

    def pane_in_focus(self) -> PaneName | None:
        """Return the pane that keys go to; None on another screen."""
        return self.explorer.pane if self.screen is self.explorer else None

    async def paste_outside(self, text: str) -> None:
        """Make a text that was pasted anywhere else the editor's."""
        while self.screen is not self.explorer:
            self.pop_screen()
        await self.explorer.handlers.text.take_paste(text)

    def is_careful(self, key: str) -> bool:
        """Whether a key does more than move or show."""
        action = action_for(self.explorer.pane, key, actions=self.options.actions)
        return action is not None and action.careful

    def action_interrupt(self) -> None:
        """Cancel what runs, from anywhere."""
        self.explorer.handlers.work.do_interrupt()

    def action_close(self) -> None:
        """Close, as `q` does."""
        self.explorer.handlers.app.do_close()

    # Ends.

    def _fatal_error(self) -> None:
        """Stop on an unexpected error: its traceback, without texts, goes to the log."""
        problem = self._exception
        if problem is not None and self.log_file is not None:
            append_private(self.log_file, traceback_without_private(problem, None))
        self.panic(Text(f"emotui stopped: an unexpected {type(problem).__name__}."))


def _collect_from_now_on() -> None:
    gc.freeze()
    gc.enable()


def _folder(options: OpenOptions) -> Path | None:
    return Path(options.request.cache_dir) if options.request.cache_dir else None


def _engine(root: Path, options: OpenOptions) -> Engine:
    return EngineClient(root, offline=options.request.spec.offline)


def run_explorer(
    request: InspectRequest,
    *,
    terminal: Terminal,
    theme: str | None = None,
    private: bool = False,
    session: Session | None = None,
) -> None:
    """Open the explorer on a request's text and model, and return when it is closed.

    Raises UsageError for a theme that does not exist or a file of the user's that is wrong,
    EngineError where the screen stopped on an unexpected error. The terminal is as it was
    before, in every case.
    """
    appearance = load_appearance()
    themes, coloured, few = appearance.themes, terminal.coloured, terminal.few_colours
    options = OpenOptions(
        request=request,
        theme=theme_at_start(theme, themes=themes, coloured=coloured, few_colours=few),
        themes=themes,
        mouse=terminal.mouse,
        coloured=coloured,
        private=private,
        actions=appearance.actions,
        session=session,
    )
    log = (_folder(options) or default_root()) / "logs" / "screen.log"
    with shielded(log) as screen:
        app = EmotuiApp(options, driver_class=PasteAwareDriver)
        app.error_console.file = screen
        app.gate_keys, app.log_file = True, log
        try:
            app.run(mouse=options.mouse)
        finally:
            if not options.private:
                app.explorer.save_session()
            app.workbench.close()
    if app.ended_by is not None:
        raise SystemExit(128 + app.ended_by)
    if app.return_code:
        raise EngineError(
            "The screen stopped.",
            why=f"An unexpected {type(app._exception).__name__}.",
            todo=f"Traces are kept in the cache. The details are in {log}.",
        )
