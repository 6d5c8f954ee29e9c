"""Edits as the screen makes them: lines of the edit language, from the cursor or typed."""

from __future__ import annotations

from emotui.core.edits import at_position, parse_edit, positions_in
from emotui.ui.state import ScreenState

_ON_ANY_TEXT = ("all", "last", "readout")


def here(state: ScreenState) -> str:
    """Return the cursor's token as a position of the edit language."""
    return str(at_position(state.position))


def ablation(state: ScreenState, positions: str) -> str | None:
    """Return the ablation of the feature under the cursor; None where there is none."""
    if not state.features:
        return None
    feature = state.features[state.feature]
    return f"ablate {feature.name} at {positions}"


def understood(line: str, state: ScreenState) -> tuple[str, ...]:
    """Return the printed form of what was typed, `here` being the cursor's token.

    Raises EditError that names the wrong word, and for a position the text does not have.
    """
    edit = parse_edit(line, here=state.position)
    if state.readings is not None:
        positions_in(edit.positions, state.readings.trace.text)
    return (str(edit),)


def carried_over(lines: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the edits that mean the same on another text, and those that do not.

    Tokens and words of one text are not those of another, and a patch was of this one.
    """
    kept: list[str] = []
    left: list[str] = []
    for line in lines:
        edit = parse_edit(line)
        stays = edit.positions.kind in _ON_ANY_TEXT and not line.startswith("patch")
        (kept if stays else left).append(line)
    return tuple(kept), tuple(left)
