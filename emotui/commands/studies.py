"""What the commands of studies do: estimate, run one engine after the other, show results."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import typer

from emotui.commands.common import say, show_error, wait_for
from emotui.core.client import EngineClient
from emotui.core.errors import Cancelled, EmotuiError, UsageError
from emotui.core.protocol import StudyDone, StudyPlanned, StudyRequest
from emotui.core.studies.common.dataset import dataset_of
from emotui.core.studies.common.folder import (
    CHUNKS,
    StudyDocument,
    read_result,
    read_study,
)
from emotui.core.studies.common.pages import markdown_of
from emotui.core.text import clean

ENGINE = (sys.executable, "-P", "-m", "emotui.core.studies")
"""The engine that also does studies."""


@dataclass(frozen=True)
class Plan:
    """How runs are done and shown."""

    root: Path
    """The cache."""
    dry_run: bool
    as_json: bool


def do_runs(requests: Sequence[StudyRequest], plan: Plan) -> None:
    """Do runs one after the other, each in an engine of its own, and print the results.

    One that fails does not keep the others from running; exit code 1 then.
    """
    for request in requests:
        dataset_of(request)  # what is wrong with it is said before any model is loaded
    done: list[StudyDocument | StudyPlanned] = []
    folders: list[Path] = []
    failed: list[EmotuiError] = []
    for request in requests:
        if len(requests) > 1:
            say(f"{request.spec.model}, template {request.template}:")
        try:
            done.append(_do_run(request, plan))
            folders.append(Path(request.out))
        except (Cancelled, UsageError):
            raise
        except EmotuiError as error:
            if len(requests) == 1:
                raise
            show_error(error)
            failed.append(error)
    if plan.as_json:
        print_json(done[0] if len(requests) == 1 else done)
    else:
        for outcome, folder in zip(done, folders, strict=True):
            _print_outcome(outcome, brief_of=folder)
    if len(done) > 1 and not plan.dry_run:
        say("Set them side by side: emotui study compare " + " ".join(r.out for r in requests))
    if failed:
        raise typer.Exit(1)


def _do_run(request: StudyRequest, plan: Plan) -> StudyDocument | StudyPlanned:
    folder = Path(request.out)
    with EngineClient(plan.root, offline=request.spec.offline, command=ENGINE) as client:
        planned = wait_for(client.submit(msgspec.structs.replace(request, plan=True)))
        assert isinstance(planned, StudyPlanned)
        for line in (*planned.notes, _estimate(planned)):
            say(line)
        if plan.dry_run:
            return planned
        try:
            done = wait_for(client.submit(request))
        except (EmotuiError, KeyboardInterrupt) as error:
            # What was refused did nothing: what lies in the folder is another run's.
            refused = isinstance(error, EmotuiError) and error.is_of_input
            if not refused and any((folder / CHUNKS).glob("*/*")):
                say(f"What is finished is kept. Go on with: emotui study resume {folder}")
            raise
    assert isinstance(done, StudyDone)
    document = finished(folder)
    say(f"Done in {done.seconds:.0f} s: {folder}")
    say(f"Read it again: emotui study show {folder}")
    return document


def _estimate(planned: StudyPlanned) -> str:
    minutes = planned.seconds / 60
    time = f"{planned.seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min"
    return (
        f"Estimate: {time}, {planned.disk_bytes / 1e6:,.1f} MB on disk, "
        f"{planned.memory_bytes / 1e6:,.1f} MB of memory beside the model's. "
        "Ctrl+c stops and keeps what is finished."
    )


def _print_outcome(outcome: StudyDocument | StudyPlanned, *, brief_of: Path | None = None) -> None:
    """Print a result; in a terminal only its sentences where `brief_of`, its folder, is given."""
    if not isinstance(outcome, StudyDocument):
        return
    if brief_of is not None and sys.stdout.isatty():
        sys.stdout.write(brief_lines(outcome, brief_of))
    else:
        sys.stdout.write(markdown_of(outcome))
    sys.stdout.flush()


def brief_lines(document: StudyDocument, folder: Path) -> str:
    """Return the sentences of a result, and where its tables stand."""
    tables = document.report.tables
    rows = sum(len(table.rows) for table in tables)
    lines = [*document.report.sentences, ""]
    if tables:
        lines.append(f"{len(tables)} tables of {rows:,} rows stand in {folder / 'result.md'}.")
    return clean("\n".join(lines), keep_newlines=True) + "\n"


def finished(folder: Path) -> StudyDocument:
    """Return the result in a folder; UsageError where the run is not finished."""
    document = read_result(folder)
    if document is None:
        study = read_study(folder)
        chunks = ", ".join(
            f"{stage.name} {sum(1 for _ in stage.iterdir())}"
            for stage in sorted((folder / CHUNKS).glob("*"))
        )
        raise UsageError(
            f"The run in {clean(str(folder))} is not finished.",
            why=f"It is of {study.run.study}, begun {study.created}; finished chunks: "
            f"{chunks or 'none'}.",
            todo=f"Go on with: emotui study resume {folder}",
        )
    return document


def show_result(folder: Path, *, as_json: bool) -> None:
    """Print a finished result."""
    document = finished(folder)
    if as_json:
        print_json(document)
    else:
        _print_outcome(document)


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    document = msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=1)
    sys.stdout.buffer.write(document + b"\n")
    sys.stdout.buffer.flush()
