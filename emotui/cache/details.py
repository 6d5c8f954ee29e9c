"""Details of features kept in the cache: of a feature alone, and of it on a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from emotui.cache.findings import Finding, find, keep

if TYPE_CHECKING:
    from emotui.cache.store import Store


def kept_detail(
    store: Store, place: str, what: Sequence[object], kind: type[Finding]
) -> Finding | None:
    """Return what is kept at a place (a model's fingerprint, a trace's id); None without it."""
    found = find(store, place, _name(what), kind)
    return None if found is None else found[0]


def keep_detail(store: Store, place: str, what: Sequence[object], finding: msgspec.Struct) -> None:
    """Keep it, over what stands there. CacheError where it cannot be."""
    keep(store, place, _name(what), finding)


def _name(what: Sequence[object]) -> str:
    return msgspec.json.encode(["detail", *what]).decode()
