"""The kinds of edit, as frozen records that print themselves in the edit language."""

from __future__ import annotations

from typing import Literal

import msgspec

from emotui.core.edits.positions import Positions
from emotui.core.edits.words import Layers, number, quoted, signed
from emotui.core.records import Site

FeatureOperation = Literal["ablate", "scale", "clamp", "steer"]
KnockSite = Literal["attn", "mlp"]
KnockKind = Literal["zero", "mean", "random", "resample"]
SourceKind = Literal["trace", "file", "text"]
Along = Literal["means", "row"]

FEATURE_OPERATIONS: tuple[FeatureOperation, ...] = ("ablate", "scale", "clamp", "steer")
KNOCK_KINDS: tuple[KnockKind, ...] = ("zero", "mean", "random", "resample")
ALONG: tuple[Along, ...] = ("means", "row")


class FeatureEdit(msgspec.Struct, frozen=True):
    """One change of one SAE feature.

    `value` is None for ablate, the factor for scale, the activation for clamp, and for steer the
    fraction of the corpus mean of the norm of the activation at that site and layer, along the
    feature's unit decoder row.
    """

    operation: FeatureOperation
    site: Site
    layer: int
    index: int
    value: float | None
    positions: Positions

    @property
    def layers(self) -> Layers:
        """Its one layer."""
        return Layers(self.layer, self.layer)

    @property
    def feature(self) -> str:
        """The feature as it is written: `L18/4412`, the site before it unless it is resid."""
        prefix = "" if self.site == "resid" else f"{self.site}:"
        return f"{prefix}L{self.layer}/{self.index}"

    def __str__(self) -> str:
        amount = ""
        if self.value is not None:
            amount = {
                "scale": f" x{number(self.value)}",
                "clamp": f" = {number(self.value)}",
                "steer": f" {signed(self.value)}",
            }[self.operation]
        return f"{self.operation} {self.feature}{amount} at {self.positions}"


class JointEdit(msgspec.Struct, frozen=True):
    """One change of several SAE features at once, at the same positions: one edit."""

    parts: tuple[FeatureEdit, ...]
    """Two or more, of one operation, value and positions, each of another feature."""

    @property
    def operation(self) -> FeatureOperation:
        """What is done to each of them."""
        return self.parts[0].operation

    @property
    def positions(self) -> Positions:
        """Where."""
        return self.parts[0].positions

    @property
    def layers(self) -> Layers:
        """From the lowest layer of them to the highest."""
        layers = [part.layer for part in self.parts]
        return Layers(min(layers), max(layers))

    def __str__(self) -> str:
        first = self.parts[0]
        names = " ".join(part.feature for part in self.parts)
        return str(first).replace(first.feature, names, 1)


class KnockEdit(msgspec.Struct, frozen=True):
    """Attention or MLP outputs over a window of layers replaced (METHODS 1.5).

    By zero, by the corpus mean at the same kind of position, by a random direction of the same
    norm, or by what another text of the corpus has there.
    """

    site: KnockSite
    layers: Layers
    kind: KnockKind
    positions: Positions

    def __str__(self) -> str:
        return f"knock {self.site} {self.layers} {self.kind} at {self.positions}"


class HeadEdit(msgspec.Struct, frozen=True):
    """One attention head knocked out: its slice of the input of the output projection."""

    layer: int
    head: int
    kind: KnockKind
    positions: Positions

    @property
    def layers(self) -> Layers:
        """Its one layer."""
        return Layers(self.layer, self.layer)

    def __str__(self) -> str:
        return f"knock head L{self.layer}.{self.head} {self.kind} at {self.positions}"


class Source(msgspec.Struct, frozen=True):
    """What a patch takes its activations from."""

    kind: SourceKind
    value: str
    """The id of a trace or its beginning, the path of a JSON export, or a text."""

    def __str__(self) -> str:
        if self.kind == "trace":
            return self.value
        return quoted(self.value) if self.kind == "text" else f"file:{quoted(self.value)}"


class PatchEdit(msgspec.Struct, frozen=True):
    """A site over a window of layers overwritten by what another run has there (METHODS 1.4).

    At the readout (the source's readout) or at the last token of the text (the source's).
    """

    site: Site
    layers: Layers
    source: Source
    positions: Positions

    def __str__(self) -> str:
        return f"patch {self.site} {self.layers} from {self.source} at {self.positions}"


class PromoteEdit(msgspec.Struct, frozen=True):
    """The residual moved along the direction of an emotion (METHODS 1.6 and 3).

    `value` is the fraction of the corpus mean of ||h|| that is added at each layer. `along` is
    which unit direction: the mean of the corpus's texts of the emotion less the mean of the other
    emotions', or the readout probe's row, as in Tak et al.
    """

    emotion: str
    layers: Layers
    value: float
    positions: Positions
    along: Along = "means"

    def __str__(self) -> str:
        along = "" if self.along == "means" else f" along {self.along}"
        amount = signed(self.value)
        return f"promote {self.emotion} {self.layers} {amount}{along} at {self.positions}"


class ProjectEdit(msgspec.Struct, frozen=True):
    """The component along the readout probe's row of an emotion removed from the residual."""

    emotion: str
    layers: Layers | None
    """None: every layer."""
    positions: Positions

    def __str__(self) -> str:
        window = "" if self.layers is None else f" {self.layers}"
        return f"project out {self.emotion}{window} at {self.positions}"


class ModulateEdit(msgspec.Struct, frozen=True):
    """The residual moved along appraisal directions, others held fixed (METHODS 1.7).

    `value` is the fraction of the corpus mean of ||h|| that is added at each layer.
    """

    raised: tuple[str, ...]
    """The appraisals as they are written, each with its sign: `+other_agency`."""
    layers: Layers
    value: float
    keep: tuple[str, ...]
    positions: Positions
    released: bool = False
    """As in the published release of Tak et al., which names what is kept and does not keep it:
    the projection is left out (METHODS 1.7)."""

    def __str__(self) -> str:
        keep = "".join(f" {name}" for name in ("keep", *self.keep)) if self.keep else ""
        words = " ".join(self.raised)
        amount = signed(self.value) + (" released" if self.released else "")
        return f"modulate {words} {self.layers} {amount}{keep} at {self.positions}"


Edit = (
    FeatureEdit
    | JointEdit
    | KnockEdit
    | HeadEdit
    | PatchEdit
    | PromoteEdit
    | ProjectEdit
    | ModulateEdit
)
"""Any edit; `str` gives its printed form."""
