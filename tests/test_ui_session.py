"""Coming back: the explorer opens where it was left, and no signal loses the place."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import msgspec
import pytest
from support_screen import TEXT, Scene, edits_of, text_on, until
from support_terminal import explorer, painted

from emotui.cache.session import Session, save_session, saved_session

EDIT = "ablate L1/5 at readout"


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    scene = Scene(tmp_path)
    probes = scene.put_probes()
    root = scene.put_trace(probes=probes)
    scene.put_trace(
        probes=probes,
        edits=(EDIT,),
        change=lambda trace: msgspec.structs.replace(trace, parent=root.id, edits=(EDIT,)),
    )
    return scene


def left_at(scene: Scene) -> Session | None:
    return saved_session(scene.cache, scene.request().spec)


async def test_place_and_edits_come_back(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        app.explorer.handlers.edit.put(EDIT)
        await until(
            pilot, lambda: app.explorer.state.readings and app.explorer.state.readings.trace.edits
        )
        await until(pilot, lambda: not app.workbench.busy)
        await pilot.press("2", "k", "0", "h", "h", "e", "e")
        before = app.explorer.state
        app.explorer.save_session()
    session = left_at(scene)
    assert session is not None
    async with scene.open(text="", session=session) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        now = app.explorer.state
        for name in ("position", "layer", "site", "emotion", "view", "sorting", "text"):
            assert getattr(now, name) == getattr(before, name), name
        assert now.readings is not None
        assert now.readings.trace.edits == (EDIT,)
        assert "As you left it" in text_on(app)
        await until(pilot, lambda: not app.workbench.busy)
        await pilot.press("u")
        await until(pilot, lambda: edits_of(app) == ())
        assert scene.engine.asked == []


async def test_a_private_session_leaves_no_place(scene: Scene) -> None:
    async with scene.open(private=True) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        await pilot.pause(1.3)
    assert left_at(scene) is None


def test_the_file_is_private_and_a_place_whose_trace_is_gone_is_none(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    trace = scene.put_trace()
    spec = scene.request().spec
    session = Session(
        trace=trace.id, position=1, layer=0, site="resid", emotion="joy", view="", sorting=""
    )
    save_session(scene.cache, spec, session)
    assert left_at(scene) == session
    (path,) = (scene.cache / "sessions").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert TEXT.encode() not in path.read_bytes()
    for damage in (
        b"",
        b"{}",
        b"[1]",
        msgspec.json.encode(msgspec.structs.replace(session, trace="../../x")),
    ):
        path.write_bytes(damage)
        assert left_at(scene) is None
    save_session(scene.cache, spec, msgspec.structs.replace(session, trace="0" * 16))
    assert left_at(scene) is None


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_restores_the_terminal_and_loses_no_place(scene: Scene, number: int) -> None:
    model, cache = str(scene.model), str(scene.cache)
    with explorer(TEXT, model=model, cache=cache) as terminal:
        before = terminal.modes
        terminal.wait_for(lambda text: painted(text) and "emb" in text)
        terminal.send("2")
        terminal.settle()
        terminal.send("k")
        terminal.settle()
        os.kill(terminal.pid, number)
        assert terminal.wait() == 128 + number
        assert terminal.modes[3] == before[3]
    session = left_at(scene)
    assert session is not None
    with explorer(model=model, cache=cache) as terminal:
        terminal.wait_for(lambda text: "As you left it" in text and "emb" in text)
        terminal.send("q")
        assert terminal.wait() == 0
    assert left_at(scene) == session
