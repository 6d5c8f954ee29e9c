"""What a fit is made from: labelled files as they are read, and vectors collected in batches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from support_models import tiny_model

from emotui.core.corpus import load_situations
from emotui.core.emotions import LABEL_SETS
from emotui.core.engine.capture import QuietJob, capture
from emotui.core.engine.collect import Collected, batches, collect, places_of
from emotui.core.engine.design import design_of
from emotui.core.engine.labelled import Labelled, labelled_texts, same_source
from emotui.core.engine.logistic import balanced_weights
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.place_fits import fit_places
from emotui.core.errors import Cancelled, UsageError
from emotui.core.protocol import ModelSpec
from emotui.core.records import TextRecord
from emotui.core.text import template_named

EMOTIONS_OF_CORPUS = {one.emotion for one in load_situations()}
EKMAN7 = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")


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
    own = [text for text in data.texts if text.split != "other"]
    assert {t.text: data.emotions[t.label] for t in own} == expected
    assert f"text: {header[0]}, label: {header[1]}" in data.name
    assert f"{len(expected)} of 300 rows" in data.name
    assert str(tmp_path) not in data.name
    shares = {
        split: sum(t.split == split for t in own) / len(own) for split in ("train", "dev", "test")
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
        if text.split != "other":
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


def test_a_class_of_two_rows_is_left_out_and_said(tmp_path: Path) -> None:
    rows = [row for row in _sentences(300) if row[1] != "fear"]
    rows += [("It crept over the floor.", "fear"), ("He hid.", "fear")]
    file = _write(tmp_path / "mine.tsv", ("text", "label"), rows)
    found = labelled_texts(label_set="ekman7", data=str(file))
    assert "fear" not in found.emotions and len(found.emotions) >= 2
    assert all(text.text not in ("It crept over the floor.", "He hid.") for text in found.texts)
    assert found.name.endswith("; left out for too few texts: fear (2)")
    alone = _write(tmp_path / "two.tsv", ("text", "label"), rows[-2:])
    with pytest.raises(UsageError, match="too few texts"):
        labelled_texts(label_set="ekman7", data=str(alone))


def test_a_dataset_without_labels_is_refused(tmp_path: Path) -> None:
    rows = [(text, "") for text, _ in _sentences(60)]
    for name, columns in (("unlabelled.tsv", ("text", "label")), ("other.tsv", ("text", "note"))):
        file = _write(tmp_path / name, columns, rows)
        with pytest.raises(UsageError, match=r"too few texts|no column that could be the label"):
            labelled_texts(label_set="ekman7", data=str(file))


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
    assert "generation.csv" in data.other and "generation.csv" not in data.name
    assert data.another_source


def _situations_of(*splits: str, emotions: tuple[str, ...] = EKMAN7) -> list[tuple[str, str]]:
    return [
        (one.text, one.emotion)
        for one in load_situations()
        if one.split in splits and one.emotion in emotions
    ]


def _without_quotes(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those that `_write` puts down as they are."""
    return [row for row in rows if '"' not in row[0]]


def test_a_file_without_another_is_judged_on_the_situations_of_held_out_topics(
    tmp_path: Path,
) -> None:
    mine = _write(tmp_path / "mine.csv", ("text", "label"), _sentences(900))
    data = labelled_texts(label_set="ekman7", data=str(mine))
    others = {text.text for text in data.texts if text.split == "other"}
    assert others == {text for text, _ in _situations_of("dev", "test")}
    design = design_of(data, seed=0)
    assert design.may_trust
    assert design.judged_on == (
        "texts of another source: emotui situations of held-out topics (336 texts)"
    )
    # Labels that the situations do not have: it is judged within its own source, untrusted.
    labels = [label for label in LABEL_SETS["goemotions28"] if label not in EMOTIONS_OF_CORPUS][:3]
    rows = [(f"a text that is number {n}", labels[n % 3]) for n in range(300)]
    fine = _write(tmp_path / "fine.csv", ("text", "label"), rows)
    data = labelled_texts(label_set="goemotions28", data=str(fine))
    assert data.other == "" and not any(text.split == "other" for text in data.texts)
    design = design_of(data, seed=0)
    assert not design.may_trust
    assert "of the same source; without texts of another source" in design.judged_on


def test_texts_that_are_fitted_on_too_do_not_judge(tmp_path: Path) -> None:
    rows = _without_quotes(_situations_of("train"))
    mine = _write(tmp_path / "mine.csv", ("text", "label"), rows)
    # The same texts under another name, in capitals, with more space and more dots.
    again = [(f"{text.upper().replace(' ', '  ')}..", label) for text, label in rows[:140]]
    new = _without_quotes(_situations_of("test"))
    other = _write(tmp_path / "another.tsv", ("text", "label"), again + new)
    data = labelled_texts(label_set="ekman7", data=str(mine), other=str(other))
    assert {t.text for t in data.texts if t.split == "other"} == {text for text, _ in new}
    assert data.other.endswith("; 140 texts left out that are fitted on too")
    assert data.another_source
    copy = _write(tmp_path / "copy.tsv", ("text", "label"), rows)
    with pytest.raises(UsageError, match="too few texts to judge") as refused:
        labelled_texts(label_set="ekman7", data=str(mine), other=str(copy))
    assert f"{len(rows):,} of its {len(rows):,} texts are fitted on too" in refused.value.why


def test_two_files_of_one_data_set_are_one_source(tmp_path: Path) -> None:
    train = _write(tmp_path / "Feelings-train.csv", ("text", "label"), _situations_of("train"))
    test = _write(tmp_path / "feelings_test.tsv", ("text", "label"), _situations_of("test"))
    data = labelled_texts(label_set="ekman7", data=str(train), other=str(test))
    assert not data.another_source
    design = design_of(data, seed=0)
    assert not design.may_trust
    assert design.judged_on.startswith("another file of the same source; ")
    assert same_source("owner name:train (text: a)", "owner name:test (text: a)")
    assert not same_source("reddit.csv (text: a)", "emotui situations (84 texts)")


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
    fits = fit_places(inputs, design, seed=0, job=QuietJob(), phase="", device=torch.device("cpu"))
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
