"""The store: traces, activations, features, readouts and probes in one folder.

Every entry is one self-checking file, put in place atomically; the index beside them is for
listing and for what to evict, and is never needed to find an entry.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import msgspec

from emotui.cache import codec, files, labels, layout, probes, sealed, upkeep
from emotui.cache.history import history_file
from emotui.cache.index import TraceRow
from emotui.cache.keys import TRACE_ID_DIGITS, trace_id
from emotui.cache.layout import EntryKind
from emotui.cache.notes import drop_notes, note_files
from emotui.cache.probes import ProbeCard
from emotui.cache.shelf import Shelf
from emotui.cache.upkeep import Freed, VerifyReport
from emotui.core.errors import CacheError
from emotui.core.records import Trace
from emotui.core.text import clean

__all__ = ["DEFAULT_BUDGET_BYTES", "Amount", "Store", "StoreSize", "TraceRow", "default_root"]

DEFAULT_BUDGET_BYTES = 20 * 1024**3


class Amount(msgspec.Struct, frozen=True):
    """Files of one kind."""

    count: int = 0
    bytes: int = 0


class StoreSize(msgspec.Struct, frozen=True, kw_only=True):
    """What the cache takes on disk."""

    traces: Amount
    activations: Amount
    features: Amount
    readouts: Amount
    statistics: Amount
    probes: Amount
    saes: Amount
    """Files of SAEs that were converted."""
    damaged: Amount
    budget_bytes: int
    """For traces and entries together; probes, SAEs and what was set aside do not count."""

    @property
    def evictable_bytes(self) -> int:
        """Bytes that count against the budget."""
        return sum(getattr(self, kind).bytes for kind in layout.KINDS)


def default_root() -> Path:
    """Return the folder of the cache where none is given: the platform's cache folder."""
    import platformdirs

    return platformdirs.user_cache_path("emotui")


class Store:
    """An open cache. A context manager; `open` makes one.

    Safe with several threads and with several processes on the same folder. Where the folder is
    read-only, everything can be read, and writing raises CacheError.
    """

    def __init__(
        self,
        root: Path,
        *,
        budget_bytes: int = DEFAULT_BUDGET_BYTES,
        writable: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.root = root
        self.writable = writable
        self._clock = clock
        self._shelf = Shelf(root, budget_bytes=budget_bytes, writable=writable, clock=clock)

    @classmethod
    def open(cls, root: Path | None = None, *, budget_bytes: int | None = None) -> Store:
        """Open the cache in `root` (None: the platform's cache folder), made if missing, 0700.

        `budget_bytes` bounds traces and entries together; None means 20 GiB. Raises CacheError
        where the folder is missing and cannot be made.
        """
        root = (default_root() if root is None else root).expanduser().absolute()
        try:
            files.make_folder(root)
            if not root.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            writable = files.writable(root)
            if writable:
                files.make_folder(root / "logs")
        except OSError as error:
            if not root.is_dir():
                files.write_failed(root, error)
            writable = False
        budget = DEFAULT_BUDGET_BYTES if budget_bytes is None else budget_bytes
        try:
            return cls(root, budget_bytes=budget, writable=writable)
        except OSError as error:
            raise CacheError(
                f"The cache in {root} could not be opened.",
                why=error.strerror or type(error).__name__,
                todo="Check its permissions, or choose another folder with --cache-dir.",
            ) from error

    def close(self) -> None:
        """Let go of what is held open and of the index. A second call does nothing."""
        self._shelf.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def log_dir(self) -> Path:
        """Folder for log files, mode 0700; it may be missing where the cache is read-only."""
        return self.root / "logs"

    # Traces

    def put_trace(self, trace: Trace, request_key: str) -> None:
        """Keep a trace under its request key, over one that stands there.

        When this returns, the trace is on disk. Raises ValueError where the trace's id is not
        that of the key, and CacheError where it cannot be kept.
        """
        layout.check_key(request_key)
        if trace.id != trace_id(request_key):
            raise ValueError("the id of a trace is the start of its request key")
        row = TraceRow(
            id=trace.id,
            request_key=request_key,
            parent=trace.parent,
            model=trace.run.model,
            revision=trace.run.revision,
            fingerprint=trace.run.fingerprint,
            template=trace.run.template,
            text=trace.text.raw,
            tokens=len(trace.text.tokens),
            edits=trace.edits,
            created=self._clock(),
        )
        try:
            payload, metadata = codec.encode_trace(trace)
            metadata[layout.ROW] = msgspec.json.encode(row).decode()
        except (ValueError, OverflowError) as error:
            raise CacheError(
                "The trace could not be kept.",
                why=f"A value in it cannot be written ({type(error).__name__}).",
                todo="Please report this: `emotui doctor` shows what to include.",
            ) from error
        content = sealed.seal(payload, {layout.KEY: request_key, **metadata})
        self._shelf.put("traces", trace.id, content, row)

    def get_trace(self, id_or_prefix: str) -> Trace:
        """Return a trace by its id, or by the start of an id that only one trace has.

        Raises CacheError where there is none or more than one. A damaged file is set aside, and
        is none.
        """
        name = self._resolve(id_or_prefix)
        found = self._shelf.get("traces", name)
        if found is None:
            raise CacheError(
                f"There is no trace {name} in the cache.",
                why="Its file was removed or was found damaged just now.",
                todo="Inspect the text again.",
            )
        try:
            trace = codec.decode_trace(*found)
        except sealed.Damaged as error:
            raise CacheError(
                f"Trace {name} was written by another version of emotui.",
                todo="Inspect the text again, or open it with the version that wrote it.",
            ) from error
        self._shelf.touch("traces", name)
        return trace

    def find_trace(self, request_key: str) -> str | None:
        """Return the id of the trace that answers a request, if a readable one stands there."""
        name = trace_id(layout.check_key(request_key))
        found = self._shelf.get("traces", name, request_key)
        if found is None:
            return None
        try:
            codec.decode_trace(*found)
        except sealed.Damaged:
            return None
        self._shelf.touch("traces", name)
        return name

    def traces(
        self, *, text: str | None = None, model: str | None = None, limit: int | None = None
    ) -> list[TraceRow]:
        """Return what is known of traces, newest first.

        `text` must stand in the trace's text, case ignored; `model` is its exact name.
        """
        rows = self._shelf.with_index(
            lambda index: index.trace_rows(text=text, model=model, limit=limit)
        )
        pinned = self._shelf.pinned()
        return [
            msgspec.structs.replace(row, pinned=True) if row.id in pinned else row for row in rows
        ]

    def row_of(self, id_or_prefix: str) -> TraceRow:
        """Return what a list shows of one trace. Raises CacheError as `get_trace` does."""
        name = self._resolve(id_or_prefix)
        path = layout.file_of(self.root, "traces", name)
        try:
            row, size = layout.read_row(path), path.stat().st_size
        except (OSError, sealed.Damaged) as error:
            raise CacheError(
                f"Trace {name} cannot be read.", todo="Run `emotui cache verify`."
            ) from error
        return msgspec.structs.replace(row, size=size, pinned=name in self._shelf.pinned())

    def pin(self, id_or_prefix: str, pinned: bool) -> str:
        """Keep a trace whatever the budget, or no longer; return its id."""
        name = self._resolve(id_or_prefix)
        self._shelf.require_writable()
        marker = self.root / "pins" / name
        try:
            if pinned:
                files.write_whole(marker, b"")
            else:
                marker.unlink(missing_ok=True)
        except OSError as error:
            files.write_failed(self.root, error)
        return name

    def hold(self, trace: str) -> None:
        """Keep a trace from eviction while this store is open, or until `release`."""
        self._shelf.note(
            lambda index: index.hold(
                trace, host=upkeep.host_name(), pid=os.getpid(), since=self._clock()
            )
        )

    def release(self, trace: str) -> None:
        """Take back a `hold`."""
        self._shelf.note(
            lambda index: index.release(trace, host=upkeep.host_name(), pid=os.getpid())
        )

    def delete(self, id_or_prefix: str) -> str:
        """Remove a trace, pinned or not, and its notes; return its id."""
        name = self._resolve(id_or_prefix)
        self._shelf.require_writable()
        try:
            self._shelf.remove("traces", name)
            (self.root / "pins" / name).unlink(missing_ok=True)
            drop_notes(self.root, name)
        except OSError as error:
            files.write_failed(self.root, error)
        return name

    # Activations, features, readouts

    def put_entry(self, kind: EntryKind, key: str, payload: bytes) -> None:
        """Keep safetensors bytes under a key of 64 hex digits, over what stands there.

        Raises ValueError for another key or payload, CacheError where it cannot be kept.
        """
        layout.check_key(key)
        self._shelf.put(kind, key, sealed.seal(payload, {layout.KEY: key}))

    def get_entry(self, kind: EntryKind, key: str) -> bytes | None:
        """Return the safetensors bytes of an entry, checked; None where there is none.

        Arrays and metadata are those that were put, and the metadata holds the checksum and the
        key besides. A damaged file is set aside, and is none.
        """
        found = self._shelf.get(kind, layout.check_key(key), key)
        if found is None:
            return None
        self._shelf.touch(kind, key)
        return found[0]

    # Probes

    def put_probe(self, probe_id: str, payload: bytes, summary: ProbeCard) -> None:
        """Keep a fitted probe; see `emotui.cache.probes.write_probe`."""
        self._shelf.require_writable()
        probes.write_probe(self.root, probe_id, payload, summary)

    def get_probe(self, probe_id: str) -> bytes:
        """Return a probe's safetensors bytes, checked. Raises ProbeError."""
        return probes.read_probe(self.root, probe_id)[0]

    def probes(self, fingerprint: str | None = None) -> list[ProbeCard]:
        """Return the cards of the probes of one model (None: of all), newest first."""
        return probes.read_cards(self.root, fingerprint)

    # Memo of fingerprints

    def file_digest(self, path: str, size: int, mtime_ns: int) -> str | None:
        """Return the SHA-256 remembered for a file of this size and time."""
        return self._shelf.with_index(lambda index: index.file_digest(path, size, mtime_ns))

    def remember_file_digest(self, path: str, size: int, mtime_ns: int, digest: str) -> None:
        """Remember the SHA-256 of a file, if that can be written."""
        self._shelf.note(lambda index: index.remember_file_digest(path, size, mtime_ns, digest))

    def fingerprint(self, name: str, revision: str | None = None) -> str | None:
        """Return the last fingerprint known for a model name (None: the default revision)."""
        return self._shelf.with_index(lambda index: index.fingerprint(name, revision))

    def remember_fingerprint(
        self, name: str, fingerprint: str, *, revision: str | None = None
    ) -> None:
        """Remember the fingerprint of a model name, if that can be written."""
        self._shelf.note(lambda index: index.remember_fingerprint(name, revision, fingerprint))

    # Labels of features

    def labels_state(self, source: str, identity: str, fingerprint: str) -> str:
        """Return what changes when the labels of an SAE source do; "" without labels."""
        return labels.state(self.root, source, identity, fingerprint)

    # Upkeep

    def size(self) -> StoreSize:
        """Return what the cache takes on disk, by kind."""

        def amount(paths: list[Path]) -> Amount:
            sizes = []
            for path in paths:
                with contextlib.suppress(OSError):
                    sizes.append(path.stat().st_size)
            return Amount(len(sizes), sum(sizes))

        kinds = {
            kind: amount(
                [layout.file_of(self.root, kind, name) for name in layout.scan(self.root, kind)[0]]
            )
            for kind in layout.KINDS
        }
        return StoreSize(
            **kinds,
            probes=amount(list(probes.paths(self.root))),
            saes=amount(layout.sae_files(self.root)),
            damaged=amount(list((self.root / "damaged").glob("*"))),
            budget_bytes=self._shelf.budget_bytes,
        )

    def prune(self, budget_bytes: int | None = None) -> Freed:
        """Evict what was least recently used down to `budget_bytes` (None: the store's own).

        Never evicts what is pinned or open.
        """
        budget = self._shelf.budget_bytes if budget_bytes is None else budget_bytes
        return self._shelf.evict(budget)

    def verify(self) -> VerifyReport:
        """Check every file; set damaged ones aside and make the index agree with the rest."""
        return self._shelf.with_index(
            lambda index: upkeep.verify(self.root, index, writable=self.writable)
        )

    def clear(self, *, everything: bool = False) -> Freed:
        """Remove all entries, unpinned traces, their notes, the console's history, damaged files.

        With `everything`, pinned traces, fitted probes and converted SAEs too.
        """
        self._shelf.require_writable()
        try:
            loose = [self.root / "damaged" / name for name in layout.listed(self.root / "damaged")]
            if everything:
                for name in self._shelf.pinned():
                    (self.root / "pins" / name).unlink(missing_ok=True)
                loose += [*probes.paths(self.root), *layout.sae_files(self.root)]
            freed = self._shelf.evict(0, keep_open=False)
            loose += note_files(self.root, keep=layout.scan(self.root, "traces")[0])
            loose += [path for path in (history_file(self.root),) if path.exists()]
            for path in loose:
                size = path.stat().st_size
                path.unlink()
                freed = Freed(freed.count + 1, freed.bytes + size)
            if everything:
                layout.drop_empty_folders(self.root / layout.SAES)
        except OSError as error:
            files.write_failed(self.root, error)
        return freed

    def _resolve(self, id_or_prefix: str) -> str:
        """Return the one trace id that starts so. Looks at the files, not at the index."""
        prefix = id_or_prefix.strip().lower()[:TRACE_ID_DIGITS]
        found: set[str] = set()
        if layout.is_hex(prefix):
            found = layout.scan(self.root, "traces", starting=prefix)[0]
        if len(found) == 1:
            return next(iter(found))
        if not found:
            raise CacheError(
                f"There is no trace {clean(id_or_prefix)[:80]!r} in the cache.",
                todo="`emotui cache list` shows the ids there are.",
            ).of_input()
        raise CacheError(
            f"{len(found)} traces start with {prefix}.",
            why=f"Among them {', '.join(sorted(found)[:3])}.",
            todo="Give more digits of the id.",
        ).of_input()
