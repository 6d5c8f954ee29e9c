"""Copying: to the terminal's clipboard, or into a file where that takes too many bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from emotui.cache import files
from emotui.ui.clipboard import LIMIT, copying
from emotui.ui.messages import Fetched

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.errors import EmotuiError
    from emotui.ui.screens.explore import ExploreScreen

FOLDER = "copied"


def copy(screen: ExploreScreen, text: str, what: str, tell: Callable[[str], object]) -> None:
    """Copy `text`, and tell in one line where it is; `what` names it."""
    sequences = copying(text)
    driver = screen.app._driver
    if sequences is not None and driver is not None:
        for sequence in sequences:
            driver.write(sequence)
        driver.flush()
        tell(f"Copied {what} (OSC 52, where the terminal allows).")
        return

    def write(store: Store) -> None:
        name = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]
        path = store.root / FOLDER / f"emotui-{name}.txt"
        try:
            files.write_whole(path, text.encode("utf-8", errors="replace"))
        except OSError as error:
            files.write_failed(path, error)
        said = f"{what[:1].upper()}{what[1:]} is longer than {LIMIT // 1024} kB, so it is in {path}"
        screen.post_message(Fetched(partial(tell, said)))

    def failed(error: EmotuiError) -> None:
        screen.post_message(Fetched(partial(tell, error.what)))

    screen.workbench.with_store(write, failed)
