"""Searching the cached traces: one line of words, the same in the explorer and in the shell.

`lights went model:gemma since:2026-11-01 edits:ablate is:pinned` finds traces with "lights went" in
their text, of a model with "gemma" in its name, made since that day, with an edit that has
"ablate" in it, and pinned.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal, cast, get_args

import msgspec

from emotui.cache.index import TraceRow
from emotui.core.errors import UsageError
from emotui.core.text import clean

if TYPE_CHECKING:
    from emotui.cache.store import Store

Kind = Literal["root", "edited", "pinned"]
_FILTERS = ("model", "since", "until", "edits", "is")


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """What a trace must have; an empty field asks nothing."""

    text: str = ""
    model: str = ""
    """A part of its name, case ignored, as are the other words."""
    edits: str = ""
    since: float | None = None
    """Seconds since 1970-01-01 UTC."""
    until: float | None = None
    """Up to the end of the day that was named, in the same seconds."""
    kinds: frozenset[Kind] = frozenset()

    def matches(self, row: TraceRow) -> bool:
        """Return whether a trace has all of it, its text left out: the index looks at that."""
        return (
            self.model.casefold() in row.model.casefold()
            and (not self.edits or self.edits.casefold() in "\n".join(row.edits).casefold())
            and (self.since is None or row.created >= self.since)
            and (self.until is None or row.created < self.until)
            and ("root" not in self.kinds or not row.edits)
            and ("edited" not in self.kinds or bool(row.edits))
            and ("pinned" not in self.kinds or row.pinned)
        )


def parse_search(line: str) -> Search:
    """Return what a line of search words asks for.

    Raises UsageError that names a filter that does not exist or a day that is none.
    """
    words: list[str] = []
    names = {"model": "", "edits": ""}
    days: dict[str, float] = {}
    kinds: set[Kind] = set()
    for word in line.split():
        name, colon, value = word.partition(":")
        if not colon or name not in _FILTERS:
            words.append(word)
        elif name in ("since", "until"):
            days[name] = _day(value, name)
        elif name == "is":
            kinds.add(_kind(value))
        else:
            names[name] = value
    return Search(
        text=" ".join(words),
        model=names["model"],
        edits=names["edits"],
        since=days.get("since"),
        until=days.get("until"),
        kinds=frozenset(kinds),
    )


def _day(value: str, name: str) -> float:
    try:
        day = datetime.strptime(value, "%Y-%m-%d").astimezone()
    except ValueError as error:
        raise UsageError(
            f"{name}:{clean(value)} names no day.", todo=f"Write it as {name}:2026-11-21."
        ) from error
    return (day if name == "since" else day + timedelta(days=1)).timestamp()


def _kind(value: str) -> Kind:
    kinds = get_args(Kind)
    if value not in kinds:
        raise UsageError(
            f"is:{clean(value)} is not known.", todo=f"Use one of: is:{', is:'.join(kinds)}."
        )
    return cast(Kind, value)


def found_by(search: Search, store: Store, *, limit: int | None = None) -> list[TraceRow]:
    """Return the traces that match, newest first, at most `limit`; None is all."""
    plain = search == Search(text=search.text)
    rows = store.traces(text=search.text or None, limit=limit if plain else None)
    found = [row for row in rows if search.matches(row)]
    return found[:limit]


def as_tree(rows: Sequence[TraceRow]) -> list[tuple[TraceRow, int]]:
    """Return traces with their depth: each what-if under its parent, where that is among them.

    Families stand by their newest member, newest first; siblings from the oldest on.
    """
    known = {row.id: row for row in rows}
    children: dict[str, list[TraceRow]] = {}
    roots: list[TraceRow] = []
    for row in rows:
        parent = row.parent
        if parent is not None and parent in known and parent != row.id:
            children.setdefault(parent, []).append(row)
        else:
            roots.append(row)
    newest: dict[str, float] = {}
    for row in rows:
        at: TraceRow | None = row
        seen: set[str] = set()
        while at is not None and at.id not in seen:
            seen.add(at.id)
            newest[at.id] = max(newest.get(at.id, 0.0), row.created)
            at = known.get(at.parent) if at.parent is not None else None
    tree: list[tuple[TraceRow, int]] = []
    waiting = [(row, 0) for row in sorted(roots, key=lambda row: newest[row.id])]
    while waiting:
        row, depth = waiting.pop()
        tree.append((row, depth))
        below = sorted(children.get(row.id, ()), key=lambda child: child.created, reverse=True)
        waiting.extend((child, depth + 1) for child in below)
    return tree
