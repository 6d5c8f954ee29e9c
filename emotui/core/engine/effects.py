"""The effect of one edit beside its controls, all of them rows of one batch.

Every row resumes at the edit's layer from the parent's residual, earlier edits in force, and adds
its own delta: the edit itself, nothing (the noise of this path), other active features of like
size, random directions of the same norm with the activations' covariance, and the feature that
writes most of another emotion. A control's delta of a metric is its row minus the row of nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import msgspec
import torch
from torch import Tensor

from emotui.core.engine.capture import Activations, Job
from emotui.core.engine.intervene import EditGroup, PlacedEdit, hooks_of, without_last
from emotui.core.engine.rerun import Rows, arriving, rerun
from emotui.core.errors import EngineError
from emotui.core.records import Control, Effect

if TYPE_CHECKING:
    from emotui.core.engine.answer import LabelTokens
    from emotui.core.engine.model import LoadedModel
    from emotui.core.engine.probes import Probe
    from emotui.core.engine.statistics import Statistics

MATCHED_FEATURES = 32
RANDOM_DIRECTIONS = 5
NOISE_FACTOR = 3.0
"""An effect below this many times the noise is said to be not measurable (DESIGN rule 5)."""
RESUME_TOLERANCE: Mapping[torch.dtype, float] = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.bfloat16: 0.1,
}
"""Largest difference of a logit between resume and full run, relative to the largest logit."""

ControlName = Literal["matched_features", "random_directions", "other_emotion"]
CONTROL_NAMES: tuple[ControlName, ...] = ("matched_features", "random_directions", "other_emotion")


@dataclass(frozen=True)
class Gauge:
    """What is measured on every variant, at the readout."""

    labels: LabelTokens | None
    """None where the answer takes more than the readout's logits."""
    probe: Probe | None
    """The readout probe; None where none is in force."""
    layer: int
    """The layer of the residual stream that the probe reads."""

    def measure(self, rows: Rows, before: Tensor) -> dict[str, Tensor]:
        """Return each metric as float32 [rows]; `before` are the parent's logits [vocabulary]."""
        metrics: dict[str, Tensor] = {}
        if self.labels is not None:
            scores = rows.logits[:, list(self.labels.deciding)].float().softmax(dim=-1)
            for column, label in enumerate(self.labels.labels):
                metrics[f"answer.{label}"] = scores[:, column]
        if self.probe is not None:
            row = self.probe.places.index(("resid", self.layer))
            at = slice(row, row + 1)
            h = rows.resid[self.layer].unsqueeze(0)
            z = self.probe.z_of(self.probe.logits(h, at), at)[0]
            for column, emotion in enumerate(self.probe.emotions):
                metrics[f"readout.{emotion}"] = z[:, column]
        metrics["kl"] = divergence(before, rows.logits)
        return metrics


def divergence(before: Tensor, after: Tensor) -> Tensor:
    """Return KL(before || after) of next-token distributions in nats, float32 [...].

    `before` is [vocabulary], `after` [..., vocabulary], both logits.
    """
    p = before.double().log_softmax(dim=-1)
    q = after.double().log_softmax(dim=-1)
    return (p.exp() * (p - q)).sum(dim=-1).clamp_min(0.0).float()


@dataclass(frozen=True)
class Comparison:
    """The effects of the last edit, and what it added."""

    effects: tuple[Effect, ...]
    delta_norm: float
    """Largest ratio over positions of the norms of delta and activation."""
    kl: float
    changed: bool
    """False where the edit added exactly nothing at every position."""
    readout_layer: int | None
    """The layer that the probe was read at; None without a readout probe."""


@dataclass(frozen=True)
class _Variant:
    name: Literal["edit", "nothing"] | ControlName
    target: str
    delta: Tensor
    """At the group's positions: [positions, d], earlier edits of the group included."""


def compare(
    model: LoadedModel,
    *,
    parent: Activations,
    child: Activations,
    clean: Activations,
    groups: Sequence[EditGroup],
    last: PlacedEdit,
    gauge: Gauge,
    statistics: Statistics,
    seed: int,
    job: Job,
) -> Comparison:
    """Measure the last edit against its controls.

    `parent` ran with all edits but the last, `child` with all (a full run), `clean` with none.
    Raises EngineError where resuming does not give the full run's logits.
    """
    site, layer = last.place
    before_groups = without_last(groups, last)
    group = next(g for g in groups if g.place == last.place)
    earlier = next(g for g in before_groups if g.place == last.place)
    elsewhere = hooks_of(
        [g for g in before_groups if g.edits and g.place != last.place and g.place[1] >= layer]
    )
    resid = parent.resid[layer]
    arrived = arriving(model, resid, start=layer, site=site, layer=layer, hooks=elsewhere, job=job)
    where = list(group.positions)
    variants, notes = _variants(group, earlier, last, arrived[where], gauge, statistics, seed)
    deltas = torch.zeros(
        (len(variants), *arrived.shape), dtype=arrived.dtype, device=arrived.device
    )
    for row, variant in enumerate(variants):
        deltas[row, where] = variant.delta
    rows = rerun(
        model,
        resid,
        start=layer,
        deltas=deltas,
        site=site,
        layer=layer,
        hooks=elsewhere,
        job=job,
    )
    _check_resume(rows.logits[0], child.logits)
    own = variants[0].delta - variants[1].delta
    ratio = own.float().norm(dim=-1) / arrived[where].float().norm(dim=-1).clamp_min(1e-12)
    measured = gauge.measure(rows, parent.logits)
    effects = [
        _effect(metric, values, full, variants, notes, model.dtype, last)
        for metric, values in measured.items()
        for full in [_full(gauge, metric, parent, child, clean)]
    ]
    return Comparison(
        tuple(effects),
        delta_norm=float(ratio.max()),
        kl=float(divergence(parent.logits, child.logits)),
        changed=bool(own.any()),
        readout_layer=None if gauge.probe is None else gauge.layer,
    )


def _variants(
    group: EditGroup,
    earlier: EditGroup,
    last: PlacedEdit,
    h: Tensor,
    gauge: Gauge,
    statistics: Statistics,
    seed: int,
) -> tuple[list[_Variant], dict[ControlName, str]]:
    """Return the rows, the edit first and nothing second, and why controls are missing.

    `h` is what arrives at the group's positions, [positions, d].
    """
    features = group.sae.encode(h)
    nothing = earlier.delta_of_rows(features, group.positions)
    edit = group.delta_of(features)
    own = (edit - nothing).float()
    variants = [_Variant("edit", last.edit.feature, edit), _Variant("nothing", "", nothing)]
    notes: dict[ControlName, str] = {}
    # A control feature is one that no edit of this place touches and that is active here.
    sizes = features.float().norm(dim=0) * group.sae.weights.decoder_norm
    sizes[[placed.edit.index for placed in group.edits]] = 0
    matched = _matched(sizes, _size_of(last, features, group, own))
    for index in matched:
        added = _control_delta(group, last, index, features, own)
        variants.append(_Variant("matched_features", _name(last, index), nothing + added))
    if len(matched) < MATCHED_FEATURES:
        notes["matched_features"] = (
            f"only {len(matched)} other features are active at the edited positions"
        )
    site, layer = last.place
    kind: Literal["text", "readout"] = (
        "readout" if last.edit.positions.kind == "readout" else "text"
    )
    directions = statistics.directions(site, layer, kind, count=RANDOM_DIRECTIONS, seed=seed)
    for number, direction in enumerate(directions):
        added = (own.norm(dim=-1, keepdim=True) * direction).to(h.dtype)
        variants.append(_Variant("random_directions", f"seed {seed}.{number}", nothing + added))
    other = _other_emotion(group, last, features, sizes, gauge)
    if isinstance(other, str):
        notes["other_emotion"] = other
    else:
        index, emotion = other
        added = _control_delta(group, last, index, features, own)
        variants.append(
            _Variant("other_emotion", f"{_name(last, index)} ({emotion})", nothing + added)
        )
    return variants, notes


def _name(last: PlacedEdit, index: int) -> str:
    return msgspec.structs.replace(last.edit, index=index).feature


def _size_of(last: PlacedEdit, features: Tensor, group: EditGroup, own: Tensor) -> float:
    """Return the size that controls are matched on: ||f D||, or of the delta where f is 0."""
    size = (
        features[:, last.edit.index].float().norm()
        * group.sae.weights.decoder_norm[last.edit.index]
    )
    return float(size) or float(own.norm())


def _matched(sizes: Tensor, size: float) -> list[int]:
    """Return the active features nearest in size (ratio), nearest first, at most 32."""
    active = sizes.nonzero().flatten()
    if not len(active) or size == 0:
        return []
    distance = (sizes[active] / size).log().abs()
    order = distance.argsort(stable=True)[:MATCHED_FEATURES]
    return [int(index) for index in active[order]]


def _control_delta(
    group: EditGroup, last: PlacedEdit, index: int, features: Tensor, own: Tensor
) -> Tensor:
    """Return what the same edit of another feature adds at the positions.

    Ablating and scaling do the same to the other feature; clamping and steering add a vector of
    the same norm at each position along its direction.
    """
    if last.edit.operation in ("ablate", "scale"):
        edit = msgspec.structs.replace(last.edit, index=index)
        return replace(group, edits=(PlacedEdit(edit, last.positions),)).delta_of_rows(
            features, group.positions
        )
    direction = group.sae.directions([index])[0].float()
    sign = torch.sign(own @ group.sae.directions([last.edit.index])[0].float())
    added: Tensor = (sign * own.norm(dim=-1))[:, None] * direction / direction.norm()
    return added.to(features.dtype)


def _other_emotion(
    group: EditGroup, last: PlacedEdit, features: Tensor, sizes: Tensor, gauge: Gauge
) -> tuple[int, str] | str:
    """Return the active feature that writes most along another emotion's probe, or why none.

    A feature's write is its summed activation times the product of its direction with the
    readout probe's row at the site and layer; its own emotion is that of its largest write.
    """
    if gauge.probe is None:
        return "no probe is fitted, so which feature writes another emotion is not known"
    site, layer = last.place
    rows = gauge.probe.weight[gauge.probe.places.index((site, layer))].T
    active = sizes.nonzero().flatten()
    named = [i for i, emotion in enumerate(gauge.probe.emotions) if emotion != "neutral"]
    if not len(active):
        return "no other feature is active at the edited positions"
    along = group.sae.directions([*active.tolist(), last.edit.index]).float() @ rows[named].T
    own = int(along[-1].argmax())
    writes = along[:-1] * features[:, active].float().sum(dim=0)[:, None]
    writes[:, own] = -torch.inf
    best = int(writes.argmax())
    feature, emotion = divmod(best, len(named))
    if float(writes[feature, emotion]) <= 0:
        return "no other active feature writes another emotion"
    return int(active[feature]), gauge.probe.emotions[named[emotion]]


def _check_resume(resumed: Tensor, full: Tensor) -> None:
    """Raise EngineError where resuming at the layer did not give the full run's logits."""
    largest = float((resumed - full).abs().max())
    allowed = RESUME_TOLERANCE[full.dtype] * max(1.0, float(full.abs().max()))
    if not largest <= allowed:
        raise EngineError(
            "A resumed run differed from the full run; its numbers were thrown away.",
            why=f"Logits differ by {largest:.3g}, allowed are {allowed:.3g}.",
            todo="Run `emotui doctor --model` on this model and report what it says.",
        )


def _full(
    gauge: Gauge, metric: str, parent: Activations, child: Activations, clean: Activations
) -> tuple[float, float, float]:
    """Return a metric of the full runs: clean, before, after."""
    rows = Rows(
        {
            gauge.layer: torch.stack(
                [run.resid[gauge.layer + 1, -1] for run in (clean, parent, child)]
            )
        },
        torch.stack([clean.logits, parent.logits, child.logits]),
    )
    first, second, third = gauge.measure(rows, parent.logits)[metric].tolist()
    return first, second, third


def _effect(
    metric: str,
    values: Tensor,
    full: tuple[float, float, float],
    variants: Sequence[_Variant],
    notes: Mapping[ControlName, str],
    dtype: torch.dtype,
    last: PlacedEdit,
) -> Effect:
    clean, before, after = full
    delta = after - before
    nothing = float(values[1])
    noise = max(abs(nothing - before), 8 * torch.finfo(dtype).eps * max(1.0, abs(before)))
    controls = tuple(
        _control(name, delta, values, nothing, variants, notes.get(name, ""))
        for name in CONTROL_NAMES
    )
    return Effect(
        metric=metric,
        clean=clean,
        before=before,
        after=after,
        delta=delta,
        controls=controls,
        noise=noise,
        verdict=_verdict(delta, noise, controls, removing=last.edit.operation == "ablate"),
    )


def _control(
    name: ControlName,
    delta: float,
    values: Tensor,
    nothing: float,
    variants: Sequence[_Variant],
    note: str,
) -> Control:
    rows = [row for row, variant in enumerate(variants) if variant.name == name]
    deltas = tuple(float(values[row]) - nothing for row in rows)
    rank = 1 + sum(abs(other) >= abs(delta) for other in deltas) if rows else None
    return Control(
        name=name,
        deltas=deltas,
        rank=rank,
        targets=tuple(variants[row].target for row in rows),
        note=note,
    )


def _verdict(delta: float, noise: float, controls: Sequence[Control], *, removing: bool) -> str:
    """Return the effect in words: not measurable, or how it stands among its controls."""
    if abs(delta) < NOISE_FACTOR * noise:
        what = "removing this alone" if removing else "this edit alone"
        return f"No measurable effect of {what}."
    matched, random, _ = controls
    parts = []
    if matched.rank is not None:
        parts.append(f"rank {matched.rank} of {len(matched.deltas) + 1} beside matched features")
    if random.rank is not None:
        parts.append(f"rank {random.rank} of {len(random.deltas) + 1} beside random directions")
    return "; ".join(parts).capitalize() + "." if parts else "No control applies."
