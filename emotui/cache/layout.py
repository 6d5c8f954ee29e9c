"""Where the files of a cache lie, and what one tells of itself without its arrays.

index.sqlite                    listing and search; made again from the files at need
traces/12/1234....safetensors   one trace: its id is the first 16 digits of the request key
activations/ features/ readouts/ statistics/    entries, by the whole key
notes/                          what a user wrote beside a trace (cache/notes.py)
recipes/                        sets of edits under a name (cache/recipes.py)
console-history.json            lines of the console (cache/history.py)
probes/                         fitted probes (cache/probes.py)
saes/                           converted SAEs (core/engine/sae_store.py)
pins/                           an empty file for each trace that must stay
damaged/                        what was set aside
logs/
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

import msgspec

from emotui.cache import files, sealed
from emotui.cache.index import TraceRow
from emotui.cache.keys import TRACE_ID_DIGITS

EntryKind = Literal["activations", "features", "readouts", "statistics"]
ENTRY_KINDS: tuple[EntryKind, ...] = ("activations", "features", "readouts", "statistics")
KINDS = ("traces", *ENTRY_KINDS)

SAES = "saes"
"""Folder of the SAEs that were converted for a model's dtype."""

SUFFIX = ".safetensors"
KEY = "emotui_key"
"""Metadata field: the whole key, so that a file under another name is not taken for another's."""
ROW = "emotui_row"
"""Metadata field of a trace: its TraceRow as JSON."""

_SHARD_DIGITS = 2
_HEX = re.compile(r"[0-9a-f]+")


def is_hex(name: str) -> bool:
    """Return whether a name is lower-case hex digits: all names of files come from keys."""
    return _HEX.fullmatch(name) is not None


def check_key(key: str) -> str:
    """Return a whole key, or raise ValueError where it is not 64 hex digits."""
    if len(key) != 64 or not is_hex(key):
        raise ValueError("a key is 64 hex digits")
    return key


def place_of(root: Path, kind: str, name: str) -> str:
    """Return the place of a file: `name` is a trace id or an entry's key.

    A string, for what is asked with every text: see `files`.
    """
    return files.joined(root, kind, name[:_SHARD_DIGITS], name + SUFFIX)


def file_of(root: Path, kind: str, name: str) -> Path:
    """Return `place_of` as a path."""
    return Path(place_of(root, kind, name))


def scan(root: Path, kind: str, *, starting: str = "") -> tuple[set[str], list[Path]]:
    """Return the trace ids or keys of all files of a kind, and the paths of unfinished ones.

    With `starting` (hex), only names that start so. Reads folders, not files.
    """
    found: set[str] = set()
    unfinished: list[Path] = []
    for shard in listed(root / kind):
        if not shard.startswith(starting[:_SHARD_DIGITS]):
            continue
        for name in listed(files.joined(root, kind, shard)):
            stem = name.removesuffix(SUFFIX)
            if stem != name and stem.startswith(starting) and is_hex(stem):
                found.add(stem)
            elif name.startswith(files.TEMPORARY):
                unfinished.append(root / kind / shard / name)
    return found, unfinished


def listed(folder: str | Path) -> list[str]:
    """Return the names in a folder, none where it cannot be read."""
    try:
        return os.listdir(folder)  # noqa: PTH208, ten times as quick for thousands of names
    except OSError:
        return []


def sae_files(root: Path) -> list[Path]:
    """Return the files of converted SAEs; none where a private session only links to them."""
    if (root / SAES).is_symlink():
        return []
    return [Path(folder, name) for folder, _, names in os.walk(root / SAES) for name in names]


def drop_empty_folders(folder: Path) -> None:
    """Remove the empty folders below a folder, deepest first; a link is not followed."""
    if folder.is_symlink():
        return
    for below, _, _ in os.walk(folder, topdown=False):
        if Path(below) != folder and not listed(Path(below)):
            Path(below).rmdir()


def read_checked(path: str | Path, key: str | None = None) -> tuple[bytes, dict[str, str]]:
    """Return the bytes and metadata of a file whose checksum is right and whose name is its own.

    `key` is the whole key it must have; None asks only that its name belongs to its key. Raises
    Damaged, or OSError where it cannot be read.
    """
    content = files.read(path)
    metadata = sealed.unseal(content)
    own = metadata.get(KEY, "")
    stem = os.fspath(path).rpartition(os.sep)[2].removesuffix(SUFFIX)
    if not own.startswith(stem) or (key is not None and own != key):
        raise sealed.Damaged("it is the file of another key")
    return content, metadata


def read_row(path: Path) -> TraceRow:
    """Return what a trace file tells of itself in its header. Raises Damaged or OSError."""
    with path.open("rb") as file:
        metadata = sealed.peek(file)
    try:
        row = msgspec.json.decode(metadata[ROW], type=TraceRow)
    except (KeyError, msgspec.DecodeError) as error:
        raise sealed.Damaged("no readable row") from error
    if row.id != path.stem or row.request_key[:TRACE_ID_DIGITS] != row.id:
        raise sealed.Damaged("it is the file of another key")
    return row
