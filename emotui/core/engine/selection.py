"""What picking the best of all active features gives by chance: the best of as many directions.

The feature with the largest of many effects is first among its controls because it was picked. So
each active feature of every SAE gets a random direction of any way, of the norm of what the same
edit of it would add, and of all these the one of largest effect is taken; so 79 times. By chance
the best feature exceeds all 79 maxima one time in 80, and so, of the answer or of the readouts, at
most one time in 40.

To run every direction would take thousands of rows. For u drawn uniformly and J the slopes of the
label logits and readouts (one backward pass of as many rows), A u = R' x / |g| with A' = Q R,
A = sum_p s_p J_p the slopes summed over the edited positions, x standard normal of R's size and
|g|^2 = |x|^2 + chi^2 of the other dimensions. So what each direction does to first order is drawn
without drawing the direction. Of each draw the one with the largest estimate (for the answer, and
for the readouts) is made, Q x and the rest, and run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emotui.core.edits import FeatureEdit
from emotui.core.engine.capture import Hook
from emotui.core.engine.intervene import hooks_of
from emotui.core.engine.rerun import rerun, slopes
from emotui.core.records import Control

if TYPE_CHECKING:
    from emotui.core.engine.capture import Activations, Job
    from emotui.core.engine.effects import Gauge
    from emotui.core.engine.intervene import EditGroup, Place
    from emotui.core.engine.materials import Materials
    from emotui.core.engine.model import LoadedModel
    from emotui.core.engine.saes import Sae
    from emotui.core.engine.steps import PlacedEdit
    from emotui.core.engine.variants import Recorded

DRAWS = 79
"""Maxima that the effect is compared with: beyond all of them happens one time in 80 by chance."""
SHORTLIST = 4
"""Most directions of each draw that are run, of largest estimate; for the answer, and for
readouts. Effects are not linear: with one, maxima of .2 in probability came out a tenth low."""
TOKENS = 4096
"""Tokens to run for them all; where rows are long, one of each draw is run whatever it takes."""
_CHUNK_VALUES = 2**24

KINDS = ("answer", "readout")
"""What is moved: the probability of any label, or the z of any emotion of the readout probe."""


@dataclass(frozen=True)
class Picking:
    """What the best of as many random directions does, draw by draw."""

    candidates: int = 0
    """Active features at the edited positions, over all SAEs: the directions of one draw."""
    maxima: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """`answer` and `readout`, where there is one: the largest change of any label's probability,
    or of any emotion's z, by the best direction of each draw."""
    note: str = ""
    """Why there is nothing, or ""."""

    def control(self, metric: str, delta: float) -> Control:
        """Return the maxima as a control of one metric that changed by `delta`."""
        kind = metric.partition(".")[0]
        maxima = self.maxima.get(kind, ())
        note = self.note or ("" if maxima else f"no best of random directions for {kind}")
        rank = 1 + sum(largest >= abs(delta) for largest in maxima) if maxima else None
        return Control("selection", maxima, rank, (), note, self.candidates if maxima else None)


@dataclass(frozen=True)
class _Directions:
    """Directions at one place, with the norm of each at each edited position."""

    place: Place
    draw: Tensor
    """[n], the draw each belongs to."""
    unit: Tensor
    """[n, width]."""
    sizes: Tensor
    """[n, positions]."""
    estimates: Tensor
    """[kinds, n]."""

    def take(self, rows: Tensor) -> _Directions:
        return _Directions(
            self.place,
            self.draw[rows],
            self.unit[rows],
            self.sizes[rows],
            self.estimates[:, rows],
        )


@dataclass(frozen=True)
class _Law:
    """What directions are drawn for."""

    scores: Tensor
    """Label logits and readouts without the edit, [scores]."""
    n_labels: int
    shortlist: int
    generator: torch.Generator


def picking_of(
    model: LoadedModel,
    *,
    parent: Activations,
    earlier: Sequence[EditGroup],
    last: PlacedEdit,
    own: Tensor,
    gauge: Gauge,
    nothing: Mapping[str, float],
    materials: Materials,
    job: Job,
) -> Picking:
    """Draw and run the best of as many random directions as there are active features.

    `parent` ran with the `earlier` groups; `own` [positions] are the norms of what the last edit,
    of a feature, adds at its positions; `nothing` is each metric without it.
    """
    edit = last.edit
    assert isinstance(edit, FeatureEdit)
    if gauge.labels is None and gauge.probe is None:
        return Picking(note="there is no answer of one token and no readout to draw it for")
    sizes = {
        (sae.site, sae.layer): found
        for sae in materials.saes
        for found in [_sizes(sae, parent, edit, last.positions, own, materials)]
        if found.shape[1]
    }
    if not sizes:
        return Picking(note="no feature is active at the edited positions")
    # What is added to a residual comes after the edits there: the stored one holds those.
    start = min(layer + (site == "resid") for site, layer in sizes)
    there = [group for group in earlier if group.place[1] >= start]
    first = min(p for where in (last.positions, *(g.positions for g in there)) for p in where)
    job.progress("drawing random directions")
    try:
        found = slopes(
            model,
            parent.at("resid", start - 1),
            start=start,
            places=list(sizes),
            value=gauge.scores,
            hooks=hooks_of(there, first=first),
            first=first,
            job=job,
        )
    except (torch.OutOfMemoryError, MemoryError):
        return Picking(note="there was not enough memory for the backward pass that it takes")
    at = [position - first for position in last.positions]
    generator = torch.Generator().manual_seed(materials.seed)
    clean = {gauge.layer: parent.at("resid", gauge.layer)[-1:]}
    scores = gauge.scores(parent.logits[None], clean)[0]
    n_labels = 0 if gauge.labels is None else len(gauge.labels.labels)
    n_tokens = len(parent.token_ids) - first
    shortlist = max(1, min(SHORTLIST, TOKENS // (len(KINDS) * DRAWS * n_tokens)))
    law = _Law(scores, n_labels, shortlist, generator)
    listed = [
        _shortlisted(place, there_sizes, found[place][:, at], law, job)
        for place, there_sizes in sizes.items()
    ]
    rows = _longest(listed, shortlist)
    job.progress("running random directions")
    n_rows = sum(len(one.draw) for one in rows)
    run = rerun(
        model,
        parent.at("resid", start - 1),
        start=start,
        n_rows=n_rows,
        hooks=lambda part: (*hooks_of(there, first=first), *_adding(rows, at, part)),
        first=first,
        job=job,
    )
    measured = gauge.measure(run, parent.logits)
    draw = torch.cat([one.draw for one in rows])
    maxima = {}
    for kind in KINDS:
        moved = [
            (values - nothing[metric]).abs()
            for metric, values in measured.items()
            if metric.startswith(f"{kind}.")
        ]
        # NaN where the probe has no neutral texts to count from: then there is nothing to compare.
        if moved and bool((largest := torch.stack(moved).amax(dim=0)).isfinite().all()):
            best = torch.zeros(DRAWS).scatter_reduce(0, draw, largest, "amax")
            maxima[kind] = tuple(best.tolist())
    return Picking(sum(there.shape[1] for there in sizes.values()), maxima)


def own_norms(recorded: Recorded, group: EditGroup, positions: Sequence[int]) -> Tensor:
    """Return the norm of what the last edit of a place added at its own positions, [positions]."""
    rows = [group.positions.index(position) for position in positions]
    return recorded.norms[group.place].flatten()[rows]


def _sizes(
    sae: Sae,
    parent: Activations,
    edit: FeatureEdit,
    positions: Sequence[int],
    own: Tensor,
    materials: Materials,
) -> Tensor:
    """Return the norm of what the edit of each active feature adds: [positions, features]."""
    kept = parent.positions(sae.site)
    h = parent.at(sae.site, sae.layer)[[kept.index(position) for position in positions]]
    with torch.no_grad():
        features = sae.encode(h).float()
    active = features.amax(dim=0) > 0
    if edit.operation in ("ablate", "scale"):
        factor = 1.0 if edit.value is None else abs(1 - edit.value)
        sizes: Tensor = factor * features[:, active] * sae.weights.decoder_norm[active]
        return sizes
    # Clamping and steering add what was asked for, whatever the feature was; the unit is that of
    # the stream at each place.
    unit = materials.statistics_of(sae.site).mean_norm(sae.site, sae.layer)
    unit /= materials.statistics_of(edit.site).mean_norm(edit.site, edit.layer)
    return (own.to(h.device) * unit)[:, None].expand(-1, int(active.sum()))


def _shortlisted(
    place: Place,
    sizes: Tensor,
    slope: Tensor,
    law: _Law,
    job: Job,
) -> _Directions:
    """Draw what a direction of each feature does at one place; make those of largest estimate.

    `sizes` [positions, features], `slope` [scores, positions, width].
    """
    n_scores, n_positions, width = slope.shape
    parts = []
    at_once = max(1, _CHUNK_VALUES // (n_scores * width))
    for begin in range(0, sizes.shape[1], at_once):
        job.check()
        here = sizes[:, begin : begin + at_once]
        if n_positions == 1:
            q, r = torch.linalg.qr(slope[:, 0].T[None])
            r = r * here[0, :, None, None]
        else:
            q, r = torch.linalg.qr(torch.einsum("pc,mpd->cdm", here, slope))
        along = torch.randn(DRAWS, here.shape[1], r.shape[1], generator=law.generator).to(slope)
        others = width - r.shape[1]
        rest = torch.zeros(DRAWS, here.shape[1], dtype=torch.float64)
        if others:
            # chi^2 with n degrees of freedom is Gamma(n / 2), doubled.
            alpha = torch.full_like(rest, others / 2)
            rest = 2 * torch._standard_gamma(alpha, generator=law.generator)
        rest = rest.to(slope)
        norm = (along.square().sum(dim=-1) + rest).sqrt()
        moved = torch.einsum("ckm,nck->ncm", r, along) / norm[..., None]
        estimates = _estimates(moved, law.scores.to(moved.device), law.n_labels)
        best = estimates.topk(min(law.shortlist, here.shape[1]), dim=-1).indices
        draw, column = _pairs(best, here.shape[1])
        axes = q.expand(here.shape[1], -1, -1)[column] if n_positions > 1 else q[0]
        beside = torch.randn(len(draw), width, generator=law.generator).to(slope)
        inside = beside @ axes if axes.dim() == 2 else torch.einsum("nd,ndk->nk", beside, axes)
        beside = beside - _spread(axes, inside)
        beside = beside / beside.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        unit = _spread(axes, along[draw, column]) + rest[draw, column].sqrt()[:, None] * beside
        parts.append(
            _Directions(
                place,
                draw.cpu(),
                unit / norm[draw, column][:, None],
                here.T[column],
                estimates[:, draw, column].cpu(),
            )
        )
    return _Directions(
        place,
        torch.cat([part.draw for part in parts]),
        torch.cat([part.unit for part in parts]),
        torch.cat([part.sizes for part in parts]),
        torch.cat([part.estimates for part in parts], dim=1),
    )


def _spread(axes: Tensor, inside: Tensor) -> Tensor:
    """Return the vectors [n, width] with coordinates [n, k] along axes [width, k] or [n, ...]."""
    if axes.dim() == 2:
        return inside @ axes.T
    return torch.einsum("ndk,nk->nd", axes, inside)


def _pairs(best: Tensor, n_features: int) -> tuple[Tensor, Tensor]:
    """Return each (draw, feature) among `best` [kinds, draws, shortlist] once."""
    chosen = torch.zeros(best.shape[1], n_features, dtype=torch.bool, device=best.device)
    for kind in best:
        chosen.scatter_(1, kind, True)
    draw, column = chosen.nonzero(as_tuple=True)
    return draw, column


def _estimates(moved: Tensor, scores: Tensor, n_labels: int) -> Tensor:
    """Return the largest change of a probability, and of a readout: [kinds, draws, features].

    `moved` [draws, features, scores] is the change of each score to first order; the softmax over
    the label logits is taken exactly. -inf where there is no answer or no readout.
    """
    found = torch.full((2, *moved.shape[:2]), -torch.inf, device=moved.device)
    if n_labels:
        labels = scores[:n_labels]
        after = (labels + moved[..., :n_labels]).softmax(dim=-1)
        found[0] = (after - labels.softmax(dim=-1)).abs().amax(dim=-1)
    if moved.shape[-1] > n_labels:
        found[1] = moved[..., n_labels:].abs().amax(dim=-1)
    return found


def _longest(listed: Sequence[_Directions], shortlist: int) -> list[_Directions]:
    """Return of each draw, over all places, those on the shortlist of the answer or readouts."""
    draw = torch.cat([one.draw for one in listed])
    estimates = torch.cat([one.estimates for one in listed], dim=1)
    wanted = torch.zeros(len(draw), dtype=torch.bool)
    for number in range(DRAWS):
        mine = (draw == number).nonzero().flatten()
        for kind in estimates[:, mine]:
            best = kind.topk(min(shortlist, len(mine)))
            wanted[mine[best.indices[best.values > -torch.inf]]] = True
    rows, begin = [], 0
    for one in listed:
        mine = wanted[begin : begin + len(one.draw)].nonzero().flatten()
        begin += len(one.draw)
        if len(mine):
            rows.append(one.take(mine))
    return rows


def _adding(rows: Sequence[_Directions], at: Sequence[int], part: range) -> list[Hook]:
    """Return hooks by which each row of `part` adds its direction at its place.

    `at` are the edited positions, counted from the first token that is run.
    """
    hooks, begin = [], 0
    for one in rows:
        count = len(one.draw)
        here = range(max(part.start, begin), min(part.stop, begin + count))
        if here:
            inside = torch.tensor([row - part.start for row in here])
            mine = slice(here.start - begin, here.stop - begin)
            hooks.append(_hook(one, inside, mine, torch.tensor(list(at))))
        begin += count
    return hooks


def _hook(one: _Directions, inside: Tensor, mine: slice, at: Tensor) -> Hook:
    def function(tensor: Tensor) -> Tensor:
        added = one.sizes[mine][..., None] * one.unit[mine][:, None]
        changed = tensor.clone()
        changed[inside[:, None], at] += added.to(tensor)
        return changed

    return Hook(one.place[0], one.place[1], function)
