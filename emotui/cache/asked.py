"""Where the answers to questions of consistency and of emotion words are kept: beside the trace."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from emotui.cache.findings import find, keep
from emotui.cache.keys import known_request_key, trace_id
from emotui.core.emotion_terms import TextTerms, bundled_digest
from emotui.core.errors import UsageError
from emotui.core.forms import TextConsistency
from emotui.core.protocol import ConsistencyRequest, InspectRequest, TermsRequest
from emotui.core.text import clean

if TYPE_CHECKING:
    from emotui.cache.store import Store


_CONSISTENCY = "consistency-whole"
"""What is kept; renamed when words with fragments for first tokens began to be compared whole."""


def consistency_request(inspect: InspectRequest) -> ConsistencyRequest:
    """Return the question without what plays no part: edits, SAEs, attribution, generation."""
    return ConsistencyRequest(msgspec.structs.replace(_bare(inspect), edits=(), saes=()))


def terms_request(inspect: InspectRequest, terms: Path | None = None) -> TermsRequest:
    """Return the question with the hash of the file of words; SAEs stay only where edits are.

    UsageError where the file cannot be read.
    """
    if not inspect.edits:
        inspect = msgspec.structs.replace(inspect, saes=())
    if terms is None:
        return TermsRequest(_bare(inspect))
    path = terms.expanduser().absolute()
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UsageError(
            f"The table of terms {clean(path.name)} could not be read.", why=f"{error.strerror}."
        ) from error
    return TermsRequest(_bare(inspect), str(path), digest)


def _bare(inspect: InspectRequest) -> InspectRequest:
    return msgspec.structs.replace(
        inspect, selected=False, all_sites=False, metric="none", generation=None
    )


def known_consistency(
    request: ConsistencyRequest, store: Store, *, fingerprint: str | None = None
) -> TextConsistency | None:
    """Return the answer where it is kept; None where the engine must be asked."""
    key = known_request_key(request.inspect, store, fingerprint=fingerprint)
    found = None if key is None else find(store, trace_id(key), _CONSISTENCY, TextConsistency)
    return None if found is None else found[0]


def keep_consistency(
    request: ConsistencyRequest, store: Store, fingerprint: str, done: TextConsistency
) -> None:
    """Keep an answer."""
    key = known_request_key(request.inspect, store, fingerprint=fingerprint)
    if key is not None:
        keep(store, trace_id(key), _CONSISTENCY, done)


def known_terms(
    request: TermsRequest, store: Store, *, fingerprint: str | None = None
) -> TextTerms | None:
    """Return the answer where it is kept; None where the engine must be asked."""
    key = known_request_key(request.inspect, store, fingerprint=fingerprint)
    found = None if key is None else find(store, trace_id(key), _what(request), TextTerms)
    return None if found is None else found[0]


def keep_terms(request: TermsRequest, store: Store, fingerprint: str, done: TextTerms) -> None:
    """Keep an answer."""
    key = known_request_key(request.inspect, store, fingerprint=fingerprint)
    if key is not None:
        keep(store, trace_id(key), _what(request), done)


def _what(request: TermsRequest) -> str:
    return f"terms:{request.digest or bundled_digest()}"
