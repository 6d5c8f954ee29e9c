"""Downloads and loads on the screen: bytes, a share, the time left, and what it will take."""

from __future__ import annotations

from pathlib import Path

import pytest
from support_screen import Scene, lines_of, until

from emotui.app import EmotuiApp


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def joined(app: EmotuiApp) -> str:
    return " ".join(line.strip() for line in lines_of(app))


async def test_a_download_shows_bytes_share_and_time_left(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: scene.engine.asked)
        asked = scene.engine.asked[0]
        asked.notice("Downloading google/gemma-2-2b: 4.9 GiB.")
        asked.progress("downloading google/gemma-2-2b: 302 MiB of 4.9 GiB, 12 min left", 6, 100)
        await until(pilot, lambda: app.explorer.state.work and app.explorer.state.work.done == 6)
        shown = joined(app)
        assert "302 MiB of 4.9 GiB, 12 min left 6 %" in shown
        assert "6/100" not in shown
        # What it will take stays in sight while the phases pass.
        assert "Downloading google/gemma-2-2b: 4.9 GiB." in shown
        asked.notice("Loading google/gemma-2-2b: about 5.3 GiB at the peak (20 GiB free).")
        asked.progress("reading the weights: 4.9 GiB")
        await until(pilot, lambda: "reading the weights" in joined(app))
        assert "about 5.3 GiB at the peak (20 GiB free)" in joined(app)
