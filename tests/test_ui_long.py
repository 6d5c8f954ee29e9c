"""A text of thousands of tokens: what is not in sight costs nothing, and what is, is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support_screen import Scene, lines_of, until

from emotui.core.records import Site
from emotui.ui import state as states
from emotui.ui.panes.layers import cell_text
from emotui.ui.readings import Readings

TOKENS = 1200


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    scene = Scene(tmp_path)
    shape: dict[str, Any] = {"tokens": TOKENS, "layers": 2, "features_elsewhere": 2}
    scene.put_trace("long", probes=scene.put_probes(), **shape)
    return scene


async def test_tokens_far_to_the_right_are_drawn_where_they_are(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene.open("long", size=(140, 40)) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        await pilot.press("0")
        app.explorer.update(states.at_token(app.explorer.state, 700))
        await until(pilot, lambda: "word699" in "".join(lines_of(app)))
        asked = []
        cell = Readings.cell

        def counted(self: Readings, site: Site, position: int, *place: Any) -> object:
            asked.append(position)
            return cell(self, site, position, *place)

        monkeypatch.setattr(Readings, "cell", counted)
        await pilot.press("right")
        await until(pilot, lambda: app.explorer.state.position == 701)
        pane, state = app.explorer.layers_pane, app.explorer.state
        assert state.readings is not None
        # Two layers, the embedding row and the header, and the few tokens around the cursor.
        assert 0 < len(asked) < 200
        monkeypatch.undo()
        width, left = pane._width, pane.scroll_offset.x
        top = state.readings.layers[0]
        line = "".join(segment.text for segment in pane.render_line(pane.HEADER_LINES))
        for position in range(left // width, left // width + 8):
            at = pane.frozen + position * width - left
            shown = cell_text(
                state.readings.cell(state.site, position, top, state.emotion),
                width,
                cursor=position == state.position and top == state.layer,
            )
            assert line[at : at + width] == shown


async def test_features_of_each_place_are_those_of_the_trace(scene: Scene) -> None:
    async with scene.open("long", size=(140, 40)) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        readings = app.explorer.state.readings
        assert readings is not None
        columns = readings.trace.features
        for layer, position in ((0, 5), (1, TOKENS - 1), (1, 800)):
            wanted = sorted(
                (-columns.activation[row], columns.index[row], columns.label[row])
                for row in range(len(columns.index))
                if (columns.layer[row], columns.position[row]) == (layer, position)
            )
            found = readings.features("resid", layer, position)
            assert [(-row.activation, row.index, row.label) for row in found] == wanted
        assert readings.features("mlp", 0, 5) == []


async def test_features_follow_when_the_cursor_rests(scene: Scene) -> None:
    async with scene.open("long", size=(140, 40)) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        pane = app.explorer.features_pane
        await until(pilot, lambda: "readout" in str(pane.border_title))
        await pilot.press("left", "left")
        assert app.explorer.state.position == TOKENS - 3
        assert pane.state is not None
        assert pane.state.position == TOKENS - 1  # what is drawn is still of the place before
        await until(pilot, lambda: pane.state and pane.state.position == TOKENS - 3)
        assert f"token {TOKENS - 3}" in str(pane.border_title)
        await pilot.press("left", "3")  # going to the list does not wait
        assert pane.state.position == TOKENS - 4
