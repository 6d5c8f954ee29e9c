"""The last edit of a trace, nothing, and random directions, as rows of one batch on any text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from emotui.core.edits import Edit, FeatureEdit, HeadEdit, positions_in
from emotui.core.engine.capture import Activations, Job, capture
from emotui.core.engine.effects import Gauge, arranged, run_variants
from emotui.core.engine.intervene import Place, group_edits, hooks_of, place_edits
from emotui.core.engine.materials import Materials, head_count, head_size
from emotui.core.engine.statistics import kind_of
from emotui.core.engine.steps import PlacedEdit
from emotui.core.engine.variants import Grouped, Random, Recorded, Variant
from emotui.core.text import Template

if TYPE_CHECKING:
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


@dataclass(frozen=True)
class Measured:
    """One text."""

    metrics: tuple[str, ...]
    deltas: np.ndarray[Any, Any]
    """[1 + directions, metrics]."""
    acted: bool


Drawn = dict[Place, Tensor]
"""Unit directions [n, width] at each place of the last edit."""


def picked_from_of(bench: Bench) -> int:
    """Return how many features the edit's was picked from: those active where it is edited."""
    done, edit = bench.trace.intervention, bench.last
    if done is None or not done.selected or not isinstance(edit, FeatureEdit):
        return 1
    sae = bench.materials.sae_of(edit)
    run = clean_run(bench, bench.trace.text)
    (own,) = place_edits([edit], bench.trace.text)
    kept = run.positions(edit.site)
    rows = [kept.index(position) for position in own.positions if position in kept]
    with torch.no_grad():
        active = (sae.encode(run.at(edit.site, edit.layer)[rows]) > 0).any(dim=0)
    return max(1, min(MOST_PICKED_FROM, int(active.sum())))


def any_way(bench: Bench, place: Place, count: int) -> Tensor:
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
    unit: Tensor = drawn / drawn.norm(dim=-1, keepdim=True)
    return unit.to(model.device_at(place[1]))


def shaped(bench: Bench, place: Place, count: int) -> Tensor:
    """Return unit directions [count, width] drawn with the covariance of the activations."""
    last, text = bench.last, bench.trace.text
    kind = kind_of(positions_in(last.positions, text), text.readout)
    return bench.materials.statistics_of(place[0]).directions(
        *place,
        kind,
        count=count,
        seed=bench.materials.seed + _SEED_APART,
        columns=bench.materials.columns_of(last) if isinstance(last, HeadEdit) else None,
    )


def clean_run(bench: Bench, text: TextRecord) -> Activations:
    """Run a text without edits."""
    ids = [token.id for token in text.tokens]
    return capture(bench.model, ids, all_sites=bench.all_sites, job=bench.job)


def metrics_of(bench: Bench) -> int:
    """Return how many metrics the gauge gives."""
    gauge = bench.gauge
    labels = 0 if gauge.labels is None else len(gauge.labels.labels)
    return labels + (0 if gauge.probe is None else len(gauge.probe.emotions)) + 1


def measured(
    bench: Bench,
    run: Activations,
    placed: Sequence[PlacedEdit],
    text: TextRecord,
    drawn: Drawn,
) -> Measured:
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
    rows = run_variants(model, parent.at("resid", at.start - 1), variants, at, bench.job)
    found = bench.gauge.measure(rows, parent.logits)
    values = torch.stack(list(found.values()), dim=-1).float().numpy()
    deltas = np.concatenate([values[:1], values[2:]]) - values[1]
    return Measured(tuple(found), deltas, acted=recorded.changed)
