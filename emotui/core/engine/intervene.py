"""Edits as hooks: each edit a step at its places, the steps of a place one delta.

An edit adds a delta to the tensor that arrives at its site; no change adds exactly nothing
(METHODS 2.1). At one place edits act in the order they were made, each on what the earlier ones
left; edits of features that follow each other are read from one encoding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emotui.core.edits import (
    STAYED,
    Edit,
    FeatureEdit,
    HeadEdit,
    JointEdit,
    KnockEdit,
    Layers,
    ModulateEdit,
    PatchEdit,
    ProjectEdit,
    PromoteEdit,
    positions_in,
)
from emotui.core.engine.capture import Hook
from emotui.core.engine.materials import Materials, head_count
from emotui.core.engine.sites import HookSite
from emotui.core.engine.steps import (
    AddStep,
    FeatureStep,
    PlacedEdit,
    PlacedFeatureEdit,
    ProjectStep,
    SetStep,
    Step,
)
from emotui.core.errors import EditError
from emotui.core.records import TextRecord

if TYPE_CHECKING:
    from emotui.core.engine.appraisals import Modulation
    from emotui.core.engine.model import LoadedModel

Place = tuple[HookSite, int]

_ORDER: Mapping[HookSite, int] = {"z": 0, "attn": 1, "mlp": 2, "resid": 3}


@dataclass(frozen=True, eq=False)
class EditGroup:
    """All that edits do at one site and layer, in the order they were made."""

    place: Place
    steps: tuple[Step, ...]

    @property
    def positions(self) -> tuple[int, ...]:
        """The positions any of the steps acts on, ascending."""
        return tuple(sorted({p for step in self.steps for p in step.positions}))

    @property
    def identity(self) -> list[str]:
        """What the group does, to the last number: for cache keys."""
        return [f"{self.place[0]}.{self.place[1]}", *(step.identity for step in self.steps)]

    def delta(self, h: Tensor, where: Sequence[int]) -> Tensor:
        """Return what the steps add to `h` [..., len(where), width], of its shape.

        `where` are the token positions of `h`, among them all of the group's. Exactly zero where
        nothing changes.
        """
        added = torch.zeros_like(h)
        places = {position: row for row, position in enumerate(where)}
        for step in self.steps:
            rows = [places[position] for position in step.positions]
            added[..., rows, :] += step.delta((h + added)[..., rows, :])
        return added


def place_edits(edits: Sequence[Edit], text: TextRecord) -> tuple[PlacedEdit, ...]:
    """Return the edits with their token positions; EditError where a position is not there."""
    return tuple(PlacedEdit(edit, positions_in(edit.positions, text)) for edit in edits)


def places_of_edit(edit: Edit, n_layers: int) -> tuple[Place, ...]:
    """Return the sites and layers an edit acts on, in the order the model passes them."""
    if isinstance(edit, HeadEdit):
        return (("z", edit.layer),)
    if isinstance(edit, JointEdit):
        return _in_order({(part.site, part.layer) for part in edit.parts})
    window = edit.layers or Layers(0, n_layers - 1)
    site: HookSite = edit.site if isinstance(edit, FeatureEdit | KnockEdit | PatchEdit) else "resid"
    return tuple((site, layer) for layer in window.numbers)


def group_edits(edits: Sequence[PlacedEdit], materials: Materials) -> tuple[EditGroup, ...]:
    """Return the edits by site and layer, in the order the model passes those.

    Raises EditError for what is not there: an SAE, a feature, an emotion, an appraisal, a source.
    """
    steps: dict[Place, list[Step]] = {}
    for placed in (one for several in edits for one in _apart(several)):
        for place in places_of_edit(placed.edit, materials.model.n_layers):
            there = steps.setdefault(place, [])
            if not isinstance(placed.edit, FeatureEdit):
                there.append(_step(placed, place, materials))
                continue
            feature = PlacedFeatureEdit(placed.edit, placed.positions)
            step = _feature_step(feature, materials)
            last = there[-1] if there else None
            if isinstance(last, FeatureStep):
                there[-1] = FeatureStep(last.sae, (*last.edits, feature), step.unit or last.unit)
            else:
                there.append(step)
    return tuple(EditGroup(place, tuple(steps[place])) for place in _in_order(steps))


def _in_order(places: Iterable[Place]) -> tuple[Place, ...]:
    """Return places as the model passes them."""
    return tuple(sorted(places, key=lambda place: (place[1], _ORDER[place[0]])))


def _apart(placed: PlacedEdit) -> tuple[PlacedEdit, ...]:
    """Return the edits of single features that a joint edit is; any other edit as it is."""
    if not isinstance(placed.edit, JointEdit):
        return (placed,)
    return tuple(PlacedEdit(part, placed.positions) for part in placed.edit.parts)


def _feature_step(placed: PlacedFeatureEdit, materials: Materials) -> FeatureStep:
    edit = placed.edit
    sae = materials.sae_of(edit)
    steers = edit.operation == "steer"
    unit = materials.statistics_of(edit.site).mean_norm(edit.site, edit.layer) if steers else 0.0
    return FeatureStep(sae, (placed,), unit)


def _step(placed: PlacedEdit, place: Place, materials: Materials) -> Step:
    """Return what an edit of no feature does at one of its places."""
    edit, positions = placed.edit, placed.positions
    site, layer = place
    at = materials.model.device_at(layer)
    if isinstance(edit, KnockEdit | HeadEdit):
        return materials.knocked(edit, site, layer, positions)
    if isinstance(edit, PatchEdit):
        return SetStep(positions, materials.patched(edit, layer))
    if isinstance(edit, ProjectEdit):
        return ProjectStep(positions, _there(materials.emotion_row(edit.emotion, layer), at))
    if isinstance(edit, PromoteEdit):
        unit = materials.promoted(edit, layer)
        return AddStep(positions, _there(materials.strength(edit, layer) * unit, at))
    assert isinstance(edit, ModulateEdit)
    unit = modulation_at(edit, layer, materials).unit
    return AddStep(positions, _there(materials.strength(edit, layer) * unit, at))


def _there(vector: Tensor, device: torch.device) -> Tensor:
    """Put a vector of an edit, float64, where it acts; it stays where that has no such numbers."""
    return vector if device.type == "mps" else vector.to(device)


def modulation_at(edit: ModulateEdit, layer: int, materials: Materials) -> Modulation:
    """Return the direction an edit of appraisals takes at a layer."""
    from emotui.core.engine.appraisals import appraisal_named, modulation

    signed = [(1 if word[0] == "+" else -1, appraisal_named(word[1:])) for word in edit.raised]
    keep = [appraisal_named(word) for word in edit.keep]
    names = [name for _, name in signed] + keep
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise EditError(
            f"The appraisal {twice} is named twice.",
            why="It cannot be changed twice, or be changed and kept.",
            todo=STAYED,
        )
    appraisals = materials.appraisals
    return modulation(
        [(sign, appraisals.row(layer, name)) for sign, name in signed],
        [appraisals.row(layer, name) for name in keep],
        released=edit.released,
    )


def hooks_of(groups: Sequence[EditGroup], *, first: int = 0) -> tuple[Hook, ...]:
    """Return the hooks that put the edits in force, in the order the model passes them.

    The tensors that pass begin at token `first`; the groups act on no token before it.
    """

    def hook(group: EditGroup) -> Hook:
        where = group.positions
        rows = [position - first for position in where]

        def function(tensor: Tensor) -> Tensor:
            changed = tensor.clone()
            here = tensor[..., rows, :]
            changed[..., rows, :] = here + group.delta(here, where)
            return changed

        return Hook(group.place[0], group.place[1], function)

    return tuple(hook(group) for group in groups)


def places_of(groups: Sequence[EditGroup]) -> int:
    """Return how many (site, layer, position) places the edits act on in one run of the prompt."""
    return sum(len(group.positions) for group in groups)


def check_layers(edits: Sequence[Edit], model: LoadedModel) -> None:
    """Raise EditError for an edit at a layer or head the model does not have."""
    for edit in edits:
        if edit.layers is not None and edit.layers.last >= model.n_layers:
            raise EditError(
                f"There is no layer {edit.layers.last} to edit.",
                why=f"The model has layers 0 to {model.n_layers - 1}.",
                todo=STAYED,
            )
        if isinstance(edit, HeadEdit) and edit.head >= head_count(model):
            raise EditError(
                f"There is no head {edit.head} to knock out.",
                why=f"Its layers have heads 0 to {head_count(model) - 1}.",
                todo=STAYED,
            )
