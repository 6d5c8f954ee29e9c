"""The list of traces: what it shows, searching, opening, pinning, deleting, exporting."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from support_cache import key_of, make_trace
from support_screen import TEXT, Scene, edits_of, lines_of, text_on, until
from textual.pilot import Pilot

from emotui.app import EmotuiApp
from emotui.cache.store import Store
from emotui.ui.screens.help import HelpScreen
from emotui.ui.screens.traces import TracesScreen

EDIT = "ablate L1/5 at readout"


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A cache with a family of two, and a trace of a model that is not there."""
    scene = Scene(tmp_path)
    probes = scene.put_probes()
    root = scene.put_trace(probes=probes)
    scene.put_trace(
        probes=probes,
        edits=(EDIT,),
        change=lambda trace: msgspec.structs.replace(trace, parent=root.id, edits=(EDIT,)),
    )
    with Store.open(scene.cache) as store:
        key = key_of("other")
        store.put_trace(make_trace(key, text="[b]Tom[/nope] ran.", model="org/other-model"), key)
    return scene


async def opened(app: EmotuiApp, pilot: Pilot[int], count: int = 3) -> TracesScreen:
    await until(pilot, lambda: app.explorer.state.readings and not app.workbench.busy)
    await pilot.press("t")
    await until(pilot, lambda: isinstance(app.screen, TracesScreen))
    screen = app.screen
    assert isinstance(screen, TracesScreen)
    await until(pilot, lambda: len(screen.list.entries) == count)
    return screen


@pytest.mark.parametrize("size", [(80, 24), (160, 45)])
async def test_what_ifs_stand_under_their_parent(scene: Scene, size: tuple[int, int]) -> None:
    async with scene.open(size=size) as (app, pilot):
        screen = await opened(app, pilot)
        lines = lines_of(app)
        parent = next(n for n, line in enumerate(lines) if "made-up-model" in line and TEXT in line)
        assert f"└ {EDIT}" in lines[parent + 1]
        assert "[b]Tom[/nope] ran." in text_on(app)
        assert "Traces · 3" in text_on(app)
        assert screen.list.row is not None
        assert screen.list.row.text == TEXT  # the cursor stands on the trace that is shown
        assert scene.engine.asked == []


async def test_a_search_narrows_as_it_is_typed_and_escape_takes_it_back(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        screen = await opened(app, pilot)
        await pilot.press("slash", *"model:other")
        await until(pilot, lambda: len(screen.list.entries) == 1)
        await pilot.press("enter", "escape")
        await until(pilot, lambda: len(screen.list.entries) == 3)
        assert app.screen is screen
        await pilot.press("slash", *"is:red")
        await until(pilot, lambda: "is:red is not known" in text_on(app))
        await pilot.press("escape", "escape")
        await until(pilot, lambda: app.screen is app.explorer)


async def test_opening_shows_the_trace_and_a_what_if_can_be_undone(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await opened(app, pilot)
        await pilot.press("j", "enter")
        await until(pilot, lambda: edits_of(app) == (EDIT,))
        await until(pilot, lambda: not app.workbench.busy)
        await pilot.press("u")
        await until(pilot, lambda: edits_of(app) == ())
        assert scene.engine.asked == []


async def test_a_trace_of_another_model_is_shown_and_not_edited(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        screen = await opened(app, pilot)
        place = next(n for n, (row, _) in enumerate(screen.list.entries) if "Tom" in row.text)
        screen.list.move(place - screen.list.cursor)
        await pilot.press("enter")
        await until(pilot, lambda: "Tom" in app.explorer.state.text)
        await until(pilot, lambda: not app.workbench.busy)
        assert "other-model" in lines_of(app)[-2]
        app.explorer.handlers.edit.put("ablate L1/7 at readout")
        await pilot.pause()
        assert "other-model, which is not loaded" in text_on(app)
        assert scene.engine.asked == []
        app.explorer.handlers.text.read(TEXT)
        await until(pilot, lambda: app.explorer.state.text == TEXT)
        assert app.workbench.foreign is None


async def test_pin_delete_and_export(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with scene.open() as (app, pilot):
        screen = await opened(app, pilot)
        row = screen.list.row
        assert row is not None
        await pilot.press("p")
        await until(pilot, lambda: screen.list.row is not None and screen.list.row.pinned)
        await pilot.press("x")
        await until(pilot, lambda: (tmp_path / f"emotui-{row.id}.json").is_file())
        await until(pilot, lambda: f"emotui-{row.id}.json" in text_on(app))
        await pilot.press("d", "n")
        assert len(screen.list.entries) == 3
        await pilot.press("d", "y")
        await until(pilot, lambda: len(screen.list.entries) == 2)
    with Store.open(scene.cache) as store:
        assert row.id not in {left.id for left in store.traces()}


async def test_help_lists_the_keys_of_the_list(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await opened(app, pilot)
        await pilot.press("question_mark")
        assert isinstance(app.screen, HelpScreen)
        assert "Keep this trace whatever" in text_on(app)
