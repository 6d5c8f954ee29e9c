"""Words of an edit: cutting a line into them, numbers, layers, and naming the one that is wrong."""

from __future__ import annotations

import math
import re

import msgspec

from emotui.core.errors import EditError
from emotui.core.text import clean

STAYED = "The edits stayed as they were."
"""What every refused edit ends with."""

# A lone quote is a word too, so that a quotation that is not closed is named.
_WORD = re.compile(r'(?:file:)?"(?:[^"\\]|\\.)*"|[^\s"]+|"', re.DOTALL)
_LAYERS = re.compile(r"L(\d{1,4})(?:-(\d{1,4}))?")
_AMOUNT = re.compile(r"[+-](?:[\d.].*|inf|infinity|nan)", re.IGNORECASE)
_NAME = re.compile(r"[^\W\d_][\w-]*")


class Layers(msgspec.Struct, frozen=True):
    """A window of layers, both ends included."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"L{self.first}" if self.first == self.last else f"L{self.first}-{self.last}"

    @property
    def numbers(self) -> range:
        """The layers, ascending."""
        return range(self.first, self.last + 1)


def misread(word: str, place: str, what: str) -> EditError:
    """Return the error: `word` ("" for none) stands where `place` belongs; `what` was expected."""
    found = f"{clean(word)!r} stands" if word else "nothing stands"
    error = EditError(
        f"The edit was not understood: {found} where {place} belongs.",
        why=f"Expected {what}.",
        todo=STAYED,
    )
    error.word = word
    return error


def split_words(line: str) -> list[str]:
    """Return the words of a line; a quotation is one word, its quotes included."""
    words: list[str] = _WORD.findall(line)
    if '"' in words:
        after = words[words.index('"') + 1 :]
        raise misread('"' + " ".join(after), "a quotation", "a closing quote")
    return words


def quoted(text: str) -> str:
    """Return a text in quotes, as `unquoted` reads it back."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def unquoted(word: str) -> str | None:
    """Return the text of a quotation; None where the word is none."""
    if len(word) < 2 or word[0] != '"' or word[-1] != '"':
        return None
    return re.sub(r"\\(.)", r"\1", word[1:-1], flags=re.DOTALL)


def number(value: float) -> str:
    """Return a number as short as it can be read back exactly."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def signed(value: float) -> str:
    """Return a number with its sign, which an amount of strength always carries."""
    printed = number(value)
    return printed if printed.startswith("-") else f"+{printed}"


def finite(word: str, digits: str, shape: str) -> float:
    """Return the number in `digits`, a part of `word`; EditError unless it is finite."""
    try:
        value = float(digits)
    except ValueError:
        raise misread(word, "the amount", shape) from None
    if not math.isfinite(value):
        raise misread(word, "the amount", "a finite number")
    return value


def is_amount(word: str) -> bool:
    """Return whether a word is meant as a signed number."""
    return _AMOUNT.fullmatch(word) is not None


class Reader:
    """The words of one edit, taken from the left."""

    def __init__(self, words: list[str]) -> None:
        self._words = words
        self._next = 0

    @property
    def word(self) -> str:
        """The next word, "" at the end."""
        return self._words[self._next] if self._next < len(self._words) else ""

    def take(self) -> str:
        """Return the next word and go past it; "" at the end."""
        word = self.word
        self._next += 1
        return word

    def rest(self) -> list[str]:
        """Return the words that are left."""
        return self._words[self._next :]

    def layers(self, *, optional: bool = False) -> Layers | None:
        """Return the window that stands next; None where it is optional and there is none."""
        match = _LAYERS.fullmatch(self.word)
        if match is None:
            if optional and self.word.lower() in ("", "at"):
                return None
            raise misread(self.word, "the layer", "a layer such as L9, or a window such as L9-13")
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if last < first:
            raise misread(self.word, "the layer", "a window whose end is not before its beginning")
        self.take()
        return Layers(first, last)

    def name(self, place: str, what: str) -> str:
        """Return the name that stands next, in lower case."""
        if _NAME.fullmatch(self.word.lower()) is None:
            raise misread(self.word, place, what)
        return self.take().lower()

    def strength(self) -> float:
        """Return the signed fraction that stands next."""
        shape = "a signed fraction such as +0.1"
        if not self.word or self.word[0] not in "+-":
            raise misread(self.word, "the amount", shape)
        word = self.take()
        return finite(word, word, shape)
