"""The rows that an edit is compared with: nothing, and its controls.

Matched features: other active features of like size, edited the same way. Random directions: of
the norm of the edit's own delta at each place, with the activations' covariance. Other emotion:
the active feature that writes most of another emotion, or the same edit along other emotions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec
import torch
from torch import Tensor

from emotui.core.edits import FeatureEdit, HeadEdit
from emotui.core.engine.intervene import EditGroup, Place
from emotui.core.engine.statistics import kind_of
from emotui.core.engine.steps import FeatureStep, PlacedEdit, PlacedFeatureEdit

if TYPE_CHECKING:
    from emotui.core.engine.materials import Materials
    from emotui.core.engine.probes import Probe
    from emotui.core.engine.saes import Sae

MATCHED_FEATURES = 32
RANDOM_DIRECTIONS = 5

ControlName = Literal["matched_features", "random_directions", "other_emotion"]
CONTROL_NAMES: tuple[ControlName, ...] = ("matched_features", "random_directions", "other_emotion")
RowName = ControlName | Literal["edit", "nothing"]
Notes = dict[ControlName, str]
"""Why a control is missing, or what it is where that is not plain."""


class Variant(Protocol):
    """One row: what is added at each place of the last edit, earlier edits there included."""

    @property
    def name(self) -> RowName:
        """What the row is for."""

    @property
    def target(self) -> str:
        """What it changes, in words."""

    def delta(self, place: Place, h: Tensor, where: Sequence[int]) -> Tensor:
        """Return what is added to `h` [len(where), width], the tensor at the positions."""


@dataclass
class Recorded:
    """What the edit itself added at each place, kept while its row runs (the first of all)."""

    norms: dict[Place, Tensor] = field(default_factory=dict)
    """[positions, 1], float32."""
    ratio: float = 0.0
    """Largest ratio of the norms of delta and activation."""
    changed: bool = False

    def keep(self, place: Place, own: Tensor, h: Tensor) -> None:
        """Keep what one place was given on top of the earlier edits."""
        norms = own.float().norm(dim=-1, keepdim=True)
        arrived = h.float().norm(dim=-1, keepdim=True).clamp_min(1e-12)
        self.norms[place] = norms
        self.ratio = max(self.ratio, float((norms / arrived).max()))
        self.changed = self.changed or bool(own.any())


@dataclass(frozen=True, eq=False)
class Grouped:
    """A row with edits in force: the edit itself, none, or others in its place."""

    name: RowName
    target: str
    groups: Mapping[Place, EditGroup]
    recorded: Recorded | None = None
    """Where the edit's own delta is kept; None for the other rows."""
    before: Mapping[Place, EditGroup] = field(default_factory=dict)
    """The earlier edits; needed only to keep that."""

    def delta(self, place: Place, h: Tensor, where: Sequence[int]) -> Tensor:
        """Return what the edits at the place add."""
        added = self.groups[place].delta(h, where)
        if self.recorded is not None:
            self.recorded.keep(place, added - self.before[place].delta(h, where), h)
        return added


@dataclass(frozen=True, eq=False)
class Fixed:
    """A row that adds one tensor at the one place of an edit of a feature."""

    name: RowName
    target: str
    added: Tensor
    """[positions of the place, width]."""

    def delta(self, _place: Place, _h: Tensor, _where: Sequence[int]) -> Tensor:
        """Return the tensor."""
        return self.added


@dataclass(frozen=True, eq=False)
class Random:
    """A row that adds, at each place, a direction of the norm of the edit's own delta there."""

    name: RowName
    target: str
    directions: Mapping[Place, Tensor]
    """[width], unit vectors."""
    before: Mapping[Place, EditGroup]
    recorded: Recorded

    def delta(self, place: Place, h: Tensor, where: Sequence[int]) -> Tensor:
        """Return the earlier edits' delta and the direction."""
        random = self.recorded.norms[place] * self.directions[place]
        return self.before[place].delta(h, where) + random.to(h.dtype)


def random_variants(
    places: Sequence[Place],
    before: Mapping[Place, EditGroup],
    recorded: Recorded,
    last: PlacedEdit,
    materials: Materials,
    *,
    count: int = RANDOM_DIRECTIONS,
    seed: int | None = None,
) -> list[Variant]:
    """Return `count` rows of random directions; `seed` None is that of the materials."""
    seed = materials.seed if seed is None else seed
    kind = kind_of(last.positions, materials.text.readout)
    columns = materials.columns_of(last.edit) if isinstance(last.edit, HeadEdit) else None
    drawn = {
        (site, layer): materials.statistics_of(site).directions(
            site, layer, kind, count=count, seed=seed, columns=columns
        )
        for site, layer in places
    }
    return [
        Random(
            "random_directions",
            f"seed {seed}.{number}",
            {place: directions[number] for place, directions in drawn.items()},
            before,
            recorded,
        )
        for number in range(count)
    ]


def feature_variants(
    group: EditGroup,
    before: EditGroup,
    edit: FeatureEdit,
    positions: tuple[int, ...],
    arrived: Tensor,
    probe: Probe | None,
) -> tuple[list[Variant], Notes]:
    """Return the controls that are other features, and why some are missing.

    `group` are all edits at the place, `edit` at `positions` the last of them; `before` those
    without it; `arrived` is what arrives at every token, [tokens, width].
    """
    where = list(group.positions)
    h = arrived[where]
    step = group.steps[-1]
    assert isinstance(step, FeatureStep)
    reaching = h + EditGroup(group.place, group.steps[:-1]).delta(h, where)
    rows = [where.index(position) for position in positions]
    features = step.sae.encode(reaching[rows])
    nothing = before.delta(h, where)
    own = (group.delta(h, where) - nothing)[rows].float()
    # A control feature is one that no edit of this place touches and that is active here.
    sizes = features.float().norm(dim=0) * step.sae.weights.decoder_norm
    touched = [p.edit.index for s in group.steps if isinstance(s, FeatureStep) for p in s.edits]
    sizes[touched] = 0
    notes: Notes = {}
    chosen: list[tuple[ControlName, int, str]] = []
    own_size = features[:, edit.index].float().norm() * step.sae.weights.decoder_norm[edit.index]
    # Where the feature is not active, the controls are of the size of the delta.
    like = matched(sizes, float(own_size) or float(own.norm()))
    chosen += [("matched_features", index, _name(edit, index)) for index in like]
    if len(like) < MATCHED_FEATURES:
        notes["matched_features"] = (
            f"only {len(like)} other features are active at the edited positions"
        )
    other = _other_emotion(step.sae, edit, features, sizes, probe)
    if isinstance(other, str):
        notes["other_emotion"] = other
    else:
        index, emotion = other
        chosen.append(("other_emotion", index, f"{_name(edit, index)} ({emotion})"))
    variants: list[Variant] = []
    for name, index, target in chosen:
        added = nothing.clone()
        added[rows] += _control_delta(step, edit, positions, index, features, own)
        variants.append(Fixed(name, target, added))
    return variants, notes


def _name(edit: FeatureEdit, index: int) -> str:
    return msgspec.structs.replace(edit, index=index).feature


def matched(sizes: Tensor, size: float, *, most: int = MATCHED_FEATURES) -> list[int]:
    """Return the active features nearest in size (ratio), nearest first, at most `most`.

    `sizes` [features] are 0 for those that do not count.
    """
    active = sizes.nonzero().flatten()
    if not len(active) or size == 0:
        return []
    distance = (sizes[active] / size).log().abs()
    order = distance.argsort(stable=True)[:most]
    return [int(index) for index in active[order]]


def _control_delta(
    step: FeatureStep,
    edit: FeatureEdit,
    positions: tuple[int, ...],
    index: int,
    features: Tensor,
    own: Tensor,
) -> Tensor:
    """Return what the same edit of another feature adds at the positions of the edit.

    Ablating and scaling do the same to the other feature; clamping and steering add a vector of
    the same norm at each position along its direction.
    """
    if edit.operation in ("ablate", "scale"):
        placed = PlacedFeatureEdit(msgspec.structs.replace(edit, index=index), positions)
        return FeatureStep(step.sae, (placed,), step.unit).delta_of(features)
    direction = step.sae.directions([index])[0].float()
    sign = torch.sign(own @ step.sae.directions([edit.index])[0].float())
    added: Tensor = (sign * own.norm(dim=-1))[:, None] * direction / direction.norm()
    return added.to(features.dtype)


def _other_emotion(
    sae: Sae, edit: FeatureEdit, features: Tensor, sizes: Tensor, probe: Probe | None
) -> tuple[int, str] | str:
    """Return the active feature that writes most along another emotion's probe, or why none.

    A feature's write is its summed activation times the product of its direction with the
    readout probe's row at the site and layer; its own emotion is that of its largest write.
    """
    if probe is None:
        return "no probe with a z is in force, so which feature writes another emotion is not known"
    if (edit.site, edit.layer) not in probe.places:
        return "no probe reads the outputs of single heads"
    rows = probe.weight[probe.places.index((edit.site, edit.layer))].T
    active = sizes.nonzero().flatten()
    named = [i for i, emotion in enumerate(probe.emotions) if emotion != "neutral"]
    if not len(active):
        return "no other feature is active at the edited positions"
    along = sae.directions([*active.tolist(), edit.index]).float() @ rows[named].T
    own = int(along[-1].argmax())
    writes = along[:-1] * features[:, active].float().sum(dim=0)[:, None]
    writes[:, own] = -torch.inf
    best = int(writes.argmax())
    feature, emotion = divmod(best, len(named))
    if float(writes[feature, emotion]) <= 0:
        return "no other active feature writes another emotion"
    return int(active[feature]), probe.emotions[named[emotion]]
