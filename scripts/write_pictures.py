"""Draw the pictures of docs/: the explorer on the bundled example, with the demo's own engine.

python scripts/write_pictures.py [NAME...]
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from textual.pilot import Pilot

from emotui.app import EmotuiApp
from emotui.cache.demo import demo_saes, demo_spec, example_request, install_demo
from emotui.core.protocol import InspectRequest
from emotui.ui.state import OpenOptions

DOCS = Path(__file__).resolve().parent.parent / "docs"
_LONGEST_SECONDS = 120


class Picture(NamedTuple):
    """A size, and the keys that lead from the opened example to what is drawn."""

    columns: int
    lines: int
    keys: Sequence[str]


_STEERED = (":", *"steer L4/678 +0.1 at all", "enter")
PICTURES = {
    "explorer": Picture(160, 45, ("2", "up", "up", "up", "3")),
    "explorer-80x24": Picture(80, 24, ("2", "up", "up", "up")),
    "ablation": Picture(160, 45, ("2", "up", "up", "up", "4")),
    "traces": Picture(120, 24, ("u", *_STEERED, "t")),
    "where": Picture(120, 36, ("u", "2", "w")),
    "generate": Picture(120, 36, ("u", *_STEERED, "g", "n")),
    "compare": Picture(160, 45, ("c",)),
    "feature": Picture(120, 40, ("3", "enter")),
}


async def _settled(app: EmotuiApp, pilot: Pilot[int]) -> None:
    """Wait until nothing runs and what came of it is painted."""
    quiet = 0
    for _ in range(_LONGEST_SECONDS * 50):
        await pilot.pause(0.02)
        quiet = 0 if app.workbench.busy or app.explorer.state.readings is None else quiet + 1
        if quiet >= 25:
            return
    raise TimeoutError("it did not come to rest")


async def draw(name: str, picture: Picture) -> None:
    """Open the example, press the keys and write what is on the screen."""
    target = DOCS / f"{name}.svg"
    with tempfile.TemporaryDirectory() as folder:
        install_demo(Path(folder))
        request = InspectRequest(spec=demo_spec(), text="", cache_dir=folder, saes=demo_saes())
        request = msgspec.structs.replace(example_request(request), cache_dir=folder)
        app = EmotuiApp(OpenOptions(request=request))
        async with app.run_test(size=(picture.columns, picture.lines)) as pilot:
            await _settled(app, pilot)
            for key in picture.keys:
                await pilot.press(key)
                await _settled(app, pilot)
            target.write_text(app.export_screenshot(title="emotui"), encoding="utf-8")
        app.workbench.close()
    print(f"Wrote {target}")


if __name__ == "__main__":
    for wanted in sys.argv[1:] or PICTURES:
        asyncio.run(draw(wanted, PICTURES[wanted]))
