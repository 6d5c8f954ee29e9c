"""Edits from the keyboard and the console: requests, undo, and what the pane says."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest
from support_screen import TEXT, Scene, edits_of, text_on, until
from support_traces import LABELS

from emotui.cache.demo import DEMO_MODEL, example
from emotui.core.protocol import InspectRequest, LoadRequest
from emotui.core.records import Control, Effect, Intervention, Trace
from emotui.ui.edits import carried_over
from emotui.ui.effect_rows import effect_rows, facts_of, remarks_of

WORDS = "No measurable effect of removing this alone."


def effect(metric: str, before: float, after: float, verdict: str = "Rank 1 of 33.") -> Effect:
    controls = (
        Control("matched_features", (0.01,) * 32, 1, tuple(f"L3/{n}" for n in range(32)), ""),
        Control("random_directions", (0.02,) * 5, 6, tuple("abcde"), ""),
        Control("other_emotion", (), None, (), "no other feature is active"),
    )
    return Effect(metric, before, before, after, after - before, controls, 1e-6, verdict)


def edited(trace: Trace, edits: tuple[str, ...] = ("ablate L3/1 at all",)) -> Trace:
    effects = tuple(effect(f"answer.{label}", 0.4, 0.1) for label in LABELS[:3])
    effects += (effect("readout.joy", 1.0, 1.0, WORDS), effect("kl", 0.0, 0.25))
    return msgspec.structs.replace(
        trace,
        edits=edits,
        intervention=Intervention(8, 0.25, 0.31, True, 3),
        effects=effects,
    )


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    scene = Scene(tmp_path)
    scene.put_trace(probes=scene.put_probes())
    return scene


async def test_a_token_of_the_text_is_named_by_its_number(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press("1", "h", "h", "3")
        await until(pilot, lambda: app.explorer.state.features)
        position = app.explorer.state.position
        name = app.explorer.state.features[0].name
        await pilot.press("a")
        await until(pilot, lambda: scene.engine.asked)
        assert scene.engine.asked[0].operation.edits == (f"ablate {name} at {position}",)


@pytest.mark.parametrize("size", [(80, 24), (100, 30), (160, 45)])
async def test_ablate_here_shows_the_effect_and_undo_needs_no_engine(
    scene: Scene, size: tuple[int, int]
) -> None:
    async with scene.open(size=size) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press("3", "a")
        await until(pilot, lambda: scene.engine.asked)
        operation = scene.engine.asked[0].operation
        assert isinstance(operation, InspectRequest)
        name = app.explorer.state.features[0].name
        assert operation.edits == (f"ablate {name} at readout",)
        assert operation.selected
        scene.answer(scene.engine.asked[0], change=lambda t: edited(t, operation.edits))
        await until(pilot, lambda: edits_of(app))
        await pilot.press("4")
        await until(pilot, lambda: "KL of the next token" in text_on(app))
        shown = text_on(app)
        assert operation.edits[0] in shown
        assert "-0.300" in shown and "1/33" in shown and "6/6" in shown
        assert "selected" in shown
        await pilot.press("u")
        await until(pilot, lambda: not edits_of(app))
        assert len(scene.engine.asked) == 1, "the trace before is in the cache"
        await pilot.press("U")
        await until(pilot, lambda: edits_of(app))
        assert len(scene.engine.asked) == 1


async def test_nothing_to_undo_redo_or_ablate_is_said(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press("u")
        await until(pilot, lambda: "no edit to take back" in text_on(app))
        await pilot.press("U")
        await until(pilot, lambda: "No edit was taken back" in text_on(app))
        app.explorer.handlers.look.do_site()
        await pilot.press("3", "a")
        await until(pilot, lambda: "no feature under the cursor" in text_on(app))
        assert scene.engine.asked == []


async def test_the_console_takes_an_edit_and_names_a_wrong_word(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press("colon")
        assert app.explorer.pane == "console"
        await pilot.press(*"steer L3/5 0.1", "enter")
        await until(pilot, lambda: app.explorer.state.notice)
        assert "'0.1'" in text_on(app)
        assert app.explorer.pane == "console", "it stays open to be mended"
        app.explorer.console.value = "steer L3/5 +0.1 at here"
        await pilot.press("enter")
        await until(pilot, lambda: scene.engine.asked)
        position = app.explorer.state.position
        assert scene.engine.asked[0].operation.edits == (f"steer L3/5 +0.1 at {position}",)
        assert app.explorer.pane != "console"
        await pilot.press("colon", *"q", "escape")
        assert app.explorer.pane != "console"


async def test_an_edit_past_the_text_never_reaches_the_engine(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        assert not app.explorer.handlers.edit.put("ablate L3/5 at 99")
        await until(pilot, lambda: "past the end" in text_on(app))
        assert scene.engine.asked == []


async def test_another_text_keeps_the_edits_that_mean_the_same_there(scene: Scene) -> None:
    lines = ("ablate L3/1 at all", "ablate L3/2 at 4")
    scene.put_trace(probes=scene.put_probes(), edits=lines, change=lambda t: edited(t, lines))
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        app.explorer.workbench.read(TEXT, edits=lines)
        await until(pilot, lambda: edits_of(app) == lines)
        app.explorer.handlers.text.read("Another text altogether.")
        await until(pilot, lambda: scene.engine.asked)
        assert scene.engine.asked[0].operation.edits == lines[:1]
        assert "ablate L3/2 at 4" in text_on(app)


def test_rows_put_the_chosen_emotion_first_and_say_where_nothing_is_measurable() -> None:
    from support_traces import made_up_trace

    trace = edited(made_up_trace())
    rows = effect_rows(trace, "joy")
    assert rows[0].metric == "readout joy" and rows[0].chosen and not rows[0].measurable
    assert [row.metric.split()[0] for row in rows[1:]] == ["answer"] * 3
    assert rows[1].matched == "1/33" and rows[1].random == "6/6" and rows[1].other == "-"
    assert any("KL of the next token 0.25 nats" in fact for fact in facts_of(trace))
    remarks = remarks_of(trace, "joy")
    assert f"readout joy: {WORDS}" in remarks
    assert "other emotion: no other feature is active" in remarks
    assert effect_rows(made_up_trace(), "joy") == () == facts_of(made_up_trace())


def test_carried_over() -> None:
    lines = (
        "ablate L1/2 at all",
        "ablate L1/2 at 3-4",
        'scale L1/2 x2 at "dog"',
        "steer L1/2 +0.1 at readout",
        "clamp L1/2 = 3 at last",
    )
    kept, left = carried_over(lines)
    assert kept == (lines[0], lines[3], lines[4])
    assert left == lines[1:3]


async def test_the_examples_edit_stays_with_the_example_and_the_users_own_go_on(
    scene: Scene,
) -> None:
    shown, own = example(), "ablate L1/2 at all"

    def of_demo(edits: tuple[str, ...]) -> Callable[[Trace], Trace]:
        def change(trace: Trace) -> Trace:
            run = msgspec.structs.replace(trace.run, model=DEMO_MODEL.name)
            return edited(msgspec.structs.replace(trace, run=run), edits)

        return change

    for edits in (shown.edits, (*shown.edits, own)):
        scene.put_trace(
            shown.text,
            probes=scene.put_probes(),
            edits=edits,
            change=of_demo(edits),
        )
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        told = f"Not carried over to the new text: {shown.edits[0]}."
        texts: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
        texts = ((shown.edits, ()), ((*shown.edits, own), (own,)))
        for edits, kept in texts:
            app.workbench.read(shown.text, edits=edits)
            await until(pilot, partial(lambda wanted: edits_of(app) == wanted, edits))
            count = len(scene.engine.asked)
            app.explorer.handlers.text.read(f"A text of my own, number {len(edits)}.")
            await until(pilot, partial(lambda n: len(scene.engine.asked) > n, count))
            assert scene.engine.asked[-1].operation.edits == kept
            scene.answer(scene.engine.asked[-1])
            await until(pilot, lambda: told in " ".join(text_on(app).split()))


async def test_an_edit_that_changed_nothing_is_said_to_be_so(scene: Scene) -> None:
    said = "L3/1 is not active in this text: the edit changed nothing"

    def idle(trace: Trace) -> Trace:
        changed = edited(trace)
        done = Intervention(0, 0.0, 0.0, True, 3, notes=(said,))
        return msgspec.structs.replace(changed, intervention=done)

    scene.put_trace("Idle.", probes=scene.put_probes(), edits=("ablate L3/1 at all",), change=idle)
    async with scene.open(size=(80, 24)) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        app.workbench.read("Idle.", edits=("ablate L3/1 at all",))
        await until(pilot, lambda: edits_of(app))
        await until(pilot, lambda: f"{said} · 4 shows all" in text_on(app))
        assert "EDITED, no change" in text_on(app)


async def test_the_demo_is_loaded_behind_its_first_trace(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        app.workbench._load_behind = True
        app.explorer.handlers.text.read(TEXT)
        await until(pilot, lambda: scene.engine.asked)
        operation = scene.engine.asked[0].operation
        assert isinstance(operation, LoadRequest)
        assert operation.template == "ask"
        assert not app.workbench.busy, "the screen is free meanwhile"
        app.explorer.handlers.text.read(TEXT)
        await until(pilot, lambda: app.explorer.state.readings)
        assert len(scene.engine.asked) == 1, "once"


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("s", "steer {feature} +0.1 at readout"),
        ("z", "knock attn L{layer} mean at readout"),
        ("m", "promote {emotion} L{layer} +0.1 at readout"),
        ("p", 'patch resid L{layer} from "another text" at readout'),
    ],
)
async def test_keys_put_an_edit_into_the_console(scene: Scene, key: str, line: str) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        state = app.explorer.state
        wanted = line.format(
            feature=state.features[0].name, layer=state.layer, emotion=state.emotion
        )
        await pilot.press("3", key)
        assert app.explorer.pane == "console"
        assert app.explorer.console.value == wanted
        await pilot.press("enter")
        await until(pilot, lambda: scene.engine.asked)
        assert scene.engine.asked[0].operation.edits == (wanted,)
