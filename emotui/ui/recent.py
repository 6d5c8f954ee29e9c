"""Readings of traces as they are shown: each beside those of the trace it came from."""

from __future__ import annotations

import contextlib

from emotui.cache.findings import verification_of
from emotui.cache.store import Store
from emotui.core.errors import EmotuiError
from emotui.core.findings import Verification
from emotui.core.records import Trace
from emotui.ui.readings import Readings

_KEPT = 4


class RecentReadings:
    """The latest readings by trace id: the parents of those to come. Used on one thread."""

    def __init__(self) -> None:
        self._kept: dict[str, Readings] = {}

    def of(self, trace: Trace, store: Store) -> Readings:
        """Return the readings of a trace, beside those of its parent where the cache has it."""
        parent = None
        if trace.parent is not None:
            parent = self._kept.get(trace.parent)
            if parent is None:
                with contextlib.suppress(EmotuiError):
                    parent = Readings(store.get_trace(trace.parent))
        readings = Readings(trace, _verification(trace, store), parent=parent)
        self._kept.pop(trace.id, None)
        self._kept[trace.id] = readings.alone()  # or a whole line of traces would be held
        while len(self._kept) > _KEPT:
            self._kept.pop(next(iter(self._kept)))
        return readings


def _verification(trace: Trace, store: Store) -> Verification | None:
    if trace.edits:
        with contextlib.suppress(EmotuiError):
            return verification_of(store, trace.id)
    return None
