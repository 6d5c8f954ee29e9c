"""`emotui export`: a cached trace as a file for other programs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from emotui.commands.common import cache_for, say
from emotui.core.errors import ExportError
from emotui.core.findings import Verification
from emotui.core.records import Note, Site, Trace
from emotui.core.text import clean

FORMATS = ("json", "py", "md", "html", "csv", "neuronpedia")
REFUSED = "gguf"
"""A format that other programs have for directions: asked for, it says what writes these."""


def export_trace(
    name: str,
    *,
    to: str = "json",
    all_tokens: bool,
    out: Path | None,
    force: bool,
    cache_dir: Path | None,
) -> None:
    """Write the trace with this id (or its beginning, or of this JSON file) to `out` or stdout.

    Raises CacheError for an id that leads to no trace, ExportError where writing fails or where
    a script cannot redo the trace.
    """
    from emotui.core.export.json import read_document, trace_of, write_file

    norms: Mapping[tuple[Site, int], float] = {}
    directions: Mapping[tuple[str, int], Sequence[float]] = {}
    notes: Sequence[Note]
    if Path(name).is_file():
        document = read_document(Path(name).read_bytes(), name=name)
        trace, ancestors, notes = trace_of(document), document.ancestors, document.notes
        verification = document.verification
    else:
        from emotui.cache.findings import verification_of
        from emotui.cache.lineage import ancestors_of
        from emotui.cache.notes import notes_of
        from emotui.cache.store import Store

        with cache_for(cache_dir, private=False) as root, Store.open(root) as store:
            trace = store.get_trace(name)
            ancestors = tuple(ancestors_of(trace, store))
            notes = notes_of(root, (one.id for one in (trace, *ancestors)))
            verification = verification_of(store, trace.id)
            if to == "py" and trace.edits:
                from emotui.core.export.strengths import mean_norms, promoted_directions

                norms = mean_norms(trace, store)
                directions = promoted_directions(trace, store)
    data = _document(
        trace,
        ancestors,
        notes,
        to=to,
        all_tokens=all_tokens,
        norms=norms,
        directions=directions,
        verification=verification,
    )
    if out is None:
        sys.stdout.buffer.write(data)
    else:
        say(f"Wrote {write_file(out, data, overwrite=force)}")


def _document(
    trace: Trace,
    ancestors: Sequence[Trace],
    notes: Sequence[Note],
    *,
    to: str,
    all_tokens: bool,
    norms: Mapping[tuple[Site, int], float],
    directions: Mapping[tuple[str, int], Sequence[float]],
    verification: Verification | None,
) -> bytes:
    if to == "py":
        from emotui.core.export.python import script_bytes

        return script_bytes(
            trace,
            ancestors=ancestors,
            all_tokens=all_tokens,
            norms=norms,
            directions=directions,
        )
    if to == "neuronpedia":
        from emotui.core.export.neuronpedia import graph_bytes

        return graph_bytes(trace, all_tokens=all_tokens)
    if to == "html":
        from emotui.core.export.html import html_bytes

        return html_bytes(trace, notes=notes, verification=verification)
    if to == "csv":
        from emotui.core.export.csv import csv_bytes

        return csv_bytes(trace)
    if to == REFUSED:
        raise _no_vectors(trace)
    if to == "md":
        from emotui.core.export.markdown import markdown_bytes

        return markdown_bytes(trace, ancestors=ancestors, notes=notes, verification=verification)
    from emotui.core.export.json import document_bytes

    return document_bytes(
        trace,
        ancestors=ancestors,
        notes=notes,
        verification=verification,
        all_tokens=all_tokens,
    )


def _no_vectors(trace: Trace) -> ExportError:
    """Return the error that says what writes directions: a trace holds none, its probes do."""
    probe = next((one for one in trace.probes if one.kind == "readout"), None)
    name = "PROBE" if probe is None else clean(probe.id)
    answered = {} if trace.answer is None else trace.answer.labels
    known = () if probe is None else [one for one in probe.emotions if one in answered]
    emotion = max(known, key=lambda one: answered[one]) if known else "EMOTION"
    return ExportError(
        "A trace cannot be written as GGUF.",
        why="GGUF control vectors are directions; those are of a probe, and a trace holds numbers.",
        todo=f"emotui probe export {name} {emotion} -o FILE.gguf",
    ).of_input()
