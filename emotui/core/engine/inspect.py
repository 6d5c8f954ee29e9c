"""One text to one trace: tokens, activations, readouts, features, lens and answer.

Each part is looked for in the cache under a key of its own before it is computed, so that a new
probe or SAE costs no forward pass, and a trace that stands there costs nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from emotui.cache.keys import derived_key, request_key, sae_identities, trace_id
from emotui.cache.lineage import ancestors_of
from emotui.cache.store import Store
from emotui.core.agreement import agreement_of
from emotui.core.emotions import LABEL_SETS
from emotui.core.engine import answer as answers
from emotui.core.engine.answer import AnswerReading, LabelTokens, label_tokens
from emotui.core.engine.attributor import NONE, Attributor, metric_of
from emotui.core.engine.capture import Activations, Job, hooked
from emotui.core.engine.edited import EditedRun, answer_effects, canonical, marked, run_edited
from emotui.core.engine.estimate import announce, estimate_run, too_much
from emotui.core.engine.generate import continuation
from emotui.core.engine.instruments import Instruments
from emotui.core.engine.lens import read_lens
from emotui.core.engine.memory import Estimate, peak_bytes, told_what_fits
from emotui.core.engine.model import LoadedModel, package_versions
from emotui.core.engine.runs import activations_of
from emotui.core.errors import UsageError
from emotui.core.model_names import recorded_name
from emotui.core.protocol import GenerationSpec, Inspected, InspectRequest, ModelSpec
from emotui.core.records import Answer, Effect, Run, TextRecord, Trace
from emotui.core.text import Template, clean, template_named

if TYPE_CHECKING:
    from emotui.core.engine.probes import Probe
    from emotui.core.engine.saes import SaeSet

NOTE_FILE = "emotui.json"
"""In a local model's folder: a JSON object whose `note` goes into every trace."""


@dataclass(frozen=True)
class Inspection:
    """A trace and what it cost; for callers inside the engine."""

    trace: Trace
    forwards: int
    expected_bytes: int = 0
    """The peak of memory that was estimated; 0 where nothing was run but a continuation."""


@dataclass(frozen=True)
class _Ready:
    """What is known of a request before the model is run."""

    template: Template
    labels: LabelTokens
    text: TextRecord
    saes: tuple[SaeSet, ...]
    probes: tuple[Probe, ...]
    all_sites: bool
    expected: Estimate


def inspect(
    request: InspectRequest, model: LoadedModel, instruments: Instruments, store: Store, job: Job
) -> Inspected:
    """Compute the trace of a text and put it into the store, or find it there.

    TextError for a text the model cannot read; UsageError for an unknown template or label set.
    """
    started = time.monotonic()
    if request.edits:
        template = template_named(request.template)
        edits = canonical(request.edits, model=model, store=store, template=template)
        request = msgspec.structs.replace(request, edits=edits)
    key = _key(request, model, store)
    found = store.find_trace(key)
    if found is None and request.saes:
        present = instruments.present(request.saes, job)
        if present != request.saes:
            request = msgspec.structs.replace(request, saes=present)
            key = _key(request, model, store)
            found = store.find_trace(key)
    if found is not None:
        return Inspected(
            trace_id=found, cached=True, forwards=0, seconds=time.monotonic() - started
        )
    done = compute(request, model, instruments, store, job, key=key)
    job.check()
    store.put_trace(done.trace, key)
    return Inspected(
        trace_id=done.trace.id,
        cached=False,
        forwards=done.forwards,
        seconds=time.monotonic() - started,
        estimate_bytes=max(done.expected_bytes, model.loading_bytes),
        peak_bytes=model.over_devices(peak_bytes),
    )


def _key(request: InspectRequest, model: LoadedModel, store: Store) -> str:
    identities = sae_identities(request.saes, store, fingerprint=model.fingerprint)
    return request_key(request, model.fingerprint, sae_ids=identities)


def compute(
    request: InspectRequest,
    model: LoadedModel,
    instruments: Instruments,
    store: Store,
    job: Job,
    *,
    key: str,
) -> Inspection:
    """Return the trace of a request whose request key is `key`, without storing the trace.

    With edits, the trace without the last of them is its parent and is put into the store. With a
    continuation, so is the trace without it, which is the same otherwise.
    """
    if request.generation is not None:
        return _continued(request, request.generation, model, instruments, store, job, key=key)
    ready = _ready(request, model, instruments, job)
    with told_what_fits(lambda: too_much(model, len(ready.text.tokens), ready.expected)):
        return _compute(request, ready, model, instruments, store, job, key=key)


def _ready(
    request: InspectRequest, model: LoadedModel, instruments: Instruments, job: Job
) -> _Ready:
    if request.label_set not in LABEL_SETS:
        raise UsageError(
            f"There is no label set called {clean(request.label_set)!r}.",
            todo=f"Use one of: {', '.join(LABEL_SETS)}.",
        )
    template = template_named(request.template)
    labels = label_tokens(model.reader, request.label_set, template)
    text = model.reader.read(
        request.text, template, context_length=model.context_length - labels.room
    )
    saes = instruments.saes(request.saes, job)
    probes = instruments.probes(request.probes)
    # An SAE on attention or MLP outputs reads every token, as one on the residual does.
    all_sites = request.all_sites or any(
        site != "resid" for source in saes for site, _ in source.places
    )
    expected = estimate_run(
        model,
        saes,
        len(text.tokens),
        all_sites=all_sites,
        attributes=request.metric != NONE,
        edits=request.edits,
    )
    announce(expected, saes, len(text.tokens), job)
    return _Ready(template, labels, text, saes, probes, all_sites, expected)


def _compute(
    request: InspectRequest,
    ready: _Ready,
    model: LoadedModel,
    instruments: Instruments,
    store: Store,
    job: Job,
    *,
    key: str,
) -> Inspection:
    before = model.forwards
    template, labels, text = ready.template, ready.labels, ready.text
    saes, probes, all_sites = ready.saes, ready.probes, ready.all_sites
    job.progress("running the model")
    activations = activations_of(
        model, store, [token.id for token in text.tokens], all_sites=all_sites, job=job
    )
    edited: EditedRun | None = None
    parent: Trace | None = None
    if request.edits:
        edited = run_edited(
            model,
            store,
            clean=activations,
            lines=request.edits,
            text=text,
            template=template,
            saes=[sae for source in saes for sae in source],
            probes=probes,
            labels=labels,
            all_sites=all_sites,
            selected=request.selected,
            seed=request.seed,
            job=job,
        )
        parent = _parent(request, model, instruments, store, job)
        activations = edited.activations
    job.check()
    job.progress("reading the answer")
    with hooked(model, edited.hooks if edited else ()):
        reading = _answer(model, store, activations, labels, template, job)
    lens = read_lens(model, activations, reading)
    job.progress("reading the probes")
    summaries, readouts = instruments.readouts(probes, activations, text)
    if edited is not None:
        readouts = marked(readouts, edited.along)
    attributor: Attributor | None = None
    if request.metric != NONE:
        metric = metric_of(
            request.metric,
            labels=labels,
            answer=reading.answer,
            probes=probes,
            n_layers=model.n_layers,
            readout=text.readout,
        )
        attributor = Attributor(
            model,
            store,
            activations,
            metric,
            hooks=edited.hooks if edited else (),
            all_sites=all_sites,
            job=job,
        )
    features, sae_readings = instruments.features(
        saes, activations, text, job, attributor=attributor
    )
    trace = Trace(
        id=trace_id(key),
        parent=None if parent is None else parent.id,
        run=run_record(model, request),
        text=text,
        probes=summaries,
        saes=sae_readings,
        readouts=readouts,
        features=features,
        answer=reading.answer,
        lens=lens,
        attribution=None if attributor is None else instruments.attribution(attributor),
        edits=request.edits,
        intervention=None if edited is None else edited.intervention,
        effects=() if edited is None else _effects(edited, parent, reading.answer, store),
    )
    trace = msgspec.structs.replace(trace, agreement=agreement_of(trace))
    return Inspection(trace, model.forwards - before, ready.expected.total)


def _continued(
    request: InspectRequest,
    spec: GenerationSpec,
    model: LoadedModel,
    instruments: Instruments,
    store: Store,
    job: Job,
    *,
    key: str,
) -> Inspection:
    """Write first, so that a reader sees the text grow at once, then compute the rest."""
    before = model.forwards
    generation = continuation(request, spec, model, instruments, store, job)
    without = msgspec.structs.replace(request, generation=None)
    trace = store.get_trace(inspect(without, model, instruments, store, job).trace_id)
    trace = msgspec.structs.replace(trace, id=trace_id(key), generation=generation)
    return Inspection(trace, model.forwards - before)


def _parent(
    request: InspectRequest, model: LoadedModel, instruments: Instruments, store: Store, job: Job
) -> Trace:
    """Return the trace without the last edit, computed and stored where it was not there."""
    edits = request.edits[:-1]
    without = msgspec.structs.replace(
        request, edits=edits, selected=request.selected and bool(edits)
    )
    return store.get_trace(inspect(without, model, instruments, store, job).trace_id)


def _effects(
    edited: EditedRun, parent: Trace | None, after: Answer, store: Store
) -> tuple[Effect, ...]:
    if parent is None or parent.answer is None or after.rule == "first_token":
        return edited.effects
    root = (ancestors_of(parent, store) or [parent])[-1]
    return (*answer_effects(root.answer or parent.answer, parent.answer, after), *edited.effects)


def run_record(model: LoadedModel, request: InspectRequest) -> Run:
    """Return the record of what computed a trace."""
    return Run(
        model=recorded_name(request.spec.model),
        revision=model.revision,
        fingerprint=model.fingerprint,
        architecture=model.architecture,
        layers=model.n_layers,
        d_model=model.d_model,
        dtype=model.dtype_name,
        device=model.device_name,
        attention=model.attention,
        template=request.template,
        bos=model.reader.begins_with_bos,
        layer_base=0,
        packages=package_versions(),
        seed=request.seed,
        note=note_of(request.spec),
    )


def note_of(spec: ModelSpec) -> str:
    """Return the `note` in a local model's `emotui.json`; "" where there is none."""
    try:
        content = (Path(spec.model).expanduser() / NOTE_FILE).read_bytes()
        return msgspec.json.decode(content, type=dict[str, str]).get("note", "")
    except (OSError, msgspec.DecodeError):
        return ""


def _answer(
    model: LoadedModel,
    store: Store,
    activations: Activations,
    tokens: LabelTokens,
    template: Template,
    job: Job,
) -> AnswerReading:
    """Read the answer; where that takes a forward of its own, keep it beside the readouts."""
    part = f"answer:{tokens.set}:{'chat' if template.chat else 'plain'}"
    key = derived_key(activations.key, part)
    stored = None if tokens.rule == "first_token" else store.get_entry("readouts", key)
    reading = answers.read_answer(model, activations, tokens, stored=stored, job=job)
    payload = answers.to_bytes(reading)
    if payload is not None and stored is None:
        store.put_entry("readouts", key, payload)
    return reading
