"""The console's scene: a trace, edits, and typing."""

from __future__ import annotations

from typing import Any

from support_screen import Scene, until
from test_ui_edits import edited

from emotui.app import EmotuiApp
from emotui.core.records import Trace

EDITS = ("ablate L3/1 at all", "knock attn L1 mean at readout")


def with_edits(scene: Scene) -> Trace:
    return scene.put_trace(
        probes=scene.put_probes(), edits=EDITS, change=lambda trace: edited(trace, EDITS)
    )


async def shown(app: EmotuiApp, pilot: Any) -> None:
    await until(pilot, lambda: app.explorer.state.features)
    await until(pilot, lambda: not app.workbench.busy)


async def typed(pilot: Any, line: str, *keys: str) -> None:
    await pilot.press(*["space" if c == " " else c for c in line], *keys)


# The table
