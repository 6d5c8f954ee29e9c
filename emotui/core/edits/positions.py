"""Where in a text an edit acts: in words, and as token indices."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from emotui.core.edits.words import STAYED, misread, quoted, unquoted
from emotui.core.errors import EditError
from emotui.core.records import TextRecord
from emotui.core.text import clean

PositionKind = Literal["all", "readout", "last", "range", "word"]

POSITIONS_HELP = 'all, readout, last, a position such as 3, a range such as 3-7, or "a word"'

_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


class Positions(msgspec.Struct, frozen=True):
    """Where an edit acts, in words; `positions_in` gives the token indices of a text."""

    kind: PositionKind
    first: int = 0
    last: int = 0
    """Inclusive; used by `range` only, like `first`."""
    word: str = ""

    def __str__(self) -> str:
        if self.kind == "range":
            return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return quoted(self.word) if self.kind == "word" else self.kind


ALL = Positions("all")
READOUT = Positions("readout")
LAST = Positions("last")


def at_position(position: int) -> Positions:
    """Return the position of one token."""
    return Positions("range", position, position)


def position_of_token(position: int, text: TextRecord) -> Positions:
    """Return the position of one token of a text: by name where it is the readout.

    An edit named so means the same on other texts, and has one trace.
    """
    return READOUT if position == text.readout else at_position(position)


def parse_positions(word: str, *, here: int | None = None) -> Positions:
    """Return the positions a word says; EditError names what was expected."""
    if word == "here":
        if here is None:
            raise misread(word, "the position", f"{POSITIONS_HELP} (there is no cursor here)")
        return at_position(here)
    for plain in (ALL, READOUT, LAST):
        if word == plain.kind:
            return plain
    inner = unquoted(word)
    if inner:
        return Positions("word", word=inner)
    match = _RANGE.fullmatch(word)
    if match is None:
        raise misread(word, "the position", POSITIONS_HELP)
    first = int(match[1])
    last = first if match[2] is None else int(match[2])
    if last < first:
        raise misread(word, "the position", "a range whose end is not before its beginning")
    return Positions("range", first, last)


def positions_at_end(words: list[str], *, default: Positions | None, here: int | None) -> Positions:
    """Return the positions that the last words of an edit say, `at` before them.

    `default` is meant where there are none (None: they must be there).
    """
    if not words:
        if default is None:
            raise misread("", "the position", f"at and {POSITIONS_HELP}")
        return default
    if words[0].lower() != "at":
        raise misread(words[0], "`at`", f"at and {POSITIONS_HELP}")
    if len(words) < 2:
        raise misread("", "the position", POSITIONS_HELP)
    if len(words) > 2:
        raise misread(words[2], "the end of the edit", "nothing after the position")
    return parse_positions(words[1], here=here)


def positions_in(positions: Positions, text: TextRecord) -> tuple[int, ...]:
    """Return the token indices of `positions` in a text, ascending.

    `all` is every token of the user's text, never template or special tokens. Raises EditError
    for a position past the end and for a word that is not in the text.
    """
    if positions.kind == "readout":
        return (text.readout,)
    if positions.kind == "last":
        return (text.last,)
    if positions.kind == "all":
        return tuple(i for i, token in enumerate(text.tokens) if token.part == "text")
    if positions.kind == "range":
        if positions.last >= len(text.tokens):
            error = EditError(
                f"Position {positions} is past the end of the prompt.",
                why=f"It has {len(text.tokens)} tokens; the last is {len(text.tokens) - 1}.",
                todo=STAYED,
            )
            error.word = str(positions)
            raise error
        return tuple(range(positions.first, positions.last + 1))
    return _positions_of_word(positions.word, text)


def _positions_of_word(word: str, text: TextRecord) -> tuple[int, ...]:
    """Return the tokens that overlap an occurrence of `word` in the user's text."""
    spans = [match.span() for match in re.finditer(re.escape(word), text.raw)]
    found = tuple(
        i
        for i, token in enumerate(text.tokens)
        if token.start is not None
        and token.end is not None
        and any(token.start < end and start < token.end for start, end in spans)
    )
    if not found:
        error = EditError(f"{clean(word)!r} does not occur in the text.", todo=STAYED)
        error.word = quoted(word)
        raise error
    return found
