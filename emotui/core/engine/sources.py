"""What a patch is taken from: a trace in the cache, a JSON export, or a text.

An export is written down in a trace as what is in it (a trace of this cache, or its text), so that
the printed edit always means the same run and names no path.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from emotui.core.edits import STAYED, PatchEdit, Source
from emotui.core.errors import CacheError, EditError
from emotui.core.records import Trace, TraceDocument
from emotui.core.text import Template, clean

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.engine.model import LoadedModel

MAX_FILE_BYTES = 256 * 1024 * 1024


def settled(edit: PatchEdit, *, model: LoadedModel, store: Store, template: Template) -> PatchEdit:
    """Return the patch with its source in the form it is kept in: a whole trace id, or a text.

    EditError where there is no such trace or file, or where it is of another model.
    """
    source = edit.source
    if source.kind == "trace":
        trace = trace_of(source, model=model, store=store)
        return msgspec.structs.replace(edit, source=Source("trace", trace.id))
    if source.kind == "file":
        source = _from_file(Path(source.value), model=model, store=store, template=template)
        return msgspec.structs.replace(edit, source=source)
    return edit


def trace_of(source: Source, *, model: LoadedModel, store: Store) -> Trace:
    """Return the trace a source names; EditError where it is not there or of another model."""
    try:
        trace = store.get_trace(source.value)
    except CacheError as error:
        raise EditError(
            f"There is nothing to patch from: {error.what}", why=error.why, todo=STAYED
        ) from error
    check_model(trace, model)
    return trace


def check_model(trace: Trace, model: LoadedModel) -> None:
    """Raise EditError unless a trace was computed by this model."""
    run = trace.run
    if (run.layers, run.d_model) != (model.n_layers, model.d_model):
        raise EditError(
            f"Trace {trace.id} cannot be patched from: its model has another shape.",
            why=f"It has {run.layers} layers of width {run.d_model}; this one has "
            f"{model.n_layers} of width {model.d_model}.",
            todo=STAYED,
        )
    if run.fingerprint != model.fingerprint:
        raise EditError(
            f"Trace {trace.id} cannot be patched from: it is of another model.",
            why=f"It was computed by {clean(run.model)}, whose weights differ.",
            todo=STAYED,
        )


def _from_file(path: Path, *, model: LoadedModel, store: Store, template: Template) -> Source:
    name = clean(path.name)
    document = _document(path)
    check_model(document, model)
    try:
        return Source("trace", store.row_of(document.id).id)
    except CacheError:
        pass  # not of this cache: its text can be run again, its edits cannot
    if document.edits:
        raise EditError(
            f"{name} cannot be patched from: it is of a run with edits.",
            why="That run is not in this cache, and an export holds no activations.",
            todo=f"Inspect its text with its edits first. {STAYED}",
        )
    if document.run.template != template.name:
        raise EditError(
            f"{name} cannot be patched from: its template is another.",
            why=f"It was run with {clean(document.run.template)}, this text with {template.name}.",
            todo=STAYED,
        )
    return Source("text", document.text.raw)


def _document(path: Path) -> TraceDocument:
    name = clean(path.name)
    try:
        path = path.expanduser()
        if path.stat().st_size > MAX_FILE_BYTES:
            raise EditError(
                f"{name} is too large for a trace.",
                why=f"At most {MAX_FILE_BYTES:,} bytes are read.",
                todo=STAYED,
            )
        data = path.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or f"{type(error).__name__}"
        raise EditError(f"{name} could not be read.", why=f"{why}.", todo=STAYED) from error
    try:
        return msgspec.json.decode(data, type=TraceDocument)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EditError(
            f"{name} is not a trace exported by emotui.", why=clean(f"{error}."), todo=STAYED
        ) from error
