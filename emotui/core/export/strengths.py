"""The units of a trace's edits, of strength and of direction, read from the cache without torch."""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from emotui.cache.statistics import (
    activations_part,
    emotion_texts,
    emotions_part,
    statistics_key,
)
from emotui.core.edits import PromoteEdit, parse_edit
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
    stored = _statistics(trace, store, activations_part(trace.run.template, _SITES))
    return {} if stored is None else _norms_in(stored)


def promoted_directions(trace: Trace, store: Store) -> dict[tuple[str, int], tuple[float, ...]]:
    """Return, by emotion and layer, the unit directions that edits of this trace promote along.

    Those along means; the others need the probe alone. Empty where the cache does not hold them.
    """
    edits = [parse_edit(line) for line in trace.edits]
    wanted = [edit for edit in edits if isinstance(edit, PromoteEdit) and edit.along == "means"]
    known = next((probe.emotions for probe in trace.probes if probe.kind == "readout"), ())
    stored = _statistics(trace, store, emotions_part(trace.run.template)) if wanted else None
    if stored is None:
        return {}
    emotions = list(dict.fromkeys(one.emotion for one in emotion_texts()))
    length = int.from_bytes(stored[:8], "little")
    try:
        header = msgspec.json.decode(stored[8 : 8 + length], type=dict[str, msgspec.Raw])
        entry = msgspec.json.decode(header["means"], type=_Entry)
        start, end = (8 + length + offset for offset in entry.data_offsets)
        means = np.frombuffer(stored[start:end], "<f4").reshape(entry.shape).astype(np.float64)
    except (KeyError, ValueError, msgspec.DecodeError):
        return {}  # whole, but not what this version writes
    found: dict[tuple[str, int], tuple[float, ...]] = {}
    for edit in wanted:
        others = [emotions.index(n) for n in known if n in emotions and n != edit.emotion]
        for layer in edit.layers.numbers:
            own = means[layer, emotions.index(edit.emotion)]
            direction = own - means[layer, others].mean(axis=0)
            unit = direction / np.linalg.norm(direction)
            found[edit.emotion, layer] = tuple(unit.tolist())
    return found


def _statistics(trace: Trace, store: Store, part: str) -> bytes | None:
    """Return what was measured on the corpus with the model of a trace; None where it is not."""
    run = trace.run
    key = statistics_key(
        fingerprint=run.fingerprint,
        dtype=run.dtype,
        device_type=run.device.partition(":")[0],
        attention=run.attention,
        part=part,
    )
    return store.get_entry("statistics", key)


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
