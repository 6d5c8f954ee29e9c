"""Lineage: the traces a what-if came from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emotui.core.errors import CacheError
from emotui.core.records import Trace

if TYPE_CHECKING:
    from emotui.cache.store import Store


def ancestors_of(trace: Trace, store: Store) -> list[Trace]:
    """Return the ancestors of a trace, nearest first, as far as the cache still holds them."""
    ancestors: list[Trace] = []
    seen = {trace.id}
    parent = trace.parent
    while parent is not None and parent not in seen:
        seen.add(parent)
        try:
            ancestors.append(store.get_trace(parent))
        except CacheError:
            break
        parent = ancestors[-1].parent
    return ancestors
