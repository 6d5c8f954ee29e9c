"""Datasets of the hub as labelled texts, over a hub on the loopback."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from support_hub import Hub, Repository, serving
from test_hub import Recording

from emotui.core.engine.hub_data import dataset_files, is_dataset_id
from emotui.core.engine.labelled import labelled_texts
from emotui.core.errors import Cancelled, EmotuiError, UsageError
from emotui.core.sizes import in_bytes

TRAIN = "split/train-00000-of-00001.parquet"
NAMES = ("sadness", "joy", "love", "anger", "fear", "surprise")


def parquet_of(count: int, *, labels: bool = True) -> bytes:
    """A file as `datasets` writes it: labels are numbers, their names in the metadata."""
    columns: dict[str, list[object]] = {
        "text": [f"sentence {n} of the set" for n in range(count)],
        "tokens": [[n] for n in range(count)],
    }
    features: dict[str, object] = {"text": {"dtype": "string", "_type": "Value"}}
    if labels:
        columns["label"] = [n % len(NAMES) for n in range(count)]
        features["label"] = {"names": list(NAMES), "_type": "ClassLabel"}
    table = pa.table(columns)
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    file = io.BytesIO()
    parquet.write_table(table.replace_schema_metadata(metadata), file)
    return file.getvalue()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    csv = "content,emotion\n" + "\n".join(
        f"text {n} of it,{('joy', 'anger')[n % 2]}" for n in range(60)
    )
    repositories = {
        "datasets/dair-ai/emotion": Repository(
            {
                TRAIN: parquet_of(300),
                "split/test-00000-of-00001.parquet": parquet_of(90),
                "unsplit/train-00000-of-00001.parquet": parquet_of(12),
                "emotion.py": b"raise SystemExit('a script was run')",
            }
        ),
        "datasets/me/plain": Repository({"data.csv": csv.encode(), "README.md": b"# mine"}),
        "datasets/me/unlabelled": Repository({"train.parquet": parquet_of(90, labels=False)}),
        "datasets/me/pictures": Repository({"train.bin": b"x"}),
        "datasets/me/broken": Repository({"train.parquet": b"PAR1 not really"}),
        "datasets/me/closed": Repository({"train.csv": csv.encode()}, gated=True),
    }
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with serving(repositories) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


def test_class_labels_of_a_split_become_texts(hub: Hub) -> None:
    data = labelled_texts(label_set="ekman7", data="dair-ai/emotion")
    assert set(data.emotions) == {"sadness", "joy", "anger", "fear", "surprise"}
    own = [text for text in data.texts if text.split != "other"]
    assert len(own) == 250  # love is no label of the set
    assert "dair-ai/emotion (text: text, label: label; 250 of 300 rows)" in data.name
    assert hub.gets() == ["main/split/train-00000-of-00001.parquet"] or len(hub.gets()) == 1
    test = labelled_texts(label_set="ekman7", data="dair-ai/emotion:test")
    assert len([text for text in test.texts if text.split != "other"]) == 75


def test_offline_reads_what_is_here_and_asks_nothing(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = labelled_texts(label_set="ekman7", data="me/plain")
    assert "text: content, label: emotion" in online.name
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(hub.requests)
    assert labelled_texts(label_set="ekman7", data="me/plain") == online
    with pytest.raises(UsageError, match="no file that emotui reads"):
        labelled_texts(label_set="ekman7", data="dair-ai/emotion")
    assert len(hub.requests) == asked


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("me/unlabelled", "no column that could be the label"),
        ("me/pictures", "no file that emotui reads"),
        ("me/broken", "could not be read"),
        ("me/closed", "dataset me/closed is gated"),
        ("me/nothing", "There is no dataset called 'me/nothing'"),
        ("dair-ai/emotion:validation", "for the split validation"),
    ],
)
def test_datasets_that_cannot_be_used_are_said(hub: Hub, name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        labelled_texts(label_set="ekman7", data=name)


def test_unknown_names_come_with_those_that_are_near_and_the_token(hub: Hub) -> None:
    labelled_texts(label_set="ekman7", data="me/plain")
    for name, near in (("dair-ai/emotoin", "dair-ai/emotion"), ("me/plian", "me/plain")):
        with pytest.raises(UsageError) as caught:
            dataset_files(name)
        assert near in caught.value.todo
        assert "no token" in caught.value.why or "the token" in caught.value.why
        assert "emotui models" not in caught.value.todo
    with pytest.raises(UsageError) as caught:
        dataset_files("me/closed")
    assert "https://huggingface.co/datasets/me/closed" in caught.value.todo


def test_a_dataset_is_downloaded_with_bytes_and_time_left(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 512)
    size = len(hub.repositories["datasets/dair-ai/emotion"].files[TRAIN])
    job = Recording()
    (file,) = dataset_files("dair-ai/emotion", job)
    assert file.stat().st_size == size
    assert job.seen[1] == (f"downloading dair-ai/emotion: {in_bytes(size)}", 0, 100)
    assert [phase for phase, _, _ in job.seen if " s left" in phase]
    assert job.seen[-1][1:] == (100, 100)
    assert labelled_texts(label_set="ekman7", data="me/plain", job=job).emotions
    assert job.seen[-1][0].startswith("downloading me/plain: ")
    (again,) = dataset_files("dair-ai/emotion", job)
    assert (again, len(hub.gets())) == (file, 2)
    with pytest.raises(Cancelled):
        dataset_files("dair-ai/emotion:test", Recording(cancel_at=10))


def test_a_dataset_that_breaks_off_or_is_too_large(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _seconds: None)  # between the library's attempts
    repository = hub.repositories["datasets/dair-ai/emotion"]
    repository.breaks, repository.breaks_left = TRAIN, -1
    with pytest.raises(EmotuiError, match="download of dair-ai/emotion broke off at") as caught:
        dataset_files("dair-ai/emotion")
    assert caught.value.exit_code == 1
    repository.breaks_left = 0
    monkeypatch.setattr("emotui.core.engine.hub_data._MOST_BYTES", 100)
    with pytest.raises(UsageError, match="is larger than 100 bytes"):
        dataset_files("dair-ai/emotion")


def test_what_is_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_dataset_id("dair-ai/emotion") and is_dataset_id("a/b:test")
    assert not is_dataset_id("/tmp/mine.csv") and not is_dataset_id("mine.csv")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("x")
    assert not is_dataset_id("a/b")
