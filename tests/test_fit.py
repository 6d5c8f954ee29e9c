"""Fitting probes: the solver, the controls and planted truths."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor

from emotui.core.emotions import LABEL_SETS
from emotui.core.engine import controls
from emotui.core.engine.capture import QuietJob
from emotui.core.engine.collect import Place, places_of
from emotui.core.engine.design import design_of
from emotui.core.engine.labelled import Labelled, LabelledText, Split
from emotui.core.engine.logistic import balanced_weights, fit_logistic
from emotui.core.engine.place_fits import PlaceFits, fit_places, scores_of
from emotui.core.engine.probe_controls import ControlTask, control_task, random_directions
from emotui.core.engine.ridge import fit_ridge
from emotui.core.errors import Cancelled
from emotui.core.records import Trust

CPU = torch.device("cpu")


# --- the solver --------------------------------------------------------------------------------


def _clusters(rows: int, width: int, classes: int, spread: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + width)
    labels = torch.randint(classes, (rows,), generator=generator)
    labels[: rows // 3] = 0  # unbalanced
    centers = spread * torch.randn(classes, width, generator=generator)
    inputs = centers[labels] + torch.randn(rows, width, generator=generator)
    return (inputs - inputs.mean(0)) / inputs.std(0), labels


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("strength", [0.001, 0.1, 1.0])
def test_the_solution_is_that_of_scikit_learn(spread: float, strength: float) -> None:
    inputs, labels = _clusters(400, 32, 7, spread)
    ours = fit_logistic(
        inputs[None], labels[None], classes=7, strength=torch.tensor(strength), tolerance=1e-5
    )
    theirs = LogisticRegression(C=strength, class_weight="balanced", max_iter=10_000, tol=1e-8)
    theirs.fit(inputs.double().numpy(), labels.numpy())
    weights = balanced_weights(labels[None], classes=7)[0].double().numpy()
    chosen = theirs.predict_log_proba(inputs.double().numpy())[np.arange(400), labels.numpy()]
    penalty = (theirs.coef_**2).sum() / (2 * strength * weights.sum())
    objective = -(chosen * weights).sum() / weights.sum() + penalty
    assert float(ours.objective) == pytest.approx(objective, abs=1e-5)
    assert torch.allclose(
        ours.weight[0, 0].T.double(), torch.from_numpy(theirs.coef_), atol=0.02 * strength**0.5
    )
    agreement = ours.logits(inputs[None])[0, 0].argmax(1).numpy() == theirs.predict(inputs.numpy())
    assert agreement.mean() > 0.99


def test_replicates_and_cells_are_fitted_as_if_alone() -> None:
    first, labels = _clusters(200, 16, 4, 0.5)
    second = first.flip(1) * 0.5 + torch.randn(
        first.shape, generator=torch.Generator().manual_seed(1)
    )
    replicates = torch.stack([labels, labels.roll(7)])
    strengths = torch.tensor([[0.01, 1.0], [0.1, 0.001]])
    together = fit_logistic(
        torch.stack([first, second]), replicates, classes=4, strength=strengths, tolerance=1e-5
    )
    for cell, inputs in enumerate((first, second)):
        for replicate in range(2):
            alone = fit_logistic(
                inputs[None],
                replicates[replicate][None],
                classes=4,
                strength=strengths[cell, replicate],
                tolerance=1e-5,
            )
            assert torch.allclose(
                together.logits(torch.stack([first, second]))[cell, replicate],
                alone.logits(inputs[None])[0, 0],
                atol=5e-3,
            )
            assert float(together.objective[cell, replicate]) == pytest.approx(
                float(alone.objective), abs=1e-5
            )


def test_rows_without_weight_play_no_part() -> None:
    inputs, labels = _clusters(300, 16, 5, 0.4)
    keep = torch.arange(300) % 3 != 0
    weights = balanced_weights(labels[None], classes=5, keep=keep[None])
    strength = torch.tensor(0.1)
    masked = fit_logistic(
        inputs[None], labels[None], classes=5, strength=strength, weights=weights, tolerance=1e-5
    )
    removed = fit_logistic(
        inputs[None, keep], labels[None, keep], classes=5, strength=strength, tolerance=1e-5
    )
    assert torch.allclose(masked.weight, removed.weight, atol=2e-3)
    assert float(masked.objective) == pytest.approx(float(removed.objective), abs=1e-5)


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    assert balanced_weights(labels[None], classes=3)[0].tolist() == pytest.approx(
        [6 / (3 * 3)] * 3 + [6 / 3] + [6 / (3 * 2)] * 2
    )


def test_a_fit_is_the_same_twice_and_can_be_cancelled() -> None:
    inputs, labels = _clusters(200, 16, 4, 0.5)

    def once() -> Tensor:
        strength = torch.tensor([0.01])
        return fit_logistic(inputs[None], labels[None], classes=4, strength=strength).weight

    assert torch.equal(once(), once())

    def cancel() -> None:
        raise Cancelled("cancelled")

    with pytest.raises(Cancelled):
        fit_logistic(
            inputs[None], labels[None], classes=4, strength=torch.tensor([0.01]), check=cancel
        )


# --- the controls ------------------------------------------------------------------------------


def test_balanced_accuracy_is_that_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (90,), generator=generator)
    labels[labels == 3] = 2  # a class that does not occur
    predicted = torch.randint(5, (4, 90), generator=generator)
    found = controls.balanced_accuracy(predicted, labels, classes=5)
    for row in range(4):
        members = labels != 3
        expected = np.mean(
            [(predicted[row][labels == k] == k).float().mean() for k in (0, 1, 2, 4)]
        )
        assert float(found[row]) == pytest.approx(expected)
        assert members.all()
    everything = torch.randint(3, (60,), generator=generator)
    guess = torch.randint(3, (60,), generator=generator)
    assert float(controls.balanced_accuracy(guess, everything, classes=3)) == pytest.approx(
        balanced_accuracy_score(everything.numpy(), guess.numpy())
    )


def test_the_error_of_a_margin_is_that_of_the_bootstrap() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(140) % 7
    right = torch.rand(140, generator=generator)
    predicted = torch.where(right < 0.6, labels, (labels + 1) % 7)
    rival = torch.where(
        right + torch.rand(140, generator=generator) < 0.8, labels, (labels + 2) % 7
    )
    margin, error = controls.margin(predicted[None], rival, labels, classes=7)
    expected = controls.balanced_accuracy(predicted, labels, classes=7)
    expected = expected - controls.balanced_accuracy(rival, labels, classes=7)
    assert float(margin) == pytest.approx(float(expected))
    draws = []
    by_class = [torch.nonzero(labels == k).squeeze(1) for k in range(7)]
    for _ in range(2000):
        rows = torch.cat(
            [members[torch.randint(20, (20,), generator=generator)] for members in by_class]
        )
        difference = (predicted[rows] == labels[rows]).float() - (
            rival[rows] == labels[rows]
        ).float()
        draws.append(float(difference.mean()))
    assert float(error) == pytest.approx(float(np.std(draws)), rel=0.1)


def test_chance_pays_for_looking_at_every_layer() -> None:
    accuracies = torch.rand(10, 2000, generator=torch.Generator().manual_seed(0))
    mean, high = controls.chance_level(accuracies)
    assert mean == pytest.approx(10 / 11, abs=0.01)  # the mean of the largest of ten
    assert high == pytest.approx(0.95 ** (1 / 10), abs=0.01)


@pytest.mark.parametrize(
    ("accuracy", "bag_margin", "expected"),
    [
        (0.2, 0.5, "untrusted"),
        (0.5, 0.04, "lexical"),
        (0.5, -0.1, "lexical"),
        (0.5, 0.06, "trusted"),
    ],
)
def test_the_verdict(accuracy: float, bag_margin: float, expected: Trust) -> None:
    found = controls.verdict(
        accuracy=accuracy, shuffled_95=0.3, bag_margin=bag_margin, bag_error=0.05
    )
    assert found == expected


def test_length_bins_cover_every_text_once() -> None:
    lengths = [10, 30, 20, 20, 20, *range(40, 200)]
    bins = controls.length_bins(lengths)
    assert len(bins) == 4
    assert sorted(text for _, members in bins for text in members) == list(range(len(lengths)))
    longest = 0
    for upper, members in bins:
        sizes = [lengths[text] for text in members]
        assert longest < min(sizes)
        assert max(sizes) == upper
        longest = upper
    assert controls.length_bins([5] * 90) == [(5, list(range(90)))]


# --- planted truths ----------------------------------------------------------------------------

LAYERS, WIDTH, FROM = 6, 24, 3


def _planted_texts() -> Labelled:
    texts = []
    for topic in range(40):
        split: Split = "test" if topic < 6 else "dev" if topic < 12 else "train"
        for label in range(7):
            for copy in range(4):
                named = copy % 2 == 0
                text = LabelledText(f"{topic} {label} {copy}", label, split, named, str(topic))
                texts.append(text)
    return Labelled(tuple(texts), LABEL_SETS["ekman7"], "planted")


def _planted(data: Labelled, seed: int, *, lexical: float = 0.6) -> tuple[Tensor, Tensor]:
    """Vectors of both kinds in which the label arrives from the context at layer 3.

    The embeddings know it a little (more where the text is named). Attention brings it in layer 3
    alone, the MLP never; at the readout nothing is known before.
    """
    generator = torch.Generator().manual_seed(seed)
    places = places_of(LAYERS)
    labels = torch.tensor([text.label for text in data.texts])
    named = torch.tensor([2.0 if text.named else 1.0 for text in data.texts])
    words = torch.randn(7, WIDTH, generator=generator) * lexical
    context = torch.randn(7, WIDTH, generator=generator)

    def noise(size: float = 1.0) -> Tensor:
        return size * torch.randn(len(labels), WIDTH, generator=generator)

    embedding = words[labels] * named[:, None] + noise()
    from_context = context[labels] + noise(0.3)
    token = torch.empty(len(places), len(labels), WIDTH)
    readout = torch.empty(len(places), len(labels), WIDTH)
    for index, (site, layer) in enumerate(places):
        arrived = from_context if layer >= FROM else torch.zeros_like(embedding)
        if site == "resid":
            token[index] = embedding + arrived + noise(0.5 if layer >= 0 else 0.0)
            readout[index] = 3.0 + arrived + noise(0.5 if layer >= 0 else 0.0)
        else:
            brought = from_context if (site, layer) == ("attn", FROM) else noise()
            token[index] = brought + noise(0.5)
            readout[index] = brought + noise(0.5)
    return readout, token


def _trusts(data: Labelled, readout: Tensor, token: Tensor) -> tuple[dict[str, list[Trust]], ...]:
    design = design_of(data, seed=0)
    places = places_of(LAYERS)

    def fits(inputs: Tensor) -> PlaceFits:
        return fit_places(inputs, design, seed=0, job=QuietJob(), phase="", device=CPU)

    token_fits = fits(token)
    bag = token_fits.predicted[places.index(("resid", -1))]
    found = []
    for fitted in (fits(readout), token_fits):
        by_site: dict[str, list[Trust]] = {}
        for score in scores_of(fitted, bag, places, design):
            by_site.setdefault(score.site, []).append(score.trust)
        found.append(by_site)
    return tuple(found)


def test_probes_are_trusted_exactly_from_the_planted_layer_on() -> None:
    data = _planted_texts()
    readout, token = _trusts(data, *_planted(data, seed=1))
    above, attention = LAYERS - FROM, ["untrusted"] * LAYERS
    attention[FROM] = "trusted"
    assert token["resid"] == ["lexical"] * (1 + FROM) + ["trusted"] * above
    assert readout["resid"] == ["untrusted"] * (1 + FROM) + ["trusted"] * above
    assert token["attn"] == readout["attn"] == attention
    assert token["mlp"] == readout["mlp"] == ["untrusted"] * LAYERS


@pytest.mark.parametrize("seed", range(3))
def test_a_corpus_with_shuffled_labels_gives_no_trusted_cell(seed: int) -> None:
    data = _planted_texts()
    vectors = _planted(data, seed=1)
    order = torch.randperm(len(data.texts), generator=torch.Generator().manual_seed(seed))
    wrong = [data.texts[other].label for other in order.tolist()]
    texts = tuple(
        LabelledText(text.text, label, text.split, text.named, text.group)
        for text, label in zip(data.texts, wrong, strict=True)
    )
    for found in _trusts(Labelled(texts, data.emotions, "shuffled"), *vectors):
        assert all("trusted" not in trusts for trusts in found.values())


def test_judged_on_the_texts_without_emotion_words_or_on_another_source() -> None:
    data = _planted_texts()
    design = design_of(data, seed=0)
    assert design.judged_on == "held-out texts without emotion words"
    assert all(
        data.texts[row].split == "test" and not data.texts[row].named
        for row in design.judged.tolist()
    )
    extra = tuple(LabelledText(f"other {n}", n % 7, "other", True, "x") for n in range(70))
    design = design_of(Labelled(data.texts + extra, data.emotions, "two"), seed=0)
    assert design.judged_on == "texts of another source"
    assert design.judged.tolist() == list(range(len(data.texts), len(data.texts) + 70))
    assert not set(design.neutral.tolist()) & set(design.judged.tolist())


def test_folds_never_part_a_topic_and_never_hold_a_held_out_text() -> None:
    data = _planted_texts()
    folds = design_of(data, seed=3).folds.tolist()
    by_topic: dict[str, set[int]] = {}
    for text, fold in zip(data.texts, folds, strict=True):
        assert (fold >= 0) == (text.split == "train")
        by_topic.setdefault(text.group, set()).add(fold)
    assert all(len(found) == 1 for found in by_topic.values())
    assert {fold for fold in folds if fold >= 0} == set(range(5))


def test_out_of_fold_probes_never_saw_the_fold() -> None:
    data = _planted_texts()
    design = design_of(data, seed=0)
    readout, _ = _planted(data, seed=1)
    chosen = readout[[4]]
    fits = fit_places(chosen, design, seed=0, job=QuietJob(), phase="", device=CPU)
    outside = (design.folds >= 0) & (design.folds != 2)
    inputs = chosen[0, outside]
    train = chosen[0, design.train]
    standard = (inputs - train.mean(0)) / train.std(0)
    theirs = LogisticRegression(
        C=float(fits.strength), class_weight="balanced", max_iter=10_000, tol=1e-8
    ).fit(standard.numpy(), design.labels[outside].numpy())
    neutral = design.neutral[design.folds[design.neutral] == 2]
    h = chosen[0, neutral]
    logits = (h - fits.center[0]) @ fits.fold_weight[0, 2] + fits.fold_bias[0, 2]
    expected = theirs.predict_proba(((h - train.mean(0)) / train.std(0)).numpy())
    assert len(neutral) > 20
    assert torch.softmax(logits, dim=1).numpy() == pytest.approx(expected, abs=0.01)


# --- the preview -------------------------------------------------------------------------------


def test_the_ridge_preview_is_linear_discriminant_analysis_with_a_shrunk_total_covariance() -> None:
    inputs, labels = _clusters(300, 24, 4, 0.6)
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
    inputs, labels = _clusters(200, 16, 4, 0.5)
    strengths = torch.tensor([[0.01, 1.0]])

    def fitted() -> Tensor:
        fit = fit_logistic(
            inputs[None], labels.expand(2, -1), classes=4, strength=strengths, tolerance=1e-5
        )
        return fit.objective

    quick = fitted()
    monkeypatch.setattr("emotui.core.engine.logistic._INVERSE_VALUES", 0)
    assert torch.allclose(quick, fitted(), atol=1e-5)


# --- the control task and random directions ----------------------------------------------------


def _first_words(count: int) -> Labelled:
    """Texts whose first words recur in every split."""
    texts = _planted_texts().texts
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
    data = _planted_texts()
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
