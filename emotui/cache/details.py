"""Details of features kept in the cache: of a feature alone, and of it on a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from emotui.cache.findings import Finding, find, keep
from emotui.core.details import FeatureDetail
from emotui.core.protocol import FeatureRequest

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


def kept_feature(store: Store, trace: str, request: FeatureRequest) -> FeatureDetail | None:
    """Return what is known of a feature on a trace, with the corpus where that is asked for.

    None where the engine must be asked.
    """
    whole = kept_detail(store, trace, _of_trace(request, corpus=True), FeatureDetail)
    if whole is not None or request.corpus:
        return whole
    return kept_detail(store, trace, _of_trace(request, corpus=False), FeatureDetail)


def keep_feature(store: Store, trace: str, request: FeatureRequest, detail: FeatureDetail) -> None:
    """Keep what is known of a feature on a trace. CacheError where it cannot be."""
    place = _of_trace(request, corpus=detail.corpus is not None)
    keep_detail(store, trace, place, detail)


def _of_trace(request: FeatureRequest, *, corpus: bool) -> Sequence[object]:
    return ("feature", request.feature, request.sae, request.position, corpus)


def _name(what: Sequence[object]) -> str:
    return msgspec.json.encode(["detail", *what]).decode()
