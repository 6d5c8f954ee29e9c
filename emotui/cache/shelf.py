"""The shelf: self-checking files by kind and name, and the index that lists them.

A file is put in place under the write lock of the index and removed under it, so that processes
sharing a cache never see a row without its file for long, nor evict what was just written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from emotui.cache import files, layout, sealed, upkeep
from emotui.cache.index import Index, TraceRow, as_os_error, busy, corrupt
from emotui.core.errors import CacheError

_INDEX = "index.sqlite"
_TOUCH_SECONDS = 60.0  # last use is noted no finer than this
_SLACK = 0.95  # an eviction on the way of a write frees a little more, so that it is rare
_T = TypeVar("_T")


class Shelf:
    """The files of one cache folder, kept under a budget; `Store` gives them their meaning.

    Safe with several threads and several processes. Where `writable` is false nothing is written,
    the index included. Methods that write raise CacheError where it cannot be done.
    """

    def __init__(
        self,
        root: Path,
        *,
        budget_bytes: int,
        writable: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.root = root
        self._place = root / _INDEX  # made once: looked at with every question
        self.budget_bytes = budget_bytes
        self.writable = writable
        self.clock = clock
        self._lock = threading.RLock()
        self._closed = False
        self._inode: int | None = None
        self._index = self._open_index()
        kinds = layout.KINDS if self._index.fresh else ("traces",)
        self.with_index(lambda index: self.reconcile(index, kinds))

    def close(self) -> None:
        """Let go of what is held open and of the index. A second call does nothing."""
        with self._lock:
            if self._closed:
                return
            with contextlib.suppress(sqlite3.Error):
                self._index.release(None, host=upkeep.host_name(), pid=os.getpid())
            self._closed = True
            self._index.close()

    def put(self, kind: str, name: str, content: bytes, row: TraceRow | None = None) -> None:
        """Put a sealed file in its place, then its row, then see to the budget."""
        self.require_writable()
        target = layout.place_of(self.root, kind, name)
        try:
            with files.Pending(target, content) as pending:

                def work(index: Index) -> None:
                    with index.writing():
                        pending.commit()
                        index.record(kind, name, size=len(content), used=self.clock(), row=row)

                try:
                    self.with_index(work)
                except CacheError:
                    # The index is busy elsewhere: the file alone is enough, its row comes later.
                    pending.commit()
                except OSError:
                    if pending.committed:
                        # Without a row, nothing would count what a full disk lost to this file.
                        with contextlib.suppress(OSError):
                            Path(target).unlink()
                    raise
        except OSError as error:
            files.write_failed(self.root, error)
        self.note(lambda index: self._keep_budget(index, (kind, name)))

    def get(
        self, kind: str, name: str, key: str | None = None
    ) -> tuple[bytes, dict[str, str]] | None:
        """Return bytes and metadata of a file, checked; None where it is missing or damaged.

        A damaged file is set aside. `key` is the whole key the file must have, None any.
        """
        path = layout.place_of(self.root, kind, name)
        try:
            return layout.read_checked(path, key)
        except FileNotFoundError:
            return None
        except sealed.Damaged:
            if self.writable:
                self.note(lambda index: upkeep.set_aside(self.root, index, kind, name))
            return None
        except OSError as error:
            raise CacheError(
                f"A file of the cache could not be read: {path}.",
                why=error.strerror or type(error).__name__,
                todo="Check its permissions, or choose another folder with --cache-dir.",
            ) from error

    def touch(self, kind: str, name: str) -> None:
        """Note that a file was used now."""
        now = self.clock()
        self.note(lambda index: index.touch(kind, name, now=now, older_than=_TOUCH_SECONDS))

    def remove(self, kind: str, name: str) -> None:
        """Remove a file and its row; raises OSError."""

        def work(index: Index) -> None:
            with index.writing():
                layout.file_of(self.root, kind, name).unlink(missing_ok=True)
                index.forget(kind, name)

        self.with_index(work)

    def evict(self, budget_bytes: int, *, keep_open: bool = True) -> upkeep.Freed:
        """Evict down to `budget_bytes`, never what is pinned, nor with `keep_open` what is open."""
        self.require_writable()

        def work(index: Index) -> upkeep.Freed:
            self.reconcile(index, layout.KINDS)
            keep = self._kept(index, keep_open=keep_open)
            return upkeep.evict(self.root, index, budget_bytes, keep=keep)

        try:
            return self.with_index(work)
        except OSError as error:
            files.write_failed(self.root, error)

    def pinned(self) -> set[str]:
        """Return the ids of pinned traces."""
        return set(layout.listed(self.root / "pins"))

    def require_writable(self) -> None:
        """Raise CacheError where the cache is read-only."""
        if not self.writable:
            files.write_failed(self.root, OSError(errno.EROFS, os.strerror(errno.EROFS)))

    def reconcile(self, index: Index, kinds: tuple[str, ...]) -> None:
        """Make the index agree with the files of these kinds."""
        upkeep.reconcile(self.root, index, kinds, writable=self.writable)

    def note(self, work: Callable[[Index], object]) -> None:
        """Do what is good to have, and let it be where the disk or another process forbids it."""
        with contextlib.suppress(CacheError, OSError):
            self.with_index(work)

    def with_index(self, work: Callable[[Index], _T]) -> _T:
        """Do `work` with the index; where it proves lost, make it anew and do it once more.

        Raises CacheError where another process keeps it locked, OSError where the disk is full.
        """
        with self._lock:
            if self._closed:
                raise ValueError("the store is closed")
            if self._inode != self._inode_now():
                self._renew()
            try:
                return work(self._index)
            except sqlite3.ProgrammingError:
                raise
            except sqlite3.DatabaseError as error:
                if busy(error):
                    raise CacheError(
                        "The index of the cache stayed locked.",
                        why=f"Another process holds {self.root / _INDEX}.",
                        todo="Try again, or choose another folder with --cache-dir.",
                    ) from error
                if system_error := as_os_error(error):
                    raise system_error from error
                if corrupt(error):
                    self._drop_index()
            self._renew()
            return work(self._index)

    def _renew(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._index.close()
        self._index = self._open_index()
        self.reconcile(self._index, layout.KINDS)

    def _inode_now(self) -> int | None:
        """Tell one index file from another that took its place; None where it is in memory."""
        if self._inode is None:
            return None
        try:
            return self._place.stat().st_ino
        except OSError:
            return None

    def _open_index(self) -> Index:
        path = self.root / _INDEX
        self._inode = None
        if not self.writable:
            return Index.in_memory(path)
        for attempt in range(2):
            try:
                files.make_folder(self.root)
                index = Index.open(path)
                self._inode = path.stat().st_ino
                return index
            except OSError:
                break
            except sqlite3.DatabaseError as error:
                if attempt or not corrupt(error):
                    break
                self._drop_index()
        # The files are all that is needed: without a place for the index it lives in memory.
        return Index.in_memory(path)

    def _drop_index(self) -> None:
        if self.writable:
            for suffix in ("", "-wal", "-shm", "-journal"):
                with contextlib.suppress(OSError):
                    (self.root / f"{_INDEX}{suffix}").unlink()

    def _keep_budget(self, index: Index, written: tuple[str, str]) -> None:
        if index.total() > self.budget_bytes:
            keep = {*self._kept(index, keep_open=True), written}
            upkeep.evict(self.root, index, int(self.budget_bytes * _SLACK), keep=keep)

    def _kept(self, index: Index, *, keep_open: bool) -> set[tuple[str, str]]:
        names = self.pinned()
        if keep_open:
            names |= upkeep.open_traces(index, now=self.clock())
        return {("traces", name) for name in names}
