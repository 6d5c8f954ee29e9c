"""What edits do to the tensor at their place: each a delta, given the tensor that arrives.

A step holds everything it needs as tensors; `identity` names all of it for cache keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from emotui.core.edits import Edit, FeatureEdit

if TYPE_CHECKING:
    from emotui.core.engine.saes import Sae


@dataclass(frozen=True)
class PlacedEdit:
    """An edit with the token positions it acts on in this text."""

    edit: Edit
    positions: tuple[int, ...]


class Step(Protocol):
    """One change of the tensor at a place."""

    @property
    def positions(self) -> tuple[int, ...]:
        """The token positions it acts on."""

    @property
    def identity(self) -> str:
        """What it does, to the last number."""

    def delta(self, h: Tensor) -> Tensor:
        """Return what it adds to `h` [..., len(positions), width]: a tensor of its shape."""


def digest_of(tensor: Tensor) -> str:
    """Return 16 hex digits of the values of a tensor."""
    values = tensor.detach().cpu().contiguous()
    return hashlib.sha256(values.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class PlacedFeatureEdit:
    """An edit of a feature with the token positions it acts on in this text."""

    edit: FeatureEdit
    positions: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class FeatureStep:
    """Edits of features at one place, made one after the other: sum_j (f'_j - f_j) D_j.

    Edits of one feature compose before the one delta (METHODS 2.1); steering adds along the unit
    decoder row.
    """

    sae: Sae
    edits: tuple[PlacedFeatureEdit, ...]
    unit: float
    """Strength 1 of `steer`, as a norm."""

    @property
    def positions(self) -> tuple[int, ...]:
        """The positions any of the edits acts on, ascending."""
        return tuple(sorted({p for placed in self.edits for p in placed.positions}))

    @property
    def identity(self) -> str:
        """The SAE, the unit, and each edit with its token positions."""
        edits = [f"{placed.edit} {placed.positions}" for placed in self.edits]
        return f"features {self.sae.key} {self.unit!r} {edits}"

    def delta(self, h: Tensor) -> Tensor:
        """Return what the edits add: exactly zero where no feature changes."""
        return self.delta_of(self.sae.encode(h))

    def delta_of(self, features: Tensor) -> Tensor:
        """Return what the edits add, given the activations [..., len(positions), SAE width]."""
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


def _change(
    edit: FeatureEdit,
    after: Tensor,
    along: Tensor,
    rows: Sequence[int],
    column: int,
    unit: float,
) -> None:
    """Apply one edit in place: to the feature's activations, or along its unit direction."""
    value = 0.0 if edit.value is None else edit.value
    if edit.operation == "scale":
        after[..., rows, column] *= value
    elif edit.operation == "steer":
        along[..., rows, column] += value * unit
    else:
        after[..., rows, column] = value


def _in_columns(h: Tensor, columns: slice, values: Tensor) -> Tensor:
    """Return a tensor of the shape of `h` with `values` in its columns, else zero."""
    spread = torch.zeros_like(h)
    spread[..., columns] = values
    return spread


@dataclass(frozen=True, eq=False)
class SetStep:
    """The tensor, or the columns of one head, replaced: a mean, another run's, or zero."""

    positions: tuple[int, ...]
    values: Tensor
    """[len(positions), columns]."""
    columns: slice = field(default_factory=lambda: slice(None))

    @property
    def identity(self) -> str:
        """The positions, the columns and the values."""
        return f"set {self.positions} {self.columns} {digest_of(self.values)}"

    def delta(self, h: Tensor) -> Tensor:
        """Return values - h in the columns."""
        return _in_columns(h, self.columns, self.values.to(h) - h[..., self.columns])


@dataclass(frozen=True, eq=False)
class RandomStep:
    """The tensor, or the columns of one head, replaced by a direction of the same norm."""

    positions: tuple[int, ...]
    directions: Tensor
    """[len(positions), columns], unit rows."""
    columns: slice = field(default_factory=lambda: slice(None))

    @property
    def identity(self) -> str:
        """The positions, the columns and the directions."""
        return f"random {self.positions} {self.columns} {digest_of(self.directions)}"

    def delta(self, h: Tensor) -> Tensor:
        """Return ||h|| g - h in the columns."""
        inside = h[..., self.columns]
        norm = inside.norm(dim=-1, keepdim=True)
        return _in_columns(h, self.columns, norm * self.directions.to(h) - inside)


@dataclass(frozen=True, eq=False)
class AddStep:
    """One vector added at every position."""

    positions: tuple[int, ...]
    vector: Tensor
    """[width]."""

    @property
    def identity(self) -> str:
        """The positions and the vector."""
        return f"add {self.positions} {digest_of(self.vector)}"

    def delta(self, h: Tensor) -> Tensor:
        """Return the vector, whatever arrives."""
        return self.vector.to(h).expand_as(h)


@dataclass(frozen=True, eq=False)
class ProjectStep:
    """The component along one unit vector u removed: -(h . u) u."""

    positions: tuple[int, ...]
    unit: Tensor
    """[width], of norm 1."""

    @property
    def identity(self) -> str:
        """The positions and the direction."""
        return f"project {self.positions} {digest_of(self.unit)}"

    def delta(self, h: Tensor) -> Tensor:
        """Return minus the component."""
        unit = self.unit.to(h)
        return -(h @ unit)[..., None] * unit
