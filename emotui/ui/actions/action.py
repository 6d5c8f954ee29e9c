"""What an action is, and the panes that hear its keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PaneName = Literal["text", "editor", "layers", "features", "interventions", "console", "traces"]

PANES: tuple[PaneName, ...] = (
    *("text", "editor", "layers", "features", "interventions"),
    *("console", "traces"),
)
LOOKING: tuple[PaneName, ...] = ("text", "layers", "features", "interventions")
CELLS: tuple[PaneName, ...] = ("text", "layers", "features")


@dataclass(frozen=True, kw_only=True)
class Action:
    """What a key does."""

    id: str
    """`area.verb`."""
    keys: tuple[str, ...]
    """Names as Textual spells them; the first is the one shown."""
    label: str
    """One or two words for the footer."""
    help: str
    """One line for the help screen."""
    panes: tuple[PaneName, ...] = LOOKING
    """Where its keys are heard."""
    careful: bool = False
    """Whether it does more than move or show, so that it waits until a key is no paste."""
    footer: bool = True
