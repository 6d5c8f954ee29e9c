"""Several features edited at once: what they are, and sets of other features to compare them with.

Each member of the set is replaced by another feature that is active at its place and of like
size, never one twice; set k takes the k-th nearest of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
import torch
from torch import Tensor

from emotui.core.edits import Edit, FeatureEdit, JointEdit
from emotui.core.engine.intervene import EditGroup, Place, group_edits, hooks_of, places_of_edit
from emotui.core.engine.rerun import arriving
from emotui.core.engine.steps import FeatureStep, PlacedEdit
from emotui.core.engine.variants import MATCHED_FEATURES, Grouped, matched

if TYPE_CHECKING:
    from emotui.core.engine.capture import Activations, Job
    from emotui.core.engine.materials import Materials


@torch.no_grad()
def matched_sets(
    placed: Sequence[PlacedEdit], parent: Activations, materials: Materials, job: Job
) -> list[Grouped]:
    """Return up to 32 sets of other features in the place of a joint edit, the last of `placed`.

    `parent` ran with the edits before it. Empty for any other edit, and for a clamp: the same
    value is not the same change of another feature.
    """
    last = placed[-1]
    edit = last.edit
    if not isinstance(edit, JointEdit) or edit.operation == "clamp":
        return []
    earlier = group_edits(placed[:-1], materials)
    places = places_of_edit(edit, materials.model.n_layers)
    touched = _touched(group_edits(placed, materials))
    reaching = {
        place: _reaching(place, min(layer for _, layer in places), earlier, parent, materials, job)
        for place in places
    }
    like = [
        _like(part, reaching[part.site, part.layer][list(last.positions)], touched, materials)
        for part in edit.parts
    ]
    sets: list[Grouped] = []
    for number in range(MATCHED_FEATURES):
        parts = _replaced(edit.parts, like, number)
        if parts is None:
            break
        other: Edit = JointEdit(parts)
        groups = group_edits((*placed[:-1], PlacedEdit(other, last.positions)), materials)
        there = {group.place: group for group in groups if group.place in places}
        named = " ".join(part.feature for part in parts)
        sets.append(Grouped("matched_features", named, there))
    return sets


def _touched(groups: Sequence[EditGroup]) -> Mapping[Place, list[int]]:
    """Return the features that any edit changes, by place."""
    return {
        group.place: [
            placed.edit.index
            for step in group.steps
            if isinstance(step, FeatureStep)
            for placed in step.edits
        ]
        for group in groups
    }


def _reaching(
    place: Place,
    start: int,
    earlier: Sequence[EditGroup],
    parent: Activations,
    materials: Materials,
    job: Job,
) -> Tensor:
    """Return the tensor at a place of every token as the earlier edits leave it, [tokens, d]."""
    site, layer = place
    if site == "resid":
        return parent.at("resid", layer)
    later = [group for group in earlier if group.place[1] >= start]
    return arriving(
        materials.model,
        parent.at("resid", start - 1),
        start=start,
        site=site,
        layer=layer,
        hooks=hooks_of(later),
        job=job,
    )


def _like(
    part: FeatureEdit, h: Tensor, touched: Mapping[Place, list[int]], materials: Materials
) -> list[int] | None:
    """Return other active features by how near they are in size, nearest first.

    `h` is [positions, d]. None for a feature that is not active and whose edit does nothing.
    """
    sae = materials.sae_of(part)
    sizes = sae.encode(h).float().norm(dim=0) * sae.weights.decoder_norm
    own = float(sizes[part.index])
    sizes[touched[part.site, part.layer]] = 0
    if own == 0:
        if part.operation in ("ablate", "scale"):
            return None
        unit = materials.statistics_of(part.site).mean_norm(part.site, part.layer)
        own = abs(part.value or 0.0) * unit
    return matched(sizes, own, most=len(sizes))


def _replaced(
    parts: Sequence[FeatureEdit], like: Sequence[list[int] | None], number: int
) -> tuple[FeatureEdit, ...] | None:
    """Return the set of this number; None where there are not so many features."""
    used: set[tuple[Place, int]] = set()
    found: list[FeatureEdit] = []
    for part, order in zip(parts, like, strict=True):
        if order is None:
            found.append(part)
            continue
        place = (part.site, part.layer)
        free = [index for index in order if (place, index) not in used]
        if number >= len(free):
            return None
        used.add((place, free[number]))
        found.append(msgspec.structs.replace(part, index=free[number]))
    return None if all(order is None for order in like) else tuple(found)
