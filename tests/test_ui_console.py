"""The console on the screen: completion, history, commands, recipes, notes and marks."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from support_console import EDITS, shown, typed, with_edits
from support_screen import TEXT, Scene, edits_of, lines_of, notice_of, text_on, trace_of, until
from test_ui_edits import edited

from emotui.cache.history import load_history
from emotui.cache.notes import add_note, notes_of
from emotui.cache.recipes import Recipe, load_recipe, recipes, save_recipe
from emotui.core.edits import OPERATIONS, PatchEdit, parse_edit
from emotui.core.errors import EditError, ModelError
from emotui.core.protocol import InspectRequest
from emotui.core.records import Trace
from emotui.ui import edits
from emotui.ui.actions import ACTIONS
from emotui.ui.commands import command_in, command_table
from emotui.ui.state import Other


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    scene = Scene(tmp_path)
    scene.put_trace(probes=scene.put_probes())
    return scene


def test_every_action_of_a_pane_is_a_command_by_its_id() -> None:
    table = command_table()
    for action in ACTIONS:
        if set(action.panes) & {"text", "layers", "features", "interventions"}:
            assert table[action.id].action == action.id
    assert table["undo"].action == "edit.undo" and table["quit"].action == "app.close"
    assert not set(table) & set(OPERATIONS), "edits come first"
    assert all(word == word.lower() and " " not in word for word in table)


@pytest.mark.parametrize(
    ("line", "word", "says"),
    [
        ("udno", "udno", "undo"),
        ("notes hello", "notes", "note"),
        ("edit.undoo", "edit.undoo", "edit.undo"),
        ("ablte L3/1", "ablte", "ablate"),
        ("qqqqqq", "qqqqqq", "ablate"),
        ("undo now", "now", "undo takes no word"),
        ("note", "", "note wants TEXT"),
        ("note   ", "", "note wants TEXT"),
        ("layer", "", "layer wants N"),
    ],
)
def test_what_is_no_command_says_what_is_like_it(line: str, word: str, says: str) -> None:
    with pytest.raises(EditError) as refused:
        command_in(line, command_table())
    assert refused.value.word == word
    assert says in refused.value.why


def test_edits_and_recipes_are_no_commands_and_a_colon_is_left_out() -> None:
    table = command_table()
    for line in ("ablate L3/1", ":KNOCK attn L1", "@calm"):
        assert command_in(line, table) is None
    found = command_in(":note a  b", table)
    assert found is not None and (found[0].name, found[1]) == ("note", "a  b")


# Completion


@pytest.mark.parametrize("size", [(80, 24), (160, 45)])
async def test_tab_takes_goes_round_and_right_takes_the_ghost(
    scene: Scene, size: tuple[int, int]
) -> None:
    async with scene.open(size=size) as (app, pilot):
        await shown(app, pilot)
        await pilot.press("colon")
        await typed(pilot, "s")
        await pilot.pause()
        assert "▸ scale" in text_on(app) and "  steer" in text_on(app)
        await pilot.press("tab")
        assert app.explorer.console.value == "scale"
        await pilot.press("tab")
        assert app.explorer.console.value == "steer"
        assert "▸ steer" in text_on(app)
        await pilot.press("shift+tab")
        assert app.explorer.console.value == "scale"
        await pilot.press("space")
        first = app.explorer.state.features[0].name
        await until(pilot, lambda: app.explorer.console._suggestion == f"scale {first}")
        await pilot.press("right")
        assert app.explorer.console.value == f"scale {first}"
        await typed(pilot, " x2 at h", "tab")
        assert app.explorer.console.value == f"scale {first} x2 at here ", "one match: and a space"
        await pilot.press("enter")
        await until(pilot, lambda: scene.engine.asked)
        position = app.explorer.state.position
        assert scene.engine.asked[0].operation.edits == (f"scale {first} x2 at {position}",)


async def test_a_wrong_word_is_pointed_at_and_the_line_stays(scene: Scene) -> None:
    async with scene.open(size=(80, 24)) as (app, pilot):
        await shown(app, pilot)
        await pilot.press("colon")
        await typed(pilot, "knock attn wobble mean", "enter")
        await until(pilot, lambda: "^" in text_on(app))
        lines = lines_of(app)
        line = next(n for n, text in enumerate(lines) if "knock attn wobble mean" in text)
        assert lines[line + 1].rstrip() == " " * lines[line].index("wobble") + "^^^^^^"
        assert app.explorer.console.value == "knock attn wobble mean"
        assert edits_of(app) == () and scene.engine.asked == []
        await pilot.press("backspace")
        await pilot.pause()
        assert "^^^^" not in text_on(app)


async def test_what_was_wrong_goes_with_the_line(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await shown(app, pilot)
        for leave in (
            ["escape"],
            ["home", *["delete"] * 6, "enter"],
            [*["backspace"] * 6, "enter"],
        ):
            await pilot.press("colon")
            await typed(pilot, "wobble", "enter")
            await until(pilot, lambda: app.explorer.state.notice is not None)
            assert "'wobble'" in text_on(app)
            await pilot.press(*leave)
            await until(pilot, lambda: app.explorer.state.notice is None)
            assert "'wobble'" not in text_on(app) and app.explorer.pane != "console"
        await pilot.press("colon")
        await typed(pilot, "wobble", "enter", *["backspace"] * 6)
        await typed(pilot, "layer 2", "enter")
        await until(pilot, lambda: app.explorer.state.layer == 2)
        assert app.explorer.state.notice is None, "the next command succeeded"


async def test_what_another_part_said_stays_when_the_console_closes(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await shown(app, pilot)
        await pilot.press("colon")
        await typed(pilot, "wobble", "enter")
        app.explorer.handlers.console.say("hint", "Something else was said.")
        await pilot.press("escape")
        await pilot.pause()
        assert "Something else was said." in text_on(app)


async def test_keys_of_completion_do_nothing_where_nothing_fits(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await shown(app, pilot)
        await pilot.press("colon")
        await typed(pilot, "wobble ", "tab", "shift+tab", "up", "down")
        assert app.explorer.console.value == "wobble "


# History


async def test_history_is_walked_kept_and_private_sessions_keep_none(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await shown(app, pilot)
        for line in ("layer 1", "wobble", "layer 1"):
            await pilot.press("colon")
            await typed(pilot, line, "enter")
            await pilot.pause()
            await pilot.press("escape")
        await pilot.press("colon")
        await typed(pilot, "abl", "up")
        assert app.explorer.console.value == "layer 1"
        await pilot.press("up", "up", "up")
        assert app.explorer.console.value == "wobble"
        await pilot.press("down", "down")
        assert app.explorer.console.value == "abl", "what was being typed"
        await until(pilot, lambda: load_history(scene.cache) == ("wobble", "layer 1"))
    async with scene.open() as (app, pilot):
        await shown(app, pilot)
        await pilot.press("colon")
        await until(pilot, lambda: app.explorer.handlers.console._lines)
        await pilot.press("up")
        assert app.explorer.console.value == "layer 1"
    async with scene.open(private=True) as (app, pilot):
        await shown(app, pilot)
        await pilot.press("colon")
        await typed(pilot, "layer 2", "enter")
        await pilot.press("colon", "up")
        assert app.explorer.console.value == "layer 2"
        await pilot.press("up")
        assert app.explorer.console.value == "layer 2"
    assert load_history(scene.cache) == ("wobble", "layer 1")


# Commands


async def test_commands_move_the_cursor_and_choose(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await shown(app, pilot)
        await pilot.press("2")
        for line in ("layer 1", "emotion sadness", "goto 3", "site"):
            await pilot.press("colon")
            await typed(pilot, line, "enter")
            await pilot.pause()
            assert app.explorer.pane == "layers", "back where it was"
        state = app.explorer.state
        assert (state.layer, state.emotion, state.position) == (1, "sadness", 3)
        assert state.site == "attn"
        await pilot.press("colon")
        await typed(pilot, "layer emb", "enter")
        assert app.explorer.state.layer == -1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("layer 99", "There are 0 to 3"),
        ("layer two", "There is no layer"),
        ("goto 99", "There is no token"),
        ("emotion boredom", "No probe reads"),
        ("metric wobble", "is no metric"),
        ("metric answer.boredom", "is no metric"),
        ("export pdf", "no form of export"),
        ("template wobble", "wobble"),
        ("save calm", "No edit is in force"),
        ("@nothing", "no recipe called"),
        ("@Not-A-Name", "lower-case"),
        ("undoo", "Like it: undo"),
        ("ablate L3/1 at 99", "past the end"),
        ('ablate L3/1 at "zebra"', "does not occur"),
        ("patch resid L1 from t7", "an open trace"),
        ("knock attn L2-9", "There is no layer 9"),
        ("ablate L3/1 L12/1", "There is no layer 12"),
        ("ablate L3/999999", "There is no feature L3/999999"),
        ("steer L3/1 +nan", "a finite number"),
        ("modulate +effort L1 +0.1 keep effort", "each appraisal once"),
    ],
)
async def test_a_bad_line_says_why_and_changes_nothing(scene: Scene, line: str, says: str) -> None:
    async with scene.open() as (app, pilot):
        await shown(app, pilot)
        before = app.explorer.state
        await pilot.press("colon")
        app.explorer.console.put(line)
        await pilot.press("enter")
        await until(pilot, lambda: app.explorer.state.notice)
        assert says in notice_of(app)
        after = app.explorer.state
        assert (after.layer, after.position, after.emotion) == (
            before.layer, before.position, before.emotion,
        )  # fmt: skip
        assert edits_of(app) == () and scene.engine.asked == []
        assert app.explorer.pane == "console" and app.explorer.console.value == line
        assert recipes(scene.cache) == []


async def test_metric_and_template_read_the_text_again(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await shown(app, pilot)
        for line, field, value in (
            ("metric answer.joy", "metric", "answer.joy"),
            ("template raw", "template", "raw"),
        ):
            await pilot.press("colon")
            await typed(pilot, line, "enter")
            await until(pilot, lambda: scene.engine.asked)
            operation = scene.engine.asked.pop().operation
            assert isinstance(operation, InspectRequest)
            assert getattr(operation, field) == value and operation.text == TEXT


async def test_a_template_that_cannot_be_used_is_taken_back(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await shown(app, pilot)
        await pilot.press("colon")
        await typed(pilot, "template chat", "enter")
        await until(pilot, lambda: scene.engine.asked)
        scene.engine.asked[0].fail(ModelError("This tokenizer has no chat template."))
        await until(pilot, lambda: "no chat template" in text_on(app))
        app.explorer.handlers.text.read("Another text.")
        await until(pilot, lambda: len(scene.engine.asked) == 2)
        assert scene.engine.asked[1].operation.template == "ask"


# Recipes


async def test_edits_are_saved_and_put_in_force_by_name(scene: Scene) -> None:
    trace = with_edits(scene)
    async with scene.open() as (app, pilot):
        await shown(app, pilot)
        app.explorer.workbench.read(TEXT, edits=EDITS)
        await until(pilot, lambda: edits_of(app) == EDITS)
        await pilot.press("colon")
        await typed(pilot, "save calm", "enter")
        await until(pilot, lambda: "Saved @calm: 2 edits." in text_on(app))
        recipe = load_recipe(scene.cache, "calm")
        assert recipe == Recipe("calm", trace.run.fingerprint, trace.run.model, EDITS)
        await pilot.press("u", "u")
        await until(pilot, lambda: edits_of(app) == () or scene.engine.asked)
        app.explorer.workbench.read(TEXT, edits=())
        await until(pilot, lambda: edits_of(app) == ())
        await pilot.press("colon")
        await typed(pilot, "@")
        await until(pilot, lambda: "@calm" in text_on(app))
        await pilot.press("tab", "enter")
        await until(pilot, lambda: edits_of(app) == EDITS)


async def test_a_recipe_of_another_model_is_refused_and_both_are_named(scene: Scene) -> None:
    save_recipe(scene.cache, Recipe("calm", "cd" * 32, "the-other-model", EDITS))
    async with scene.open() as (app, pilot):
        await shown(app, pilot)
        await pilot.press("colon")
        await typed(pilot, "@calm", "enter")
        await until(pilot, lambda: app.explorer.state.notice)
        said = notice_of(app)
        assert "the-other-model" in said and scene.model.name in said
        assert edits_of(app) == () and scene.engine.asked == []


# Notes


async def test_a_note_is_shown_kept_and_exported(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with scene.open(size=(80, 24)) as (app, pilot):
        await shown(app, pilot)
        trace = trace_of(app).id
        await pilot.press("4", "colon")
        await typed(pilot, "note it starts here", "enter")
        await until(pilot, lambda: "Noted" in text_on(app))
        assert re.search(r"note, \d{4}-.*: it starts here", text_on(app))
        assert [note.text for note in notes_of(scene.cache, [trace])] == ["it starts here"]
        for form in ("json", "md", "html", "neuronpedia"):
            await pilot.press("colon")
            await typed(pilot, f"export {form}", "enter")
            name = f"emotui-{trace}" + ("-neuronpedia" if form == "neuronpedia" else "")
            path = tmp_path / f"{name}.{'json' if form == 'neuronpedia' else form}"
            await until(pilot, path.exists)
        assert json.loads((tmp_path / f"emotui-{trace}.json").read_text())["notes"]
        assert "it starts here" in (tmp_path / f"emotui-{trace}.md").read_text()
        assert "it starts here" in (tmp_path / f"emotui-{trace}.html").read_text()
        assert json.loads((tmp_path / f"emotui-{trace}-neuronpedia.json").read_text())["nodes"]
        await pilot.press("colon")
        await typed(pilot, "export md", "enter")
        await until(pilot, lambda: "Already there" in text_on(app))


async def test_notes_of_a_trace_come_with_it_as_plain_text(scene: Scene) -> None:
    trace = scene.put_trace(probes=scene.put_probes())
    add_note(scene.cache, trace.id, "[red]first[/nope]")
    add_note(scene.cache, trace.id, "second [b]")
    async with scene.open() as (app, pilot):
        await shown(app, pilot)
        await until(pilot, lambda: len(app.explorer.state.notes) == 2)
        await pilot.press("4")
        await until(pilot, lambda: "note 2 of 2" in text_on(app))
        assert "second [b]" in text_on(app)
        app.explorer.handlers.text.read("Another text.")
        await until(pilot, lambda: scene.engine.asked)
        scene.answer(scene.engine.asked[0])
        await until(pilot, lambda: app.explorer.state.text == "Another text.")
        await until(pilot, lambda: app.explorer.state.notes == ())


# Marks


@pytest.mark.parametrize("key", ["a", "A"])
async def test_marked_features_are_one_edit(scene: Scene, key: str) -> None:
    async with scene.open() as (app, pilot):
        await shown(app, pilot)
        await pilot.press("3", "space", "j", "space")
        names = [row.name for row in app.explorer.state.features[:2]]
        assert app.explorer.state.marks == tuple(names)
        lines = text_on(app)
        assert lines.count("●") == 2 and "2 marked" in lines
        await pilot.press("2", "k", "left", "3")
        assert app.explorer.state.marks == tuple(names), "they stay where the cursor goes"
        assert app.explorer.state.position == trace_of(app).text.readout
        position = "readout" if key == "a" else "all"
        await pilot.press(key)
        await until(pilot, lambda: scene.engine.asked)
        assert scene.engine.asked[0].operation.edits == (f"ablate {' '.join(names)} at {position}",)


async def test_marks_go_by_space_by_escape_by_unmark_and_by_another_text(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await shown(app, pilot)
        await pilot.press("3", "space", "j", "space", "space")
        assert len(app.explorer.state.marks) == 1
        await pilot.press("escape")
        assert not app.explorer.state.marks
        await pilot.press("space", "s")
        assert app.explorer.console.value.startswith("steer ")
        await pilot.press("escape")
        assert len(app.explorer.state.marks) == 1, "escape left the console only"
        await pilot.press("colon")
        await typed(pilot, "unmark", "enter")
        assert not app.explorer.state.marks
        await pilot.press("space")
        app.explorer.handlers.text.read("Another text.")
        await until(pilot, lambda: scene.engine.asked)
        scene.answer(scene.engine.asked[0])
        await until(pilot, lambda: app.explorer.state.text == "Another text.")
        await until(pilot, lambda: app.explorer.state.marks == ())


async def test_joint_ablation_is_offered_where_one_alone_does_nothing(scene: Scene) -> None:
    alone = ("ablate L3/1 at all",)
    scene.put_trace(probes=scene.put_probes(), edits=alone, change=_nothing_alone)
    async with scene.open(size=(160, 45)) as (app, pilot):
        await shown(app, pilot)
        app.explorer.workbench.read(TEXT, edits=alone)
        await until(pilot, lambda: edits_of(app) == alone)
        await until(pilot, lambda: "space marks some" in text_on(app))


def _nothing_alone(trace: Trace) -> Trace:
    made = edited(trace, ("ablate L3/1 at all",))
    effects = tuple(
        msgspec.structs.replace(one, verdict="No measurable effect of removing this alone.")
        for one in made.effects
    )
    return msgspec.structs.replace(made, effects=effects)


async def test_visited_traces_have_names_to_patch_from(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await shown(app, pilot)
        first = trace_of(app).id
        app.explorer.handlers.text.read("Another text.")
        await until(pilot, lambda: scene.engine.asked)
        scene.answer(scene.engine.asked[0])
        await until(pilot, lambda: len(app.explorer.state.visits) == 2)
        await until(pilot, lambda: not app.workbench.busy)
        await pilot.press("colon")
        await typed(pilot, "patch resid L1 from ")
        await until(pilot, lambda: "▸ t1" in text_on(app))
        await typed(pilot, "t1", "enter")
        await until(pilot, lambda: len(scene.engine.asked) == 2)
        edits = scene.engine.asked[1].operation.edits
        assert edits == (f"patch resid L1 from {first} at readout",)


async def test_a_patch_is_suggested_from_the_other_text_seen_last(scene: Scene) -> None:
    other = 'He said "no" and left.'
    async with scene.open() as (app, pilot):
        await shown(app, pilot)
        before = trace_of(app).text.raw
        await pilot.press("p")
        layer = app.explorer.state.layer
        console = app.explorer.console
        assert console.value == f'patch resid L{layer} from "another text" at readout'
        assert console.selected_text == "another text", "typed over"
        await pilot.press("escape")
        app.explorer.handlers.text.read(other)
        await until(pilot, lambda: scene.engine.asked)
        scene.answer(scene.engine.asked[0])
        await until(pilot, lambda: trace_of(app).text.raw == other)
        await until(pilot, lambda: not app.workbench.busy)
        await pilot.press("p")
        assert f'from "{before}" at readout' in console.value and not console.selected_text
        await pilot.press("escape")
        app.explorer.handlers.text.read(before)
        await until(pilot, lambda: trace_of(app).text.raw == before)
        await pilot.press("p")
        assert r'from "He said \"no\" and left." at readout' in console.value
        await pilot.press("enter")
        await until(pilot, lambda: len(scene.engine.asked) == 2)
        (line,) = scene.engine.asked[1].operation.edits
        edit = parse_edit(line)
        assert isinstance(edit, PatchEdit) and str(edit) == line
        assert edit.source.value == other


@pytest.mark.parametrize("raw", ["one line\nand another", "long " * 60, "a\u202eb"])
async def test_a_text_that_is_no_short_line_goes_by_the_name_of_its_trace(
    scene: Scene, raw: str
) -> None:
    async with scene.open() as (app, pilot):
        await shown(app, pilot)
        state = replace(app.explorer.state, other=Other("t7", raw))
        assert edits.patch(state) == f"patch resid L{state.layer} from t7 at readout"
        same = replace(state, other=Other("t1", state.text))
        assert '"another text"' in (edits.patch(same) or "")


# The palette
