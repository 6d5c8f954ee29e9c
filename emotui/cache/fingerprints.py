"""Fingerprints: which weights, told from a name without torch and, where possible, without a hash.

A fingerprint is 64 hex digits: SHA-256 over names and contents of a local folder's files, or over
hub id and commit. Hashes of files are remembered by path, size and time of change.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from emotui.core.errors import ModelError
from emotui.core.model_names import hub_id_of
from emotui.core.protocol import ModelSpec
from emotui.core.text import clean

QUICK_BYTES = 32 * 1024 * 1024
"""What the terminal process hashes at most before it leaves the work to the engine."""

Progress = Callable[[int, int], None]
"""Called with the bytes hashed and the bytes in all; may raise to stop."""

_CHUNK = 8 * 1024 * 1024
_RACY_NANOSECONDS = 2_000_000_000  # a file may change again within its time stamp's granularity
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?")
_MODEL_FILES = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.json"),
    *("chat_template.jinja", "model.safetensors.index.json"),
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class Memo(Protocol):
    """What remembers hashes of files and fingerprints of names; `Store` is one."""

    def file_digest(self, path: str, size: int, mtime_ns: int) -> str | None:
        """Return the SHA-256 of a file as it was when it had this size and time."""

    def remember_file_digest(self, path: str, size: int, mtime_ns: int, digest: str) -> None:
        """Keep the SHA-256 of a file with this size and time."""

    def fingerprint(self, name: str, revision: str | None = None) -> str | None:
        """Return the last fingerprint known for a name."""

    def remember_fingerprint(
        self, name: str, fingerprint: str, *, revision: str | None = None
    ) -> None:
        """Keep the fingerprint of a name."""

    def labels_state(self, source: str, identity: str, fingerprint: str) -> str:
        """Return what changes when the labels of an SAE source do; "" without labels."""


def _digest_of_file(path: Path, memo: Memo | None, advance: Callable[[int], None]) -> str:
    status = path.stat()
    place = os.path.realpath(path)
    if memo is not None:
        known = memo.file_digest(place, status.st_size, status.st_mtime_ns)
        if known is not None:
            advance(status.st_size)
            return known
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            advance(len(chunk))
    if memo is not None and time.time_ns() - status.st_mtime_ns > _RACY_NANOSECONDS:
        memo.remember_file_digest(place, status.st_size, status.st_mtime_ns, digest.hexdigest())
    return digest.hexdigest()


def _digest_of_files(
    folder: Path, paths: Sequence[Path], memo: Memo | None, progress: Progress | None
) -> str:
    total, done = sum(path.stat().st_size for path in paths), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    whole = hashlib.sha256()
    for path in paths:
        # Strings: every part of a new Path is interned, and this is asked of many files for each
        # text. Python's table of interned strings grew by it until it doubled.
        name = os.path.relpath(path, folder).replace(os.sep, "/")
        entry = f"{name}\0{_digest_of_file(path, memo, advance)}\n"
        whole.update(entry.encode(errors="surrogateescape"))
    return whole.hexdigest()


def _bytes_to_hash(paths: Iterable[Path], memo: Memo) -> int:
    total = 0
    for path in paths:
        status = path.stat()
        known = memo.file_digest(os.path.realpath(path), status.st_size, status.st_mtime_ns)
        total += 0 if known else status.st_size
    return total


def _model_paths(folder: Path) -> list[Path]:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
        if pickles:
            raise ModelError(
                f"The model in {clean(str(folder))} was not loaded: its weights are pickles.",
                why=f"Reading {clean(pickles[0])} could run code of its author.",
                todo="Convert the weights to safetensors (save_pretrained writes them), or take "
                "another copy of the model.",
            )
        raise ModelError(
            f"There are no weights in {clean(str(folder))}.",
            why="No file there ends in .safetensors.",
            todo="Give the folder that save_pretrained wrote, or a hub id.",
        ).of_input(not (folder / "config.json").is_file())
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"The model folder {clean(str(folder))} is incomplete.",
            why="config.json is missing.",
            todo="Copy config.json and the tokenizer's files beside the weights.",
        )
    return [path for name in _MODEL_FILES if (path := folder / name).is_file()] + weights


def model_fingerprint_of_folder(
    path: Path | str, memo: Memo | None = None, *, progress: Progress | None = None
) -> str:
    """Return the fingerprint of a local model: config, tokenizer and safetensors weights.

    Files whose path, size and time `memo` knows are not read again. Raises ModelError where the
    folder is missing, unreadable, incomplete, or holds its weights as pickles only.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelError(
            f"There is no model folder {clean(str(folder))}.",
            todo="Check the path, or give a hub id.",
        ).of_input()
    try:
        return _digest_of_files(folder, _model_paths(folder), memo, progress)
    except OSError as error:
        raise ModelError(
            f"The model in {clean(str(folder))} could not be read.",
            why=f"{clean(str(error.filename or folder))}: {error.strerror}.",
            todo="Check the permissions and the links of the folder.",
        ) from error


def fingerprint_of_commit(hub_id: str, commit: str) -> str:
    """Return the fingerprint of a hub model at a commit."""
    return hashlib.sha256(f"hub\0{hub_id}\0{commit}".encode()).hexdigest()


def hub_folder() -> Path:
    """Return the local Hugging Face cache: HF_HUB_CACHE, HF_HOME/hub, or the default place."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if place := os.environ.get(variable):
            return Path(place).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface/hub"


def hub_commit(hub_id: str, revision: str | None = None) -> str | None:
    """Return the commit the local Hugging Face cache holds for a model; None where it has none.

    `revision` is a branch, a tag or a whole commit; None means main.
    """
    if not _HUB_ID.fullmatch(hub_id) or ".." in (revision or ""):
        return None
    home = hub_folder() / f"models--{hub_id.replace('/', '--')}"
    reference = revision or "main"
    if _COMMIT.fullmatch(reference):
        return reference if (home / "snapshots" / reference).is_dir() else None
    try:
        commit = (home / "refs" / reference).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return commit if _COMMIT.fullmatch(commit) else None


def known_fingerprint(spec: ModelSpec, memo: Memo) -> str | None:
    """Return the fingerprint of a model as far as it can be told at once, else None.

    A local folder is hashed where at most `QUICK_BYTES` are unknown to `memo`; then the local
    Hugging Face cache is asked, then what `memo` last knew of the name, so that a copied cache
    opens without the weights. Raises ModelError for a local folder that can never be loaded.
    """
    folder = Path(spec.model).expanduser()
    if folder.is_dir():
        if _bytes_to_hash(_model_paths(folder), memo) > QUICK_BYTES:
            return None
        fingerprint = model_fingerprint_of_folder(folder, memo)
    elif commit := hub_commit(hub_id_of(spec.model), spec.revision):
        fingerprint = fingerprint_of_commit(hub_id_of(spec.model), commit)
    else:
        return memo.fingerprint(spec.model, spec.revision)
    if memo.fingerprint(spec.model, spec.revision) != fingerprint:
        memo.remember_fingerprint(spec.model, fingerprint, revision=spec.revision)
    return fingerprint


def sae_identity(source: str, memo: Memo, *, quick: bool = False) -> str | None:
    """Return what names the SAE of a source: the hash of a local folder, else the source itself.

    With `quick`, None where more than `QUICK_BYTES` would have to be hashed. A folder that is
    gone keeps the identity `memo` last knew.
    """
    folder, name = Path(source).expanduser(), f"sae:{source}"
    if not folder.is_dir() and not (folder.is_file() and folder.suffix == ".npz"):
        return memo.fingerprint(name) or source
    paths = (
        [folder]
        if folder.is_file()
        else sorted(
            path
            for pattern in ("**/cfg.json", "**/*.safetensors", "**/params.npz")
            for path in folder.glob(pattern)
        )
    )
    try:
        if quick and _bytes_to_hash(paths, memo) > QUICK_BYTES:
            return None
        identity = _digest_of_files(folder, paths, memo, None)
    except OSError:
        return source  # the engine will say what is wrong with it
    if memo.fingerprint(name) != identity:
        memo.remember_fingerprint(name, identity)
    return identity
