"""The framework of studies: from the command line to files, interrupted, resumed, refused."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import torch
from support_command import emotui_here
from support_studies import emotui, files_of, request_of, run_here, stories_model, write_texts

from emotui.commands.studies import brief_lines
from emotui.core.engine.capture import QuietJob
from emotui.core.errors import Cancelled, UsageError
from emotui.core.studies.common.chunks import Chunks
from emotui.core.studies.common.folder import _first_of, read_study


def test_forty_texts_from_the_command_line(stories: Path, tmp_path: Path) -> None:
    data, out = write_texts(tmp_path / "texts.csv", 40), tmp_path / "out"
    arguments = ("study", "readout", str(data), "--model", str(stories), "--out", str(out))
    done = emotui(*arguments, "--html", "--json", cache_dir=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    jsonschema.validate(document, json.loads((out / "result.schema.json").read_bytes()))
    assert document == json.loads((out / "result.json").read_bytes())
    counts = document["run"]["dataset"]["labels"]
    assert counts == dict.fromkeys(("anger", "fear", "joy", "sadness"), 10)
    assert sum(document["result"]["answers"].values()) == 40
    for said in ("Estimate:", "texts.csv (text: text, label: label)", "Prompt:", str(out)):
        assert said in done.stderr
    rows = list(csv.DictReader((out / "result.csv").open(encoding="utf-8")))
    assert [int(row["row"]) for row in rows] == list(range(1, 41))
    assert all(
        abs(sum(float(row[k]) for k in row if k.startswith("p_")) - 1) < 1e-4 for row in rows
    )
    page = (out / "result.html").read_text(encoding="utf-8")
    assert "<svg" in page and "http" not in page.replace("http-equiv", "")
    assert all(path.stat().st_mode & 0o077 == 0 for path in out.rglob("*"))
    shown = emotui_here("study", "show", str(out), cache_dir=tmp_path / "cache")
    assert shown.returncode == 0
    assert shown.stdout == (out / "result.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("labels", "rule"),
    [("ekman7", "first tokens of the labels"), ("goemotions28", "whole labels' log-prob")],
)
def test_answers_are_those_of_inspect_and_the_rule_is_said(
    stories: Path, tmp_path: Path, labels: str, rule: str
) -> None:
    data, out = write_texts(tmp_path / "texts.csv", 3), tmp_path / "out"
    arguments = ("--model", str(stories), "--template", "tak3", "--labels", labels)
    done = emotui_here(
        "study", "readout", str(data), *arguments, "--out", str(out), cache_dir=tmp_path
    )
    assert done.returncode == 0 and rule in done.stderr, done.stderr
    rows = list(csv.DictReader((out / "result.csv").open(encoding="utf-8")))
    texts = list(csv.DictReader(data.open(encoding="utf-8")))
    trace = json.loads(
        emotui_here("inspect", texts[1]["text"], *arguments, "--json", cache_dir=tmp_path).stdout
    )
    for label, probability in trace["answer"]["labels"].items():
        assert float(rows[1][f"p_{label}"]) == pytest.approx(probability, abs=1e-4)


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(stories: Path, tmp_path: Path) -> None:
    data, out = write_texts(tmp_path / "texts.csv", 1500), tmp_path / "out"
    arguments = ["study", "readout", str(data), "--model", str(stories), "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "emotui", *arguments],
        env={**os.environ, "EMOTUI_CACHE_DIR": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 100
    while len(list(out.glob("chunks/texts/0*"))) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=20)
    assert process.returncode == 130 and printed == "", said
    assert f"emotui study resume {out}" in said and "Traceback" not in said
    assert len(list(out.glob("chunks/texts/0*"))) >= 2 and not (out / "result.json").exists()


class _StopsAfter(QuietJob):
    """A job that is cancelled at its n-th check, and counts them."""

    def __init__(self, checks: float = float("inf")) -> None:
        self.done = 0
        self._most = checks

    def check(self) -> None:
        self.done += 1
        if self.done > self._most:
            raise Cancelled("The work was cancelled.")


def test_cancelled_and_resumed_it_has_the_same_bytes(stories: Path, tmp_path: Path) -> None:
    model, data = stories_model(stories), write_texts(tmp_path / "texts.csv", 200)
    whole, broken, counting = tmp_path / "whole", tmp_path / "broken", _StopsAfter()
    run_here(model, whole, "readout", data, job=counting)
    for part in (0.4, 0.5):
        with pytest.raises(Cancelled):
            run_here(model, broken, "readout", data, job=_StopsAfter(int(part * counting.done)))
        assert list((broken / "run" / "chunks").rglob("*.safetensors")), "nothing was kept"
        assert not (broken / "run" / "result.json").exists()
    # A chunk that was damaged meanwhile is done again.
    first = broken / "run" / "chunks" / "texts" / "00000.safetensors"
    first.write_bytes(first.read_bytes()[:-9] + b"\0" * 9)
    run_here(model, broken, "readout", data)
    assert files_of(broken / "run") == files_of(whole / "run")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many as the programs that are killed have: with others, sums differ in their last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_killed_twice_and_resumed_it_has_the_same_bytes(
    stories: Path, tmp_path: Path, one_thread: None
) -> None:
    data, cache = write_texts(tmp_path / "texts.csv", 960), tmp_path / "cache"
    arguments = ["study", "readout", str(data), "--model", str(stories), "--out"]
    assert emotui_here(*arguments, str(tmp_path / "whole"), cache_dir=cache).returncode == 0
    out = tmp_path / "killed"
    environment = {**os.environ, "EMOTUI_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    for least in (2, 6):
        process = subprocess.Popen(
            [sys.executable, "-m", "emotui", *arguments, str(out)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        chunks = out / "chunks" / "texts"
        end = time.monotonic() + 100
        while len(list(chunks.glob("0*"))) < least and time.monotonic() < end:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert least <= len(list(chunks.glob("0*"))) < 15 and not (out / "result.json").exists()
    refused = emotui_here("study", "show", str(out), cache_dir=cache)
    assert refused.returncode == 2 and "not finished" in refused.stderr
    resumed = emotui_here("study", "resume", str(out), cache_dir=cache)
    assert resumed.returncode == 0, resumed.stderr
    found = {n: b for n, b in files_of(out).items() if not Path(n).name.startswith(".writing")}
    assert found == files_of(tmp_path / "whole")


def test_another_dataset_or_other_options_are_refused(stories: Path, tmp_path: Path) -> None:
    model, data = stories_model(stories), write_texts(tmp_path / "texts.csv", 16)
    run_here(model, tmp_path, "readout", data)
    with pytest.raises(UsageError) as refused:
        run_here(model, tmp_path, "readout", data, settings={"features": "3"}, seed=1)
    assert "settings.features: 10, now 3" in refused.value.why
    assert "seed: 0, now 1" in refused.value.why
    data.write_text(data.read_text().replace("danced", "sang"))
    with pytest.raises(UsageError, match="another run") as refused:
        run_here(model, tmp_path, "readout", data)
    assert "dataset.digest" in refused.value.why
    assert refused.value.is_of_input, "so that nothing is said of going on with the other run"
    differing = [f"name{n}: a, now b" for n in range(9)]
    assert _first_of(differing).endswith("; and name3, name4, name5, name6, name7, name8")
    assert _first_of(differing[:1]) == "name0: a, now b"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        run_here(model, tmp_path, "readout", data, out=str(tmp_path / "other"))


def test_what_cannot_be_meant_is_said_before_a_model_is_loaded(tmp_path: Path) -> None:
    data = tmp_path / "texts.csv"
    data.write_text("text,number\nThe sea was calm.,1\nIt rained.,2\n")
    one = tmp_path / "one.csv"
    one.write_text("text,label\nThe sea was calm.,joy\nIt rained.,sadness\nIt rained on.,sadness\n")
    empty = tmp_path / "empty.csv"
    empty.write_text("text,label\n  ,joy\n,sadness\n")
    for arguments, words in (
        (("probes", str(data)), ("no column that could be the label", "do not: readout")),
        (("probes", str(one)), ("too few labelled texts", "joy 1", "sadness 2")),
        (("readout", str(empty)), ("holds no text", "2 rows were read; in 2")),
        (("readout", str(data), "--text-column", "words"), ("no column 'words'", "text, number")),
        (("readout", str(tmp_path / "none.csv")), ("could not be read",)),
        (("readout", str(data), "--set", "depth=3"), ("has no option 'depth'", "features, texts")),
        (("readout", str(data), "--set", "features=many"), ("cannot be 'many'",)),
        (("readout", str(data), "--set", "features=-3"), ("cannot be '-3'", "whole number from 0")),
        (("readout", str(data), "--set", "features=2.5"), ("cannot be '2.5'", "whole number")),
        (("readout", str(data), "--set", "features=1,2"), ("cannot be '1,2'", "whole number")),
        (("patch", str(data), "--set", "pairs=0"), ("cannot be '0'", "whole number from 1")),
        (("promote", str(data), "--set", "strengths=inf"), ("cannot be 'inf'",)),
        (("readout", str(data), "--span", "3"), ("has no option 'span'",)),
        (("tarot", str(data)), ("no study called 'tarot'", "readout, probes")),
        (("readout", str(data), "--template", "poem"), ("no template called 'poem'",)),
        (("resume", str(tmp_path)), ("is no folder of a study",)),
    ):
        model = () if arguments[0] == "resume" else ("--model", "/nowhere")
        done = emotui_here("study", *arguments, *model, cache_dir=tmp_path / "cache")
        assert done.returncode == 2, (arguments, done.stderr)
        assert done.stdout == "" and "Traceback" not in done.stderr
        assert all(word in done.stderr for word in words), (arguments, done.stderr)


def test_texts_of_no_use_are_left_out_and_counted(stories: Path, tmp_path: Path) -> None:
    model = stories_model(stories)
    data = tmp_path / "texts.tsv"
    rows = ["text\tlabel", "She smiled.\tjoy", " \tjoy", "word " * 2000 + "\tjoy", "He hid.\todd"]
    data.write_text("\n".join(rows) + "\n")
    document = run_here(model, tmp_path, "readout", data)
    summary = document.run.dataset
    assert (summary.rows, summary.empty, summary.unlabelled, summary.texts) == (4, 1, 1, 3)
    assert document.result["texts"] == 2 and document.result["unreadable"] == 1


def test_a_terminal_is_told_the_sentences_and_where_the_tables_are(
    stories: Path, tmp_path: Path
) -> None:
    model, data = stories_model(stories), write_texts(tmp_path / "texts.csv", 16)
    document = run_here(model, tmp_path, "readout", data)
    folder = tmp_path / "run"
    told = brief_lines(document, folder)
    assert all(sentence in told for sentence in document.report.sentences)
    rows = sum(len(table.rows) for table in document.report.tables)
    assert f"of {rows:,} rows stand in {folder / 'result.md'}" in told
    assert len(told.splitlines()) == len(document.report.sentences) + 2


def test_a_dry_run_writes_nothing(stories: Path, tmp_path: Path) -> None:
    data, out = write_texts(tmp_path / "texts.csv", 16), tmp_path / "out"
    arguments = ("study", "readout", str(data), "--model", str(stories), "--out", str(out))
    done = emotui_here(*arguments, "--dry-run", "--json", cache_dir=tmp_path / "cache")
    assert done.returncode == 0 and not out.exists()
    planned = json.loads(done.stdout)
    assert planned["texts"] == 16 and planned["seconds"] > 0 and planned["disk_bytes"] > 0


def test_several_runs_are_listed_and_compared(stories: Path, tmp_path: Path) -> None:
    data, cache = write_texts(tmp_path / "texts.csv", 16), tmp_path / "cache"
    arguments = ("--model", str(stories), "--template", "ask,tak3", "--limit", "8")
    done = emotui_here("study", "readout", str(data), *arguments, cache_dir=cache)
    assert done.returncode == 0, done.stderr
    listed = json.loads(emotui_here("study", "list", "--json", cache_dir=cache).stdout)
    assert {one["name"] for one in listed["studies"]} >= {"readout", "probes"}
    assert {run["template"] for run in listed["runs"]} == {"ask", "tak3"}
    assert all(run["finished"] for run in listed["runs"])
    folders = [run["folder"] for run in listed["runs"]]
    assert read_study(Path(folders[0])).run.dataset.texts == 8
    refused = emotui_here("study", "compare", *folders, cache_dir=cache)
    assert refused.returncode == 2 and "nothing that goes by layer" in refused.stderr


def test_chunks_are_private_and_whole(tmp_path: Path) -> None:
    chunks = Chunks(tmp_path, "stage", 2)
    assert not chunks.has(0)
    chunks.put(0, {"h": torch.arange(6.0).view(2, 3), "empty": torch.zeros(0, 4)})
    chunks.put(1, {"h": torch.arange(6.0, 10.0).view(2, 2), "empty": torch.ones(1, 4)})
    assert chunks.has(0) and chunks.path(0).stat().st_mode & 0o077 == 0
    assert chunks.joined("h", at=1).tolist() == [3, 4, 5, 8, 9]
    assert chunks.joined("empty").shape == (1, 4)
    damaged = bytearray(chunks.path(0).read_bytes())
    damaged[-1] ^= 1
    chunks.path(0).write_bytes(damaged)
    assert not chunks.has(0)


def test_a_request_of_another_study_is_no_resume(stories: Path, tmp_path: Path) -> None:
    model, data = stories_model(stories), write_texts(tmp_path / "texts.csv", 8)
    run_here(model, tmp_path, "readout", data)
    before = files_of(tmp_path / "run")
    assert request_of(model, tmp_path, "readout", data) == read_study(tmp_path / "run").request
    with pytest.raises(UsageError, match="another run"):
        run_here(model, tmp_path, "knockout", data)
    assert files_of(tmp_path / "run") == before
