"""Where the screen writes the files it exports."""

from __future__ import annotations

from pathlib import Path

from emotui.cache.store import Store
from emotui.core.errors import ExportError
from emotui.core.records import Trace


def export_folder() -> Path:
    """Return the folder that exports go to, the current one. ExportError where it is gone."""
    try:
        return Path.cwd()
    except OSError:
        raise ExportError("Nothing was written: the current folder is gone.") from None


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


def export_prose(store: Store, trace: Trace, folder: Path, form: str) -> tuple[Path, bool]:
    """Write a trace as a script (`py`), in prose (`md`), as a page (`html`), as a table
    (`csv`) or as a graph (`neuronpedia`); never over another file.

    Returns the path, and whether the same stood there already. Raises ExportError, CacheError.
    """
    from emotui.cache.findings import verification_of
    from emotui.cache.lineage import ancestors_of
    from emotui.cache.notes import notes_of
    from emotui.core.export.json import write_numbered

    ancestors = ancestors_of(trace, store)
    if form == "py":
        from emotui.core.export.python import script_bytes
        from emotui.core.export.strengths import mean_norms, promoted_directions

        norms = mean_norms(trace, store) if trace.edits else {}
        directions = promoted_directions(trace, store)
        data = script_bytes(trace, ancestors=ancestors, norms=norms, directions=directions)
    elif form == "csv":
        from emotui.core.export.csv import csv_bytes

        data = csv_bytes(trace)
    elif form == "neuronpedia":
        from emotui.core.export.neuronpedia import graph_bytes

        name = f"emotui-{trace.id}-neuronpedia"
        return write_numbered(folder, name, graph_bytes(trace, all_tokens=False))
    else:
        from emotui.core.export.html import html_bytes
        from emotui.core.export.markdown import markdown_bytes

        notes = notes_of(store.root, (one.id for one in (trace, *ancestors)))
        verification = verification_of(store, trace.id)
        if form == "html":
            data = html_bytes(trace, notes=notes, verification=verification)
        else:
            data = markdown_bytes(
                trace, ancestors=ancestors, notes=notes, verification=verification
            )
    return write_numbered(folder, f"emotui-{trace.id}", data, suffix=form)
