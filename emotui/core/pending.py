"""A request to the engine that was submitted, as its submitter holds it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from emotui.core.child import Child
from emotui.core.errors import EmotuiError, EngineError
from emotui.core.protocol import Outcome, Progress, Request

_log = logging.getLogger("emotui.client")
_log.addHandler(logging.NullHandler())  # or an error in a callback would print over the screen


class Pending:
    """A request that was submitted: its result, or its error, sooner or later.

    Callbacks run on a thread of the client (or at once, where it is already done): they must be
    quick and must not touch widgets. An exception in one is logged and otherwise ignored.
    """

    def __init__(self, request: Request, cancel: Callable[[int], None]) -> None:
        self.id = request.id
        self.operation = request.op
        self._cancel = cancel
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._outcome: Outcome | None = None
        self._error: EmotuiError | None = None
        self._progress: Progress | None = None
        self._notices: list[Progress] = []
        self._on_done: list[Callable[[Pending], None]] = []
        self._on_progress: list[Callable[[Progress], None]] = []
        self.child: Child | None = None
        """The engine it was sent to, None while it waits here; guarded by the client's lock."""
        self.turn = 0
        """Its place among the requests sent to that engine; guarded by the client's lock."""
        self.cancelling = False
        """Whether the engine was asked to stop it; guarded by the client's lock."""

    @property
    def done(self) -> bool:
        """Whether there is a result or an error."""
        return self._done.is_set()

    @property
    def error(self) -> EmotuiError | None:
        """Why it failed; None while it runs and where it succeeded."""
        return self._error

    def result(self, timeout: float | None = None) -> Outcome:
        """Wait for the outcome; None waits without limit.

        Raises TimeoutError after `timeout` seconds, Cancelled, or the error that ended it.
        """
        if not self._done.wait(timeout):
            raise TimeoutError(f"no answer within {timeout} s")
        if self._outcome is None:
            raise self._error or EngineError("The engine gave no result.")
        return self._outcome

    def cancel(self) -> None:
        """Ask that it stops; see `EngineClient.cancel`."""
        self._cancel(self.id)

    def add_done_callback(self, callback: Callable[[Pending], None]) -> None:
        """Call `callback(self)` once it is done."""
        with self._lock:
            if not self.done:
                self._on_done.append(callback)
                return
        call_back(callback, self)

    def on_progress(self, callback: Callable[[Progress], None]) -> None:
        """Call `callback` with every progress event from the latest on, and every notice."""
        with self._lock:
            self._on_progress.append(callback)
            earlier = [*self._notices, *([] if self._progress is None else [self._progress])]
        for progress in earlier:
            call_back(callback, progress)

    def tell(self, progress: Progress) -> None:
        """Hand on a progress event. For the client."""
        with self._lock:
            if progress.notice:
                self._notices.append(progress)
            else:
                self._progress = progress
            callbacks = tuple(self._on_progress)
        for callback in callbacks:
            call_back(callback, progress)

    def finish(self, outcome: Outcome | None, error: EmotuiError | None) -> bool:
        """Settle it, once; return whether this call did. For the client."""
        with self._lock:
            if self.done:
                return False
            self._outcome, self._error = outcome, error
            self._done.set()
            callbacks = tuple(self._on_done)
        for callback in callbacks:
            call_back(callback, self)
        return True


def call_back(callback: Callable[..., None], *arguments: object) -> None:
    """Call; an exception is logged and otherwise ignored."""
    try:
        callback(*arguments)
    except Exception:
        _log.exception("a callback failed")
