"""Emotion promotion (Tak et al.; METHODS 1.6, 4): adding an emotion's direction at the readout.

A direction is fitted on one half of the texts and added, at one layer or a window, to the residual
of the other half's readout; the score says how much more often the answer then is that emotion:
with p0 before and p1 after, (p1 - p0) / (1 - p0) where it rose, (p1 - p0) / p0 where it fell. How
the traps of the method are met:

- strengths are fractions of the corpus mean of the residual's norm at each layer, as in the
  explorer: absolute ones do not transfer between models. A window of span s adds s vectors;
- two kinds of direction, as they differ: the row of a probe (Tak et al.), which tells emotions
  apart whatever else varies, and the difference of means, which lies where the activations lie;
- random directions of the same norm beside every score, isotropic ones and ones drawn with the
  covariance of the activations, which are the harder control. An early layer is never shown
  without them: there a strong push wrecks the answer whatever its direction;
- the score counts answers, so that a push that wrecks them can promote whatever the wreck says:
  `leak` is the largest mean rise of another emotion's probability;
- a promotion at the last layers shows little: the answer is read from that very residual.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from emotui.core.engine.collect import Place
from emotui.core.engine.controls import balanced_accuracy, chance_level
from emotui.core.engine.statistics import corpus_statistics
from emotui.core.errors import UsageError
from emotui.core.studies.common.chunks import Chunks
from emotui.core.studies.common.fits import fit_place
from emotui.core.studies.common.readings import Readings, readings, readings_bytes
from emotui.core.studies.common.running import Cost, Implementation, Running
from emotui.core.studies.common.within import Within
from emotui.core.studies.halves import Halves, halves_of
from emotui.core.studies.label_mix import NEW_TOKENS, Condition, LabelMix, label_mixes
from emotui.core.studies.promote_results import (
    ALONG,
    CONTROLS,
    Along,
    Control,
    Directions,
    PromoteCurve,
    PromoteResult,
    report,
)
from emotui.core.studies.promote_score import Plan, Promotion, measure
from emotui.core.studies.variants import adding, choice, run_variants, windows_of
from emotui.core.text import clean

_BLOCK = 4  # texts of a chunk


def run(study: Running) -> PromoteResult:
    """Fit the directions on one half, then add each everywhere in each text of the other."""
    model = study.model
    along = choice("along", study.text("along"), ALONG)
    span = study.number("span")
    windows = windows_of(model.n_layers, (span,), ("resid",))
    strengths = strengths_of(study)
    draws = study.number("draws")
    wanted = study.number("generations")
    asked = layer_of(study)
    places: tuple[Place, ...] = tuple(("resid", layer) for layer in range(model.n_layers))
    found = readings(study, places)
    items = study.dataset.items(found.index.tolist())
    halves = halves_of(items, found.gold.tolist(), study.dataset.labels, study.run.seed)
    fitted = _directions(study, found, halves, draws)
    emotions = tuple(study.dataset.labels[n] for n in halves.labels)
    labels = study.tokens.labels
    plan = Plan(
        rows=tuple((a, n) for a in along for n in range(len(emotions)))
        + tuple((c, n) for c in CONTROLS for n in range(draws)),
        strengths=strengths,
        windows=windows,
    )
    norms = norms_of(study)
    stage = _promoted(study, found, halves.held, plan, fitted, norms)
    columns = [labels.index(emotion) for emotion in emotions]
    curves = measure(
        Promotion(stage.joined("clean"), stage.joined("scores")),
        plan,
        emotions,
        columns,
        study.generator("intervals"),
    )
    layer = asked if asked is not None else int(fitted.joined("dev_accuracy").argmax())
    mixes: tuple[LabelMix, ...] = ()
    if wanted:
        held = study.dataset.items([int(found.index[row]) for row in halves.held])
        order = torch.randperm(len(held), generator=study.generator("generations")).tolist()
        texts = [held[n].text for n in order[:wanted]]
        conditions = _conditions(fitted, plan, along[0], emotions, layer, norms)
        mixes = label_mixes(study, texts, conditions, "generations")
    clean = Counter(labels[n] for n in stage.joined("clean").argmax(dim=1).tolist())
    counts = Counter(study.dataset.labels[n] for n in found.gold[halves.held].tolist())
    return PromoteResult(
        texts=len(items),
        unreadable=study.run.dataset.texts - len(items),
        fitted_on=len(halves.train),
        chosen_on=len(halves.dev),
        labels={label: counts[label] for label in emotions},
        left_out=tuple(study.dataset.labels[n] for n in halves.left_out),
        answers={label: clean[label] for label in labels if clean[label]},
        span=span,
        strengths=strengths,
        norms=tuple(norms),
        readout_norms=tuple(fitted.joined("norm").tolist()),
        draws=draws,
        directions=_said(fitted, plan),
        curves=curves,
        generations_layer=layer if wanted else None,
        generations=mixes,
    )


def strengths_of(study: Running) -> tuple[float, ...]:
    """Return the strengths asked for, weakest first; UsageError for one that is not positive."""
    strengths = tuple(sorted(set(study.numbers("strengths"))))
    if strengths[0] <= 0 or strengths[-1] == float("inf"):
        raise UsageError(
            f"strengths cannot hold {strengths[0] if strengths[0] <= 0 else strengths[-1]:g}.",
            todo="Give fractions of the residual's mean norm above 0, as in 0.1,0.2.",
        )
    return strengths


def layer_of(study: Running) -> int | None:
    """Return the layer that was asked for, None for none; UsageError where there is no such."""
    given, count = study.text("layer").strip(), study.model.n_layers
    if not given:
        return None
    if not given.isdecimal() or int(given) >= count:
        raise UsageError(
            f"There is no layer {clean(given)!r}.", todo=f"Give one of 0 to {count - 1}."
        )
    return int(given)


def norms_of(study: Running) -> list[float]:
    """Return the corpus mean of the residual's norm at each layer: the unit of strength."""
    statistics = corpus_statistics(study.model, study.template, study.store, Within(study.job))
    return [statistics.mean_norm("resid", layer) for layer in range(study.model.n_layers)]


def _directions(study: Running, found: Readings, halves: Halves, draws: int) -> Chunks:
    """Fit probe rows and differences of means at every layer, and draw the controls.

    Each chunk is a layer: unit vectors `row`, `means` [1, K, d], `isotropic`, `covariance`
    [1, draws, d], zero where nothing varies; accuracies [1].
    """
    rows, design = halves.design(found.gold)
    truth = design.labels

    def work(layer: int) -> dict[str, Tensor]:
        inputs = found.at(("resid", layer))[rows].float()
        fits = fit_place(study, inputs, design)
        weight = fits.weight[0].T.double()
        h = inputs[design.train].double()
        means = torch.stack(
            [h[truth[design.train] == k].mean(dim=0) for k in range(design.classes)]
        )
        others = (means.sum(dim=0) - means) / (design.classes - 1)
        random = random_directions(h, draws, study.generator(f"directions {layer}"))

        def accuracy(part: Tensor) -> Tensor:
            return balanced_accuracy(
                fits.predicted[0, part], truth[part], classes=design.classes
            ).float()

        chance = torch.tensor(chance_level(fits.shuffled)[1])
        return {
            # Softmax leaves what all rows share undetermined.
            "row": _unit(weight - weight.mean(dim=0), h)[None],
            "means": _unit(means - others, h)[None],
            **{name: vectors[None] for name, vectors in random.items()},
            "dev_accuracy": accuracy(design.dev)[None],
            "held_accuracy": accuracy(design.judged)[None],
            "shuffled_95": chance[None],
            "norm": h.norm(dim=1).mean()[None].float(),
        }

    return study.stage("directions", study.model.n_layers, work, phase="fitting the directions")


def random_directions(h: Tensor, draws: int, generator: torch.Generator) -> dict[Control, Tensor]:
    """Return unit vectors [draws, d] of each kind, float32, for activations `h` [n, d].

    Zero where nothing varies: there no direction of the data exists to be held against.
    """
    h = h.double()
    isotropic = torch.randn(draws, h.shape[1], generator=generator).double()
    drawn = torch.randn(draws, len(h), generator=generator).double() @ (h - h.mean(dim=0))
    return {"isotropic": _unit(isotropic, h), "covariance": _unit(drawn, h)}


def _unit(rows: Tensor, h: Tensor) -> Tensor:
    """Return rows [k, d] of norm 1; 0 for those that are rounding, or where `h` is constant."""
    norms = rows.norm(dim=1, keepdim=True)
    varies = h.std(dim=0).norm() > 1e-5 * h.square().mean(dim=0).sum().sqrt()
    unit: Tensor = torch.where((norms > 0) & varies, rows / norms.clamp_min(1e-300), 0.0)
    return unit.float()


def _promoted(
    study: Running,
    found: Readings,
    held: Tensor,
    plan: Plan,
    fitted: Chunks,
    norms: list[float],
) -> Chunks:
    """Add every direction in every text of the held half; chunks of texts.

    `scores` [texts, variants, labels] in the order of the plan, `clean` [texts, labels].
    """
    directions = {kind: fitted.joined(kind) for kind in {kind for kind, _ in plan.rows}}
    variants = [
        adding(window, directions[kind][:, number], [strength * norm for norm in norms])
        for kind, number in plan.rows
        for strength in plan.strengths
        for window in plan.windows
    ]

    def work(number: int) -> dict[str, Tensor]:
        members = held[number * _BLOCK : (number + 1) * _BLOCK]
        items = study.dataset.items([int(found.index[row]) for row in members])
        clean, scores = [], []
        for item in items:
            ids = [token.id for token in study.read(item.text).tokens]
            outcome = run_variants(study.model, ids, study.tokens, variants, job=study.job)
            clean.append(outcome.clean)
            scores.append(outcome.scores)
        return {"clean": torch.stack(clean), "scores": torch.stack(scores)}

    return study.stage("promotions", -(-len(held) // _BLOCK), work, phase="promoting")


def _conditions(
    fitted: Chunks,
    plan: Plan,
    along: Along,
    emotions: tuple[str, ...],
    layer: int,
    norms: list[float],
) -> list[Condition]:
    """Return what is added while texts are written: nothing, each emotion, random directions."""
    found = [Condition("none", 0.0, ({},))]
    for strength in plan.strengths:
        size = strength * norms[layer]
        for number, emotion in enumerate(emotions):
            vector = size * fitted.joined(along)[layer, number]
            found.append(Condition(f"{emotion}, {along}", strength, ({layer: vector},)))
        for control in CONTROLS:
            drawn = size * fitted.joined(control)[layer]
            found.append(Condition(control, strength, tuple({layer: one} for one in drawn)))
    return found


def _said(fitted: Chunks, plan: Plan) -> Directions:
    kinds = {kind for kind, _ in plan.rows}
    columns = {
        name: tuple(fitted.joined(name).tolist())
        for name in ("held_accuracy", "shuffled_95", "dev_accuracy")
    }
    row, means = fitted.joined("row"), fitted.joined("means")
    without = [
        layer
        for layer in range(len(row))
        if not all(bool(fitted.joined(kind)[layer].any()) for kind in kinds)
    ]
    return Directions(
        **columns,
        cosine=tuple((row * means).sum(dim=2).mean(dim=1).tolist()),
        without=tuple(without),
    )


def cost(study: Running) -> Cost:
    """Return one forward a text, and for half of them a last token a variant; and the fits."""
    model, texts = study.model, study.run.dataset.texts
    kinds = len(study.dataset.labels)
    along = len(choice("along", study.text("along"), ALONG))
    rows = along * kinds + len(CONTROLS) * study.number("draws")
    variants = rows * len(study.numbers("strengths")) * model.n_layers
    conditions = 1 + len(study.numbers("strengths")) * (kinds + len(CONTROLS))
    written = study.number("generations") * conditions * (NEW_TOKENS / 2 + 2)
    fits = model.n_layers * 3 * 30 * 40 * (texts / 2) * model.d_model * kinds / 5e9
    scores = texts // 2 * variants * len(study.tokens.labels) * 4
    return Cost(
        forwards=texts + texts / 2 * (2 + variants / 20) + written,
        disk_bytes=readings_bytes(study, model.n_layers) + scores,
        memory_bytes=3 * scores + 40 * texts * model.d_model + variants * model.d_model * 4,
        seconds=fits,
    )


STUDY = Implementation(run=run, report=report, cost=cost)

__all__ = ["STUDY", "PromoteCurve", "PromoteResult"]
