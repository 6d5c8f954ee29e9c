"""Studies in this process, without an engine, and from the command line."""

from __future__ import annotations

import csv
import functools
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from emotui.cache.store import Store
from emotui.core.engine.capture import Job, QuietJob
from emotui.core.engine.instruments import Instruments
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.protocol import ModelSpec, StudyDone, StudyRequest
from emotui.core.studies.common.folder import StudyDocument, read_result
from emotui.core.studies.common.runner import run_study

_Result = TypeVar("_Result", bound=msgspec.Struct)

TEXTS = (
    ("My cat sat on the warm mat and I smiled all day.", "joy"),
    ("She gave me flowers and we danced in the kitchen.", "joy"),
    ("The man shouted at us and broke the gate.", "anger"),
    ("They took my seat and laughed at me.", "anger"),
    ("The old dog died and the house is quiet.", "sadness"),
    ("Nobody came to the party that he had planned.", "sadness"),
    ("A big dark shape moved behind the door.", "fear"),
    ("The car would not stop on the ice.", "fear"),
)


@functools.cache
def stories_model(folder: Path) -> LoadedModel:
    return load_model(ModelSpec(str(folder), offline=True), QuietJob())


def write_texts(path: Path, count: int, *, columns: tuple[str, str] = ("text", "label")) -> Path:
    """Write `count` labelled texts, all different, as a CSV file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for number in range(count):
            text, label = TEXTS[number % len(TEXTS)]
            writer.writerow((f"{text} It was day {number}.", label))
    return path


def request_of(
    model: LoadedModel, folder: Path, study: str, data: Path | str, **fields: Any
) -> StudyRequest:
    given: dict[str, Any] = {"template": "ask", "out": str(folder / "run"), **fields}
    cache_dir = str(folder / "cache")
    return StudyRequest(spec=model.spec, cache_dir=cache_dir, study=study, data=str(data), **given)


def run_here(
    model: LoadedModel,
    folder: Path,
    study: str,
    data: Path | str,
    *,
    job: Job | None = None,
    **fields: Any,
) -> StudyDocument:
    """Run a study in this process into `folder / "run"`; `fields` are those of the request."""
    request = request_of(model, folder, study, data, **fields)
    with Store.open(Path(request.cache_dir)) as store:
        done = run_study(request, model, Instruments(model, store), store, job or QuietJob())
    assert isinstance(done, StudyDone)
    document = read_result(Path(request.out))
    assert document is not None
    return document


def result_of(folder: Path, kind: type[_Result]) -> _Result:
    """Return the result of the run in `folder / "run"`, as it is on disk."""
    document = msgspec.json.decode((folder / "run" / "result.json").read_bytes())
    return msgspec.convert(document["result"], kind)


def emotui(*arguments: str, cache_dir: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `emotui ARGUMENTS` and wait."""
    return subprocess.run(
        [sys.executable, "-m", "emotui", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "EMOTUI_CACHE_DIR": str(cache_dir), "OMP_NUM_THREADS": "1"},
        **options,
    )


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file of a run but study.json, which holds the time it began."""
    paths: Iterable[Path] = sorted(folder.rglob("*"))
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in paths
        if path.is_file() and path.name != "study.json"
    }
