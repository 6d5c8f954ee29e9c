"""Doing one study, in the engine of studies: open, check, run, write its files."""

from __future__ import annotations

import importlib
import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import torch

from emotui.cache.prepare import probes_in_force
from emotui.cache.store import Store
from emotui.core.engine.answer import label_tokens
from emotui.core.engine.capture import Job
from emotui.core.engine.inspect import note_of
from emotui.core.engine.instruments import Instruments
from emotui.core.engine.model import LoadedModel, package_versions
from emotui.core.errors import UsageError
from emotui.core.model_names import recorded_name
from emotui.core.protocol import StudyDone, StudyPlanned, StudyRequest
from emotui.core.studies.common import folder as folders
from emotui.core.studies.common.dataset import dataset_of
from emotui.core.studies.common.folder import StudyDocument, StudyFile, StudyRun
from emotui.core.studies.common.pages import write_pages
from emotui.core.studies.common.readings import run_batch
from emotui.core.studies.common.running import Implementation, Running
from emotui.core.studies.table import Study, recorded_settings, study_named
from emotui.core.text import template_named

_TIMED = 8  # texts of the batch that is timed


def implementation_of(study: Study) -> Implementation:
    """Return how a study is done."""
    module = importlib.import_module(f"emotui.core.studies.{study.name}")
    found: Implementation = module.STUDY
    return found


def run_study(
    request: StudyRequest, model: LoadedModel, instruments: Instruments, store: Store, job: Job
) -> StudyDone | StudyPlanned:
    """Do a study, or go on with it, and write its files; with `plan` only tell what it takes.

    UsageError where the folder holds another run or the dataset cannot be what is asked;
    Cancelled, with the finished chunks kept, where the user cancelled.
    """
    started = time.monotonic()
    study = study_named(request.study)
    implementation = implementation_of(study)
    job.progress("reading the dataset")
    running = _running(request, study, model, instruments, store, job)
    if request.plan:
        return _plan(running, implementation)
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    folders.begin(running.folder, StudyFile(created=created, request=request, run=running.run))
    document = _document(running, implementation)
    return StudyDone(
        out=str(running.folder),
        sentences=document.report.sentences,
        seconds=time.monotonic() - started,
    )


def _document(running: Running, implementation: Implementation) -> StudyDocument:
    result = implementation.run(running)
    running.job.check()
    running.job.progress("writing the results")
    report = implementation.report(result)
    document = StudyDocument(run=running.run, result=msgspec.to_builtins(result), report=report)
    # As it will be read back: mappings in the order of the file, NaN as null.
    content = msgspec.json.encode(document, order="sorted")
    document = msgspec.json.decode(content, type=StudyDocument)
    msgspec.convert(document.result, type(result))  # no NaN where a number must stand
    rows = implementation.rows(running) if implementation.rows is not None else None
    write_pages(running.folder, document, rows, result_type=type(result), html=running.request.html)
    return document


def _running(
    request: StudyRequest,
    study: Study,
    model: LoadedModel,
    instruments: Instruments,
    store: Store,
    job: Job,
) -> Running:
    dataset, summary = dataset_of(request)
    template = template_named(request.template)
    tokens = label_tokens(model.reader, request.label_set, template)
    sets = instruments.saes(request.saes, job, needed=study.saes == "needed")
    saes = tuple(sae for source in sets for sae in source)
    if study.saes == "needed" and not saes:
        raise UsageError(
            f"The study {study.name} needs SAEs.",
            todo="Name them with --sae; `emotui models` lists the published ones.",
        )
    probe_ids = probes_in_force(
        store, model.fingerprint, template=request.template, label_set=request.label_set
    )
    run = StudyRun(
        study=request.study,
        settings=recorded_settings(study, request.settings),
        seed=request.seed,
        limit=request.limit,
        dataset=summary,
        model=recorded_name(request.spec.model),
        revision=model.revision,
        fingerprint=model.fingerprint,
        architecture=model.architecture,
        layers=model.n_layers,
        d_model=model.d_model,
        dtype=model.dtype_name,
        device=model.device_name,
        attention=model.attention,
        note=note_of(request.spec),
        template=template,
        labels=tokens.labels,
        label_tokens=tokens.sequences,
        answer_rule=tokens.rule,
        saes=tuple(sae.key for sae in saes),
        probes=probe_ids,
        packages={**package_versions(), "python": platform.python_version()},
    )
    return Running(
        request=request,
        run=run,
        folder=Path(request.out),
        model=model,
        store=store,
        instruments=instruments,
        dataset=dataset,
        template=template,
        tokens=tokens,
        saes=saes,
        probes=instruments.probes(probe_ids),
        job=job,
    )


def _plan(running: Running, implementation: Implementation) -> StudyPlanned:
    """Time a few texts, one by one as the longest runs are, and ask the study what it takes."""
    found: list[Any] = []
    for item in running.dataset:
        found += running.readable([item])
        if len(found) == _TIMED:
            break
    if not found:
        raise UsageError(
            "None of the texts looked at can be read by this model.",
            why="With the template they are longer than its context.",
            todo="Give shorter texts or another --template.",
        )
    prompts = [[token.id for token in text.tokens] for _, text in found]
    run_batch(running.model, prompts[:1], running.tokens, job=running.job)  # the first is slower
    started = time.monotonic()
    for prompt in prompts:
        run_batch(running.model, [prompt], running.tokens, job=running.job)
    if running.model.device.type == "cuda":
        for device in set(running.model.devices):
            torch.cuda.synchronize(device)
    each = (time.monotonic() - started) / len(prompts)
    cost = implementation.cost(running)
    return StudyPlanned(
        texts=running.run.dataset.texts,
        seconds=cost.forwards * each + cost.seconds,
        disk_bytes=cost.disk_bytes,
        memory_bytes=cost.memory_bytes,
        notes=notes_of(running.run),
    )


def notes_of(run: StudyRun) -> tuple[str, ...]:
    """Return what must be known of a run before its numbers: dataset, labels, prompt."""
    data = run.dataset
    counts = ", ".join(f"{label or 'no label'} {count:,}" for label, count in data.labels.items())
    left_out = []
    if data.empty:
        left_out.append(f"{data.empty:,} rows without a text")
    if data.unlabelled and "" not in data.labels:
        left_out.append(f"{data.unlabelled:,} with another label or none")
    if data.too_few:
        left_out.append("labels with a single text: " + ", ".join(data.too_few))
    rules = {
        "first_token": "the first tokens of the labels are compared",
        "after_shared_prefix": "the labels share their first tokens, which are appended first",
        "whole_label": "labels share tokens, so the whole labels' log-probabilities are compared",
    }
    columns = f"text: {data.text_column}" + (
        f", label: {data.label_column}" if data.label_column else ", no label column"
    )
    return (
        f"{data.name} ({columns}): {data.texts:,} of {data.rows:,} rows; {counts}.",
        *([f"Left out: {'; '.join(left_out)}."] if left_out else []),
        f"Prompt: {run.template.before!r} TEXT {run.template.after!r}"
        f"{' in the chat template' if run.template.chat else ''}. Answers of {data.label_set}: "
        f"{rules[run.answer_rule]}.",
        *([f"Note: {run.note}"] if run.note else []),
    )
