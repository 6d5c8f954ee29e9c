"""What happened, told to the screen. Every message names the request it belongs to.

Posted from other threads: they carry frozen records, and no handler but the app's touches them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from textual.message import Message

from emotui.core.errors import EmotuiError
from emotui.core.protocol import Outcome, Progress
from emotui.ui.readings import Readings


class Fact(Message, bubble=False):
    """Something that happened to request `number`."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class WorkStarted(Fact):
    """Something began that takes time: `what` in words."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(number)
        self.what = what


class WorkProgressed(Fact):
    """The work came further; only the latest matters."""

    def __init__(
        self, number: int, phase: str, done: int, total: int, seconds_left: float | None
    ) -> None:
        super().__init__(number)
        self.phase = phase
        self.done = done
        self.total = total
        self.seconds_left = seconds_left

    def can_replace(self, message: Message) -> bool:
        """Collapse what piles up."""
        return isinstance(message, WorkProgressed) and message.number == self.number


class WorkTold(Fact):
    """The work told a fact that stays in sight: what a download or a load will take."""

    def __init__(self, number: int, line: str) -> None:
        super().__init__(number)
        self.line = line


class TextWritten(Fact):
    """A text that is being written grew, or is finished."""

    def __init__(self, number: int, progress: Progress) -> None:
        super().__init__(number)
        self.progress = progress

    def can_replace(self, message: Message) -> bool:
        """Collapse what piles up, but no text that is finished."""
        return (
            isinstance(message, TextWritten)
            and message.number == self.number
            and message.progress.written is None
        )


class TraceReady(Fact):
    """A trace can be shown: from the cache without any work, or computed just now."""

    def __init__(self, number: int, readings: Readings, *, cached: bool, seconds: float) -> None:
        super().__init__(number)
        self.readings = readings
        self.cached = cached
        self.seconds = seconds


class WorkFinished(Fact):
    """Nothing of the request is left to do."""


class WorkFailed(Fact):
    """The request ended with an error; what was finished before it stays."""

    def __init__(self, number: int, error: EmotuiError) -> None:
        super().__init__(number)
        self.error = error


class Answered(Fact):
    """The engine, or the cache, answered a question that is no trace."""

    def __init__(self, number: int, outcome: Outcome) -> None:
        super().__init__(number)
        self.outcome = outcome


class Fetched(Message, bubble=False):
    """Something was read from the cache or kept there: `show` is to be called on the screen."""

    def __init__(self, show: Callable[[], object]) -> None:
        super().__init__()
        self.show = show


class TraceExported(Fact):
    """A trace was written to a file, or stood there already."""

    def __init__(self, number: int, path: Path, *, already: bool) -> None:
        super().__init__(number)
        self.path = path
        self.already = already


class ExportFailed(Fact):
    """The file was not written."""

    def __init__(self, number: int, error: EmotuiError) -> None:
        super().__init__(number)
        self.error = error
