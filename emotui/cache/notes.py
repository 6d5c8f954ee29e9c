"""Notes: what a user wrote beside a trace, one JSON file a trace in the cache folder.

They are no part of a trace or its id, and stay when a trace is evicted: computed again, it has
the same id. Deleting the trace, or clearing the cache, removes them.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from pathlib import Path

import msgspec

from emotui.cache import files, layout
from emotui.core.errors import CacheError, UsageError
from emotui.core.records import Note
from emotui.core.text import clean

MAX_NOTES = 1000
MAX_CHARACTERS = 10_000
_FOLDER = "notes"
_SUFFIX = ".json"


def notes_of(root: Path, traces: Iterable[str]) -> tuple[Note, ...]:
    """Return the notes of these trace ids, trace by trace, the oldest first.

    Raises CacheError where a file is damaged.
    """
    return tuple(note for trace in traces for note in _read(_path(root, trace)))


def add_note(root: Path, trace: str, text: str, *, now: float | None = None) -> Note:
    """Write a note beside a trace and return it; `now` is seconds since 1970 (None: the clock).

    `trace` is a whole id. Raises UsageError for a text that is empty or too long, CacheError
    where it cannot be written.
    """
    said = clean(text.strip())
    if not said:
        raise UsageError("The note has no words.", todo="Write: note and what is to be kept.")
    if len(said) > MAX_CHARACTERS:
        raise UsageError(
            f"The note is {len(said):,} characters long.",
            why=f"At most {MAX_CHARACTERS:,} are kept.",
            todo="Shorten it; nothing was written.",
        )
    path = _path(root, trace)
    there = _read(path)
    if len(there) >= MAX_NOTES:
        raise UsageError(f"This trace has {MAX_NOTES:,} notes already; nothing was written.")
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    note = Note(trace=trace, time=stamp, text=said)
    try:
        files.make_folder(path.parent)
        files.write_whole(path, msgspec.json.encode((*there, note), order="sorted"))
    except OSError as error:
        files.write_failed(root, error)
    return note


def note_files(root: Path, *, keep: Collection[str] = ()) -> list[Path]:
    """Return the files of notes, without those of the trace ids to keep."""
    return [
        root / _FOLDER / name
        for name in layout.listed(root / _FOLDER)
        if name.endswith(_SUFFIX) and name.removesuffix(_SUFFIX) not in keep
    ]


def drop_notes(root: Path, trace: str) -> None:
    """Remove the notes of a trace, if there are any. Raises OSError."""
    _path(root, trace).unlink(missing_ok=True)


def _path(root: Path, trace: str) -> Path:
    if not layout.is_hex(trace):
        raise ValueError("a trace id is hex digits")
    return root / _FOLDER / f"{trace}{_SUFFIX}"


def _read(path: Path) -> tuple[Note, ...]:
    try:
        content = path.read_bytes()
    except OSError:
        return ()
    try:
        return msgspec.json.decode(content, type=tuple[Note, ...])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CacheError(
            f"The notes in {path} cannot be read.",
            why=f"{clean(str(error))}.",
            todo="Mend or remove that file.",
        ) from error
