"""Findings kept beside a trace, by its id: read and written without torch.

What they were made of may stand beside them as arrays, so that cancelled work goes on later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from emotui.cache.keys import derived_key
from emotui.core.findings import Verification

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from emotui.cache.store import Store
    from emotui.core.protocol import VerifyRequest

VERSION = 2
"""Raised whenever the same question would be answered by other numbers."""

_RECORD = "record"

Finding = TypeVar("Finding", bound=msgspec.Struct)
Arrays = dict[str, "np.ndarray[Any, Any]"]


def find(store: Store, trace: str, what: str, kind: type[Finding]) -> tuple[Finding, Arrays] | None:
    """Return a finding of the trace with this id, and its arrays; None where there is none.

    `what` names the question. One of another version is none.
    """
    payload = store.get_entry("readouts", _key(trace, what))
    if payload is None:
        return None
    from safetensors.numpy import load

    arrays = load(payload)
    packed = arrays.pop(_RECORD, None)
    if packed is None:
        return None
    try:
        return msgspec.msgpack.decode(packed.tobytes(), type=kind), arrays
    except msgspec.DecodeError:
        return None  # whole, but not what this version writes: found out again


def keep(
    store: Store,
    trace: str,
    what: str,
    finding: msgspec.Struct,
    arrays: Mapping[str, np.ndarray[Any, Any]] | None = None,
) -> None:
    """Keep a finding and its arrays, over what stands there. CacheError where it cannot be."""
    import numpy as np
    from safetensors.numpy import save

    packed = np.frombuffer(msgspec.msgpack.encode(finding), dtype=np.uint8)
    store.put_entry("readouts", _key(trace, what), save({**(arrays or {}), _RECORD: packed}))


def _key(trace: str, what: str) -> str:
    return derived_key(trace, f"finding:{VERSION}:{what}")


VERIFICATION = "verification"


def verification_of(store: Store, trace: str) -> Verification | None:
    """Return what is kept of the trace's last edit on other texts; it may be of fewer than asked.

    A trace has one: another question to it takes the place of the one before.
    """
    found = find(store, trace, VERIFICATION, Verification)
    return None if found is None else found[0]


def answers(kept: Verification, request: VerifyRequest) -> bool:
    """Return whether what is kept answers a request whole."""
    return same_question(kept, request) and kept.complete and kept.asked == request.texts


def same_question(kept: Verification, request: VerifyRequest) -> bool:
    """Return whether what is kept is of the same metric and draws, whatever the count."""
    asked = request.metric or kept.metric
    return (kept.metric, kept.seed) == (asked, request.inspect.seed)


def kept_verification(store: Store, trace: str, request: VerifyRequest) -> Verification | None:
    """Return what answers a request whole; None where the engine must be asked."""
    found = verification_of(store, trace)
    return found if found is not None and answers(found, request) else None
