"""The effect of one edit beside its controls, all of them rows of one batch.

Every row resumes from the parent's residual where the edit begins, earlier edits in force, and
adds its own delta: the edit itself, nothing (the noise of this path), and the controls of
`variants`. A control's delta of a metric is its row minus the row of nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emotui.core.edits import (
    Edit,
    FeatureEdit,
    HeadEdit,
    JointEdit,
    KnockEdit,
    ProjectEdit,
    PromoteEdit,
)
from emotui.core.engine.capture import Activations, Hook, Job
from emotui.core.engine.intervene import EditGroup, Place, hooks_of, places_of_edit
from emotui.core.engine.rerun import Rows, arriving, rerun
from emotui.core.engine.selection import Picking, own_norms, picking_of
from emotui.core.engine.steps import PlacedEdit
from emotui.core.engine.variants import (
    CONTROL_NAMES,
    ControlName,
    Grouped,
    Notes,
    Recorded,
    Variant,
    feature_variants,
    random_variants,
)
from emotui.core.errors import EngineError
from emotui.core.records import Control, Effect

if TYPE_CHECKING:
    from emotui.core.engine.answer import LabelTokens
    from emotui.core.engine.materials import Materials
    from emotui.core.engine.model import LoadedModel
    from emotui.core.engine.probes import Probe

NOISE_FACTOR = 3.0
"""An effect below this many times the noise is said to be not measurable (DESIGN rule 5)."""
RESUME_TOLERANCE: Mapping[torch.dtype, float] = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.bfloat16: 0.1,
}
"""Largest difference of a logit between resume and full run, relative to the largest logit."""


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
        """Return each metric as float32 [rows] on the CPU.

        `before` are the parent's logits [vocabulary].
        """
        metrics: dict[str, Tensor] = {}
        if self.labels is not None:
            scores = rows.logits[:, list(self.labels.deciding)].float().softmax(dim=-1).cpu()
            for column, label in enumerate(self.labels.labels):
                metrics[f"answer.{label}"] = scores[:, column]
        if self.probe is not None:
            z = self._readouts(rows.resid[self.layer]).cpu()
            for column, emotion in enumerate(self.probe.emotions):
                metrics[f"readout.{emotion}"] = z[:, column]
        metrics["kl"] = divergence(before, rows.logits).cpu()
        return metrics

    def scores(self, logits: Tensor, resid: Mapping[int, Tensor]) -> Tensor:
        """Return the label logits and the z of the probe, float32 [rows, labels + emotions].

        `logits` [rows, vocabulary], `resid` by layer [rows, d_model]; differentiable in both.
        """
        parts: list[Tensor] = []
        if self.labels is not None:
            parts.append(logits[:, list(self.labels.deciding)].float())
        if self.probe is not None:
            parts.append(self._readouts(resid[self.layer]))
        # They may stand on two devices, where the model is spread over several.
        return torch.cat([part.to(parts[0].device) for part in parts], dim=-1)

    def _readouts(self, resid: Tensor) -> Tensor:
        """Return z [rows, emotions] of `resid` [rows, d_model] at the layer that is read."""
        assert self.probe is not None
        row = self.probe.places.index(("resid", self.layer))
        at = slice(row, row + 1)
        return self.probe.z_of(self.probe.logits(resid.unsqueeze(0), at), at)[0]


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
    """Largest ratio over places of the norms of delta and activation."""
    kl: float
    changed: bool
    """False where the edit added exactly nothing at every place."""
    readout_layer: int | None
    """The layer that the probe was read at; None without a readout probe."""


def compare(
    model: LoadedModel,
    *,
    parent: Activations,
    child: Activations,
    clean: Activations,
    earlier: Sequence[EditGroup],
    groups: Sequence[EditGroup],
    last: PlacedEdit,
    rivals: Sequence[Grouped],
    gauge: Gauge,
    materials: Materials,
    selected: bool,
    job: Job,
) -> Comparison:
    """Measure the last edit against its controls.

    `parent` ran with the `earlier` groups (all edits but the last), `child` with `groups` (all
    edits; a full run), `clean` with none. `rivals` are further controls: other edits in the place
    of the last. Where it is of a feature that was `selected`, it is compared with the best of as
    many random directions too. Raises EngineError where resuming does not give the full run's
    logits.
    """
    at = arranged(earlier, groups, last, model.n_layers)
    mine, before, start = at.mine, at.before, at.start
    resid = parent.at("resid", start - 1)
    recorded = Recorded()
    variants: list[Variant] = [
        Grouped("edit", str(last.edit), mine, recorded, before),
        Grouped("nothing", "", before),
    ]
    notes: Notes = {}
    if isinstance(last.edit, FeatureEdit):
        (place,) = mine
        # What arrives at a residual without earlier edits there is what the parent's run kept.
        kept = place[0] == "resid" and not before[place].steps
        arrived = (
            parent.at("resid", place[1])
            if kept
            else arriving(
                model,
                resid,
                start=start,
                site=place[0],
                layer=place[1],
                hooks=hooks_of(at.elsewhere),
                job=job,
            )
        )
        features, notes = feature_variants(
            mine[place], before[place], last.edit, last.positions, arrived, gauge.probe
        )
        variants += features
    else:
        notes = _notes_without_features(last.edit, rivals)
    variants += rivals
    if not any(rival.name == "random_directions" for rival in rivals):
        variants += random_variants(tuple(before), before, recorded, last, materials)
    rows = run_variants(model, resid, variants, at, job)
    _check_resume(rows.logits[0], child.logits)
    measured = gauge.measure(rows, parent.logits)
    picking: Picking | None = None
    if selected and recorded.changed and isinstance(last.edit, FeatureEdit):
        picking = picking_of(
            model,
            parent=parent,
            earlier=earlier,
            last=last,
            own=own_norms(recorded, next(iter(mine.values())), last.positions),
            gauge=gauge,
            nothing={metric: float(values[1]) for metric, values in measured.items()},
            materials=materials,
            job=job,
        )
    effects = [
        _effect(metric, values, full, variants, notes, model.dtype, last.edit, picking)
        for metric, values in measured.items()
        for full in [_full(gauge, metric, parent, child, clean)]
    ]
    return Comparison(
        tuple(effects),
        delta_norm=recorded.ratio,
        kl=float(divergence(parent.logits, child.logits)),
        changed=recorded.changed,
        readout_layer=None if gauge.probe is None else gauge.layer,
    )


@dataclass(frozen=True)
class Arranged:
    """The edits of a run, sorted by what rows that differ in the last of them need."""

    mine: Mapping[Place, EditGroup]
    """All edits at the places of the last, in the order the model passes them."""
    before: Mapping[Place, EditGroup]
    """The same without the last; empty groups where there are no others."""
    elsewhere: tuple[EditGroup, ...]
    """Earlier edits at other places from block `start` on: in force in every row."""
    start: int
    """The first block that is run: the one above the last edit's first layer where what stands
    there is known, else the one of that layer."""
    first: int
    """The first token that any edit from there on acts on."""


def arranged(
    earlier: Sequence[EditGroup], groups: Sequence[EditGroup], last: PlacedEdit, n_layers: int
) -> Arranged:
    """Return the groups of all edits, and of all but the last, as rows need them."""
    places = places_of_edit(last.edit, n_layers)
    mine = {group.place: group for group in groups if group.place in places}
    before = {place: EditGroup(place, ()) for place in places}
    before |= {group.place: group for group in earlier if group.place in places}
    start = first_block(places, before)
    elsewhere = tuple(g for g in earlier if g.place not in mine and g.place[1] >= start)
    first = min(p for group in (*mine.values(), *elsewhere) for p in group.positions)
    return Arranged(mine, before, elsewhere, start, first)


def first_block(places: Sequence[Place], before: Mapping[Place, EditGroup]) -> int:
    """Return the first block to run for what differs at `places`, `before` already in force.

    An edit of the residual stream needs not its own block: what arrives there is what the parent
    kept, unless earlier edits stand at the very place, which a stored residual holds already.
    """
    lowest = min(layer for _, layer in places)
    sites = {site for site, layer in places if layer == lowest}
    return lowest + (sites == {"resid"} and not before["resid", lowest].steps)


def run_variants(
    model: LoadedModel, resid: Tensor, variants: Sequence[Variant], at: Arranged, job: Job
) -> Rows:
    """Run each variant as a row from `resid` [tokens, d_model], what arrives at the first layer.

    The first of them runs first, so that others may read what it recorded.
    """
    return rerun(
        model,
        resid,
        start=at.start,
        n_rows=len(variants),
        hooks=lambda rows: (
            *hooks_of(at.elsewhere, first=at.first),
            *_row_hooks(variants, rows, at.mine, at.first),
        ),
        first=at.first,
        job=job,
    )


def _row_hooks(
    variants: Sequence[Variant], rows: range, mine: Mapping[Place, EditGroup], first: int
) -> list[Hook]:
    """Return a hook at each place of the last edit that gives each row its own delta.

    The tensors begin at token `first`.
    """

    def hook(place: Place) -> Hook:
        where = list(mine[place].positions)

        at = [position - first for position in where]

        def function(tensor: Tensor) -> Tensor:
            here = tensor[:, at]
            added = [variants[row].delta(place, here[n], where) for n, row in enumerate(rows)]
            changed = tensor.clone()
            changed[:, at] = here + torch.stack(added)
            return changed

        return Hook(place[0], place[1], function)

    return [hook(place) for place in mine]


def _notes_without_features(edit: Edit, rivals: Sequence[Grouped]) -> Notes:
    """Return why an edit of no one feature lacks controls, and what stands in for them."""
    notes: Notes = {"matched_features": "only edits of a feature have features to be matched"}
    sets = sum(rival.name == "matched_features" for rival in rivals)
    if isinstance(edit, JointEdit):
        notes["matched_features"] = (
            "the same value is not the same change of other features"
            if edit.operation == "clamp"
            else f"{sets} sets of as many other features, each of like size"
        )
        notes["other_emotion"] = "a set has no one feature of another emotion to stand beside"
        return notes
    if not any(rival.name == "other_emotion" for rival in rivals):
        notes["other_emotion"] = "only edits of a feature or along an emotion have one"
    else:
        notes["other_emotion"] = "the same edit along each other emotion"
    if any(rival.name == "random_directions" for rival in rivals):
        notes["random_directions"] = "the same knock-out with other seeds"
    return notes


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
                [run.at("resid", gauge.layer)[-1] for run in (clean, parent, child)]
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
    variants: Sequence[Variant],
    notes: Notes,
    dtype: torch.dtype,
    edit: Edit,
    picking: Picking | None,
) -> Effect:
    clean, before, after = full
    delta = after - before
    nothing = float(values[1])
    noise = max(abs(nothing - before), rounding_of(metric, before, dtype))
    controls = tuple(
        _control(name, delta, values, nothing, variants, notes.get(name, ""))
        for name in CONTROL_NAMES
    )
    if picking is not None:
        controls = (*controls, picking.control(metric, delta))
    verdict = _verdict(delta, noise, controls, edit)
    along = isinstance(edit, PromoteEdit | ProjectEdit) and metric == f"readout.{edit.emotion}"
    if along:
        verdict += " By construction: the edit is along this emotion's own direction."
    return Effect(
        metric=metric,
        clean=clean,
        before=before,
        after=after,
        delta=delta,
        controls=controls,
        noise=noise,
        verdict=verdict,
    )


def rounding_of(metric: str, before: float, dtype: torch.dtype) -> float:
    """Return what rounding in the run's dtype alone may change a metric by.

    Eight units of the last place: of a readout, counted from 1 up; of a probability, its own share
    (rounded logits change it in proportion); of the divergence, which is of second order, squared.
    """
    units = 8 * torch.finfo(dtype).eps
    if metric == "kl":
        return units**2
    return units * (abs(before) if metric.startswith("answer.") else max(1.0, abs(before)))


def _control(
    name: ControlName,
    delta: float,
    values: Tensor,
    nothing: float,
    variants: Sequence[Variant],
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


_BESIDE: Mapping[ControlName, str] = {
    "matched_features": "matched features",
    "random_directions": "random directions",
    "other_emotion": "other emotions",
}


def _verdict(delta: float, noise: float, controls: Sequence[Control], edit: Edit) -> str:
    """Return the effect in words: not measurable, or how it stands among its controls."""
    if abs(delta) < NOISE_FACTOR * noise:
        removing = (
            edit.operation == "ablate"
            if isinstance(edit, FeatureEdit | JointEdit)
            else isinstance(edit, KnockEdit | HeadEdit | ProjectEdit)
        )
        what = "removing this alone" if removing else "this edit alone"
        if isinstance(edit, JointEdit):
            what = "removing these together" if removing else "this joint edit"
        return f"No measurable effect of {what}."
    parts = [
        beyond_picking(control)
        if control.name == "selection"
        else f"rank {control.rank} of {len(control.deltas) + 1} beside {_BESIDE[control.name]}"
        for control in sorted(controls, key=lambda control: control.name != "selection")
        # One feature of another emotion is a number to look at, not a ranking.
        if control.rank is not None and (control.name != "other_emotion" or len(control.deltas) > 1)
    ]
    if not parts:
        return "No control applies."
    said = "; ".join(parts)
    return f"{said[0].upper()}{said[1:]}."


def beyond_picking(control: Control) -> str:
    """Return whether an effect is more than picking the best of as many directions would give."""
    count, number = len(control.deltas), control.candidates
    reaching = (control.rank or 1) - 1
    if not reaching:
        return f"selected: beyond {count} of {count} best-of-{number} random draws"
    return f"no effect beyond selection: {reaching} of {count} best-of-{number} draws do as much"
