"""What the actions of every area share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from emotui.core.protocol import Outcome
from emotui.ui.state import Notice, NoticeKind, ScreenState

if TYPE_CHECKING:
    from emotui.ui.screens.explore import ExploreScreen

Handler = Callable[[], Awaitable[None] | None]
Answer = Callable[[Outcome], None]


class Area:
    """The actions of one area: `area.verb` of the table is `do_verb` of its class."""

    def __init__(self, screen: ExploreScreen) -> None:
        self._screen = screen

    def answers(self) -> dict[type[Outcome], Answer]:
        """Return what to call with the engine's answers to the questions this area asks."""
        return {}

    @property
    def _state(self) -> ScreenState:
        return self._screen.state

    def _update(self, state: ScreenState) -> None:
        self._screen.update(state)

    def say(self, kind: NoticeKind, *lines: str) -> None:
        """Show a message until the next one."""
        self._update(replace(self._state, notice=Notice(kind, lines)))
