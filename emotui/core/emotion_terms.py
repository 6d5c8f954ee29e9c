"""Fine-grained emotion words and what they are made of: weights on Plutchik's eight emotions.

The table was written for emotui: the weights are author-assigned, from the meaning of the words,
in quarters from 0 to 1; they are no ratings and are copied from no lexicon. `feeling` marks words
for states (tired, stuck, numb) that are named as feelings and are not quite emotions. A user's own
table, or a copy of NRC EmoLex (which may not be passed on), is read from a path.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

import msgspec

from emotui.core.emotions import PLUTCHIK
from emotui.core.errors import UsageError
from emotui.core.text import clean

TERM_SOURCE = "author-assigned"
MOST_SCORED = 1000
_FILE = "emotion_terms.tsv"
_HEADER = ("term", "kind", *PLUTCHIK)


class Term(msgspec.Struct, frozen=True):
    """One word."""

    term: str
    """Lower case."""
    kind: Literal["emotion", "feeling"]
    weights: tuple[float, ...]
    """From 0 to 1, in the order of `PLUTCHIK`; all 0 where none of the eight is meant."""

    @property
    def empty(self) -> bool:
        """Whether it is made of none of the eight; its share of a profile is undecomposed."""
        return not any(self.weights)


class TermScore(msgspec.Struct, frozen=True):
    """One word after a prompt."""

    term: str
    probability: float
    """Over the list."""
    corrected: float
    """The same with the scores after a neutral text subtracted."""


class TermProfile(msgspec.Struct, frozen=True, kw_only=True):
    """How likely the words of a list are after a prompt, and what they are made of."""

    terms: tuple[TermScore, ...]
    """The likeliest by each of the two probabilities."""
    weights: dict[str, float]
    """Of each of the eight: sum over words of probability times the word's weight."""
    corrected: dict[str, float]
    undecomposed: float
    """Share of the words that are made of none of the eight."""
    entropy: float
    """Nats, over the list."""


class TextTerms(msgspec.Struct, frozen=True, kw_only=True):
    """The words of a list after one text."""

    template: str
    table: str
    """Name of the file of words."""
    words: int
    neutral: str
    """The text whose scores are subtracted."""
    plain: TermProfile
    """Without edits."""
    edits: tuple[str, ...] = ()
    edited: TermProfile | None = None
    divergence: float | None = None
    """Of the eight, normalised, with the edits from without: Jensen-Shannon, nats."""
    layers: tuple[tuple[float, ...], ...] = ()
    """By layer, the eight as the logit lens has them, in the order of `PLUTCHIK`."""


@cache
def load_terms() -> tuple[Term, ...]:
    """Return the terms that come with emotui, in alphabetical order."""
    text = resources.files("emotui.core").joinpath(_FILE).read_text(encoding="utf-8")
    return _parsed(text, _FILE)


@cache
def bundled_digest() -> str:
    """Return a short hash of the bundled table, which grows: what was scored is of one of them."""
    text = resources.files("emotui.core").joinpath(_FILE).read_bytes()
    return hashlib.sha256(text).hexdigest()[:16]


def read_terms(path: Path) -> tuple[Term, ...]:
    """Return the terms of a user's file: a table like the bundled one, or NRC EmoLex.

    EmoLex is `word TAB emotion TAB 0 or 1` a line; its `positive` and `negative` are left out, and
    words with none of the eight stay, empty. UsageError where the file is neither.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"The table of terms {clean(path.name)} could not be read.",
            why=getattr(error, "strerror", None) or "It is not UTF-8 text.",
        ) from error
    if text.startswith("term\t"):
        return _parsed(text, clean(path.name))
    return _parsed_emolex(text, clean(path.name))


def terms_for(file: str) -> tuple[tuple[Term, ...], tuple[Term, ...], str]:
    """Return the words that are scored, the words whose weights are known, and the table's name.

    `file` is a path, "" for the bundled table. Of a lexicon of more than `MOST_SCORED` words (NRC
    EmoLex) the bundled words that it has are scored, with its weights. UsageError as `read_terms`,
    or where fewer than two words are left.
    """
    if not file:
        return load_terms(), load_terms(), _FILE
    known = read_terms(Path(file))
    scored = known
    if len(known) > MOST_SCORED:
        usual = {term.term for term in load_terms()}
        scored = tuple(term for term in known if term.term in usual)
    if len(scored) < 2:
        raise UsageError(
            f"The table of terms {clean(Path(file).name)} has too few words.",
            why=f"{len(scored)} can be scored.",
            todo="Give at least two.",
        )
    return scored, known, clean(Path(file).name)


def _parsed(text: str, name: str) -> tuple[Term, ...]:
    header, *lines = text.splitlines()
    if tuple(header.split("\t")) != _HEADER:
        raise _unusable(name, 1)
    found: dict[str, Term] = {}
    for number, line in enumerate(lines, start=2):
        try:
            term, kind, *cells = line.split("\t")
            weights = tuple(float(cell) for cell in cells)
        except ValueError:
            raise _unusable(name, number) from None
        known = kind in ("emotion", "feeling") and len(weights) == len(PLUTCHIK)
        if not known or term in found or not all(0 <= weight <= 1 for weight in weights):
            raise _unusable(name, number)
        found[term] = Term(term, "feeling" if kind == "feeling" else "emotion", weights)
    return tuple(found.values())


def _parsed_emolex(text: str, name: str) -> tuple[Term, ...]:
    found: dict[str, dict[str, float]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        cells = line.strip().split("\t")
        if cells == [""]:
            continue
        if len(cells) != 3 or cells[2] not in ("0", "1"):
            raise _unusable(name, number)
        word, emotion, given = cells
        found.setdefault(word.lower(), {})[emotion] = float(given)
    if not found:
        raise _unusable(name, 1)
    return tuple(
        Term(word, "emotion", tuple(given.get(emotion, 0.0) for emotion in PLUTCHIK))
        for word, given in sorted(found.items())
    )


def _unusable(name: str, line: int) -> UsageError:
    return UsageError(
        f"The table of terms {name} cannot be used.",
        why=f"Line {line} is not as expected, or its term stands there twice.",
        todo=f"Give columns {', '.join(_HEADER)} with weights of 0 to 1, or NRC EmoLex.",
    )
