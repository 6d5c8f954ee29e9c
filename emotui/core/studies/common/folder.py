"""The folder of a run: what it is of, its finished work, its results; torch-free.

study.json      what was asked and what computed it: a resumed run must be of the same
chunks/         finished work, one sealed file each
result.json     the result, its report and what it is of; result.schema.json describes it
result.csv  result.md  result.html
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from emotui.cache import files
from emotui.core.errors import UsageError
from emotui.core.protocol import StudyRequest
from emotui.core.records import AnswerRule
from emotui.core.studies.common.dataset import DatasetSummary
from emotui.core.studies.common.report import Report
from emotui.core.text import Template, clean

SCHEMA: Literal["emotui-study"] = "emotui-study"
SCHEMA_VERSION: Literal[1] = 1
STUDY_FILE = "study.json"
RESULT_FILE = "result.json"
CHUNKS = "chunks"
_MOST_DIFFERENCES = 3
"""Differences between two runs that are told with their values."""


class StudyRun(msgspec.Struct, frozen=True, kw_only=True):
    """All that a result follows from; two runs of which this is equal give the same bytes."""

    study: str
    settings: dict[str, str]
    """As they were given, but of a file its name and the beginning of its hash, without its path;
    the path, which resuming needs, is in the request of study.json alone."""
    seed: int
    limit: int | None
    dataset: DatasetSummary
    model: str
    revision: str | None
    fingerprint: str
    architecture: str
    layers: int
    d_model: int
    dtype: str
    device: str
    attention: str
    note: str
    """What whoever made the model says that every reader must know."""
    template: Template
    """The prompt around each text."""
    labels: tuple[str, ...]
    label_tokens: tuple[tuple[int, ...], ...]
    answer_rule: AnswerRule
    """How the labels are told apart by this tokenizer."""
    saes: tuple[str, ...]
    """Key of each."""
    probes: tuple[str, ...]
    """Ids of those in force."""
    packages: dict[str, str]
    layer_base: int = 0


class StudyFile(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in study.json."""

    schema: Literal["emotui-study"] = SCHEMA
    schema_version: Literal[1] = SCHEMA_VERSION
    created: str
    """Coordinated universal time."""
    request: StudyRequest
    run: StudyRun


class StudyDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in result.json, with the study's own result as a mapping."""

    schema: Literal["emotui-study"] = SCHEMA
    schema_version: Literal[1] = SCHEMA_VERSION
    run: StudyRun
    result: dict[str, Any]
    report: Report


def read_study(folder: Path) -> StudyFile:
    """Return what the run in a folder is; UsageError where there is none."""
    try:
        return msgspec.json.decode((folder / STUDY_FILE).read_bytes(), type=StudyFile)
    except OSError as error:
        raise UsageError(
            f"{clean(str(folder))} is no folder of a study.",
            why=f"It has no readable {STUDY_FILE}.",
            todo="`emotui study list` shows those in the cache.",
        ) from error
    except msgspec.DecodeError as error:
        raise UsageError(
            f"{STUDY_FILE} in {clean(str(folder))} cannot be read.", why=f"{clean(str(error))}."
        ) from error


def read_result(folder: Path) -> StudyDocument | None:
    """Return the result in a folder; None where the run is not finished. Raises UsageError."""
    try:
        return msgspec.json.decode((folder / RESULT_FILE).read_bytes(), type=StudyDocument)
    except OSError:
        return None
    except msgspec.DecodeError as error:
        raise UsageError(
            f"{RESULT_FILE} in {clean(str(folder))} cannot be read.",
            why=f"{clean(str(error))}.",
            todo="Delete it and use `emotui study resume`.",
        ) from error


def begin(folder: Path, file: StudyFile) -> None:
    """Begin a run in a folder, or go on with it.

    UsageError where the folder holds another run: what differs is said. CacheError where it cannot
    be written.
    """
    if (folder / STUDY_FILE).exists():
        differing = differences(read_study(folder).run, file.run)
        if differing:
            raise UsageError(
                f"{clean(str(folder))} holds another run.",
                why=f"These differ: {_first_of(differing)}.",
                todo="Give another folder with --out, or go on with `emotui study resume`.",
            )
        for path in folder.rglob(f"{files.TEMPORARY}*"):
            if files.is_stale(path):  # of a run that was killed
                path.unlink(missing_ok=True)
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(
            f"{clean(str(folder))} is not empty and holds no study.",
            todo="Give an empty or a new folder with --out.",
        )
    write(folder / STUDY_FILE, msgspec.json.encode(file, order="sorted"))


def write(path: Path, content: bytes) -> None:
    """Write a file of the run atomically; CacheError where the disk does not take it."""
    try:
        files.write_whole(path, content)
    except OSError as error:
        files.write_failed(path.parent, error)


def differences(before: StudyRun, now: StudyRun) -> list[str]:
    """Return what differs between two runs, as `name: before, now after`."""
    return _differences(msgspec.to_builtins(before), msgspec.to_builtins(now), "")


def _differences(before: Any, now: Any, name: str) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            line
            for key in sorted(before.keys() | now.keys())
            for line in _differences(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if before == now else [f"{name}: {_said(before)}, now {_said(now)}"]


def _first_of(differing: list[str]) -> str:
    """Return the first differences, and the names of the rest."""
    rest = [one.partition(":")[0] for one in differing[_MOST_DIFFERENCES:]]
    shown = "; ".join(differing[:_MOST_DIFFERENCES])
    return f"{shown}; and {', '.join(rest)}" if rest else shown


def _said(value: Any) -> str:
    return clean(str(value))[:60]
