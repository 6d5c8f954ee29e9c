"""The rows of one file of feature labels: what was measured, beside what others say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from emotui.cache import labels as shelf
from emotui.cache.labels import Explanation, LabelFile, Measured
from emotui.core.errors import SaeError
from emotui.core.text import clean

NEURONPEDIA_IDS = "neuronpedia_ids"
"""In the meta data of a measured file: the ids of its SAEs at Neuronpedia, by place, as JSON."""


class LabelRow(msgspec.Struct, frozen=True):
    """One feature, as `labels show` prints it; the numbers are None where nothing was measured."""

    feature: str
    """As edits name it; of an imported file alone, its number."""
    label: str
    emotion: str
    """"" where none was confirmed."""
    area: float | None
    confirmed: float | None
    p: float | None
    specific: bool
    explanation: str
    origin: str
    flag: str
    """Where the explanation names an emotion that was not measured; else ""."""


def label_rows(root: Path, name: str) -> list[LabelRow]:
    """Return the features of the file whose path begins with `name`, best confirmed first.

    Of a measured file with the explanations there are of its SAEs; of an imported one, its
    explanations. SaeError where not exactly one file begins so, or it cannot be read.
    """
    found = [one for one in shelf.label_files(root) if one.path.startswith(name)]
    exact = [one for one in found if one.path == name]
    # SAEs have a measured and an imported file in one folder: the measured holds both.
    measured = [one for one in found if one.meta.get("kind") == "measured"]
    chosen = exact or (measured if len(measured) == 1 else found)
    if len(chosen) != 1:
        raise SaeError(
            f"{len(chosen)} files of labels begin with {clean(name)!r}.",
            todo="`emotui labels list` shows those there are; `emotui labels fit` makes them.",
        ).of_input()
    path = root / shelf.FOLDER / chosen[0].path
    if chosen[0].meta.get("kind") != "measured":
        told = shelf.explained_of(path)
        return [_row(place, index, None, one) for (place, index), one in sorted(told.items())]
    measurements = shelf.measured_of(path)
    explained = _explained(root, path, chosen[0])
    rows = [
        _row(place, index, one, explained.get((place, index)))
        for (place, index), one in measurements.items()
    ]
    return sorted(rows, key=lambda row: (-(row.confirmed or 0.0), row.feature))


def _explained(root: Path, path: Path, file: LabelFile) -> Mapping[tuple[str, int], Explanation]:
    """Return the explanations of the SAEs of a measured file: of their folder, and by their ids."""
    found: dict[tuple[str, int], Explanation] = {}
    ids = msgspec.json.decode(file.meta.get(NEURONPEDIA_IDS, "{}"), type=dict[str, str])
    for place, own in ids.items():
        bulk = shelf.read_explanations(shelf.explained_path(root, neuronpedia=own), "")
        found.update({(place, index): one for index, one in bulk.items()})
    return found | shelf.explained_of(path.with_name("explained.sqlite"))


def _row(place: str, index: int, measured: Measured | None, told: Explanation | None) -> LabelRow:
    return LabelRow(
        feature=_feature(place, index),
        label=shelf.label_of(measured, told),
        emotion=measured.emotion if measured is not None and measured.named else "",
        area=None if measured is None else measured.area,
        confirmed=None if measured is None else measured.confirmed,
        p=None if measured is None else measured.p,
        specific=measured is not None and measured.specific,
        explanation=told.text if told else "",
        origin=told.origin if told else "",
        flag=shelf.mismatch(measured, told.text) if told else "",
    )


def _feature(place: str, index: int) -> str:
    if not place:  # Neuronpedia's own file is of one SAE, and does not say which place it reads
        return str(index)
    site, _, layer = place.rpartition(".")
    return f"{'' if site == 'resid' else f'{site}:'}L{layer}/{index}"


def shown_rows(rows: Sequence[LabelRow], *, limit: int) -> list[str]:
    """Return a line for each row that says something, what does not match first of its line."""
    lines = []
    for row in rows:
        if not (row.emotion or row.explanation):
            continue
        if row.area is None or row.p is None:
            lines.append(f"{row.feature:<14} {row.label}")
        else:
            mark = "≠ " if row.flag else "  "
            lines.append(f"{mark}{row.feature:<14} area {row.area:.2f} p {row.p:.3f}  {row.label}")
        if len(lines) >= limit:
            break
    return lines or ["No feature is labelled so."]
