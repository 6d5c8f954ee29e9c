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
from typing import Any

from emotui.cache.fingerprints import hub_folder
from emotui.core.errors import UsageError
from emotui.core.text import clean

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+(:[A-Za-z0-9._-]+)?")
_SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson")
_SPLIT = "train"
_MOST_ROWS = 200_000
_MOST_BYTES = 2**30


def is_dataset_id(source: str) -> bool:
    """Whether a source can only be meant as a dataset of the hub: no file here, and like an id."""
    return _ID.fullmatch(source) is not None and not Path(source).expanduser().exists()


def dataset_files(source: str) -> list[Path]:
    """Return the files of a dataset's split (train), downloaded where they are not here.

    UsageError for an unknown, gated or unreachable dataset, or one without files that are read.
    """
    repo, _, split = source.partition(":")
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    names = _here(repo) if offline else _listed(repo)
    wanted = _of_split(names, split or _SPLIT)
    if not wanted:
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
    if offline:
        folder = _snapshot(repo)
        return [folder / name for name in wanted] if folder is not None else []
    return [_download(repo, name) for name in wanted]


def _of_split(names: Sequence[str], split: str) -> list[str]:
    usable = [name for name in names if name.lower().endswith(_SUFFIXES)]
    mark = re.compile(rf"(^|[/_.-]){re.escape(split.lower())}([/_.-]|$)")
    named = [name for name in usable if mark.search(name.lower())]
    # One configuration of several: they hold the same texts otherwise cut.
    chosen = named or (usable if split == _SPLIT and len(usable) == 1 else [])
    folder = chosen[0].rpartition("/")[0] if chosen else ""
    suffix = Path(chosen[0]).suffix if chosen else ""
    return [n for n in chosen if n.rpartition("/")[0] == folder and Path(n).suffix == suffix]


def _listed(repo: str) -> list[str]:
    from huggingface_hub import HfApi

    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        info = HfApi(endpoint=endpoint).dataset_info(repo, files_metadata=True, timeout=30)
    # huggingface_hub's errors and those of the HTTP library it is built on have no common base.
    except Exception as error:
        raise _unreachable(repo, error) from error
    sizes = {one.rfilename: int(one.size or 0) for one in info.siblings or ()}
    if sum(sizes.get(name, 0) for name in _of_split(list(sizes), _SPLIT)) > _MOST_BYTES:
        raise UsageError(
            f"The dataset {clean(repo)} is larger than a gigabyte.",
            todo="Give a file with a part of it.",
        )
    return sorted(sizes)


def _download(repo: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(
            repo,
            name,
            repo_type="dataset",
            cache_dir=hub_folder(),
            endpoint=os.environ.get("HF_ENDPOINT") or None,
        )
    except Exception as error:
        raise _unreachable(repo, error) from error
    return Path(path)


def _unreachable(repo: str, error: Exception) -> UsageError:
    kind = type(error).__name__
    gated = "Gated" in kind
    return UsageError(
        f"The dataset {clean(repo)} "
        + (
            "is gated: its owners ask for an agreement first." if gated else "could not be fetched."
        ),
        why=clean(f"{kind}: {(str(error).splitlines() or [''])[0][:200]}"),
        todo=(
            f"Accept the terms at https://huggingface.co/datasets/{clean(repo)}, then log in."
            if gated
            else "Check the name, the network and HF_ENDPOINT, or give a file."
        ),
    )


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
