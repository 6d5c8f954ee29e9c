"""Do scaled causal features improve recognition, beyond what the same examples give anyhow (SAE
paper; METHODS 2.5)?

A recogniser does not know the label, so adding an emotion's direction would be promotion. Here
what is active already is scaled, h' = h + sum (s - 1) f D at the readout, one scale a label, in the
last third of the layers. `targeted` raises the weak labels by one factor; `global` fits a scale
for each. Traps avoided: features, scales and penalty come from the training examples alone, the
same ones that the baselines get: a bias for each label's logit, a few-shot prompt, as many
matched features scaled in the same way, and the nearest class mean; datasets of other origin are
judged untouched; a gain is claimed only over no edit, logit bias, few-shot and matched features,
and only where its interval, widened for the number of settings tried, is above the best of the
first three. An edit of the readout cannot
change the perplexity of a text, so that is measured with every token edited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emotui.cache.recipes import MAX_EDITS, Recipe, save_recipe
from emotui.core.corpus import load_situations
from emotui.core.engine.labelled import draw
from emotui.core.errors import TextError, UsageError
from emotui.core.records import TextRecord
from emotui.core.studies.common.dataset import DatasetSummary, Item
from emotui.core.studies.common.running import Cost, Implementation, Running
from emotui.core.studies.decided import captured, check_decides, scores_of
from emotui.core.studies.sae_texts import NEUTRAL, residual_saes
from emotui.core.studies.steer_fit import (
    Fitted,
    class_means,
    fit_bias,
    fit_global,
    fit_targeted,
    nearest_mean,
)
from emotui.core.studies.steer_prompts import few_shot_scores
from emotui.core.studies.steer_report import report
from emotui.core.studies.steer_results import (
    MATCHED_DRAWS,
    Evaluated,
    ScaledFeature,
    Side,
    SteerResult,
    Trained,
    measure,
)
from emotui.core.studies.steer_runs import (
    Begun,
    Feature,
    Scaler,
    Scales,
    language_cost,
    scaled_scores,
)
from emotui.core.studies.steer_sets import other_sets
from emotui.core.studies.trace_measures import matched, phase_of
from emotui.core.studies.trace_runs import ablated, attributed

if TYPE_CHECKING:
    from emotui.core.engine.saes import Sae

_CANDIDATES = 24
"""Features of a label that are ablated one by one on the training examples."""
_AT_ONCE = 16
_PASSAGES = 50


def run(study: Running) -> SteerResult:
    """Choose features and scales on the training examples, then judge them on all other texts."""
    check_decides(study)
    steering = _steering(study)
    train = _train(study, steering)
    trained = [_trained(study, steering, train, shots) for shots in steering.shots]
    own = [item for item in study.dataset if item.index not in steering.used]
    sets: list[tuple[str, list[Item], DatasetSummary | None]] = [("", own, None)]
    sets += other_sets(study)
    evaluated = [
        _evaluated(study, steering, train, trained, number, name, items, summary)
        for number, (name, items, summary) in enumerate(sets)
    ]
    cost = [_side_effects(study, steering, one) for one in trained]
    saved = _save(study, steering, trained[-1])
    return measure(
        evaluated,
        trained=tuple(trained),
        sides=tuple(cost),
        labels=study.tokens.labels,
        layers=tuple(dict.fromkeys(sae.layer for sae in steering.saes)),
        saved=saved,
        generator=study.generator("draws"),
    )


@dataclass(frozen=True)
class _Steering:
    """What is the same for all stages."""

    saes: tuple[Sae, ...]
    """Those of the last third of the layers."""
    shots: tuple[int, ...]
    examples: list[tuple[int, int, Item, TextRecord]]
    """Label (of the label set), which example of it, the text; shot by shot."""
    used: frozenset[int]
    """`Item.index` of these."""

    def first(self, shots: int) -> Tensor:
        """Return which examples [n] belong to a number of shots."""
        return torch.tensor([shot < shots for _, shot, _, _ in self.examples])


def _steering(study: Running) -> _Steering:
    shots = tuple(sorted({int(n) for n in study.numbers("shots")}))
    if shots[0] < 1:
        raise UsageError("--shots are numbers of examples of each emotion, 1 or more.")
    phases = phase_of(study.model.n_layers, (round(2 * study.model.n_layers / 3),))
    saes = tuple(sae for sae in residual_saes(study) if phases[sae.layer] == 1)
    if not saes:
        raise UsageError(
            "There is no SAE in the last third of the layers.",
            todo="Name SAEs of late layers with --sae.",
        )
    labels = study.tokens.labels
    by_label: dict[str, list[Item]] = {}
    for item in sorted(study.dataset, key=lambda item: draw(item.text, study.run.seed)):
        by_label.setdefault(study.dataset.labels[item.label], []).append(item)
    chosen: list[tuple[int, int, Item, TextRecord]] = []
    for label, items in by_label.items():
        for shot, item in enumerate(items[: min(shots[-1], len(items) // 2)]):
            for _, text in study.readable([item]):
                chosen.append((labels.index(label), shot, item, text))
    chosen.sort(key=lambda one: (one[1], one[0]))
    return _Steering(saes, shots, chosen, frozenset(item.index for _, _, item, _ in chosen))


@dataclass(frozen=True)
class _Train:
    """What the training examples gave; n of them."""

    gold: Tensor
    """[n], of the label set."""
    shot: Tensor
    scores: Tensor
    """[n, labels]."""
    estimate: list[Tensor]
    """[n, width] of each SAE: attribution to the own margin."""
    f: list[Tensor]
    """[n, width] of each SAE."""
    h: Tensor
    """[n, d_model], residual of the last layer with an SAE."""


def _train(study: Running, steering: _Steering) -> _Train:
    saes = steering.saes

    def work(number: int) -> dict[str, Tensor]:
        label, _, _, text = steering.examples[number]
        run, found = attributed(study, saes, text, study.tokens.labels[label])
        tensors = {
            "scores": found.scores[None],
            "h": run.at("resid", saes[-1].layer)[text.readout][None],
        }
        for n in range(len(saes)):
            tensors |= {f"f {n}": found.f[n][None], f"estimate {n}": found.estimate[n][None]}
        return tensors

    chunks = study.stage("training", len(steering.examples), work, phase="reading the examples")
    numbers = range(len(saes))
    return _Train(
        gold=torch.tensor([label for label, _, _, _ in steering.examples]),
        shot=torch.tensor([shot for _, shot, _, _ in steering.examples]),
        scores=chunks.joined("scores"),
        estimate=[chunks.joined(f"estimate {n}") for n in numbers],
        f=[chunks.joined(f"f {n}") for n in numbers],
        h=chunks.joined("h").float().cpu(),
    )


def _trained(study: Running, steering: _Steering, train: _Train, shots: int) -> Trained:
    """Choose features and fit everything on `shots` examples of each label; one stage."""
    mine = steering.first(shots).nonzero().flatten().tolist()

    def work(_number: int) -> dict[str, Tensor]:
        effects = _effects(study, steering, train, mine, shots)
        of, causal = _chosen(effects, study.number("features"))
        draws = _matched(study, steering, train, mine, of, set(effects), shots)
        gold, labels = train.gold[mine], len(study.tokens.labels)
        never = study.tokens.labels.index(NEUTRAL) if NEUTRAL in study.tokens.labels else None
        score = partial(_scored, study, steering.saes, _begun(study, steering, mine))
        clean = train.scores[mine]
        targeted = fit_targeted(score, gold, clean, of, labels=labels, never=never)
        fitted: Fitted = fit_global(score, gold, train.shot[mine], of, draws, labels=labels)
        keys = list(of)
        return {
            "feature": torch.tensor([[n, j, of[n, j]] for n, j in keys]).view(-1, 3),
            "effect": torch.tensor([causal[key] for key in keys]),
            "matched": torch.tensor(
                [[d, n, j, mine] for d, one in enumerate(draws) for (n, j), mine in one.items()]
            ).view(-1, 4),
            "targeted": targeted[None],
            "global": fitted.scales[None],
            "draws": torch.stack(list(fitted.matched)),
            "penalty": torch.tensor([fitted.penalty], dtype=torch.float64),
            "bias": fit_bias(clean, gold)[None],
        }

    found = study.stage(f"fits {shots}", 1, work, phase=f"fitting on {shots} a label").get(0)
    return Trained(
        shots=shots,
        examples=len(mine),
        features=tuple((n, j, k) for n, j, k in found["feature"].tolist()),
        effects=tuple(found["effect"].tolist()),
        matched=tuple((d, n, j, k) for d, n, j, k in found["matched"].tolist()),
        targeted=tuple(found["targeted"][0].tolist()),
        fitted=tuple(found["global"][0].tolist()),
        drawn=tuple(tuple(row) for row in found["draws"].tolist()),
        penalty=float(found["penalty"]),
        bias=tuple(found["bias"][0].tolist()),
    )


def _effects(
    study: Running, steering: _Steering, train: _Train, mine: Sequence[int], shots: int
) -> dict[Feature, tuple[int, float]]:
    """Return the label and exact effect of the features with the largest attribution to it."""
    found: dict[Feature, tuple[int, float]] = {}
    for label in sorted(set(train.gold[mine].tolist())):
        rows = [n for n in mine if int(train.gold[n]) == label]
        mean = torch.cat([one[rows].mean(dim=0) for one in train.estimate])
        where = [(n, j) for n, sae in enumerate(steering.saes) for j in range(sae.width)]
        best = mean.topk(min(_CANDIDATES, len(mean)))
        features = [
            where[i]
            for i, v in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            if v > 0
        ]
        if not features:
            continue
        effects = []
        for row in rows:
            study.job.check()
            text = steering.examples[row][3]
            alone = ablated(
                study,
                steering.saes,
                captured(study, text),
                features,
                own=label,
                position=text.readout,
                generator=study.generator(f"unused {shots}"),
            )
            effects.append(alone.effect)
        for feature, effect in zip(
            features, torch.stack(effects).mean(dim=0).tolist(), strict=True
        ):
            # A feature that serves two labels belongs to the one it does most for.
            if effect > 0 and effect > found.get(feature, (0, 0.0))[1]:
                found[feature] = (label, effect)
    return found


def _chosen(
    effects: Mapping[Feature, tuple[int, float]], count: int
) -> tuple[dict[Feature, int], dict[Feature, float]]:
    """Return the `count` strongest features of each label, and their effects."""
    of: dict[Feature, int] = {}
    for label in sorted({label for label, _ in effects.values()}):
        own = [(e, feature) for feature, (mine, e) in effects.items() if mine == label]
        of |= {feature: label for _, feature in sorted(own, reverse=True)[:count]}
    return of, {feature: effects[feature][1] for feature in of}


def _matched(
    study: Running,
    steering: _Steering,
    train: _Train,
    mine: Sequence[int],
    of: Mapping[Feature, int],
    candidates: set[Feature],
    shots: int,
) -> list[dict[Feature, int]]:
    """Draw as many active features, none of them a candidate, like these in rate and size."""
    f = torch.cat([one[mine] for one in train.f], dim=1)
    norms = torch.cat([sae.weights.decoder_norm.cpu() for sae in steering.saes])
    rate, size = (f > 0).float().mean(dim=0), f.mean(dim=0) * norms
    where = [(n, j) for n, sae in enumerate(steering.saes) for j in range(sae.width)]
    number = {feature: i for i, feature in enumerate(where)}
    wanted = torch.tensor([number[feature] for feature in of], dtype=torch.long)
    taken = torch.tensor([number[feature] for feature in candidates], dtype=torch.long)
    draws = []
    for drawn in range(MATCHED_DRAWS):
        generator = study.generator(f"matched {shots} {drawn}")
        active = (rate > 0).nonzero().flatten()
        free = active[~torch.isin(active, taken)]
        # A random half of what is free, so that draws differ.
        free = free[torch.randperm(len(free), generator=generator)[: max(1, len(free) // 2)]]
        found = matched(wanted, free, rate, size, min(len(wanted), len(free)), generator)
        draws.append(dict(zip([where[i] for i in found], of.values(), strict=False)))
    return draws


def _begun(study: Running, steering: _Steering, mine: Sequence[int]) -> list[tuple[Begun, int]]:
    """Run the training examples; kept is what scaling begins from, and the readout."""
    found = []
    for row in mine:
        text = steering.examples[row][3]
        run = captured(study, text)
        resid = {sae.layer: run.at("resid", sae.layer - 1).clone() for sae in steering.saes}
        found.append((Begun(resid, run.logits), text.readout))
    return found


def _scored(
    study: Running,
    saes: Sequence[Sae],
    begun: Sequence[tuple[Begun, int]],
    settings: Sequence[Mapping[Feature, float]],
) -> Tensor:
    """Return the scores [examples, settings, labels] of the training examples."""
    scaler = Scaler(saes, settings)
    return torch.stack(
        [scaled_scores(study, run, scaler, position=position) for run, position in begun]
    )


def settings_of(trained: Trained) -> list[Scales]:
    """Return the settings of a number of shots: targeted, global, and each draw of matched."""
    settings: list[Scales] = [
        {(n, j): scales[k] for n, j, k in trained.features}
        for scales in (trained.targeted, trained.fitted)
    ]
    for number, scales in enumerate(trained.drawn):
        settings.append({(n, j): scales[k] for d, n, j, k in trained.matched if d == number})
    return settings


def _evaluated(
    study: Running,
    steering: _Steering,
    train: _Train,
    trained: Sequence[Trained],
    number: int,
    name: str,
    items: Sequence[Item],
    summary: DatasetSummary | None,
) -> Evaluated:
    """Score every text under every setting and with every few-shot prompt."""
    scaler = Scaler(steering.saes, [{}, *(one for t in trained for one in settings_of(t))])
    labels = len(study.tokens.labels)
    means = []
    for one in trained:
        rows = steering.first(one.shots)
        means.append(class_means(train.h[rows], train.gold[rows], labels=labels))
    prompts = [(label, item.text) for label, _, item, _ in steering.examples]
    counts = [one.examples for one in trained]
    layer = steering.saes[-1].layer
    own = summary is None

    def work(at: int) -> dict[str, Tensor]:
        kept: dict[str, list[Tensor]] = {k: [] for k in ("gold", "scores", "shots", "means", "n")}
        apart = torch.zeros(())
        for item, text in study.readable(items[at * _AT_ONCE : (at + 1) * _AT_ONCE]):
            run = captured(study, text)
            scores = scaled_scores(study, run, scaler, position=text.readout)
            apart = torch.maximum(apart, (scores[0] - scores_of(study, run.logits)).abs().max())
            h = run.at("resid", layer)[text.readout].float().cpu()[None]
            few, used = few_shot_scores(study, item.text, prompts, counts)
            gold = (
                study.tokens.labels.index(study.dataset.labels[item.label]) if own else item.label
            )
            kept["gold"].append(torch.tensor(gold))
            kept["scores"].append(scores)
            kept["shots"].append(few)
            kept["n"].append(used)
            kept["means"].append(torch.cat([nearest_mean(h, *one) for one in means]))
        shapes = {"scores": (0, scaler.rows, labels), "shots": (0, len(counts), labels)}
        tensors = {
            k: torch.stack(v)
            if v
            else torch.zeros(shapes.get(k, (0,) if k == "gold" else (0, len(counts))))
            for k, v in kept.items()
        }
        return {**tensors, "apart": apart[None]}

    chunks = study.stage(
        f"eval {number}", -(-len(items) // _AT_ONCE), work, phase=f"judging {name or 'held-out'}"
    )
    return Evaluated(
        name=name or study.run.dataset.name,
        own=own,
        summary=summary,
        gold=chunks.joined("gold").long(),
        scores=chunks.joined("scores"),
        few_shot=chunks.joined("shots"),
        few_shot_used=chunks.joined("n").double().mean(dim=0),
        nearest=chunks.joined("means").long(),
        zero_effect=float(chunks.joined("apart").max()),
    )


def _side_effects(study: Running, steering: _Steering, trained: Trained) -> Side:
    """Edit every token of neutral passages and compare what the model expects of the next."""
    texts = [item.text for item in load_situations() if item.emotion == NEUTRAL]
    texts = sorted(texts, key=lambda text: draw(text, 0))[:_PASSAGES]
    passages = []
    for text in texts:
        try:
            passages.append(
                [token.id for token in study.read(text).tokens if token.part != "after"]
            )
        except TextError:
            continue
    found = {}
    for name, scales in zip(("targeted", "global"), settings_of(trained)[:2], strict=True):

        def work(_n: int, scales: Scales = scales) -> dict[str, Tensor]:
            values = language_cost(study, passages, steering.saes, scales)
            return {"cost": torch.tensor(values, dtype=torch.float64)}

        stage = study.stage(f"passages {trained.shots} {name}", 1, work, phase="reading passages")
        found[name] = tuple(stage.get(0)["cost"].tolist())
    return Side(shots=trained.shots, passages=len(passages), **{
        f"{name}_{kind}": found[name][n]
        for name in found
        for n, kind in enumerate(("perplexity", "divergence"))
    })  # fmt: skip


def _save(study: Running, steering: _Steering, trained: Trained) -> tuple[ScaledFeature, ...]:
    """Write the global setting of the most shots as a recipe, where a name was given."""
    saved = []
    for n, j, k in trained.features:
        sae, scale = steering.saes[n], trained.fitted[k]
        prefix = "" if sae.site == "resid" else f"{sae.site}:"
        name = f"{prefix}L{sae.layer}/{j}"
        saved.append(ScaledFeature(name, study.tokens.labels[k], scale))
    name = study.text("save").removeprefix("@")
    edits = tuple(
        f"scale {one.feature} x{one.scale:g} at readout" for one in saved if one.scale != 1
    )[:MAX_EDITS]
    if name and edits:
        model = study.run.model
        save_recipe(study.store.root, Recipe(name, study.run.fingerprint, model, edits))
    elif name:
        study.job.notice("No recipe was saved: all fitted scales are 1.")
    return tuple(saved)


def cost(study: Running) -> Cost:
    """Return the fits on the examples, and the settings and few-shot prompts of every text."""
    shots = [int(n) for n in study.numbers("shots")]
    labels = len(study.tokens.labels)
    others = len([name for name in study.text("eval").split(",") if name])
    texts = study.run.dataset.texts + others * study.number("eval_limit")
    fits = sum(labels * n * labels * 2 for n in shots) * 6
    width = sum(sae.width for sae in study.saes) / 3
    return Cost(
        forwards=fits + texts * (4 + 5 * len(shots)),
        disk_bytes=int(texts * labels * 4 * 8 * len(shots) + labels * max(shots) * width * 8),
        memory_bytes=int(labels * max(shots) * width * 8),
    )


STUDY = Implementation(run=run, report=report, cost=cost)
