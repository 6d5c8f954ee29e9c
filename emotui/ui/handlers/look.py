"""What is looked at: moving, choosing what is shown, and the panes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from emotui.core.errors import EmotuiError
from emotui.core.text import TEMPLATES
from emotui.ui import state as states
from emotui.ui.handlers.area import Area
from emotui.ui.state import Notice

if TYPE_CHECKING:
    from emotui.ui.screens.explore import ExploreScreen


class MoveHandlers(Area):
    """Actions that move the cursor."""

    def do_left(self) -> None:
        """Go to the token or emotion to the left."""
        self._sideways(-1)

    def do_right(self) -> None:
        """Go to the token or emotion to the right."""
        self._sideways(1)

    def _sideways(self, by: int) -> None:
        if self._screen.pane == "layers" and self._state.view == "emotions":
            self._update(states.emotion_by(self._state, by, around=False))
        else:
            self._update(states.token_by(self._state, by))

    def do_up(self) -> None:
        """Go to the line, layer or feature above."""
        self._vertically(-1)

    def do_down(self) -> None:
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

    def do_first(self) -> None:
        """Go to the first token, column or feature."""
        self._to_end(-1_000_000)

    def do_last(self) -> None:
        """Go to the last token, column or feature."""
        self._to_end(1_000_000)

    def _to_end(self, by: int) -> None:
        if self._screen.pane == "features":
            self._update(states.feature_by(self._state, by))
        else:
            self._sideways(by)


class LookHandlers(Area):
    """Actions that choose what is shown."""

    def __init__(self, screen: ExploreScreen) -> None:
        super().__init__(screen)
        self._tried = ("", "")
        """The template of the trace when another was asked for last, and that other one."""

    def do_open(self) -> None:
        """Open a token's layers, or a cell's features."""
        if self._screen.pane == "text":
            self._update(replace(self._state, view="emotions"))
            self._screen.focus_pane("layers")
        else:
            self._screen.focus_pane("features")

    def do_emotion(self) -> None:
        """Choose the next emotion."""
        self._update(states.emotion_by(self._state, 1))

    def do_emotion_back(self) -> None:
        """Choose the emotion before."""
        self._update(states.emotion_by(self._state, -1))

    def do_view(self) -> None:
        """Change between emotions at a token and tokens for an emotion."""
        self._update(states.next_view(self._state))
        if self._screen.pane != "layers":
            self._screen.focus_pane("layers")

    def do_site(self) -> None:
        """Choose the next site."""
        self._update(states.next_site(self._state))

    def do_position(self) -> None:
        """Send the cursor to the readout, the last token, and back."""
        self._update(states.next_position(self._state))

    def do_mark(self) -> None:
        """Mark the feature under the cursor, or no longer."""
        self._update(states.with_mark(self._state))

    def do_template(self) -> None:
        """Read the text in the next prompt; no probes are fitted for it before F is pressed."""
        readings = self._state.readings
        if readings is None:
            self.say("hint", "There is no text to read in another prompt yet.")
            return
        names, now = tuple(TEMPLATES), readings.trace.run.template
        former, tried = self._tried
        # One that cannot be used, as chat without a chat template, is not tried for ever.
        base = tried if former == now and tried in names else now
        place = names.index(base) + 1 if base in names else 0
        name = names[place % len(names)]
        self._tried = (now, name)
        try:
            self._screen.handlers.console.read_under(name)
        except EmotuiError as error:
            self._update(replace(self._state, notice=Notice.of_error(error)))

    def do_sort(self) -> None:
        """Sort the features otherwise."""
        self._update(states.next_sorting(self._state))


class PaneHandlers(Area):
    """Actions that give a pane the keys."""

    def do_text(self) -> None:
        """Go to the text."""
        self._screen.focus_pane("text")

    def do_layers(self) -> None:
        """Go to the layers."""
        self._screen.focus_pane("layers")

    def do_features(self) -> None:
        """Go to the features."""
        self._screen.focus_pane("features")

    def do_interventions(self) -> None:
        """Go to the interventions."""
        self._screen.focus_pane("interventions")

    def do_next(self) -> None:
        """Go to the next pane."""
        self._screen.focus_by(1)

    def do_previous(self) -> None:
        """Go to the pane before."""
        self._screen.focus_by(-1)
