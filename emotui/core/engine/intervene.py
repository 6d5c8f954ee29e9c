"""Edits as hooks: what an edit adds to the tensor at its site, and a run with edits in force.

An edit of SAE features adds sum_j (f'_j - f_j) D_j to the tensor that arrives at the site
(METHODS 2.1); the reconstruction and its error play no part, so no change adds exactly nothing.
Edits of one feature compose before one delta. Steering adds along the unit decoder row, in units
of the corpus mean of the norm of the activation at that site and layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emotui.core.edits import Edit, positions_in
from emotui.core.engine.capture import Hook
from emotui.core.errors import EditError
from emotui.core.records import Site, TextRecord

if TYPE_CHECKING:
    from emotui.core.engine.model import LoadedModel
    from emotui.core.engine.saes import Sae

Place = tuple[Site, int]
MeanNorm = Callable[[Site, int], float]
"""The unit of steering: corpus mean of the norm of the activation at a site and layer."""

_ORDER: Mapping[Site, int] = {"attn": 0, "mlp": 1, "resid": 2}


@dataclass(frozen=True)
class PlacedEdit:
    """An edit with the token positions it acts on in this text."""

    edit: Edit
    positions: tuple[int, ...]

    @property
    def place(self) -> Place:
        """Its site and layer."""
        return self.edit.site, self.edit.layer


@dataclass(frozen=True)
class EditGroup:
    """All edits at one site and layer, in the order they were made."""

    place: Place
    sae: Sae
    edits: tuple[PlacedEdit, ...]
    unit: float
    """Strength 1 of `steer`, as a norm."""

    @property
    def positions(self) -> tuple[int, ...]:
        """The positions any of the edits acts on, ascending."""
        return tuple(sorted({p for placed in self.edits for p in placed.positions}))

    def features(self, h: Tensor) -> Tensor:
        """Return the activations that arrive at the positions: [..., positions, width]."""
        return self.sae.encode(h[..., list(self.positions), :])

    def delta(self, h: Tensor) -> Tensor:
        """Return what the edits add to `h` [..., tokens, d]: a tensor of its shape.

        Zero outside the positions, and exactly zero where no feature changes.
        """
        added = torch.zeros_like(h)
        if self.edits:
            added[..., list(self.positions), :] = self.delta_of(self.features(h))
        return added

    def delta_of(self, features: Tensor) -> Tensor:
        """Return what the edits add at the positions, [..., positions, d], given `features`."""
        where = list(self.positions)
        indices = sorted({placed.edit.index for placed in self.edits})
        before = features[..., indices]
        after = before.clone()
        along = torch.zeros_like(before)
        for placed in self.edits:
            rows = [where.index(position) for position in placed.positions]
            column = indices.index(placed.edit.index)
            _change(placed.edit, after, along, rows, column, self.unit)
        directions = self.sae.directions(indices)
        added = (after - before) @ directions
        if bool(along.any()):
            added = added + along @ (directions / directions.norm(dim=-1, keepdim=True))
        return added

    def delta_of_rows(self, features: Tensor, positions: Sequence[int]) -> Tensor:
        """Return `delta_of` spread over `positions`, of which those of the edits are a part.

        `features` stand at `positions`: [positions, width]; zero where no edit acts.
        """
        added = torch.zeros(
            (len(positions), self.sae.config.d_in),
            dtype=features.dtype,
            device=features.device,
        )
        if self.edits:
            rows = [list(positions).index(position) for position in self.positions]
            added[rows] = self.delta_of(features[rows])
        return added


def _change(
    edit: Edit, after: Tensor, along: Tensor, rows: Sequence[int], column: int, unit: float
) -> None:
    """Apply one edit in place: to the feature's activations, or along its unit direction."""
    value = 0.0 if edit.value is None else edit.value
    if edit.operation == "scale":
        after[..., rows, column] *= value
    elif edit.operation == "steer":
        along[..., rows, column] += value * unit
    else:
        after[..., rows, column] = value


def place_edits(edits: Sequence[Edit], text: TextRecord) -> tuple[PlacedEdit, ...]:
    """Return the edits with their token positions; EditError where a position is not there."""
    return tuple(PlacedEdit(edit, positions_in(edit.positions, text)) for edit in edits)


def group_edits(
    edits: Sequence[PlacedEdit], saes: Sequence[Sae], mean_norm: MeanNorm
) -> tuple[EditGroup, ...]:
    """Return the edits by site and layer, in the order the model passes those.

    Raises EditError for a layer without an SAE or a feature past its width.
    """
    by_place: dict[Place, list[PlacedEdit]] = {}
    for placed in edits:
        by_place.setdefault(placed.place, []).append(placed)
    groups = []
    for place in sorted(by_place, key=lambda place: (place[1], _ORDER[place[0]])):
        sae = _sae_at(place, by_place[place][0].edit, saes)
        for placed in by_place[place]:
            _check_index(placed.edit, sae)
        steers = any(placed.edit.operation == "steer" for placed in by_place[place])
        unit = mean_norm(*place) if steers else 0.0
        groups.append(EditGroup(place, sae, tuple(by_place[place]), unit))
    return tuple(groups)


def _sae_at(place: Place, edit: Edit, saes: Sequence[Sae]) -> Sae:
    for sae in saes:
        if (sae.site, sae.layer) == place:
            return sae
    there = [f"{sae.site}.{sae.layer}" for sae in saes]
    raise EditError(
        f"{edit.feature} cannot be edited: there is no SAE for {place[0]}.{place[1]}.",
        why=f"SAEs are loaded for: {', '.join(there)}." if there else "No SAE is loaded.",
        todo="Name one with --sae, or edit a layer that has one. The edits stayed as they were.",
    )


def _check_index(edit: Edit, sae: Sae) -> None:
    if edit.index >= sae.width:
        raise EditError(
            f"There is no feature {edit.feature}.",
            why=f"The SAE of {edit.site}.{edit.layer} has features 0 to {sae.width - 1}.",
            todo="The edits stayed as they were.",
        )


def hooks_of(groups: Sequence[EditGroup]) -> tuple[Hook, ...]:
    """Return the hooks that put the edits in force, in the order the model passes them."""

    def hook(group: EditGroup) -> Hook:
        def function(tensor: Tensor) -> Tensor:
            return tensor + group.delta(tensor)

        return Hook(group.place[0], group.place[1], function)

    return tuple(hook(group) for group in groups)


def places_of(groups: Sequence[EditGroup]) -> int:
    """Return how many (site, layer, position) places the edits act on in one run of the prompt."""
    return sum(len(group.positions) for group in groups)


def without_last(groups: Sequence[EditGroup], last: PlacedEdit) -> tuple[EditGroup, ...]:
    """Return the groups without the edit that was made last; an emptied group stays, empty."""
    return tuple(
        EditGroup(group.place, group.sae, group.edits[:-1], group.unit)
        if group.place == last.place
        else group
        for group in groups
    )


def check_layers(edits: Sequence[Edit], model: LoadedModel) -> None:
    """Raise EditError for an edit at a layer the model does not have."""
    for edit in edits:
        if edit.layer >= model.n_layers:
            raise EditError(
                f"There is no layer {edit.layer} to edit.",
                why=f"The model has layers 0 to {model.n_layers - 1}.",
                todo="The edits stayed as they were.",
            )
