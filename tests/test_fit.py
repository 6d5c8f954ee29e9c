"""Fitting probes: the solver, the controls, planted truths, and reading labelled files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from support_models import tiny_model
from torch import Tensor

from emotui.core.engine import controls
from emotui.core.engine.capture import QuietJob, capture
from emotui.core.engine.collect import Collected, batches, collect, places_of
from emotui.core.engine.design import design_of
from emotui.core.engine.labelled import Labelled, LabelledText, Split, labelled_texts
from emotui.core.engine.logistic import balanced_weights, fit_logistic
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.place_fits import PlaceFits, fit_places, scores_of
from emotui.core.errors import Cancelled, UsageError
from emotui.core.protocol import ModelSpec
from emotui.core.records import TextRecord, Trust
from emotui.core.text import template_named

CPU = torch.device("cpu")
EKMAN7 = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")


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
    return Labelled(tuple(texts), EKMAN7, "planted")


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


# --- collecting --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(stories: Path) -> LoadedModel:
    return load_model(ModelSpec(model=str(stories)), QuietJob())


def _records(model: LoadedModel, template: str, count: int = 24) -> list[TextRecord]:
    data = labelled_texts(label_set="ekman7", data=None)
    return [
        model.reader.read(t.text, template_named(template)) for t in data.texts[:: 1120 // count]
    ]


def test_batches_hold_every_text_once_and_one_length_each() -> None:
    lengths = [5, 7, 5, 5, 3000, 7, *[2000] * 5]
    found = list(batches(lengths))
    assert sorted(text for members in found for text in members) == list(range(len(lengths)))
    assert all(len({lengths[text] for text in members}) == 1 for members in found)
    assert max(len(m) * lengths[m[0]] for m in found) <= 4096


def _same_as_alone(model: LoadedModel, texts: list[TextRecord]) -> None:
    collected = collect(model, texts, job=QuietJob())
    assert collected.places == places_of(model.n_layers)
    for row, text in enumerate(texts):
        alone = capture(model, [token.id for token in text.tokens], all_sites=True)
        inside = [p for p, token in enumerate(text.tokens) if token.part == "text"]
        for place, (site, layer) in enumerate(collected.places):
            h = alone.at(site, layer)
            assert torch.allclose(collected.readout[place, row], h[text.readout], atol=2e-5)
            assert torch.allclose(collected.mean[place, row], h[inside].mean(0), atol=2e-5)


@pytest.mark.parametrize("template", ["ask", "tak3"])
def test_batches_give_the_numbers_of_single_runs(model: LoadedModel, template: str) -> None:
    texts = _records(model, template)
    assert 5 < len({len(text.tokens) for text in texts}) < len(texts)
    _same_as_alone(model, texts)


@pytest.mark.parametrize("family", ["gemma2", "gpt2"])
def test_batches_give_the_numbers_of_single_runs_in_other_shapes(family: str) -> None:
    other = tiny_model(family)
    words = ["The bus came at nine.", "My dog died last week.", "He shouted at me.", "It is quiet."]
    texts = [other.reader.read(word, template_named("ask")) for word in [*words, *words[::-1]]]
    _same_as_alone(other, texts)


def test_collecting_can_be_cancelled_and_leaves_no_hook(model: LoadedModel) -> None:
    class Impatient(QuietJob):
        calls = 0

        def check(self) -> None:
            self.calls += 1
            if self.calls > 12:
                raise Cancelled("cancelled")

    with pytest.raises(Cancelled):
        collect(model, _records(model, "ask"), job=Impatient())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())


@pytest.fixture(scope="module")
def collected(model: LoadedModel) -> tuple[Labelled, Collected]:
    data = labelled_texts(label_set="ekman7", data=None)
    texts = [model.reader.read(text.text, template_named("ask")) for text in data.texts]
    return data, collect(model, texts, job=QuietJob())


def test_one_cell_of_a_real_model_is_that_of_scikit_learn(
    collected: tuple[Labelled, Collected],
) -> None:
    data, vectors = collected
    design = design_of(data, seed=0)
    place = vectors.places.index(("resid", 2))
    inputs = vectors.mean[[place]]
    fits = fit_places(inputs, design, seed=0, job=QuietJob(), phase="", device=CPU)
    train = inputs[0, design.train].double()
    standard = ((inputs[0].double() - train.mean(0)) / train.std(0)).numpy()
    strength = float(fits.strength)
    theirs = LogisticRegression(C=strength, class_weight="balanced", max_iter=10_000, tol=1e-8)
    theirs.fit(standard[design.train], design.labels[design.train].numpy())
    held_out = design.subsets["test"]
    labels = design.labels[held_out].numpy()
    ours = balanced_accuracy_score(labels, fits.predicted[0, held_out].numpy())
    assert ours == pytest.approx(
        balanced_accuracy_score(labels, theirs.predict(standard[held_out])), abs=0.01
    )
    logits = (inputs[0] - fits.center[0]) @ fits.weight[0] + fits.bias[0]
    shares = torch.softmax(logits[design.train].double(), dim=1).numpy()
    rows = np.arange(len(design.train))
    targets = design.labels[design.train].numpy()
    weights = balanced_weights(design.labels[design.train][None], classes=7)[0].numpy()

    def objective(log_shares: np.ndarray, coefficients: np.ndarray) -> float:
        loss = -(log_shares[rows, targets] * weights).sum() / weights.sum()
        return float(loss + (coefficients**2).sum() / (2 * strength * weights.sum()))

    standardised = (fits.weight[0].double() * train.std(0)[:, None]).numpy()
    assert objective(np.log(shares), standardised) == pytest.approx(
        objective(theirs.predict_log_proba(standard[design.train]), theirs.coef_), abs=1e-4
    )


# --- labelled files ----------------------------------------------------------------------------


def _sentences(count: int) -> list[tuple[str, str]]:
    return [
        (f"sentence number {n} of the file, somewhat long", EKMAN7[n % 7] if n % 9 else "boredom")
        for n in range(count)
    ]


def _write(path: Path, header: tuple[str, str], rows: list[tuple[str, str]]) -> Path:
    if path.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(header, row, strict=True))) for row in rows]
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        quoted = [tuple(f'"{field}"' for field in row) for row in rows]
        lines = [separator.join(row) for row in (header, *quoted)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
@pytest.mark.parametrize("header", [("Text", "emotion"), ("column a", "column b")])
def test_columns_are_found_by_name_or_content(
    suffix: str, header: tuple[str, str], tmp_path: Path
) -> None:
    rows = _sentences(300)
    path = _write(tmp_path / f"mine{suffix}", header, rows)
    data = labelled_texts(label_set="ekman7", data=str(path))
    expected = {text: label for text, label in rows if label != "boredom"}
    assert {t.text: data.emotions[t.label] for t in data.texts} == expected
    assert f"text: {header[0]}, label: {header[1]}" in data.name
    assert f"{len(expected)} of 300 rows" in data.name
    assert str(tmp_path) not in data.name
    shares = {
        split: sum(t.split == split for t in data.texts) / len(data.texts)
        for split in ("train", "dev", "test")
    }
    assert shares == pytest.approx({"train": 0.7, "dev": 0.15, "test": 0.15}, abs=0.03)
    assert data == labelled_texts(label_set="ekman7", data=str(path))
    assert data.digest != labelled_texts(label_set="ekman7", data=str(path), seed=1).digest


def test_groups_of_a_file_are_never_parted(tmp_path: Path) -> None:
    path = tmp_path / "mine.tsv"
    lines = [f"a text {n}\t{EKMAN7[n % 7]}\ttopic {n % 31}" for n in range(700)]
    path.write_text("text\tlabel\ttopic\n" + "\n".join(lines), encoding="utf-8")
    data = labelled_texts(label_set="ekman7", data=str(path))
    splits: dict[str, set[str]] = {}
    for text in data.texts:
        splits.setdefault(text.group, set()).add(text.split)
    assert len(splits) == 31
    assert all(len(found) == 1 for found in splits.values())


def test_files_that_cannot_be_used_are_refused_and_say_why(tmp_path: Path) -> None:
    good = _write(tmp_path / "mine.tsv", ("text", "label"), _sentences(300))
    with pytest.raises(UsageError, match="could not be read"):
        labelled_texts(label_set="ekman7", data=str(tmp_path / "absent.tsv"))
    with pytest.raises(UsageError, match="no label column 'mood'") as refused:
        labelled_texts(label_set="ekman7", data=str(good), label_column="mood")
    assert "text, label" in refused.value.why
    with pytest.raises(UsageError, match="no label set called 'moods'"):
        labelled_texts(label_set="moods", data=None)
    other = _write(tmp_path / "other.tsv", ("a", "b"), [("some words", "blue")] * 50)
    with pytest.raises(UsageError, match="no column that could be the label"):
        labelled_texts(label_set="ekman7", data=str(other))
    few = _write(tmp_path / "few.tsv", ("text", "label"), _sentences(20))
    with pytest.raises(UsageError, match="too few texts"):
        labelled_texts(label_set="ekman7", data=str(few))
    (tmp_path / "bad.jsonl").write_text('{"text": "a", "label": "joy"}\n[1]\n')
    with pytest.raises(UsageError, match="Line 2"):
        labelled_texts(label_set="ekman7", data=str(tmp_path / "bad.jsonl"))


def test_the_bundled_situations_by_topic_and_label_set() -> None:
    data = labelled_texts(label_set="ekman7", data=None)
    assert data.emotions == EKMAN7
    topics = {
        split: {t.group for t in data.texts if t.split == split} for split in ("train", "test")
    }
    assert len(topics["test"]) == 6
    assert not topics["train"] & topics["test"]
    plutchik = labelled_texts(label_set="plutchik9", data=None)
    assert set(plutchik.emotions) == {*EKMAN7, "anticipation", "trust"}
    assert len(plutchik.texts) > len(data.texts)


def test_texts_of_another_source_are_set_apart(tmp_path: Path, data_dir: Path) -> None:
    file = data_dir / "crowd-envent" / "generation.csv"
    data = labelled_texts(label_set="ekman7", data=None, other=str(file))
    others = [text for text in data.texts if text.split == "other"]
    assert 1000 < len(others) <= 4000
    assert {data.emotions[text.label] for text in others} == set(EKMAN7)
    assert "generation.csv" in data.name
