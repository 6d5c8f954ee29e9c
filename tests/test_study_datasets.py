"""Datasets of studies: columns, label maps, drawing, and memory that does not grow."""

from __future__ import annotations

import csv
import json
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from emotui.core.corpus import APPRAISALS, load_situations
from emotui.core.errors import UsageError
from emotui.core.studies.common.dataset import Dataset, DatasetSummary, item_id, open_dataset
from emotui.core.studies.common.rows import ENVENT_APPRAISALS


def _open(data: Path | str, **options: Any) -> tuple[Dataset, DatasetSummary]:
    return open_dataset(str(data), **{"label_set": "ekman7", "needs_labels": True, **options})


def test_goemotions_through_two_label_maps(data_dir: Path) -> None:
    folder = data_dir / "goemotions"
    maps = (str(folder / "emotions.txt"), str(folder / "ekman_mapping.json"))
    dataset, summary = _open(
        folder / "test.tsv", text_column="1", label_column="2", label_maps=maps
    )
    names = (folder / "emotions.txt").read_text().split()
    groups = json.loads((folder / "ekman_mapping.json").read_text())
    to_ekman = {one: emotion for emotion, some in groups.items() for one in some}
    expected: Counter[str] = Counter()
    lines = (folder / "test.tsv").read_text(encoding="utf-8").split("\n")
    for line in filter(None, lines):
        ids = line.split("\t")[1].split(",")
        if len(ids) == 1:
            label = to_ekman.get(names[int(ids[0])])
            expected[label or names[int(ids[0])]] += 1
    assert summary.rows == len(list(filter(None, lines))) == 5427
    assert dataset.labels[-1] == "neutral" and len(dataset.labels) == 7
    assert summary.labels == {label: expected[label] for label in dataset.labels}
    item = next(iter(dataset))
    assert item.text == lines[item.row - 1].split("\t")[0].strip()
    assert len(summary.label_maps) == 2 and summary.label_maps[0].startswith("emotions.txt ")


def test_crowd_envent_has_its_appraisals(data_dir: Path) -> None:
    dataset, summary = _open(
        data_dir / "crowd-envent" / "generation.csv",
        text_column="hidden_emotion_text",
        label_set="envent13",
        extra=("intensity",),
    )
    assert dataset.appraisals == ENVENT_APPRAISALS and len(dataset.appraisals) == 21
    assert summary.texts == 6600 and len(dataset.labels) == 13
    assert summary.labels["neutral"] == 550 and summary.labels["shame"] == 275
    with (data_dir / "crowd-envent" / "generation.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for item in dataset.items([5000, 3]):
        row = rows[item.row - 1]
        assert item.text == row["hidden_emotion_text"].strip() and item.id == item_id(item.text)
        assert item.appraisals == tuple(float(row[name]) for name in ENVENT_APPRAISALS)
        assert item.extra == (row["intensity"],)


def test_the_bundled_situations_keep_their_splits() -> None:
    dataset, summary = _open("bundled", extra=("topic",))
    situations = {one.text: one for one in load_situations()}
    assert dataset.appraisals == APPRAISALS and summary.too_few == {}
    for item in dataset:
        one = situations[item.text]
        assert (item.split, item.group, item.extra) == (one.split, one.topic, (one.topic,))
        assert dataset.labels[item.label] == one.emotion


def test_a_limit_draws_the_same_share_of_every_label(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    rows = [{"text": f"text {n}", "label": "joy" if n % 4 else "fear"} for n in range(400)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    dataset, summary = _open(path, limit=40)
    assert summary.labels == {"fear": 10, "joy": 30}
    assert [item.index for item in dataset] == list(range(40))
    again, _ = _open(path, limit=40)
    assert [item.id for item in again] == [item.id for item in dataset]
    other, apart = _open(path, limit=40, seed=1)
    assert {item.id for item in other} != {item.id for item in dataset}
    assert apart.digest != summary.digest
    # Rows put after the others draw by themselves: most of what was drawn stays.
    with path.open("a") as file:
        file.write('\n{"text": "another", "label": "joy"}')
    more, _ = _open(path, limit=40)
    assert len({item.id for item in more} & {item.id for item in dataset}) >= 38


def test_labels_of_a_single_text_are_left_out_and_said(tmp_path: Path) -> None:
    path = tmp_path / "texts.tsv"
    rows = ["a\tjoy", "b\tJoy", "c\tfear", "d\tno-emotion", "e\tnone", "f\trage", "\tjoy"]
    path.write_text("sentence\temotion\n" + "\n".join(rows) + "\n")
    dataset, summary = _open(path)
    assert dataset.labels == ("joy", "neutral") and summary.too_few == {"fear": 1}
    assert (summary.texts, summary.unlabelled, summary.empty) == (4, 1, 1)
    assert (summary.text_column, summary.label_column) == ("sentence", "emotion")
    everything, all_of_it = _open(path, needs_labels=False)
    assert all_of_it.texts == 6 and all_of_it.labels[""] == 1
    assert [item.label for item in everything][-1] == -1


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", '{"a": 3}', "is no label map"),
        ("a.json", "[]", "is no label map"),
        ("absent.json", None, "could not be read"),
    ],
)
def test_label_maps_that_are_none(
    tmp_path: Path, name: str, content: str | None, says: str
) -> None:
    data = tmp_path / "texts.csv"
    data.write_text("text,label\na,1\nb,2\n")
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=says):
        _open(data, label_maps=(str(tmp_path / name),))


@pytest.mark.parametrize("limit", [None, 50])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, limit: int | None) -> None:
    def peak(count: int) -> int:
        path = tmp_path / f"{count}.csv"
        with path.open("w", encoding="utf-8") as file:
            file.write("text,label\n")
            for number in range(count):
                file.write(
                    f"{'words and more words ' * 5}{number},{'joy' if number % 2 else 'fear'}\n"
                )
        tracemalloc.start()
        dataset, _ = _open(path, limit=limit)
        for _, items in dataset.batches(64):
            assert items
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(100)  # what is imported and cached once
    small, large = peak(2_000), peak(10_000)
    assert large < 1.2 * small + 50_000
