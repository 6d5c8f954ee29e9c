"""A list of emotion words scored after one text, plain and with edits in force, and by layer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emotui.cache.asked import keep_terms, known_terms
from emotui.core.edits import Edit, parse_edit
from emotui.core.emotion_terms import TermProfile, TermScore, TextTerms, terms_for
from emotui.core.emotions import PLUTCHIK
from emotui.core.engine.capture import Hook
from emotui.core.engine.edited import canonical, materials_of
from emotui.core.engine.intervene import check_layers, group_edits, hooks_of, place_edits
from emotui.core.engine.terms import (
    NEUTRAL_TEXT,
    TermTokens,
    profile_of,
    score_terms,
    term_tokens,
)
from emotui.core.protocol import TermsRequest, TermsScored
from emotui.core.records import TextRecord
from emotui.core.text import Template, template_named

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.engine.capture import Job
    from emotui.core.engine.instruments import Instruments
    from emotui.core.engine.model import LoadedModel
    from emotui.core.engine.probes import Probe
    from emotui.core.engine.saes import Sae

_LISTED = 12


def edit_hooks(
    lines: Sequence[str],
    text: TextRecord,
    template: Template,
    *,
    model: LoadedModel,
    store: Store,
    saes: Sequence[Sae],
    probes: Sequence[Probe],
    seed: int,
    job: Job,
) -> tuple[Hook, ...]:
    """Return the hooks of edits (in the edit language) on one prompt; () without any.

    EditError where one does not fit the model, its SAEs, its probes or the text.
    """
    if not lines:
        return ()
    said = canonical(lines, model=model, store=store, template=template)
    edits: list[Edit] = [parse_edit(line) for line in said]
    check_layers(edits, model)
    materials = materials_of(model, store, text, template, saes, probes, seed, job)
    return hooks_of(group_edits(place_edits(edits, text), materials))


def score_text(
    request: TermsRequest, model: LoadedModel, instruments: Instruments, store: Store, job: Job
) -> TermsScored:
    """Score the words after a text, from the store where they were scored before.

    UsageError for a file that is no table of words; TextError and EditError as an inspection.
    """
    started, before = time.monotonic(), model.forwards
    known = known_terms(request, store, fingerprint=model.fingerprint)
    found = known
    if found is None:
        found = _scored(request, model, instruments, store, job)
        keep_terms(request, store, model.fingerprint, found)
    return TermsScored(
        found, known is not None, model.forwards - before, time.monotonic() - started
    )


def _scored(
    request: TermsRequest, model: LoadedModel, instruments: Instruments, store: Store, job: Job
) -> TextTerms:
    wanted = request.inspect
    template = template_named(wanted.template)
    terms, _, table = terms_for(request.terms)
    tokens = term_tokens(model.reader, terms, chat=template.chat)
    room = model.context_length - tokens.room
    text = model.reader.read(wanted.text, template, context_length=room)
    neutral = model.reader.read(NEUTRAL_TEXT, template, context_length=room)
    saes = tuple(sae for source in instruments.saes(wanted.saes, job) for sae in source)
    hooks = edit_hooks(
        wanted.edits,
        text,
        template,
        model=model,
        store=store,
        saes=saes,
        probes=instruments.probes(wanted.probes),
        seed=wanted.seed,
        job=job,
    )
    ids, nothing = ([token.id for token in one.tokens] for one in (text, neutral))
    job.progress("scoring the words")
    usual = score_terms(model, nothing, tokens, job=job)[0]
    scores = score_terms(model, ids, tokens, layers=True, job=job)
    by_layer = profile_of(scores.softmax(dim=-1), tokens.weights).weights
    after = score_terms(model, ids, tokens, hooks=hooks, job=job)[0] if hooks else None
    return TextTerms(
        template=template.name,
        table=table,
        words=len(terms),
        neutral=NEUTRAL_TEXT,
        plain=_profile(scores[-1], usual, tokens),
        edits=wanted.edits,
        edited=None if after is None else _profile(after, usual, tokens),
        divergence=None if after is None else _divergence(scores[-1], after, tokens),
        layers=tuple(tuple(row) for row in by_layer.tolist()),
    )


def _profile(scores: Tensor, usual: Tensor, tokens: TermTokens) -> TermProfile:
    p, corrected = scores.softmax(dim=-1), (scores - usual).softmax(dim=-1)
    most = min(_LISTED, len(p))
    likeliest, informative = (one.topk(most).indices.tolist() for one in (p, corrected))
    listed = dict.fromkeys([*likeliest, *informative])
    made, also = profile_of(p, tokens.weights), profile_of(corrected, tokens.weights)
    return TermProfile(
        terms=tuple(
            TermScore(tokens.terms[one].term, float(p[one]), float(corrected[one]))
            for one in listed
        ),
        weights=dict(zip(PLUTCHIK, made.weights.tolist(), strict=True)),
        corrected=dict(zip(PLUTCHIK, also.weights.tolist(), strict=True)),
        undecomposed=float(made.undecomposed),
        entropy=float(made.entropy),
    )


def _divergence(one: Tensor, other: Tensor, tokens: TermTokens) -> float | None:
    """Return the Jensen-Shannon divergence of two normalised profiles; None where one is empty."""
    both = [profile_of(scores.softmax(dim=-1), tokens.weights).weights for scores in (one, other)]
    if not all(float(profile.sum()) > 0 for profile in both):
        return None
    p, q = (profile / profile.sum() for profile in both)
    middle = (p + q) / 2
    summands = [torch.special.xlogy(x, x / middle).nan_to_num().sum() for x in (p, q)]
    return max(0.0, float(sum(summands) / 2))
