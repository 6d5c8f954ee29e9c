"""What each action does: `area.verb` of the table is `do_verb` of the area's class here."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from emotui.core.errors import EmotuiError
from emotui.core.protocol import Outcome, Progress
from emotui.ui.handlers.area import Answer, Area, Handler
from emotui.ui.handlers.edit import EditHandlers
from emotui.ui.handlers.look import LookHandlers, MoveHandlers, PaneHandlers
from emotui.ui.handlers.program import AppHandlers, WorkHandlers
from emotui.ui.handlers.text import TextHandlers

if TYPE_CHECKING:
    from emotui.ui.handlers.check import CheckHandlers
    from emotui.ui.handlers.console import ConsoleHandlers
    from emotui.ui.handlers.emotion import EmotionHandlers
    from emotui.ui.handlers.feature import FeatureHandlers
    from emotui.ui.handlers.generate import GenerateHandlers
    from emotui.ui.handlers.held import HeldHandlers
    from emotui.ui.handlers.listed import ListHandlers
    from emotui.ui.handlers.search import SearchHandlers
    from emotui.ui.handlers.study import StudyHandlers
    from emotui.ui.handlers.trace import ProbeHandlers, TraceHandlers
    from emotui.ui.handlers.where import WhereHandlers
    from emotui.ui.screens.explore import ExploreScreen

_LATER = (
    *("console", "list", "generate", "check", "emotion", "where", "feature", "search"),
    *("study", "probe", "trace"),
)
"""Areas that nobody needs before the first paint, and that take time to import."""


class Handlers:
    """The actions over one screen, by area."""

    def __init__(self, screen: ExploreScreen) -> None:
        self._screen = screen
        self.text = TextHandlers(screen)
        self.move = MoveHandlers(screen)
        self.look = LookHandlers(screen)
        self.pane = PaneHandlers(screen)
        self.edit = EditHandlers(screen)
        self.work = WorkHandlers(screen)
        self.app = AppHandlers(screen)
        self._answers: dict[type[Outcome], Answer] = {}

    @cached_property
    def console(self) -> ConsoleHandlers:
        """The actions of `console`."""
        from emotui.ui.handlers.console import ConsoleHandlers

        return ConsoleHandlers(self._screen)

    @cached_property
    def list(self) -> ListHandlers:
        """The actions of `list`."""
        from emotui.ui.handlers.listed import ListHandlers

        return ListHandlers(self._screen)

    @cached_property
    def generate(self) -> GenerateHandlers:
        """The actions of `generate`."""
        from emotui.ui.handlers.generate import GenerateHandlers

        return GenerateHandlers(self._screen)

    @cached_property
    def check(self) -> CheckHandlers:
        """The actions of `check`."""
        from emotui.ui.handlers.check import CheckHandlers

        return CheckHandlers(self._screen)

    @cached_property
    def emotion(self) -> EmotionHandlers:
        """The actions of `emotion`."""
        from emotui.ui.handlers.emotion import EmotionHandlers

        return EmotionHandlers(self._screen)

    @cached_property
    def where(self) -> WhereHandlers:
        """The actions of `where`."""
        from emotui.ui.handlers.where import WhereHandlers

        return WhereHandlers(self._screen)

    @cached_property
    def feature(self) -> FeatureHandlers:
        """The actions of `feature`."""
        from emotui.ui.handlers.feature import FeatureHandlers

        return FeatureHandlers(self._screen)

    @cached_property
    def held(self) -> HeldHandlers:
        """Reports on what there is; commands of the console alone."""
        from emotui.ui.handlers.held import HeldHandlers

        return HeldHandlers(self._screen)

    @cached_property
    def search(self) -> SearchHandlers:
        """The actions of `search`."""
        from emotui.ui.handlers.search import SearchHandlers

        return SearchHandlers(self._screen)

    @cached_property
    def study(self) -> StudyHandlers:
        """The actions of `study`."""
        from emotui.ui.handlers.study import StudyHandlers

        return StudyHandlers(self._screen)

    @cached_property
    def probe(self) -> ProbeHandlers:
        """The actions of `probe`."""
        from emotui.ui.handlers.trace import ProbeHandlers

        return ProbeHandlers(self._screen)

    @cached_property
    def trace(self) -> TraceHandlers:
        """The actions of `trace`."""
        from emotui.ui.handlers.trace import TraceHandlers

        return TraceHandlers(self._screen)

    def of(self, action: str) -> Handler:
        """Return what an action calls; AttributeError for one without a handler."""
        area, _, verb = action.partition(".")
        handler: Handler = getattr(getattr(self, area), f"do_{verb}")
        return handler

    def answered(self, outcome: Outcome) -> None:
        """Show the answer to a question that was asked of the engine."""
        if type(outcome) not in self._answers:
            for name in _LATER:
                area: Area = getattr(self, name)
                self._answers.update(area.answers())
        self._answers[type(outcome)](outcome)

    def progressed(self, progress: Progress) -> None:
        """Show a text that is being written."""
        self.generate.progressed(progress)

    def failed(self, error: EmotuiError) -> None:
        """Tell those who wait for an answer that there will be none."""
        self.text.failed()
        self.generate.failed(error)
        self.feature.failed(error)
