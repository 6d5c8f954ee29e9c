"""Records as entries of the cache: packed into one array of bytes, and read back."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec
import numpy as np
from safetensors.numpy import load as arrays_from_bytes
from safetensors.numpy import save as arrays_to_bytes

if TYPE_CHECKING:
    from emotui.cache.layout import EntryKind
    from emotui.cache.store import Store

_NAME = "reading"

Record = TypeVar("Record", bound=msgspec.Struct)


def kept_record(
    store: Store, key: str, record: type[Record], *, kind: EntryKind = "readouts"
) -> Record | None:
    """Return the record under a key of 64 hex digits; None without one of this version."""
    payload = store.get_entry(kind, key)
    packed = None if payload is None else arrays_from_bytes(payload).get(_NAME)
    if packed is None:
        return None
    try:
        return msgspec.msgpack.decode(packed.tobytes(), type=record)
    except msgspec.DecodeError:
        return None  # whole, but not what this version writes: computed again


def keep_record(
    store: Store, key: str, record: msgspec.Struct, *, kind: EntryKind = "readouts"
) -> None:
    """Keep a record under a key of 64 hex digits, over what stands there."""
    # By numpy: safetensors.torch makes a ctypes type for each length it saves, and keeps it.
    packed = np.frombuffer(msgspec.msgpack.encode(record), dtype=np.uint8)
    store.put_entry(kind, key, arrays_to_bytes({_NAME: packed}))
