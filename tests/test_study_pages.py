"""Pages of results: plots that are SVG, names that are no markup, cells that are no formulas."""

from __future__ import annotations

import csv
import platform
import shlex
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from support_command import emotui_here
from support_studies import files_of, run_here, stories_model, write_texts

from emotui.core.studies.common.pages import facts_of, html_of, markdown_of, write_pages
from emotui.core.studies.common.plots import svg_of_heat, svg_of_plot
from emotui.core.studies.common.report import Heat, Line, Plot, Report, Table, shown_p
from emotui.core.studies.readout import ReadoutResult

HOSTILE = '<script>alert(1)</script> \x1b[31m\u202e & "x" | `y` *z*'


def _paths(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    return [e.attrib["d"] for e in root.iter("path") if "stroke-width" in e.attrib]


def test_lines_go_where_the_numbers_are() -> None:
    line = Line("a", (0, 1, 2, 3), (0.0, 0.5, None, 1.0), low=(0, 0.4, None, 0.9), high=(0.1,) * 4)
    plot = Plot("t", "layer", "accuracy", (line, Line("null", (0, 3), (0.2, 0.2), control=True)))
    first, *_ = _paths(svg_of_plot(plot))
    points = [tuple(map(float, p.split())) for p in first[1:].replace("L", "M").split("M")]
    assert first.count("M") == 2 and len(points) == 3, "a gap where there is no number"
    xs, ys = [x for x, _ in points], [y for _, y in points]
    assert xs[1] - xs[0] == pytest.approx((xs[2] - xs[0]) / 3, abs=0.2)
    assert ys[1] == pytest.approx((ys[0] + ys[2]) / 2, abs=0.2) and ys[2] < ys[0]
    assert "dasharray" in svg_of_plot(plot)
    assert svg_of_plot(Plot("t", "x", "y", ())) == "<p>No numbers to draw.</p>"
    one = svg_of_plot(Plot("t", "x", "y", (Line("a", (4,), (7.0,)),)))
    ElementTree.fromstring(one)


def test_a_matrix_is_shaded_by_size_and_says_its_numbers() -> None:
    heat = Heat(HOSTILE, ("joy", "fear"), ("p", "q"), ((1.0, -0.5), (None, 0.25)))
    root = ElementTree.fromstring(svg_of_heat(heat))
    shades = [float(e.attrib["fill-opacity"]) for e in root.iter("rect")]
    assert shades == pytest.approx([0.6, 0.3, 0.15])
    assert {"1", "-0.5", "0.25", "joy", "q"} <= {e.text for e in root.iter("text")}


def test_hostile_names_stay_words(stories: Path, tmp_path: Path) -> None:
    data = write_texts(tmp_path / "texts.csv", 8)
    document = run_here(stories_model(stories), tmp_path, "readout", data)
    rows = ((HOSTILE, 1.5, None), ("=HYPERLINK(1)", 2, "-x"))
    report = Report(
        (HOSTILE,),
        (Table(HOSTILE, (HOSTILE, "n", "m"), rows),),
        (Plot(HOSTILE, "layer", HOSTILE, (Line(HOSTILE, (0, 1), (1, 2)),)),),
        (Heat(HOSTILE, (HOSTILE,), (HOSTILE,), ((1.0,),)),),
    )
    document = msgspec.structs.replace(document, report=report)
    page = html_of(document)
    assert "<script" not in page and "\x1b" not in page and "\u202e" not in page
    closed = page.replace('charset="utf-8">', 'charset="utf-8"/>').replace(
        "inline'\">", "inline'\"/>"
    )
    ElementTree.fromstring(closed.removeprefix("<!DOCTYPE html>"))
    text = markdown_of(document)
    assert "<script" not in text.replace("\\<script", "") and "\x1b" not in text
    (tmp_path / "p").mkdir()
    write_pages(tmp_path / "p", document, None, result_type=ReadoutResult, html=True)
    with (tmp_path / "p" / "result.csv").open(encoding="utf-8") as file:
        read = list(csv.reader(file))
    assert read[2] == ["'=HYPERLINK(1)", "2", "'-x"] and "\x1b" not in read[1][0]


def test_a_page_names_what_its_numbers_are_of(stories: Path, tmp_path: Path) -> None:
    data = write_texts(tmp_path / "texts.csv", 16)
    document = run_here(
        stories_model(stories), tmp_path, "readout", data, limit=12, settings={"features": "3"}
    )
    facts = dict(facts_of(document.run))
    assert "bootstrap" in facts["intervals"] and facts["intervals"].startswith("95 %")
    assert facts["which texts"].startswith("at most 12 (--limit)")
    assert facts["label tokens"].count(";") == len(document.run.labels) - 1
    assert platform.python_version() in facts["packages"] and "attention" in facts["model"]
    page, markdown = html_of(document), markdown_of(document)
    assert all(name in page and name in markdown for name in ("intervals", "label tokens"))
    # The command is one that the command line takes and that asks for the same run.
    words = shlex.split(facts["command"])
    assert words[:4] == ["emotui", "study", "readout", "texts.csv"]
    assert words[words.index("--set") + 1] == "features=3"
    words[words.index("--model") + 1] = str(stories)  # paths are not recorded
    again = emotui_here(
        *words[1:3],
        str(data),
        *words[4:],
        "--out",
        str(tmp_path / "again"),
        cache_dir=tmp_path / "cache",
    )
    assert again.returncode == 0, again.stderr
    assert files_of(tmp_path / "again") == files_of(tmp_path / "run")


def test_a_small_p_is_not_shown_as_none() -> None:
    assert (shown_p(0.0004), shown_p(0.0), shown_p(0.012)) == ("< 0.001", "< 0.001", "0.012")


def test_p_columns_and_other_columns(stories: Path, tmp_path: Path) -> None:
    data = write_texts(tmp_path / "texts.csv", 8)
    document = run_here(stories_model(stories), tmp_path, "readout", data)
    table = Table("t", ("p", "share"), ((0.0001, 0.0001),))
    document = msgspec.structs.replace(document, report=Report((), (table,)))
    assert "| \\< 0.001 | 0.000 |" in markdown_of(document)
    assert "<td>&lt; 0.001</td><td>0.000</td>" in html_of(document)
