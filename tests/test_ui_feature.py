"""Feature detail on the screen: what it shows, what it does, and where there is nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support_looking import SIZES, is_on, ready, scene_in
from support_screen import TEXT, Scene, text_on, until
from support_traces import made_up_trace

from emotui.cache.details import keep_feature
from emotui.cache.store import Store
from emotui.core.details import (
    CorpusReading,
    FeatureDetail,
    FeatureHere,
    FiringText,
    RemovedHere,
    Selectivity,
    WrittenToken,
)
from emotui.core.edits.positions import parse_positions, positions_in
from emotui.core.errors import Cancelled, SaeError
from emotui.core.protocol import Featured, FeatureRequest, InspectRequest
from emotui.core.records import Trace
from emotui.ui.screens.explore import ExploreScreen
from emotui.ui.screens.feature import FeatureScreen


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return scene_in(tmp_path, monkeypatch)


# Feature detail.


def made_up(request: FeatureRequest, trace: Trace, *, corpus: bool) -> FeatureDetail:
    tokens = len(trace.text.tokens)
    place = positions_in(parse_positions(request.position), trace.text)[0]
    layers = (2, 3)
    return FeatureDetail(
        name=request.feature,
        sae=request.sae,
        source="saes",
        site="resid",
        layer=2,
        index=5,
        width=64,
        label="fear .81*: dread",
        explanation="joy words",
        origin="neuronpedia somebody 2026",
        mismatch="label says joy; measured: fear",
        promoted=(WrittenToken(" dread", 8.0),),
        suppressed=(WrittenToken("\x1b[2J", -3.0),),
        page="https://www.neuronpedia.org/m/2-res/5",
        corpus=CorpusReading(
            template="ask",
            texts=2080,
            selectivity=(Selectivity("fear", 160, 0.5, 1.5, 0.91),),
            label_set="ekman7",
            active=0.04,
            strongest=(FiringText("a", "fear", (" the", " dark"), (0.0, 4.5)),),
        )
        if corpus
        else None,
        here=FeatureHere(
            trace=trace.id,
            text=trace.text,
            edits=(),
            activation=tuple(2.5 if row == place else 0.0 for row in range(tokens)),
            position=place,
            metric="answer.fear",
            attribution=-0.25,
            removed=RemovedHere(
                edit=f"ablate {request.feature} at {place}",
                trace="b" * 16,
                answer_before={"fear": 0.8, "joy": 0.2},
                answer_after={"fear": 0.5, "joy": 0.5},
                layer=layers,
                emotion=("fear", "fear"),
                before=(2.0, 3.0),
                after=(1.5, 2.75),
            ),
        ),
    )


@pytest.mark.parametrize("size", SIZES)
async def test_enter_opens_the_feature_and_the_corpus_follows(
    scene: Scene, size: tuple[int, int]
) -> None:
    scene.put_trace(probes=scene.put_probes())
    async with scene.open(size=size) as (app, pilot):
        trace = await ready(app, pilot)
        row = app.explorer.state.features[0]
        await pilot.press("3", "enter")
        await until(pilot, lambda: scene.engine.asked)
        first: Any = scene.engine.asked[0].operation
        assert isinstance(first, FeatureRequest)
        assert (first.feature, first.sae, first.corpus) == (row.name, row.sae, False)
        assert app.explorer.state.position == trace.text.readout
        assert first.position == "readout"
        assert first.inspect.text == TEXT and first.inspect.probes
        scene.engine.asked[0].finish(Featured(made_up(first, trace, corpus=False), 3))
        await until(pilot, lambda: is_on(app, FeatureScreen))
        assert "label says joy; measured: fear" in text_on(app)
        await until(pilot, lambda: len(scene.engine.asked) == 2)
        second = scene.engine.asked[1]
        assert second.operation.corpus
        second.progress("reading the corpus", 700, 2080)
        await until(pilot, lambda: "reading the corpus 700/2080 · esc cancels" in text_on(app))
        second.finish(Featured(made_up(first, trace, corpus=True), 9))
        screen = app.screen
        assert isinstance(screen, FeatureScreen)
        await until(pilot, lambda: screen.detail.corpus is not None)
        seen = text_on(app)
        for _ in range(12):
            await pilot.press("pagedown")
            await pilot.pause()
            seen += text_on(app)
        for part in ("-0.250 on answer.fear", "+1.386 → +0.000", "L2", "-0.500", "' dread' +8.0"):
            assert part in seen, part
        assert "area 0.91" in seen and "dark█4.5" in seen
        assert "\x1b" not in seen
        await pilot.press("escape")
        assert is_on(app, ExploreScreen)


async def test_escape_cancels_the_corpus_first_and_what_fails_is_told(scene: Scene) -> None:
    scene.put_trace(probes=scene.put_probes())
    async with scene.open() as (app, pilot):
        trace = await ready(app, pilot)
        await pilot.press("3", "enter")
        await until(pilot, lambda: scene.engine.asked)
        request = scene.engine.asked[0].operation
        scene.engine.asked[0].finish(Featured(made_up(request, trace, corpus=False), 3))
        await until(pilot, lambda: len(scene.engine.asked) == 2)
        await pilot.press("escape")
        assert scene.engine.asked[1].cancelled
        assert isinstance(scene.engine.asked[1].error, Cancelled)
        await until(pilot, lambda: not app.workbench.busy)
        assert is_on(app, FeatureScreen)
        await pilot.press("escape")
        assert is_on(app, ExploreScreen)
        await pilot.press("enter")
        await until(pilot, lambda: len(scene.engine.asked) == 3)
        scene.engine.asked[2].fail(SaeError("There is no SAE for resid.2."))
        await until(pilot, lambda: "There is no SAE for resid.2." in text_on(app))
        assert is_on(app, ExploreScreen)


@pytest.mark.parametrize(("key", "where"), [("a", ""), ("A", "all")])
async def test_ablating_from_the_detail_edits_that_feature(
    scene: Scene, key: str, where: str
) -> None:
    scene.put_trace(probes=scene.put_probes())
    async with scene.open() as (app, pilot):
        trace = await ready(app, pilot)
        await pilot.press("3", "enter")
        await until(pilot, lambda: scene.engine.asked)
        request = scene.engine.asked[0].operation
        scene.engine.asked[0].finish(Featured(made_up(request, trace, corpus=False), 3))
        await until(pilot, lambda: is_on(app, FeatureScreen))
        await pilot.press(key)
        await until(pilot, lambda: isinstance(scene.engine.asked[-1].operation, InspectRequest))
        edits = scene.engine.asked[-1].operation.edits
        assert edits == (f"ablate {request.feature} at {where or request.position}",)
        assert is_on(app, ExploreScreen)


async def test_a_trace_of_another_model_shows_what_is_kept_of_its_features(scene: Scene) -> None:
    scene.put_trace(probes=scene.put_probes())
    with Store.open(scene.cache) as store:
        key = "abcd" * 16
        other = made_up_trace(trace_id=key[:16], raw="Tom ran.", model="org/other")
        store.put_trace(other, key)
    async with scene.open() as (app, pilot):
        await ready(app, pilot)
        app.workbench.open_trace(other.id)
        await until(pilot, lambda: app.workbench.foreign)
        await until(pilot, lambda: app.explorer.state.text == "Tom ran.")
        await pilot.press("3", "enter")
        await until(pilot, lambda: "was not looked at while org/other was loaded" in text_on(app))
        row = app.explorer.state.features[0]
        request = FeatureRequest(scene.request(), feature=row.name, sae=row.sae, position="readout")
        with Store.open(scene.cache) as store:
            keep_feature(store, other.id, request, made_up(request, other, corpus=True))
        await pilot.press("enter")
        await until(pilot, lambda: is_on(app, FeatureScreen))
        assert "label says joy" in text_on(app)
        assert scene.engine.asked == []


async def test_without_a_feature_nothing_is_asked(scene: Scene) -> None:
    scene.put_trace(probes=scene.put_probes(), features_at_readout=0, features_elsewhere=0)
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        await pilot.press("3", "enter")
        await until(pilot, lambda: "There is no feature under the cursor" in text_on(app))
        assert scene.engine.asked == []
