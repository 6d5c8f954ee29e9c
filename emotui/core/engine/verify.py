"""The last edit of a trace repeated on other texts, beside random directions repeated with it.

On each other text, the earlier edits in force, one batch: the edit, nothing, and random directions
of the norm of what the edit adds there. The directions are the same on every text. Where the
edit's feature was picked from a ranking, each uniform direction was too: of as many as there were
features to pick from, the one that changed the metric most on the trace's own text. By chance the
edit has a larger median than all of them one time in 40.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from emotui.cache.findings import VERIFICATION, answers, find, keep, same_question
from emotui.core.corpus import Situation
from emotui.core.edits import FeatureEdit, JointEdit, parse_edit
from emotui.core.engine.answer import label_tokens
from emotui.core.engine.bench import (
    ANY_WAY,
    MOST_PICKED_FROM,
    SHAPED,
    Bench,
    Drawn,
    Measured,
    any_way,
    clean_run,
    measured,
    metrics_of,
    picked_from_of,
    shaped,
)
from emotui.core.engine.capture import Job
from emotui.core.engine.edited import materials_of
from emotui.core.engine.effects import Gauge
from emotui.core.engine.elsewhere import carried, check_portable
from emotui.core.engine.inspect import inspect
from emotui.core.engine.intervene import group_edits, place_edits, places_of_edit
from emotui.core.engine.other_texts import emotion_of, other_texts, source_of
from emotui.core.engine.repeated import Directions, Judged, main_metric, repeated
from emotui.core.engine.steps import PlacedEdit
from emotui.core.errors import Cancelled, UsageError
from emotui.core.findings import OtherTexts, Verification
from emotui.core.protocol import Verified, VerifyRequest
from emotui.core.text import clean, template_named

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.engine.instruments import Instruments
    from emotui.core.engine.model import LoadedModel
    from emotui.core.records import Trace


_SECONDS_BETWEEN_STORES = 5.0
"""So that an engine that is killed loses no more."""


@dataclass
class _Done:
    """What the texts gave so far, text by text."""

    deltas: list[np.ndarray[Any, Any]] = field(default_factory=list)
    """Each [rows, metrics]: the edit, then the directions; less the row of nothing."""
    ids: list[str] = field(default_factory=list)
    positions: list[str] = field(default_factory=list)
    active: list[bool] = field(default_factory=list)
    acted: list[bool] = field(default_factory=list)


def verify(
    request: VerifyRequest, model: LoadedModel, instruments: Instruments, store: Store, job: Job
) -> Verified:
    """Repeat the last edit on other texts, from the cache where that was done.

    What was finished is kept where it is cancelled, and goes on from there when asked again.
    UsageError without an edit or for an unknown metric; EditError for an edit that cannot be
    carried to other texts.
    """
    started, before = time.monotonic(), model.forwards
    if not request.inspect.edits:
        raise UsageError(
            "No edit is in force, so there is nothing to verify.",
            todo="Make one first, for instance by ablating a feature.",
        )
    if request.texts < 1:
        raise UsageError(f"{request.texts} texts cannot be meant.", todo="Ask for 1 or more.")
    trace = store.get_trace(inspect(request.inspect, model, instruments, store, job).trace_id)
    found = find(store, trace.id, VERIFICATION, Verification)
    if found is not None and answers(found[0], request):
        return Verified(trace.id, found[0], True, 0, time.monotonic() - started)
    bench = _bench(request, trace, model, instruments, store, job)
    done = _run(request, bench, store, found)
    return Verified(trace.id, done, False, model.forwards - before, time.monotonic() - started)


def _bench(
    request: VerifyRequest,
    trace: Trace,
    model: LoadedModel,
    instruments: Instruments,
    store: Store,
    job: Job,
) -> Bench:
    asked = request.inspect
    template = template_named(asked.template)
    edits = tuple(parse_edit(line) for line in trace.edits)
    check_portable(edits, trace.text)
    labels = label_tokens(model.reader, asked.label_set, template)
    saes = [sae for source in instruments.saes(asked.saes, job) for sae in source]
    materials = materials_of(
        model,
        store,
        trace.text,
        template,
        saes,
        instruments.probes(asked.probes),
        asked.seed,
        job,
    )
    # What all texts share is read before there are copies for each.
    group_edits(place_edits(edits, trace.text), materials)
    done = trace.intervention
    layer = None if done is None else done.readout_layer
    gauge = Gauge(
        labels if labels.rule == "first_token" else None,
        None if layer is None else materials.probe,
        model.n_layers - 1 if layer is None else layer,
    )
    parts = [part for edit in edits for part in getattr(edit, "parts", (edit,))]
    features = [edit for edit in parts if isinstance(edit, FeatureEdit)]
    return Bench(
        model,
        trace,
        edits,
        template,
        materials,
        gauge,
        all_sites=any(edit.site != "resid" for edit in features),
        job=job,
    )


def _run(
    request: VerifyRequest,
    bench: Bench,
    store: Store,
    found: tuple[Verification, dict[str, np.ndarray[Any, Any]]] | None,
) -> Verification:
    job, trace = bench.job, bench.trace
    job.progress("reading the corpus for controls")
    picked_from = picked_from_of(bench)
    drawn = {
        place: torch.cat(
            [any_way(bench, place, ANY_WAY * picked_from), shaped(bench, place, SHAPED)]
        )
        for place in places_of_edit(bench.last, bench.model.n_layers)
    }
    job.progress("picking random directions on this text")
    own = place_edits(bench.edits, trace.text)
    here = measured(bench, clean_run(bench, trace.text), own, trace.text, drawn)
    metric = request.metric or main_metric(
        [effect for effect in trace.effects if effect.metric in here.metrics]
    )
    if metric not in here.metrics:
        raise UsageError(
            f"Nothing called {clean(metric)!r} is measured here.",
            todo=f"Use one of: {', '.join(here.metrics)}.",
        )
    chosen = _chosen(here, metric, picked_from)
    drawn = {place: directions[chosen] for place, directions in drawn.items()}
    controls_here = here.deltas[1:][chosen]
    texts = other_texts(
        request.texts,
        but=trace.text.raw,
        seed=request.inspect.seed,
        emotion=emotion_of(metric),
    )
    done = _resumed(found, request, controls_here)

    def so_far() -> Verification:
        return _verification(request, bench, texts, done, here, controls_here, metric, picked_from)

    def store_it() -> Verification:
        finding = so_far()
        arrays = {"here": controls_here, "deltas": np.stack(done.deltas)} if done.deltas else {}
        keep(store, trace.id, VERIFICATION, finding, arrays)
        return finding

    stored = time.monotonic()
    try:
        for number in range(len(done.ids), len(texts)):
            job.check()
            job.progress("on other texts", number, len(texts))
            _add(bench, texts[number], drawn, done)
            if time.monotonic() - stored > _SECONDS_BETWEEN_STORES:
                store_it()
                stored = time.monotonic()
    except Cancelled:
        if done.ids:
            store_it()
        raise
    return store_it()


def _resumed(
    found: tuple[Verification, dict[str, np.ndarray[Any, Any]]] | None,
    request: VerifyRequest,
    controls_here: np.ndarray[Any, Any],
) -> _Done:
    """Return what was finished before with the same directions and texts."""
    if found is None or not same_question(found[0], request):
        return _Done()
    kept, arrays = found
    before = arrays.get("here")
    if before is None or not np.array_equal(before, controls_here):
        return _Done()
    others, count = kept.others, min(len(kept.others.id), request.texts)
    return _Done(
        deltas=list(arrays["deltas"][:count]),
        ids=list(others.id[:count]),
        positions=list(others.positions[:count]),
        active=list(others.active[:count]),
        acted=list(others.acted[:count]),
    )


def _chosen(here: Measured, metric: str, picked_from: int) -> list[int]:
    """Return the rows of directions that are kept: the best of each draw, and all shaped ones."""
    sizes = np.abs(here.deltas[1:, here.metrics.index(metric)])
    drawn = sizes[: ANY_WAY * picked_from].reshape(ANY_WAY, picked_from)
    best = drawn.argmax(axis=1) + np.arange(ANY_WAY) * picked_from
    return [*best.tolist(), *range(ANY_WAY * picked_from, len(sizes))]


def _add(bench: Bench, one: Situation, drawn: Drawn, done: _Done) -> None:
    """Run one text and add what it gave."""
    model, source = bench.model, bench.trace.text
    text = model.reader.read(one.text, bench.template, context_length=model.context_length)
    run = clean_run(bench, text)

    def activity(edit: FeatureEdit) -> Tensor:
        """Return the activation of an edit's feature at every token, without edits."""
        with torch.no_grad():
            encoded = bench.materials.sae_of(edit).encode(run.at(edit.site, edit.layer))
        return encoded[:, edit.index].float()

    placed = [
        PlacedEdit(edit, where)
        for edit in bench.edits
        for where in [carried(edit, source, text, activity)]
        if where is not None
    ]
    last = placed[-1] if placed and placed[-1].edit is bench.last else None
    rows = 1 + len(next(iter(drawn.values())))
    if last is None:
        found = Measured((), np.zeros((rows, metrics_of(bench)), np.float32), acted=False)
    else:
        found = measured(bench, run, placed, text, drawn)
    edit = bench.last
    active = found.acted
    if isinstance(edit, FeatureEdit):
        active = last is not None and bool((activity(edit)[list(last.positions)] > 0).any())
    done.deltas.append(found.deltas)
    done.ids.append(one.id)
    done.positions.append("" if last is None else ranges(last.positions))
    done.active.append(active)
    done.acted.append(found.acted)


def ranges(positions: Sequence[int]) -> str:
    """Return ascending positions in words: `3`, `3-7`, `3-7, 9`."""
    parts: list[list[int]] = []
    for position in positions:
        if parts and position == parts[-1][-1] + 1:
            parts[-1].append(position)
        else:
            parts.append([position])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def _verification(
    request: VerifyRequest,
    bench: Bench,
    texts: Sequence[Situation],
    done: _Done,
    here: Measured,
    controls_here: np.ndarray[Any, Any],
    metric: str,
    picked_from: int,
) -> Verification:
    """Return the record of the texts that are done."""
    emotions = {one.id: one.emotion for one in texts}
    effects = {effect.metric: effect for effect in bench.trace.effects}
    acted = np.array(done.acted, dtype=bool)
    shape = (0, 1 + len(controls_here), len(here.metrics))
    deltas = np.stack(done.deltas) if done.deltas else np.zeros(shape)
    deltas = deltas.astype(np.float64)
    found = []
    for column, name in enumerate(here.metrics):
        controls = tuple(
            Directions(kind, controls_here[rows, column], deltas[:, 1:][:, rows, column])
            for kind, rows in _KINDS
        )
        judged = Judged(
            effects[name],
            deltas[:, 0, column],
            controls,
            acted,
            fair=picked_from == 1 or name == metric,
            picked_by=metric,
        )
        found.append(repeated(judged, seed=request.inspect.seed))
    return Verification(
        edits=bench.trace.edits,
        source=source_of(texts, emotion_of(metric)),
        positions=check_portable(bench.edits, bench.trace.text),
        asked=request.texts,
        complete=len(done.ids) == len(texts),
        metric=metric,
        picked_from=picked_from,
        seed=request.inspect.seed,
        others=OtherTexts(
            id=tuple(done.ids),
            emotion=tuple(emotions[name] for name in done.ids),
            positions=tuple(done.positions),
            active=tuple(done.active),
            acted=tuple(done.acted),
            deltas={
                name: tuple(deltas[:, 0, column].tolist())
                for column, name in enumerate(here.metrics)
            },
        ),
        metrics=tuple(found),
        notes=tuple(_notes(bench, done, texts, request, picked_from, emotion_of(metric))),
    )


_KINDS: tuple[tuple[Literal["any_way", "shaped_like_data"], slice], ...] = (
    ("any_way", slice(0, ANY_WAY)),
    ("shaped_like_data", slice(ANY_WAY, ANY_WAY + SHAPED)),
)


def _notes(
    bench: Bench,
    done: _Done,
    texts: Sequence[Situation],
    request: VerifyRequest,
    picked_from: int,
    about: str,
) -> list[str]:
    edit, notes = bench.last, []
    total = len(done.ids)
    if isinstance(edit, FeatureEdit):
        active = f"{edit.feature} is active on {sum(done.active)} of {total} texts"
        own = [
            there for there, one in zip(done.active, texts, strict=False) if one.emotion == about
        ]
        if own:
            rest = total - len(own)
            active += (
                f": {sum(own)} of {len(own)} of {about}, {sum(done.active) - sum(own)} of {rest} "
                "of other emotions"
            )
        notes.append(active)
        if edit.operation in ("ablate", "scale") and not all(done.acted):
            notes.append("where it is not active the edit does nothing, and counts as 0 over all")
    if len(bench.edits) > 1:
        notes.append("the last edit was judged, the earlier ones in force")
    made = bench.trace.intervention
    if made is not None and made.selected and isinstance(edit, JointEdit):
        notes.append("features picked together: directions are not picked the same way")
    if picked_from == MOST_PICKED_FROM:
        notes.append(f"each random direction was picked from {picked_from}: more features were")
    if total < len(texts):
        notes.append(f"cancelled after {total} of {len(texts)} texts; asking again goes on")
    elif len(texts) < request.texts:
        notes.append(f"the held-out topics have {len(texts)} texts, one of each pair")
    if bench.gauge.labels is None:
        notes.append("the answer takes more than one token, so it was not measured")
    return notes
