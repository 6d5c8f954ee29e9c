"""The study of probes: what it must find, its controls, and that it leaves the model as it was."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score
from sklearn.preprocessing import StandardScaler
from support_command import emotui_here
from support_studies import TEXTS, files_of, request_of, run_here, stories_model

from emotui.commands.schemas import document_schema
from emotui.core.engine.capture import QuietJob
from emotui.core.errors import Cancelled, UsageError
from emotui.core.studies.common.chunks import Chunks
from emotui.core.studies.common.dataset import dataset_of
from emotui.core.studies.common.pages import schema_of
from emotui.core.studies.compare import compare
from emotui.core.studies.probe_results import ProbesResult

LABELS = ("joy", "anger", "sadness", "fear")
PLEASANT = {"joy": 5, "anger": 1, "sadness": 2, "fear": 1}


def _data(path: Path, count: int = 240) -> Path:
    """Write texts with an appraisal that follows the label, one that is noise, and two readers."""
    noise = np.random.default_rng(0)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "emotion", "pleasantness", "effort", "first", "second"))
        for number in range(count):
            text, label = TEXTS[number % len(TEXTS)]
            other = LABELS[noise.integers(4)] if noise.random() < 0.3 else label
            cells = (PLEASANT[label], noise.integers(1, 6), label, other)
            writer.writerow((f"{text} It was day {number}.", label, *cells))
    return path


def _run(stories: Path, folder: Path, **fields: Any) -> ProbesResult:
    settings = {"raters": "first,second", **fields.pop("settings", {})}
    data = _data(folder.parent / "texts.csv")
    document = run_here(stories_model(stories), folder, "probes", data, settings=settings, **fields)
    return msgspec.convert(document.result, ProbesResult)


@pytest.fixture(scope="module")
def folder(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("probes") / "a"
    _run(stories, found, html=True)
    return found


@pytest.fixture(scope="module")
def result(folder: Path) -> ProbesResult:
    document = msgspec.json.decode((folder / "run" / "result.json").read_bytes())
    jsonschema.validate(document, schema_of(ProbesResult))
    return msgspec.convert(document["result"], ProbesResult)


def test_what_is_there_is_found_and_the_readout_of_the_embedding_knows_nothing(
    result: ProbesResult,
) -> None:
    gold = next(target for target in result.targets if target.target == "gold")
    at = {(score.site, score.layer): score for score in gold.scores}
    assert gold.labels == dict.fromkeys(("anger", "fear", "joy", "sadness"), 60)
    assert at["resid", -1].balanced_accuracy == pytest.approx(0.25), "every prompt ends alike"
    assert at["resid", 4].balanced_accuracy > 0.9 > at["resid", 4].shuffled_95
    assert all(low <= high for low, high in zip(gold.low, gold.high, strict=True))
    assert result.words is not None and result.words > 0.9, "the texts give themselves away"
    assert set(result.not_fitted) == {"answer"}, "this model answers the same to everything"
    assert result.not_fitted["answer"].endswith(" 240") and result.model_accuracy == 0.25
    pleasant = {
        layer: r2
        for one in result.appraisals
        if (one.name, one.site) == ("pleasantness", "resid")
        for layer, r2 in zip(one.layer, one.r_squared, strict=True)
    }
    assert pleasant[4] > 0.7 and abs(pleasant[-1]) < 0.2
    effort = [one for one in result.appraisals if (one.name, one.site) == ("effort", "resid")]
    assert max(effort[0].r_squared) < 0.2, "noise cannot be read"
    assert result.cosines is not None
    last = dict(zip(result.cosines.emotions, result.cosines.values[-1], strict=True))
    assert last["joy"][0] == max(row[0] for row in last.values()) > 0


def test_readers_are_compared_as_scikit_learn_does(result: ProbesResult, folder: Path) -> None:
    rows = list(csv.DictReader((folder.parent / "texts.csv").open(encoding="utf-8")))
    first = [row["first"] for row in rows] + [row["second"] for row in rows]
    second = [row["second"] for row in rows] + [row["first"] for row in rows]
    assert result.agreement is not None and result.agreement.pairs == 240
    assert result.agreement.kappa == pytest.approx(cohen_kappa_score(first, second), abs=1e-6)


def test_a_place_is_judged_as_scikit_learn_judges_it(folder: Path, result: ProbesResult) -> None:
    """The stored activations, split by the texts' hashes, fitted by another library."""
    chunks = Chunks(folder / "run", "texts", 4)
    place = 1 + 2  # resid.2
    h, gold = chunks.joined("h", at=place).numpy(), chunks.joined("gold").numpy()
    fits = Chunks(folder / "run", "fits-gold", 16)
    strength = float(fits.joined("strength")[place])
    weight, center = fits.get(place)["weight"][0], fits.get(place)["center"][0]
    predicted = fits.get(place)["predicted"][0].numpy()
    # Which rows were fitted on follows from the centre: their mean.
    from emotui.core.engine.labelled import Row, split_rows

    texts = [row["text"] for row in csv.DictReader((folder.parent / "texts.csv").open())]
    labels = ("anger", "fear", "joy", "sadness")
    ids = [" ".join(text.lower().split()) for text in texts]
    rows = [Row("", labels_of, group, False, None) for labels_of, group in zip(
        [_name(folder, number) for number in gold], ids, strict=True)]  # fmt: skip
    train = np.array([row.split == "train" for row in split_rows(rows, 0)])
    assert np.allclose(h[train].mean(axis=0), center.numpy(), atol=1e-4)
    scaler = StandardScaler().fit(h[train])
    theirs = LogisticRegression(C=strength, class_weight="balanced", max_iter=5000)
    theirs.fit(scaler.transform(h[train]), gold[train])
    agreement = theirs.predict(scaler.transform(h)) == predicted
    assert agreement.mean() > 0.99
    assert weight.shape == (64, len(labels))


def _name(folder: Path, number: int) -> str:
    document = msgspec.json.decode((folder / "run" / "result.json").read_bytes())
    known = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")
    names = [label for label in known if label in document["run"]["dataset"]["labels"]]
    return names[number]


def test_random_weights_hold_less_and_are_put_back(
    stories: Path, result: ProbesResult, tmp_path: Path
) -> None:
    model = stories_model(stories)
    prompt = [[1, 5, 9, 30]]
    before = model.forward(prompt)
    found = {target.target: target for target in result.targets}
    assert "gold, random weights" in found
    state = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    _run(stories, tmp_path / "a")
    assert torch.equal(model.forward(prompt), before)
    assert all(torch.equal(state[name], t) for name, t in model.hf.state_dict().items())


class _Stops(QuietJob):
    """Cancelled when the control task is about to be fitted at its sixth place."""

    def progress(self, phase: str, done: int = 0, total: int = 0, /) -> None:
        if phase == "fitting first word" and done == 5:
            raise Cancelled("The work was cancelled.")


def test_interrupted_between_fits_it_has_the_same_bytes(
    stories: Path, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(Cancelled):
        _run(stories, tmp_path / "a", job=_Stops(), html=True)
    assert not (tmp_path / "a" / "run" / "result.json").exists()
    _run(stories, tmp_path / "a", html=True)
    assert files_of(tmp_path / "a" / "run") == files_of(folder / "run")


def test_too_few_texts_to_judge_on_are_refused(stories: Path, tmp_path: Path) -> None:
    data, model = _data(tmp_path / "few.csv", 40), stories_model(stories)
    before = model.forwards
    with pytest.raises(UsageError, match="too few texts for the study probes") as refused:
        run_here(model, tmp_path, "probes", data, settings={"random": "no"})
    assert "joy 10" in refused.value.why
    assert model.forwards == before, "told before any text is run"


def test_a_limit_that_leaves_too_few_is_told_before_the_model_is_looked_for(
    tmp_path: Path,
) -> None:
    data = _data(tmp_path / "texts.csv")
    given = ("study", "probes", str(data), "--model", str(tmp_path / "no-model"))
    done = emotui_here(*given, "--limit", "120", cache_dir=tmp_path / "cache")
    assert (done.returncode, done.stdout) == (2, "")
    assert "too few texts for the study probes" in done.stderr
    assert "joy 30" in done.stderr and "have 34 texts" in done.stderr


def test_texts_that_the_model_cannot_read_do_not_count(stories: Path, tmp_path: Path) -> None:
    """Enough texts by their labels, and too few that fit into the context."""
    model, data = stories_model(stories), tmp_path / "long.csv"
    long = " and then" * model.context_length
    with data.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "emotion"))
        for number in range(160):
            text, label = TEXTS[number % len(TEXTS)]
            writer.writerow((f"{text} It was day {number}.{long if number % 2 else ''}", label))
    with pytest.raises(UsageError, match="too few texts to judge probes on"):
        run_here(model, tmp_path, "probes", data, settings={"random": "no"})


def test_a_split_that_holds_out_too_few_of_a_label_is_named_as_what_is_missing(
    stories: Path, tmp_path: Path
) -> None:
    """The bundled situations bring their split: of 260 every label has texts, few are held out."""
    with pytest.raises(UsageError, match="too few texts to judge probes on") as refused:
        run_here(
            stories_model(stories),
            tmp_path,
            "probes",
            "bundled",
            limit=260,
            settings={"random": "no"},
        )
    assert "needs 5 held-out texts" in refused.value.why and "have 34" not in refused.value.why
    held = dict(
        part.rsplit(" ", 1) for part in refused.value.why.split("are: ")[1].rstrip(".").split(", ")
    )
    request = request_of(stories_model(stories), tmp_path, "probes", "bundled", limit=260)
    dataset, _ = dataset_of(request)
    counts = Counter(dataset.labels[item.label] for item in dataset if item.split == "test")
    assert held == {label: str(counts[label]) for label in dataset.labels}
    assert min(counts.values()) < 5


def test_two_results_are_compared_by_layer_and_by_depth(folder: Path) -> None:
    from emotui.core.studies.common.folder import read_result

    one = read_result(folder / "run")
    assert one is not None
    run = msgspec.structs.replace(one.run, layers=9)
    plot = next(plot for plot in one.report.plots if plot.title == "Accuracy, gold")
    line = plot.lines[0]
    # Twice as deep, each layer twice: the same curve by depth, another by layer.
    deeper = msgspec.structs.replace(
        line, x=tuple(2 * x for x in line.x[1:]), y=line.y[1:], low=(), high=()
    )
    report = msgspec.structs.replace(
        one.report, plots=(msgspec.structs.replace(plot, lines=(deeper,)),)
    )
    found = compare([one, msgspec.structs.replace(one, run=run, report=report)])
    assert found.study == "probes" and len(set(found.results)) == 2
    curve = next(c for c in found.curves if (c.plot, c.line) == ("Accuracy, gold", "resid"))
    assert curve.layers == (-1, 0, 1, 2, 3, 4, 6, 8)
    by_depth = dict(zip(curve.depths, curve.by_depth, strict=True))
    assert by_depth[0.0] == (line.y[1], line.y[1]) and by_depth[1.0] == (line.y[-1], line.y[-1])
    assert by_depth[0.5] == (line.y[3], line.y[3])
    assert curve.by_layer[0] == (line.y[0], None)


def test_compare_prints_a_column_for_each_result(folder: Path, tmp_path: Path) -> None:
    run = str(folder / "run")
    done = emotui_here("study", "compare", run, run, cache_dir=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert (
        lines[0].startswith("1: ") and lines[1].startswith("2: ") and lines[0][3:] != lines[1][3:]
    )
    start = lines.index("Accuracy, gold: resid")
    assert lines[start + 1].split() == ["layer", "1", "2"]
    assert lines[start + 2].split() == ["-1", "0.250", "0.250"]
    assert lines[start + 8].split() == ["depth", "1", "2"]
    asked = emotui_here("study", "compare", run, run, "--json", cache_dir=tmp_path)
    jsonschema.validate(json.loads(asked.stdout), document_schema("study-compare"))
