"""What the screen needs of an engine; `core.client` has it, and tests have their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from emotui.core.protocol import Operation, Outcome, Progress


class Asked(Protocol):
    """A request to an engine; `client.Pending` is one."""

    def result(self, timeout: float | None = None) -> Outcome:
        """Return what came of it, waiting `timeout` seconds at most; raise what went wrong."""

    def cancel(self) -> None:
        """Ask for it to end."""

    def add_done_callback(self, callback: Callable[[Asked], None], /) -> None:
        """Call this once it has ended, from any thread."""

    def on_progress(self, callback: Callable[[Progress], None], /) -> None:
        """Call this with each progress, from any thread."""


class Engine(Protocol):
    """An engine; `client.EngineClient` is one."""

    def start(self) -> None:
        """Start it, where it does not run."""

    def submit(self, operation: Operation) -> Asked:
        """Ask it for something; it is started where it does not run."""

    def close(self) -> None:
        """End it."""
