"""`emotui export`: a cached trace as a file for other programs."""

from __future__ import annotations

import sys
from pathlib import Path

from emotui.commands.common import cache_for, say


def export_trace(
    name: str, *, all_tokens: bool, out: Path | None, force: bool, cache_dir: Path | None
) -> None:
    """Write the trace with this id (or its beginning, or of this JSON file) to `out` or stdout.

    Raises CacheError for an id that leads to no trace, ExportError where writing fails.
    """
    from emotui.core.export.json import document_bytes, read_document, trace_of, write_file

    if Path(name).is_file():
        document = read_document(Path(name).read_bytes(), name=name)
        trace, ancestors = trace_of(document), document.ancestors
    else:
        from emotui.cache.lineage import ancestors_of
        from emotui.cache.store import Store

        with cache_for(cache_dir, private=False) as root, Store.open(root) as store:
            trace = store.get_trace(name)
            ancestors = tuple(ancestors_of(trace, store))
    data = document_bytes(trace, ancestors=ancestors, all_tokens=all_tokens)
    if out is None:
        sys.stdout.buffer.write(data)
    else:
        say(f"Wrote {write_file(out, data, overwrite=force)}")
