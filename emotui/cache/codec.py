"""A trace as one safetensors file and back, with numpy alone.

Columns are float32 or int32 arrays, strings codes into tables; everything else, and the tables,
is JSON in the metadata. None is NaN in a float column and -1 in a character span.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from emotui.cache.sealed import Damaged
from emotui.core.records import (
    Features,
    Lens,
    LensWords,
    Readouts,
    TextRecord,
    Token,
    Trace,
    Writes,
)

if TYPE_CHECKING:
    import numpy as np

_REST = "emotui_trace"
_NO_SPAN = -1


class _Rest(msgspec.Struct, frozen=True):
    """What of a trace is not a column."""

    trace: Trace
    """With empty columns and no tokens."""
    tables: dict[str, tuple[str, ...]]
    """For each string column, the strings its codes stand for."""


class _Columns:
    """Collects columns of a record as arrays."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray[Any, Any]] = {}
        self.tables: dict[str, tuple[str, ...]] = {}

    def floats(self, name: str, values: Iterable[float | None]) -> None:
        import numpy as np

        numbers = [float("nan") if value is None else value for value in values]
        self.arrays[name] = np.asarray(numbers, dtype=np.float32)

    def integers(self, name: str, values: Iterable[int]) -> None:
        import numpy as np

        self.arrays[name] = np.asarray(list(values), dtype=np.int32)

    def strings(self, name: str, values: Sequence[str]) -> None:
        codes: dict[str, int] = {}
        self.integers(name, [codes.setdefault(value, len(codes)) for value in values])
        self.tables[name] = tuple(codes)


class _Reader:
    """Gives the columns of a file back as tuples."""

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray[Any, Any]],
        tables: Mapping[str, tuple[str, ...]],
    ) -> None:
        self._arrays = arrays
        self._tables = tables

    def numbers(self, name: str) -> tuple[Any, ...]:
        return tuple(self._arrays[name].tolist())

    def optional(self, name: str) -> tuple[float | None, ...]:
        # NaN is the one float that differs from itself.
        return tuple(None if value != value else value for value in self._arrays[name].tolist())

    def strings(self, name: str) -> tuple[Any, ...]:
        table = self._tables[name]
        return tuple(table[code] for code in self._arrays[name].tolist())


def _write_tokens(columns: _Columns, tokens: Sequence[Token]) -> None:
    columns.integers("token.id", [token.id for token in tokens])
    columns.strings("token.string", [token.string for token in tokens])
    for side in ("start", "end"):
        places = [getattr(token, side) for token in tokens]
        columns.integers(f"token.{side}", [_NO_SPAN if at is None else at for at in places])
    columns.integers("token.special", [token.special for token in tokens])
    columns.strings("token.part", [token.part for token in tokens])


def _read_tokens(reader: _Reader) -> tuple[Token, ...]:
    return tuple(
        Token(
            id=number,
            string=string,
            start=None if start == _NO_SPAN else start,
            end=None if end == _NO_SPAN else end,
            special=bool(special),
            part=part,
        )
        for number, string, start, end, special, part in zip(
            reader.numbers("token.id"),
            reader.strings("token.string"),
            reader.numbers("token.start"),
            reader.numbers("token.end"),
            reader.numbers("token.special"),
            reader.strings("token.part"),
            strict=True,
        )
    )


def _write_readouts(columns: _Columns, readouts: Readouts) -> None:
    for name in ("probe", "site", "emotion", "trust", "mark"):
        columns.strings(f"readouts.{name}", getattr(readouts, name))
    for name in ("layer", "position"):
        columns.integers(f"readouts.{name}", getattr(readouts, name))
    for name in ("value", "z"):
        columns.floats(f"readouts.{name}", getattr(readouts, name))


def _read_readouts(reader: _Reader) -> Readouts:
    return Readouts(
        probe=reader.strings("readouts.probe"),
        site=reader.strings("readouts.site"),
        layer=reader.numbers("readouts.layer"),
        position=reader.numbers("readouts.position"),
        emotion=reader.strings("readouts.emotion"),
        value=reader.numbers("readouts.value"),
        z=reader.optional("readouts.z"),
        trust=reader.strings("readouts.trust"),
        mark=reader.strings("readouts.mark"),
    )


def _write_features(columns: _Columns, features: Features) -> None:
    for name in ("sae", "site", "label"):
        columns.strings(f"features.{name}", getattr(features, name))
    for name in ("layer", "index", "position"):
        columns.integers(f"features.{name}", getattr(features, name))
    for name in ("activation", "attribution"):
        columns.floats(f"features.{name}", getattr(features, name))


def _read_features(reader: _Reader) -> Features:
    return Features(
        sae=reader.strings("features.sae"),
        site=reader.strings("features.site"),
        layer=reader.numbers("features.layer"),
        index=reader.numbers("features.index"),
        position=reader.numbers("features.position"),
        activation=reader.numbers("features.activation"),
        attribution=reader.optional("features.attribution"),
        label=reader.strings("features.label"),
    )


def _write_lens(columns: _Columns, lens: Lens) -> None:
    for name in ("layer", "rank"):
        columns.integers(f"lens.{name}", getattr(lens, name))
    columns.strings("lens.token", lens.token)
    columns.floats("lens.probability", lens.probability)
    for label, values in lens.answers.items():
        columns.floats(f"lens.answers.{label}", values)
    if lens.words.labels:
        columns.integers("lens.words.position", lens.words.position)
        columns.floats("lens.words.probability", lens.words.probability)
        columns.integers("lens.words.rank", lens.words.rank)


def _read_lens(reader: _Reader, bare: Lens) -> Lens:
    words = bare.words
    if words.labels:
        words = LensWords(
            labels=words.labels,
            position=reader.numbers("lens.words.position"),
            probability=reader.numbers("lens.words.probability"),
            rank=reader.numbers("lens.words.rank"),
        )
    return Lens(
        layer=reader.numbers("lens.layer"),
        rank=reader.numbers("lens.rank"),
        token=reader.strings("lens.token"),
        probability=reader.numbers("lens.probability"),
        answers={label: reader.numbers(f"lens.answers.{label}") for label in bare.answers},
        words=words,
    )


def _write_writes(columns: _Columns, writes: Writes) -> None:
    columns.strings("writes.site", writes.site)
    for name in ("layer", "position"):
        columns.integers(f"writes.{name}", getattr(writes, name))
    columns.floats("writes.value", writes.value)


def _read_writes(reader: _Reader) -> Writes:
    return Writes(
        site=reader.strings("writes.site"),
        layer=reader.numbers("writes.layer"),
        position=reader.numbers("writes.position"),
        value=reader.numbers("writes.value"),
    )


def encode_trace(trace: Trace) -> tuple[bytes, dict[str, str]]:
    """Return a trace as safetensors bytes and the metadata to seal them with.

    Raises OverflowError where an integer is beyond 32 bits, and ValueError where a string holds a
    lone surrogate or a number outside the columns is not finite.
    """
    from safetensors.numpy import save

    columns = _Columns()
    _write_tokens(columns, trace.text.tokens)
    _write_readouts(columns, trace.readouts)
    _write_features(columns, trace.features)
    lens = None
    if trace.lens is not None:
        _write_lens(columns, trace.lens)
        lens = Lens(
            answers=dict.fromkeys(trace.lens.answers, ()),
            words=LensWords(labels=trace.lens.words.labels),
        )
    attribution = trace.attribution
    if attribution is not None:
        _write_writes(columns, attribution.writes)
        attribution = msgspec.structs.replace(attribution, writes=Writes())
    bare = msgspec.structs.replace(
        trace,
        text=msgspec.structs.replace(trace.text, tokens=()),
        readouts=Readouts(),
        features=Features(),
        lens=lens,
        attribution=attribution,
    )
    rest = msgspec.json.encode(_Rest(bare, columns.tables)).decode()
    # JSON has no NaN: what would not come back is refused here, not found damaged later.
    msgspec.json.decode(rest, type=_Rest)
    return save(columns.arrays), {_REST: rest}


def decode_trace(payload: bytes, metadata: Mapping[str, str]) -> Trace:
    """Return the trace of a sealed file whose checksum was found right.

    Raises Damaged where the file is sealed but is not a trace of this schema.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        rest = msgspec.json.decode(metadata[_REST], type=_Rest)
        reader = _Reader(load(payload), rest.tables)
        trace = rest.trace
        text: TextRecord = msgspec.structs.replace(trace.text, tokens=_read_tokens(reader))
        lens, attribution = trace.lens, trace.attribution
        if attribution is not None:
            attribution = msgspec.structs.replace(attribution, writes=_read_writes(reader))
        return msgspec.structs.replace(
            trace,
            text=text,
            readouts=_read_readouts(reader),
            features=_read_features(reader),
            lens=None if lens is None else _read_lens(reader, lens),
            attribution=attribution,
        )
    except (KeyError, IndexError, ValueError, SafetensorError, msgspec.DecodeError) as error:
        raise Damaged("not a trace of this version") from error
