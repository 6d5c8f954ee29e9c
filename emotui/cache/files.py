"""Files of the cache: private, written whole or not at all.

Places are strings here. Every part of a Path is interned, and a file's name comes once: with
Paths, each text put a hundred names into Python's table of interned strings, and emptied places
in it are only swept by making it anew, at up to twice the size.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path
from typing import NoReturn

from emotui.core.errors import CacheError

FOLDER_MODE = 0o700
FILE_MODE = 0o600
TEMPORARY = ".writing-"
"""Names of files still being written start with this."""

_STALE_SECONDS = 3600.0
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_ELSEWHERE = "Choose a folder that can be written with --cache-dir."
_NETWORK = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs"),
        *("afs", "9p", "panfs", "orangefs", "davfs", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph"),
        *("fuse.beegfs", "fuse.s3fs", "fuse.rclone"),
    )
)


def write_failed(path: Path, error: OSError) -> NoReturn:
    """Raise the CacheError that tells a user what a failed write means."""
    if error.errno in _FULL:
        raise CacheError(
            f"The cache could not keep a result: the disk that holds {path} is full.",
            why="Nothing half-written was left; what was cached before is intact.",
            todo="Free some space, run `emotui cache prune`, or choose another folder with "
            "--cache-dir.",
        ) from error
    raise CacheError(
        f"The cache in {path} cannot be written.",
        why=error.strerror or type(error).__name__,
        todo=_ELSEWHERE,
    ) from error


def read(path: str | Path) -> bytes:
    """Return the content of a file; raises OSError."""
    with open(path, "rb") as file:
        return file.read()


def joined(folder: str | Path, *names: str) -> str:
    """Return the place of a name in a folder, or in a folder of it."""
    return os.path.join(folder, *names)


def folder_of(place: str) -> str:
    """Return the folder that a place lies in."""
    return os.path.dirname(place) or os.curdir


def make_folder(path: str | Path) -> None:
    """Create a folder of the cache with mode 0700, parents included; raises OSError."""
    if os.path.isdir(path):
        return
    parent = folder_of(os.fspath(path))
    os.makedirs(parent, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, FOLDER_MODE)
        _sync_folder(parent)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot sync a folder; the rename itself is done.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


class Pending:
    """A file that is written and synced beside its final place; `commit` puts it there.

    A context manager: leaving it without `commit` removes the temporary file. Raises OSError.
    """

    def __init__(self, target: str | Path, content: bytes) -> None:
        self._target = os.fspath(target)
        self._temporary: str | None = None
        self._content = content
        self.committed = False

    def __enter__(self) -> Pending:
        folder = folder_of(self._target)
        make_folder(folder_of(folder))
        make_folder(folder)
        name = f"{TEMPORARY}{os.getpid()}-{os.urandom(6).hex()}"
        temporary = joined(folder, name)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
        self._temporary = temporary
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(self._content)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            self._discard()
            raise
        return self

    def commit(self) -> None:
        """Put the file in its place, over what stands there, and sync the folder.

        A second call does nothing.
        """
        if self._temporary is None:
            return
        os.replace(self._temporary, self._target)
        self._temporary = None
        self.committed = True
        _sync_folder(folder_of(self._target))

    def _discard(self) -> None:
        if self._temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary)
            self._temporary = None

    def __exit__(self, *_: object) -> None:
        self._discard()


def write_whole(target: str | Path, content: bytes) -> None:
    """Write a file atomically with mode 0600: temporary file, fsync, rename, fsync of the folder.

    Raises OSError, and leaves no temporary file then.
    """
    with Pending(target, content) as pending:
        pending.commit()


def is_stale(path: Path) -> bool:
    """Return whether a temporary file is so old that its writer must have been killed."""
    try:
        return time.time() - path.stat().st_mtime > _STALE_SECONDS
    except OSError:
        return False


def writable(folder: Path) -> bool:
    """Return whether files can be made in an existing folder (false on a read-only disk)."""
    return os.access(folder, os.R_OK | os.W_OK | os.X_OK)


def on_network(path: Path, *, mounts: str | None = None) -> bool:
    """Return whether a path lies on a network file system, where SQLite's WAL must not be used.

    `mounts` is the text of /proc/mounts; None reads it. False where that file does not exist.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return False
    resolved = path.resolve()
    best, kind = -1, ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = Path(_unescape(fields[1]))
        # A later mount on the same point hides the earlier one.
        if len(point.parts) >= best and resolved.is_relative_to(point):
            best, kind = len(point.parts), fields[2]
    return kind in _NETWORK


def _unescape(point: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(code, character)
    return point
