"""Where an emotion of a text is, as it is kept: found by the request, without model or torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from emotui.cache.findings import find, keep
from emotui.cache.keys import derived_key, known_fingerprint, request_key
from emotui.core.protocol import InspectRequest, WhereRequest
from emotui.core.records import Where

if TYPE_CHECKING:
    from emotui.cache.store import Store

_WHAT = "where"


def where_request(inspect: InspectRequest, emotion: str, neutral: str | None) -> WhereRequest:
    """Return the question where an emotion is, of the text that `inspect` would read.

    `neutral` is the text without the emotion; None takes neutral texts of the corpus.
    """
    return WhereRequest(
        spec=inspect.spec,
        text=inspect.text,
        cache_dir=inspect.cache_dir,
        emotion=emotion,
        neutral=neutral,
        template=inspect.template,
        label_set=inspect.label_set,
        probes=inspect.probes,
    )


def kept_where(
    store: Store, request: WhereRequest, *, fingerprint: str | None = None
) -> Where | None:
    """Return what was told before; None where it was not, or is not known which weights these are.

    `fingerprint` is the model's where the caller has it. UsageError for an unknown template or
    label set.
    """
    fingerprint = fingerprint or known_fingerprint(request.spec, store)
    if fingerprint is None:
        return None
    found = find(store, _key(request, fingerprint), _WHAT, Where)
    return None if found is None else found[0]


def keep_where(store: Store, request: WhereRequest, where: Where, *, fingerprint: str) -> None:
    """Keep the answer to a request."""
    keep(store, _key(request, fingerprint), _WHAT, where)


def _key(request: WhereRequest, fingerprint: str) -> str:
    read = InspectRequest(
        spec=request.spec,
        text=request.text,
        cache_dir=request.cache_dir,
        template=request.template,
        label_set=request.label_set,
        probes=request.probes,
    )
    said = msgspec.json.encode([request.emotion, request.neutral]).decode()
    return derived_key(request_key(read, fingerprint), f"where:{said}")
