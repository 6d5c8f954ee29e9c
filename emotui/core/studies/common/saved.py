"""Results of studies as they are listed and read again; torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from emotui.core.errors import UsageError
from emotui.core.records import Site
from emotui.core.studies.common.folder import RESULT_FILE, read_study
from emotui.core.studies.common.report import Cell, Table

FOLDER = "studies"
"""Where runs are in the cache."""

_FEATURE = re.compile(r"(?:(resid|attn|mlp):)?L(\d+)/(\d+)")
_LAYER = re.compile(r"(?:(resid|attn|mlp)[: .])?L?(\d+)")
_ITEM = re.compile(r"[0-9a-f]{16}")
_SITES: dict[str, Site] = {"resid": "resid", "attn": "attn", "mlp": "mlp"}


class SavedRun(msgspec.Struct, frozen=True):
    """One run in the cache, as it is listed."""

    folder: str
    created: str
    study: str
    model: str
    template: str
    data: str
    finished: bool


class ListedStudy(msgspec.Struct, frozen=True):
    """One study there is, as `study list --json` prints it."""

    name: str
    question: str
    paper: str
    needs_labels: bool
    options: dict[str, str]
    """By name, what each means."""


class ListedStudies(msgspec.Struct, frozen=True):
    """What `study list --json` prints."""

    studies: tuple[ListedStudy, ...]
    runs: tuple[SavedRun, ...]


class Place(msgspec.Struct, frozen=True):
    """What a row of a table is about, where it names it."""

    site: Site = "resid"
    layer: int | None = None
    feature: int | None = None
    item: str = ""
    """Id of a text."""


def saved_runs(folder: Path) -> list[SavedRun]:
    """Return the runs in a folder, newest first; what cannot be read is left out."""
    return sorted(_saved(folder), key=lambda run: (run.created, run.folder), reverse=True)


def _saved(folder: Path) -> Iterator[SavedRun]:
    for path in folder.glob("*/study.json"):
        try:
            file = read_study(path.parent)
        except UsageError:
            continue
        yield SavedRun(
            folder=str(path.parent),
            created=file.created,
            study=file.run.study,
            model=file.run.model,
            template=file.run.template.name,
            data=file.run.dataset.name,
            finished=(path.parent / RESULT_FILE).exists(),
        )


def place_of(table: Table, row: Sequence[Cell]) -> Place | None:
    """Return the feature, else the layer, else the text that a row names; None without any.

    A feature is written `L5/12` or `mlp:L5/12` in any column; a layer is `L5` in any column, or a
    whole number in one called layer; a text is an id in a column called id or item.
    """
    cells = dict(zip(table.columns, row, strict=False))
    site = _SITES.get(str(cells.get("site", "resid")), "resid")
    for cell in row:
        feature = _FEATURE.fullmatch(cell) if isinstance(cell, str) else None
        if feature:
            named = _SITES.get(feature[1] or "", "resid")
            return Place(named, int(feature[2]), int(feature[3]))
    for column, cell in cells.items():
        if column == "layer" and isinstance(cell, int | float) and cell == int(cell):
            return Place(site, int(cell))
        layer = _LAYER.fullmatch(cell) if isinstance(cell, str) and "L" in cell else None
        if layer:
            return Place(_SITES.get(layer[1] or "", site), int(layer[2]))
    for column in ("id", "item"):
        cell = cells.get(column)
        if isinstance(cell, str) and _ITEM.fullmatch(cell):
            return Place(item=cell)
    return None
