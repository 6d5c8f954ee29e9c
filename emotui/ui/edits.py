"""Edits as the screen makes them: lines of the edit language, from the cursor or typed."""

from __future__ import annotations

from emotui.core.edits import at_position, parse_edit, positions_in
from emotui.core.records import EMBEDDING_LAYER
from emotui.ui.state import ScreenState

_ON_ANY_TEXT = ("all", "last", "readout")


def here(state: ScreenState) -> str:
    """Return the cursor's token as a position of the edit language."""
    return str(at_position(state.position))


def chosen(state: ScreenState) -> tuple[str, ...]:
    """Return the marked features, or the one under the cursor; none where there is none."""
    if state.marks or not state.features:
        return state.marks
    return (state.features[state.feature].name,)


def ablation(state: ScreenState, positions: str) -> str | None:
    """Return the ablation of the chosen features, one edit; None where there is none."""
    names = chosen(state)
    return f"ablate {' '.join(names)} at {positions}" if names else None


def steering(state: ScreenState) -> str | None:
    """Return a steering along the chosen features, one edit; None where there is none."""
    names = chosen(state)
    return f"steer {' '.join(names)} +0.1 at {here(state)}" if names else None


def knockout(state: ScreenState) -> str | None:
    """Return a knockout at the cursor's layer of the site shown, attention for the residual."""
    if state.layer == EMBEDDING_LAYER:
        return None
    site = "attn" if state.site == "resid" else state.site
    return f"knock {site} L{state.layer} mean at readout"


def patch(state: ScreenState) -> str | None:
    """Return a patch at the cursor's layer, its source still to be typed."""
    if state.layer == EMBEDDING_LAYER:
        return None
    return f'patch {state.site} L{state.layer} from "another text" at readout'


def promotion(state: ScreenState) -> str | None:
    """Return a promotion of the chosen emotion at the cursor's layer; None without a probe."""
    if not state.emotion or state.layer == EMBEDDING_LAYER:
        return None
    return f"promote {state.emotion} L{state.layer} +0.1 at readout"


def understood(line: str, state: ScreenState) -> tuple[str, ...]:
    """Return the printed form of what was typed, `here` being the cursor's token.

    Raises EditError that names the wrong word, and for a position the text does not have.
    """
    traces = {visit.name: visit.id for visit in state.visits}
    edit = parse_edit(line, here=state.position, open_traces=traces)
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
