"""A run with edits in force: its activations, its hooks, and the effect of the last edit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from emotui.cache.recipes import with_recipes
from emotui.core.corpus import APPRAISAL_SOURCE
from emotui.core.edits import (
    Edit,
    FeatureEdit,
    HeadEdit,
    JointEdit,
    KnockEdit,
    ModulateEdit,
    PatchEdit,
    ProjectEdit,
    PromoteEdit,
    Source,
    parse_edit,
)
from emotui.core.engine.capture import Activations, Hook, Job, with_key
from emotui.core.engine.effects import Comparison, Gauge, compare
from emotui.core.engine.intervene import (
    EditGroup,
    check_layers,
    group_edits,
    hooks_of,
    modulation_at,
    place_edits,
    places_of,
    places_of_edit,
)
from emotui.core.engine.joint import matched_sets
from emotui.core.engine.materials import Materials, Other
from emotui.core.engine.runs import activations_of, edited_activations_of
from emotui.core.engine.sources import settled, trace_of
from emotui.core.engine.steps import PlacedEdit
from emotui.core.engine.variants import CONTROL_NAMES, RANDOM_DIRECTIONS, ControlName, Grouped
from emotui.core.records import Answer, Control, Effect, Intervention, Mark, Readouts, TextRecord
from emotui.core.text import Template

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.engine.answer import LabelTokens
    from emotui.core.engine.model import LoadedModel
    from emotui.core.engine.probes import Probe
    from emotui.core.engine.saes import Sae

_NO_CONTROLS = "the answer takes more than one token, so controls were not run for it"


@dataclass(frozen=True)
class Along:
    """An edit along a probe's own direction: from where on its readouts say nothing new."""

    probe: str
    emotion: str
    layer: int
    position: int


@dataclass(frozen=True)
class EditedRun:
    """What a run with edits gives beyond a plain one."""

    activations: Activations
    hooks: tuple[Hook, ...]
    """In force while anything else of this trace is computed."""
    intervention: Intervention
    effects: tuple[Effect, ...]
    along: tuple[Along, ...]
    """The edits along a probe's own direction."""


def canonical(
    lines: Sequence[str], *, model: LoadedModel, store: Store, template: Template
) -> tuple[str, ...]:
    """Return edits in the form they are kept in: recipes expanded, sources named for good.

    EditError for one that cannot be understood, a recipe or a source of another model.
    """
    edits = [parse_edit(line) for line in with_recipes(lines, store.root, model.fingerprint)]
    return tuple(
        str(settled(edit, model=model, store=store, template=template))
        if isinstance(edit, PatchEdit)
        else str(edit)
        for edit in edits
    )


def run_edited(
    model: LoadedModel,
    store: Store,
    *,
    clean: Activations,
    lines: Sequence[str],
    text: TextRecord,
    template: Template,
    saes: Sequence[Sae],
    probes: Sequence[Probe],
    labels: LabelTokens,
    all_sites: bool,
    selected: bool,
    seed: int,
    job: Job,
) -> EditedRun:
    """Run the prompt with edits and measure the last of them against its controls.

    `clean` are the activations without edits. Raises EditError where an edit does not fit the
    model, its SAEs, its probes or the text.
    """
    job.progress("reading the corpus for controls")
    materials = materials_of(model, store, text, template, saes, probes, seed, job)
    placed = _placed(lines, text, model)
    earlier, groups = (group_edits(some, materials) for some in (placed[:-1], placed))

    def run(some: Sequence[EditGroup]) -> Activations:
        return edited_activations_of(model, store, clean, some, all_sites=all_sites, job=job)

    job.progress("running the model with the edits")
    parent, child = run(earlier), run(groups)
    job.progress("running the controls")
    comparison = compare(
        model,
        parent=parent,
        child=child,
        clean=clean,
        earlier=earlier,
        groups=groups,
        last=placed[-1],
        rivals=(*_rivals(placed, materials), *matched_sets(placed, parent, materials, job)),
        gauge=_gauge(labels, materials.probe, placed[-1].edit, model.n_layers),
        materials=materials,
        selected=selected,
        job=job,
    )
    return EditedRun(
        # A delta of exactly nothing leaves the parent's numbers, whatever the device rounds.
        activations=child if comparison.changed else with_key(parent, child.key),
        hooks=hooks_of(groups),
        intervention=_intervention(
            comparison,
            groups,
            (
                *_notes(placed[-1].edit, materials),
                *_nothing_done(comparison, placed[-1].edit),
                *_far_off(comparison),
            ),
            selected=selected,
        ),
        effects=comparison.effects,
        along=tuple(_along(placed, materials.probe)),
    )


def answer_effects(clean: Answer, before: Answer, after: Answer) -> tuple[Effect, ...]:
    """Return the answer's effects where the label rule needs more than the readout's logits."""
    controls = tuple(Control(name, (), None, (), _NO_CONTROLS) for name in CONTROL_NAMES)
    return tuple(
        Effect(
            metric=f"answer.{label}",
            clean=clean.labels[label],
            before=before.labels[label],
            after=after.labels[label],
            delta=after.labels[label] - before.labels[label],
            controls=controls,
            noise=0.0,
            verdict="No control applies.",
        )
        for label in after.labels
    )


def marked(readouts: Readouts, along: Sequence[Along]) -> Readouts:
    """Return the readouts, marked `by_construction` at or after an edit along their direction.

    From the edit's layer on in the residual stream, above it in attention and MLP outputs, and
    from the first edited position on.
    """
    if not along:
        return readouts
    first: dict[tuple[str, str], list[Along]] = {}
    for one in along:
        first.setdefault((one.probe, one.emotion), []).append(one)

    def mark(row: int) -> Mark:
        for one in first.get((readouts.probe[row], readouts.emotion[row]), ()):
            lowest = one.layer + (readouts.site[row] != "resid")
            if readouts.layer[row] >= lowest and readouts.position[row] >= one.position:
                return "by_construction"
        return readouts.mark[row]

    marks = tuple(mark(row) for row in range(len(readouts.mark)))
    return msgspec.structs.replace(readouts, mark=marks)


def _placed(lines: Sequence[str], text: TextRecord, model: LoadedModel) -> tuple[PlacedEdit, ...]:
    edits = [parse_edit(line) for line in lines]
    check_layers(edits, model)
    return place_edits(edits, text)


def materials_of(
    model: LoadedModel,
    store: Store,
    text: TextRecord,
    template: Template,
    saes: Sequence[Sae],
    probes: Sequence[Probe],
    seed: int,
    job: Job,
) -> Materials:
    """Return what edits of one text are made of, read when it is first asked for."""

    def other(source: Source) -> Other:
        """Run what a patch is taken from, its own edits in force."""
        if source.kind == "text":
            lines: Sequence[str] = ()
            record = model.reader.read(source.value, template, context_length=model.context_length)
        else:
            trace = trace_of(source, model=model, store=store)
            lines, record = trace.edits, trace.text
        ids = [token.id for token in record.tokens]
        run = activations_of(model, store, ids, all_sites=True, job=job)
        if lines:
            theirs = materials_of(model, store, record, template, saes, probes, seed, job)
            groups = group_edits(_placed(lines, record, model), theirs)
            run = edited_activations_of(model, store, run, groups, all_sites=True, job=job)
        return run, record

    return Materials(
        model,
        store,
        text=text,
        template=template,
        saes=saes,
        probes=probes,
        other=other,
        seed=seed,
        job=job,
    )


def _rivals(placed: Sequence[PlacedEdit], materials: Materials) -> list[Grouped]:
    """Return other edits in the place of the last, as controls of it.

    Along each other emotion for an edit along one; with other seeds for a random knock-out.
    """
    last = placed[-1]
    edit = last.edit
    rivals: list[Grouped] = []

    def add(name: ControlName, target: str, other: Edit, using: Materials) -> None:
        groups = group_edits((*placed[:-1], PlacedEdit(other, last.positions)), using)
        places = places_of_edit(edit, materials.model.n_layers)
        there = {group.place: group for group in groups if group.place in places}
        rivals.append(Grouped(name, target, there))

    if isinstance(edit, PromoteEdit | ProjectEdit) and materials.probe is not None:
        for emotion in materials.probe.emotions:
            if emotion != edit.emotion:
                other: Edit = msgspec.structs.replace(edit, emotion=emotion)
                add("other_emotion", str(other), other, materials)
    if isinstance(edit, KnockEdit | HeadEdit) and edit.kind == "random":
        for number in range(1, RANDOM_DIRECTIONS + 1):
            seed = materials.seed + number
            add("random_directions", f"seed {seed}", edit, materials.seeded(seed))
    return rivals


def _gauge(labels: LabelTokens, probe: Probe | None, last: Edit, n_layers: int) -> Gauge:
    """Return what is measured: the answer, and the readout probe at its best later layer.

    Where a probe has no z, as without neutral texts, there is no scale an effect could be read on.
    """
    decided = labels if labels.rule == "first_token" else None
    if probe is None:
        return Gauge(decided, None, n_layers - 1)
    lowest = places_of_edit(last, n_layers)[-1][1]
    later = [
        score
        for score in probe.file.card.scores
        if score.site == "resid" and score.layer >= lowest and probe.has_z_at("resid", score.layer)
    ]
    if not later:
        return Gauge(decided, None, n_layers - 1)
    best = max(
        later,
        key=lambda score: (
            score.trust == "trusted",
            score.dev_accuracy or score.balanced_accuracy,
            -score.layer,
        ),
    )
    return Gauge(decided, probe, best.layer)


def _intervention(
    comparison: Comparison,
    groups: Sequence[EditGroup],
    notes: tuple[str, ...],
    *,
    selected: bool,
) -> Intervention:
    return Intervention(
        fired=places_of(groups),
        kl=comparison.kl,
        delta_norm=comparison.delta_norm,
        selected=selected,
        readout_layer=comparison.readout_layer,
        notes=notes,
    )


def _nothing_done(comparison: Comparison, edit: Edit) -> tuple[str, ...]:
    """Return the words for an edit that added exactly nothing: that is no finding."""
    if comparison.changed:
        return ()
    if isinstance(edit, FeatureEdit) and edit.operation in ("ablate", "scale"):
        where = _PLACES.get(edit.positions.kind, f"at {edit.positions}")
        return (f"{edit.feature} is not active {where}: the edit changed nothing",)
    if isinstance(edit, JointEdit) and edit.operation in ("ablate", "scale"):
        where = _PLACES.get(edit.positions.kind, f"at {edit.positions}")
        return (f"none of them is active {where}: the edit changed nothing",)
    return ("it left every activation as it was: the edit changed nothing",)


def _far_off(comparison: Comparison) -> tuple[str, ...]:
    """Return the words for an edit that leaves nothing of the activation it was added to."""
    if comparison.delta_norm <= FAR_OFF:
        return ()
    return (
        f"{comparison.delta_norm:.3g} times the activation's own norm was added: what the model "
        "does then says nothing of the text",
    )


FAR_OFF = 10.0
"""Norms of the activation from which an edit is said to be far off."""
_PLACES = {"all": "in this text", "readout": "at the readout", "last": "at the last token"}


def _notes(edit: Edit, materials: Materials) -> tuple[str, ...]:
    """Return what a reader must know of the last edit besides its numbers."""
    notes: list[str] = []
    if isinstance(edit, PromoteEdit | ModulateEdit) and len(edit.layers.numbers) > 1:
        total = sum(abs(materials.strength(edit, layer)) for layer in edit.layers.numbers)
        notes.append(
            f"added at each of {len(edit.layers.numbers)} layers: {total:.4g} in all, "
            f"{abs(edit.value) * len(edit.layers.numbers):.4g} of the mean norm"
        )
    if isinstance(edit, PromoteEdit) and edit.along == "means":
        from emotui.cache.statistics import EMOTION_TEXTS

        cosines = [
            float(materials.promoted(edit, layer) @ materials.emotion_row(edit.emotion, layer))
            for layer in edit.layers.numbers
        ]
        said = ", ".join(f"{cosine:.2f}" for cosine in cosines)
        notes.append(
            f"along the mean of {EMOTION_TEXTS} situations of {edit.emotion} less that of the "
            f"others; cosine with the probe's row {said}"
        )
    if isinstance(edit, ModulateEdit):
        from emotui.core.engine.appraisals import appraisal_named

        names = [*(word[1:] for word in edit.raised), *edit.keep]
        for layer in edit.layers.numbers:
            made = modulation_at(edit, layer, materials)
            left, names_kept = made.surviving, ", ".join(edit.keep)
            kept = f" once the direction of {names_kept} is kept" if edit.keep else ""
            if edit.released:
                along = (
                    f"{name} {cosine:+.2f}"
                    for name, cosine in zip(edit.keep, made.along_kept, strict=True)
                )
                kept += f", but as released it is not: cosine with {', '.join(along)}"
            scores = {
                name: materials.appraisals.r_squared(layer, appraisal_named(name)) for name in names
            }
            said = ", ".join(f"{name} {score:.2f}" for name, score in scores.items())
            empty = [name for name, score in scores.items() if score <= 0]
            notes.append(
                f"L{layer}: {left:.2f} of the norm is left{kept}; R^2 of the ridge directions on "
                f"held-out topics: {said} ({APPRAISAL_SOURCE} values)"
                + (f"; not to be trusted: {', '.join(empty)}" if empty else "")
            )
    return tuple(notes)


def _along(placed: Iterable[PlacedEdit], probe: Probe | None) -> Iterable[Along]:
    for one in placed:
        if isinstance(one.edit, PromoteEdit | ProjectEdit) and probe is not None:
            layer = 0 if one.edit.layers is None else one.edit.layers.first
            yield Along(probe.id, one.edit.emotion, layer, one.positions[0])
