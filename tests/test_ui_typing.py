"""Keys that arrive faster than they are handled: each acts in its turn."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from support_screen import Scene, edits_of, until
from textual import events
from textual.app import App

from emotui.core.protocol import InspectRequest


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    scene = Scene(tmp_path)
    scene.put_trace(probes=scene.put_probes())
    return scene


def send(app: App[int], keys: Iterable[str]) -> None:
    """Put keys into the application's queue, none handled before the last is there."""
    for key in keys:
        character = key if len(key) == 1 else None
        app.post_message(events.Key({" ": "space"}.get(key, key), character))


async def test_a_line_end_and_a_cursor_key_stand_where_they_were_typed(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        await pilot.press("i")
        editor = app.explorer.text_pane.editor
        assert editor is not None
        editor.hold("")
        send(app, [*"Num", "ctrl+j", *"ber 3: the wolf", "home", *"A ", "end", *"came"])
        await until(pilot, lambda: editor.text.endswith("came"))
        assert editor.text == "Num\nA ber 3: the wolfcame"


async def test_enter_runs_the_text_with_its_last_letters(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        await pilot.press("i")
        editor = app.explorer.text_pane.editor
        assert editor is not None
        editor.hold("")
        send(app, [*"The wolf came at night.", "enter"])
        await until(pilot, lambda: scene.engine.asked)
        operation = scene.engine.asked[0].operation
        assert isinstance(operation, InspectRequest)
        assert operation.text == "The wolf came at night."


async def test_enter_runs_the_console_s_line_with_its_last_letters(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        await pilot.press(":")
        send(app, [*"knock attn L1 zero at all", "enter"])
        await until(pilot, lambda: edits_of(app) or scene.engine.asked)
        operation = scene.engine.asked[0].operation
        assert isinstance(operation, InspectRequest)
        assert operation.edits == ("knock attn L1 zero at all",)
