"""Fitted probes: their file, and applying one to the activations of a text.

A probe holds one linear readout for each place (site and layer) of a model: for h at the place,
logits = (h - center) @ weight + bias. z is (logit - mean) / sd of the out-of-fold logits of
neutral texts at the same place: at the readout for the readout kind, over the tokens of the texts
for the token kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from torch import Tensor

from emotui.cache.probes import ProbeCard
from emotui.core.engine.collect import Place, places_of
from emotui.core.engine.layered import Stack, placed
from emotui.core.engine.packed import tensors_to_bytes
from emotui.core.errors import ProbeError
from emotui.core.records import Mark, ProbeKind, ProbeSummary, Readouts, Site, TextRecord, Trust

if TYPE_CHECKING:
    from emotui.core.engine.capture import Activations
    from emotui.core.engine.model import LoadedModel

_METADATA = "emotui_probe"
_TENSORS = ("weight", "center", "bias", "neutral_mean", "neutral_sd")


class Threshold(msgspec.Struct, frozen=True):
    """z that one neutral text in twenty exceeds somewhere, for texts of like length."""

    longest: int | None
    """Most tokens of a prompt it is for; None for any length."""
    above: dict[Site, float]
    """By site: the 95th percentile of the highest z over that site's layers and the emotions (and
    the tokens of the text, for the token kind)."""


class ProbeFile(msgspec.Struct, frozen=True):
    """What a probe file says beside its tensors."""

    card: ProbeCard
    strength: tuple[float, ...]
    """The penalty chosen for each place on dev (C of scikit-learn)."""
    thresholds: tuple[Threshold, ...]
    """By growing length; empty without neutral texts."""


@dataclass(frozen=True, eq=False)
class Probe:
    """A fitted probe: P places, d inputs, K emotions; float32 on the model's device."""

    file: ProbeFile
    weight: Stack
    """[P, d, K]; column k at a place is emotion k's direction there, in the model's own units."""
    center: Stack
    """[P, d], the mean of the training texts."""
    bias: Stack
    """[P, K]."""
    neutral_mean: Stack
    """[P, K]; NaN where there is no z."""
    neutral_sd: Stack
    """[P, K]; NaN where there is no z."""

    @property
    def id(self) -> str:
        """The id it is stored under."""
        return self.file.card.id

    @property
    def kind(self) -> ProbeKind:
        """What it was fitted on: the readout, or the mean over text tokens."""
        return self.file.card.kind

    @property
    def emotions(self) -> tuple[str, ...]:
        """The emotions, in the order of the outputs."""
        return self.file.card.emotions

    @property
    def places(self) -> tuple[Place, ...]:
        """The site and layer of each row of the tensors."""
        return tuple((score.site, score.layer) for score in self.file.card.scores)

    def logits(self, h: Tensor, rows: slice) -> Tensor:
        """Return logits [p, ..., K] of `h` [p, ..., d] at the places `rows`, where `h` is."""
        weight, center, bias = (
            stack[rows].to(h.device) for stack in (self.weight, self.center, self.bias)
        )
        middle = (1,) * (h.dim() - 2)
        centered = h.to(weight.dtype) - center.view(center.shape[0], *middle, -1)
        flat = centered.reshape(center.shape[0], -1, h.shape[-1])
        logits = torch.baddbmm(bias.unsqueeze(1), flat, weight)
        return logits.view(*h.shape[:-1], -1)

    def z_of(self, logits: Tensor, rows: slice) -> Tensor:
        """Return the z of logits [p, tokens, K] at the places `rows`; NaN where there is none."""
        mean, sd = (
            stack[rows].unsqueeze(1).to(logits.device)
            for stack in (self.neutral_mean, self.neutral_sd)
        )
        return (logits - mean) / sd

    def has_z_at(self, site: Site, layer: int) -> bool:
        """Return whether logits there have a z: not without neutral texts, nor where these do not
        differ, as in the embedding of a template's last token."""
        return bool(self.neutral_sd[self.places.index((site, layer))].isfinite().all())

    def summary(self, n_tokens: int) -> ProbeSummary:
        """Return what a trace of a prompt of `n_tokens` tokens records of this probe.

        The accuracies are of the layer of the residual stream that was best on dev, on the texts
        the probe was judged on. `marked_above` is empty where the prompt is longer than any neutral
        text was.
        """
        card = self.file.card
        resid = [score for score in card.scores if score.site == "resid"]
        best = max(resid, key=lambda score: (score.dev_accuracy or 0.0, -score.layer))
        above = next(
            (
                threshold.above
                for threshold in self.file.thresholds
                if threshold.longest is None or n_tokens <= threshold.longest
            ),
            {},
        )
        return ProbeSummary(
            id=card.id,
            kind=card.kind,
            label_set=card.label_set,
            emotions=card.emotions,
            template=card.template,
            data=card.data,
            sites=card.sites,
            held_out_accuracy=best.balanced_accuracy if card.judged else None,
            bag_accuracy=best.bag_accuracy if card.judged else None,
            marked_above=above,
            judged_on=card.judged_on,
        )

    def to_bytes(self) -> bytes:
        """Return the probe as one safetensors document."""
        tensors = {name: getattr(self, name).cpu().contiguous() for name in _TENSORS}
        metadata = {_METADATA: msgspec.json.encode(self.file).decode()}
        payload: bytes = tensors_to_bytes(tensors, metadata)
        return payload


def _damaged(why: str) -> ProbeError:
    return ProbeError(
        "A probe file could not be used.",
        why=why,
        todo="Fit the probe again with `emotui probe fit`.",
    )


def load_probe(payload: bytes, model: LoadedModel) -> Probe:
    """Rebuild a probe from its safetensors bytes, each place on the device of its layer.

    ProbeError where the bytes are no probe, or that of another model.
    """
    try:
        length = int.from_bytes(payload[:8], "little")
        header = msgspec.json.decode(payload[8 : 8 + length], type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(header["__metadata__"], type=dict[str, str])
        file = msgspec.json.decode(metadata[_METADATA], type=ProbeFile)
        tensors = tensors_from_bytes(payload)
    except (KeyError, msgspec.DecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise _damaged(f"It is not a probe written by emotui ({type(error).__name__}).") from error
    card = file.card
    if card.fingerprint != model.fingerprint:
        raise ProbeError(
            f"The probe {card.id} is of another model.",
            why=f"It was fitted on {card.model}, whose weights differ from those of "
            f"{model.spec.model}.",
            todo="Fit one for this model with `emotui probe fit`.",
        )
    places = tuple((score.site, score.layer) for score in card.scores)
    shapes = (len(places), model.d_model, len(card.emotions))
    found = tuple(tensors["weight"].shape) if tensors.keys() >= set(_TENSORS) else ()
    if places != places_of(model.n_layers) or found != shapes:
        raise _damaged("Its tensors do not fit the model.")
    devices = [model.device_at(layer) for _, layer in places]
    return Probe(file, *(placed(tensors[name], devices) for name in _TENSORS))


@torch.no_grad()
def apply(probe: Probe, activations: Activations, text: TextRecord) -> Readouts:
    """Read a probe at every place: columns by site, layer, position and emotion.

    The readout kind is read at the readout, and at the last token of the text, there marked
    `outside`. The token kind is read at every token, `outside` at template and special tokens.
    Attention and MLP outputs are read where they were kept.
    """
    wanted = (
        tuple(range(len(text.tokens)))
        if probe.kind == "token"
        else tuple(sorted({text.readout, text.last}))
    )
    places = probe.places
    parts = []
    for site in probe.file.card.sites:
        kept = activations.positions(site)
        column = {position: number for number, position in enumerate(kept)}
        positions = [position for position in wanted if position in column]
        first = next(number for number, place in enumerate(places) if place[0] == site)
        columns = [column[position] for position in positions]
        for there, stack in activations.kept[site].groups():
            rows = slice(first + there.start, first + there.stop)
            logits = probe.logits(stack[:, columns], rows)
            parts.append(_columns(probe, text, site, rows, positions, logits))
    names = Readouts.__struct_fields__
    return Readouts(*(tuple(v for part in parts for v in getattr(part, name)) for name in names))


def _columns(
    probe: Probe,
    text: TextRecord,
    site: Site,
    rows: slice,
    positions: Sequence[int],
    logits: Tensor,
) -> Readouts:
    scores = probe.file.card.scores[rows]
    emotions = probe.emotions
    per_layer = len(positions) * len(emotions)
    marks = [_mark(probe.kind, text, position) for position in positions]
    count = len(scores) * per_layer
    z = probe.z_of(logits, rows).flatten().tolist()
    trusts: list[Trust] = [score.trust for score in scores]
    return Readouts(
        probe=(probe.id,) * count,
        site=(site,) * count,
        layer=tuple(score.layer for score in scores for _ in range(per_layer)),
        position=tuple(p for p in positions for _ in emotions) * len(scores),
        emotion=emotions * (len(scores) * len(positions)),
        value=tuple(logits.flatten().tolist()),
        z=tuple(None if value != value else value for value in z),
        trust=tuple(trust for trust in trusts for _ in range(per_layer)),
        mark=tuple(mark for mark in marks for _ in emotions) * len(scores),
    )


def _mark(kind: ProbeKind, text: TextRecord, position: int) -> Mark:
    if kind == "readout":
        return "" if position == text.readout else "outside"
    return "" if text.tokens[position].part == "text" else "outside"
