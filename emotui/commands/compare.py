"""`emotui compare`: how one cached trace differs from another."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emotui.commands.common import cache_for
from emotui.core.errors import UsageError
from emotui.core.records import Trace

if TYPE_CHECKING:
    from emotui.cache.store import Store


def compare(
    first: Annotated[str, typer.Argument(help="A trace id, its beginning, or a JSON file.")],
    second: Annotated[
        str | None, typer.Argument(help="Another; without it, FIRST beside its parent.")
    ] = None,
    tokens: Annotated[
        str, typer.Option("--tokens", help="`readout`, or `all` tokens in the JSON.")
    ] = "readout",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    cache_dir: Annotated[
        Path | None,
        typer.Option("--cache-dir", help="Where traces are kept.", envvar="EMOTUI_CACHE_DIR"),
    ] = None,
) -> None:
    """Tell how two traces differ: readouts, features, answers, what was written."""
    from emotui.core.difference import compare_traces
    from emotui.core.export.compare import document_bytes, lines_of

    if tokens not in ("readout", "all"):
        raise UsageError("--tokens is neither readout nor all.", todo="Use one of them.")
    with _traces(first, second, cache_dir) as (one, other):
        difference = compare_traces(one, other)
    if as_json:
        sys.stdout.buffer.write(document_bytes(difference, all_tokens=tokens == "all"))
    else:
        sys.stdout.write("\n".join(lines_of(difference)) + "\n")
    sys.stdout.flush()


@contextmanager
def _traces(
    first: str, second: str | None, cache_dir: Path | None
) -> Iterator[tuple[Trace, Trace]]:
    """Yield the two traces; of one alone, its parent first."""
    from emotui.cache.store import Store

    with cache_for(cache_dir, private=False) as root, Store.open(root) as store:
        one = _trace(first, store)
        if second is not None:
            yield one, _trace(second, store)
        elif one.parent is None:
            raise UsageError(
                f"{one.id} has no parent to compare it with.", todo="Name a second trace."
            )
        else:
            yield store.get_trace(one.parent), one


def _trace(name: str, store: Store) -> Trace:
    from emotui.core.export.json import read_document, trace_of

    if Path(name).is_file():
        return trace_of(read_document(Path(name).read_bytes(), name=name))
    return store.get_trace(name)
