"""What the commands share: the cache folder, errors on one screen, progress on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from emotui.core.errors import EmotuiError
from emotui.core.text import clean

if TYPE_CHECKING:
    from emotui.core.pending import Pending
    from emotui.core.protocol import Outcome, Progress

_SECONDS_BETWEEN_LINES = 0.1


def say(message: str) -> None:
    """Print a line on stderr, where everything goes that is no result."""
    sys.stderr.write(clean(message, keep_newlines=True) + "\n")
    sys.stderr.flush()


def show_error(error: EmotuiError) -> None:
    """Print an error on stderr: what happened, why, what to do."""
    say(f"emotui: {error.what}")
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
    """One line on stderr that says how far the work is, where stderr is a terminal; and notices."""

    def __init__(self) -> None:
        self._shown = 0.0
        self._width = 0

    def __call__(self, progress: Progress) -> None:
        """Show a progress event, at most ten a second; a notice as a line that stays."""
        if progress.notice:
            self.clear()
            say(progress.phase)
            return
        now = time.monotonic()
        if not sys.stderr.isatty() or now - self._shown < _SECONDS_BETWEEN_LINES:
            return
        self._shown = now
        count = f" {progress.done}/{progress.total}" if progress.total else ""
        line = clean(f"{progress.phase}{count}")
        sys.stderr.write("\r" + line.ljust(self._width))
        sys.stderr.flush()
        self._width = len(line)

    def clear(self) -> None:
        """Remove the line."""
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
            self._width = 0


def wait_for(pending: Pending) -> Outcome:
    """Wait for an engine's answer with progress on stderr; ctrl+c cancels the request first."""
    line = ProgressLine()
    pending.on_progress(line)
    try:
        return pending.result()
    except KeyboardInterrupt:
        pending.cancel()
        raise
    finally:
        line.clear()
