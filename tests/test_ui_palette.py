"""What is offered: the palette of a pane, and every argument that the console completes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from support_console import shown, typed
from support_screen import Scene, text_on, until

from emotui.core.records import Trace
from emotui.ui.commands import command_in


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    scene = Scene(tmp_path)
    scene.put_trace(probes=scene.put_probes())
    return scene


@pytest.mark.parametrize("size", [(80, 24), (160, 45)])
async def test_the_palette_offers_what_the_pane_can_do(scene: Scene, size: tuple[int, int]) -> None:
    async with scene.open(size=size) as (app, pilot):
        await shown(app, pilot)
        await pilot.press("3", "ctrl+p")
        await until(pilot, lambda: app.screen is not app.explorer)
        await typed(pilot, "mark")
        await until(pilot, lambda: "mark  (space)" in text_on(app))
        await pilot.press("enter")
        await pilot.press("enter") if app.screen is not app.explorer else None
        await until(pilot, lambda: app.explorer.state.marks)
        assert app.screen is app.explorer
        await pilot.press("1", "ctrl+p")
        await until(pilot, lambda: app.screen is not app.explorer)
        await typed(pilot, "space")
        await pilot.pause(0.3)
        assert "mark  (space)" not in text_on(app), "no such thing in the text"
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is app.explorer)


# What is offered for commands


async def test_every_argument_that_is_offered_is_taken(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with_arguments = ("emotion", "layer", "goto", "metric", "template", "export")
    async with scene.open() as (app, pilot):
        await shown(app, pilot)
        await pilot.press("colon")
        await until(pilot, lambda: app.explorer.console.choices.found)
        console, handlers = app.explorer.console, app.explorer.handlers.console
        taken = {name: handlers._own()[name] for name in with_arguments}
        for name in with_arguments:
            found = console.completer(f"{name} ", len(name) + 1)
            assert found, name
            for one in (found[0], found[-1]):
                line = one.put_in(f"{name} ")
                parsed = command_in(line, handlers._commands)
                assert parsed is not None and parsed[1] == one.text
                app.explorer.open_console(line)
                taken[name](one.text)  # it raises where the argument is wrong
        assert console.completer(":lay", 4)[0].put_in(":lay") == ":layer"
        assert console.completer("undo ", 5) == []


async def test_labels_of_others_are_listed_as_they_may_be_painted(scene: Scene) -> None:
    hostile = "[red]\x1b[31mloud\u202e[/nope]"

    def change(trace: Trace) -> Trace:
        labels = (hostile,) * len(trace.features.label)
        features = msgspec.structs.replace(trace.features, label=labels)
        return msgspec.structs.replace(trace, features=features)

    scene.put_trace(probes=scene.put_probes(), change=change)
    async with scene.open(size=(80, 24)) as (app, pilot):
        await shown(app, pilot)
        await pilot.press("colon")
        await typed(pilot, "ablate ")
        await until(pilot, lambda: "loud" in text_on(app))
        assert "[red]" in text_on(app)
        assert "\x1b" not in text_on(app) and "\u202e" not in text_on(app)
