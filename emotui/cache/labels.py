"""What SAE features are called: measured here, or explained elsewhere; SQLite files, torch-free.

    labels/<SAEs>/measured-<model>.sqlite   emotion selectivity and promoted words: `labels fit`
    labels/<SAEs>/explained.sqlite          explanations imported for SAEs of a local folder
    labels/neuronpedia/<id>.sqlite          explanations of one SAE of Neuronpedia's
    <each>.state                            a digest of the file: part of what a trace's key is

<SAEs> and <model> are the first 16 digits of the hash of the SAEs' identity and of the model's
fingerprint. Files are written whole, and only read afterwards.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from emotui.cache import files, layout
from emotui.core.emotions import LEXICON
from emotui.core.errors import SaeError
from emotui.core.text import clean

FOLDER = "labels"
NEURONPEDIA = "neuronpedia"
MAX_LABEL = 160
"""Characters of an explanation that are kept."""
_DIGITS = 16
_SUFFIX, _STATE = ".sqlite", ".state"
_Row = TypeVar("_Row", "Measured", "Explanation")
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE features (
    place TEXT NOT NULL, number INTEGER NOT NULL, row TEXT NOT NULL, PRIMARY KEY (place, number)
) WITHOUT ROWID;
"""


class Measured(msgspec.Struct, frozen=True, array_like=True):
    """What was measured of one feature; areas are under the curve, from 0 to 1."""

    emotion: str
    """The emotion with the largest area on the first half of the texts."""
    area: float
    confirmed: float
    """The area of the same emotion on the second half."""
    p: float
    """Family-wise: over all features and emotions of the SAEs measured together."""
    breadth: float
    """Effective number of emotions that the feature is above neutral for."""
    named: bool
    """Whether p < 0.05 and the second half confirms it; else the feature has no emotion's name."""
    specific: bool
    words: str
    """The words it promotes; "" where these were not computed."""


class Explanation(msgspec.Struct, frozen=True, array_like=True):
    """What somebody else calls a feature."""

    text: str
    origin: str
    """Where it comes from, as in `neuronpedia gpt-4o-mini 2024-08-01`."""


class LabelFile(msgspec.Struct, frozen=True):
    """One file of labels, in short."""

    path: str
    """Below the cache's `labels` folder."""
    rows: int
    meta: dict[str, str]
    """`kind` (measured | explained), `source`, `created`, and what else was noted."""


def short(identity: str) -> str:
    """Return the 16 digits that stand for an identity in paths."""
    return hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:_DIGITS]


def measured_path(root: Path, identity: str, fingerprint: str) -> Path:
    """Return the file of what was measured of SAEs under a model."""
    name = f"measured-{fingerprint[:_DIGITS]}{_SUFFIX}"
    return root / FOLDER / short(identity) / name


def explained_path(root: Path, *, identity: str = "", neuronpedia: str = "") -> Path:
    """Return the file of explanations: of SAEs of a local folder, or of one id of Neuronpedia's."""
    if neuronpedia:
        name = re.sub(r"[^A-Za-z0-9._-]", "_", neuronpedia)[:100] + f"-{short(neuronpedia)[:6]}"
        return root / FOLDER / NEURONPEDIA / f"{name}{_SUFFIX}"
    return root / FOLDER / short(identity) / f"explained{_SUFFIX}"


def state(root: Path, source: str, identity: str, fingerprint: str) -> str:
    """Return a digest of all labels that may be in force for a source; "" without any.

    Reads the small state files alone, so that the key of a trace can be told at once.
    """
    folders = [files.joined(root, FOLDER, short(identity))]
    if identity == source:  # a release: its SAEs have Neuronpedia's ids
        folders.append(files.joined(root, FOLDER, NEURONPEDIA))
    other = re.compile(rf"measured-(?!{fingerprint[:_DIGITS]})")
    found = []
    for folder in folders:  # strings: see `files`
        for name in sorted(layout.listed(folder)):
            if name.endswith(_STATE) and not other.match(name):
                with contextlib.suppress(OSError):
                    content = files.read(files.joined(folder, name))
                    found.append(f"{name} {content.decode('ascii')}")
    return hashlib.sha256("\n".join(found).encode()).hexdigest()[:_DIGITS] if found else ""


def write(
    path: Path,
    rows: Iterable[tuple[str, int, Measured | Explanation]],
    *,
    meta: Mapping[str, str],
    keep: bool = False,
) -> int:
    """Write a file of labels whole, rows (place, index, label), and return how many it holds.

    With `keep`, rows of a file that stands there stay unless they come again. Raises OSError.
    """
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.executescript(_SCHEMA)
        insert = "INSERT OR REPLACE INTO features VALUES (?, ?, ?)"
        if keep and path.is_file():
            with contextlib.suppress(sqlite3.Error), _opened(path) as before:
                database.executemany(insert, before.execute("SELECT * FROM features"))
        encode = msgspec.json.encode
        database.executemany(insert, ((p, n, encode(row).decode()) for p, n, row in rows))
        database.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", meta.items())
        database.commit()
        count = int(database.execute("SELECT count(*) FROM features").fetchone()[0])
        content = database.serialize()
    files.make_folder(path.parent.parent.parent)
    files.write_whole(path, content)
    files.write_whole(path.with_suffix(_STATE), hashlib.sha256(content).hexdigest().encode())
    return count


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    place = path.absolute().as_uri() + "?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(place, uri=True)) as database:
        yield database


def _rows(path: Path, place: str | None) -> dict[tuple[str, int], str]:
    if not path.is_file():
        return {}
    try:
        with _opened(path) as database:
            query = "SELECT place, number, row FROM features WHERE ? IS NULL OR place = ?"
            found = database.execute(query, (place, place))
            return {(str(place), int(number)): str(row) for place, number, row in found}
    except (sqlite3.Error, ValueError, TypeError) as error:
        raise _unreadable(path, f"The file is damaged ({type(error).__name__}).") from error


def _unreadable(path: Path, why: str) -> SaeError:
    return SaeError(
        f"The feature labels in {clean(path.name)} could not be read.",
        why=why,
        todo="Remove them with `emotui labels remove` and make them again.",
    )


def _decoded(path: Path, place: str | None, kind: type[_Row]) -> dict[tuple[str, int], _Row]:
    try:
        return {key: msgspec.json.decode(row, type=kind) for key, row in _rows(path, place).items()}
    except msgspec.DecodeError as error:
        raise _unreadable(path, "They are not what this version writes.") from error


def measured_of(path: Path) -> dict[tuple[str, int], Measured]:
    """Return all rows of a file by place and index; empty without the file."""
    return _decoded(path, None, Measured)


def explained_of(path: Path) -> dict[tuple[str, int], Explanation]:
    """Return all explanations of a file by place and index; empty without the file."""
    return _decoded(path, None, Explanation)


def read_measured(path: Path, place: str) -> dict[int, Measured]:
    """Return what was measured at a place (`resid.12`), by index; empty without the file."""
    return {index: row for (_, index), row in _decoded(path, place, Measured).items()}


def read_explanations(path: Path, place: str) -> dict[int, Explanation]:
    """Return the explanations of a place (`resid.12`; of Neuronpedia's own, ""), by index."""
    return {index: row for (_, index), row in _decoded(path, place, Explanation).items()}


def label_files(root: Path) -> list[LabelFile]:
    """Return the files of labels there are, by path; those that cannot be read say so."""
    found = []
    for path in sorted((root / FOLDER).glob(f"*/*{_SUFFIX}")):
        name = path.relative_to(root / FOLDER).as_posix()
        try:
            with _opened(path) as database:
                meta = dict(database.execute("SELECT name, value FROM meta"))
                count = int(database.execute("SELECT count(*) FROM features").fetchone()[0])
        except sqlite3.Error:
            meta, count = {"kind": "damaged"}, 0
        found.append(LabelFile(name, count, meta))
    return found


def remove(root: Path, name: str) -> None:
    """Remove one file of labels by its path below the folder. SaeError where there is none."""
    path = root / FOLDER / name
    if name not in {one.path for one in label_files(root)}:
        raise SaeError(
            f"There are no feature labels called {clean(name)!r}.",
            todo="`emotui labels list` shows those there are.",
        ).of_input()
    path.unlink()
    path.with_suffix(_STATE).unlink(missing_ok=True)


# What is shown


def label_of(
    measured: Measured | None, explanation: Explanation | None = None, *, words: str = ""
) -> str:
    """Return a feature's label: `fear .91*: words · "text" (origin; flag)`.

    The emotion stands there only where it was confirmed, the star where the feature is specific
    to it. The flag says where an explanation names an emotion that was not measured.
    """
    label = words if measured is None else (measured.words or words)
    if measured is not None and measured.named:
        area = f"{measured.confirmed:.2f}".replace("0.", ".", 1)
        label = f"{measured.emotion} {area}{'*' if measured.specific else ''}: {label}"
    if explanation is None:
        return label
    flag = mismatch(measured, explanation.text)
    origin = f"{explanation.origin}; {flag}" if flag else explanation.origin
    told = f'"{explanation.text}" ({origin})'
    return f"{label} · {told}" if label else told


_SAYS, _MEASURED = "label says ", "; measured: "

_EMOTION_OF: dict[str, str] = {}
for _emotion, _forms in LEXICON.items():
    for _form in _forms:
        _EMOTION_OF.setdefault(_form, _emotion)


def emotions_named(text: str) -> tuple[str, ...]:
    """Return the emotions that a text names, each once, in order of their first mention."""
    words = re.findall(r"[a-z]+", text.lower())
    named = (_EMOTION_OF[word] for word in words if word in _EMOTION_OF)
    return tuple(dict.fromkeys(emotion for emotion in named if emotion != "neutral"))


def mismatch(measured: Measured | None, text: str) -> str:
    """Return `label says anger; measured: none` where a text names other emotions; else "".

    "" too where the text names none, and where nothing was measured.
    """
    said = emotions_named(text)
    if measured is None or not said:
        return ""
    found = measured.emotion if measured.named else "none"
    return "" if found in said else f"{_SAYS}{', '.join(said)}{_MEASURED}{found}"


def flagged(label: str) -> bool:
    """Return whether a label, as `label_of` writes it, ends in the flag of a mismatch."""
    return label.endswith(")") and _SAYS in label and _MEASURED in label.rpartition(_SAYS)[2]
