"""The JSON document: schema, sizes, bytes, rounding, and what import says of a bad field."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from support_traces import made_up_trace

from emotui.core.errors import ExportError
from emotui.core.export.json import document_bytes, read_document, trace_of, write_document

SCHEMA_FILE = Path(__file__).resolve().parent.parent / "docs" / "schemas" / "trace.schema.json"
TOP_LEVEL = {
    *("schema", "schema_version", "id", "parent", "run", "text", "readouts", "features"),
    *("answer", "lens", "generation", "edits", "effects"),
}


def test_document_validates_against_the_published_schema() -> None:
    document = json.loads(
        document_bytes(
            made_up_trace(), ancestors=[made_up_trace(trace_id="a" * 16)], all_tokens=True
        )
    )
    schema = json.loads(SCHEMA_FILE.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(document)
    assert set(document) >= TOP_LEVEL
    assert document["schema"] == "emotui-trace"
    assert document["ancestors"][0]["id"] == "a" * 16


def test_readout_only_by_default_and_every_token_on_request() -> None:
    trace = made_up_trace(tokens=12)
    small = json.loads(document_bytes(trace, all_tokens=False))
    every = json.loads(document_bytes(trace, all_tokens=True))
    assert set(small["readouts"]["position"]) == {11} == set(small["features"]["position"])
    assert set(every["readouts"]["position"]) == set(range(12))
    columns = {len(column) for column in small["readouts"].values()}
    assert len(columns) == 1


def test_same_trace_same_bytes_and_import_is_stable() -> None:
    trace = made_up_trace()
    once = document_bytes(trace, all_tokens=True)
    assert once == document_bytes(trace, all_tokens=True)
    document = read_document(once)
    again = document_bytes(trace_of(document), ancestors=document.ancestors, all_tokens=True)
    assert again == once


def test_five_digits_and_no_nan() -> None:
    trace = made_up_trace()
    readouts = msgspec.structs.replace(
        trace.readouts,
        value=(math.pi * 1000, *trace.readouts.value[1:]),
        z=(math.nan, *trace.readouts.z[1:]),
    )
    data = document_bytes(msgspec.structs.replace(trace, readouts=readouts), all_tokens=True)
    document = json.loads(data, parse_constant=lambda word: pytest.fail(f"{word} in the JSON"))
    assert document["readouts"]["value"][0] == 3141.6
    assert document["readouts"]["z"][0] is None


def test_sizes() -> None:
    """60 tokens of an 8-layer model with 32 active features; 200 tokens of gemma-2-2b."""
    small = document_bytes(made_up_trace(tokens=60, layers=8), all_tokens=False)
    assert len(small) < 300_000
    large = made_up_trace(tokens=200, layers=26, features_at_readout=512, features_elsewhere=32)
    assert len(document_bytes(large, all_tokens=False)) < 5_000_000


def broken(change: dict[str, Any], *path: str) -> bytes:
    document = json.loads(document_bytes(made_up_trace(), all_tokens=False))
    target = document
    for name in path:
        target = target[name]
    target.update(change)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"not json", "malformed"),
        (b"[]", "Expected `object`"),
        (broken({"id": 3}), "$.id"),
        (broken({"schema": "other"}), "$.schema"),
        (broken({"schema_version": 99}), "$.schema_version"),
        (broken({"layers": "many"}, "run"), "$.run.layers"),
        (broken({"layer": ["x"]}, "readouts"), "$.readouts.layer[0]"),
        (broken({"layer": [1]}, "features"), "features.layer"),
    ],
    ids=range(8),
)
def test_import_names_the_offending_field(data: bytes, field: str) -> None:
    with pytest.raises(ExportError) as caught:
        read_document(data)
    assert field in str(caught.value)


def test_a_file_is_private_and_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "trace.json"
    trace = made_up_trace()
    assert write_document(trace, target) == target
    assert target.stat().st_mode & 0o777 == 0o600
    before = target.read_bytes()
    with pytest.raises(ExportError, match="exists already"):
        write_document(made_up_trace(trace_id="b" * 16), target)
    assert target.read_bytes() == before
    write_document(made_up_trace(trace_id="b" * 16), target, overwrite=True)
    assert target.read_bytes() != before


@pytest.mark.parametrize("name", ["absent/trace.json", "."])
def test_a_path_that_cannot_be_written_leaves_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError) as caught:
        write_document(made_up_trace(), tmp_path / name)
    assert caught.value.todo
    assert list(tmp_path.iterdir()) == []
