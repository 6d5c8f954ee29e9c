"""w: the question, the report at two sizes, its cache and its document; once for real."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest
from support_screen import TEXT, Scene, lines_of, text_on, until

from emotui.cache.located import keep_where
from emotui.cache.prepare import prepare
from emotui.cache.store import Store
from emotui.core.errors import UsageError
from emotui.core.phases import phases_of
from emotui.core.protocol import Located, WhereRequest
from emotui.core.records import (
    TextRecord,
    Token,
    Where,
    WhereLayers,
    WhereSources,
    WhereWriter,
)
from emotui.ui.screens.where import WhereScreen

LAYERS = 12
SENTENCE = (
    "readable from L3 (z 4.2, neutral texts below 3.3); used from L4 (73% moved from neutral "
    "texts, 12% from texts of the same emotion); written mainly by attn.3 from 'sad' (+1.37 "
    "logits, control +0.42)"
)


def made_up(emotion: str = "sadness") -> Where:
    tokens = tuple(
        Token(n, f" {word}", None, None, False, "text") for n, word in enumerate(TEXT.split())
    )
    rows = range(LAYERS)
    return Where(
        emotion=emotion,
        label_set="ekman7",
        template="ask",
        text=TextRecord(TEXT, tokens, len(tokens) - 1, len(tokens) - 1),
        margin=3.0,
        neutral_margin=-1.0,
        neutral_texts=8,
        same_texts=8,
        null=3.3,
        readable_from=3,
        used_from=4,
        layers=WhereLayers(
            layer=tuple(rows),
            z=tuple(1.4 * layer for layer in rows),
            trust=tuple("trusted" for _ in rows),
            moved=tuple(min(1.0, 0.18 * layer) for layer in rows),
            control=(0.12,) * LAYERS,
            attn=(0.5,) * LAYERS,
            mlp=(-0.25,) * LAYERS,
        ),
        sources=WhereSources(layer=(3, 3), position=(2, 5), value=(0.9, 0.2)),
        writers=(WhereWriter("attn", 3, 1.0, 1.37, 0.42, 2),),
        sentence=SENTENCE,
    )


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.chdir(tmp_path)
    scene = Scene(tmp_path)
    scene.put_trace(probes=scene.put_probes())
    return scene


@pytest.mark.parametrize("size", [(80, 24), (160, 45)])
async def test_the_question_and_its_report(
    scene: Scene, size: tuple[int, int], tmp_path: Path
) -> None:
    async with scene.open(size=size) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        while app.explorer.state.emotion != "sadness":
            await pilot.press("e")
        await pilot.press("w")
        await until(pilot, lambda: scene.engine.asked)
        asked = scene.engine.asked[0]
        wanted = asked.operation
        assert isinstance(wanted, WhereRequest)
        assert (wanted.text, wanted.emotion, wanted.neutral) == (TEXT, "sadness", None)
        assert wanted.probes == ("probe-readout", "probe-token")
        asked.progress("patching the readout", 3, 12)
        await until(pilot, lambda: "patching the readout 3/12" in text_on(app))
        asked.finish(Located(made_up(), forwards=9))
        await until(pilot, lambda: isinstance(app.screen, WhereScreen))
        shown = text_on(app)
        for claim in ("readable from L3", "used from L4", "written mainly by attn.3 from 'sad'"):
            assert claim in shown
        rows = [line for line in lines_of(app) if "54%" in line]
        assert rows and "RUW" in rows[0] and "12%" in rows[0], "each layer beside its control"
        await pilot.press("x")
        await until(pilot, lambda: list(tmp_path.glob("emotui-where-*.json")))
        (path,) = tmp_path.glob("emotui-where-*.json")
        document = json.loads(path.read_bytes())
        assert document["schema"] == "emotui-where"
        assert document["where"]["sentence"] == SENTENCE
        await until(pilot, lambda: "Wrote" in text_on(app))
        await pilot.press("escape")
        assert app.screen is app.explorer


async def test_no_line_of_the_table_is_broken_at_80_columns(scene: Scene) -> None:
    async with scene.open(size=(80, 40)) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press("w")
        await until(pilot, lambda: scene.engine.asked)
        scene.engine.asked[0].finish(Located(made_up(), forwards=9))
        await until(pilot, lambda: isinstance(app.screen, WhereScreen))
        lines = lines_of(app)
        rows = [line for line in lines if "+0.500" in line]
        assert len(rows) == LAYERS
        assert "RUW" in "".join(rows) or "R·W" in "".join(rows)
        assert "' because' +0.20" not in "".join(rows), "what does not fit is left out whole"


async def test_the_layers_pane_marks_the_phases_of_this_text_and_emotion(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        readings = app.explorer.state.readings
        assert readings is not None
        plain = text_on(app)
        emotion, text = app.explorer.state.emotion, readings.trace.text
        where = msgspec.structs.replace(made_up(emotion), text=text)
        columns = msgspec.structs.replace(
            where.layers, layer=tuple(range(readings.trace.run.layers))
        )
        where = msgspec.structs.replace(where, layers=columns)
        await pilot.press("w")
        await until(pilot, lambda: scene.engine.asked)
        scene.engine.asked[0].finish(Located(where, forwards=9))
        await until(pilot, lambda: isinstance(app.screen, WhereScreen))
        await pilot.press("escape")
        await until(pilot, lambda: "R readable" in text_on(app))
        letters = [phases.letters for phases in phases_of(where)]
        for layer, letter in enumerate(letters):
            assert re.search(rf"[ ▸] +{layer}[tlu ] {letter} ", text_on(app)), (layer, letter)
        await pilot.press("2", "l", "l", "right", "h")
        await until(pilot, lambda: app.explorer.state.emotion != emotion)
        assert "R readable" not in text_on(app), "they are of one emotion"
        await pilot.press("E")
        while app.explorer.state.emotion != emotion:
            await pilot.press("e")
        await until(pilot, lambda: "R readable" in text_on(app))
        assert len(plain.splitlines()) == len(text_on(app).splitlines())


async def test_what_was_told_before_asks_no_engine(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        with Store.open(scene.cache) as store:
            fingerprint = prepare(scene.request(), store).fingerprint
            assert fingerprint is not None
            request = WhereRequest(
                spec=scene.request().spec,
                text=TEXT,
                cache_dir=str(scene.cache),
                emotion=app.explorer.state.emotion,
                probes=("probe-readout", "probe-token"),
            )
            keep_where(store, request, made_up(request.emotion), fingerprint=fingerprint)
        await pilot.press("w")
        await until(pilot, lambda: isinstance(app.screen, WhereScreen))
        assert scene.engine.asked == []


async def test_cancel_and_errors_leave_the_screen_as_it_was(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press("w")
        await until(pilot, lambda: scene.engine.asked)
        await pilot.press("escape")
        await until(pilot, lambda: "Cancelled" in text_on(app))
        assert scene.engine.asked[0].cancelled and app.screen is app.explorer
        await pilot.press("w")
        await until(pilot, lambda: len(scene.engine.asked) == 2)
        scene.engine.asked[1].fail(UsageError("'x' is no label.", todo="Use one of: joy."))
        await until(pilot, lambda: "is no label" in text_on(app))
        assert app.screen is app.explorer


async def test_a_neutral_rewrite_is_asked_for_as_it_was_typed(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press("colon")
        app.explorer.console.value = "where Lily"
        await pilot.press("enter")
        await until(pilot, lambda: "was not understood" in text_on(app))
        app.explorer.console.value = 'where from "Lily has a toy."'
        await pilot.press("enter")
        await until(pilot, lambda: scene.engine.asked)
        assert scene.engine.asked[0].operation.neutral == "Lily has a toy."
