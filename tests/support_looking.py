"""What tests of looking around on the screen share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support_screen import Scene, trace_of, until
from textual.pilot import Pilot

from emotui.app import EmotuiApp
from emotui.core.records import Trace

SIZES = [(80, 24), (100, 30), (160, 45)]


def scene_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """Return a scene in an empty folder, which is the working one, in a plain terminal."""
    monkeypatch.chdir(folder)
    for name in ("TMUX", "STY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    return Scene(folder)


async def ready(app: EmotuiApp, pilot: Pilot[int]) -> Trace:
    """Wait until a trace is on the screen and nothing runs; return it."""
    await until(pilot, lambda: app.explorer.state.features and not app.workbench.busy)
    return trace_of(app)


def is_on(app: EmotuiApp, kind: type[Any]) -> bool:
    """Whether a screen of that kind is the one that is shown."""
    return isinstance(app.screen, kind)


def pane_of(app: EmotuiApp) -> str:
    """Return the pane that has the focus."""
    return app.explorer.pane
