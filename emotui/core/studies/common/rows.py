"""Rows of a dataset as they stand: a TSV, CSV or JSONL file read as a stream, or the bundled texts.

Columns are named, or found by name or content; label maps turn what stands in the label column
into labels.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from emotui.core.columns import columns_in_words
from emotui.core.corpus import APPRAISALS, Split, load_situations
from emotui.core.engine.labelled import GROUP_NAMES, LABEL_NAMES, SAME_LABEL, TEXT_NAMES
from emotui.core.errors import UsageError
from emotui.core.text import clean

ENVENT_APPRAISALS = (
    *("suddenness", "familiarity", "predict_event", "pleasantness", "unpleasantness"),
    *("goal_relevance", "chance_responsblt", "self_responsblt", "other_responsblt"),
    *("predict_conseq", "goal_support", "urgency", "self_control", "other_control"),
    *("chance_control", "accept_conseq", "standards", "social_norms", "attention"),
    *("not_consider", "effort"),
)
"""The columns of crowd-enVENT that hold appraisals (METHODS 1.1); its writers are not read."""
_LOOKED_AT = 1000  # rows the columns are guessed from
_FIELD_LIMIT = 10_000_000
_BLOCK = 1 << 16


class Row(msgspec.Struct, frozen=True):
    """One row."""

    number: int
    """From 1; the header is none."""
    text: str
    """"" where there is none."""
    label: str
    """A label of the set; "" for none and for any other."""
    group: str
    split: Split | Literal[""]
    appraisals: tuple[float, ...]
    """NaN where the cell holds no number."""
    extra: tuple[str, ...]


class Rows(Protocol):
    """Where rows come from; may be gone through again and again."""

    name: str
    header: tuple[str, ...]
    text_column: str
    label_column: str | None
    appraisals: tuple[str, ...]
    label_maps: tuple[str, ...]

    def __iter__(self) -> Iterator[Row]: ...


class BundledRows:
    """The situations that come with emotui."""

    name = "emotui situations"
    header: tuple[str, ...] = ("text", "emotion", "topic", "person", "named", "pair")
    text_column = "text"
    label_column: str | None = "emotion"
    appraisals: tuple[str, ...] = APPRAISALS
    label_maps: tuple[str, ...] = ()

    def __init__(self, known: Sequence[str], extra: Sequence[str]) -> None:
        self._known = frozenset(known)
        self._extra = tuple(extra)
        _check_columns(self.name, extra, self.header)

    def __iter__(self) -> Iterator[Row]:
        for number, one in enumerate(load_situations(), start=1):
            yield Row(
                number=number,
                text=one.text,
                label=one.emotion if one.emotion in self._known else "",
                group=one.topic,
                split=one.split,
                appraisals=tuple(float(value) for value in one.appraisals),
                extra=tuple(str(getattr(one, name)) for name in self._extra),
            )


class FileRows:
    """The rows of a file; a column given as a number means that it has no header."""

    def __init__(
        self,
        path: Path,
        known: Sequence[str],
        *,
        text_column: str | None,
        label_column: str | None,
        label_maps: Sequence[str],
        extra: Sequence[str],
    ) -> None:
        self._path = path
        self._known = frozenset(known)
        self._encoding = _encoding(path)
        self._headless = any((name or "").isdigit() for name in (text_column, label_column))
        self._maps = [_read_map(Path(file).expanduser()) for file in label_maps]
        self._extra = tuple(extra)
        self.name = path.name
        self.label_maps = tuple(
            f"{Path(file).name} {_digest(Path(file).expanduser())}" for file in label_maps
        )
        first = list(islice(self._records(), _LOOKED_AT))
        self.header = tuple(dict.fromkeys(name for record in first for name in record))
        given = [name for name in (text_column, label_column) if name is not None]
        _check_columns(path.name, [*given, *extra], self.header)
        self.label_column = (
            label_column
            or _usual(LABEL_NAMES, self.header)
            or _likeliest(self.header, lambda name: self._share(name, first))
        )
        others = [name for name in self.header if name != self.label_column]
        found = (
            text_column
            or _usual(TEXT_NAMES, others)
            or max(others, key=lambda n: sum(len(r.get(n, "")) for r in first), default=None)
        )
        if found is None:
            raise UsageError(
                f"{clean(path.name)} has no column that could be the text.",
                why=columns_in_words(self.header),
                todo="Name it with --text-column.",
            )
        self.text_column = found
        self._group = _usual(GROUP_NAMES, self.header)
        self.appraisals = tuple(name for name in ENVENT_APPRAISALS if name in self.header)

    def __iter__(self) -> Iterator[Row]:
        for number, record in enumerate(self._records(), start=1):
            text = record.get(self.text_column, "").strip()
            group = record.get(self._group, "") if self._group else " ".join(text.lower().split())
            yield Row(
                number=number,
                text=text,
                label=self._label(record),
                group=group,
                split="",
                appraisals=tuple(_number(record.get(name, "")) for name in self.appraisals),
                extra=tuple(record.get(name, "").strip() for name in self._extra),
            )

    def _label(self, record: Mapping[str, str], column: str | None = None) -> str:
        value = record.get(column or self.label_column or "", "").strip().lower()
        for mapping in self._maps:
            value = mapping.get(value, value if value in self._known else "")
        value = SAME_LABEL.get(value, value) if value not in self._known else value
        return value if value in self._known else ""

    def _share(self, column: str, records: Sequence[Mapping[str, str]]) -> float:
        return sum(bool(self._label(record, column)) for record in records) / max(len(records), 1)

    def _records(self) -> Iterator[Mapping[str, str]]:
        name, suffix = clean(self._path.name), self._path.suffix.lower()
        csv.field_size_limit(_FIELD_LIMIT)
        try:
            with self._path.open(encoding=self._encoding, newline="") as file:
                if suffix in (".jsonl", ".ndjson"):
                    yield from _json_lines(file, name)
                    return
                delimiter = "\t" if suffix in (".tsv", ".tab") else ","
                # In a TSV a quote is a quote, unless the file was written by a CSV library.
                reader = csv.reader(file, delimiter=delimiter)
                header = None if self._headless else next(reader, [])
                for cells in reader:
                    names = header or [str(number) for number in range(1, len(cells) + 1)]
                    yield dict(zip(names, cells, strict=False))
        except OSError as error:
            raise _unreadable(self._path, f"{error.strerror}.") from error
        except csv.Error as error:
            raise _unreadable(self._path, f"{error}.") from error


def _json_lines(lines: Iterator[str], name: str) -> Iterator[Mapping[str, str]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            yield {str(key): str(value) for key, value in record.items() if value is not None}
        except (ValueError, AttributeError) as error:
            raise UsageError(
                f"Line {number} of {name} could not be read.",
                why="It is not a JSON object.",
                todo="Write one object a line, with a text in it.",
            ) from error


def _unreadable(path: Path, why: str) -> UsageError:
    return UsageError(
        f"{clean(str(path))} could not be read.",
        why=why,
        todo="Give a TSV, CSV or JSONL file with a column of texts, or `bundled`.",
    )


def _encoding(path: Path) -> str:
    """Return `utf-8-sig`, or `latin-1` where the file is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return "latin-1"
    except OSError as error:
        raise _unreadable(path, f"{error.strerror}.") from error
    return "utf-8-sig"


def _check_columns(name: str, wanted: Sequence[str], header: Sequence[str]) -> None:
    for column in wanted:
        if column not in header:
            raise UsageError(
                f"{clean(name)} has no column {clean(column)!r}.",
                why=columns_in_words(header),
            )


def _usual(names: Sequence[str], header: Sequence[str]) -> str | None:
    by_lower = {name.lower(): name for name in reversed(header)}
    return next((by_lower[name] for name in names if name in by_lower), None)


def _likeliest(header: Sequence[str], share: Callable[[str], float]) -> str | None:
    """Return the column that most often holds a label, where it does in half of the rows."""
    shares = {name: share(name) for name in header}
    best = max(shares, key=lambda name: shares[name], default=None)
    return best if best is not None and shares[best] >= 0.5 else None


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _read_map(path: Path) -> dict[str, str]:
    """Return what a file makes of a value of the label column, lower case; labels stay themselves.

    A .json object maps a value to a label, or a label to a list of values; any other file holds
    one label a line, for the values 0, 1, 2, ... .
    """
    name = clean(path.name)
    try:
        content = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() != ".json":
            return {str(n): line.strip().lower() for n, line in enumerate(content.splitlines())}
        given = msgspec.json.decode(content, type=dict[str, str | list[str]])
    except OSError as error:
        raise _unreadable(path, f"{error.strerror}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{name} is no label map.",
            why="It is not a JSON object of texts, or of lists of texts.",
            todo='Write {"value": "label"}, {"label": ["value", ...]}, or one label a line.',
        ) from error
    found: dict[str, str] = {}
    for key, value in given.items():
        if isinstance(value, str):
            found[key.strip().lower()] = value.strip().lower()
        else:
            found |= {one.strip().lower(): key.strip().lower() for one in value}
    return found
