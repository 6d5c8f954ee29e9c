"""A program on a pseudo-terminal: what it paints, as bytes and as a screen, and when."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import pyte

QUIET = ("NO_COLOR", "SSH_CONNECTION", "COLORTERM", "TEXTUAL_THEME", "TMUX", "COLUMNS", "LINES")


class PseudoTerminal:
    """One program with a terminal of its own; ended at the end."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        columns: int = 100,
        lines: int = 30,
        environment: Mapping[str, str] | None = None,
        folder: str | None = None,
    ) -> None:
        self.output = bytearray()
        self._undrawn = bytearray()
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        settings = {name: value for name, value in os.environ.items() if name not in QUIET}
        settings |= {"TERM": "xterm-256color", "LANG": "C.UTF-8", **(environment or {})}
        self.started = time.monotonic()
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            with contextlib.suppress(BaseException):
                if folder is not None:
                    os.chdir(folder)
                fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
                os.execvpe(command[0], list(command), settings)
            os._exit(127)
        with contextlib.suppress(OSError):
            size = struct.pack("HHHH", lines, columns, 0, 0)
            fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, size)
        self.code: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    @property
    def text(self) -> str:
        """The screen as it stands."""
        return "\n".join(self.screen.display)

    @property
    def modes(self) -> list[Any]:
        """The terminal's line settings."""
        return termios.tcgetattr(self._terminal)

    def send(self, keys: str | bytes) -> None:
        """Type, all at once."""
        os.write(self._terminal, keys.encode() if isinstance(keys, str) else keys)

    def read(self, seconds: float, *, draw: bool = True) -> bool:
        """Take in what comes within a time; return whether anything came.

        Without `draw`, it is drawn on `screen` with what comes next: drawing takes time.
        """
        ready, _, _ = select.select([self._terminal], [], [], seconds)
        if not ready:
            return False
        try:
            data = os.read(self._terminal, 65536)
        except OSError:
            data = b""
        if not data:
            return False
        self.output += data
        self._undrawn += data
        if draw:
            with contextlib.suppress(Exception):  # pyte gives up on sequences it does not know
                self._stream.feed(bytes(self._undrawn))
            self._undrawn.clear()
        return True

    def wait_for(self, condition: Callable[[str], object], seconds: float = 20.0) -> float:
        """Read until the screen meets a condition; return the time since the start.

        Raises AssertionError, with the screen, after `seconds`.
        """
        limit = time.monotonic() + seconds
        while not condition(self.text):
            left = limit - time.monotonic()
            if left <= 0 or (not self.read(min(left, 0.25)) and self.ended):
                raise AssertionError(f"it did not come about on\n{self.text}")
        return time.monotonic() - self.started

    def settle(self, quiet: float = 0.15, seconds: float = 5.0) -> None:
        """Read until nothing comes for a while."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit and self.read(quiet):
            pass

    @property
    def ended(self) -> bool:
        """Whether the program has ended; then `code` is its exit status."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def wait(self, seconds: float = 10.0) -> int:
        """Read to its end and return its exit status."""
        limit = time.monotonic() + seconds
        while not self.ended:
            self.read(0.05)
            if time.monotonic() > limit:
                raise AssertionError(f"it did not end; the screen:\n{self.text}")
        while self.read(0.02):
            pass
        assert self.code is not None
        return self.code

    def end(self) -> None:
        """Kill it if it runs, and let go of the terminal."""
        if not self.ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
            self.code = -signal.SIGKILL
        with contextlib.suppress(OSError):
            os.close(self._terminal)


def explorer(*arguments: str, model: str, cache: str, **settings: Any) -> PseudoTerminal:
    """Start emotui on a terminal."""
    command = [sys.executable, "-m", "emotui", "--model", model, "--cache-dir", cache, *arguments]
    return PseudoTerminal(command, **settings)


def painted(text: str) -> bool:
    """Return whether all panes have their titles."""
    return all(title in text for title in ("1 Text", "2 Layers", "3 Features"))


FIRST_QUIET, ALL_QUIET = 0.05, 0.4
"""Seconds without a byte after which the first answer, and all of it, has come."""


def answer_to(screen: PseudoTerminal, keys: str) -> tuple[int, int]:
    """Return the bytes of the first answer to keys, and of what follows it."""
    screen.settle(ALL_QUIET)
    before = len(screen.output)
    screen.send(keys)
    while len(screen.output) == before and screen.read(2.0, draw=False):
        pass
    while screen.read(FIRST_QUIET, draw=False):
        pass
    first = len(screen.output) - before
    while screen.read(ALL_QUIET):
        pass
    return first, len(screen.output) - before - first
