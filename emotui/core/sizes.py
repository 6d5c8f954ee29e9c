"""Sizes and times as people read and write them: 302 MiB, 5.2 GiB, 40 s."""

from __future__ import annotations

import re

from emotui.core.errors import UsageError
from emotui.core.text import clean

_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
_FACTORS = {
    "b": 1,
    **{f"{letter}ib": 2**power for letter, power in (("k", 10), ("m", 20), ("g", 30), ("t", 40))},
    **{f"{letter}b": 10**power for letter, power in (("k", 3), ("m", 6), ("g", 9), ("t", 12))},
    **{letter: 2**power for letter, power in (("k", 10), ("m", 20), ("g", 30), ("t", 40))},
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")


def in_bytes(count: float) -> str:
    """Return a number of bytes as 302 MiB or 5.2 GiB: two or three digits that count."""
    for unit, size in _UNITS:
        if count >= size:
            number = count / size
            return f"{number:.1f} {unit}" if number < 10 else f"{number:.0f} {unit}"
    return f"{count:.0f} bytes"


def in_time(seconds: float) -> str:
    """Return a time as 40 s, 12 min or 1.5 h."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def bytes_of(text: str) -> int:
    """Return the bytes that `8GiB`, `500 MB`, `8G` (binary) or `1048576 B` stands for.

    UsageError where it is no size, zero, or a number without a unit: 8 may be meant for 8 GiB.
    """
    match = _SIZE.fullmatch(text.strip().lower())
    if match and not match.group(2):
        raise UsageError(
            f"{clean(text)!r} is no size: it has no unit.",
            todo=f"Give one: {match.group(1)}GiB, {match.group(1)}MiB, or {match.group(1)}B "
            "for bytes.",
        )
    factor = _FACTORS.get(match.group(2)) if match else None
    count = int(float(match.group(1)) * factor) if match and factor else 0
    if count <= 0:
        raise UsageError(f"{clean(text)!r} is no size.", todo="Give one such as 8GiB or 500MiB.")
    return count
