"""The screen, headless: messages, state, and what stands in the lines, with an engine in hand."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import msgspec
import pytest
from support_screen import TEXT, Scene, lines_of, text_on, until
from textual import events
from textual.strip import Strip

from emotui.app import EmotuiApp
from emotui.core.errors import EngineError, ModelError
from emotui.core.protocol import FitRequest, Fitted, InspectRequest
from emotui.core.records import Trace
from emotui.themes import MONO
from emotui.ui import state as states
from emotui.ui.screens.help import AskScreen, HelpScreen


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.fixture
def cached(scene: Scene) -> Scene:
    scene.put_trace(probes=scene.put_probes())
    return scene


async def test_the_text_and_all_titles_are_painted_before_any_answer(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        shown = text_on(app)
        for part in ("1 Text", "2 Layers", "3 Features", "Lily was sad", "? keys", "q close"):
            assert part in shown
        await until(pilot, lambda: scene.engine.asked)
        assert isinstance(scene.engine.asked[0].operation, InspectRequest)
        assert scene.engine.asked[0].operation.text == TEXT


async def test_a_cached_trace_is_shown_without_an_engine(cached: Scene) -> None:
    async with cached.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        await until(pilot, lambda: not app.workbench.busy)
        shown = text_on(app)
        assert "emb" in shown
        assert "cached" in shown or "from the cache" in shown
        assert "probe situations 0.61, bag 0.41" in shown
        assert cached.engine.asked == []
        assert cached.engine.started == 0


async def test_a_model_without_probes_is_read_fitted_and_read_again(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        engine = scene.engine
        await until(pilot, lambda: engine.asked)
        first = scene.answer(engine.asked[0])
        await until(pilot, lambda: len(engine.asked) == 2)
        # The first trace is on the screen while the probes are being fitted.
        await until(pilot, lambda: app.explorer.state.readings)
        assert app.explorer.state.readings is not None
        assert app.explorer.state.readings.trace.id == first.id
        assert "No probes for this model and prompt yet" in text_on(app)
        assert isinstance(engine.asked[1].operation, FitRequest)
        engine.asked[1].progress("fitting", 12, 48)
        await until(pilot, lambda: app.explorer.state.work and app.explorer.state.work.done == 12)
        assert "fitting 12/48" in text_on(app)
        assert "esc cancels" in text_on(app)
        engine.asked[1].finish(
            Fitted(probe_ids=("probe-readout", "probe-token"), forwards=9, seconds=1.0)
        )
        await until(pilot, lambda: len(engine.asked) == 3)
        assert engine.asked[2].operation.probes == ("probe-readout", "probe-token")
        scene.answer(engine.asked[2])
        await until(pilot, lambda: not app.workbench.busy)
        assert app.explorer.state.work is None
        assert app.explorer.state.readings.emotions
        assert "2 Layers · resid · emotions at readout" in text_on(app)


async def test_escape_cancels_a_fit_and_the_first_trace_stays(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: scene.engine.asked)
        scene.answer(scene.engine.asked[0])
        await until(pilot, lambda: len(scene.engine.asked) == 2)
        await pilot.press("escape")
        assert scene.engine.asked[1].cancelled
        await until(pilot, lambda: app.explorer.state.notice)
        assert "Cancelled" in text_on(app)
        assert app.explorer.state.readings is not None
        assert "F fits them" in text_on(app)
        await pilot.press("F")
        await until(pilot, lambda: len(scene.engine.asked) == 3)
        assert isinstance(scene.engine.asked[2].operation, FitRequest)


async def test_a_late_answer_to_an_older_text_is_not_shown(scene: Scene) -> None:
    probes = scene.put_probes()
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: scene.engine.asked)
        app.explorer.handlers.text.read("Another text.")
        await until(pilot, lambda: len(scene.engine.asked) == 2)
        assert scene.engine.asked[0].cancelled
        newer = scene.answer(scene.engine.asked[1])
        await until(pilot, lambda: app.explorer.state.readings)
        scene.put_trace(TEXT, probes=probes)
        scene.engine.asked[0].error = None
        scene.answer(scene.engine.asked[0])
        await pilot.pause(0.05)
        assert app.explorer.state.readings is not None
        assert app.explorer.state.readings.trace.id == newer.id
        assert "Another text." in text_on(app) or "word0" in text_on(app)


async def test_an_engine_that_ends_leaves_the_screen_and_the_work(cached: Scene) -> None:
    async with cached.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        before = app.explorer.state.readings
        app.explorer.handlers.text.read("Something new.")
        await until(pilot, lambda: cached.engine.asked)
        cached.engine.asked[0].fail(
            EngineError("The engine ended.", why="It ran out of memory.", todo="See its log.")
        )
        await until(pilot, lambda: app.explorer.state.notice)
        shown = text_on(app)
        assert "The engine ended." in shown
        assert "It ran out of memory." in shown
        assert "See its log." in shown
        assert app.explorer.state.readings is before
        await pilot.press("i")
        await pilot.press("enter")
        await until(pilot, lambda: len(cached.engine.asked) == 2)


async def test_an_unexpected_problem_is_told_without_the_text(scene: Scene) -> None:
    async with scene.open("A very private text.") as (app, pilot):
        await until(pilot, lambda: scene.engine.asked)
        asked = scene.engine.asked[0]
        asked.fail(ValueError("private"))
        await until(pilot, lambda: app.explorer.state.notice)
        notice = app.explorer.state.notice
        assert notice is not None
        assert "ValueError" in " ".join(notice.lines)
        assert "private" not in " ".join(notice.lines)


async def test_a_model_that_does_not_exist(scene: Scene) -> None:
    (scene.model / "model.safetensors").unlink()
    (scene.model / "model.bin").write_bytes(b"\x80")
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.notice)
        assert "pickle" in text_on(app)
        assert scene.engine.asked == []
        # and what only the engine can tell
        (scene.model / "model.bin").rename(scene.model / "model.safetensors")
        app.explorer.handlers.text.read(TEXT)
        await until(pilot, lambda: scene.engine.asked)
        scene.engine.asked[0].fail(ModelError("The weights are cut short.", todo="Get them again."))
        await until(pilot, lambda: "cut short" in text_on(app))


async def test_blank_text_says_what_to_do(scene: Scene) -> None:
    async with scene.open("   \n ") as (app, pilot):
        await until(pilot, lambda: app.explorer.state.notice)
        assert "There is no text to read." in text_on(app)
        assert "Press i" in text_on(app)
        assert scene.engine.asked == []


async def test_without_a_text_the_editor_is_open(scene: Scene) -> None:
    async with scene.open("") as (app, pilot):
        await until(pilot, lambda: app.explorer.pane == "editor")
        await pilot.press("I", "ctrl+j", "x", "enter")
        await until(pilot, lambda: scene.engine.asked)
        assert scene.engine.asked[0].operation.text == "I\nx"
        assert app.explorer.pane == "text"


async def test_leaving_the_editor_keeps_the_draft(cached: Scene) -> None:
    async with cached.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        await pilot.press("i")
        assert app.explorer.text_pane.editor is not None
        assert app.explorer.text_pane.editor.text == TEXT
        await pilot.press("X", "escape")
        assert "edited, not run" in text_on(app)
        assert "edited" not in text_on(app).replace("edited, not run", "")
        await pilot.press("i")
        assert app.explorer.text_pane.editor.text == TEXT + "X"
        await pilot.press("enter")
        await until(pilot, lambda: cached.engine.asked)
        assert cached.engine.asked[0].operation.text == TEXT + "X"
        assert "edited, not run" not in text_on(app)


async def test_control_characters_survive_the_editor_and_are_not_painted(cached: Scene) -> None:
    raw = "a\x1b[31mb \u202e c"
    cached.put_trace(raw, probes=("probe-readout", "probe-token"))
    async with cached.open(raw) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        await pilot.press("i")
        shown = text_on(app)
        assert "\x1b" not in shown
        assert "\u202e" not in shown
        assert "a␛[31mb" in shown
        await pilot.press("X", "enter")
        await until(pilot, lambda: cached.engine.asked)
        assert cached.engine.asked[0].operation.text == raw + "X"


@pytest.mark.parametrize("where", ["1", "2", "3", "question_mark"])
async def test_a_paste_is_text_wherever_the_focus_is(cached: Scene, where: str) -> None:
    async with cached.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        await pilot.press(where)
        app.post_message(events.Paste("quit x\r\nq"))
        await until(pilot, lambda: app.explorer.pane == "editor" and app.screen is app.explorer)
        editor = app.explorer.text_pane.editor
        assert editor is not None
        await until(pilot, lambda: editor.text == "quit x\nq")
        await pilot.press("enter")
        await until(pilot, lambda: cached.engine.asked)
        assert cached.engine.asked[0].operation.text == "quit x\nq"


async def test_alt_and_letter_is_escape_then_the_letter(cached: Scene) -> None:
    async with cached.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        await pilot.press("i")
        before = app.explorer.state.emotion
        app.post_message(events.Key("alt+e", "e"))
        await until(pilot, lambda: app.explorer.state.emotion != before)
        assert not app.explorer.text_pane.editing
        app.post_message(events.Key("alt+shift+s", "S"))
        await until(pilot, lambda: app.explorer.state.site == "attn")


async def test_moving(cached: Scene) -> None:
    async with cached.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        state = app.explorer.state
        assert (state.position, state.site, state.view) == (11, "resid", "emotions")
        await pilot.press("left", "h")
        assert app.explorer.state.position == 9
        await pilot.press("home")
        assert app.explorer.state.position == 0
        await pilot.press("left")
        assert app.explorer.state.position == 0
        await pilot.press("end", "right")
        assert app.explorer.state.position == 11
        await pilot.press("2", "up")
        assert app.explorer.state.layer == min(state.layer + 1, 3)
        app.explorer.update(states.layer_by(app.explorer.state, -9))
        await pilot.press("j")
        assert app.explorer.state.layer == -1
        emotion = app.explorer.state.emotion
        await pilot.press("right")
        emotions = cached_emotions(app)
        assert app.explorer.state.emotion == emotions[emotions.index(emotion) + 1]
        await pilot.press("0")
        assert app.explorer.state.view == "tokens"
        await pilot.press("left")
        assert app.explorer.state.position == 10
        await pilot.press("k", "enter", "down")
        panes: list[str] = [app.explorer.pane]
        assert app.explorer.state.feature == 1
        for key in ("shift+tab", "tab"):
            await pilot.press(key)
            panes.append(app.explorer.pane)
        assert panes == ["features", "layers", "features"]


def cached_emotions(app: EmotuiApp) -> tuple[str, ...]:
    readings = app.explorer.state.readings
    assert readings is not None
    return readings.emotions


async def test_position_goes_round(cached: Scene) -> None:
    async with cached.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        app.explorer.update(states.at_token(app.explorer.state, 4))
        seen = []
        for _ in range(3):
            await pilot.press("P")
            seen.append(app.explorer.state.position)
        assert seen == [11, 8, 4]


async def test_the_heat_map_shows_the_numbers_of_the_trace(cached: Scene) -> None:
    async with cached.open(size=(140, 40)) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        await pilot.press("2")
        readings = app.explorer.state.readings
        assert readings is not None
        columns = readings.trace.readouts
        rows = [line for line in lines_of(app) if "[" in line or "t " in line]
        for layer in range(4):
            row = next(line for line in rows if f" {layer}t " in line)
            for emotion in readings.emotions:
                z = next(
                    columns.z[i]
                    for i in range(len(columns.z))
                    if (columns.probe[i], columns.site[i], columns.layer[i])
                    == ("probe-readout", "resid", layer)
                    and (columns.position[i], columns.emotion[i]) == (11, emotion)
                )
                assert z is not None
                shown = f"{z:+.1f}" if f"{abs(z):.1f}" != "0.0" else " 0.0"
                assert shown in row, (layer, emotion)


def _template_outside(trace: Trace) -> Trace:
    marks = tuple(
        "outside" if position in (0, 9, 10) else "" for position in trace.readouts.position
    )
    return msgspec.structs.replace(
        trace, readouts=msgspec.structs.replace(trace.readouts, mark=marks)
    )


@pytest.mark.parametrize(("size", "cells"), [((100, 30), 13), ((80, 24), 24), ((160, 45), 24)])
async def test_labels_have_the_room_that_is_left(
    scene: Scene, size: tuple[int, int], cells: int
) -> None:
    """The numbers of a row stay whole, under their names; the label ends at the border."""
    label = "sadness .91*: weeps, mourned, alone"
    scene.put_trace(
        probes=scene.put_probes(),
        change=lambda trace: msgspec.structs.replace(
            trace,
            features=msgspec.structs.replace(
                trace.features,
                label=(label,) * len(trace.features.label),
                attribution=(-0.123,) * len(trace.features.label),
            ),
        ),
    )
    async with scene.open(size=size) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press("3")
        await pilot.pause()
        lines = lines_of(app)
        head = next(line for line in lines if "feature" in line and "label" in line)
        start = head.index("label")
        first = app.explorer.state.features[0]
        row = next(line for line in lines if f"{first.name} " in line and "sadness" in line)
        assert row[start:].startswith(label[:cells])
        before = row[:start].split()
        assert f"{first.activation:.2f}" in before and "-0.123" in before
        shown = "attr." if "attr." in head else "attribution"
        assert head.index(shown) + len(shown) == row.index("-0.123") + len("-0.123")


async def test_what_a_probe_was_not_fitted_for_is_drawn_hollow(scene: Scene) -> None:
    scene.put_trace(probes=scene.put_probes(), change=_template_outside)
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        await pilot.press("2", "end")
        assert not any("(+" in line or "(-" in line for line in lines_of(app))
        await pilot.press("1", "left", "2")  # the template's last but one token
        row = next(line for line in lines_of(app) if "  0t" in line).split("  0t")[1]
        assert row.count("(") == row.count(")") == len(cached_emotions(app))
        assert "outside" in text_on(app)


def _has_readings(app: EmotuiApp) -> bool:
    return app.explorer.state.readings is not None


async def test_two_layouts_and_a_terminal_that_is_too_small(cached: Scene) -> None:
    for size, classes in (((100, 30), "-wide"), ((80, 24), "-narrow"), ((60, 15), "-narrow")):
        async with cached.open(size=size) as (app, pilot):
            await until(pilot, partial(_has_readings, app))
            assert app.explorer.has_class(classes)
            shown = text_on(app)
            for title in ("1 Text", "2 Layers", "3 Features"):
                assert title in shown, (size, title)
            assert "q close" in shown
            await pilot.press("3")
            await pilot.pause()
            assert re.search(r"▸ L\d/\d+ +█", text_on(app))
    async with cached.open(size=(30, 8)) as (app, pilot):
        assert "40 x 12" in text_on(app)
        await pilot.resize_terminal(100, 30)
        await pilot.pause()
        assert "1 Text" in text_on(app)


async def test_help_is_that_of_the_focused_pane(cached: Scene) -> None:
    async with cached.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        await pilot.press("3", "question_mark")
        assert isinstance(app.screen, HelpScreen)
        await pilot.pause()
        assert "Keys: Features" in text_on(app)
        assert "Attribution estimates" in text_on(app), "how to read it comes first"
        for _ in range(20):
            await pilot.press("j")
        await until(pilot, lambda: "Sort the features" in text_on(app))
        await pilot.press("escape")
        assert top_of(app) is app.explorer


def top_of(app: EmotuiApp) -> object:
    return app.screen


async def test_q_closes_and_asks_while_work_runs(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: scene.engine.asked)
        await pilot.press("q")
        assert isinstance(app.screen, AskScreen)
        await pilot.press("n")
        assert top_of(app) is app.explorer
        assert app.is_running
        await pilot.press("q", "y")
        await pilot.pause()
        assert app.return_code == 0
        assert app._exit
    assert scene.engine.closed


async def test_ctrl_c_cancels_also_from_the_editor(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: scene.engine.asked)
        await pilot.press("i", "ctrl+c")
        assert scene.engine.asked[0].cancelled
        await until(pilot, lambda: not app.workbench.busy)
        assert app.is_running


async def test_no_colour_leaves_nothing_to_colour(cached: Scene) -> None:
    async with cached.open(coloured=False, theme=MONO) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        for strip in app.screen._compositor.render_strips():
            for segment in strip:
                style = segment.style
                assert style is None or style.color is None or style.color.is_default
                assert style is None or style.bgcolor is None or style.bgcolor.is_default
        assert "^" in text_on(app)  # the cursor's token
        assert "[" in text_on(app)  # the cursor's cell


async def test_only_the_cursors_lines_are_painted_again(
    cached: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cached.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        await pilot.press("2")
        await pilot.pause()
        painted: list[int] = []
        pane = app.explorer.layers_pane
        original = pane.body_line

        def counted(row: int) -> Strip | None:
            painted.append(row)
            return original(row)

        monkeypatch.setattr(pane, "body_line", counted)
        await pilot.press("down")
        await pilot.pause()
        assert painted
        assert len(set(painted)) <= 2
