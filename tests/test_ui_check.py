"""v and d: asked of the engine, shown in a report and in the pane, again from the cache."""

from __future__ import annotations

from pathlib import Path

import pytest
from support_screen import TEXT, Scene, edits_of, text_on, until
from test_ui_edits import edited

from emotui.cache.findings import VERIFICATION, keep
from emotui.cache.store import Store
from emotui.cache.without import keep_without, plain
from emotui.core.errors import TextError
from emotui.core.findings import (
    Lost,
    Masked,
    OtherTexts,
    Repeated,
    Rivals,
    Spread,
    Verification,
    WithoutWords,
)
from emotui.core.protocol import MaskedWords, Verified, VerifyRequest, WithoutRequest
from emotui.ui.screens.report import ReportScreen


def verification(*, done: int = 50, asked: int = 50) -> Verification:
    acted = Spread(done, -0.25, -0.5, -0.125, done)
    controls = (
        Rivals("any_way", (0.01,) * 39, (0.5,) * 39, 1),
        Rivals("shaped_like_data", (0.02,) * 19, (0.5,) * 19, 2),
    )
    found = [
        Repeated(f"answer.{label}", -0.3, acted, acted, controls, True, f"{words}; verified")
        for label in ("anger", "joy")
        for words in ("median -0.25 [-0.5, -0.125] over 43 of 50 texts; rank 1 of 40",)
    ]
    return Verification(
        edits=("ablate L3/1 at all",),
        source="made-up [b]texts[/b]",
        positions="the same positions on every text",
        asked=asked,
        complete=done == asked,
        metric="answer.joy",
        picked_from=1,
        seed=0,
        others=OtherTexts(
            id=tuple(f"text-{n}" for n in range(done)),
            emotion=("joy",) * done,
            positions=("3-7",) * done,
            active=(True,) * done,
            acted=(True,) * done,
        ),
        metrics=tuple(found),
    )


def without() -> WithoutWords:
    control = Masked(("toy",), None, 0.39)
    return WithoutWords(
        text=TEXT,
        emotion="anger",
        label_set="ekman7",
        template="ask",
        placeholder="something",
        probe=None,
        layer=None,
        trust=None,
        unit="logit",
        before=Masked((), None, 0.4),
        after=Masked(("sad",), None, 0.1),
        masked_text=TEXT.replace("sad", "something"),
        content_words=3,
        choices=3,
        controls=(control,) * 3,
        lost=(Lost("answer", 0.75, (0.025,) * 3, 1, 100.0),),
        seed=0,
        sentence="Without 'sad', the answer loses 75%.",
    )


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    scene = Scene(tmp_path)
    scene.put_trace(probes=scene.put_probes())
    return scene


@pytest.mark.parametrize("size", [(80, 24), (160, 45)])
async def test_v_asks_shows_a_report_and_keeps_lines_under_the_effect(
    scene: Scene, size: tuple[int, int]
) -> None:
    async with scene.open(size=size) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press("3", "a")
        await until(pilot, lambda: scene.engine.asked)
        lines = scene.engine.asked[0].operation.edits
        scene.answer(scene.engine.asked[0], change=lambda trace: edited(trace, lines))
        await until(pilot, lambda: edits_of(app))
        await until(pilot, lambda: not app.workbench.busy)
        readings = app.explorer.state.readings
        assert readings is not None
        trace = readings.trace
        await pilot.press("4", "v")
        await until(pilot, lambda: len(scene.engine.asked) > 1)
        asked = scene.engine.asked[-1]
        assert isinstance(asked.operation, VerifyRequest)
        assert asked.operation.inspect.edits == trace.edits
        assert asked.operation.inspect.selected and asked.operation.texts == 50
        asked.progress("on other texts", 12, 50)
        await until(pilot, lambda: "12/50" in text_on(app))
        with Store.open(scene.cache) as store:
            keep(store, trace.id, VERIFICATION, verification())
        asked.finish(Verified(trace.id, verification(), False, 200, 2.0))
        await until(pilot, lambda: isinstance(app.screen, ReportScreen))
        report = text_on(app)
        assert "made-up [b]texts[/b]" in report
        assert "answer.joy: here -0.3; median -0.25 [-0.5, -0.125]" in report
        await pilot.press("escape")
        assert "on other texts, answer.joy: median -0.25 [-0.5, -0.125]" in text_on(app)
        assert "sign kept on 50, rank 1/40, shaped 2/20: verified" in text_on(app)
        # Again, and after walking away and back: from the cache.
        await pilot.press("v")
        await until(pilot, lambda: isinstance(app.screen, ReportScreen))
        await pilot.press("escape", "u")
        await until(pilot, lambda: not edits_of(app))
        assert "on other texts" not in text_on(app)
        await pilot.press("U")
        await until(pilot, lambda: app.explorer.state.verification)
        await until(pilot, lambda: "on other texts, answer.joy" in text_on(app))
        assert len(scene.engine.asked) == 2


async def test_what_was_cancelled_says_how_to_go_on(scene: Scene) -> None:
    async with scene.open(size=(160, 45)) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press("3", "a")
        await until(pilot, lambda: scene.engine.asked)
        trace = scene.answer(scene.engine.asked[0], change=edited)
        await until(pilot, lambda: edits_of(app))
        await until(pilot, lambda: not app.workbench.busy)
        await pilot.press("v")
        await until(pilot, lambda: len(scene.engine.asked) > 1)
        await pilot.press("escape")
        await until(pilot, lambda: not app.workbench.busy)
        assert scene.engine.asked[-1].cancelled
        with Store.open(scene.cache) as store:
            keep(store, trace.id, VERIFICATION, verification(done=11))
        await pilot.press("v")
        await until(pilot, lambda: len(scene.engine.asked) > 2)  # what is kept is not whole
        part = verification(done=11)
        scene.engine.asked[-1].finish(Verified(trace.id, part, False, 9, 0.1))
        await until(pilot, lambda: isinstance(app.screen, ReportScreen))
        assert "11 of 50 texts" in text_on(app)
        await pilot.press("escape")
        assert "v goes on" in text_on(app)


async def test_v_without_an_edit_says_so(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        await pilot.press("v")
        await until(pilot, lambda: app.explorer.state.notice)
        assert "nothing to verify" in text_on(app)
        assert scene.engine.asked == []


@pytest.mark.parametrize("size", [(80, 24), (160, 45)])
async def test_d_asks_shows_a_report_and_a_line_and_is_cached(
    scene: Scene, size: tuple[int, int]
) -> None:
    async with scene.open(size=size) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        await until(pilot, lambda: not app.workbench.busy)
        await pilot.press("d")
        await until(pilot, lambda: scene.engine.asked)
        asked = scene.engine.asked[-1]
        request = asked.operation
        assert isinstance(request, WithoutRequest)
        assert request.inspect.text == TEXT and request.emotion == app.explorer.state.emotion
        readings = app.explorer.state.readings
        assert readings is not None
        with Store.open(scene.cache) as store:
            keep_without(plain(request), store, readings.trace.run.fingerprint, without())
        asked.finish(MaskedWords(without(), False, 22, 0.4))
        await until(pilot, lambda: isinstance(app.screen, ReportScreen))
        assert "without sad" in text_on(app) and "1 of 4" in text_on(app)
        await pilot.press("escape")
        assert "Without 'sad', the answer loses 75%." in text_on(app)
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, ReportScreen))
        assert len(scene.engine.asked) == 1


async def test_d_on_a_text_without_emotion_words_stops_there(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.put_trace("The bus came at nine.", probes=scene.put_probes())
    async with scene.open("The bus came at nine.") as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        await pilot.press("d")
        await until(pilot, lambda: app.explorer.state.notice)
        assert "The text holds none of the" in text_on(app)
        assert scene.engine.asked == []


async def test_an_engine_that_refuses_leaves_the_screen_as_it_was(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        await until(pilot, lambda: not app.workbench.busy)
        await pilot.press("d")
        await until(pilot, lambda: scene.engine.asked)
        scene.engine.asked[-1].fail(TextError("The text is too long."))
        await until(pilot, lambda: app.explorer.state.notice)
        assert "The text is too long." in text_on(app)
        assert not isinstance(app.screen, ReportScreen)
