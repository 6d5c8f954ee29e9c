"""Keys: what a trace and its parts are found by, computed without torch or a tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import msgspec

from emotui.cache.fingerprints import (
    Memo,
    fingerprint_of_commit,
    hub_commit,
    known_fingerprint,
    model_fingerprint_of_folder,
    sae_identity,
)
from emotui.core.emotions import LABEL_SETS
from emotui.core.errors import UsageError
from emotui.core.protocol import InspectRequest, ModelSpec
from emotui.core.records import SCHEMA, SCHEMA_VERSION
from emotui.core.text import clean, template_named

__all__ = [
    "Memo",
    "content_key",
    "derived_key",
    "fingerprint_of_commit",
    "hub_commit",
    "known_fingerprint",
    "known_request_key",
    "model_fingerprint_of_folder",
    "request_key",
    "sae_identities",
    "sae_identity",
    "trace_id",
]

NUMBERS_VERSION = 3
"""Raised whenever the same request would give other numbers, so that old entries are not found."""

TRACE_ID_DIGITS = 16


def _hash(kind: str, value: dict[str, object]) -> str:
    canonical = json.dumps(
        {"kind": kind, "numbers": NUMBERS_VERSION, **value},
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=True,
        allow_nan=False,
    )
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def request_key(
    request: InspectRequest, fingerprint: str, *, sae_ids: Sequence[str] | None = None
) -> str:
    """Return the key, 64 hex digits, of what `request` asks of the model with `fingerprint`.

    `sae_ids` are the identities of `request.saes` (`sae_identities`); None takes the sources as
    they are written. The cache folder and `offline` change no number and are no
    part of the key. Raises UsageError for an unknown template or label set.
    """
    labels = LABEL_SETS.get(request.label_set)
    if labels is None:
        raise UsageError(
            f"There is no label set called {clean(request.label_set)!r}.",
            todo=f"Use one of: {', '.join(LABEL_SETS)}.",
        )
    return _hash(
        "request",
        {
            "schema": [SCHEMA, SCHEMA_VERSION],
            "fingerprint": fingerprint,
            "text": request.text,
            "template": msgspec.to_builtins(template_named(request.template)),
            "label_set": [request.label_set, *labels],
            "dtype": request.spec.dtype,
            "device": _device_of(request.spec),
            "saes": list(request.saes if sae_ids is None else sae_ids),
            "probes": list(request.probes),
            "edits": list(request.edits),
            "selected": request.selected,
            "all_sites": request.all_sites,
            "metric": request.metric,
            "generation": msgspec.to_builtins(request.generation),
            "seed": request.seed,
        },
    )


def _device_of(spec: ModelSpec) -> str:
    return spec.device if spec.device_map is None else f"{spec.device} map {spec.device_map}"


def sae_identities(
    sources: Sequence[str], memo: Memo, *, fingerprint: str | None = None
) -> tuple[str, ...]:
    """Return the identities of SAE sources, local folders hashed however large they are.

    With the `fingerprint` of a model, those of the labels in force for its features are part of
    them: a trace shows labels.
    """
    return tuple(
        _labelled(source, sae_identity(source, memo) or source, memo, fingerprint)
        for source in sources
    )


def _labelled(source: str, identity: str, memo: Memo, fingerprint: str | None) -> str:
    state = memo.labels_state(source, identity, fingerprint) if fingerprint else ""
    return f"{identity}+labels:{state}" if state else identity


def known_request_key(
    request: InspectRequest, memo: Memo, *, fingerprint: str | None = None
) -> str | None:
    """Return the key of a request where model and SAEs can be told at once, else None.

    For the terminal process: it hashes little, and opens a copied cache without the weights.
    `fingerprint` is the model's where the caller has it. Raises what `known_fingerprint` and
    `request_key` raise.
    """
    fingerprint = fingerprint or known_fingerprint(request.spec, memo)
    if fingerprint is None:
        return None
    identities = [sae_identity(source, memo, quick=True) for source in request.saes]
    known = [
        _labelled(source, identity, memo, fingerprint)
        for source, identity in zip(request.saes, identities, strict=True)
        if identity is not None
    ]
    if len(known) < len(identities):
        return None
    return request_key(request, fingerprint, sae_ids=known)


def trace_id(key: str) -> str:
    """Return the id of the trace a request key leads to: its first 16 hex digits."""
    return key[:TRACE_ID_DIGITS]


def content_key(
    *,
    fingerprint: str,
    token_ids: Sequence[int],
    dtype: str,
    device_type: str,
    attention: str,
    sites: Sequence[str],
) -> str:
    """Return the key, 64 hex digits, of what one forward pass kept.

    `token_ids` are those of the whole prompt, BOS included; `dtype`, `device_type` (`cpu`, `cuda`)
    and `attention` (`eager`, `sdpa`) are the resolved ones; `sites` says what was kept where, in
    the engine's own words.
    """
    return _hash(
        "content",
        {
            "fingerprint": fingerprint,
            "token_ids": [int(token) for token in token_ids],
            "dtype": dtype,
            "device_type": device_type,
            "attention": attention,
            "sites": list(sites),
        },
    )


def derived_key(activations_key: str, part: str) -> str:
    """Return the key of features (`part`: an SAE's id) or readouts (`part`: a probe's id)."""
    return _hash("derived", {"activations": activations_key, "part": part})
