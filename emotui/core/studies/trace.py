"""Which features cause the answer, in which phase, and how many carry it (SAE paper; METHODS 2.4).

The margin of an emotion is its label's logit less the mean of the others. In texts of one half,
one backward pass a text estimates what every feature at the readout adds to it; the 64 largest of
each emotion and phase are ablated one by one in texts of the other half, exactly. Traps avoided:
one text of each group and label is taken, since others are not independent of it; attribution
only nominates and never judges, and what it overlooks is sampled; features are chosen
and judged on different texts; each has controls, active features that were not listed, alike in
firing rate and size, and the balance is said; causal is what is beyond its controls, with q < .05
over all emotions and phases, and a feature without any like it is unmatched, not causal;
suppressors keep their sign and stand apart; a late feature may be strong only by its nearness to
the logits, so effects are also given over those of random directions of the same norm at the same
layer; the effect of a set is not the sum, so sets are ablated together, beside as many of their
controls. The phases are thirds of the depth unless --set boundaries names their first layers:
`phases` says whether there are any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emotui.core.engine.attribute import margin
from emotui.core.engine.labelled import draw
from emotui.core.errors import UsageError
from emotui.core.records import TextRecord
from emotui.core.studies.common.running import Cost, Implementation, Running
from emotui.core.studies.decided import captured, check_decides, scores_of
from emotui.core.studies.sae_texts import NEUTRAL, residual_saes
from emotui.core.studies.trace_measures import (
    MOST_CONTROLS,
    OVERLOOKED,
    SHORTLIST,
    Effects,
    Listed,
    listed,
    phase_of,
)
from emotui.core.studies.trace_report import report
from emotui.core.studies.trace_results import TOP, CellRuns, TraceResult, TraceRuns, measure
from emotui.core.studies.trace_runs import Feature, ablated, attributed, sets_ablated

if TYPE_CHECKING:
    from emotui.core.engine.saes import Sae

JOINT = (1, 2, 4, 8, 16, 32)
"""Sizes of the sets that are ablated together."""
_KEPT = 0.8
"""Share of the features with a control that must keep theirs where each gets more."""


def run(study: Running) -> TraceResult:
    """List by attribution, ablate one by one, then in sets."""
    check_decides(study)
    tracing = _tracing(study)
    lists = _lists(study, tracing)
    singles = _singles(study, tracing, lists)
    cells = [_cell(tracing, lists, singles, e, p) for e, p in tracing.cells]
    sets = _sets(cells)
    own, cross, divergence = _joint(study, tracing, sets)
    return measure(
        TraceRuns(
            emotions=tracing.emotions,
            labels=study.tokens.labels,
            layers=tuple(sae.layer for sae in tracing.saes),
            names=tuple("" if s.site == "resid" else f"{s.site}:" for s in tracing.saes),
            boundaries=tracing.boundaries,
            phases=max(tracing.phases) + 1,
            joint=JOINT,
            cells=tuple(cells),
            own=own,
            cross=cross,
            divergence=divergence,
            answers=torch.cat([chunk["answer"] for chunk in singles]),
            answered_for=torch.tensor([e for e, _ in tracing.exact_texts]),
        ),
        generator=study.generator("intervals"),
    )


@dataclass(frozen=True)
class _Tracing:
    """What is the same for all stages."""

    saes: tuple[Sae, ...]
    emotions: tuple[str, ...]
    phases: list[int]
    """Of each SAE."""
    boundaries: tuple[int, ...]
    select: list[list[TextRecord]]
    """By emotion: texts that features are listed on."""
    exact: list[list[TextRecord]]
    """By emotion: texts that they are ablated in."""
    neutral: list[TextRecord]

    @property
    def cells(self) -> list[tuple[int, int]]:
        """Each emotion and phase."""
        return [(e, p) for e in range(len(self.emotions)) for p in sorted(set(self.phases))]

    @property
    def exact_texts(self) -> list[tuple[int, TextRecord]]:
        """Emotion and text of each that features are ablated in."""
        return [(e, text) for e, texts in enumerate(self.exact) for text in texts]


def _tracing(study: Running) -> _Tracing:
    saes = residual_saes(study)
    boundaries = _boundaries(study)
    by_layer = phase_of(study.model.n_layers, boundaries)
    most = study.number("examples")
    texts: dict[str, list[TextRecord]] = {label: [] for label in study.dataset.labels}
    drawn = sorted(study.dataset, key=lambda item: draw(item.text, study.run.seed))
    taken: set[tuple[str, int]] = set()
    for item in drawn:
        mine = texts[study.dataset.labels[item.label]]
        # Texts of one group are no independent ones: neither across the halves nor for a test.
        if len(mine) < 2 * most and (item.group, item.label) not in taken:
            found = [text for _, text in study.readable([item])]
            taken |= {(item.group, item.label)} if found else set()
            mine += found
    emotions = tuple(name for name, mine in texts.items() if name != NEUTRAL and len(mine) >= 4)
    if not emotions:
        raise UsageError(
            "There are too few texts to trace an emotion.",
            why="No label but neutral has four texts of different groups that the model can read.",
            todo="Give more texts, or raise --limit.",
        )
    halves = {name: len(texts[name]) // 2 for name in emotions}
    return _Tracing(
        saes=saes,
        emotions=emotions,
        phases=[by_layer[sae.layer] for sae in saes],
        boundaries=boundaries,
        select=[texts[name][halves[name] :] for name in emotions],
        exact=[texts[name][: halves[name]] for name in emotions],
        neutral=texts.get(NEUTRAL, [])[:most],
    )


def _boundaries(study: Running) -> tuple[int, ...]:
    n = study.model.n_layers
    if not study.text("boundaries"):
        return (round(n / 3), round(2 * n / 3))
    given = study.numbers("boundaries")
    found = tuple(int(layer) for layer in given)
    if list(found) != sorted(set(found)) or found != given or not 0 < found[0] <= found[-1] < n:
        raise UsageError(
            "These boundaries cannot be used.",
            todo=f"Give the first layer of each phase but the first, ascending, in 1 to {n - 1}.",
        )
    return found


@dataclass(frozen=True)
class _Lists:
    """The features of one emotion, by phase."""

    features: list[list[Feature]]
    """By phase: shortlist, its controls feature by feature, and overlooked, one after the other."""
    sizes: list[Listed]
    """By phase: how many of each, as indices of candidates."""
    each: int
    """Controls of a feature that has any."""


@dataclass(frozen=True)
class _Candidates:
    """All features of one emotion in one phase, [m] each."""

    where: list[Feature]
    attribution: Tensor
    rate: Tensor
    size: Tensor

    def listed(self, controls: int) -> Listed:
        """List some, with so many controls each."""
        return listed(self.attribution, self.rate, self.size, controls=controls)


def _lists(study: Running, tracing: _Tracing) -> list[_Lists]:
    saes = tracing.saes

    def work(number: int) -> dict[str, Tensor]:
        emotion, texts = tracing.emotions[number], tracing.select[number]
        sums = {
            f"{kind} {n}": torch.zeros(sae.width)
            for n, sae in enumerate(saes)
            for kind in ("attribution", "rate", "mean")
        }
        for text in texts:
            study.job.check()
            _, found = attributed(study, saes, text, emotion)
            for n in range(len(saes)):
                sums[f"attribution {n}"] += found.estimate[n] / len(texts)
                sums[f"rate {n}"] += (found.f[n] > 0).float() / len(texts)
                sums[f"mean {n}"] += found.f[n] / len(texts)
        return sums

    chunks = study.stage("attribution", len(tracing.emotions), work, phase="attributing")
    candidates = [_candidates(tracing, chunk) for chunk in chunks]
    everything = [one for phases in candidates for one in phases]
    count = _controls_each(everything)
    lists = []
    for phases in candidates:
        sizes = [one.listed(count) for one in phases]
        features = []
        for one, found in zip(phases, sizes, strict=True):
            controls = [index for own in found.controls for index in own]
            rows = (*found.shortlist, *controls, *found.overlooked)
            features.append([one.where[row] for row in rows])
        lists.append(_Lists(features, sizes, count))
    return lists


def _controls_each(candidates: Sequence[_Candidates]) -> int:
    """Return how many controls each feature gets: the most that costs few features theirs.

    More make fewer findings enough for q < .05; it is decided before any effect is known.
    """
    paired = {
        count: sum(one.listed(count).paired for one in candidates)
        for count in range(1, MOST_CONTROLS + 1)
    }
    return max(count for count, n in paired.items() if n >= _KEPT * paired[1])


def _candidates(tracing: _Tracing, sums: dict[str, Tensor]) -> list[_Candidates]:
    found = []
    for phase in sorted(set(tracing.phases)):
        numbers = [n for n, at in enumerate(tracing.phases) if at == phase]
        norms = [tracing.saes[n].weights.decoder_norm.cpu() for n in numbers]
        means = [sums[f"mean {n}"] * norm for n, norm in zip(numbers, norms, strict=True)]
        found.append(
            _Candidates(
                where=[(n, j) for n in numbers for j in range(tracing.saes[n].width)],
                attribution=torch.cat([sums[f"attribution {n}"] for n in numbers]),
                rate=torch.cat([sums[f"rate {n}"] for n in numbers]),
                size=torch.cat(means),
            )
        )
    return found


def _singles(study: Running, tracing: _Tracing, lists: Sequence[_Lists]) -> list[dict[str, Tensor]]:
    texts = tracing.exact_texts

    def work(number: int) -> dict[str, Tensor]:
        e, text = texts[number]
        own = study.tokens.labels.index(tracing.emotions[e])
        run, found = attributed(study, tracing.saes, text, tracing.emotions[e])
        tensors = {"answer": found.scores.argmax()[None]}
        for phase, features in enumerate(lists[e].features):
            if not features:
                continue
            alone = ablated(
                study,
                tracing.saes,
                run,
                features,
                own=own,
                position=text.readout,
                generator=study.generator(f"directions {number} {phase}"),
            )
            estimate = torch.stack([found.estimate[n][j] for n, j in features])
            tensors |= {
                f"effect {phase}": alone.effect,
                f"flipped {phase}": alone.flipped.float(),
                f"estimate {phase}": estimate,
                f"random {phase}": alone.random,
                f"size {phase}": alone.size,
                f"written {phase}": torch.stack([found.f[n][j] for n, j in features]),
            }
        return tensors

    return list(study.stage("effects", len(texts), work, phase="ablating"))


def _cell(
    tracing: _Tracing,
    lists: Sequence[_Lists],
    singles: Sequence[dict[str, Tensor]],
    emotion: int,
    phase: int,
) -> CellRuns:
    features, sizes = lists[emotion].features[phase], lists[emotion].sizes[phase]
    mine = [s for s, (e, _) in zip(singles, tracing.exact_texts, strict=True) if e == emotion]

    def rows(name: str, width: int) -> Tensor:
        found = [one[f"{name} {phase}"] for one in mine if f"{name} {phase}" in one]
        return torch.stack(found) if found else torch.zeros(len(mine), width)

    effect = rows("effect", 0)
    paired = torch.tensor([bool(own) for own in sizes.controls], dtype=torch.bool)
    each = lists[emotion].each
    cuts = [len(sizes.shortlist), each * int(paired.sum()), len(sizes.overlooked)]
    short, alone, over = torch.split(effect, cuts, dim=1)
    controls = torch.full((len(mine), cuts[0], each), float("nan"))
    controls[:, paired] = alone.view(len(mine), -1, each)
    norms = [float(tracing.saes[n].weights.decoder_norm[j]) for n, j in features]
    beside = iter(features[cuts[0] : cuts[0] + cuts[1]])
    return CellRuns(
        emotion=emotion,
        phase=phase,
        features=tuple(features[: cuts[0]]),
        controls=tuple(tuple(next(beside) for _ in own) for own in sizes.controls),
        balance=sizes.balance,
        effects=Effects(short, controls, over),
        estimates=rows("estimate", len(effect[0])),
        exact=effect,
        flipped=rows("flipped", len(effect[0])).mean(dim=0)[: cuts[0]],
        random=rows("random", len(tracing.saes)).nanmean(dim=0),
        size=rows("size", len(tracing.saes)).nanmean(dim=0),
        written=rows("written", len(features)).mean(dim=0)[: cuts[0]]
        * torch.tensor(norms)[: cuts[0]],
    )


@dataclass(frozen=True)
class _Sets:
    """Nested sets of features of one cell, the strongest by exact effect first."""

    strongest: list[Feature]
    own: list[list[Feature]]
    """Of those that have controls."""
    controls: list[list[Feature]]
    """One control of each of these."""


def _sets(cells: Sequence[CellRuns]) -> list[_Sets]:
    found = []
    for cell in cells:
        mean = cell.effects.shortlist.mean(dim=0)
        order = mean.argsort(descending=True, stable=True).tolist()
        paired = [n for n in order if cell.controls[n]]
        found.append(
            _Sets(
                strongest=[cell.features[n] for n in order[:TOP]],
                own=[[cell.features[n] for n in paired[:k]] for k in JOINT],
                controls=[[cell.controls[n][0] for n in paired[:k]] for k in JOINT],
            )
        )
    return found


def _joint(
    study: Running,
    tracing: _Tracing,
    sets: Sequence[_Sets],
) -> tuple[list[list[Tensor]], Tensor, Tensor]:
    """Ablate sets in the texts that features were listed on: not those they were ranked on.

    Returns the effect on the own margin [texts, 2, sizes] of each cell (features that have
    controls, and as many of these), the mean effect of the top
    eight of each cell in texts of each emotion [cells, emotions], and on neutral texts their KL
    [cells], NaN without neutral texts.
    """
    texts = [(e, text) for e, mine in enumerate(tracing.select) for text in mine]
    texts += [(-1, text) for text in tracing.neutral]
    top = [one.strongest for one in sets]

    def work(number: int) -> dict[str, Tensor]:
        e, text = texts[number]
        run = captured(study, text)
        mine = [n for n, (emotion, _) in enumerate(tracing.cells) if emotion == e]
        rows = [*top, *(one for n in mine for one in (*sets[n].own, *sets[n].controls))]
        scores, divergence = sets_ablated(study, tracing.saes, run, rows, position=text.readout)
        if e < 0:
            return {"divergence": divergence[: len(top)]}
        own = study.tokens.labels.index(tracing.emotions[e])
        before = margin(scores_of(study, run.logits), own)
        effect = before - margin(scores, own)
        return {"cross": effect[: len(top)], "own": effect[len(top) :]}

    chunks = list(study.stage("joint", len(texts), work, phase="ablating sets"))
    n_phases = len(set(tracing.phases))
    own: list[list[Tensor]] = [[] for _ in tracing.cells]
    cross = torch.full((len(top), len(tracing.emotions)), float("nan"))
    for e in range(len(tracing.emotions)):
        mine = [chunk for chunk, (emotion, _) in zip(chunks, texts, strict=True) if emotion == e]
        cross[:, e] = torch.stack([chunk["cross"] for chunk in mine]).mean(dim=0)
        for chunk in mine:
            parts = chunk["own"].view(n_phases, 2, len(JOINT))
            for part, number in zip(
                parts, [n for n, (m, _) in enumerate(tracing.cells) if m == e], strict=True
            ):
                own[number].append(part)
    calm = [c["divergence"] for c, (e, _) in zip(chunks, texts, strict=True) if e < 0]
    none = torch.full((len(top),), float("nan"))
    return own, cross, torch.stack(calm).mean(dim=0) if calm else none


def cost(study: Running) -> Cost:
    """Return a forward and backward for each text, and the last tokens of all ablations."""
    emotions = sum(label != NEUTRAL for label in study.dataset.labels)
    texts = min(emotions * 2 * study.number("examples"), study.run.dataset.texts)
    rows = 3 * (SHORTLIST * (1 + MOST_CONTROLS) + OVERLOOKED)
    width = sum(sae.width for sae in study.saes)
    return Cost(
        forwards=texts * (6 + 0.01 * rows),
        disk_bytes=int(texts / 2 * rows * 20 + emotions * width * 12),
        memory_bytes=width * 24,
    )


STUDY = Implementation(run=run, report=report, cost=cost)
