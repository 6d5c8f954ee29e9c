"""Arguments that callers give from Python, checked before they become part of a request."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from emotui.core.errors import UsageError

_IN_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    os.PathLike: "a path",
    type(None): "None",
}


def require(name: str, value: object, *kinds: type) -> None:
    """Raise UsageError where an argument is of none of these kinds, or no finite number.

    A whole number passes as a float; True and False pass only where `bool` is asked for.
    """
    allowed = (*kinds, int) if float in kinds else kinds
    fits = bool in kinds if isinstance(value, bool) else isinstance(value, allowed)
    if not fits:
        raise UsageError(
            f"The argument {name} was of the wrong type.",
            why=f"It was {_article(type(value).__name__)}; "
            f"expected {' or '.join(_IN_WORDS.get(kind, kind.__name__) for kind in kinds)}.",
            todo="Nothing was sent to the engine.",
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"The argument {name} was not a finite number.", why=f"It was {value}.")


def require_lines(name: str, value: object) -> None:
    """Raise UsageError where an argument is no list or tuple of text."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        was = "single string" if isinstance(value, str) else type(value).__name__
        raise UsageError(f"The {name} were a {was}.", todo="Give a list of lines, one edit each.")
    for number, line in enumerate(value):
        require(f"{name}[{number}]", line, str)


def _article(kind: str) -> str:
    return "None" if kind == "NoneType" else f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
