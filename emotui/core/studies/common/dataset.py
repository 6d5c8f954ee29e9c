"""The dataset of a study: texts drawn from a file, or the bundled situations, read as a stream.

A first pass counts the labels and draws the texts; what it keeps does not grow with the file
beyond the limit that was set. A text is known by the hash of its characters.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

import msgspec

from emotui.core.columns import columns_in_words
from emotui.core.corpus import Split
from emotui.core.engine.labelled import draw, labels_of
from emotui.core.errors import UsageError
from emotui.core.protocol import StudyRequest
from emotui.core.studies.common.rows import BundledRows, FileRows, Rows
from emotui.core.studies.table import (
    columns_of,
    least_of_a_label,
    settings_of,
    study_named,
    without_labels,
)
from emotui.core.text import clean
from emotui.core.wording import emotion_words

BUNDLED = "bundled"
"""The word that stands for the situations that come with emotui."""
LEAST_OF_A_LABEL = 2


class Item(msgspec.Struct, frozen=True):
    """One text of a dataset."""

    index: int
    """Its number among those taken, from 0."""
    row: int
    """Its row in the file, from 1; the header is none."""
    text: str
    id: str
    """16 hex digits: of the SHA-256 of the text."""
    label: int
    """Index in `Dataset.labels`; -1 without a label."""
    group: str
    """Texts of one group (a topic; else the text itself) are never in two splits or folds."""
    named: bool
    """Whether the text holds an emotion word."""
    split: Split | Literal[""]
    """The split of the bundled corpus; "" in a file."""
    appraisals: tuple[float, ...]
    """In the order of `Dataset.appraisals`; NaN where there is none."""
    extra: tuple[str, ...]
    """What stands in the further columns that the study asked for."""


class DatasetSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What a result says of the texts it is about: no path, no text."""

    name: str
    text_column: str
    label_column: str
    """"" where there is none."""
    label_set: str
    label_maps: tuple[str, ...]
    """Name and hash of each."""
    columns: tuple[str, ...]
    """Further columns that were read."""
    appraisals: tuple[str, ...]
    rows: int
    empty: int
    """Rows without a text."""
    unlabelled: int
    """Rows whose label is none of the set."""
    too_few: dict[str, int]
    """Labels left out because they have fewer than two texts."""
    texts: int
    """Those taken."""
    labels: dict[str, int]
    """Label to number of texts taken; "" is those without a label."""
    digest: str
    """SHA-256 over rows, ids, labels and further columns of those taken."""


class Dataset:
    """Texts that can be gone through again and again; the file must not change meanwhile."""

    def __init__(
        self, rows: Rows, *, labels: tuple[str, ...], taken: frozenset[int] | None, labelled: bool
    ) -> None:
        """`taken` are numbers of rows, None for all; with `labelled` only those with a label."""
        self._rows = rows
        self._taken = taken
        self._labelled = labelled
        self.labels = labels
        """In the order of their indices; () where the dataset has no labels."""
        self.appraisals = rows.appraisals

    def __iter__(self) -> Iterator[Item]:
        numbers = {label: number for number, label in enumerate(self.labels)}
        index = 0
        for row in self._rows:
            label = numbers.get(row.label, -1)
            drawn = self._taken is None or row.number in self._taken
            if not row.text or not drawn or (self._labelled and label < 0):
                continue
            yield Item(
                index=index,
                row=row.number,
                text=row.text,
                id=item_id(row.text),
                label=label,
                group=row.group,
                named=bool(emotion_words(row.text)),
                split=row.split,
                appraisals=row.appraisals,
                extra=row.extra,
            )
            index += 1

    def batches(self, size: int) -> Iterator[tuple[int, list[Item]]]:
        """Yield the number of a batch, from 0, and its items, in the order of the file."""
        items, number = iter(self), 0
        while batch := list(islice(items, size)):
            yield number, batch
            number += 1

    def items(self, indices: Sequence[int]) -> list[Item]:
        """Return some items, in the order asked for; one pass over the file."""
        wanted = set(indices)
        found = {item.index: item for item in self if item.index in wanted}
        return [found[index] for index in indices]


def item_id(text: str) -> str:
    """Return the id of a text."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def open_dataset(
    data: str,
    *,
    label_set: str,
    needs_labels: bool,
    text_column: str | None = None,
    label_column: str | None = None,
    label_maps: Sequence[str] = (),
    extra: Sequence[str] = (),
    limit: int | None = None,
    seed: int = 0,
) -> tuple[Dataset, DatasetSummary]:
    """Open a TSV, CSV or JSONL file, or `bundled`; draw at most `limit` texts, by label.

    A column given as a number means a file without a header, counted from 1. Texts without a label
    of the set are dropped where labels are needed. Raises UsageError for a file that cannot be
    read, a column it lacks, no label column where one is needed, fewer than two labels with two
    texts, or nothing to read.
    """
    known = labels_of(label_set)
    if limit is not None and limit < 1:
        raise UsageError("--limit must be at least 1.")
    rows: Rows
    if data == BUNDLED:
        rows = BundledRows(known, extra)
    else:
        rows = FileRows(
            Path(data).expanduser(),
            known,
            text_column=text_column,
            label_column=label_column,
            label_maps=label_maps,
            extra=extra,
        )
    if needs_labels and rows.label_column is None:
        raise UsageError(
            f"{clean(rows.name)} has no column that could be the label.",
            why=f"{columns_in_words(rows.header)} This study needs labels; "
            f"these do not: {without_labels()}.",
            todo="Name it with --label-column, and what its values mean with --label-map.",
        )
    counts = _Counts(rows, needs_labels=needs_labels, limit=limit, seed=seed)
    few = {n: c for n, c in counts.labels.items() if n and needs_labels and c < LEAST_OF_A_LABEL}
    labels = tuple(label for label in known if counts.labels[label] and label not in few)
    if needs_labels and len(labels) < 2:
        said = ", ".join(f"{label} {count:,}" for label, count in counts.labels.items())
        raise UsageError(
            f"{clean(rows.name)} holds too few labelled texts.",
            why=f"Fewer than two labels of {label_set} have {LEAST_OF_A_LABEL} texts; found: "
            f"{said or 'none'}; {counts.unlabelled:,} rows have another label or none.",
            todo=f"Give texts labelled with: {', '.join(known)}; or a --label-map.",
        )
    if not counts.labels.total():
        raise UsageError(
            f"{clean(rows.name)} holds no text.",
            why=f"{counts.rows:,} rows were read; in {counts.empty:,} the column "
            f"{clean(rows.text_column)!r} is empty.",
            todo="Name the column of texts with --text-column.",
        )
    dataset = Dataset(rows, labels=labels, taken=counts.drawn(set(few)), labelled=needs_labels)
    return dataset, _summary(dataset, rows, counts, label_set, tuple(extra), few)


def dataset_of(request: StudyRequest) -> tuple[Dataset, DatasetSummary]:
    """Return the dataset of a request; UsageError where it cannot be what is asked.

    So it is where the texts taken are too few for the study, whatever a model makes of them.
    """
    study = study_named(request.study)
    settings = settings_of(study, request.settings)
    dataset, summary = open_dataset(
        request.data,
        label_set=request.label_set,
        needs_labels=study.needs_labels,
        text_column=request.text_column,
        label_column=request.label_column,
        label_maps=request.label_maps,
        extra=columns_of(study, settings),
        limit=request.limit if request.limit is not None else study.most_texts,
        seed=request.seed,
    )
    least = least_of_a_label(study, settings)
    if study.needs_labels and sum(count >= least for count in summary.labels.values()) < 2:
        said = ", ".join(f"{label} {count:,}" for label, count in summary.labels.items())
        raise UsageError(
            f"There are too few texts for the study {study.name}.",
            why=f"Fewer than two labels have {least} texts; taken were: {said}.",
            todo="Give more texts, or raise --limit.",
        )
    return dataset, summary


class _Counts:
    """One pass over the rows: how many of each label, and which are drawn."""

    def __init__(self, rows: Rows, *, needs_labels: bool, limit: int | None, seed: int) -> None:
        self.rows = self.empty = self.unlabelled = 0
        self.labels: Counter[str] = Counter()
        self._limit = limit
        # The largest draw of a label stands first, negated, and goes when a smaller one comes.
        self._lowest: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for row in rows:
            self.rows += 1
            if not row.text:
                self.empty += 1
                continue
            if not row.label:
                self.unlabelled += 1
                if needs_labels:
                    continue
            self.labels[row.label] += 1
            if limit is not None:
                drawn = -int.from_bytes(draw(row.text, seed)[:8], "big")
                keep = heapq.heappushpop if len(self._lowest[row.label]) >= limit else _push
                keep(self._lowest[row.label], (drawn, -row.number))

    def drawn(self, without: set[str]) -> frozenset[int] | None:
        """Return the numbers of the rows drawn, the same share of each label; None for all."""
        total = sum(count for label, count in self.labels.items() if label not in without)
        if self._limit is None or total <= self._limit:
            return None
        taken = []
        for label, lowest in self._lowest.items():
            if label not in without:
                count = max(1, int(self.labels[label] * self._limit / total))
                taken += sorted(lowest, reverse=True)[:count]
        return frozenset(-number for _, number in taken)


def _push(heap: list[tuple[int, int]], entry: tuple[int, int]) -> None:
    heapq.heappush(heap, entry)


def _summary(
    dataset: Dataset,
    rows: Rows,
    counts: _Counts,
    label_set: str,
    extra: tuple[str, ...],
    few: dict[str, int],
) -> DatasetSummary:
    digest, labels = hashlib.sha256(), Counter[str]()
    for item in dataset:
        label = dataset.labels[item.label] if item.label >= 0 else ""
        labels[label] += 1
        line = (item.row, item.id, label, item.group, item.appraisals, item.extra)
        digest.update(repr(line).encode(errors="backslashreplace") + b"\n")
    return DatasetSummary(
        name=clean(rows.name),
        text_column=clean(rows.text_column),
        label_column=clean(rows.label_column or ""),
        label_set=label_set,
        label_maps=rows.label_maps,
        columns=extra,
        appraisals=dataset.appraisals,
        rows=counts.rows,
        empty=counts.empty,
        unlabelled=counts.unlabelled,
        too_few=few,
        texts=labels.total(),
        labels={label: labels[label] for label in (*dataset.labels, "") if labels[label]},
        digest=digest.hexdigest(),
    )
