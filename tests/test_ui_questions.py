"""Questions that are no trace: asked with the probes in force, answered, shown, closed."""

from __future__ import annotations

from pathlib import Path

import pytest
from support_screen import TEXT, Scene, text_on, until

from emotui.cache.store import Store
from emotui.core.protocol import Done, InspectRequest, WhereRequest
from emotui.ui.screens.report import ReportScreen


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


async def test_a_question_is_asked_with_the_probes_in_force_and_answered(scene: Scene) -> None:
    probes = scene.put_probes()
    scene.put_trace(probes=probes)
    answered: list[object] = []

    def question(request: InspectRequest, store: Store) -> WhereRequest:
        fields = ("spec", "text", "cache_dir", "probes")
        given = {name: getattr(request, name) for name in fields}
        return WhereRequest(emotion="joy", **given)

    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        await until(pilot, lambda: not app.workbench.busy)
        app.explorer.handlers._answers[Done] = answered.append
        app.workbench.ask(question, "looking for joy", text=TEXT)
        await until(pilot, lambda: scene.engine.asked)
        asked = scene.engine.asked[-1]
        assert isinstance(asked.operation, WhereRequest)
        assert asked.operation.probes == probes
        await until(pilot, lambda: app.explorer.state.work)
        asked.finish(Done())
        await until(pilot, lambda: answered)
        assert app.explorer.state.work is None
        assert not app.workbench.busy


async def test_an_answer_of_the_cache_needs_no_engine(scene: Scene) -> None:
    scene.put_trace(probes=scene.put_probes())
    answered: list[object] = []
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        app.explorer.handlers._answers[Done] = answered.append
        app.workbench.ask(lambda _request, _store: Done(), "asking", text=TEXT)
        await until(pilot, lambda: answered)
        assert scene.engine.asked == []


async def test_a_report_scrolls_and_closes_and_parses_no_markup(scene: Scene) -> None:
    scene.put_trace(probes=scene.put_probes())
    async with scene.open(size=(80, 24)) as (app, pilot):
        app.push_screen(ReportScreen("[b]Title", [f"[red]line {n}[/nope]" for n in range(60)]))
        await pilot.pause()
        shown = text_on(app)
        assert "[b]Title" in shown
        assert "[red]line 0[/nope]" in shown
        assert "line 59" not in shown
        for _ in range(4):
            await pilot.press("pagedown")
        assert "line 59" in text_on(app)
        await pilot.press("escape")
        assert app.screen is app.explorer
