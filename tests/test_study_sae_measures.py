"""The arithmetic of the studies of SAEs, on planted tensors and against scipy and scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from emotui.core.studies.feature_kinds import Groups, kinds_of, lexical_share
from emotui.core.studies.phase_curves import token_hits
from emotui.core.studies.steer_fit import (
    GRID,
    PENALTIES,
    fit_bias,
    fit_global,
    fit_targeted,
    nearest_mean,
)
from emotui.core.studies.steer_prompts import with_examples
from emotui.core.studies.steer_report import report
from emotui.core.studies.steer_results import (
    Evaluated,
    SteerResult,
    Trained,
    macro_f1,
    mcnemar,
    measure,
)
from emotui.core.studies.steer_runs import Scales
from emotui.core.text import template_named


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_feature_that_fires_once_proves_nothing() -> None:
    first = torch.tensor([True, True, False, False])
    text = torch.tensor([0, 0, 1, 2, 2, 3, 3])
    feature = torch.tensor([0, 1, 0, 0, 1, 0, 2])
    token = torch.tensor([7, 8, 7, 7, 9, 5, 6])
    hits, base, events = token_hits(text, feature, token, first)
    assert hits.tolist() == [0, 0, 1, 0], "feature 0 gives 7 away once, and 5 is none of its tokens"
    assert events.tolist() == [0, 0, 2, 1], "feature 2 never fired where choices are made"
    assert base.tolist() == [0, 0, 1, 0], "7 is the commonest token"


@pytest.fixture(scope="module")
def planted() -> tuple[torch.Tensor, Groups]:
    """60 features of noise; 0-6 fire on one label of seven each, 7-8 on negative texts, 9-10 on
    all but neutral ones; 11 on label 0 in the first half alone."""
    labels = torch.arange(280) % 7
    first = (torch.arange(280) // 7) % 2 == 0
    values = torch.rand(280, 60, generator=_generator()).sub(0.6).clamp(min=0)
    strong = torch.rand(280, 60, generator=_generator(1)) * 0.5 + 1
    negative = torch.tensor([1, 1, 1, 0, 1, 0, 0]).bool()
    for j in range(7):
        values[labels == j, j] = strong[labels == j, j]
    for j in (7, 8):
        values[negative[labels], j] = strong[negative[labels], j]
    for j in (9, 10):
        values[labels != 6, j] = strong[labels != 6, j]
    chosen = (labels == 0) & first
    values[chosen, 11] = strong[chosen, 11]
    positive = torch.tensor([0, 0, 0, 1, 0, 0, 0]).bool()
    groups = Groups(labels, 7, 6, positive, negative, first, torch.arange(280))
    return values, groups


def test_planted_features_are_found(planted: tuple[torch.Tensor, Groups]) -> None:
    values, groups = planted
    kinds = kinds_of(values, groups, shuffles=200, seed=0)
    assert kinds.specific[:7].tolist() == list(range(7)) and int((kinds.specific >= 0).sum()) == 7
    assert kinds.valence.nonzero().flatten().tolist() == [7, 8] and int(kinds.valence[7]) == -1
    assert kinds.shared.nonzero().flatten().tolist() == [9, 10]
    assert kinds.confirmed[11] < 0.7 < kinds.area[0, 11], "only half of the texts bear it out"
    assert kinds.shuffled[:, :3].sum(dim=1).mean() < 0.5


def test_lexical_share_counts_the_strongest_texts() -> None:
    values = torch.arange(40.0)[:, None].repeat(1, 2)
    words = torch.zeros(40, 2, dtype=torch.bool)
    words[30:, 0] = True  # ten of the twenty strongest
    assert lexical_share(values, words, torch.tensor([True, False])) == 0.5
    assert lexical_share(values, words, torch.tensor([False, False])) is None


def test_logit_bias_is_the_optimum_that_scipy_finds() -> None:
    scores = torch.randn(40, 5, generator=_generator()).double()
    gold = torch.randint(5, (40,), generator=_generator(1))

    def loss(bias: np.ndarray) -> float:
        shifted = scores + torch.from_numpy(bias)
        own = torch.nn.functional.cross_entropy(shifted, gold)
        return float(own + 0.01 * torch.from_numpy(bias).square().sum())

    theirs = minimize(loss, np.zeros(5), tol=1e-12).x
    assert np.allclose(fit_bias(scores.float(), gold).numpy(), theirs, atol=1e-3)


def test_a_label_that_is_written_too_weakly_is_scaled_up_and_noise_is_not() -> None:
    """Scores that are linear in the scales: label 2's evidence should count four times."""
    generator = _generator()
    gold = torch.arange(30) % 3
    evidence = torch.nn.functional.one_hot(gold, 3).float() * torch.tensor([4.0, 4.0, 1.0])
    base = torch.randn(30, 3, generator=generator) * 0.3 + torch.tensor([0.6, 0.6, 0.0])

    def score(settings: Sequence[Scales]) -> torch.Tensor:
        rows = []
        for one in settings:
            scale = torch.tensor([one.get((0, k), 1.0) for k in range(3)])
            rows.append(base + evidence * scale)
        return torch.stack(rows, dim=1)

    of, noise = {(0, k): k for k in range(3)}, {(1, k): k for k in range(3)}
    fitted = fit_global(score, gold, torch.arange(30) // 3, of, [noise], labels=3)
    assert fitted.scales[2] >= 3 and fitted.matched[0].tolist() == [1, 1, 1]
    weak = base - 3 * torch.nn.functional.one_hot(gold, 3) * torch.tensor([0, 0, 1])
    targeted = fit_targeted(score, gold, weak, of, labels=3, never=None)
    assert targeted[:2].tolist() == [1, 1] and float(targeted[2]) in GRID and targeted[2] > 1
    assert fit_targeted(score, gold, weak, of, labels=3, never=2).tolist() == [1, 1, 1]


def test_the_nearest_mean_is_found_and_absent_labels_are_not() -> None:
    means = torch.tensor([[1.0, 0.0], [0.0, 1.0], [float("nan")] * 2]).double()
    h = torch.tensor([[3.0, 0.1], [-0.2, 5.0]])
    assert nearest_mean(h, torch.zeros(2).double(), means).tolist() == [0, 1]


def test_comparisons_are_those_of_scipy_and_scikit_learn() -> None:
    before, after = torch.rand(60, generator=_generator()) < 0.5, torch.rand(60) < 0.7
    won, lost = int((~before & after).sum()), int((before & ~after).sum())
    assert mcnemar(before, after) == pytest.approx(binomtest(won, won + lost).pvalue, abs=1e-9)
    answers, gold = torch.randint(4, (60,)), torch.randint(4, (60,))
    theirs = f1_score(gold, answers, average="macro", labels=range(4), zero_division=0)
    assert macro_f1(answers, gold) == pytest.approx(theirs)


def _evaluated(right: dict[str, float], n: int = 400) -> Evaluated:
    """Return scores of two labels in which each method is right on a share of the texts."""
    gold = torch.arange(n) % 2

    def scores(share: float, seed: int) -> torch.Tensor:
        hit = torch.rand(n, generator=_generator(seed)) < share
        return torch.nn.functional.one_hot(torch.where(hit, gold, 1 - gold), 2).float()

    names = ("none", "targeted", "global", "matched", "matched", "matched")
    return Evaluated(
        name="data",
        own=True,
        summary=None,
        gold=gold,
        scores=torch.stack([scores(right[one], k) for k, one in enumerate(names)], dim=1),
        few_shot=scores(right["few-shot"], 9)[:, None],
        few_shot_used=torch.ones(1).double(),
        nearest=torch.zeros(n, 1, dtype=torch.long),
        zero_effect=0.0,
    )


@pytest.mark.parametrize(
    ("changed", "claimed"),
    [
        ({}, True),
        ({"few-shot": 0.95}, False),
        ({"matched": 0.95}, False),
        ({"matched": 0.91}, False),  # below it, but not beyond chance
        ({"none": 0.9}, False),
    ],
)
def test_a_gain_is_claimed_only_over_all_baselines(
    changed: dict[str, float], claimed: bool
) -> None:
    right = {"none": 0.5, "targeted": 0.5, "global": 0.9, "matched": 0.5, "few-shot": 0.6}
    result = _measured([_evaluated({**right, **changed})])
    by_method = {gain.method: gain.claimed for gain in result.gains}
    assert by_method == {"targeted": False, "global": claimed}


def _measured(sets: Sequence[Evaluated], **changed: Any) -> SteerResult:
    fit = Trained(
        shots=1,
        examples=2,
        features=(),
        effects=(),
        matched=(),
        targeted=(1.0, 1.0),
        fitted=(1.0, 1.0),
        drawn=((1.0, 1.0),) * 3,
        penalty=0.01,
        bias=(0.0, 0.0),
    )
    return measure(
        sets,
        trained=(msgspec.structs.replace(fit, **changed),),
        sides=(),
        labels=("joy", "anger"),
        layers=(3,),
        saved=(),
        generator=_generator(),
    )


def test_every_dataset_that_is_tried_widens_the_intervals_of_gains() -> None:
    right = {"none": 0.5, "targeted": 0.5, "global": 0.7, "matched": 0.5, "few-shot": 0.6}
    one = _evaluated(right)
    alone, among = _measured([one]).gains, _measured([one] * 8).gains
    for first, second in zip(alone, among, strict=False):
        assert second.low < first.low and second.high > first.high
        assert second.matched_low is not None and first.matched_low is not None
        assert second.matched_low < first.matched_low


def test_a_penalty_at_the_edge_and_few_texts_are_said() -> None:
    right = {"none": 0.5, "targeted": 0.5, "global": 0.7, "matched": 0.5, "few-shot": 0.6}
    sentences = " ".join(report(_measured([_evaluated(right, n=20)])).sentences)
    assert "penalty (on their distance from 1) of 0.01 with 1." in sentences
    assert "rests on few texts: joy 10, anger 10" in sentences
    edge = " ".join(report(_measured([_evaluated(right)], penalty=PENALTIES[-1])).sentences)
    assert "edge of the grid" in edge and "all scales are 1" in edge
    assert "few texts" not in edge


def test_few_shot_prompts_ask_as_the_template_does() -> None:
    shots = (("It rained.", "sadness"), ("We won.", "joy"))
    ask = with_examples(template_named("ask"), shots)
    assert ask.before + "Q." + ask.after == (
        "It rained. The emotion is sadness\nWe won. The emotion is joy\nQ. The emotion is"
    )
    tak = with_examples(template_named("tak3"), shots[:1])
    assert tak.before.endswith("Answer: sadness Context: It rained. Answer: sadness Context: ")
    assert with_examples(template_named("ask"), ()).before == ""
