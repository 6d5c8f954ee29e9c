"""One thread for the disk: what is given to it is done in order, off the screen's thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

_END = None


class Shelf:
    """One thread that does what it is given, in order: all that touches the disk."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="shelf", daemon=True)
        self._thread.start()

    def do(self, task: Callable[[], None]) -> None:
        """Do it after what was given before; it must not raise."""
        self._tasks.put(task)

    def close(self, timeout: float) -> None:
        """Do what was given, then end; wait for it at most `timeout` seconds."""
        self._tasks.put(_END)
        self._thread.join(timeout)

    def _run(self) -> None:
        while (task := self._tasks.get()) is not _END:
            task()
