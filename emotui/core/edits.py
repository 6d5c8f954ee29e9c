"""The edit language: one line, one edit; parsed and printed here, torch-free.

    ablate L18/4412 at 7            scale mlp:L3/9 x2.5 at all
    clamp  L18/4412 = 30 at last    steer L18/4412 +0.1 at 3-7

The printed form always carries its position; printing and parsing are inverses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal, NoReturn

import msgspec

from emotui.core.errors import EditError
from emotui.core.records import Site, TextRecord
from emotui.core.text import clean

FeatureOperation = Literal["ablate", "scale", "clamp", "steer"]
PositionKind = Literal["all", "readout", "last", "range", "word"]

OPERATIONS: tuple[FeatureOperation, ...] = ("ablate", "scale", "clamp", "steer")
_POSITIONS_HELP = 'all, readout, last, a position such as 3, a range such as 3-7, or "a word"'

_FEATURE = re.compile(r"(?:(resid|attn|mlp):)?L(\d{1,4})/(\d{1,9})")
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s"]+')


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
        if self.kind == "word":
            return '"' + self.word.replace("\\", "\\\\").replace('"', '\\"') + '"'
        return self.kind


ALL = Positions("all")


class Edit(msgspec.Struct, frozen=True):
    """One change of one SAE feature.

    `value` is None for ablate, the factor for scale, the activation for clamp, and for steer the
    fraction of the corpus mean of the norm of the activation at that site and layer, along the
    feature's unit decoder row.
    """

    operation: FeatureOperation
    site: Site
    layer: int
    index: int
    value: float | None
    positions: Positions

    @property
    def feature(self) -> str:
        """The feature as it is written: `L18/4412`, the site before it unless it is resid."""
        prefix = "" if self.site == "resid" else f"{self.site}:"
        return f"{prefix}L{self.layer}/{self.index}"

    def __str__(self) -> str:
        amount = ""
        if self.value is not None:
            number = _number(self.value)
            amount = {
                "scale": f" x{number}",
                "clamp": f" = {number}",
                "steer": f" {number}" if number.startswith("-") else f" +{number}",
            }[self.operation]
        return f"{self.operation} {self.feature}{amount} at {self.positions}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def at_position(position: int) -> Positions:
    """Return the position of one token."""
    return Positions("range", position, position)


def parse_edit(line: str, *, default: Positions | None = ALL, here: int | None = None) -> Edit:
    """Return the edit that a line says.

    `default` is where an edit without `at` acts (None: it must say); `here` is the cursor's token
    (None: there is no cursor). Raises EditError that names the wrong word and what was expected.
    """
    words = _TOKEN.findall(line)
    if not words:
        _expected("", "an edit", f"one of {', '.join(OPERATIONS)}")
    operation = next((name for name in OPERATIONS if name == words[0].lower()), None)
    if operation is None:
        _expected(words[0], "an edit", f"one of {', '.join(OPERATIONS)}")
    if len(words) < 2:
        _expected("", "the feature", "a feature such as L18/4412 or mlp:L3/9")
    match = _FEATURE.fullmatch(words[1])
    if match is None:
        _expected(words[1], "the feature", "a feature such as L18/4412 or mlp:L3/9")
    site, layer, index = match.groups()
    value, rest = _amount(operation, words[2:])
    return Edit(
        operation,
        _site(site),
        int(layer),
        int(index),
        value,
        _positions(rest, default=default, here=here),
    )


def _site(word: str | None) -> Site:
    if word == "attn":
        return "attn"
    return "mlp" if word == "mlp" else "resid"


def _amount(operation: FeatureOperation, words: list[str]) -> tuple[float | None, list[str]]:
    """Return the number of an edit, and the words after it."""
    if operation == "ablate":
        return None, words
    if operation == "clamp" and words[:1] == ["="]:
        words = words[1:]
        shape = "a number such as 30"
    else:
        shape = {
            "scale": "a factor such as x2.5",
            "clamp": "= and a number, as in `= 30`",
            "steer": "a signed fraction such as +0.1",
        }[operation]
        marks = {"scale": "x", "clamp": "=", "steer": "+-"}[operation]
        if not words or words[0][0] not in marks:
            _expected(words[0] if words else "", "the amount", shape)
    if not words:
        _expected("", "the amount", shape)
    digits = words[0].lstrip("x=") if operation != "steer" else words[0]
    try:
        value = float(digits)
    except ValueError:
        _expected(words[0], "the amount", shape)
    if not math.isfinite(value):
        _expected(words[0], "the amount", "a finite number")
    return value, words[1:]


def _positions(words: list[str], *, default: Positions | None, here: int | None) -> Positions:
    if not words:
        if default is None:
            _expected("", "the position", f"at and {_POSITIONS_HELP}")
        return default
    if words[0].lower() != "at":
        _expected(words[0], "`at`", f"at and {_POSITIONS_HELP}")
    if len(words) < 2:
        _expected("", "the position", _POSITIONS_HELP)
    if len(words) > 2:
        _expected(words[2], "the end of the edit", "nothing after the position")
    return parse_positions(words[1], here=here)


def parse_positions(word: str, *, here: int | None = None) -> Positions:
    """Return the positions a word says; EditError names what was expected."""
    if word == "here":
        if here is None:
            _expected(word, "the position", f"{_POSITIONS_HELP} (there is no cursor here)")
        return at_position(here)
    if word == "all":
        return ALL
    if word == "readout":
        return Positions("readout")
    if word == "last":
        return Positions("last")
    if len(word) >= 2 and word[0] == word[-1] == '"':
        inner = re.sub(r"\\(.)", r"\1", word[1:-1], flags=re.DOTALL)
        if inner:
            return Positions("word", word=inner)
    match = _RANGE.fullmatch(word)
    if match is None:
        _expected(word, "the position", _POSITIONS_HELP)
    first = int(match[1])
    last = first if match[2] is None else int(match[2])
    if last < first:
        _expected(word, "the position", "a range whose end is not before its beginning")
    return Positions("range", first, last)


def _expected(word: str, place: str, expected: str) -> NoReturn:
    found = f"{clean(word)!r} stands" if word else "nothing stands"
    raise EditError(
        f"The edit was not understood: {found} where {place} belongs.",
        why=f"Expected {expected}.",
        todo="The edits stayed as they were.",
    )


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
            raise EditError(
                f"Position {positions} is past the end of the prompt.",
                why=f"It has {len(text.tokens)} tokens; the last is {len(text.tokens) - 1}.",
                todo="The edits stayed as they were.",
            )
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
        raise EditError(
            f"{clean(word)!r} does not occur in the text.",
            todo="The edits stayed as they were.",
        )
    return found


def print_edits(edits: Sequence[Edit]) -> tuple[str, ...]:
    """Return the printed form of each edit, as traces and requests carry them."""
    return tuple(str(edit) for edit in edits)
