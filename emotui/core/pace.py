"""How long work will still take, from how far it has come."""

from __future__ import annotations

import time
from collections.abc import Callable

LEAST_SECONDS = 2.0
"""How long a phase is watched before its end is foretold."""


class Pace:
    """The pace of one piece of work, phase by phase."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or time.monotonic
        self._phase: tuple[str, int] | None = None
        self._first = 0
        self._began = 0.0
        self._done = 0

    def seconds_left(self, phase: str, done: int, total: int) -> float | None:
        """Return the seconds that `phase` will still take, at its mean pace so far.

        None where the total is not known (0), in the phase's first two seconds, and before
        anything of it is done. A phase begins where it, or its total, is new, or counts anew.
        """
        now = self._clock()
        if self._phase != (phase, total) or done < self._done:
            self._phase, self._first, self._began = (phase, total), done, now
        self._done = done
        came, took = done - self._first, now - self._began
        if total <= 0 or came <= 0 or took < LEAST_SECONDS:
            return None
        return max(0.0, took / came * (total - done))
