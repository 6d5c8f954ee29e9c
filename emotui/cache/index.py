"""The SQLite index of a cache: what is listed and searched, what was used when, and a memo.

The files are the truth. The index may be lost at any time; `Store` makes it again from them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from emotui.cache import files

INDEX_VERSION = 1
BUSY_SECONDS = 10.0

_SCHEMA = """
CREATE TABLE items (
    kind TEXT NOT NULL, key TEXT NOT NULL, size INTEGER NOT NULL, used REAL NOT NULL,
    PRIMARY KEY (kind, key)
) WITHOUT ROWID;
CREATE TABLE traces (
    id TEXT PRIMARY KEY, model TEXT NOT NULL, folded TEXT NOT NULL, created REAL NOT NULL,
    row BLOB NOT NULL
);
CREATE INDEX traces_by_time ON traces (created DESC, id);
CREATE TABLE hashes (
    path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, digest TEXT NOT NULL
);
CREATE TABLE fingerprints (
    name TEXT NOT NULL, revision TEXT NOT NULL, fingerprint TEXT NOT NULL,
    PRIMARY KEY (name, revision)
) WITHOUT ROWID;
CREATE TABLE holds (
    id TEXT NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL, since REAL NOT NULL,
    PRIMARY KEY (id, host, pid)
) WITHOUT ROWID;
"""
_TABLES = ("items", "traces", "hashes", "fingerprints", "holds")


class TraceRow(msgspec.Struct, frozen=True, kw_only=True):
    """What a list of traces shows of one."""

    id: str
    request_key: str
    parent: str | None
    model: str
    revision: str | None
    fingerprint: str
    template: str
    text: str
    """The user's text, uncleaned: clean it before it reaches a terminal."""
    tokens: int
    """Number of tokens of the whole prompt."""
    edits: tuple[str, ...]
    created: float
    """When the trace was written, in seconds since 1970-01-01 UTC."""
    size: int = 0
    """Bytes on disk."""
    pinned: bool = False


class ShownTrace(TraceRow, frozen=True, kw_only=True):
    """A row, and what its trace holds: numbers of readouts and features, and ids."""

    readouts: int
    features: int
    probes: tuple[str, ...]
    saes: tuple[str, ...]
    answer: dict[str, float] | None


def busy(error: sqlite3.Error) -> bool:
    """Return whether the index was only in use by another process for too long."""
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def corrupt(error: sqlite3.Error) -> bool:
    """Return whether the file is no index of this version, and must make way for a new one."""
    return _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


def as_os_error(error: sqlite3.Error) -> OSError | None:
    """Return a full or read-only disk as the OSError it is; None for anything else."""
    number = {sqlite3.SQLITE_FULL: errno.ENOSPC, sqlite3.SQLITE_READONLY: errno.EROFS}.get(
        _code(error)
    )
    return None if number is None else OSError(number, os.strerror(number))


def _code(error: sqlite3.Error) -> int:
    # The low byte is the primary result code.
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


class Index:
    """One connection; the caller sees to it that one thread at a time uses it.

    Methods raise sqlite3.Error.
    """

    def __init__(self, database: sqlite3.Connection, *, fresh: bool) -> None:
        self._database = database
        self.fresh = fresh
        """Whether it was made empty just now, and knows no file yet."""

    @classmethod
    def open(cls, path: Path) -> Index:
        """Open or make the index at `path`, file mode 0600; another schema's content is dropped.

        Uses a write-ahead log on a local disk and a rollback journal on a network file system.
        """
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, files.FILE_MODE))
        database = _connect(str(path))
        try:
            _set_journal(database, "DELETE" if files.on_network(path.parent) else "WAL")
            return cls(database, fresh=_make_schema(database))
        except BaseException:
            database.close()
            raise

    @classmethod
    def in_memory(cls, copy_of: Path | None = None) -> Index:
        """Return an index that is kept nowhere, filled from the file `copy_of` if it is readable.

        The file is read as one that nobody changes: no journal, no lock, nothing written.
        """
        database = _connect(":memory:")
        if copy_of is not None and copy_of.is_file():
            try:
                uri = f"{copy_of.resolve().as_uri()}?mode=ro&immutable=1"
                with contextlib.closing(_connect(uri)) as source:
                    source.backup(database)
                return cls(database, fresh=_make_schema(database))
            except sqlite3.Error:
                database.close()
                database = _connect(":memory:")
        return cls(database, fresh=_make_schema(database))

    def close(self) -> None:
        """Close the connection."""
        self._database.close()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the write lock of all processes, and commit at the end or roll back on an error.

        Files are put in place and removed under this lock, so that rows and files agree.
        """
        if self._database.in_transaction:
            yield
            return
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            raise

    def record(
        self, kind: str, key: str, *, size: int, used: float, row: TraceRow | None = None
    ) -> None:
        """Add or replace what is known of a file; `row` for traces."""
        self._database.execute(
            "INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?)", (kind, key, size, used)
        )
        if row is not None:
            self._database.execute(
                "INSERT OR REPLACE INTO traces VALUES (?, ?, ?, ?, ?)",
                (row.id, row.model, row.text.casefold(), row.created, msgspec.msgpack.encode(row)),
            )
            # What the caller told of this name before is surer than what a trace says.
            self._database.execute(
                "INSERT OR IGNORE INTO fingerprints VALUES (?, '', ?)", (row.model, row.fingerprint)
            )

    def forget(self, kind: str, key: str) -> None:
        """Remove what is known of a file."""
        self._database.execute("DELETE FROM items WHERE kind = ? AND key = ?", (kind, key))
        if kind == "traces":
            self._database.execute("DELETE FROM traces WHERE id = ?", (key,))

    def touch(self, kind: str, key: str, *, now: float, older_than: float) -> None:
        """Set the time of last use, where the one known is older by `older_than` seconds."""
        stale = self._database.execute(
            "SELECT 1 FROM items WHERE kind = ? AND key = ? AND used < ?",
            (kind, key, now - older_than),
        ).fetchone()
        if stale:
            self._database.execute(
                "UPDATE items SET used = ? WHERE kind = ? AND key = ?", (now, kind, key)
            )

    def keys(self, kind: str) -> set[str]:
        """Return the keys of all known files of a kind."""
        found = self._database.execute("SELECT key FROM items WHERE kind = ?", (kind,))
        keys = {key for (key,) in found}
        if kind == "traces":
            # A row in one table alone is as good as none.
            keys &= {key for (key,) in self._database.execute("SELECT id FROM traces")}
        return keys

    def total(self) -> int:
        """Return the bytes of all known files."""
        return int(self._database.execute("SELECT COALESCE(SUM(size), 0) FROM items").fetchone()[0])

    def least_used(self) -> list[tuple[str, str, int]]:
        """Return kind, key and size of all files in the order to evict them: traces last."""
        return self._database.execute(
            "SELECT kind, key, size FROM items ORDER BY kind = 'traces', used, key"
        ).fetchall()

    def trace_rows(
        self, *, text: str | None = None, model: str | None = None, limit: int | None = None
    ) -> list[TraceRow]:
        """Return traces, newest first: those with `text` in their text (case ignored)."""
        query = (
            "SELECT traces.row, items.size FROM traces JOIN items"
            " ON items.kind = 'traces' AND items.key = traces.id WHERE 1"
        )
        values: list[object] = []
        if text:
            query += " AND instr(folded, ?) > 0"
            values.append(text.casefold())
        if model is not None:
            query += " AND model = ?"
            values.append(model)
        query += " ORDER BY created DESC, id LIMIT ?"
        values.append(-1 if limit is None else limit)
        return [
            msgspec.structs.replace(msgspec.msgpack.decode(row, type=TraceRow), size=size)
            for row, size in self._database.execute(query, values)
        ]

    def file_digest(self, path: str, size: int, mtime_ns: int) -> str | None:
        """Return the hash remembered for a file of this size and time."""
        found = self._database.execute(
            "SELECT digest FROM hashes WHERE path = ? AND size = ? AND mtime_ns = ?",
            (path, size, mtime_ns),
        ).fetchone()
        return None if found is None else str(found[0])

    def remember_file_digest(self, path: str, size: int, mtime_ns: int, digest: str) -> None:
        """Remember the hash of a file."""
        self._database.execute(
            "INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?)", (path, size, mtime_ns, digest)
        )

    def fingerprint(self, name: str, revision: str | None) -> str | None:
        """Return the fingerprint last remembered for a name at a revision (None: the default)."""
        found = self._database.execute(
            "SELECT fingerprint FROM fingerprints WHERE name = ? AND revision = ?",
            (name, revision or ""),
        ).fetchone()
        return None if found is None else str(found[0])

    def remember_fingerprint(self, name: str, revision: str | None, fingerprint: str) -> None:
        """Remember the fingerprint of a name at a revision."""
        self._database.execute(
            "INSERT OR REPLACE INTO fingerprints VALUES (?, ?, ?)",
            (name, revision or "", fingerprint),
        )

    def hold(self, trace: str, *, host: str, pid: int, since: float) -> None:
        """Note that a process has a trace open."""
        self._database.execute(
            "INSERT OR REPLACE INTO holds VALUES (?, ?, ?, ?)", (trace, host, pid, since)
        )

    def release(self, trace: str | None, *, host: str, pid: int) -> None:
        """Note that a process closed a trace (None: all of its traces)."""
        self._database.execute(
            "DELETE FROM holds WHERE host = ?1 AND pid = ?2 AND (?3 IS NULL OR id = ?3)",
            (host, pid, trace),
        )

    def holds(self) -> list[tuple[str, str, int, float]]:
        """Return trace, host, process id and time of opening of all that is open."""
        return self._database.execute("SELECT id, host, pid, since FROM holds").fetchall()


def _connect(name: str) -> sqlite3.Connection:
    return sqlite3.connect(
        name,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
        uri=name.startswith("file:"),
    )


def _set_journal(database: sqlite3.Connection, mode: str) -> None:
    for _ in range(50):
        try:
            if database.execute("PRAGMA journal_mode").fetchone()[0].upper() != mode:
                database.execute(f"PRAGMA journal_mode = {mode}")
            break
        except sqlite3.OperationalError as error:
            # Changing the mode does not wait for other processes that open the index just now.
            if not busy(error):
                raise
            time.sleep(0.02)
    # The files are synced; a row that a power cut takes away is found again at the next open.
    database.execute("PRAGMA synchronous = NORMAL")


def _make_schema(database: sqlite3.Connection) -> bool:
    """Create the tables where they are not those of this version; return whether it was so."""

    def current() -> bool:
        return bool(database.execute("PRAGMA user_version").fetchone()[0] == INDEX_VERSION)

    if current():
        return False
    database.execute("BEGIN IMMEDIATE")
    try:
        if current():  # another process was quicker
            database.execute("COMMIT")
            return False
        for table in _TABLES:
            database.execute(f"DROP TABLE IF EXISTS {table}")
        for statement in _SCHEMA.split(";"):
            database.execute(statement)
        database.execute(f"PRAGMA user_version = {INDEX_VERSION}")
        database.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        raise
    return True
