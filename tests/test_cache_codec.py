"""A trace survives its file; a sealed file shows every change."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load, save
from support_cache import key_of, make_trace, payload_of

from emotui.cache import codec, sealed
from emotui.core.records import (
    Answer,
    Attribution,
    Control,
    Effect,
    Features,
    Generation,
    Intervention,
    Lens,
    Readouts,
    Run,
    SaeReading,
    TextRecord,
    Token,
    Trace,
    Writes,
    Written,
    WrittenReadings,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
SINGLE = st.floats(width=32, allow_nan=False)
DOUBLE = st.floats(allow_nan=False, allow_infinity=False)
INTEGER = st.integers(-(2**31), 2**31 - 1)
PLACE = st.none() | st.integers(0, 10_000)
SITE = st.sampled_from(["resid", "attn", "mlp"])


def columns(record: Any, size: int, /, **cells: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Build a record of columns of one length."""
    drawn = {
        name: st.lists(s, min_size=size, max_size=size).map(tuple) for name, s in cells.items()
    }
    return st.builds(record, **drawn)


def of_any_size(record: Any, /, **cells: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 6).flatmap(lambda size: columns(record, size, **cells))


tokens = st.builds(
    Token,
    id=st.integers(0, 300_000),
    string=TEXT,
    start=PLACE,
    end=PLACE,
    special=st.booleans(),
    part=st.sampled_from(["special", "before", "text", "after"]),
)
readouts = of_any_size(
    Readouts,
    probe=TEXT,
    site=SITE,
    layer=st.integers(-1, 100),
    position=st.integers(0, 9999),
    emotion=TEXT,
    value=SINGLE,
    z=st.none() | SINGLE,
    trust=st.sampled_from(["trusted", "lexical", "untrusted"]),
    mark=st.sampled_from(["", "outside", "by_construction"]),
)
features = of_any_size(
    Features,
    sae=TEXT,
    site=SITE,
    layer=st.integers(0, 100),
    index=INTEGER,
    position=INTEGER,
    activation=SINGLE,
    attribution=st.none() | SINGLE,
    label=TEXT,
)
lenses = st.builds(
    lambda lens, answers: msgspec.structs.replace(lens, answers=answers),
    of_any_size(
        Lens, layer=st.integers(0, 99), rank=st.integers(0, 9), token=TEXT, probability=SINGLE
    ),
    st.dictionaries(TEXT, st.lists(SINGLE, max_size=4).map(tuple), max_size=3),
)
generations = st.builds(
    Generation,
    new_tokens=INTEGER,
    temperature=DOUBLE,
    samples=st.lists(
        st.builds(
            Written,
            text=TEXT,
            tokens=st.lists(INTEGER, max_size=3).map(tuple),
            seed=INTEGER,
            fired=INTEGER,
            answer=st.none(),
            readings=of_any_size(
                WrittenReadings,
                how=st.sampled_from(["while_written", "read_again"]),
                probe=TEXT,
                kind=st.sampled_from(["readout", "token"]),
                layer=st.integers(-1, 99),
                emotion=TEXT,
                value=DOUBLE,
                z=st.none() | DOUBLE,
            ),
        ),
        max_size=2,
    ).map(tuple),
)
attributions = st.builds(
    Attribution,
    metric=TEXT,
    value=st.none() | DOUBLE,
    note=TEXT,
    writes=of_any_size(
        Writes, site=SITE, layer=st.integers(-1, 99), position=st.integers(0, 9999), value=SINGLE
    ),
)
TUPLES = st.lists(DOUBLE, max_size=3).map(tuple)
traces = st.builds(
    Trace,
    id=TEXT,
    parent=st.none() | TEXT,
    run=st.builds(Run, model=TEXT, packages=st.dictionaries(TEXT, TEXT, max_size=2)),
    text=st.builds(TextRecord, raw=TEXT, tokens=st.lists(tokens, max_size=5).map(tuple)),
    saes=st.lists(
        st.builds(
            SaeReading,
            sae=TEXT,
            site=SITE,
            variance_explained=st.none() | DOUBLE,
            mean_active=DOUBLE,
        ),
        max_size=2,
    ).map(tuple),
    readouts=readouts,
    features=features,
    answer=st.none()
    | st.builds(
        Answer,
        labels=st.dictionaries(TEXT, DOUBLE, max_size=3),
        rule=st.sampled_from(["first_token", "whole_label"]),
    ),
    lens=st.none() | lenses,
    generation=st.none() | generations,
    attribution=st.none() | attributions,
    edits=st.lists(TEXT, max_size=3).map(tuple),
    intervention=st.none() | st.builds(Intervention, kl=DOUBLE, delta_norm=DOUBLE),
    effects=st.lists(
        st.builds(
            Effect,
            metric=TEXT,
            clean=DOUBLE,
            before=DOUBLE,
            after=DOUBLE,
            delta=DOUBLE,
            noise=DOUBLE,
            controls=st.lists(
                st.builds(
                    Control,
                    name=st.just("random_directions"),
                    deltas=TUPLES,
                    rank=st.none() | st.integers(1, 9),
                ),
                max_size=2,
            ).map(tuple),
        ),
        max_size=2,
    ).map(tuple),
)


def through_a_file(trace: Trace) -> Trace:
    payload, metadata = codec.encode_trace(trace)
    content = sealed.seal(payload, metadata)
    return codec.decode_trace(content, sealed.unseal(content))


@settings(max_examples=150, deadline=None)
@given(traces)
def test_a_trace_comes_back_as_it_was(trace: Trace) -> None:
    assert through_a_file(trace) == trace


def test_floats_come_back_as_float32_and_nan_in_z_as_none() -> None:
    trace = make_trace(key_of("x"))
    third = msgspec.structs.replace(
        trace.readouts,
        value=(1 / 3, *trace.readouts.value[1:]),
        z=(math.nan, *trace.readouts.z[1:]),
    )
    back = through_a_file(msgspec.structs.replace(trace, readouts=third)).readouts
    assert back.value[0] == float(np.float32(1 / 3))
    assert back.z[0] is None


def test_what_json_cannot_hold_is_refused_when_written() -> None:
    trace = make_trace(key_of("x"))
    assert trace.answer is not None
    answer = msgspec.structs.replace(trace.answer, labels={"joy": math.nan})
    with pytest.raises(ValueError, match="float"):
        codec.encode_trace(msgspec.structs.replace(trace, answer=answer))
    surrogate = msgspec.structs.replace(trace.text, raw="\ud800")
    with pytest.raises(ValueError, match="surrogate"):
        codec.encode_trace(msgspec.structs.replace(trace, text=surrogate))


def test_a_trace_file_is_plain_safetensors_of_float32_and_int32(tmp_path: Path) -> None:
    payload, metadata = codec.encode_trace(make_trace(key_of("x")))
    path = tmp_path / "t.safetensors"
    path.write_bytes(sealed.seal(payload, metadata))
    with safe_open(path, "np") as file:  # the reference reader checks the whole header
        kinds = {str(file.get_tensor(name).dtype) for name in list(file.keys())}
        assert kinds == {"float32", "int32"}
        assert "emotui_sha256" in file.metadata()


def test_reading_a_trace_needs_neither_torch_nor_a_screen(tmp_path: Path) -> None:
    payload, metadata = codec.encode_trace(make_trace(key_of("x")))
    path = tmp_path / "t.safetensors"
    path.write_bytes(sealed.seal(payload, metadata))
    program = (
        "import sys, pathlib\n"
        "from emotui.cache import codec, sealed\n"
        "content = pathlib.Path(sys.argv[1]).read_bytes()\n"
        "trace = codec.decode_trace(content, sealed.unseal(content))\n"
        "heavy = {'torch', 'transformers', 'textual', 'rich', 'sae_lens'} & set(sys.modules)\n"
        "print(trace.text.raw, sorted(heavy))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "Lily was sad because her toy was lost. []"


# Sealed files

SEALED = sealed.seal(payload_of(3), {"emotui_key": "k", "note": 'é " \\ \n'})


def test_sealing_keeps_arrays_and_metadata() -> None:
    assert np.array_equal(load(SEALED)["resid"], load(payload_of(3))["resid"])
    metadata = sealed.unseal(SEALED)
    assert metadata["seed"] == "3"
    assert metadata["note"] == 'é " \\ \n'
    assert sealed.peek(io.BytesIO(SEALED)) == metadata


def test_sealing_again_gives_the_same_bytes() -> None:
    assert sealed.seal(SEALED, {}) == SEALED


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(SEALED) * 8 - 1))
def test_every_flipped_bit_is_found(bit: int) -> None:
    changed = bytearray(SEALED)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(sealed.Damaged):
        sealed.unseal(bytes(changed))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(SEALED) - 1))
def test_every_cut_is_found(length: int) -> None:
    with pytest.raises(sealed.Damaged):
        sealed.unseal(SEALED[:length])


def test_every_bit_of_the_header_counts() -> None:
    header = 8 + int.from_bytes(SEALED[:8], "little")
    for bit in range(header * 8):
        changed = bytearray(SEALED)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(sealed.Damaged):
            sealed.unseal(bytes(changed))


@pytest.mark.parametrize("extra", [b"\0", b"more"])
def test_bytes_at_the_end_are_found(extra: bytes) -> None:
    with pytest.raises(sealed.Damaged):
        sealed.unseal(SEALED + extra)


@given(st.binary(max_size=200))
def test_other_bytes_are_no_sealed_file(content: bytes) -> None:
    with pytest.raises(sealed.Damaged):
        sealed.unseal(content)
    with pytest.raises(sealed.Damaged):
        sealed.peek(io.BytesIO(content))
    with pytest.raises(ValueError, match="not a safetensors payload"):
        sealed.seal(content, {})


def test_a_payload_that_misses_bytes_is_not_sealed() -> None:
    with pytest.raises(ValueError, match="cut short"):
        sealed.seal(payload_of(1)[:-1], {})


def test_a_payload_without_arrays_or_metadata_can_be_sealed() -> None:
    empty = sealed.seal(save({}), {"a": "b"})
    assert sealed.unseal(empty)["a"] == "b"
    assert load(empty) == {}
