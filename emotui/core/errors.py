"""The one tree of errors: each says what happened, why, and what to do.

EmotuiError            exit code 1: what was asked failed, or was done in part
├── UsageError         exit code 2: an option, an edit or a text that cannot be meant
│   ├── TextError      empty, too long for the context, not decodable
│   └── EditError      an edit that names something unknown
├── ModelError         a model or tokenizer that cannot be found, read or trusted
├── SaeError           an SAE that cannot be read or does not fit the model
├── ProbeError         a probe file that is missing, damaged or of another model
├── CacheError         the cache cannot be written or read
├── ExportError        a file that cannot be written, or a document that is not a trace
├── EngineError        the engine did not start, broke the protocol, or ended
└── Cancelled          exit code 130

Of the others, too, one has exit code 2 where what was asked names what is not there, or is of the
wrong kind: `raise CacheError(...).of_input()`.
"""

from __future__ import annotations

from typing import Self


class EmotuiError(Exception):
    """Base of all errors a user is shown.

    `what` is a past-tense fact, `why` its cause ("" where `what` says it all), `todo` the next
    step for the user. All three are plain text, never markup.
    """

    exit_code: int = 1

    def __init__(self, what: str, *, why: str = "", todo: str = "") -> None:
        super().__init__(what, why, todo)
        self.what = what
        self.why = why
        self.todo = todo

    def __str__(self) -> str:
        return "\n".join(part for part in (self.what, self.why, self.todo) if part)

    def of_input(self, yes: bool = True, /) -> Self:
        """Say that the user's words are at fault, not the work: exit code 2. Returns the error."""
        if yes:
            self.exit_code = UsageError.exit_code
        return self

    @property
    def is_of_input(self) -> bool:
        """Whether the user's words are at fault."""
        return self.exit_code == UsageError.exit_code

    def to_wire(self) -> dict[str, str]:
        """Return the error as a flat mapping for the engine protocol."""
        fields = {
            "kind": type(self).__name__,
            "what": self.what,
            "why": self.why,
            "todo": self.todo,
        }
        return fields | ({_OF_INPUT: "yes"} if self.is_of_input else {})


class UsageError(EmotuiError):
    """A request that cannot be meant: wrong option, word or value."""

    exit_code = 2


class TextError(UsageError):
    """A text that cannot be read by this model."""


class EditError(UsageError):
    """An edit that names an unknown word, layer, feature or trace."""

    word: str | None = None
    """The word that is wrong, as it was typed; "" for one that is missing, None where unknown."""


class ModelError(EmotuiError):
    """A model or tokenizer that cannot be found, read or trusted."""


class SaeError(EmotuiError):
    """An SAE that cannot be read or does not fit the model."""


class ProbeError(EmotuiError):
    """A probe file that is missing, damaged or fitted on another model."""


class CacheError(EmotuiError):
    """The cache could not be read or written."""


class ExportError(EmotuiError):
    """A file could not be written, or a document is not a valid trace."""


class EngineError(EmotuiError):
    """The engine did not start, broke the protocol, or ended."""


class OutOfMemory(EngineError):
    """Something did not fit into memory; the engine goes on with what it had before."""


class Cancelled(EmotuiError):
    """The user cancelled the work; nothing half-done was kept."""

    exit_code = 130


_OF_INPUT = "of_input"
_KINDS: dict[str, type[EmotuiError]] = {
    kind.__name__: kind
    for kind in (
        *(EmotuiError, UsageError, TextError, EditError, ModelError, SaeError, ProbeError),
        *(CacheError, ExportError, EngineError, OutOfMemory, Cancelled),
    )
}


def error_from_wire(fields: dict[str, str]) -> EmotuiError:
    """Rebuild an error from `EmotuiError.to_wire`; an unknown kind becomes an EngineError."""
    kind = _KINDS.get(fields.get("kind", ""), EngineError)
    error = kind(fields.get("what", ""), why=fields.get("why", ""), todo=fields.get("todo", ""))
    return error.of_input(_OF_INPUT in fields)
