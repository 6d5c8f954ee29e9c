"""How the positions of an edit carry from one text to another."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from emotui.core.edits import STAYED, Edit, FeatureEdit, Positions, positions_in
from emotui.core.errors import EditError
from emotui.core.records import TextRecord

SAME = "the same positions on every text"
MOST_ACTIVE = "each text's token on which the feature is most active"


def check_portable(edits: tuple[Edit, ...], source: TextRecord) -> str:
    """Return in words how the edits' positions carry; EditError for one that does not.

    `all`, `last` and `readout` do. A single token does outside the text, where the template puts
    the same one around every text, and for an edit of a feature, which then acts where the
    feature is most active. Ranges and words of one text are not those of another.
    """
    moved = False
    for edit in edits:
        positions = edit.positions
        if positions.kind in ("all", "last", "readout"):
            continue
        if positions.kind == "range" and positions.first == positions.last:
            if source.tokens[positions.first].part != "text":
                continue
            if isinstance(edit, FeatureEdit):
                moved = True
                continue
        raise EditError(
            f"`{edit}` cannot be repeated on other texts.",
            why=f"{positions} are tokens of this text, and no other text has the same there.",
            todo="Make the edit at all, last or readout, or a feature's at a single token. "
            f"{STAYED}",
        )
    return MOST_ACTIVE if moved else SAME


def carried(
    edit: Edit,
    source: TextRecord,
    text: TextRecord,
    activity: Callable[[FeatureEdit], Tensor],
) -> tuple[int, ...] | None:
    """Return where a portable edit of `source` acts in another text, ascending.

    `activity` gives the activation of an edit's feature at every token, [tokens]. None where the
    feature is active at no token of the text.
    """
    positions: Positions = edit.positions
    if positions.kind != "range":
        return positions_in(positions, text)
    position = positions.first
    if source.tokens[position].part != "text":
        # Tokens after the text are counted from the end, those before it from the beginning.
        behind = position > source.last
        return (len(text.tokens) - len(source.tokens) + position,) if behind else (position,)
    assert isinstance(edit, FeatureEdit)
    inside = [place for place, token in enumerate(text.tokens) if token.part == "text"]
    found = activity(edit)[inside]
    return (inside[int(found.argmax())],) if bool((found > 0).any()) else None
