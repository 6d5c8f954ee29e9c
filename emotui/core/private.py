"""Keeping the user's texts out of logs and of unexpected errors.

An exception from a library may quote its input. What is written to a log, or shown as the cause
of an internal error, passes through here first.
"""

from __future__ import annotations

import re
import traceback

from emotui.core.protocol import (
    ActivationsRequest,
    ConsistencyRequest,
    DefineRequest,
    FeatureRequest,
    FitRequest,
    GenerateRequest,
    InspectRequest,
    LabelsFitRequest,
    Operation,
    PrefetchRequest,
    StudyRequest,
    TermsRequest,
    VerifyRequest,
    WhereRequest,
    WithoutRequest,
)
from emotui.core.text import clean

Private = frozenset[str] | None
"""Lower-case words of private texts; None where texts are read that are not known here."""

NOTHING_PRIVATE: Private = frozenset()

_WORD = re.compile(r"\w+")
_ESCAPE = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[nrt])")
_HIDDEN = "\N{HORIZONTAL ELLIPSIS}"
_LONGEST_MESSAGE = 300
_SHORTEST_PIECE = 2


def private_words(operation: Operation) -> Private:
    """Return the words of an operation's texts; None for one that reads texts from a file."""
    match operation:
        case FitRequest(data=str()) | LabelsFitRequest(data=str()) | StudyRequest():
            return None
        case DefineRequest(texts=many, other=other, word=word):
            texts = (*many, *other, word or "")
        case InspectRequest(text=text, edits=edits):
            texts = (text, *edits)
        case PrefetchRequest(like=like, texts=many):
            texts = (*many, like.text, *like.edits)
        case (
            VerifyRequest(inspect=read)
            | WithoutRequest(inspect=read)
            | ConsistencyRequest(inspect=read)
            | TermsRequest(inspect=read)
            | ActivationsRequest(inspect=read)
            | FeatureRequest(inspect=read)
        ):
            texts = (read.text, *read.edits)
        case GenerateRequest(text=text):
            texts = (text,)
        case WhereRequest(text=text, neutral=neutral):
            texts = (text, neutral or "")
        case _:
            texts = ()
    return frozenset(word.casefold() for text in texts for word in _WORD.findall(text))


def without_private(message: str, private: Private) -> str:
    """Return `message` on one clean line, private words as ellipses, at most 300 characters.

    A word goes where it equals, holds or is a piece of a private word, in any case: tokenizers
    cut and mark words. So a message may lose more than it must. "" where all is private.
    """
    if private is None:
        return ""
    line = " ".join(message.split())
    if private:
        line = _ESCAPE.sub(" ", line)
        line = _WORD.sub(lambda found: _or_hidden(found.group(), private), line)
    return clean(line[:_LONGEST_MESSAGE])


def _or_hidden(word: str, private: frozenset[str]) -> str:
    folded = word.casefold()
    hidden = folded in private or any(
        (len(folded) >= _SHORTEST_PIECE and folded in secret)
        or (len(secret) >= _SHORTEST_PIECE and secret in folded)
        for secret in private
    )
    return _HIDDEN if hidden else word


def describe(problem: BaseException, private: Private) -> str:
    """Return the type of an exception and its message without private words."""
    message = without_private(str(problem), private)
    name = type(problem).__name__
    return f"{name}: {message}" if message else name


def traceback_without_private(problem: BaseException, private: Private) -> str:
    """Return the traceback of an exception and of what caused it, messages as in `describe`.

    Lines of source code stay: code is not private.
    """
    parts: list[str] = []
    seen: set[int] = set()
    link: BaseException | None = problem
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        frames = "".join(traceback.format_tb(link.__traceback__))
        parts.append(f"{frames}{describe(link, private)}")
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return "\nthen:\n".join(reversed(parts))
