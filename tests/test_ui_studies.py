"""b, B and r: one text asked in other forms, its words, and results of studies that lead somewhere;
the same questions from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support_screen import TEXT, Scene, lines_of, text_on, until
from support_studies import emotui
from textual.widgets import OptionList

from emotui.app import EmotuiApp
from emotui.cache.asked import consistency_request, keep_consistency
from emotui.cache.prepare import prepare
from emotui.cache.store import Store
from emotui.core.emotion_terms import TermProfile, TermScore, TextTerms
from emotui.core.emotions import PLUTCHIK
from emotui.core.forms import FormAnswer, TextConsistency
from emotui.core.protocol import (
    AskedInForms,
    ConsistencyRequest,
    StudyRequest,
    TermsRequest,
    TermsScored,
)
from emotui.core.records import Trace
from emotui.core.studies.common.dataset import DatasetSummary, item_id
from emotui.core.studies.common.folder import StudyDocument, StudyFile, StudyRun
from emotui.core.studies.common.report import Report, Table
from emotui.core.studies.common.saved import FOLDER, Place, place_of
from emotui.core.text import template_named
from emotui.ui.screens.report import ReportScreen
from emotui.ui.screens.studies import StudiesScreen, StudyScreen


def made_up() -> TextConsistency:
    def one(group: Any, form: str, answer: str, **more: Any) -> FormAnswer:
        return FormAnswer(
            group=group, form=form, answer=answer, probability=0.75, valid=False, **more
        )

    lens = ("joy", "joy", "sadness", "sadness")
    return TextConsistency(
        label_set="ekman7",
        template="ask",
        rule="first_token",
        answers=(
            one("template", "ask", "sadness", probe="sadness", lens=lens),
            one("template", "tak1", "joy", probe="sadness", lens=lens),
            one("order", "forward", "sadness", probe="sadness", lens=lens),
            one("binary", "True/False", "agrees", about="sadness"),
            one("negation", "not", "agrees", about="sadness"),
        ),
        templates_agree=0.0,
        orders_agree=None,
        probe_agrees=1.0,
        probe="probe-readout",
        probe_layer=2,
        negated=0.0,
        averaged="sadness",
        badge="depends on the prompts, negations",
    )


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    scene = Scene(tmp_path)
    scene.put_trace(probes=scene.put_probes())
    return scene


@pytest.mark.parametrize("size", [(80, 24), (160, 45)])
async def test_b_asks_in_other_forms(scene: Scene, size: tuple[int, int]) -> None:
    async with scene.open(size=size) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press("b")
        await until(pilot, lambda: scene.engine.asked)
        wanted = scene.engine.asked[0].operation
        assert isinstance(wanted, ConsistencyRequest)
        assert (wanted.inspect.text, wanted.inspect.edits, wanted.inspect.saes) == (TEXT, (), ())
        assert wanted.inspect.probes == ("probe-readout", "probe-token")
        scene.engine.asked[0].finish(AskedInForms(made_up(), False, 30, 1.0))
        await until(pilot, lambda: isinstance(app.screen, ReportScreen))
        said = text_on(app)
        for words in (
            "depends on the prompts, negations",
            "The probe at L2",
            "tak1",
            "first_token",
        ):
            assert words in said
        row = next(line for line in lines_of(app) if " ask " in line and "0.75" in line)
        assert "L2" in row and "no" in row
        await pilot.press("escape")
        assert app.screen is app.explorer


async def test_b_again_is_read_from_the_cache(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        with Store.open(scene.cache) as store:
            ready = prepare(scene.request(), store)
            assert ready.fingerprint is not None
            request = consistency_request(ready.request)
            keep_consistency(request, store, ready.fingerprint, made_up())
        await pilot.press("b")
        await until(pilot, lambda: isinstance(app.screen, ReportScreen))
        assert not scene.engine.asked
        assert "depends on the prompts" in text_on(app)


async def test_capital_b_scores_words_with_the_edits_in_force(scene: Scene) -> None:
    weights = dict.fromkeys(PLUTCHIK, 0.125)
    profile = TermProfile(
        terms=(TermScore("forlorn", 0.5, 0.25),),
        weights=weights,
        corrected=weights,
        undecomposed=0.0,
        entropy=1.0,
    )
    terms = TextTerms(
        template="ask", table="emotion_terms.tsv", words=384, neutral="Nothing.", plain=profile
    )
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press("B")
        await until(pilot, lambda: scene.engine.asked)
        assert isinstance(scene.engine.asked[0].operation, TermsRequest)
        scene.engine.asked[0].finish(TermsScored(terms, False, 3, 0.1))
        await until(pilot, lambda: isinstance(app.screen, ReportScreen))
        assert "forlorn 0.50" in text_on(app) and "anticipation" in text_on(app)


def put_study(scene: Scene, trace: Trace, *, finished: bool = True, name: str = "one") -> None:
    folder = scene.cache / FOLDER / name
    folder.mkdir(parents=True)
    row = trace.features.index[0]
    table = Table(
        "Found",
        ("name", "layer", "feature", "id"),
        (
            ("nothing", None, None, None),
            ("a layer", 2, None, None),
            ("a feature", None, f"L{trace.features.layer[0]}/{row}", None),
            ("absent", None, "L1/999999", None),
            ("a text", None, None, item_id(TEXT)),
            ("another text", None, None, "0" * 16),
            ("too high", 77, None, None),
        ),
    )
    summary = DatasetSummary(
        name="texts [b]bold[/b].csv",
        text_column="text",
        label_column="",
        label_set="ekman7",
        label_maps=(),
        columns=(),
        appraisals=(),
        rows=9,
        empty=0,
        unlabelled=0,
        too_few={},
        texts=9,
        labels={"": 9},
        digest="0" * 64,
    )
    run = StudyRun(
        study="readout",
        settings={},
        seed=0,
        limit=None,
        dataset=summary,
        model="made-up-model",
        revision=None,
        fingerprint="f" * 64,
        architecture="Made",
        layers=4,
        d_model=8,
        dtype="float32",
        device="cpu",
        attention="eager",
        note="",
        template=template_named("ask"),
        labels=("joy",),
        label_tokens=((1,),),
        answer_rule="first_token",
        saes=(),
        probes=(),
        packages={},
    )
    request = StudyRequest(
        spec=scene.request().spec, cache_dir="", study="readout", out=str(folder), data="bundled"
    )
    file = StudyFile(created="2026-11-21T10:00:00Z", request=request, run=run)
    (folder / "study.json").write_bytes(msgspec.json.encode(file))
    if finished:
        report = Report(("It was [red]found[/red] \x1b[31mhere.",), (table,))
        document = StudyDocument(run=run, result={}, report=report)
        (folder / "result.json").write_bytes(msgspec.json.encode(document))


async def opened(app: EmotuiApp, pilot: Any) -> StudyScreen:
    await pilot.press("r")
    await until(pilot, lambda: isinstance(app.screen, StudiesScreen) and app.screen.runs)
    await pilot.press("enter")
    await until(pilot, lambda: isinstance(app.screen, StudyScreen))
    assert isinstance(app.screen, StudyScreen)
    return app.screen


async def choose(app: EmotuiApp, pilot: Any, words: str) -> None:
    screen = app.screen
    assert isinstance(screen, StudyScreen)
    number = next(n for n, line in enumerate(screen.lines) if words in line.content.plain)
    screen.query_one(OptionList).highlighted = number
    await pilot.press("enter")


async def test_r_lists_results_and_reads_one(scene: Scene) -> None:
    with Store.open(scene.cache) as store:
        trace = store.get_trace(store.traces()[0].id)
    put_study(scene, trace)
    put_study(scene, trace, finished=False, name="two")
    async with scene.open(size=(80, 24)) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press("r")
        await until(pilot, lambda: isinstance(app.screen, StudiesScreen) and app.screen.runs)
        await until(pilot, lambda: "not finished" in text_on(app))
        assert "texts [b]bold[/b].csv" in text_on(app), "names are never markup"
        listed = app.screen
        assert isinstance(listed, StudiesScreen)
        unfinished = next(n for n, run in enumerate(listed.runs) if not run.finished)
        listed.list.highlighted = unfinished
        await pilot.press("enter")
        await until(pilot, lambda: "Not finished: emotui study resume" in text_on(app))
        listed.list.highlighted = 1 - unfinished
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, StudyScreen))
        said = text_on(app)
        assert "It was [red]found[/red]" in said and "\x1b" not in said
        await choose(app, pilot, "nothing")
        assert "names no layer" in text_on(app), "a line that names nothing leads nowhere"
        await pilot.press("escape", "escape")
        await until(pilot, lambda: app.screen is app.explorer)


async def test_a_line_leads_to_its_layer_feature_or_text(scene: Scene) -> None:
    with Store.open(scene.cache) as store:
        trace = store.get_trace(store.traces()[0].id)
    put_study(scene, trace)
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await opened(app, pilot)
        await choose(app, pilot, "a layer")
        await until(pilot, lambda: app.screen is app.explorer)
        state = app.explorer.state
        assert (state.layer, state.site, state.position) == (2, "resid", trace.text.readout)
        await opened(app, pilot)
        await choose(app, pilot, "absent")
        await until(pilot, lambda: "L1/999999 is not among" in text_on(app))
        assert app.explorer.state.layer == 1
        await opened(app, pilot)
        await choose(app, pilot, "too high")
        await until(pilot, lambda: "no layer 77" in text_on(app))
        await opened(app, pilot)
        await choose(app, pilot, "another text")
        await until(pilot, lambda: "was not read here" in text_on(app))
        await opened(app, pilot)
        await choose(app, pilot, "a text")
        await until(pilot, lambda: app.screen is app.explorer)
        readings = app.explorer.state.readings
        assert readings is not None and readings.trace.text.raw == TEXT


async def test_a_line_leads_to_a_feature_that_is_active(scene: Scene) -> None:
    with Store.open(scene.cache) as store:
        trace = store.get_trace(store.traces()[0].id)
    columns = trace.features
    at = next(n for n, place in enumerate(columns.position) if place == trace.text.readout)
    name = f"L{columns.layer[at]}/{columns.index[at]}"
    found = place_of(Table("", ("x",), ((name,),)), (name,))
    assert found == Place("resid", columns.layer[at], columns.index[at])
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        app.explorer.handlers.study._go(found)
        await until(pilot, lambda: app.explorer.pane == "features")
        state = app.explorer.state
        assert state.features[state.feature].index == columns.index[at]


async def test_without_results_r_says_so(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press("r")
        await until(pilot, lambda: "No results yet" in text_on(app))
        await pilot.press("enter", "escape")
        assert app.screen is app.explorer


@pytest.mark.parametrize(
    ("row", "place"),
    [
        (("mlp:L3/7", None), Place("mlp", 3, 7)),
        (("L4", None), Place("resid", 4)),
        (("attn", 5), Place("attn", 5)),
        (("joy", 2.5), None),
        (("L", None), None),
    ],
)
def test_what_a_row_names(row: tuple[Any, Any], place: Place | None) -> None:
    assert place_of(Table("", ("site", "layer"), (row,)), row) == place


def test_from_the_command_line_again_without_an_engine(tmp_path: Path) -> None:
    first = emotui("consistency", "He lost his dog.", "--json", cache_dir=tmp_path)
    assert first.returncode == 0, first.stderr
    document = json.loads(first.stdout)
    found = msgspec.convert(document["consistency"], TextConsistency)
    assert (document["schema"], found.rule) == ("emotui-consistency", "first_token")
    assert len([one for one in found.answers if one.group == "template"]) >= 5
    assert len([one for one in found.answers if one.group == "order"]) >= 6
    again = emotui("consistency", "He lost his dog.", "--json", cache_dir=tmp_path)
    assert again.stdout == first.stdout
    assert "reading the weights" not in again.stderr, "the cache has it"
    words = emotui("terms", "He lost his dog.", cache_dir=tmp_path)
    assert words.returncode == 0 and "made of" in words.stdout
    assert max(map(len, words.stdout.splitlines())) <= 78
