"""What somebody who opens the explorer for the first time is told: keys, effects, messages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from support_screen import Scene, lines_of, text_on, until
from support_traces import LABELS
from test_ui_edits import edited
from textual.geometry import Size

from emotui.core.errors import TextError
from emotui.core.protocol import InspectRequest
from emotui.core.records import Trace
from emotui.ui.panes.text import SaidLine
from emotui.ui.state import Notice


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    scene = Scene(tmp_path)
    scene.put_trace(probes=scene.put_probes())
    return scene


async def test_a_long_message_is_seen_whole_and_takes_no_line_when_gone(scene: Scene) -> None:
    async with scene.open(size=(80, 24)) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        long = " ".join(f"word{number}" for number in range(30))
        app.explorer.handlers.app.say("hint", long)
        await until(pilot, lambda: "word29" in text_on(app))
        app.explorer.update(replace(app.explorer.state, notice=Notice("hint", ("short",))))
        await until(pilot, lambda: "short" in text_on(app) and app.explorer.notice.size.height == 1)


async def test_the_footer_shows_first_what_only_this_pane_can_do(scene: Scene) -> None:
    async with scene.open(size=(80, 24)) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press("3")
        await until(pilot, lambda: "a ablate" in lines_of(app)[-1])
        footer = lines_of(app)[-1]
        assert all(key in footer for key in ("space mark", "enter detail", "s steer", "? keys"))


async def test_ablated_features_are_no_longer_marked(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press("3", "space", "j", "space", "a")
        await until(pilot, lambda: scene.engine.asked)
        assert app.explorer.state.marks == ()


async def test_where_the_effect_is_folded_away_its_result_is_said(scene: Scene) -> None:
    async with scene.open(size=(80, 24)) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        while app.explorer.state.emotion != LABELS[0]:
            await pilot.press("e")
        await pilot.press("3", "a")
        await until(pilot, lambda: scene.engine.asked)
        operation = scene.engine.asked[0].operation
        assert isinstance(operation, InspectRequest)
        scene.answer(scene.engine.asked[0], change=lambda t: edited(t, operation.edits))
        await until(pilot, lambda: "4 shows all" in text_on(app))
        said = app.explorer.state.notice
        assert said is not None
        controls = "(matched 1/33, random 6/6)"
        assert said.lines == (f"answer {LABELS[0]} 0.400 → 0.100 {controls} · 4 shows all",)


@pytest.mark.parametrize(
    ("pane", "key", "told"),
    [
        ("1", "a", "a (ablate) works in Features: 3 goes there."),
        ("4", "s", "s (steer) works in Features: 3 goes there."),
        ("4", "n", "n (next found) works in Text, Layers, Features: 1, 2, 3 go there."),
        ("2", "G", "G is no key here; ? lists the keys of this pane."),
    ],
)
async def test_a_key_that_does_nothing_here_says_where_it_does(
    scene: Scene, pane: str, key: str, told: str
) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press(pane, key)
        await until(pilot, lambda: told in text_on(app))
        assert scene.engine.asked == []
        assert app.explorer.state.readings is not None


async def test_a_text_that_cannot_be_read_leaves_no_numbers_beside_it(scene: Scene) -> None:
    async with scene.open(size=(80, 24)) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        before = app.explorer.state.text
        await pilot.press("i")
        editor = app.explorer.text_pane.editor
        assert editor is not None
        editor.hold("Far too long.")
        await pilot.press("enter")
        await until(pilot, lambda: scene.engine.asked)
        assert "not read yet: the numbers are of the text before" in text_on(app)
        scene.engine.asked[0].fail(TextError("The text is too long."))
        await until(pilot, lambda: "The text is too long." in text_on(app))
        assert app.explorer.state.text == before
        assert "edited, not run" in text_on(app) and "Far too long." not in text_on(app)
        await pilot.press("i")
        assert editor.text == "Far too long.", "what was typed is still in the editor"


async def test_edits_that_were_left_behind_are_said_beside_the_new_trace(scene: Scene) -> None:
    async with scene.open(size=(160, 45)) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press("1", "h", "h", "3", "a")
        await until(pilot, lambda: scene.engine.asked)
        edits = scene.engine.asked[0].operation.edits
        scene.answer(scene.engine.asked[0], change=lambda t: edited(t, edits))
        await until(
            pilot, lambda: app.explorer.state.readings and app.explorer.state.readings.trace.edits
        )
        app.explorer.handlers.text.read("Another text.")
        await until(pilot, lambda: len(scene.engine.asked) == 2)
        scene.answer(scene.engine.asked[1])
        await until(
            pilot, lambda: app.explorer.state.text == "Another text." and not app.workbench.busy
        )
        assert f"Not carried over to the new text: {edits[0]}." in text_on(app)


async def test_the_answer_shows_no_half_numbers(scene: Scene) -> None:
    async with scene.open(size=(60, 24)) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        line = next(line for line in lines_of(app) if "answer " in line and "│" + " " not in line)
        assert "…" not in line


async def test_the_lists_footer_says_what_the_search_line_hears(scene: Scene) -> None:
    async with scene.open(size=(80, 24)) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press("t")
        await until(pilot, lambda: "p pin" in lines_of(app)[-1])
        await pilot.press("slash")
        await until(pilot, lambda: "enter to the list" in lines_of(app)[-1])
        assert "p pin" not in lines_of(app)[-1]
        await pilot.press("escape")
        await until(pilot, lambda: "p pin" in lines_of(app)[-1])


async def test_no_hint_of_the_interventions_is_cut_off(scene: Scene) -> None:
    async with scene.open(size=(80, 24)) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press("4")
        await until(pilot, lambda: "No edit is in force." in text_on(app))
        assert "…" not in text_on(app).split("No edit is in force.")[1]


async def test_facts_about_an_edit_are_read_to_their_end_in_a_narrow_pane(scene: Scene) -> None:
    async with scene.open(size=(100, 30)) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press("3", "a")
        await until(pilot, lambda: scene.engine.asked)
        edits = scene.engine.asked[0].operation.edits
        scene.answer(scene.engine.asked[0], change=lambda t: edited(t, edits))
        await until(pilot, lambda: "KL of the next token" in text_on(app))
        pane = app.explorer.interventions_pane
        lines = [pane.body_line(row) for row in range(40)]
        words = " ".join(line.text.strip() for line in lines if line is not None)
        assert "picked from what this text showed, not tested against that" in words
        assert "…" not in words


async def test_a_placeholder_is_typed_over_and_never_a_name(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press("f", "a", "w", "e")
        assert app.explorer.console.value == "emotion awe from "
        app.explorer.console.value = "emotion NAME from awe"
        await pilot.press("enter")
        await until(pilot, lambda: "NAME is no name." in text_on(app))
        assert scene.engine.asked == []


@pytest.mark.parametrize("size", [(80, 24), (160, 45)])
async def test_what_the_labels_hold_and_that_their_tokens_are_beginnings_is_on_the_screen(
    scene: Scene, size: tuple[int, int]
) -> None:
    def fragments(trace: Trace) -> Trace:
        assert trace.answer is not None
        answer = msgspec.structs.replace(
            trace.answer, mass=0.31, rule="first_token", fragments={LABELS[0]: " a"}
        )
        return msgspec.structs.replace(trace, answer=answer)

    scene.put_trace("A fragment.", probes=scene.put_probes(), change=fragments)
    async with scene.open(size=size) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        app.explorer.handlers.text.read("A fragment.")
        await until(pilot, lambda: "(labels hold 0.31)" in text_on(app))
        assert "(beginnings)" in text_on(app)
        if size[0] == 160:
            assert "answer by beginnings" in text_on(app)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_the_summary_drops_whole_items_the_least_important_first(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = SaidLine()
    parts = (
        "L4 reads fear (trusted)",
        "answers surprise",
        "≠ probe and answer disagree",
        "lens surprise #1, fear #16",
    )
    line._parts = parts
    monkeypatch.setattr(SaidLine, "content_size", Size(width, 1))
    shown = line.render().plain
    assert len(shown) <= width and shown.startswith(parts[0])
    assert all(item in parts for item in shown.split(" · "))
    if width >= 80:
        assert parts[2] in shown
