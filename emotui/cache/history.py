"""The console's history: lines that were run, kept with the cache.

Lines may quote texts: the file is private (0600), and `emotui cache clear` removes it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from emotui.cache import files

MAX_LINES = 500
_MAX_LINE = 10_000
_NAME = "console-history.json"


def history_file(root: Path) -> Path:
    """Return the path of the history of a cache."""
    return root / _NAME


def with_line(lines: tuple[str, ...], line: str) -> tuple[str, ...]:
    """Return the history with a line at its end and nowhere else, at most `MAX_LINES` long."""
    line = line.strip()
    if not line or len(line) > _MAX_LINE:
        return lines
    return (*(old for old in lines if old != line), line)[-MAX_LINES:]


def load_history(root: Path) -> tuple[str, ...]:
    """Return the lines, the oldest first; none where there is no file or it is damaged."""
    try:
        lines = msgspec.json.decode(history_file(root).read_bytes(), type=tuple[str, ...])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return ()
    return lines[-MAX_LINES:]


def add_to_history(root: Path, line: str) -> None:
    """Keep a line. Raises CacheError where it cannot be written."""
    # Read again: another emotui on the same cache may have added to it.
    lines = with_line(load_history(root), line)
    try:
        files.write_whole(history_file(root), msgspec.json.encode(lines))
    except OSError as error:
        files.write_failed(root, error)
