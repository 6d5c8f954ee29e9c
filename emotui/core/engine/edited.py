"""A run with edits in force: its activations, its hooks, and the effect of the last edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from emotui.cache.keys import derived_key
from emotui.core.edits import Edit, parse_edit
from emotui.core.engine.capture import Activations, Hook, Job, capture, with_key
from emotui.core.engine.effects import CONTROL_NAMES, Comparison, Gauge, compare
from emotui.core.engine.intervene import (
    EditGroup,
    PlacedEdit,
    check_layers,
    group_edits,
    hooks_of,
    place_edits,
    places_of,
)
from emotui.core.engine.statistics import corpus_statistics
from emotui.core.errors import CacheError
from emotui.core.records import Answer, Control, Effect, Intervention, TextRecord
from emotui.core.text import Template

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.engine.answer import LabelTokens
    from emotui.core.engine.model import LoadedModel
    from emotui.core.engine.probes import Probe
    from emotui.core.engine.saes import Sae

_NO_CONTROLS = "the answer takes more than one token, so controls were not run for it"


@dataclass(frozen=True)
class EditedRun:
    """What a run with edits gives beyond a plain one."""

    activations: Activations
    hooks: tuple[Hook, ...]
    """In force while anything else of this trace is computed."""
    intervention: Intervention
    effects: tuple[Effect, ...]


def canonical(lines: Sequence[str]) -> tuple[str, ...]:
    """Return edits in their printed form; EditError for one that cannot be understood."""
    return tuple(str(parse_edit(line)) for line in lines)


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
    model, its SAEs or the text.
    """
    edits = [parse_edit(line) for line in lines]
    check_layers(edits, model)
    placed = place_edits(edits, text)
    job.progress("reading the corpus for controls")
    statistics = corpus_statistics(model, template, store, job)

    def groups_of(some: Sequence[PlacedEdit]) -> tuple[EditGroup, ...]:
        return group_edits(some, saes, statistics.mean_norm)

    def run(some: Sequence[PlacedEdit]) -> Activations:
        groups = groups_of(some)
        if not groups:
            return clean
        return _activations(model, store, clean, groups, all_sites=all_sites, job=job)

    groups = groups_of(placed)
    job.progress("running the model with the edits")
    parent, child = run(placed[:-1]), run(placed)
    job.progress("running the controls")
    comparison = compare(
        model,
        parent=parent,
        child=child,
        clean=clean,
        groups=groups,
        last=placed[-1],
        gauge=_gauge(labels, probes, edits[-1], model.n_layers),
        statistics=statistics,
        seed=seed,
        job=job,
    )
    return EditedRun(
        # A delta of exactly nothing leaves the parent's numbers, whatever the device rounds.
        activations=child if comparison.changed else with_key(parent, child.key),
        hooks=hooks_of(groups),
        intervention=_intervention(comparison, groups, selected=selected),
        effects=comparison.effects,
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


def _activations(
    model: LoadedModel,
    store: Store,
    clean: Activations,
    groups: Sequence[EditGroup],
    *,
    all_sites: bool,
    job: Job,
) -> Activations:
    """Return the activations under the edits, from the store where they are."""
    said = [
        [group.sae.key, group.unit, *(str(placed.edit) for placed in group.edits)]
        for group in groups
    ]
    key = derived_key(clean.key, f"edits:{msgspec.json.encode(said).decode()}")
    stored = store.get_entry("activations", key)
    if stored is not None:
        try:
            return Activations.from_bytes(stored, key=key, device=model.device)
        except CacheError:
            pass  # whole, but not what this version writes: computed again below
    computed = capture(model, clean.token_ids, all_sites=all_sites, hooks=hooks_of(groups), job=job)
    store.put_entry("activations", key, computed.to_bytes())
    return with_key(computed, key)


def _gauge(labels: LabelTokens, probes: Sequence[Probe], last: Edit, n_layers: int) -> Gauge:
    """Return what is measured: the answer, and the readout probe at its best layer after the edit."""
    probe = next((probe for probe in probes if probe.kind == "readout"), None)
    decided = labels if labels.rule == "first_token" else None
    if probe is None:
        return Gauge(decided, None, n_layers - 1)
    later = [
        score
        for score in probe.file.card.scores
        if score.site == "resid" and score.layer >= last.layer
    ]
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
    comparison: Comparison, groups: Sequence[EditGroup], *, selected: bool
) -> Intervention:
    return Intervention(
        fired=places_of(groups),
        kl=comparison.kl,
        delta_norm=comparison.delta_norm,
        selected=selected,
        readout_layer=comparison.readout_layer,
    )
