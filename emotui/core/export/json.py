"""JSON: a trace and its ancestors as a versioned document, written and read back with checks."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from emotui.core.errors import ExportError
from emotui.core.estimates import estimate_of_last_edit
from emotui.core.findings import Verification
from emotui.core.records import (
    Features,
    LensWords,
    Note,
    Readouts,
    Trace,
    TraceDocument,
    Writes,
)

DIGITS = 5
"""Significant digits of every float in an export."""


Columns = TypeVar("Columns", Readouts, Features, Writes)


def rounded(value: Any) -> Any:
    """Return plain data with every float at five digits; None for what is not finite."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value


def _rows_where(columns: Columns, keep: Callable[[int], bool]) -> Columns:
    rows = [row for row, position in enumerate(columns.position) if keep(position)]
    if len(rows) == len(columns.position):
        return columns
    names = columns.__struct_fields__
    return type(columns)(*(tuple(getattr(columns, name)[row] for row in rows) for name in names))


def at_readout(trace: Trace) -> Trace:
    """Return the trace with what was read at the readout position only."""
    readout, attribution = trace.text.readout, trace.attribution
    if attribution is not None:
        writes = _rows_where(attribution.writes, lambda position: position == readout)
        attribution = msgspec.structs.replace(attribution, writes=writes)
    lens = trace.lens
    if lens is not None and readout in lens.words.position:
        count = len(lens.words.probability) // len(lens.words.position)
        start = lens.words.position.index(readout) * count
        words = msgspec.structs.replace(
            lens.words,
            position=(readout,),
            probability=lens.words.probability[start : start + count],
        )
        lens = msgspec.structs.replace(lens, words=words)
    return msgspec.structs.replace(
        trace,
        readouts=_rows_where(trace.readouts, lambda position: position == readout),
        features=_rows_where(trace.features, lambda position: position == readout),
        attribution=attribution,
        lens=lens,
    )


def document_bytes(
    trace: Trace,
    *,
    ancestors: Sequence[Trace] = (),
    notes: Sequence[Note] = (),
    verification: Verification | None = None,
    all_tokens: bool,
) -> bytes:
    """Return the JSON document of a trace: sorted keys, five digits, no NaN, newline at the end.

    The same trace with the same notes gives the same bytes. With `all_tokens` false, readouts and
    features are those of the readout position.
    """
    select: Callable[[Trace], Trace] = (lambda one: one) if all_tokens else at_readout
    plain = msgspec.to_builtins(select(trace))
    plain["ancestors"] = [msgspec.to_builtins(select(ancestor)) for ancestor in ancestors]
    plain["notes"] = msgspec.to_builtins(tuple(notes))
    if verification is not None:
        plain["verification"] = msgspec.to_builtins(verification)
    if (estimate := estimate_of_last_edit(trace, next(iter(ancestors), None))) is not None:
        plain["estimate"] = msgspec.to_builtins(estimate)
    plain = rounded(plain)
    return msgspec.json.encode(plain, order="sorted") + b"\n"


def read_document(data: bytes, *, name: str = "the document") -> TraceDocument:
    """Return the document in `data`.

    Raises ExportError that names the offending field, and for column records whose columns are
    not of equal length.
    """
    try:
        document = msgspec.json.decode(data, type=TraceDocument)
    except msgspec.MsgspecError as error:
        raise ExportError(
            f"{name} is not an emotui document.",
            why=str(error),
            todo="Export it again with `emotui export TRACE --to json`.",
        ).of_input() from error
    for trace in (document, *document.ancestors):
        for field in ("readouts", "features"):
            check_columns(getattr(trace, field), f"{name}: {field}")
        if trace.attribution is not None:
            check_columns(trace.attribution.writes, f"{name}: attribution.writes")
        if trace.lens is not None:
            _check_words(trace.lens.words, trace.run.layers, f"{name}: lens.words")
    return document


def trace_of(document: TraceDocument) -> Trace:
    """Return the trace of a document, without its ancestors."""
    return Trace(**{name: getattr(document, name) for name in Trace.__struct_fields__})


def check_columns(columns: Readouts | Features | Writes, name: str) -> None:
    """Raise ExportError, naming the field, unless all columns are of one length."""
    length = len(columns.position)
    for field in columns.__struct_fields__:
        if len(getattr(columns, field)) != length:
            raise ExportError(
                f"{name}.{field} holds {len(getattr(columns, field))} rows.",
                why=f"The other columns hold {length}.",
                todo="Export it again with `emotui export TRACE --to json`.",
            ).of_input()


def _check_words(words: LensWords, layers: int, name: str) -> None:
    size = layers * len(words.labels)
    for field, wanted in (("probability", len(words.position) * size), ("rank", size)):
        found = len(getattr(words, field))
        if found != wanted:
            raise ExportError(
                f"{name}.{field} holds {found} values.",
                why=f"{len(words.position)} positions, {layers} layers and {len(words.labels)} "
                f"labels make {wanted}.",
                todo="Export it again with `emotui export TRACE --to json`.",
            ).of_input()


def write_file(path: Path, data: bytes, *, overwrite: bool = False) -> Path:
    """Write `data` to `path` at once or not at all (mode 0600), and return the absolute path.

    Raises ExportError if the file exists (unless `overwrite`) or cannot be written.
    """
    target = path.expanduser().absolute()
    if target.is_dir():
        raise ExportError(f"{target} is a folder.", todo="Name a file.").of_input()
    if target.exists() and not overwrite:
        raise exists_already(target)
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".emotui-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise not_written(target, error) from error
    return target


def exists_already(target: Path) -> ExportError:
    """Return the error for a file that may not be overwritten."""
    return ExportError(
        f"{target} exists already; nothing was written.",
        todo="Name another file, or allow overwriting with --force.",
    ).of_input()


def not_written(target: Path, error: OSError) -> ExportError:
    """Return the error for a file that could not be written."""
    return ExportError(
        f"{target} could not be written.",
        why=error.strerror or str(error),
        todo="Name a file in a folder that exists and that you may write to.",
    ).of_input(not target.parent.is_dir())


def write_numbered(
    folder: Path, stem: str, data: bytes, *, suffix: str = "json"
) -> tuple[Path, bool]:
    """Write `data` to `STEM.SUFFIX` in a folder, never over another file.

    Returns the path, and whether the same bytes stood there already. Where another file has the
    name, a number is added to it. Raises ExportError.
    """
    for number in itertools.count(1):
        ending = "" if number == 1 else f"-{number}"
        path = folder / f"{stem}{ending}.{suffix}"
        with contextlib.suppress(OSError):
            if path.is_file() and path.read_bytes() == data:
                return path.absolute(), True
        if not path.exists() and not path.is_symlink():
            return write_file(path, data), False
    raise AssertionError("unreachable")


def write_document(
    trace: Trace,
    path: Path,
    *,
    ancestors: Iterable[Trace] = (),
    all_tokens: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write a trace and its ancestors to `path` as JSON and return the absolute path."""
    data = document_bytes(trace, ancestors=tuple(ancestors), all_tokens=all_tokens)
    return write_file(path, data, overwrite=overwrite)
