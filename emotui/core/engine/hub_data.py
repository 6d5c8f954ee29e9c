"""Labelled texts of a dataset on the Hugging Face hub: its own files, read as plain data.

`OWNER/NAME[:SPLIT]`. Parquet, CSV, TSV and JSONL files are downloaded through the hub's cache
(HF_ENDPOINT and HF_HUB_OFFLINE hold) and read here; no script of a dataset is ever run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emotui.cache.fingerprints import hub_folder
from emotui.core.errors import UsageError
from emotui.core.text import clean

if TYPE_CHECKING:
    from emotui.core.engine.capture import Job

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+(:[A-Za-z0-9._-]+)?")
_SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson")
_SPLIT = "train"
_MOST_ROWS = 200_000
_MOST_BYTES = 2**30


def is_dataset_id(source: str) -> bool:
    """Whether a source can only be meant as a dataset of the hub: no file here, and like an id."""
    return _ID.fullmatch(source) is not None and not Path(source).expanduser().exists()


def dataset_files(source: str, job: Job | None = None) -> list[Path]:
    """Return the files of a dataset's split (train), downloaded where they are not here.

    Progress tells bytes and time left. UsageError for an unknown or gated dataset, one of more
    than a gigabyte, or one without files that are read; EmotuiError where the download broke off
    or the hub could not be reached.
    """
    repo, _, split = source.partition(":")
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        folder = _snapshot(repo)
        wanted = _wanted(repo, _here(repo), split, offline=True)
        return [folder / name for name in wanted] if folder is not None else []
    # Late: the terminal asks `is_dataset_id` too, and these import torch.
    from emotui.core.engine.capture import QuietJob
    from emotui.core.engine.hub import DATASET, fetch

    found: list[str] = []

    def choose(names: Sequence[str]) -> list[str]:
        found.extend(_wanted(repo, sorted(names), split, offline=False))
        return found

    folder = fetch(
        repo,
        revision=None,
        choose=choose,
        job=job or QuietJob(),
        kind=DATASET,
        most_bytes=_MOST_BYTES,
    )
    return [folder / name for name in found]


def _wanted(repo: str, names: Sequence[str], split: str, *, offline: bool) -> list[str]:
    wanted = _of_split(names, split or _SPLIT)
    if wanted:
        return wanted
    raise UsageError(
        f"The dataset {clean(repo)} has no file that emotui reads"
        + (f" for the split {clean(split)}." if split else "."),
        why=(
            "With --offline only what is on this machine counts."
            if offline and not names
            else f"It has: {clean(', '.join(names[:6])) or 'nothing'}."
        ),
        todo="Give a dataset of parquet, CSV, TSV or JSONL files, or a file of your own.",
    )


def _of_split(names: Sequence[str], split: str) -> list[str]:
    usable = [name for name in names if name.lower().endswith(_SUFFIXES)]
    mark = re.compile(rf"(^|[/_.-]){re.escape(split.lower())}([/_.-]|$)")
    named = [name for name in usable if mark.search(name.lower())]
    # One configuration of several: they hold the same texts otherwise cut.
    chosen = named or (usable if split == _SPLIT and len(usable) == 1 else [])
    folder = chosen[0].rpartition("/")[0] if chosen else ""
    suffix = Path(chosen[0]).suffix if chosen else ""
    return [n for n in chosen if n.rpartition("/")[0] == folder and Path(n).suffix == suffix]


def _snapshot(repo: str) -> Path | None:
    home = hub_folder() / f"datasets--{repo.replace('/', '--')}"
    try:
        commit = (home / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    folder = home / "snapshots" / commit
    return folder if re.fullmatch(r"[0-9a-f]{40}", commit) and folder.is_dir() else None


def _here(repo: str) -> list[str]:
    folder = _snapshot(repo)
    if folder is None:
        return []
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def read_parquet(path: Path) -> list[dict[str, str]]:
    """Return the rows of a parquet file as text; numbers of a ClassLabel column become names.

    Columns of lists and records are left out. UsageError where it cannot be read.
    """
    try:
        import pyarrow.parquet as parquet

        table = parquet.read_table(path).slice(0, _MOST_ROWS)
        names = _label_names(table.schema.metadata or {})
        rows = table.to_pylist()
    except Exception as error:
        raise UsageError(
            f"{clean(path.name)} could not be read.",
            why=f"It is no parquet file, or damaged ({type(error).__name__}).",
            todo="Give a CSV, TSV or JSONL file.",
        ) from error
    return [
        {
            key: _written(value, names.get(key, ()))
            for key, value in row.items()
            if value is not None and not isinstance(value, list | dict | bytes)
        }
        for row in rows
    ]


def _written(value: Any, names: Sequence[str]) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names):
        return names[value]
    return str(value)


def _label_names(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Return the names of the classes by column, from what `datasets` writes into its files."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {
            str(key): tuple(map(str, feature["names"]))
            for key, feature in features.items()
            if isinstance(feature, dict) and isinstance(feature.get("names"), list)
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
