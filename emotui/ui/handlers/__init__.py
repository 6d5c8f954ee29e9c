"""What each action does: `area.verb` of the table is `do_verb` of the area's class here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emotui.core.errors import EmotuiError
from emotui.core.protocol import Outcome, Progress
from emotui.ui.handlers.area import Answer, Area, Handler
from emotui.ui.handlers.check import CheckHandlers
from emotui.ui.handlers.console import ConsoleHandlers
from emotui.ui.handlers.edit import EditHandlers
from emotui.ui.handlers.emotion import EmotionHandlers
from emotui.ui.handlers.feature import FeatureHandlers
from emotui.ui.handlers.generate import GenerateHandlers
from emotui.ui.handlers.listed import ListHandlers
from emotui.ui.handlers.look import LookHandlers, MoveHandlers, PaneHandlers
from emotui.ui.handlers.program import AppHandlers, WorkHandlers
from emotui.ui.handlers.search import SearchHandlers
from emotui.ui.handlers.study import StudyHandlers
from emotui.ui.handlers.text import TextHandlers
from emotui.ui.handlers.trace import ProbeHandlers, TraceHandlers
from emotui.ui.handlers.where import WhereHandlers

if TYPE_CHECKING:
    from emotui.ui.screens.explore import ExploreScreen


class Handlers:
    """The actions over one screen, by area."""

    def __init__(self, screen: ExploreScreen) -> None:
        self.text = TextHandlers(screen)
        self.move = MoveHandlers(screen)
        self.look = LookHandlers(screen)
        self.pane = PaneHandlers(screen)
        self.edit = EditHandlers(screen)
        self.console = ConsoleHandlers(screen)
        self.probe = ProbeHandlers(screen)
        self.trace = TraceHandlers(screen)
        self.list = ListHandlers(screen)
        self.generate = GenerateHandlers(screen)
        self.check = CheckHandlers(screen)
        self.emotion = EmotionHandlers(screen)
        self.where = WhereHandlers(screen)
        self.feature = FeatureHandlers(screen)
        self.search = SearchHandlers(screen)
        self.study = StudyHandlers(screen)
        self.work = WorkHandlers(screen)
        self.app = AppHandlers(screen)
        self._answers: dict[type[Outcome], Answer] = {}
        for area in vars(self).values():
            if isinstance(area, Area):
                self._answers.update(area.answers())

    def of(self, action: str) -> Handler:
        """Return what an action calls; AttributeError for one without a handler."""
        area, _, verb = action.partition(".")
        handler: Handler = getattr(getattr(self, area), f"do_{verb}")
        return handler

    def answered(self, outcome: Outcome) -> None:
        """Show the answer to a question that was asked of the engine."""
        self._answers[type(outcome)](outcome)

    def progressed(self, progress: Progress) -> None:
        """Show a text that is being written."""
        self.generate.progressed(progress)

    def failed(self, error: EmotuiError) -> None:
        """Tell those who wait for an answer that there will be none."""
        self.text.failed()
        self.generate.failed(error)
        self.feature.failed(error)
