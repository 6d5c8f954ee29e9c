"""One SAE feature in detail: its direction, its texts, its activation and its removal here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import torch

from emotui.cache.details import keep_detail, keep_feature, kept_detail
from emotui.cache.labels import label_of, mismatch
from emotui.core.details import (
    CorpusReading,
    FeatureDetail,
    FeatureHere,
    MeasuredSelectivity,
    WrittenToken,
    page_of,
    removed_between,
)
from emotui.core.edits import FeatureEdit, parse_edit
from emotui.core.edits.positions import parse_positions, position_of_token, positions_in
from emotui.core.emotions import LABEL_SETS
from emotui.core.engine.activate import run_of
from emotui.core.engine.feature_labels import FeatureLabels
from emotui.core.engine.firing import corpus_reading
from emotui.core.engine.inspect import inspect
from emotui.core.engine.lens_words import promoted_words, written_by
from emotui.core.errors import EditError, SaeError, UsageError
from emotui.core.protocol import Featured, FeatureRequest
from emotui.core.records import Trace
from emotui.core.sae_directory import is_path
from emotui.core.text import clean, template_named

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.engine.capture import Job
    from emotui.core.engine.instruments import Instruments
    from emotui.core.engine.model import LoadedModel
    from emotui.core.engine.saes import Sae

TOKENS = 10
"""Tokens of the vocabulary that are told, at each end."""


def detail_feature(
    request: FeatureRequest, model: LoadedModel, instruments: Instruments, store: Store, job: Job
) -> Featured:
    """Return everything known of a feature, from the store where it was told before.

    SaeError where no SAE, or more than one, has it; UsageError for a name that is none; EditError
    for a position the text does not have; TextError for a text the model cannot read.
    """
    before = model.forwards
    asked = request.inspect
    if asked.label_set not in LABEL_SETS:
        raise UsageError(
            f"There is no label set called {clean(asked.label_set)!r}.",
            todo=f"Use one of: {', '.join(LABEL_SETS)}.",
        )
    sae, index = _found(request, instruments, job)
    labels = FeatureLabels(model, store)
    job.progress("reading what the feature promotes")
    measured, explanation = labels.of(sae, index)
    words = promoted_words(model, written_by(model, sae, [index]))[0]
    raised, lowered = _tokens(model, sae, index)
    own = sae.weights.labels.get(index, "") if measured is None else ""
    detail = FeatureDetail(
        name=name_of(sae, index),
        sae=sae.id,
        source=_recorded_source(sae),
        site=sae.site,
        layer=sae.layer,
        index=index,
        width=sae.width,
        label=label_of(measured, explanation, words=own or words),
        label_origin="measured by labels fit"
        if measured is not None and measured.named
        else "came with the SAE"
        if own
        else "the words it promotes",
        explanation="" if explanation is None else explanation.text,
        origin="" if explanation is None else explanation.origin,
        mismatch="" if explanation is None else mismatch(measured, explanation.text),
        measured=None
        if measured is None
        else MeasuredSelectivity(
            emotion=measured.emotion,
            area=measured.area,
            confirmed=measured.confirmed,
            p=measured.p,
            breadth=measured.breadth,
            named=measured.named,
            specific=measured.specific,
        ),
        promoted=raised,
        suppressed=lowered,
        page=page_of(sae.config.neuronpedia, index),
    )
    if asked.text:
        detail = msgspec.structs.replace(
            detail, here=_here(request, sae, index, model, instruments, store, job)
        )
    if request.corpus:
        detail = msgspec.structs.replace(
            detail, corpus=_on_corpus(request, sae, index, model, store, job)
        )
    if detail.here is not None:
        keep_feature(store, detail.here.trace, request, detail)
    return Featured(detail, model.forwards - before)


def name_of(sae: Sae, index: int) -> str:
    """Return a feature as the edit language writes it."""
    place = f"L{sae.layer}/{index}"
    return place if sae.site == "resid" else f"{sae.site}:{place}"


def _recorded_source(sae: Sae) -> str:
    """Return the source of an SAE for a record: a release, or a file's or folder's name alone."""
    return sae.id.rpartition("/")[0] if is_path(sae.source) else sae.source


def _found(request: FeatureRequest, instruments: Instruments, job: Job) -> tuple[Sae, int]:
    try:
        named = parse_edit(f"ablate {request.feature} at readout")
    except EditError:
        named = None
    if not isinstance(named, FeatureEdit):
        raise UsageError(
            f"{clean(request.feature)!r} is not the name of a feature.",
            todo="Name one such as L18/4412 or mlp:L3/9.",
        )
    saes = [sae for source in instruments.saes(request.inspect.saes, job) for sae in source]
    there = [sae for sae in saes if (sae.site, sae.layer) == (named.site, named.layer)]
    if request.sae:
        there = [sae for sae in there if sae.id == request.sae]
    if not there:
        known = ", ".join(f"{sae.site}.{sae.layer}" for sae in saes)
        raise SaeError(
            f"There is no SAE for {named.site}.{named.layer}.",
            why=f"SAEs are loaded for: {known}." if known else "No SAE is loaded.",
            todo="Name one with --sae, or a feature of a layer that has one.",
        ).of_input()
    if len(there) > 1:
        raise SaeError(
            f"{named.feature} could be a feature of several SAEs.",
            why=f"{named.site}.{named.layer} is read by {', '.join(sae.id for sae in there)}.",
            todo="Name one of them with --sae.",
        ).of_input()
    if named.index >= there[0].width:
        raise SaeError(
            f"There is no feature {named.feature}.",
            why=f"The SAE of {named.site}.{named.layer} has features 0 to {there[0].width - 1}.",
            todo="Name one of them.",
        ).of_input()
    return there[0], named.index


@torch.no_grad()
def _tokens(
    model: LoadedModel, sae: Sae, index: int
) -> tuple[tuple[WrittenToken, ...], tuple[WrittenToken, ...]]:
    """Return the tokens that a feature's direction raises most, and those it lowers most."""
    logits = model.sites.promotion(written_by(model, sae, [index]))[0].float()
    z = (logits - logits.mean()) / logits.std()

    def told(ids: list[int]) -> tuple[WrittenToken, ...]:
        return tuple(WrittenToken(model.reader.string(token), float(z[token])) for token in ids)

    count = min(TOKENS, len(z))
    return told(z.topk(count).indices.tolist()), told((-z).topk(count).indices.tolist())


def _on_corpus(
    request: FeatureRequest, sae: Sae, index: int, model: LoadedModel, store: Store, job: Job
) -> CorpusReading:
    asked = request.inspect
    template = template_named(asked.template)
    what = ("corpus", sae.key, sae.source, index, asked.label_set, msgspec.to_builtins(template))
    kept = kept_detail(store, model.fingerprint, what, CorpusReading)
    if kept is None:
        kept = corpus_reading(
            sae, index, model, store, job, template=template, label_set=asked.label_set
        )
        keep_detail(store, model.fingerprint, what, kept)
    return kept


def _here(
    request: FeatureRequest,
    sae: Sae,
    index: int,
    model: LoadedModel,
    instruments: Instruments,
    store: Store,
    job: Job,
) -> FeatureHere:
    """Read the text, and read it again with the feature ablated at the token looked at.

    The latter is the trace that the same ablation makes on the screen, controls and all.
    """
    asked = msgspec.structs.replace(request.inspect, generation=None)
    trace = store.get_trace(inspect(asked, model, instruments, store, job).trace_id)
    run = run_of(asked, model, instruments, store, job)
    with torch.no_grad():
        values = sae.encode(run.at(sae.site, sae.layer))[:, index].float().tolist()
    if request.position:
        position = positions_in(parse_positions(request.position), trace.text)[0]
    else:
        position = _strongest(trace, values)
    here = FeatureHere(
        trace=trace.id,
        text=trace.text,
        edits=trace.edits,
        activation=tuple(values),
        position=position,
        metric="" if trace.attribution is None else trace.attribution.metric,
        attribution=_attribution(trace, sae, index, position),
        removed=None,
    )
    if not values[position] > 0:
        return msgspec.structs.replace(here, note="It is not active here: nothing to remove.")
    line = f"ablate {name_of(sae, index)} at {position_of_token(position, trace.text)}"
    edited = msgspec.structs.replace(asked, edits=(*trace.edits, line), selected=True)
    try:
        after = store.get_trace(inspect(edited, model, instruments, store, job).trace_id)
    except EditError as error:
        return msgspec.structs.replace(here, note=error.what)
    removed = removed_between(trace, after, edit=line, layer=sae.layer)
    return msgspec.structs.replace(here, removed=removed)


def _strongest(trace: Trace, values: list[float]) -> int:
    """Return the token where a feature is most active, no special ones; the readout where none."""
    active = [
        place
        for place, token in enumerate(trace.text.tokens)
        if not token.special and values[place] > 0
    ]
    return max(active, key=lambda place: values[place], default=trace.text.readout)


def _attribution(trace: Trace, sae: Sae, index: int, position: int) -> float | None:
    columns = trace.features
    rows = zip(columns.sae, columns.index, columns.position, strict=True)
    wanted = (sae.id, index, position)
    row = next((row for row, place in enumerate(rows) if place == wanted), None)
    return None if row is None else columns.attribution[row]
