"""Console commands that list what there is, messages that do not fit, and signs of features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support_console import shown, typed
from support_screen import TEXT, Scene, edits_of, lines_of, notice_of, text_on, until
from test_ui_edits import edited
from textual.content import Content

from emotui.app import EmotuiApp
from emotui.cache import labels as shelf
from emotui.cache.label_rows import NEURONPEDIA_IDS, label_rows
from emotui.cache.labels import Explanation, Measured
from emotui.core.errors import ModelError, SaeError
from emotui.core.records import Trace
from emotui.ui import state as states
from emotui.ui.commands import command_table
from emotui.ui.panes.features import features_edited
from emotui.ui.panes.status import fitting
from emotui.ui.screens.report import ReportScreen
from emotui.ui.state import Notice

ANGRY = Explanation("words about anger", "neuronpedia gpt-4o-mini")


def measured(emotion: str = "", *, named: bool = False) -> Measured:
    return Measured(emotion or "fear", 0.9, 0.8, 0.01, 1.2, named, False, "afraid, dread")


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    scene = Scene(tmp_path)
    scene.put_trace(probes=scene.put_probes())
    return scene


async def asked(app: EmotuiApp, pilot: Any, line: str) -> str:
    app.explorer.open_console()
    await typed(pilot, line, "enter")
    await until(pilot, lambda: isinstance(app.screen, ReportScreen))
    found = text_on(app)
    await pilot.press("escape")
    await until(pilot, lambda: app.screen is app.explorer)
    return found


async def test_models_probes_and_labels_are_reported(scene: Scene) -> None:
    path = shelf.measured_path(scene.cache, "one", "f" * 64)
    shelf.write(path, [("resid.3", 1, measured(named=True))], meta={"kind": "measured"})
    async with scene.open(size=(140, 45)) as (app, pilot):
        await shown(app, pilot)
        probes = await asked(app, pilot, "probes")
        for card in app.workbench._opened_store().probes():
            assert card.id in probes
        assert "in force" in probes and "fitted on situations (100 texts)" in probes
        assert "google/gemma-2-2b" in await asked(app, pilot, "models gemma-2-2b")
        listed = await asked(app, pilot, "labels")
        assert path.name in listed and "1 features" in listed
        name = path.relative_to(scene.cache / "labels").as_posix()
        assert "L3/1" in await asked(app, pilot, f"labels {name}")
        app.explorer.open_console()
        await typed(pilot, "models qqqq", "enter")
        await until(pilot, lambda: "No model or SAE release" in notice_of(app))


async def test_other_saes_are_read_with_and_edits_of_features_left(scene: Scene) -> None:
    lines = ("ablate L3/1 at all", "knock attn L1 mean at readout")
    scene.put_trace(
        probes=scene.put_probes(), edits=lines, change=lambda trace: edited(trace, lines)
    )
    async with scene.open() as (app, pilot):
        await shown(app, pilot)
        app.workbench.read(TEXT, edits=lines)
        await until(pilot, lambda: edits_of(app) == lines)
        app.explorer.open_console()
        await typed(pilot, "sae /other/saes", "enter")
        await until(pilot, lambda: scene.engine.asked)
        asked_for = scene.engine.asked[-1].operation
        assert asked_for.saes == ("/other/saes",) and asked_for.edits == lines[1:]
        scene.engine.asked[-1].fail(SaeError("There is no SAE folder /other/saes."))
        await until(pilot, lambda: "no SAE folder" in notice_of(app))
        assert app.workbench._base.saes == (), "what failed is not in force"
        app.explorer.open_console("sae none")
        await pilot.press("enter")
        await until(pilot, lambda: app.explorer.pane != "console")
        assert app.workbench._base.saes == ()


def test_the_table_has_every_command() -> None:
    table = command_table()
    for name in ("models", "probes", "labels", "sae", "message"):
        assert table[name].help and not table[name].action


@pytest.mark.parametrize("size", [(80, 24), (160, 45)])
async def test_what_to_do_is_never_cut_off(scene: Scene, size: tuple[int, int]) -> None:
    error = ModelError(
        "The model meta-llama/Llama-3.2-1B is gated: its owner asks for your consent first.",
        why="The hub answered 401. " + "A token was found, but it has no access to it. " * 9,
        todo="Accept the terms at https://huggingface.co/meta-llama/Llama-3.2-1B, then log in.",
    )
    async with scene.open(size=size) as (app, pilot):
        await shown(app, pilot)
        app.explorer.update(replace(app.explorer.state, notice=Notice.of_error(error)))
        await until(pilot, lambda: "Accept the terms at" in text_on(app))
        seen = text_on(app)
        assert (
            "is gated" in seen
            and seen.count("in.") == 1
            and "https://huggingface.co/meta-llama" in seen
        )
        if size[0] == 80:
            assert ":message shows all" in seen
        assert seen.count("no access to it") < 9 or size[0] != 80
        whole = await asked(app, pilot, "message")
        assert whole.count("no access") >= 9


def test_the_middle_of_a_message_is_left_out() -> None:
    lines = [Content("what"), Content("why " * 40), Content("do this, " + "and that " * 5)]
    for width in (30, 40):
        rows = [row.plain.rstrip() for row in fitting(lines, width, 6)]
        assert len(rows) == 6 and rows[0] == "what" and "shows all" in " ".join(rows)
        assert " ".join(rows).endswith(lines[-1].plain.strip())
    assert [row.plain for row in fitting(lines[:1], 30, 6)] == ["what"]
    assert len(fitting(lines, 30, 2)) == 2


async def test_an_edited_feature_and_a_label_that_does_not_match_have_signs(scene: Scene) -> None:
    flagged = shelf.label_of(measured(), ANGRY)
    assert shelf.flagged(flagged) and not shelf.flagged(shelf.label_of(measured(), None))
    fitting_label = shelf.label_of(measured(named=True), Explanation("fear and panic", "me"))
    assert not shelf.flagged(fitting_label)
    line = "ablate L3/59 at all"

    def change(trace: Trace) -> Trace:
        features = trace.features
        labels = tuple(flagged if index == 59 else "" for index in features.index)
        changed = msgspec.structs.replace(
            trace, features=msgspec.structs.replace(features, label=labels)
        )
        return edited(changed, (line,))

    trace = scene.put_trace(probes=scene.put_probes(), edits=(line,), change=change)
    texts = [i for i, token in enumerate(trace.text.tokens) if token.part == "text"]
    assert features_edited(trace, texts[0]) == {"L3/59"}
    assert features_edited(trace, trace.text.readout) == frozenset()
    async with scene.open(size=(160, 45)) as (app, pilot):
        await shown(app, pilot)
        app.workbench.read(TEXT, edits=(line,))
        await until(pilot, lambda: edits_of(app) == (line,))
        app.explorer.focus_pane("features")
        state = app.explorer.state
        app.explorer.update(states.at_token(states.at_layer(state, 3), texts[-1]))
        await until(pilot, lambda: any("L3/59 " in one for one in lines_of(app)))
        row = next(one for one in lines_of(app) if "L3/59 " in one and "≠" in one)
        assert "×L3/59" in row and "≠ afraid" in row


def test_explanations_by_id_stand_beside_what_was_measured(tmp_path: Path) -> None:
    own = "gemma-2-2b/20-gemmascope-res-16k"
    bulk = shelf.explained_path(tmp_path, neuronpedia=own)
    shelf.write(bulk, [("", 5, ANGRY), ("", 9, ANGRY)], meta={"kind": "explained"})
    path = shelf.measured_path(tmp_path, "gemma-scope-2b-pt-res-canonical", "f" * 64)
    rows = [("resid.20", 5, measured(named=True)), ("resid.20", 6, measured())]
    ids = msgspec.json.encode({"resid.20": own}).decode()
    shelf.write(path, rows, meta={"kind": "measured", NEURONPEDIA_IDS: ids})
    name = path.relative_to(tmp_path / "labels").as_posix()
    found = {row.feature: row for row in label_rows(tmp_path, name)}
    assert found["L20/5"].flag == "label says anger; measured: fear"
    assert found["L20/5"].explanation == ANGRY.text and not found["L20/6"].explanation
    imported = label_rows(tmp_path, "neuronpedia/")
    assert [row.feature for row in imported] == ["5", "9"]
    assert all(row.explanation == ANGRY.text and row.area is None for row in imported)
