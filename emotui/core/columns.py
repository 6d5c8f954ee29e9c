"""The columns of a user's file, in words: never a text that stands in their place."""

from __future__ import annotations

from collections.abc import Sequence

from emotui.core.text import clean

_LONGEST_NAME = 40
_MOST_WORDS = 4


def columns_in_words(names: Sequence[str]) -> str:
    """Return `Its columns are: a, b.`; of a file whose first line is no header, that it is none."""
    if any(len(name) > _LONGEST_NAME or len(name.split()) > _MOST_WORDS for name in names):
        return f"Its first line is no header: one of its {len(names)} columns is a text there."
    return f"Its columns are: {clean(', '.join(names)) or 'none'}."
