"""What the study `steer` finds: every method on every dataset, and which gains may be claimed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor

from emotui.core.studies.common.dataset import DatasetSummary
from emotui.core.studies.common.statistics import balanced

MATCHED_DRAWS = 3
DRAWS = 2000
STEERED = ("targeted", "global")
BASELINES = ("none", "logit bias", "few-shot")


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """What was chosen on the training examples of one number of shots."""

    shots: int
    examples: int
    """Labels with few texts give fewer than `shots`."""
    features: tuple[tuple[int, int, int], ...]
    """SAE (of the last third, from 0), feature and label of each."""
    effects: tuple[float, ...]
    """Of ablating each alone, on the examples of its label."""
    matched: tuple[tuple[int, int, int, int], ...]
    """Draw, SAE, feature and label."""
    targeted: tuple[float, ...]
    """Scale of each label."""
    fitted: tuple[float, ...]
    drawn: tuple[tuple[float, ...], ...]
    """Scales of each draw of matched features."""
    penalty: float
    bias: tuple[float, ...]


class ScaledFeature(msgspec.Struct, frozen=True):
    """One feature of the last setting."""

    feature: str
    label: str
    scale: float


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """What scaling does to other texts, every token of these edited."""

    shots: int
    passages: int
    targeted_perplexity: float
    """Ratio of perplexities."""
    targeted_divergence: float
    """Mean KL of the next token."""
    global_perplexity: float
    global_divergence: float


class Scored(msgspec.Struct, frozen=True, kw_only=True):
    """One method on one dataset."""

    dataset: str
    shots: int
    """0 for no edit."""
    method: str
    accuracy: float
    balanced_accuracy: float
    low: float
    """95 % interval of it over texts."""
    high: float
    macro_f1: float
    recall: tuple[float | None, ...]
    """By label; None without texts of it."""
    mcnemar: float | None
    """Two-sided exact p against no edit; None for the mean over draws."""


class Gain(msgspec.Struct, frozen=True, kw_only=True):
    """One way of steering on one dataset against everything it must beat."""

    dataset: str
    shots: int
    method: str
    over: dict[str, float]
    """Balanced accuracy less that of each baseline, and of `matched`."""
    best: str
    """The best of no edit, logit bias and few-shot."""
    low: float
    high: float
    """Paired interval of the difference to that one: 95 % for all settings on all datasets at once
    (Bonferroni), since several are tried."""
    matched_low: float | None = None
    matched_high: float | None = None
    """The same of the difference to the mean of the draws of matched features."""
    claimed: bool
    """Both intervals are above 0; and it beats all four."""


class EvaluatedSet(msgspec.Struct, frozen=True, kw_only=True):
    """One dataset the methods were judged on."""

    name: str
    own: bool
    """The dataset that the training examples were drawn from."""
    texts: int
    labels: dict[str, int]
    summary: DatasetSummary | None
    few_shot_used: tuple[float, ...]
    """Mean number of examples that fitted into the context, by number of shots."""
    zero_effect: float
    """Largest change of a score by scales of 1: rounding."""


class SteerResult(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    labels: tuple[str, ...]
    layers: tuple[int, ...]
    trained: tuple[Trained, ...]
    datasets: tuple[EvaluatedSet, ...]
    scored: tuple[Scored, ...]
    gains: tuple[Gain, ...]
    sides: tuple[Side, ...]
    setting: tuple[ScaledFeature, ...]
    """The global setting of the most shots, as `--save` writes it."""


@dataclass(frozen=True)
class Evaluated:
    """The scores of one dataset; n texts, `shots` numbers of examples."""

    name: str
    own: bool
    summary: DatasetSummary | None
    gold: Tensor
    """[n], of the label set."""
    scores: Tensor
    """[n, 1 + shots * (2 + draws), labels]: no edit, then targeted, global and the draws."""
    few_shot: Tensor
    """[n, shots, labels]."""
    few_shot_used: Tensor
    """[shots]."""
    nearest: Tensor
    """[n, shots]: the label of the nearest class mean."""
    zero_effect: float


def measure(
    evaluated: Sequence[Evaluated],
    *,
    trained: tuple[Trained, ...],
    sides: tuple[Side, ...],
    labels: tuple[str, ...],
    layers: tuple[int, ...],
    saved: tuple[ScaledFeature, ...],
    generator: torch.Generator,
) -> SteerResult:
    """Compare all methods on all datasets."""
    scored: list[Scored] = []
    gains: list[Gain] = []
    compared = len(trained) * len(STEERED) * sum(len(one.gold) > 0 for one in evaluated)
    for one in evaluated:
        if not len(one.gold):
            continue
        methods = _methods(one, trained)
        # The same draws of texts for every method, so that differences are paired.
        draws = _drawn(len(one.gold), generator)
        drawn = {
            key: _resampled(answers == one.gold, one.gold, draws, len(labels))
            for key, answers in methods.items()
        }
        for key, answers in methods.items():
            scored.append(_scored(one, key, answers, drawn[key], methods[0, "none"][0], labels))
        for shots in (t.shots for t in trained):
            gains += [
                _gain(one, shots, method, methods, drawn, labels, compared=compared)
                for method in STEERED
            ]
    return SteerResult(
        labels=labels,
        layers=layers,
        trained=trained,
        datasets=tuple(_dataset(one, labels) for one in evaluated),
        scored=tuple(scored),
        gains=tuple(gains),
        sides=sides,
        setting=saved,
    )


Methods = dict[tuple[int, str], Tensor]
"""Shots and method to answers [draws, n]; one draw for all but `matched`."""


def _methods(one: Evaluated, trained: Sequence[Trained]) -> Methods:
    found: Methods = {(0, "none"): one.scores[:, 0].argmax(dim=1)[None]}
    width = 2 + MATCHED_DRAWS
    for number, fit in enumerate(trained):
        answers = one.scores[:, 1 + number * width : 1 + (number + 1) * width].argmax(dim=2).T
        biased = one.scores[:, 0] + torch.tensor(fit.bias)
        found |= {
            (fit.shots, "targeted"): answers[0][None],
            (fit.shots, "global"): answers[1][None],
            (fit.shots, "matched"): answers[2:],
            (fit.shots, "logit bias"): biased.argmax(dim=1)[None],
            (fit.shots, "few-shot"): one.few_shot[:, number].argmax(dim=1)[None],
            (fit.shots, "nearest mean"): one.nearest[:, number][None],
        }
    return found


def _drawn(n: int, generator: torch.Generator) -> Tensor:
    """Return how often each of n texts is drawn [draws, n], float64."""
    rows = torch.randint(n, (DRAWS, n), generator=generator)
    ones = torch.ones(DRAWS, n, dtype=torch.float64)
    return torch.zeros(DRAWS, n, dtype=torch.float64).scatter_add_(1, rows, ones)


def _resampled(right: Tensor, gold: Tensor, draws: Tensor, labels: int) -> Tensor:
    """Return the balanced accuracy [draws] of `right` [answers, n] bool in each draw."""
    members = torch.nn.functional.one_hot(gold, labels).double()
    hits = draws @ (right.double().mean(dim=0)[:, None] * members)
    return (hits / (draws @ members)).nanmean(dim=1)


def _balanced(answers: Tensor, gold: Tensor, labels: int) -> Tensor:
    """Return the mean over draws of the balanced accuracy of `answers` [draws, n]."""
    return balanced(answers == gold, gold, classes=labels).mean()


def _scored(
    one: Evaluated,
    key: tuple[int, str],
    answers: Tensor,
    drawn: Tensor,
    unedited: Tensor,
    labels: tuple[str, ...],
) -> Scored:
    gold = one.gold
    low, high = drawn.quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    right = (answers == gold).double().mean(dim=0)
    recall = [right[gold == k].mean() for k in range(len(labels))]
    return Scored(
        dataset=one.name,
        shots=key[0],
        method=key[1],
        accuracy=float(right.mean()),
        balanced_accuracy=float(_balanced(answers, gold, len(labels))),
        low=low,
        high=high,
        macro_f1=sum(macro_f1(row, gold) for row in answers) / len(answers),
        recall=tuple(None if bool(value.isnan()) else float(value) for value in recall),
        mcnemar=None if len(answers) > 1 else mcnemar(unedited == gold, answers[0] == gold),
    )


def _gain(
    one: Evaluated,
    shots: int,
    method: str,
    methods: Methods,
    drawn: dict[tuple[int, str], Tensor],
    labels: tuple[str, ...],
    *,
    compared: int,
) -> Gain:
    def score(key: tuple[int, str]) -> float:
        return float(_balanced(methods[key], one.gold, len(labels)))

    keys = {name: (0 if name == "none" else shots, name) for name in (*BASELINES, "matched")}
    own = score((shots, method))
    over = {name: own - score(key) for name, key in keys.items()}
    best = max(BASELINES, key=lambda name: score(keys[name]))
    apart = drawn[shots, method] - drawn[keys[best]]
    tail = 0.025 / compared
    ends = torch.tensor([tail, 1 - tail]).double()
    low, high = apart.quantile(ends).tolist()
    to_matched = drawn[shots, method] - drawn[shots, "matched"]
    matched_low, matched_high = to_matched.quantile(ends).tolist()
    return Gain(
        dataset=one.name,
        shots=shots,
        method=method,
        over=over,
        best=best,
        low=low,
        high=high,
        matched_low=matched_low,
        matched_high=matched_high,
        claimed=min(low, matched_low) > 0 and all(value > 0 for value in over.values()),
    )


def macro_f1(answers: Tensor, gold: Tensor) -> float:
    """Return the mean F1 over the labels of `gold`; answers [n]."""
    found = []
    for label in torch.unique(gold).tolist():
        both = int(((answers == label) & (gold == label)).sum())
        total = int((answers == label).sum()) + int((gold == label).sum())
        found.append(2 * both / total)
    return sum(found) / len(found)


def mcnemar(before: Tensor, after: Tensor) -> float:
    """Return the two-sided exact p that as many texts turned right as wrong; [n] bool each."""
    won, lost = int((~before & after).sum()), int((before & ~after).sum())
    n, fewer = won + lost, min(won, lost)
    if not n:
        return 1.0
    return float(min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n))


def _dataset(one: Evaluated, labels: tuple[str, ...]) -> EvaluatedSet:
    counts = torch.bincount(one.gold, minlength=len(labels)).tolist()
    return EvaluatedSet(
        name=one.name,
        own=one.own,
        texts=len(one.gold),
        labels={label: n for label, n in zip(labels, counts, strict=True) if n},
        summary=one.summary,
        few_shot_used=tuple(one.few_shot_used.nan_to_num(0).tolist()),
        zero_effect=one.zero_effect,
    )
