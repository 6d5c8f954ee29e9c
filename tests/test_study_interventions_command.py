"""The intervention studies on the demo: their files, controls in every plot, the command line."""

from __future__ import annotations

import csv
import functools
import json
from pathlib import Path

import jsonschema
import pytest
from support_command import emotui_here
from support_studies import run_here

from emotui.cache.demo import demo_spec
from emotui.core.engine.capture import QuietJob
from emotui.core.engine.model import LoadedModel, load_model

SMALL = {
    "patch": {"span": "1", "pairs": "4", "sites": "attn"},
    "knockout": {"span": "1", "sites": "attn", "draws": "1"},
    "promote": {"strengths": "0.5", "draws": "1", "along": "means"},
    "appraise": {"strengths": "0.5", "draws": "1", "joint": ""},
}
TEXTS = {"patch": 40, "knockout": 40, "promote": 80, "appraise": 80}
"""Half of the last two's are fitted on."""


@functools.cache
def demo() -> LoadedModel:
    return load_model(demo_spec(), QuietJob())


@pytest.mark.parametrize("study", SMALL)
def test_on_the_demo_every_curve_of_an_effect_has_its_controls(study: str, tmp_path: Path) -> None:
    settings, limit = SMALL[study], TEXTS[study]
    run_here(demo(), tmp_path, study, "bundled", settings=settings, limit=limit, html=True)
    out = tmp_path / "run"
    document = json.loads((out / "result.json").read_text())
    jsonschema.validate(document, json.loads((out / "result.schema.json").read_text()))
    rows = list(csv.reader((out / "result.csv").open(encoding="utf-8")))
    table = document["report"]["tables"][0]
    assert len(rows) == 1 + len(table["rows"]) and rows[0] == table["columns"]
    plots = document["report"]["plots"]
    assert plots and all(plot["x_label"] == "layer" for plot in plots)
    effects = [plot for plot in plots if not plot["title"].startswith("How well")]
    assert all(any(line["control"] for line in plot["lines"]) for plot in effects)
    markdown = (out / "result.md").read_text(encoding="utf-8")
    assert markdown.startswith(f"# {study}") and "nan" not in markdown.lower().split()
    assert "<svg" in (out / "result.html").read_text("utf-8")


def test_the_command_estimates_runs_and_prints_json(tmp_path: Path) -> None:
    options = [
        part for name, value in SMALL["patch"].items() for part in ("--set", f"{name}={value}")
    ]
    arguments = ("study", "patch", "bundled", "--limit", "40", "--template", "ask", *options)
    out = tmp_path / "run"
    done = emotui_here(*arguments, "--out", str(out), "--json", cache_dir=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert "Estimate:" in done.stderr and "Read it again" in done.stderr
    printed = json.loads(done.stdout)
    assert printed == json.loads((out / "result.json").read_text())
    again = emotui_here("study", "show", str(out), cache_dir=tmp_path / "cache")
    assert "pairs of texts of different answers" in again.stdout
    wrong = emotui_here(*arguments[:3], "--set", "span=2", cache_dir=tmp_path / "cache")
    assert wrong.returncode == 2 and "cannot span 2 layers" in wrong.stderr
