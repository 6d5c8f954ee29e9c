"""The question of a text without its emotion words: its form, and where its answer is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from emotui.cache.findings import find, keep
from emotui.cache.keys import known_request_key, request_key, trace_id
from emotui.core.errors import UsageError
from emotui.core.findings import WithoutWords
from emotui.core.wording import emotion_words

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.protocol import WithoutRequest

_VERSION = 2
"""Of the numbers: what was kept with another is asked anew."""


def plain(request: WithoutRequest) -> WithoutRequest:
    """Return the request without what plays no part: edits, SAEs, attribution, generation.

    UsageError for a placeholder that is empty.
    """
    if not request.placeholder.strip():
        raise UsageError(
            "The placeholder is empty.", todo="Name a word, such as --placeholder something."
        )
    bare = msgspec.structs.replace(
        request.inspect,
        edits=(),
        selected=False,
        saes=(),
        all_sites=False,
        metric="none",
        generation=None,
    )
    return msgspec.structs.replace(request, inspect=bare)


def known_without(
    request: WithoutRequest, store: Store, *, fingerprint: str | None = None
) -> WithoutWords | None:
    """Return the answer where it can be told at once; None where the engine must be asked.

    `fingerprint` is the model's where the caller has it.
    """
    request = plain(request)
    key = known_request_key(request.inspect, store, fingerprint=fingerprint)
    found = None if key is None else find(store, trace_id(key), _what(request), WithoutWords)
    return None if found is None else found[0]


def kept_without(request: WithoutRequest, store: Store, fingerprint: str) -> WithoutWords | None:
    """Return the answer to a plain request where it is kept; None where it is not."""
    found = find(store, _trace(request, fingerprint), _what(request), WithoutWords)
    return None if found is None else found[0]


def keep_without(
    request: WithoutRequest, store: Store, fingerprint: str, done: WithoutWords
) -> None:
    """Keep the answer to a plain request."""
    keep(store, _trace(request, fingerprint), _what(request), done)


def _trace(request: WithoutRequest, fingerprint: str) -> str:
    return trace_id(request_key(request.inspect, fingerprint, sae_ids=()))


def _what(request: WithoutRequest) -> str:
    """Return the question's name; the words are part of it, as the list of them grows."""
    words = [word.text for word in emotion_words(request.inspect.text)]
    question = ["without", _VERSION, request.emotion, request.placeholder, words]
    return msgspec.json.encode(question).decode()
