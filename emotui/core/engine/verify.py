"""The last edit of a trace repeated on other texts, beside random directions repeated with it.

On each other text, the earlier edits in force, one batch: the edit, nothing, and random directions
of the norm of what the edit adds there. The directions are the same on every text. Where the
edit's feature was picked from a ranking, each uniform direction was too: of as many as there were
features to pick from, the one that changed the metric most on the trace's own text. By chance the
edit has a larger median than all of them one time in 40.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from emotui.cache.findings import VERIFICATION, answers, find, keep, same_question
from emotui.core.corpus import Situation, load_situations
from emotui.core.edits import Edit, FeatureEdit, HeadEdit, parse_edit
from emotui.core.engine.answer import label_tokens
from emotui.core.engine.capture import Activations, Job, capture
from emotui.core.engine.edited import materials_of
from emotui.core.engine.effects import Gauge, arranged, run_variants
from emotui.core.engine.elsewhere import carried, check_portable
from emotui.core.engine.inspect import inspect
from emotui.core.engine.intervene import Place, group_edits, hooks_of, place_edits, places_of_edit
from emotui.core.engine.materials import Materials, head_count, head_size
from emotui.core.engine.repeated import Directions, Judged, main_metric, repeated
from emotui.core.engine.steps import PlacedEdit
from emotui.core.engine.variants import Grouped, Random, Recorded, Variant
from emotui.core.errors import Cancelled, UsageError
from emotui.core.findings import OtherTexts, Verification
from emotui.core.protocol import Verified, VerifyRequest
from emotui.core.text import Template, clean, template_named

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.engine.instruments import Instruments
    from emotui.core.engine.model import LoadedModel
    from emotui.core.records import TextRecord, Trace

ANY_WAY = 39
"""Uniform directions: larger than all of them is one time in 40 by chance."""
SHAPED = 19
"""Directions with the covariance of the activations."""
MOST_PICKED_FROM = 64
"""Most uniform directions that one is picked from: each is a row on the trace's own text."""
_SEED_APART = 1000
"""The directions are not those that the trace's own controls drew."""

_SOURCE = "situations of the held-out topics, all emotions, with and without emotion words"


@dataclass(frozen=True)
class Bench:
    """What is the same for every text."""

    model: LoadedModel
    trace: Trace
    edits: tuple[Edit, ...]
    template: Template
    materials: Materials
    gauge: Gauge
    all_sites: bool
    job: Job

    @property
    def last(self) -> Edit:
        """The edit that is judged."""
        return self.edits[-1]


@dataclass
class _Done:
    """What the texts gave so far, text by text."""

    deltas: list[np.ndarray[Any, Any]] = field(default_factory=list)
    """Each [rows, metrics]: the edit, then the directions; less the row of nothing."""
    ids: list[str] = field(default_factory=list)
    positions: list[str] = field(default_factory=list)
    active: list[bool] = field(default_factory=list)
    acted: list[bool] = field(default_factory=list)


@dataclass(frozen=True)
class _Measured:
    """One text."""

    metrics: tuple[str, ...]
    deltas: np.ndarray[Any, Any]
    """[1 + directions, metrics]."""
    acted: bool


_Drawn = dict[Place, Tensor]
"""Unit directions [n, width] at each place of the last edit."""


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
    features = [edit for edit in edits if isinstance(edit, FeatureEdit)]
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


def other_texts(count: int, *, but: str, seed: int) -> list[Situation]:
    """Return at most `count` situations of the held-out topics, one of each pair, drawn by seed.

    The emotions take turns, so that each has as many as the others; the text `but` is not among
    them. A longer list begins with the shorter one.
    """
    generator = random.Random(seed)
    by_emotion: dict[str, list[Situation]] = {}
    pairs: dict[str, list[Situation]] = {}
    for one in load_situations():
        if one.split == "test":
            pairs.setdefault(one.pair, []).append(one)
    for pair in sorted(pairs):
        one = generator.choice(pairs[pair])
        if one.text != but:
            by_emotion.setdefault(one.emotion, []).append(one)
    for texts in by_emotion.values():
        generator.shuffle(texts)
    most = max(len(texts) for texts in by_emotion.values())
    turns = [
        by_emotion[emotion][turn]
        for turn in range(most)
        for emotion in sorted(by_emotion)
        if turn < len(by_emotion[emotion])
    ]
    return turns[:count]


def _run(
    request: VerifyRequest,
    bench: Bench,
    store: Store,
    found: tuple[Verification, dict[str, np.ndarray[Any, Any]]] | None,
) -> Verification:
    job, trace = bench.job, bench.trace
    job.progress("reading the corpus for controls")
    picked_from = _picked_from(bench)
    drawn = {
        place: torch.cat(
            [_any_way(bench, place, ANY_WAY * picked_from), _shaped(bench, place, SHAPED)]
        )
        for place in places_of_edit(bench.last, bench.model.n_layers)
    }
    job.progress("picking random directions on this text")
    own = place_edits(bench.edits, trace.text)
    here = _measured(bench, _clean(bench, trace.text), own, trace.text, drawn)
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
    texts = other_texts(request.texts, but=trace.text.raw, seed=request.inspect.seed)
    done = _resumed(found, request, controls_here)

    def so_far() -> Verification:
        return _verification(request, bench, texts, done, here, controls_here, metric, picked_from)

    def store_it() -> Verification:
        finding = so_far()
        arrays = {"here": controls_here, "deltas": np.stack(done.deltas)} if done.deltas else {}
        keep(store, trace.id, VERIFICATION, finding, arrays)
        return finding

    try:
        for number in range(len(done.ids), len(texts)):
            job.check()
            job.progress("on other texts", number, len(texts))
            _add(bench, texts[number], drawn, done)
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


def _picked_from(bench: Bench) -> int:
    """Return how many features the edit's was picked from: those active where it is edited."""
    done, edit = bench.trace.intervention, bench.last
    if done is None or not done.selected or not isinstance(edit, FeatureEdit):
        return 1
    sae = bench.materials.sae_of(edit)
    run = _clean(bench, bench.trace.text)
    (own,) = place_edits([edit], bench.trace.text)
    kept = run.positions(edit.site)
    rows = [kept.index(position) for position in own.positions if position in kept]
    with torch.no_grad():
        active = (sae.encode(run.at(edit.site, edit.layer)[rows]) > 0).any(dim=0)
    return max(1, min(MOST_PICKED_FROM, int(active.sum())))


def _any_way(bench: Bench, place: Place, count: int) -> Tensor:
    """Return unit directions [count, width], drawn uniformly; for a head in its own columns."""
    model = bench.model
    width = head_size(model) * head_count(model) if place[0] == "z" else model.d_model
    seed = f"{bench.materials.seed}:{place[0]}.{place[1]}:any way"
    generator = torch.Generator().manual_seed(random.Random(seed).getrandbits(62))
    drawn = torch.zeros(count, width)
    columns = slice(None)
    if isinstance(bench.last, HeadEdit):
        columns = bench.materials.columns_of(bench.last)
    inside = drawn[:, columns]
    inside.copy_(torch.randn(inside.shape, generator=generator))
    return (drawn / drawn.norm(dim=-1, keepdim=True)).to(model.device)


def _shaped(bench: Bench, place: Place, count: int) -> Tensor:
    kind: Literal["text", "readout"] = (
        "readout" if bench.last.positions.kind == "readout" else "text"
    )
    last = bench.last
    return bench.materials.statistics_of(place[0]).directions(
        *place,
        kind,
        count=count,
        seed=bench.materials.seed + _SEED_APART,
        columns=bench.materials.columns_of(last) if isinstance(last, HeadEdit) else None,
    )


def _chosen(here: _Measured, metric: str, picked_from: int) -> list[int]:
    """Return the rows of directions that are kept: the best of each draw, and all shaped ones."""
    sizes = np.abs(here.deltas[1:, here.metrics.index(metric)])
    drawn = sizes[: ANY_WAY * picked_from].reshape(ANY_WAY, picked_from)
    best = drawn.argmax(axis=1) + np.arange(ANY_WAY) * picked_from
    return [*best.tolist(), *range(ANY_WAY * picked_from, len(sizes))]


def _clean(bench: Bench, text: TextRecord) -> Activations:
    ids = [token.id for token in text.tokens]
    return capture(bench.model, ids, all_sites=bench.all_sites, job=bench.job)


def _add(bench: Bench, one: Situation, drawn: _Drawn, done: _Done) -> None:
    """Run one text and add what it gave."""
    model, source = bench.model, bench.trace.text
    text = model.reader.read(one.text, bench.template, context_length=model.context_length)
    run = _clean(bench, text)

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
        found = _Measured((), np.zeros((rows, _metrics_of(bench)), np.float32), acted=False)
    else:
        found = _measured(bench, run, placed, text, drawn)
    edit = bench.last
    active = found.acted
    if isinstance(edit, FeatureEdit):
        active = last is not None and bool((activity(edit)[list(last.positions)] > 0).any())
    done.deltas.append(found.deltas)
    done.ids.append(one.id)
    done.positions.append("" if last is None else ranges(last.positions))
    done.active.append(active)
    done.acted.append(found.acted)


def _metrics_of(bench: Bench) -> int:
    """Return how many metrics the gauge gives."""
    gauge = bench.gauge
    labels = 0 if gauge.labels is None else len(gauge.labels.labels)
    return labels + (0 if gauge.probe is None else len(gauge.probe.emotions)) + 1


def ranges(positions: Sequence[int]) -> str:
    """Return ascending positions in words: `3`, `3-7`, `3-7, 9`."""
    parts: list[list[int]] = []
    for position in positions:
        if parts and position == parts[-1][-1] + 1:
            parts[-1].append(position)
        else:
            parts.append([position])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def _measured(
    bench: Bench,
    run: Activations,
    placed: Sequence[PlacedEdit],
    text: TextRecord,
    drawn: _Drawn,
) -> _Measured:
    """Run the last edit, nothing and the directions on one text, as rows of one batch."""
    model = bench.model
    materials = copy(bench.materials)
    materials.text = text
    earlier, groups = (group_edits(some, materials) for some in (placed[:-1], placed))
    parent = run
    if earlier:
        ids = [token.id for token in text.tokens]
        parent = capture(model, ids, hooks=hooks_of(earlier), job=bench.job)
    at = arranged(earlier, groups, placed[-1], model.n_layers)
    recorded = Recorded()
    variants: list[Variant] = [
        Grouped("edit", "", at.mine, recorded, at.before),
        Grouped("nothing", "", at.before),
    ]
    count = len(next(iter(drawn.values())))
    variants += [
        Random(
            "random_directions",
            "",
            {place: directions[row] for place, directions in drawn.items()},
            at.before,
            recorded,
        )
        for row in range(count)
    ]
    rows = run_variants(model, parent.resid[at.start], variants, at, bench.job)
    measured = bench.gauge.measure(rows, parent.logits)
    values = torch.stack(list(measured.values()), dim=-1).float().cpu().numpy()
    deltas = np.concatenate([values[:1], values[2:]]) - values[1]
    return _Measured(tuple(measured), deltas, acted=recorded.changed)


def _verification(
    request: VerifyRequest,
    bench: Bench,
    texts: Sequence[Situation],
    done: _Done,
    here: _Measured,
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
        source=_SOURCE,
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
        notes=tuple(_notes(bench, done, texts, request, picked_from)),
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
) -> list[str]:
    edit, notes = bench.last, []
    total = len(done.ids)
    if isinstance(edit, FeatureEdit):
        notes.append(f"{edit.feature} is active on {sum(done.active)} of {total} texts")
        if edit.operation in ("ablate", "scale") and not all(done.acted):
            notes.append("where it is not active the edit does nothing, and counts as 0 over all")
    if len(bench.edits) > 1:
        notes.append("the last edit was judged, the earlier ones in force")
    if picked_from == MOST_PICKED_FROM:
        notes.append(f"each random direction was picked from {picked_from}: more features were")
    if total < len(texts):
        notes.append(f"cancelled after {total} of {len(texts)} texts; asking again goes on")
    elif len(texts) < request.texts:
        notes.append(f"the held-out topics have {len(texts)} texts, one of each pair")
    if bench.gauge.labels is None:
        notes.append("the answer takes more than one token, so it was not measured")
    return notes
