"""What the commands share: the cache folder, errors on one screen, progress on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from emotui.core.errors import EmotuiError
from emotui.core.protocol import PER_CENT
from emotui.core.sizes import in_time
from emotui.core.text import clean

if TYPE_CHECKING:
    from emotui.core.pending import Pending
    from emotui.core.protocol import Outcome, Progress

_SECONDS_BETWEEN_LINES = 0.1
_QUIET_SECONDS = 2.0
"""Without a terminal, work that takes no longer says nothing of its progress."""
_SECONDS_BETWEEN_PLAIN_LINES = 10.0


def say(message: str) -> None:
    """Print a line on stderr, where everything goes that is no result."""
    sys.stderr.write(clean(message, keep_newlines=True) + "\n")
    sys.stderr.flush()


def show_error(error: EmotuiError, *, of: str = "") -> None:
    """Print an error on stderr: what happened, why, what to do; `of` says to which of several."""
    say(f"emotui: {of}: {error.what}" if of else f"emotui: {error.what}")
    for line in (error.why, error.todo):
        if line:
            say(f"  {line}")


@contextmanager
def cache_for(cache_dir: Path | None, *, private: bool, demo: bool = False) -> Iterator[Path]:
    """Yield the folder of the cache, a temporary one that is removed after a private session.

    With `demo`, the bundled example and probes are put there first.
    """
    from emotui.cache.demo import install_demo
    from emotui.cache.prepare import private_cache
    from emotui.cache.store import default_root

    root = (cache_dir or default_root()).expanduser().absolute()
    if not private:
        if demo:
            install_demo(root)
        yield root
        return
    with private_cache(root) as folder:
        if demo:
            install_demo(folder)
        yield folder


class ProgressLine:
    """How far the work is, on stderr: a line that changes, or without a terminal a few that stay.

    Notices are lines that stay.
    """

    def __init__(self) -> None:
        self.within = ""
        """What the work is a part of, such as `text 3/900`."""
        self._shown = 0.0
        self._width = 0
        self._next_plain: float | None = None

    def __call__(self, progress: Progress) -> None:
        """Show a progress event: at most ten a second, without a terminal one in ten seconds."""
        if progress.notice:
            self.clear()
            say(progress.phase)
            return
        now = time.monotonic()
        count = f" {progress.done}/{progress.total}" if progress.total else ""
        if progress.total == PER_CENT:
            count = f" {progress.done} %"
        elif progress.seconds_left is not None:
            count += f", {in_time(progress.seconds_left)} left"
        line = clean(f"{self.within}{': ' if self.within else ''}{progress.phase}{count}")
        if not sys.stderr.isatty():
            self._say_sparsely(line, now)
        elif now - self._shown >= _SECONDS_BETWEEN_LINES:
            self._shown = now
            sys.stderr.write("\r" + line.ljust(self._width))
            sys.stderr.flush()
            self._width = len(line)

    def _say_sparsely(self, line: str, now: float) -> None:
        if self._next_plain is None:
            self._next_plain = now + _QUIET_SECONDS
        elif now >= self._next_plain:
            self._next_plain = now + _SECONDS_BETWEEN_PLAIN_LINES
            say(line)

    def clear(self) -> None:
        """Remove the line."""
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
            self._width = 0


progress_line = ProgressLine()
"""That of this command: many short requests, one after the other, are one long work."""


def wait_for(pending: Pending) -> Outcome:
    """Wait for an engine's answer with progress on stderr; ctrl+c cancels the request first."""
    pending.on_progress(progress_line)
    try:
        return pending.result()
    except KeyboardInterrupt:
        pending.cancel()
        raise
    finally:
        progress_line.clear()
