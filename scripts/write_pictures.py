"""Draw docs/explorer.svg: the first screen on the bundled example, from the cache alone."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import msgspec

from emotui.app import EmotuiApp
from emotui.cache.demo import demo_saes, demo_spec, example_request, install_demo
from emotui.core.protocol import InspectRequest, Operation
from emotui.ui.state import OpenOptions

DOCS = Path(__file__).resolve().parent.parent / "docs"


class NoEngine:
    """Stands where an engine would: a picture needs none."""

    def start(self) -> None:
        """Start nothing."""

    def submit(self, operation: Operation) -> NoEngine:
        """Ask nothing."""
        del operation
        return self

    def close(self) -> None:
        """End nothing."""


async def draw(target: Path, *, columns: int, lines: int) -> None:
    """Open the example at a size and write what is on the screen."""
    with tempfile.TemporaryDirectory() as folder:
        install_demo(Path(folder))
        request = InspectRequest(spec=demo_spec(), text="", cache_dir=folder, saes=demo_saes())
        request = msgspec.structs.replace(example_request(request), cache_dir=folder)
        engine = NoEngine()
        app = EmotuiApp(OpenOptions(request=request), engine=engine)  # type: ignore[arg-type]
        async with app.run_test(size=(columns, lines)) as pilot:
            while app.explorer.state.readings is None:
                await pilot.pause(0.02)
            await pilot.press("2", "up", "up", "up", "3")
            for _ in range(20):
                await pilot.pause(0.02)
            target.write_text(app.export_screenshot(title="emotui"), encoding="utf-8")
        app.workbench.close()
    print(f"Wrote {target}")


if __name__ == "__main__":
    asyncio.run(draw(DOCS / "explorer.svg", columns=150, lines=40))
