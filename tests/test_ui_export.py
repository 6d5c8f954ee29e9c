"""Exports from the screen: where they go, and what keeps them from it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from support_screen import Scene, text_on, until

from emotui.core.errors import ExportError


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.fixture
def cached(scene: Scene) -> Scene:
    scene.put_trace(probes=scene.put_probes())
    return scene


async def test_export_says_where_and_never_overwrites(
    cached: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    async with cached.open(size=(140, 30)) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        readings = app.explorer.state.readings
        assert readings is not None
        target = folder / f"emotui-{readings.trace.id}.json"
        await pilot.press("x")
        await until(pilot, lambda: app.explorer.state.notice)
        assert target.name in text_on(app)
        document = msgspec.json.decode(target.read_bytes())
        assert document["id"] == readings.trace.id
        await pilot.press("x")
        await until(pilot, lambda: "Already there" in text_on(app))
        target.write_text("mine")
        await pilot.press("x")
        await until(pilot, lambda: f"emotui-{readings.trace.id}-2.json" in text_on(app))
        assert target.read_text() == "mine"
        gone = tmp_path / "gone"
        gone.mkdir()
        with monkeypatch.context() as inside:
            inside.chdir(gone)
            gone.rmdir()
            await pilot.press("x")
            await until(pilot, lambda: "Nothing was written" in text_on(app))
        assert app.is_running


async def test_export_into_a_folder_that_cannot_be_written(
    cached: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> Path:
        raise ExportError("The file could not be written.", why="Disk full.", todo="Make room.")

    monkeypatch.setattr("emotui.core.export.json.write_file", refuse)
    monkeypatch.chdir(tmp_path)
    async with cached.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        await pilot.press("x")
        await until(pilot, lambda: "Disk full." in text_on(app))
        assert "Make room." in text_on(app)
