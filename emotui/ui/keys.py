"""Telling a pasted text from keys, for terminals that do not say which is which.

A terminal without bracketed paste sends a pasted text as keys. Keys that come faster than anyone
types are a text: they must never act as commands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

BURST_SECONDS = 0.030
"""Keys closer together than this belong to one paste."""
HOLD_SECONDS = 0.008
"""How long a key that only moves or shows waits for the next one: a paste comes in one read."""
_MOVES = frozenset("hjkl")
_FEW = 3
"""As many keys that only move or show are keys however fast they come: a slow connection delivers
at once what was typed apart."""


@dataclass(frozen=True)
class Stroke:
    """A key that arrived: Textual's name of it, and the character it types, if any."""

    key: str
    character: str | None
    at: float
    """Seconds on a clock that never goes back."""

    @property
    def text(self) -> str | None:
        """What it adds to a pasted text; None for a key that no text contains."""
        if self.key in ("enter", "ctrl+j"):
            return "\n"
        if self.key == "tab":
            return "\t"
        return self.character if self.character and self.character.isprintable() else None


Kind = Literal["keys", "paste"]


@dataclass(frozen=True)
class Release:
    """What is let through: strokes to act on, or a pasted text."""

    kind: Kind
    strokes: tuple[Stroke, ...] = ()
    text: str = ""


@dataclass
class KeyGate:
    """Holds printable keys for a moment and lets them through as keys or as one paste.

    `careful(key)` says whether a key does more than move or show: it waits the whole
    `BURST_SECONDS`. Keys that were let through and then turn out to have begun a paste are part
    of its text. Keys that only move or show stay keys where they are movement, one that repeats, or
    few: none of them does harm, and a slow connection delivers keys at once.
    """

    careful: Callable[[str], bool]
    _held: list[Stroke] = field(default_factory=list)
    _gone: list[Stroke] = field(default_factory=list)
    """Strokes of the present run that were already let through."""
    _bursting: bool = False
    _last: float = float("-inf")

    @property
    def holding(self) -> bool:
        """Whether strokes wait; then `due` says until when."""
        return bool(self._held)

    @property
    def due(self) -> float:
        """The time at which `release` is to be called."""
        if self._bursting or self._gone or self.careful(self._held[0].key):
            return self._last + BURST_SECONDS
        return self._last + HOLD_SECONDS

    def take(self, stroke: Stroke) -> list[Release]:
        """Take a stroke; return what is let through at once."""
        if stroke.text is None or (stroke.key in ("enter", "tab") and not self._held):
            released = self.release()
            self._gone.clear()
            return [*released, Release("keys", (stroke,))]
        released = []
        if stroke.at - self._last >= BURST_SECONDS:
            released = self.release()
            self._gone.clear()
        self._held.append(stroke)
        self._last = stroke.at
        # Two in one read, or three in a row: nobody types so.
        self._bursting = len(self._held) >= 2
        return released

    def release(self) -> list[Release]:
        """Let through what waits."""
        held, bursting = tuple(self._held), self._bursting
        self._held.clear()
        self._bursting = False
        if not held:
            return []
        run = (*self._gone, *held)
        if bursting and not self._typed(run):
            self._gone.clear()
            return [Release("paste", text="".join(stroke.text or "" for stroke in run))]
        self._gone.extend(held)
        return [Release("keys", held)]

    def _typed(self, run: tuple[Stroke, ...]) -> bool:
        keys = {stroke.key for stroke in run}
        if keys <= _MOVES:
            return True
        return (len(keys) == 1 or len(run) <= _FEW) and not any(map(self.careful, keys))


@dataclass
class EditorGate:
    """Lets keys through to the editor, where enter runs the text: in a paste it is a line end.

    Enter waits `BURST_SECONDS` unless a key came just before it.
    """

    _enter: Stroke | None = None
    _last: float = float("-inf")

    @property
    def holding(self) -> bool:
        """Whether an enter waits; then `due` says until when."""
        return self._enter is not None

    @property
    def due(self) -> float:
        """The time at which `release` is to be called."""
        return self._last + BURST_SECONDS

    def take(self, stroke: Stroke) -> list[Release]:
        """Take a stroke; return what is let through at once."""
        close, self._last = stroke.at - self._last < BURST_SECONDS, stroke.at
        waiting, self._enter = self._enter, None
        strokes: list[Stroke] = []
        if waiting is not None:
            strokes.append(_as_newline(waiting) if close else waiting)
        if stroke.key != "enter":
            strokes.append(stroke)
        elif close:
            strokes.append(_as_newline(stroke))
        else:
            self._enter = stroke
        return [Release("keys", tuple(strokes))] if strokes else []

    def release(self) -> list[Release]:
        """Let through what waits."""
        waiting, self._enter = self._enter, None
        return [Release("keys", (waiting,))] if waiting is not None else []


def _as_newline(enter: Stroke) -> Stroke:
    return Stroke("ctrl+j", "\n", enter.at)
