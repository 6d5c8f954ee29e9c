"""The activations of a run put into the cache, for whoever reads arrays from there."""

from __future__ import annotations

from emotui.cache.store import Store
from emotui.core.edits import parse_edit
from emotui.core.engine.capture import Activations, Job
from emotui.core.engine.edited import canonical, materials_of
from emotui.core.engine.instruments import Instruments
from emotui.core.engine.intervene import check_layers, group_edits, place_edits
from emotui.core.engine.model import LoadedModel
from emotui.core.engine.runs import activations_of, edited_activations_of
from emotui.core.protocol import Activated, InspectRequest
from emotui.core.text import template_named


def activate(
    request: InspectRequest, model: LoadedModel, instruments: Instruments, store: Store, job: Job
) -> Activated:
    """Return the key of the activations of a request's run, all sites of every token.

    The edits of the request are in force. Raises what `inspect` raises for text and edits.
    """
    before = model.forwards
    run = run_of(request, model, instruments, store, job)
    return Activated(key=run.key, forwards=model.forwards - before)


def run_of(
    request: InspectRequest, model: LoadedModel, instruments: Instruments, store: Store, job: Job
) -> Activations:
    """Return the activations of a request's run, all sites of every token, its edits in force.

    Raises what `inspect` raises for text and edits.
    """
    template = template_named(request.template)
    text = model.reader.read(request.text, template, context_length=model.context_length)
    lines = canonical(request.edits, model=model, store=store, template=template)
    job.progress("running the model")
    run = activations_of(model, store, [token.id for token in text.tokens], all_sites=True, job=job)
    if lines:
        saes = [sae for source in instruments.saes(request.saes, job) for sae in source]
        probes = instruments.probes(request.probes)
        materials = materials_of(model, store, text, template, saes, probes, request.seed, job)
        edits = [parse_edit(line) for line in lines]
        check_layers(edits, model)
        groups = group_edits(place_edits(edits, text), materials)
        run = edited_activations_of(model, store, run, groups, all_sites=True, job=job)
    return run
