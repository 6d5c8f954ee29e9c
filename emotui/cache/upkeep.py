"""Upkeep: making files and index agree, setting damaged files aside, keeping to the budget."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterable
from pathlib import Path

import msgspec

from emotui.cache import files, layout, probes, sealed
from emotui.cache.index import Index, TraceRow

_FOREIGN_HOLD_SECONDS = 7 * 86_400.0
"""How long a trace counts as open on another machine, whose processes cannot be seen."""


class Freed(msgspec.Struct, frozen=True):
    """What an eviction or a clearing removed."""

    count: int = 0
    bytes: int = 0


class VerifyReport(msgspec.Struct, frozen=True):
    """What a check of all files found; afterwards the cache is sound."""

    checked: int
    damaged: tuple[str, ...]
    """Paths below the cache folder; each file was moved to `damaged/` unless it is read-only."""
    listed_again: int
    """Rows of the index that were added or removed because files and index differed."""
    unfinished: int
    """Temporary files of killed writers that were removed."""


def host_name() -> str:
    """Return the name of this machine, as it stands in the holds."""
    return os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")


def reconcile(root: Path, index: Index, kinds: Iterable[str], *, writable: bool) -> tuple[int, int]:
    """Make the index agree with the files of `kinds`.

    Compares names only; headers are read of files the index does not know. Returns how many rows
    were changed and how many leftover temporary files were removed.
    """
    changed = removed = 0
    for kind in kinds:
        found, unfinished = layout.scan(root, kind)
        if writable:
            for path in filter(files.is_stale, unfinished):
                with contextlib.suppress(OSError):
                    path.unlink()
                    removed += 1
        known = index.keys(kind)
        if found == known:
            continue
        new = [entry for name in found - known if (entry := _describe(root, index, kind, name))]
        with index.writing():
            # Writers put files in place under this lock too: look again before believing.
            for name in known - found:
                if not layout.file_of(root, kind, name).exists():
                    index.forget(kind, name)
                    changed += 1
            for name, size, used, row in sorted(new, key=lambda entry: -entry[2]):
                if layout.file_of(root, kind, name).exists():
                    index.record(kind, name, size=size, used=used, row=row)
                    changed += 1
    return changed, removed


def _describe(
    root: Path, index: Index, kind: str, name: str
) -> tuple[str, int, float, TraceRow | None] | None:
    path = layout.file_of(root, kind, name)
    try:
        status = path.stat()
        row = layout.read_row(path) if kind == "traces" else None
    except sealed.Damaged:
        set_aside(root, index, kind, name)
        return None
    except OSError:
        return None
    return name, status.st_size, status.st_mtime, row


def set_aside(root: Path, index: Index, kind: str, name: str) -> bool:
    """Move a damaged file to `damaged/`; return whether it was (still) damaged.

    Another process may have written it anew since it was found damaged: it is read once more
    under the lock of the index. On a read-only disk nothing is moved.
    """
    path = layout.file_of(root, kind, name)
    with index.writing():
        try:
            layout.read_checked(path)
            return False
        except FileNotFoundError:
            return False
        except (sealed.Damaged, OSError):
            pass
        index.forget(kind, name)
        move_to_damaged(root, path)
    return True


def move_to_damaged(root: Path, path: Path) -> None:
    """Move a file to `damaged/` under a name that says what it was and when."""
    with contextlib.suppress(OSError):
        files.make_folder(root / "damaged")
        name = f"{path.parent.parent.name}-{path.stem}-{time.time_ns()}{path.suffix}"
        path.replace(root / "damaged" / name)


def open_traces(index: Index, *, now: float) -> set[str]:
    """Return the ids of all traces that a living process holds open."""
    host, found = host_name(), set()
    for name, machine, pid, since in index.holds():
        recent = now - since < _FOREIGN_HOLD_SECONDS
        if _lives(pid) if machine == host else recent:
            found.add(name)
    return found


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def evict(
    root: Path, index: Index, budget_bytes: int, *, keep: Collection[tuple[str, str]]
) -> Freed:
    """Remove the least recently used files until at most `budget_bytes` are left.

    Activations, features and readouts go before traces; what is in `keep` (kind, name) stays.
    """
    count = freed = 0
    with index.writing():
        excess = index.total() - budget_bytes
        if excess <= 0:
            return Freed()
        for kind, name, size in index.least_used():
            if freed >= excess:
                break
            if (kind, name) in keep:
                continue
            try:
                layout.file_of(root, kind, name).unlink(missing_ok=True)
            except OSError:
                continue
            index.forget(kind, name)
            count, freed = count + 1, freed + size
    return Freed(count, freed)


def verify(root: Path, index: Index, *, writable: bool) -> VerifyReport:
    """Read every file, set the damaged ones aside, and make the index agree with the rest."""
    damaged: list[str] = []
    changed, unfinished = reconcile(root, index, layout.KINDS, writable=writable)
    checked = 0
    for kind in layout.KINDS:
        for name in sorted(layout.scan(root, kind)[0]):
            path = layout.file_of(root, kind, name)
            checked += 1
            try:
                layout.read_checked(path)
            except FileNotFoundError:
                checked -= 1  # evicted meanwhile
            except (sealed.Damaged, OSError):
                damaged.append(path.relative_to(root).as_posix())
                if writable:
                    set_aside(root, index, kind, name)
    for path in probes.paths(root):
        checked += 1
        if not probes.is_sound(path):
            damaged.append(path.relative_to(root).as_posix())
            if writable:
                move_to_damaged(root, path)
    return VerifyReport(checked, tuple(damaged), changed, unfinished)
