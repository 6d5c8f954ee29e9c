"""The explorer's screen: panes around one state, their layout and focus."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container
from textual.content import Content
from textual.screen import Screen
from textual.widget import Widget

from emotui.cache.session import Session
from emotui.ui import state as states
from emotui.ui.actions import PaneName, heard_elsewhere
from emotui.ui.actions.action import LOOKING
from emotui.ui.effect_rows import effect_in_words
from emotui.ui.handlers import Handlers
from emotui.ui.messages import Fetched
from emotui.ui.panes.console import Console
from emotui.ui.panes.features import FeaturesPane
from emotui.ui.panes.interventions import InterventionsPane
from emotui.ui.panes.layers import CellChosen, LayersPane
from emotui.ui.panes.status import KeyBar, Notice, StatusLine
from emotui.ui.panes.text import TextPane, TokenChosen
from emotui.ui.readings import Readings
from emotui.ui.state import Notice as NoticeRecord
from emotui.ui.state import OpenOptions, ScreenState
from emotui.ui.work import Workbench

NARROWEST_WITH_TWO_COLUMNS = 100
SMALLEST = (40, 12)
"""Columns and lines under which the panes cannot be read."""
_NARROW_SHARE, _WIDE_SHARE = 0.38, 0.45
"""How much of the screen's height the text may take."""
_AROUND_TOKENS = 4
"""Lines of the Text pane besides the tokens: border, the token's line, the answer's."""
_LEAST, _LEAST_EDITING = 6, 8
_LOWEST_WITH_SAID = 20
"""Lines of the screen from which the Text pane has one more: read, lens, say."""
_LAYERS_SHARE = 0.62
"""How much of the screen's height the layers may take beside the text."""
_AROUND_LAYERS = 3
"""Lines of the Layers pane besides the layers: border and header."""
_SAVE_SECONDS = 1.0
_RESUMED = "As you left it. i types another text; t lists all traces."
_ORDER: tuple[PaneName, ...] = ("text", "layers", "features", "interventions")


class TooSmall(Widget):
    """Says what size is needed, where the terminal is smaller."""

    def __init__(self) -> None:
        super().__init__(id="too-small")

    def render(self) -> Content:
        """Return the lines."""
        columns, lines = SMALLEST
        return Content(f"emotui needs {columns} x {lines}\nq closes")


class ExploreScreen(Screen[None]):
    """Text, layers, features; one state, drawn by all of them."""

    BINDINGS: ClassVar[list[BindingType]] = []
    AUTO_FOCUS = ""

    def __init__(self, options: OpenOptions, workbench: Workbench) -> None:
        super().__init__()
        self.options = options
        self.workbench = workbench
        self.state = ScreenState(text=options.request.text)
        self.panes = Container(id="panes")
        self.text_pane = TextPane()
        self.layers_pane = LayersPane()
        self.features_pane = FeaturesPane()
        self.interventions_pane = InterventionsPane()
        self.console = Console()
        self.notice = Notice()
        self.status = StatusLine(
            model=options.request.spec.model,
            template=options.request.template,
            private=options.private,
        )
        self.key_bar = KeyBar(options.actions)
        self.handlers = Handlers(self)
        self._open_pane: PaneName = "layers"
        self._before_console: PaneName = "text"
        self._saved: Session | None = options.session

    def compose(self) -> ComposeResult:
        """Compose the panes; the layout is chosen by width."""
        yield TooSmall()
        with self.panes:
            yield self.text_pane
            yield self.layers_pane
            yield self.features_pane
            yield self.interventions_pane
        yield self.console.choices
        yield self.console
        yield self.console.pointer
        yield self.notice
        yield self.status
        yield self.key_bar

    def on_mount(self) -> None:
        """Draw the text at once, then begin to read it; open the editor where there is none."""
        self._lay_out()
        self.update(self.state)
        self.set_focus(self.text_pane.strip)
        text, session = self.options.request.text, self.options.session
        if not self.options.private:
            self.set_interval(_SAVE_SECONDS, self.save_session)
        if session is not None:
            self.workbench.open_trace(session.trace)
        elif text:
            self.workbench.read(text)
        else:
            self.call_after_refresh(self.handlers.text.do_edit)

    def show_trace(self, readings: Readings, *, cached: bool, seconds: float) -> None:
        """Show a trace: the first one where it was left, where it was left."""
        first = self.state.readings is None
        state = states.shown(self.state, readings, cached=cached, seconds=seconds)
        session = self.options.session
        if first and session is not None and session.trace == readings.trace.id:
            notice = NoticeRecord("hint", (_RESUMED,))
            state = replace(states.placed(state, session), notice=notice)
        elif self.has_class("-narrow") and self._open_pane != "interventions":
            said = effect_in_words(readings.trace, state.emotion)
            if said:
                notice = NoticeRecord("hint", (f"{said} · 4 shows all",))
                state = replace(state, notice=notice)
        if left := self.handlers.text.left_behind(state.text):
            state = replace(state, notice=NoticeRecord("hint", (left,)))
        self.update(state)

    def save_session(self) -> None:
        """Keep the place where it changed, so that whatever ends the program loses nothing."""
        session = states.session_of(self.state)
        if session in (None, self._saved) or self.workbench.foreign is not None:
            return
        self._saved = session
        self.workbench.save_session(session)

    def update(self, state: ScreenState) -> None:
        """Take another state and let every pane draw it."""
        former, self.state = self.state, state
        with self.app.batch_update():
            for part in (
                self.text_pane,
                self.layers_pane,
                self.features_pane,
                self.interventions_pane,
                self.notice,
                self.status,
            ):
                part.show(state)
        if former.readings is not state.readings or former.text != state.text:
            self.call_after_refresh(self.resize_text)
        if former.readings is not state.readings:
            self.handlers.console.trace_shown()

    def on_fetched(self, message: Fetched) -> None:
        """Show what came from the cache, or what was kept there."""
        message.show()

    async def action_do(self, action: str) -> None:
        """Do an action of the table."""
        result = self.handlers.of(action)()
        if inspect.isawaitable(result):
            await result

    def on_key(self, event: events.Key) -> None:
        """Say where a key that does nothing in this pane does something."""
        if self.pane not in LOOKING or not event.is_printable:
            return
        said = heard_elsewhere(self.pane, event.key, actions=self.options.actions)
        if said is not None:
            self.handlers.app.say("hint", said)

    def on_token_chosen(self, message: TokenChosen) -> None:
        """Follow a click on a token."""
        self.update(states.at_token(self.state, message.position))

    def on_cell_chosen(self, message: CellChosen) -> None:
        """Follow a click on a cell of the heat map."""
        self.update(states.at_cell(self.state, message.layer, message.column))

    # Layout and focus.

    def on_resize(self, event: events.Resize) -> None:
        """Choose the layout for the new size."""
        self._lay_out(event.size.width, event.size.height)

    def _lay_out(self, width: int | None = None, height: int | None = None) -> None:
        width, height = width or self.app.size.width, height or self.app.size.height
        tiny = width < SMALLEST[0] or height < SMALLEST[1]
        narrow = width < NARROWEST_WITH_TWO_COLUMNS
        self.set_class(tiny, "-tiny")
        self.set_class(narrow, "-narrow")
        self.set_class(not narrow, "-wide")
        for pane in (self.layers_pane, self.features_pane, self.interventions_pane):
            pane.set_class(narrow and pane.id != self._open_pane, "folded")
        self.call_after_refresh(self.resize_text)

    def resize_text(self) -> None:
        """Give the text the lines it needs, up to a share of the screen."""
        width = self.text_pane.strip.scrollable_content_region.width
        if width <= 0:
            return
        narrow = self.has_class("-narrow")
        share = _NARROW_SHARE if narrow else _WIDE_SHARE
        said = self.app.size.height >= _LOWEST_WITH_SAID
        self.text_pane.said.display = said
        needed = self.text_pane.strip.needed_height(width) + _AROUND_TOKENS + said
        least = _LEAST_EDITING if self.text_pane.editing else _LEAST + said
        height = max(least, min(int(self.app.size.height * share), needed))
        self.text_pane.styles.height = height if narrow else "100%"
        # Text above features at the left, layers above interventions at the right; three rows,
        # so that each column breaks where its upper pane ends.
        layers = len(self.state.readings.layers) if self.state.readings is not None else 0
        right = min(int(self.app.size.height * _LAYERS_SHARE), layers + _AROUND_LAYERS)
        self.panes.styles.grid_rows = f"{height} {max(1, right - height)} 1fr"

    @property
    def pane(self) -> PaneName:
        """The pane that hears keys."""
        focused = self.focused
        if focused is None:
            return "text"
        if focused is self.text_pane.editor:
            return "editor"
        names: dict[Widget, PaneName] = {
            self.layers_pane: "layers",
            self.features_pane: "features",
            self.interventions_pane: "interventions",
            self.console: "console",
        }
        return names.get(focused, "text")

    def on_descendant_focus(self) -> None:
        """Show the keys of the pane, and open it where there is room for one."""
        pane = self.pane
        self.key_bar.show(pane)
        if pane in ("layers", "features", "interventions") and pane != self._open_pane:
            self._open_pane = pane
            self._lay_out()

    def focus_pane(self, pane: PaneName) -> None:
        """Give a pane the keys."""
        if self.text_pane.editing:
            self.handlers.text.do_leave()
        targets: dict[PaneName, Widget] = {
            "layers": self.layers_pane,
            "features": self.features_pane,
            "interventions": self.interventions_pane,
        }
        self.set_focus(targets.get(pane, self.text_pane.strip))

    def open_console(self, line: str = "") -> None:
        """Open the line to type an edit in, with `line` to be changed or run."""
        if self.pane != "console":
            self._before_console = self.pane
        self.handlers.console.opened()
        self.console.open(line)

    def close_console(self) -> None:
        """Close it, and give the keys back to the pane that had them."""
        self.console.close()
        self.handlers.console.closed()
        self.focus_pane(self._before_console)

    def focus_by(self, by: int) -> None:
        """Give the pane `by` places further the keys."""
        now = self.pane if self.pane in _ORDER else "text"
        self.focus_pane(_ORDER[(_ORDER.index(now) + by) % len(_ORDER)])
