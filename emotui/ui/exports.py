"""Where the screen writes the files it exports."""

from __future__ import annotations

from pathlib import Path

from emotui.cache.store import Store
from emotui.core.records import Trace


def export_trace(store: Store, trace: Trace, folder: Path) -> tuple[Path, bool]:
    """Write a trace and its ancestors to `emotui-ID.json` in `folder`; never over another file.

    Returns the path, and whether the same document stood there already. Where another file has
    the name, a number is added to it. Raises ExportError, CacheError.
    """
    from emotui.cache.findings import verification_of
    from emotui.cache.lineage import ancestors_of
    from emotui.cache.notes import notes_of
    from emotui.core.export.json import document_bytes, write_numbered

    ancestors = ancestors_of(trace, store)
    notes = notes_of(store.root, (one.id for one in (trace, *ancestors)))
    data = document_bytes(
        trace,
        ancestors=ancestors,
        notes=notes,
        verification=verification_of(store, trace.id),
        all_tokens=False,
    )
    return write_numbered(folder, f"emotui-{trace.id}", data)
