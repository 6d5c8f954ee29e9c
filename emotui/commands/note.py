"""`emotui note`: what a user writes beside a trace."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from emotui.commands.common import cache_for, say
from emotui.core.text import clean


def note(
    trace: Annotated[str, typer.Argument(help="The id of a cached trace, or its beginning.")],
    text: Annotated[
        str | None, typer.Argument(help="The note; without it, notes are shown.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    cache_dir: Annotated[
        Path | None,
        typer.Option("--cache-dir", help="Where traces are kept.", envvar="EMOTUI_CACHE_DIR"),
    ] = None,
) -> None:
    """Write a note beside a trace, or show those there are."""
    from emotui.cache.notes import add_note, notes_of
    from emotui.cache.store import Store

    with cache_for(cache_dir, private=False) as root, Store.open(root) as store:
        found = store.get_trace(trace).id
        if text is not None:
            add_note(root, found, text)
            say(f"Noted beside {found}.")
        notes = notes_of(root, [found])
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(notes, order="sorted") + b"\n")
    elif text is None:
        for one in notes:
            typer.echo(f"{clean(one.time)}  {clean(one.text)}")
        if not notes:
            say("There is no note on this trace.")
