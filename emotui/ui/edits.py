"""Edits as the screen makes them: lines of the edit language, from the cursor or typed."""

from __future__ import annotations

from emotui.cache.demo import DEMO_MODEL, example, has_demo
from emotui.core.edits import (
    STAYED,
    Edit,
    FeatureEdit,
    JointEdit,
    at_position,
    parse_edit,
    position_of_token,
    positions_in,
)
from emotui.core.edits.words import quoted
from emotui.core.errors import EditError
from emotui.core.records import EMBEDDING_LAYER, Trace
from emotui.core.text import clean
from emotui.ui.state import ScreenState

ANOTHER_TEXT = "another text"
"""What stands where a text is still to be typed."""
_LONGEST_SOURCE = 200
"""Characters of a text that is put into the console; a longer one goes by its trace's name."""
_ON_ANY_TEXT = ("all", "last", "readout")


def here(state: ScreenState) -> str:
    """Return the cursor's token as a position of the edit language.

    The readout by its name: an edit there is one on other texts too.
    """
    if state.readings is None:
        return str(at_position(state.position))
    return str(position_of_token(state.position, state.readings.trace.text))


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
    """Return a patch at the cursor's layer, from the other text seen or compared last.

    Without one, its source is still to be typed. None at the embedding row.
    """
    if state.layer == EMBEDDING_LAYER:
        return None
    source, other = quoted(ANOTHER_TEXT), state.other
    if other is not None and other.raw != state.text:
        # What is not one line of plain characters goes by the name of its trace.
        plain = other.raw == clean(other.raw) and len(other.raw) <= _LONGEST_SOURCE
        source = quoted(other.raw) if plain else other.name
    return f"patch {state.site} L{state.layer} from {source} at readout"


def promotion(state: ScreenState) -> str | None:
    """Return a promotion of the chosen emotion at the cursor's layer; None without a probe."""
    if not state.emotion or state.layer == EMBEDDING_LAYER:
        return None
    return f"promote {state.emotion} L{state.layer} +0.1 at readout"


def understood(line: str, state: ScreenState) -> tuple[str, ...]:
    """Return the printed form of what was typed, `here` being the cursor's token.

    Raises EditError that names the wrong word, and for a position, layer or feature that is not
    there.
    """
    traces = {visit.name: visit.id for visit in state.visits}
    edit = parse_edit(line, here=state.position, open_traces=traces)
    if state.readings is not None:
        positions_in(edit.positions, state.readings.trace.text)
        _check_places(edit, state.readings.trace)
    return (str(edit),)


def _check_places(edit: Edit, trace: Trace) -> None:
    """Raise EditError for a layer or a feature that the trace's model and SAEs do not have."""
    parts = edit.parts if isinstance(edit, JointEdit) else (edit,)
    for part in parts:
        if part.layers is None:
            continue
        word = part.feature if isinstance(part, FeatureEdit) else str(part.layers)
        if part.layers.last >= trace.run.layers:
            raise _absent(
                word,
                f"There is no layer {part.layers.last} to edit.",
                f"The model has layers 0 to {trace.run.layers - 1}.",
            )
        if not isinstance(part, FeatureEdit):
            continue
        for sae in trace.saes:
            if (sae.site, sae.layer) == (part.site, part.layer) and part.index >= sae.width:
                raise _absent(
                    word,
                    f"There is no feature {part.feature}.",
                    f"The SAE of {part.site}.{part.layer} has features 0 to {sae.width - 1}.",
                )


def _absent(word: str, what: str, why: str) -> EditError:
    error = EditError(what, why=why, todo=STAYED)
    error.word = word
    return error


def of_example(state: ScreenState) -> tuple[str, ...]:
    """Return the bundled example's edits where the trace shown is the example, and has them."""
    readings = state.readings
    if readings is None or not readings.trace.edits or not has_demo():
        return ()
    shown, trace = example(), readings.trace
    if trace.run.model != DEMO_MODEL.name or trace.text.raw != shown.text:
        return ()
    return shown.edits if trace.edits[: len(shown.edits)] == shown.edits else ()


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


def without_features(lines: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the edits that name no SAE feature, and those that do."""
    named = [isinstance(parse_edit(line), FeatureEdit | JointEdit) for line in lines]
    pairs = list(zip(lines, named, strict=True))
    return (
        tuple(line for line, feature in pairs if not feature),
        tuple(line for line, feature in pairs if feature),
    )
