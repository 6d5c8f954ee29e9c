"""Appraisal modulation (Tak et al.; METHODS 1.7, 4): moving one appraisal with the others held.

Appraisals (how pleasant, whose doing, how foreseeable) have directions of their own, found by ridge
regression on ratings. Moved along one, or two, at the readout, the answers should change as the
ratings of people say. How the traps of the method are met:

- v = sum of c_a (I - P) w_a over the changed appraisals, P the projection on the kept ones. The
  published release computes the projection and then adds the sum without it, so the kept ones move
  too; `--set projection=yes,no` runs both. How much of the norm the projection leaves is given;
- that the kept ones stay is checked at the next layer, by its own regressions, on other texts, in
  standard deviations of what is read there: at the edited layer it would hold by construction;
- directions are fitted on one half of the texts and added in the other; R² says how far each can
  be believed. They come from the dataset's ratings, or else from those of the bundled situations;
- signs are held against the ratings, only where these decide, with a permutation of the emotions,
  and beside random directions in the appraisals' places, isotropic ones and ones with the
  activations' covariance. The layer is the best of many, so it is held against the best layer of
  every permutation and of every random direction. Against the mean ratings of each emotion, and
  against a logistic regression of each emotion on all appraisals that are rated: they go together
  in people, so the means suit the unprojected sum;
- strengths are fractions of the corpus mean of the residual's norm, and how many answers move at
  all stands beside what random directions of that size move: a strong push at an early layer
  wrecks the answers whatever its direction.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from emotui.core.corpus import APPRAISALS, load_situations
from emotui.core.engine.appraisals import (
    appraisal_directions,
    appraisal_named,
    appraisal_texts,
    modulation,
    ridge,
)
from emotui.core.engine.collect import Place
from emotui.core.errors import EditError, UsageError
from emotui.core.studies.appraise_curves import Condition, Plan, agreements_of, curves_of
from emotui.core.studies.appraise_measure import Ratings, partial_of, ratings_of
from emotui.core.studies.appraise_results import Against, AppraiseResult, Fit, Projection, report
from emotui.core.studies.common.chunks import Chunks
from emotui.core.studies.common.dataset import Item
from emotui.core.studies.common.readings import Readings, readings, readings_bytes
from emotui.core.studies.common.running import Cost, Implementation, Running
from emotui.core.studies.common.within import Within
from emotui.core.studies.halves import halves_of
from emotui.core.studies.label_mix import NEW_TOKENS, LabelMix, label_mixes
from emotui.core.studies.label_mix import Condition as Writing
from emotui.core.studies.promote import layer_of, norms_of, random_directions, strengths_of
from emotui.core.studies.promote_results import CONTROLS
from emotui.core.studies.variants import adding, choice, run_variants, windows_of
from emotui.core.text import clean

LEAST_RATED = 40
_BLOCK = 4  # texts of a chunk
_OWN = "author-assigned, of the situations that come with emotui"


@dataclass(frozen=True)
class _Parts:
    """Who the directions are from, and where they are added; rows of the readings."""

    names: tuple[str, ...]
    source: str
    emotions: tuple[str, ...]
    ratings: Ratings
    partial: Ratings
    regressed: tuple[str, ...]
    """The appraisals that are held in `partial`: all that are rated."""
    train: Tensor
    dev: Tensor
    held: Tensor
    values: Tensor | None
    """[n of the readings, appraisals]; None where the bundled situations stand in."""


def run(study: Running) -> AppraiseResult:
    """Fit the directions on one half, then make every change in each text of the other."""
    model, labels = study.model, study.tokens.labels
    given = choice("projection", study.text("projection"), ("yes", "no"))
    projections: tuple[Projection, ...] = tuple(
        "projected" if word == "yes" else "released" for word in given
    )
    span = study.number("span")
    draws = study.number("draws")
    wanted = study.number("generations")
    names = _names(study)
    conditions = _conditions(names, study.text("joint"))
    plan = Plan(
        rows=tuple((p, n, 1) for p in projections for n in range(len(conditions)))
        + tuple((c, n, sign) for c in CONTROLS for n in range(draws) for sign in (1, -1)),
        conditions=conditions,
        strengths=strengths_of(study),
        windows=windows_of(model.n_layers, (span,), ("resid",)),
        appraisals=names,
    )
    asked = layer_of(study)
    places: tuple[Place, ...] = tuple(("resid", layer) for layer in range(model.n_layers))
    found = readings(study, places)
    items = study.dataset.items(found.index.tolist())
    parts = _parts(study, found, items, names)
    fitted = _directions(study, found, parts, plan, draws)
    norms = norms_of(study)
    stage = _changed(study, found, parts.held, plan, fitted, norms)
    columns = [labels.index(emotion) for emotion in parts.emotions]
    curves = curves_of(stage, plan, fitted, len(labels))
    signs: dict[Against, Ratings] = {"means": parts.ratings, "partial": parts.partial}
    agreements = agreements_of(stage, plan, signs, columns, study.generator("permutations"))
    score = fitted.joined("score")
    shown = asked if asked is not None else int(score.mean(dim=1).argmax())
    mixes: tuple[LabelMix, ...] = ()
    if wanted:
        order = torch.randperm(len(parts.held), generator=study.generator("generations"))
        texts = [items[int(parts.held[n])].text for n in order[:wanted]]
        writings = _writings(fitted, plan, projections[0], shown, norms)
        mixes = label_mixes(study, texts, writings, "generations")
    counts = Counter(study.dataset.labels[n] for n in found.gold[parts.held].tolist())
    answers = stage.joined("clean").argmax(dim=1)
    return AppraiseResult(
        texts=len(items),
        unreadable=study.run.dataset.texts - len(items),
        source=parts.source,
        fitted_on=len(parts.train),
        held={label: counts[label] for label in study.dataset.labels if counts[label]},
        labels=labels,
        clean=tuple(
            (torch.bincount(answers, minlength=len(labels)).double() / len(answers)).tolist()
        ),
        appraisals=names,
        emotions=parts.emotions,
        ratings=tuple(map(tuple, parts.ratings.difference.tolist())),
        decided=tuple(map(tuple, parts.ratings.decided.tolist())),
        partial=tuple(map(tuple, parts.partial.difference.tolist())),
        partial_decided=tuple(map(tuple, parts.partial.decided.tolist())),
        regressed=parts.regressed,
        span=span,
        strengths=plan.strengths,
        norms=tuple(norms),
        fits=tuple(
            Fit(appraisal=name, r_squared=tuple(score[:, n].tolist()))
            for n, name in enumerate(names)
        ),
        shown_layer=shown,
        without=_without(fitted, projections),
        curves=curves,
        agreements=agreements,
        generations=mixes,
    )


def _names(study: Running) -> tuple[str, ...]:
    """Return the appraisals asked for; UsageError for one that neither source has, or one alone."""
    words = [word.strip() for word in study.text("appraisals").split(",") if word.strip()]
    known = study.dataset.appraisals
    names = []
    for word in words:
        name = word.replace("-", "_")
        if name not in known:
            try:
                name = appraisal_named(word)
            except EditError as error:
                raise UsageError(
                    f"There is no appraisal called {clean(word)!r}.",
                    why=f"The dataset has: {', '.join(known) or 'none'}; emotui's situations: "
                    f"{', '.join(APPRAISALS)}.",
                    todo="Name others with --set appraisals=NAME,NAME.",
                ) from error
        names.append(name)
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise UsageError(
            "At least two different appraisals are needed.",
            why="One is changed while the others are kept.",
            todo="Name them with --set appraisals=NAME,NAME.",
        )
    return tuple(names)


def _conditions(names: tuple[str, ...], joint: str) -> tuple[Condition, ...]:
    """Return each appraisal up and down, and each joint pair in all four ways."""
    groups: list[tuple[str, ...]] = [(name,) for name in names]
    for pair in (word.strip() for word in joint.split(",") if word.strip()):
        members = tuple(word.strip().replace("-", "_") for word in pair.split(":"))
        if len(members) < 2 or set(members) - set(names) or len(set(members)) < len(members):
            raise UsageError(
                f"{clean(pair)!r} cannot be changed jointly.",
                why=f"The appraisals of this run are: {', '.join(names)}.",
                todo="Join two or more of them with a colon, as in "
                "--set joint=pleasantness:other_responsblt.",
            )
        groups.append(members)
    return tuple(
        Condition(
            changed=tuple(zip(signs, members, strict=True)),
            kept=tuple(name for name in names if name not in members),
        )
        for members in groups
        for signs in product((1, -1), repeat=len(members))
    )


def _parts(study: Running, found: Readings, items: list[Item], names: tuple[str, ...]) -> _Parts:
    known = study.dataset.appraisals
    if set(names) <= set(known):
        columns = [known.index(name) for name in names]
        every = torch.tensor([item.appraisals for item in items], dtype=torch.float64)
        values = every[:, columns]
        rated = [row for row in range(len(items)) if not bool(values[row].isnan().any())]
        if len(rated) >= LEAST_RATED:
            gold = [int(found.gold[row]) for row in rated]
            halves = halves_of(
                [items[row] for row in rated], gold, study.dataset.labels, study.run.seed
            )
            at = torch.tensor(rated)
            emotions = tuple(study.dataset.labels)
            others = [n for n in range(len(known)) if not bool(every[at, n].isnan().any())]
            all_rated = [*columns, *(n for n in others if n not in columns)]
            return _Parts(
                names=names,
                source="author-assigned" if study.request.data == "bundled" else "the dataset",
                emotions=emotions,
                ratings=ratings_of(values, found.gold, len(emotions)),
                partial=partial_of(
                    every[:, all_rated], found.gold, len(emotions), named=len(names)
                ),
                regressed=tuple(known[n] for n in all_rated),
                train=at[halves.train],
                dev=at[halves.dev],
                held=at[halves.held],
                values=values,
            )
    missing = [name for name in names if name not in APPRAISALS]
    if missing:
        raise UsageError(
            f"There are too few ratings of {', '.join(missing)}.",
            why=f"At least {LEAST_RATED} texts must be rated on all of {', '.join(names)}, and "
            "emotui's own situations are not rated on that.",
            todo="Give more texts, or name others with --set appraisals=NAME,NAME.",
        )
    situations = load_situations()
    emotions = tuple(
        label for label in study.tokens.labels if any(s.emotion == label for s in situations)
    )
    own = [s for s in situations if s.emotion in emotions]
    columns = [APPRAISALS.index(name) for name in names]
    regressed = (*names, *(name for name in APPRAISALS if name not in names))
    every = torch.tensor([s.appraisals for s in own], dtype=torch.float64)
    rated_so = every[:, columns]
    felt = torch.tensor([emotions.index(s.emotion) for s in own])
    none = torch.zeros(0, dtype=torch.long)
    fitted = sum(one.split == "train" for one in appraisal_texts())
    return _Parts(
        names=names,
        source=_OWN,
        emotions=emotions,
        ratings=ratings_of(rated_so, felt, len(emotions)),
        partial=partial_of(
            every[:, [APPRAISALS.index(name) for name in regressed]],
            felt,
            len(emotions),
            named=len(names),
        ),
        regressed=regressed,
        train=torch.full((fitted,), -1),
        dev=none,
        held=torch.arange(len(items)),
        values=None,
    )


def _directions(study: Running, found: Readings, parts: _Parts, plan: Plan, draws: int) -> Chunks:
    """Return the directions of every layer, one chunk each.

    `rows` [1, appraisals, d], not of unit norm, and `score` [1, appraisals]; of each projection
    unit vectors [1, conditions, d], zero where there is no direction, and how much of the norm
    `surviving` [1, conditions] the projection leaves, NaN there; `isotropic`, `covariance`
    [1, draws, d].
    """
    own = (
        appraisal_directions(study.model, study.template, study.store, Within(study.job))
        if parts.values is None
        else None
    )
    projections = dict.fromkeys(kind for kind, _, _ in plan.rows if kind not in CONTROLS)

    def work(layer: int) -> dict[str, Tensor]:
        h = found.at(("resid", layer)).double()
        if own is not None:
            rows = torch.stack([own.row(layer, name) for name in parts.names]).double()
            score = torch.tensor([own.r_squared(layer, name) for name in parts.names])
            background = h
        else:
            assert parts.values is not None
            background = h[parts.train]
            spread = background.std(dim=0)
            size = background.square().mean(dim=0).sqrt()
            inputs = h.masked_fill(spread <= 1e-5 * size, 0)  # constant but for rounding
            splits = {"train": parts.train, "dev": parts.dev, "test": parts.held}
            rows, score = ridge(inputs, parts.values, splits)
        given: dict[str, Tensor] = {"rows": rows[None].float(), "score": score[None].float()}
        for projection in projections:
            units, left = [], []
            for condition in plan.conditions:
                unit, surviving = _direction(rows, parts.names, condition, str(projection))
                units.append(unit)
                left.append(surviving)
            given[str(projection)] = torch.stack(units)[None].float()
            given[f"{projection} surviving"] = torch.tensor(left)[None]
        random = random_directions(background, draws, study.generator(f"directions {layer}"))
        return {**given, **{name: vectors[None] for name, vectors in random.items()}}

    return study.stage("directions", study.model.n_layers, work, phase="fitting the directions")


def _direction(
    rows: Tensor, names: tuple[str, ...], condition: Condition, projection: str
) -> tuple[Tensor, float]:
    """Return a unit vector [d] and the share of the norm that the projection leaves; zeros and
    NaN where there is none: nothing is read there, or the kept ones cannot be told apart.
    """
    changed = [(sign, rows[names.index(name)]) for sign, name in condition.changed]
    kept = [rows[names.index(name)] for name in condition.kept]
    if not all(float(row.norm()) > 0 for row in (*kept, *(row for _, row in changed))):
        return torch.zeros(rows.shape[1], dtype=torch.float64), float("nan")
    try:
        found = modulation(changed, kept, released=projection == "released")
    except EditError:
        return torch.zeros(rows.shape[1], dtype=torch.float64), float("nan")
    return found.unit, found.surviving


def _changed(
    study: Running,
    found: Readings,
    held: Tensor,
    plan: Plan,
    fitted: Chunks,
    norms: list[float],
) -> Chunks:
    """Make every change in every text of the held half; chunks of texts.

    `scores` [texts, variants, labels], `clean` [texts, labels]; `shift` [texts, variants,
    appraisals] is how far each reading moves at the layer behind the window, `read` [texts,
    layers, appraisals] what is read from the text as it is.
    """
    rows = fitted.joined("rows")
    directions = {kind: fitted.joined(kind) for kind in {kind for kind, _, _ in plan.rows}}
    last = study.model.n_layers - 1
    variants = [
        adding(window, directions[kind][:, number], [sign * strength * norm for norm in norms])
        for kind, number, sign in plan.rows
        for strength in plan.strengths
        for window in plan.windows
    ]
    reading = [
        min(window.layers[-1] + 1, last)
        for _ in plan.rows
        for _ in plan.strengths
        for window in plan.windows
    ]

    def work(number: int) -> dict[str, Tensor]:
        members = held[number * _BLOCK : (number + 1) * _BLOCK]
        items = study.dataset.items([int(found.index[row]) for row in members])
        kept: dict[str, list[Tensor]] = {"scores": [], "clean": [], "shift": [], "read": []}
        for item in items:
            ids = [token.id for token in study.read(item.text).tokens]
            outcome = run_variants(
                study.model, ids, study.tokens, variants, reading=reading, job=study.job
            )
            moved = outcome.resid - outcome.clean_resid[reading]
            kept["scores"].append(outcome.scores)
            kept["clean"].append(outcome.clean)
            kept["shift"].append(torch.einsum("vd,vad->va", moved, rows[reading]))
            kept["read"].append(torch.einsum("ld,lad->la", outcome.clean_resid, rows))
        return {name: torch.stack(tensors) for name, tensors in kept.items()}

    return study.stage("changes", -(-len(held) // _BLOCK), work, phase="changing appraisals")


def _writings(
    fitted: Chunks, plan: Plan, projection: Projection, layer: int, norms: list[float]
) -> list[Writing]:
    """Return what is added while texts are written: nothing, each change, random directions."""
    found = [Writing("none", 0.0, ({},))]
    for strength in plan.strengths:
        size = strength * norms[layer]
        for number, condition in enumerate(plan.conditions):
            vector = size * fitted.joined(projection)[layer, number]
            found.append(Writing(f"{condition.name}, {projection}", strength, ({layer: vector},)))
        for control in CONTROLS:
            drawn = size * fitted.joined(control)[layer]
            found.append(Writing(control, strength, tuple({layer: one} for one in drawn)))
    return found


def _without(fitted: Chunks, projections: tuple[Projection, ...]) -> tuple[int, ...]:
    surviving = torch.cat([fitted.joined(f"{p} surviving") for p in projections], dim=1)
    return tuple(surviving.isnan().any(dim=1).nonzero().flatten().tolist())


def cost(study: Running) -> Cost:
    """Return one forward a text, and for half of them a last token a variant."""
    model, texts = study.model, study.run.dataset.texts
    names = study.text("appraisals").count(",") + 1
    joint = [pair.count(":") + 1 for pair in study.text("joint").split(",") if pair]
    conditions = 2 * names + sum(2**count for count in joint)
    projections = study.text("projection").count(",") + 1
    rows = projections * conditions + 2 * len(CONTROLS) * study.number("draws")
    strengths = len(study.numbers("strengths"))
    variants = rows * strengths * model.n_layers
    written = 1 + strengths * (conditions + len(CONTROLS))
    held = texts // 2 if study.dataset.appraisals else texts
    kept = held * variants * (len(study.tokens.labels) + names) * 4
    return Cost(
        forwards=texts
        + held * (2 + variants / 20)
        + study.number("generations") * written * (NEW_TOKENS / 2 + 2),
        disk_bytes=readings_bytes(study, model.n_layers) + kept,
        memory_bytes=3 * kept + 16 * texts * model.d_model + variants * model.d_model * 8,
    )


STUDY = Implementation(run=run, report=report, cost=cost)
