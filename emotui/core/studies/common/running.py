"""What the function of a study is given: model, dataset, options, and its folder of chunks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from emotui.core.engine.answer import LabelTokens
from emotui.core.engine.capture import Job
from emotui.core.errors import TextError
from emotui.core.protocol import StudyRequest
from emotui.core.records import TextRecord
from emotui.core.studies.common.chunks import Chunks
from emotui.core.studies.common.dataset import Dataset, Item
from emotui.core.studies.common.folder import StudyRun
from emotui.core.studies.common.report import Cell, Report
from emotui.core.studies.table import numbers, settings_of, study_named
from emotui.core.text import Template

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.engine.instruments import Instruments
    from emotui.core.engine.model import LoadedModel
    from emotui.core.engine.probes import Probe
    from emotui.core.engine.saes import Sae


_Given = TypeVar("_Given")


@dataclass(frozen=True, eq=False)
class Running:
    """One run of a study on one model."""

    request: StudyRequest
    run: StudyRun
    folder: Path
    model: LoadedModel
    store: Store
    instruments: Instruments
    dataset: Dataset
    template: Template
    tokens: LabelTokens
    """The labels of the label set and how they are told apart."""
    saes: tuple[Sae, ...]
    probes: tuple[Probe, ...]
    """In force for this model, template and label set; () where none was fitted."""
    job: Job

    def text(self, option: str) -> str:
        """Return an option of the study as it was given."""
        return settings_of(study_named(self.run.study), self.request.settings)[option]

    def number(self, option: str) -> int:
        """Return an option that is one number; the table of studies has it whole."""
        return int(self.numbers(option)[0])

    def numbers(self, option: str) -> tuple[float, ...]:
        """Return an option that is numbers."""
        return numbers(option, self.text(option))

    def read(self, text: str) -> TextRecord:
        """Return the tokens of a text in the template; TextError where it cannot be read."""
        room = self.model.context_length - self.tokens.room
        return self.model.reader.read(text, self.template, context_length=room)

    def readable(self, items: Iterable[Item]) -> list[tuple[Item, TextRecord]]:
        """Return the items the model can read, with their tokens; the others are too long."""
        found = []
        for item in items:
            try:
                found.append((item, self.read(item.text)))
            except TextError:
                continue
        return found

    def generator(self, purpose: str) -> torch.Generator:
        """Return a source of random numbers that depends on the seed and the purpose alone."""
        drawn = hashlib.sha256(f"{self.run.seed}:{purpose}".encode()).digest()[:7]
        return torch.Generator().manual_seed(int.from_bytes(drawn, "big"))

    def chunks(self, name: str, *, size: int) -> Chunks:
        """Return the chunks of a stage of texts."""
        return Chunks(self.folder, name, -(-self.run.dataset.texts // size))

    def stage(
        self,
        name: str,
        count: int,
        work: Callable[[int], dict[str, Tensor]],
        *,
        phase: str | None = None,
    ) -> Chunks:
        """Do the chunks of a stage that are not finished, in order, and return all of them.

        `work(number)` must give the same tensors whenever it is called: draw with `generator`,
        never from what an earlier chunk left.
        """
        chunks = Chunks(self.folder, name, count)
        for number in range(count):
            self._do(chunks, number, work, number, phase=phase, done=number, total=count)
        return chunks

    def text_stage(
        self,
        name: str,
        work: Callable[[Sequence[Item]], dict[str, Tensor]],
        *,
        size: int = 64,
        phase: str | None = None,
    ) -> Chunks:
        """Do a stage that takes the texts `size` at a time, in the order of the dataset."""
        chunks, total = self.chunks(name, size=size), self.run.dataset.texts
        for number, items in self.dataset.batches(size):
            self._do(chunks, number, work, items, phase=phase, done=number * size, total=total)
        return chunks

    def _do(
        self,
        chunks: Chunks,
        number: int,
        work: Callable[[_Given], dict[str, Tensor]],
        given: _Given,
        *,
        phase: str | None,
        done: int,
        total: int,
    ) -> None:
        self.job.check()
        self.job.progress(phase or chunks.stage, done, total)
        if not chunks.has(number):
            chunks.put(number, work(given))


@dataclass(frozen=True)
class Cost:
    """What a run takes, apart from loading the model."""

    forwards: float
    """Forward passes of one text each, or what they are worth."""
    disk_bytes: int
    memory_bytes: int
    """Beside the model's."""
    seconds: float = 0.0
    """Of work that is no forward pass, such as fits."""


@dataclass(frozen=True)
class Implementation:
    """How a study of the table is done; each study's module names its own `STUDY`."""

    run: Callable[[Running], Any]
    """Returns the study's result, a msgspec Struct without NaN."""
    report: Callable[[Any], Report]
    """Says in words, tables and plots what a result holds."""
    cost: Callable[[Running], Cost]
    rows: Callable[[Running], tuple[Sequence[str], Iterable[Sequence[Cell]]]] | None = None
    """Columns and rows of the CSV, read from the chunks one by one; None takes the first table."""
