"""A trace as a table: every readout once, as the record holds it; read back with the csv module."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import msgspec
from support_command import emotui_here
from support_traces import made_up_trace

from emotui.commands.report import report_of
from emotui.core.columns import columns_in_words
from emotui.core.export.csv import COLUMNS, csv_bytes


def rows_of(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode("utf-8"), newline="")))


def test_every_readout_is_a_row() -> None:
    trace = made_up_trace(tokens=6)
    rows, columns = rows_of(csv_bytes(trace)), trace.readouts
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == len(columns.value) > 100
    for row, value, z, layer, position, emotion in zip(
        *(rows, columns.value, columns.z, columns.layer, columns.position, columns.emotion),
        strict=True,
    ):
        assert float(row["value"]) == value and int(row["layer"]) == layer
        assert row["z"] == ("" if z is None else str(z))
        assert row["emotion"] == emotion and int(row["position"]) == position
        assert row["token"] == trace.text.tokens[position].string
        assert row["trace"] == trace.id


def test_hostile_tokens_stay_one_cell_and_no_formula() -> None:
    trace = made_up_trace(tokens=6)
    hostile = ['=HYPERLINK("x")', 'a"b,c\nd', " +1", "\ud800", "é", "-"]
    tokens = tuple(
        msgspec.structs.replace(token, string=string)
        for token, string in zip(trace.text.tokens, hostile, strict=True)
    )
    text = msgspec.structs.replace(trace.text, tokens=tokens)
    rows = rows_of(csv_bytes(msgspec.structs.replace(trace, text=text)))
    found = {int(row["position"]): row["token"] for row in rows}
    assert found[0] == '\'=HYPERLINK("x")' and found[1] == 'a"b,c\nd'
    assert found[2] == "' +1" and found[3] == "\\ud800" and found[4] == "é" and found[5] == "'-"
    assert len(rows) == len(trace.readouts.value)


def test_the_command_offers_it_and_not_what_it_refuses(tmp_path: Path) -> None:
    said = emotui_here("export", "--help", cache_dir=tmp_path).stdout
    assert "csv" in said and "gguf" not in said


def test_the_report_says_how_the_text_was_read_and_rebuilt() -> None:
    trace = made_up_trace(tokens=6)
    sae = msgspec.structs.replace(trace.saes[0], variance_explained=-4.85)
    page = report_of(msgspec.structs.replace(trace, saes=(sae, *trace.saes[1:])))
    assert f"attention {trace.run.attention}" in page and "BOS" in page
    assert f"badly rebuilt, so read with care: {sae.site}.{sae.layer} (-4.85)" in page
    assert "badly rebuilt" not in report_of(trace)


def test_a_first_line_that_is_a_text_is_never_told() -> None:
    private = "I'm really sorry about what happened to your dog"
    assert private not in columns_in_words(["12", private])
    assert "no header" in columns_in_words(["12", private])
    assert columns_in_words(["id", "text"]) == "Its columns are: id, text."
