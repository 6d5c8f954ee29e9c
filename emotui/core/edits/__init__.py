"""The edit language: one line, one edit; parsed and printed here, torch-free.

    ablate L18/4412 at 7            scale mlp:L3/9 x2.5 at all
    ablate L18/4412 L19/7 at 7      several features, one edit
    clamp  L18/4412 = 30 at last    steer L18/4412 +0.1 at 3-7
    knock  attn L9-13 mean          knock head L9.3 mean
    patch  resid L10 from "another text" at readout
    promote anger L15 +0.1          project out anger
    promote anger L15 +0.1 along row
    modulate +other_agency -pleasantness L9-11 +0.1 keep predictability
    @name                           a saved set of edits, see `emotui.cache.recipes`

The printed form always carries its position; printing and parsing are inverses.
"""

from emotui.core.edits.kinds import (
    ALONG,
    FEATURE_OPERATIONS,
    KNOCK_KINDS,
    Edit,
    FeatureEdit,
    FeatureOperation,
    HeadEdit,
    JointEdit,
    KnockEdit,
    KnockKind,
    KnockSite,
    ModulateEdit,
    PatchEdit,
    ProjectEdit,
    PromoteEdit,
    Source,
)
from emotui.core.edits.language import OPERATIONS, parse_edit, print_edits, recipe_named
from emotui.core.edits.positions import (
    ALL,
    LAST,
    READOUT,
    PositionKind,
    Positions,
    at_position,
    parse_positions,
    position_of_token,
    positions_in,
)
from emotui.core.edits.words import STAYED, Layers

__all__ = [
    "ALL",
    "ALONG",
    "FEATURE_OPERATIONS",
    "KNOCK_KINDS",
    "LAST",
    "OPERATIONS",
    "READOUT",
    "STAYED",
    "Edit",
    "FeatureEdit",
    "FeatureOperation",
    "HeadEdit",
    "JointEdit",
    "KnockEdit",
    "KnockKind",
    "KnockSite",
    "Layers",
    "ModulateEdit",
    "PatchEdit",
    "PositionKind",
    "Positions",
    "ProjectEdit",
    "PromoteEdit",
    "Source",
    "at_position",
    "parse_edit",
    "parse_positions",
    "position_of_token",
    "positions_in",
    "print_edits",
    "recipe_named",
]
