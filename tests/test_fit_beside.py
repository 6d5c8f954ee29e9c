"""What is fitted beside the probes: the preview, the control task, random directions."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from support_fit import clusters, planted_texts
from torch import Tensor

from emotui.core.emotions import LABEL_SETS
from emotui.core.engine.capture import QuietJob
from emotui.core.engine.collect import Place
from emotui.core.engine.design import design_of
from emotui.core.engine.labelled import Labelled, LabelledText
from emotui.core.engine.logistic import fit_logistic
from emotui.core.engine.place_fits import fit_places, scores_of
from emotui.core.engine.probe_controls import ControlTask, control_task, random_directions
from emotui.core.engine.ridge import fit_ridge

CPU = torch.device("cpu")


# --- the preview -------------------------------------------------------------------------------


def test_the_ridge_preview_is_linear_discriminant_analysis_with_a_shrunk_total_covariance() -> None:
    inputs, labels = clusters(300, 24, 4, 0.6)
    keep = torch.arange(300) % 4 != 0
    found = fit_ridge(
        inputs[None], labels.expand(2, -1), classes=4, keep=torch.stack([keep, ~keep | keep])
    )
    for replicate, rows in enumerate((keep, torch.ones(300, dtype=torch.bool))):
        x, y = inputs[rows].double().numpy(), labels[rows].numpy()
        gram = x.T @ x / len(x)
        gram += 0.1 * np.trace(gram) / 24 * np.eye(24)
        for label in range(4):
            mean = x[y == label].mean(0)
            weight = np.linalg.solve(gram, mean - x.mean(0))
            bias = -weight @ (mean + x.mean(0)) / 2
            assert np.allclose(found.weight[0, replicate, :, label].numpy(), weight, atol=1e-4)
            assert float(found.bias[0, replicate, label]) == pytest.approx(bias, abs=1e-4)
    exact = fit_logistic(inputs[None], labels[None], classes=4, strength=torch.tensor(0.1))
    right = [(fit.logits(inputs[None])[0, -1].argmax(1) == labels) for fit in (found, exact)]
    assert float(right[0].float().mean()) > float(right[1].float().mean()) - 0.15


def test_wide_inputs_are_fitted_without_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, labels = clusters(200, 16, 4, 0.5)
    strengths = torch.tensor([[0.01, 1.0]])

    def fitted() -> Tensor:
        fit = fit_logistic(
            inputs[None], labels.expand(2, -1), classes=4, strength=strengths, tolerance=1e-5
        )
        return fit.objective

    quick = fitted()
    monkeypatch.setattr("emotui.core.engine.logistic_problem._INVERSE_VALUES", 0)
    assert torch.allclose(quick, fitted(), atol=1e-5)


# --- the control task and random directions ----------------------------------------------------


def _first_words(count: int) -> Labelled:
    """Texts whose first words recur in every split."""
    texts = planted_texts().texts
    return Labelled(
        tuple(
            LabelledText(f"w{n % count} and more", t.label, t.split, t.named, t.group)
            for n, t in enumerate(texts)
        ),
        LABEL_SETS["ekman7"],
        "first words",
    )


def _task(data: Labelled) -> ControlTask | None:
    design = design_of(data, seed=0)
    return control_task(
        [text.text for text in data.texts],
        design.labels,
        train=design.train,
        held_out=design.subsets["test"],
        classes=7,
        seed=0,
    )


def test_control_labels_follow_from_the_first_word_alone() -> None:
    data = _first_words(40)
    task = _task(data)
    assert task is not None and task.words == 40
    design = design_of(data, seed=0)
    assert set(task.judged.tolist()) == set(design.subsets["test"].tolist())
    for drawn in task.labels.tolist():
        by_word: dict[str, set[int]] = {}
        for text, label in zip(data.texts, drawn, strict=True):
            by_word.setdefault(text.text.split()[0], set()).add(label)
        assert all(len(labels) == 1 for labels in by_word.values())
    assert len({tuple(drawn) for drawn in task.labels.tolist()}) == len(task.labels)


def test_only_held_out_texts_whose_first_word_was_trained_on_are_judged() -> None:
    data = _first_words(40)
    texts = list(data.texts)
    new = next(n for n, text in enumerate(texts) if text.split == "test")
    texts[new] = msgspec.structs.replace(texts[new], text="unheard of")
    task = _task(Labelled(tuple(texts), data.emotions, "new"))
    assert task is not None and new not in task.judged.tolist()


@pytest.mark.parametrize("count", [1, 100_000])
def test_without_first_words_that_recur_there_is_no_control_task(count: int) -> None:
    assert _task(_first_words(count)) is None


def test_a_probe_that_knows_words_has_no_selectivity_and_one_that_knows_labels_has() -> None:
    data = _first_words(40)
    design, task = design_of(data, seed=0), _task(data)
    assert task is not None
    generator = torch.Generator().manual_seed(3)
    words = torch.eye(40).repeat(len(data.texts) // 40 + 1, 1)[: len(data.texts)]
    meant = torch.nn.functional.one_hot(design.labels, 40).float()
    inputs = torch.stack([words, 3 * meant]) + 0.1 * torch.randn(
        2, len(data.texts), 40, generator=generator
    )
    places: tuple[Place, ...] = (("resid", 0), ("resid", 1))
    fits = fit_places(
        inputs, design, seed=0, job=QuietJob(), phase="", device=CPU, task=task, directions=True
    )
    by_word, by_label = scores_of(fits, fits.predicted[0], places, design)
    assert by_word.control_accuracy is not None and by_word.control_accuracy > 0.95
    assert by_word.selectivity is not None and by_word.selectivity < -0.7
    assert by_label.control_accuracy is not None and by_label.control_accuracy < 0.35
    assert by_label.selectivity is not None and by_label.selectivity > 0.6
    # Independent: scikit-learn on the labels of the control task, at the probe's penalty.
    train, judged = design.train, task.judged
    standard = (inputs[1] - inputs[1, train].mean(0)) / inputs[1, train].std(0)
    theirs = []
    for drawn in task.labels:
        model = LogisticRegression(
            C=float(fits.strength[1]), class_weight="balanced", max_iter=10_000, tol=1e-6
        ).fit(standard[train].numpy(), drawn[train].numpy())
        guess = model.predict(standard[judged].numpy())
        theirs.append(balanced_accuracy_score(drawn[judged].numpy(), guess))
    assert by_label.control_accuracy == pytest.approx(np.mean(theirs), abs=0.03)


def test_random_directions_read_less_and_nothing_where_only_the_probe_sees() -> None:
    """At layer 0 the labels lie in seven of 64 coordinates: without them nothing is left."""
    data = planted_texts()
    design = design_of(data, seed=0)
    generator = torch.Generator().manual_seed(4)
    n = len(data.texts)
    lone = torch.randn(n, 64, generator=generator)
    lone[:, :7] += 4 * torch.nn.functional.one_hot(design.labels, 7)
    many = torch.randn(n, 64, generator=generator)
    many += 3 * torch.randn(7, 64, generator=generator)[design.labels]
    inputs = torch.stack([lone, many])
    fits = fit_places(inputs, design, seed=0, job=QuietJob(), phase="", device=CPU, directions=True)
    found = scores_of(fits, fits.predicted[0], (("resid", 0), ("resid", 1)), design)
    assert all(score.control_accuracy is None and score.selectivity is None for score in found)
    for score in found:
        assert score.random_accuracy is not None and score.orthogonal_accuracy is not None
        assert score.orthogonal_accuracy < score.random_accuracy < score.balanced_accuracy
    assert found[0].orthogonal_accuracy is not None and found[0].orthogonal_accuracy < 0.3
    # Independent: the same drawings, through scikit-learn.
    for row, score in enumerate(found):
        theirs = []
        for draw in range(5):
            directions = torch.randn(64, 7, generator=torch.Generator().manual_seed(draw))
            along = inputs[row] @ (directions / directions.norm(dim=0))
            standard = (along - along[design.train].mean(0)) / along[design.train].std(0)
            strength = float(fits.strength[row])
            model = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000)
            model.fit(standard[design.train].numpy(), design.labels[design.train].numpy())
            guess = model.predict(standard[design.judged].numpy())
            theirs.append(balanced_accuracy_score(design.labels[design.judged].numpy(), guess))
        assert score.random_accuracy == pytest.approx(np.mean(theirs), abs=0.04)


def test_random_directions_without_a_probe_are_orthogonal_to_it() -> None:
    without = torch.randn(32, 5, generator=torch.Generator().manual_seed(1))
    found = random_directions(
        32, 4, generator=torch.Generator().manual_seed(2), without=without
    ).double()
    assert float((without.T.double() @ found).abs().max()) < 1e-5
    assert torch.allclose(found.norm(dim=0), torch.ones(4, dtype=torch.float64), atol=1e-6)
