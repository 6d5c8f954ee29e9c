"""The unit of strength of a trace's edits, read from the cache without torch."""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING

import msgspec

from emotui.cache.statistics import activations_part, statistics_key
from emotui.core.records import EMBEDDING_LAYER, Site, Trace

if TYPE_CHECKING:
    from emotui.cache.store import Store

_SITES: tuple[Site, ...] = ("resid", "attn", "mlp")


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def mean_norms(trace: Trace, store: Store) -> dict[tuple[Site, int], float]:
    """Return, by site and layer, the corpus mean of ||h|| that edits of this trace are scaled by.

    Empty where the cache does not hold the corpus statistics of the trace's model and template.
    """
    run = trace.run
    key = statistics_key(
        fingerprint=run.fingerprint,
        dtype=run.dtype,
        device_type=run.device.partition(":")[0],
        attention=run.attention,
        part=activations_part(run.template, _SITES),
    )
    stored = store.get_entry("statistics", key)
    return {} if stored is None else _norms_in(stored)


def _norms_in(payload: bytes) -> dict[tuple[Site, int], float]:
    """Return the norms over tokens of texts in a safetensors document of corpus statistics."""
    length = int.from_bytes(payload[:8], "little")
    try:
        header = msgspec.json.decode(payload[8 : 8 + length], type=dict[str, msgspec.Raw])
        norms: dict[tuple[Site, int], float] = {}
        for site in _SITES:
            entry = msgspec.json.decode(header[f"norm:{site}.text"], type=_Entry)
            start, end = (8 + length + offset for offset in entry.data_offsets)
            if entry.dtype != "F32":
                return {}
            values = struct.unpack(f"<{math.prod(entry.shape)}f", payload[start:end])
            lowest = EMBEDDING_LAYER if site == "resid" else 0
            norms |= {(site, layer): value for layer, value in enumerate(values, start=lowest)}
    except (KeyError, struct.error, msgspec.DecodeError):
        return {}  # whole, but not what this version writes
    return norms
