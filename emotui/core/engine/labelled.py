"""Labelled texts to fit probes on: the bundled situations, or a user's file; torch-free."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from emotui.core.columns import columns_in_words
from emotui.core.corpus import load_situations
from emotui.core.emotions import LABEL_SETS
from emotui.core.engine.hub_data import dataset_files, is_dataset_id, read_parquet
from emotui.core.errors import UsageError
from emotui.core.text import clean
from emotui.core.wording import emotion_words

if TYPE_CHECKING:
    from emotui.core.engine.capture import Job

Split = Literal["train", "dev", "test", "other"]

BUNDLED = "emotui situations"
NEUTRAL = "neutral"
MAX_TEXTS = 4000
"""Most texts taken from a file, the same share of each label."""
_LEAST_TRAIN = 8  # texts of a label in training; below that it is left out
_HELD_OUT = 0.15  # share of the groups of a label for each of dev and test
TEXT_NAMES = ("text", "sentence", "content", "utterance", "body", "hidden_emo_text")
LEAST_JUDGED = 5
"""Texts of each label that a probe is judged on."""
LABEL_NAMES = ("label", "emotion", "emotion_label", "category", "class", "target")
GROUP_NAMES = ("topic", "group")
SAME_LABEL = {"no-emotion": NEUTRAL, "no emotion": NEUTRAL, "none": NEUTRAL, "happiness": "joy"}
_csv_limit = 10_000_000


class LabelledText(msgspec.Struct, frozen=True):
    """One text, its label as an index, and what it is used for."""

    text: str
    label: int
    split: Split
    named: bool
    """Whether the text holds an emotion word: one that is listed (`core.wording`)."""
    group: str
    """Texts of one group (a topic) are never in two splits or folds."""


class Labelled(msgspec.Struct, frozen=True):
    """Texts to fit and judge probes on."""

    texts: tuple[LabelledText, ...]
    emotions: tuple[str, ...]
    """The labels, in the order of their indices; those of the label set that have enough texts."""
    name: str
    """What it is, for the probe's card: no path, no text."""
    other: str = ""
    """What the texts of the split `other` are; "" without any."""
    another_source: bool = True
    """Whether they are of another source than the texts fitted on, not another file of the same."""
    within: bool = True
    """Whether held-out texts of the source itself may earn trust: of the situations, whose topics
    are held out whole and half of which hold no emotion word, and of a study of one data set,
    which says that it is one."""

    @property
    def digest(self) -> str:
        """SHA-256 over texts, labels and splits, as hex digits."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()


class Row(msgspec.Struct, frozen=True):
    """One text of a file before it is split; `split` None is not yet known."""

    text: str
    label: str
    group: str
    named: bool
    split: Split | None


def labels_of(label_set: str) -> tuple[str, ...]:
    """Return the labels of a set; UsageError names the sets there are."""
    if label_set not in LABEL_SETS:
        raise UsageError(
            f"There is no label set called {clean(label_set)!r}.",
            todo=f"Use one of: {', '.join(LABEL_SETS)}.",
        )
    return LABEL_SETS[label_set]


def labelled_texts(
    *,
    label_set: str,
    data: str | None,
    other: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    seed: int = 0,
    job: Job | None = None,
) -> Labelled:
    """Return the bundled situations, or the texts of the file `data`, split by topic.

    Texts whose label is outside the label set are dropped, and so are labels with too few texts
    to train on. The texts of `other`, a file of another source, get the split `other`; for a file
    `data` without one, the situations of held-out topics do, where they have all its labels. Those
    that occur among the texts fitted on are dropped. The columns named are those of `data`, or of
    `other` where there is no `data`; others are found by name, or by content. UsageError where a
    file cannot be read, has no such columns, or fewer than two labels with enough texts, and where
    too few texts of `other` are left. A dataset of the hub is downloaded with progress to `job`.
    """
    known = labels_of(label_set)
    if data is None:
        rows, name = list(_situations()), BUNDLED
    else:
        rows, name = _file_rows(data, known, text_column, label_column, job)
        rows = split_rows(_at_most(rows, known, seed), seed)
    training = Counter(row.label for row in rows if row.split == "train")
    emotions = tuple(label for label in known if training[label] >= _LEAST_TRAIN)
    if len(emotions) < 2:
        raise UsageError(
            f"{clean(name)} holds too few texts to fit on.",
            why=f"Fewer than two labels of {label_set} have {_LEAST_TRAIN} texts for training.",
            todo=f"Give texts labelled with: {', '.join(known)}.",
        )
    rare = Counter(row.label for row in rows if row.label not in emotions)
    if data is not None and rare:
        counts = ", ".join(f"{label} ({rare[label]})" for label in known if rare[label])
        name = f"{name}; left out for too few texts: {counts}"
    judging: list[Row] = []
    other_name = ""
    if other is not None:
        columns = (text_column, label_column) if data is None else (None, None)
        judging, other_name = _file_rows(other, known, *columns, job)
        judging, told = _unseen(_at_most(judging, known, seed), rows, emotions, other_name)
        other_name = f"{other_name}{told}"
    elif data is not None:
        held_out = [r for r in _situations() if r.split != "train" and r.label in emotions]
        judging = _not_among(held_out, rows)
        judging = judging if _enough(judging, emotions) else []
        other_name = f"{BUNDLED} of held-out topics ({len(judging):,} texts)" if judging else ""
    index = {label: number for number, label in enumerate(emotions)}
    texts = tuple(
        LabelledText(row.text, index[row.label], row.split, row.named, row.group)
        for row in (*rows, *(msgspec.structs.replace(row, split="other") for row in judging))
        if row.label in index and row.split is not None
    )
    return Labelled(
        texts,
        emotions,
        name,
        other=other_name,
        another_source=not same_source(name, other_name),
        within=data is None,
    )


def same_source(first: str, second: str) -> bool:
    """Return whether two names of data are those of files of one data set.

    What tells a part (train, dev, test) and the kind of file apart is no part of the name.
    """
    return _stem(first) == _stem(second)


def _stem(name: str) -> str:
    first = name.split(" (")[0].lower()
    return re.sub(r"[-_.: ]?(train|dev|test|validation|valid|val)\b.*$|\.[a-z]+$", "", first)


def _normal(text: str) -> str:
    """Return what a text has in common with its copies: not case, space, quotes or full stops."""
    words = re.findall(r"\w+", text.lower())
    return " ".join(words or text.split())


def _not_among(rows: Sequence[Row], fitted: Sequence[Row]) -> list[Row]:
    known = {_normal(row.text) for row in fitted}
    return [row for row in rows if _normal(row.text) not in known]


def _enough(rows: Sequence[Row], emotions: Sequence[str]) -> bool:
    counts = Counter(row.label for row in rows)
    return all(counts[label] >= LEAST_JUDGED for label in emotions)


def _unseen(
    rows: list[Row], fitted: Sequence[Row], emotions: Sequence[str], name: str
) -> tuple[list[Row], str]:
    """Return the rows that are not fitted on, and what is to be said of those that are."""
    left = _not_among(rows, fitted)
    dropped = len(rows) - len(left)
    if not dropped:
        return left, ""
    if not _enough(left, emotions):
        counts = Counter(row.label for row in left)
        raise UsageError(
            f"{clean(name)} leaves too few texts to judge a probe on.",
            why=f"{dropped:,} of its {len(rows):,} texts are fitted on too; of the others there "
            f"are {', '.join(f'{label} {counts[label]}' for label in emotions)}, and "
            f"{LEAST_JUDGED} of each are needed.",
            todo="Give texts of another source with --other, or leave it out.",
        )
    return left, f"; {dropped:,} texts left out that are fitted on too"


def _situations() -> list[Row]:
    return [
        Row(item.text, item.emotion, item.topic, bool(emotion_words(item.text)), item.split)
        for item in load_situations()
    ]


def _file_rows(
    file: str,
    known: Sequence[str],
    text_column: str | None,
    label_column: str | None,
    job: Job | None,
) -> tuple[list[Row], str]:
    if is_dataset_id(file):
        shown = file
        records = [record for one in dataset_files(file, job) for record in _read(one)]
    else:
        path = Path(file).expanduser()
        shown = path.name
        records = _read(path)
    columns = list(dict.fromkeys(name for record in records[:100] for name in record))
    label_name = _column(
        label_column, columns, LABEL_NAMES, "label", shown, all_columns=columns
    ) or _label_guess(records, columns, known)
    others = [column for column in columns if column != label_name]
    text_name = _column(
        text_column, others, TEXT_NAMES, "text", shown, all_columns=columns
    ) or _text_guess(records, others)
    if label_name is None or text_name is None:
        raise UsageError(
            f"{clean(shown)} has no column that could be the "
            f"{'label' if label_name is None else 'text'}.",
            why=columns_in_words(columns),
            todo="Name them with --text-column and --label-column.",
        )
    group_name = next((name for name in GROUP_NAMES if name in columns), None)
    rows = []
    for record in records:
        text = record.get(text_name, "").strip()
        label = record.get(label_name, "").strip().lower()
        label = label if label in known else SAME_LABEL.get(label, "")
        if text and label in known:
            group = record.get(group_name, "") if group_name else " ".join(text.lower().split())
            rows.append(Row(text, label, group, bool(emotion_words(text)), None))
    name = (
        f"{shown} (text: {text_name}, label: {label_name}; {len(rows):,} of {len(records):,} rows)"
    )
    return rows, name


def _read(path: Path) -> list[dict[str, str]]:
    if path.suffix.lower() == ".parquet":
        return read_parquet(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{clean(str(path))} could not be read.",
            why=f"{error.strerror}.",
            todo="Give a TSV, CSV or JSONL file with a text and a label column.",
        ) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return _read_json_lines(path, text)
    separator = "\t" if path.suffix.lower() in (".tsv", ".tab") else ","
    csv.field_size_limit(_csv_limit)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
        return [
            {key: value for key, value in row.items() if key and isinstance(value, str)}
            for row in reader
        ]
    except csv.Error as error:
        raise UsageError(f"{clean(str(path))} could not be read.", why=f"{error}.") from error


def _read_json_lines(path: Path, text: str) -> list[dict[str, str]]:
    records = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            records.append({str(k): str(v) for k, v in record.items() if v is not None})
        except (ValueError, AttributeError) as error:
            raise UsageError(
                f"Line {number} of {clean(str(path))} could not be read.",
                why="It is not a JSON object.",
                todo="Write one object a line, with a text and a label in it.",
            ) from error
    return records


def _column(
    given: str | None,
    columns: Sequence[str],
    usual: Iterable[str],
    what: str,
    shown: str,
    *,
    all_columns: Sequence[str],
) -> str | None:
    """Return the given column, or one with a usual name; None leaves it to the content."""
    if given is not None and given not in columns:
        raise UsageError(
            f"{clean(shown)} has no {what} column {clean(given)!r}.",
            why=columns_in_words(all_columns),
            todo=f"Name one of them with --{what}-column.",
        )
    by_lower = {name.lower(): name for name in reversed(columns)}
    return given or next((by_lower[name] for name in usual if name in by_lower), None)


def _label_guess(
    records: Sequence[Mapping[str, str]], columns: Sequence[str], known: Sequence[str]
) -> str | None:
    shares = {
        name: sum(record.get(name, "").strip().lower() in known for record in records)
        for name in columns
    }
    best = max(shares, key=lambda name: shares[name], default=None)
    return best if best is not None and shares[best] * 2 >= max(len(records), 1) else None


def _text_guess(records: Sequence[Mapping[str, str]], columns: Sequence[str]) -> str | None:
    sizes = {name: sum(len(record.get(name, "")) for record in records) for name in columns}
    return max(sizes, key=lambda name: sizes[name], default=None)


def _at_most(rows: Sequence[Row], known: Sequence[str], seed: int) -> list[Row]:
    """Return at most `MAX_TEXTS` rows, the same share of every label."""
    if len(rows) <= MAX_TEXTS:
        return list(rows)
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_label[row.label].append(row)
    share = MAX_TEXTS / len(rows)
    return [
        row
        for label in known
        for row in sorted(by_label[label], key=lambda row: draw(row.text, seed))[
            : max(1, int(len(by_label[label]) * share))
        ]
    ]


def draw(text: str, seed: int) -> bytes:
    """Return what a text is drawn by: its order among others does not depend on theirs."""
    return hashlib.sha256(f"{seed}:{text}".encode(errors="surrogatepass")).digest()


def split_rows(rows: Sequence[Row], seed: int) -> list[Row]:
    """Hold out groups, drawn by hash, of each label in turn: 15 % for dev and 15 % for test."""
    by_label: dict[str, list[str]] = defaultdict(list)
    placed: set[str] = set()
    for row in rows:
        if row.group not in placed:
            placed.add(row.group)
            by_label[row.label].append(row.group)
    splits: dict[str, Split] = {}
    for groups in by_label.values():
        drawn = sorted(groups, key=lambda group: draw(group, seed))
        held_out = max(1, round(len(drawn) * _HELD_OUT))
        for number, group in enumerate(drawn):
            splits[group] = (
                "test" if number < held_out else "dev" if number < 2 * held_out else "train"
            )
    return [msgspec.structs.replace(row, split=splits[row.group]) for row in rows]
