"""Which probe reads is said with its data wherever its numbers are: status line, report, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from support_screen import TEXT, Scene, lines_of, notice_of, text_on, until
from support_traces import made_up_trace

from emotui.commands.report import report_of
from emotui.core.export.html import html_bytes
from emotui.core.export.markdown import markdown_bytes
from emotui.core.probe_words import PREVIEW, data_name
from emotui.core.records import Trace
from emotui.ui.panes.layers import cell_text
from emotui.ui.readings import Readings

LONG = "a-file-of-labelled-texts-with-a-long-name.csv (text: text, label: label; 90 of 99 rows)"
JUDGED = "texts of another source: emotui situations of held-out topics (336 texts)"


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def _read_with(trace: Trace, **fields: Any) -> Trace:
    probes = tuple(msgspec.structs.replace(probe, **fields) for probe in trace.probes)
    return msgspec.structs.replace(trace, probes=probes)


@pytest.mark.parametrize("data", ["d.csv (text: t, label: l; 9 of 9 rows)", LONG])
@pytest.mark.parametrize("preview", [False, True])
@pytest.mark.parametrize("size", [(80, 24), (100, 30), (160, 45), (200, 50)])
async def test_the_status_line_names_the_data_and_a_preview_at_every_width(
    scene: Scene, size: tuple[int, int], preview: bool, data: str
) -> None:
    fitted_on = f"{PREVIEW}: {data}" if preview else data

    def change(trace: Trace) -> Trace:
        noted = msgspec.structs.replace(trace.run, note="a note")
        return msgspec.structs.replace(_read_with(trace, data=fitted_on), run=noted)

    scene.put_trace(probes=scene.put_probes(), change=change)
    async with scene.open(TEXT, size=size) as (app, pilot):
        await until(pilot, lambda: "0.61" in text_on(app))
        line = next(one for one in lines_of(app) if "0.61" in one)
    assert data.split(" (")[0][:14] in line
    assert ("preview" in line) == preview
    assert "0.41" in line


async def test_f_says_what_the_model_is_read_with(scene: Scene) -> None:
    scene.put_trace(
        probes=scene.put_probes(),
        change=lambda trace: _read_with(trace, data=f"{PREVIEW}: d.csv (text: t, label: l)"),
    )
    async with scene.open(TEXT) as (app, pilot):
        await until(pilot, lambda: "0.61" in text_on(app))
        await pilot.press("F")
        await until(pilot, lambda: "read already, with probes on preview d.csv" in notice_of(app))
        assert scene.engine.asked == []


def test_the_report_and_markdown_say_what_was_fitted_and_judged_on() -> None:
    trace = _read_with(made_up_trace(), data=LONG, judged_on=JUDGED)
    page = report_of(trace)
    line = next(one for one in page.splitlines() if one.strip().startswith("probe-readout:"))
    assert f"fitted on {LONG}; judged on {JUDGED}; 0.61 held out, 0.41 bag" in line
    assert JUDGED in markdown_bytes(trace).decode().replace("\\", "")
    page = html_bytes(trace).decode()
    assert f"judged on {JUDGED}" in page and "at the readout, z;" in page
    logits = html_bytes(_as_logits(trace, "probe-readout")).decode()
    assert "without z, as the probe saw no neutral texts" in logits


def _as_logits(trace: Trace, *probes: str) -> Trace:
    columns = trace.readouts
    z = tuple(
        None if probe in probes else value
        for probe, value in zip(columns.probe, columns.z, strict=True)
    )
    return msgspec.structs.replace(trace, readouts=msgspec.structs.replace(columns, z=z))


def test_numbers_without_z_are_called_logits() -> None:
    trace = _as_logits(made_up_trace(), "probe-readout")
    lines = [line for line in report_of(trace).splitlines() if line.startswith("probe ")]
    assert "logits, marked ?: the probe saw no neutral texts" in lines[0]
    assert ", z (" in lines[1] and "logit" not in lines[1]
    methods = markdown_bytes(trace).decode().split("Linear probe ")
    assert "logits: without neutral texts there is no z" in methods[1]
    assert "standard deviations" not in methods[1]
    assert "z is in standard deviations of neutral texts" in methods[2]
    # As many readouts without z as the probe has: none stands in place of one.
    assert report_of(trace).count("?") > report_of(made_up_trace()).count("?") + 8


@pytest.mark.parametrize("size", [(80, 24), (160, 45)])
async def test_the_heat_map_draws_logits_apart(scene: Scene, size: tuple[int, int]) -> None:
    scene.put_trace(
        probes=scene.put_probes(), change=lambda trace: _as_logits(trace, "probe-readout")
    )
    async with scene.open(TEXT, size=size) as (app, pilot):
        await until(pilot, lambda: "0.61" in text_on(app))
        await pilot.press("2")
        readings = app.explorer.state.readings
        assert readings is not None
        readout = readings.trace.text.readout
        cell = readings.cell("resid", readout, 2, "joy")
        assert cell is not None and not cell.standardised and cell.shade == 0.0
        text = cell_text(cell, 7, cursor=False)
        assert text[0] == "L" and float(text[1:5]) == pytest.approx(cell.z, abs=0.06)
        await until(pilot, lambda: "L logit, no z" in text_on(app))


def test_an_embedding_without_z_changes_no_legend() -> None:
    trace = made_up_trace()
    columns = trace.readouts
    z = tuple(
        None if layer < 0 else value for layer, value in zip(columns.layer, columns.z, strict=True)
    )
    assert None in z
    of_embedding = msgspec.structs.replace(trace, readouts=msgspec.structs.replace(columns, z=z))
    assert Readings(of_embedding).all_standardised
    assert not Readings(_as_logits(trace, "probe-token")).all_standardised


def test_the_short_name_of_data() -> None:
    assert data_name(LONG) == "a-file-of-labelled-texts-with-a-long-name.csv"
    assert data_name(f"{PREVIEW}: emotui situations; 3 too long") == "preview emotui situations"
    assert data_name("the word 'grief' in 10 sentences (one token)") == (
        "the word 'grief' in 10 sentences"
    )
