"""Comparing two traces: which, read from the cache, shown."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from emotui.core.difference import Difference, compare_traces
from emotui.core.errors import EmotuiError
from emotui.ui.exports import export_folder
from emotui.ui.messages import Fetched
from emotui.ui.state import Other

if TYPE_CHECKING:
    from collections.abc import Callable

    from emotui.cache.store import Store
    from emotui.ui.screens.explore import ExploreScreen


def compare(screen: ExploreScreen, first: str, second: str, tell: Callable[[str], object]) -> None:
    """Read two cached traces, compare them and show it; `tell` says what goes wrong."""

    def work(store: Store) -> None:
        difference = compare_traces(store.get_trace(first), store.get_trace(second))
        screen.post_message(Fetched(partial(_show, screen, difference)))

    def failed(error: EmotuiError) -> None:
        screen.post_message(Fetched(partial(tell, f"{error.what} {error.todo}".strip())))

    screen.workbench.with_store(work, failed)


def _show(screen: ExploreScreen, difference: Difference) -> None:
    from emotui.ui.screens.compare import CompareScreen, start_at

    state, start = screen.state, None
    readings = state.readings
    shown = None if readings is None else readings.trace.id
    if difference.aligned and shown in (difference.first.id, difference.second.id):
        start = start_at(readings, position=state.position, emotion=state.emotion, site=state.site)
    opened = CompareScreen(
        difference, start=start, export=lambda: _export(screen, difference, opened.post_message)
    )
    screen.app.push_screen(opened)
    for here, other in (
        (difference.first, difference.second),
        (difference.second, difference.first),
    ):
        if here.id == shown and other.raw != here.raw:
            screen.update(replace(screen.state, other=Other(other.id, other.raw)))


def _export(screen: ExploreScreen, difference: Difference, post: Callable[..., object]) -> None:
    from emotui.core.export.compare import document_bytes
    from emotui.core.export.json import write_numbered
    from emotui.ui.screens.compare import Told

    def write(_store: Store) -> None:
        data = document_bytes(difference, all_tokens=True)
        stem = f"emotui-compare-{hashlib.sha256(data).hexdigest()[:16]}"
        path, already = write_numbered(export_folder(), stem, data)
        post(Told(f"{'Already there' if already else 'Wrote'}: {path}"))

    def failed(error: EmotuiError) -> None:
        post(Told(error.what))

    screen.workbench.with_store(write, failed)
