"""A model's folder, judged before transformers sees it: what is missing, cut short, or unsafe."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from emotui.core.engine.capture import Job, QuietJob
from emotui.core.engine.hub import fetch, snapshot_here, unknown_model
from emotui.core.errors import ModelError
from emotui.core.model_names import hub_id_of
from emotui.core.protocol import ModelSpec
from emotui.core.text import clean

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_MAX_HEADER_BYTES = 100_000_000
_HALF = ("BF16", "F16")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_SMALL_FILES = (".json", ".model", ".txt", ".jinja")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)?")


def _model_error(what: str, why: str, todo: str) -> ModelError:
    return ModelError(clean(what), why=clean(why), todo=clean(todo))


_FETCH_AGAIN = "Copy or download the folder again."


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _model_error(
            f"{path.parent} is not a complete model: {path.name} is missing.",
            "emotui reads folders in the Hugging Face layout.",
            _FETCH_AGAIN,
        ) from None
    except (OSError, ValueError) as error:
        raise _model_error(
            f"{path} could not be read.",
            f"It is damaged or cut short ({type(error).__name__}).",
            _FETCH_AGAIN,
        ) from error
    if not isinstance(content, dict):
        raise _model_error(f"{path} could not be read.", "It holds no JSON object.", _FETCH_AGAIN)
    return content


def _refuse_pickle(path: Path) -> ModelError:
    return _model_error(
        f"{path} was refused.",
        "It is a pickle: loading one runs whatever code it holds.",
        "Use a safetensors version of the model, or convert it with the Hugging Face "
        "'safetensors/convert' space.",
    )


def read_header(path: Path) -> dict[str, Any]:
    """Return the header of a safetensors file after checking it against the file's size.

    ModelError where the file is a pickle, is no safetensors file, or is cut short.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            # A header of 640 bytes starts like a pickle too, but no header is that long.
            if start.startswith(_PICKLE_STARTS) and length > _MAX_HEADER_BYTES:
                raise _refuse_pickle(path)
            raw = file.read(length) if length <= min(_MAX_HEADER_BYTES, size) else b""
    except OSError as error:
        raise _model_error(
            f"{path} could not be read.", f"{error.strerror or error}.", _FETCH_AGAIN
        ) from error
    if size < 8 or length > size - 8:
        raise _model_error(
            f"{path} is cut short.",
            f"Its header alone needs {8 + length:,} bytes; the file has {size:,}.",
            _FETCH_AGAIN,
        )
    try:
        header = json.loads(raw)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        expected = 8 + length + max((e["data_offsets"][1] for e in tensors.values()), default=0)
    except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise _model_error(
            f"{path} is not a safetensors file.", "Its header cannot be read.", _FETCH_AGAIN
        ) from error
    if expected != size:
        raise _model_error(
            f"{path} is cut short." if size < expected else f"{path} is damaged.",
            f"Its header promises {expected:,} bytes; the file has {size:,}.",
            _FETCH_AGAIN,
        )
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model folder; ModelError where they are not complete."""
    if (folder / WEIGHTS_INDEX).is_file():
        names = _read_json(folder / WEIGHTS_INDEX).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise _model_error(
                f"{folder / WEIGHTS_INDEX} could not be read.",
                "It names no weight files.",
                _FETCH_AGAIN,
            )
        files = [folder / name for name in sorted(set(names.values()))]
        # A shard outside the folder is no part of this model.
        if any(file.parent != folder for file in files):
            raise _model_error(
                f"{folder / WEIGHTS_INDEX} was refused.",
                "It names files outside the folder.",
                _FETCH_AGAIN,
            )
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise _model_error(
                f"{folder} is not a complete model: {missing[0]} is missing.",
                f"{len(missing)} of {len(files)} weight files are absent.",
                _FETCH_AGAIN,
            )
        return files
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    pickles = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in _PICKLE_SUFFIXES]
    if pickles:
        raise _refuse_pickle(pickles[0])
    raise _model_error(
        f"{folder} is not a complete model: {WEIGHTS} is missing.",
        "There are no weights in it.",
        _FETCH_AGAIN,
    )


def weight_headers(folder: Path) -> list[dict[str, Any]]:
    """Return the headers of the weight files of a complete folder; ModelError as `check_folder`."""
    return [read_header(file) for file in weight_files(folder)]


def check_folder(folder: Path) -> dict[str, Any]:
    """Return the configuration of a complete, safe model folder.

    ModelError where a file is missing, cut short, damaged or a pickle. The key
    `half_precision` is added: whether most weights are bfloat16 or float16.
    """
    if not folder.is_dir():
        raise _model_error(
            f"There is no model folder at {folder}.",
            "The path does not exist." if not folder.exists() else "It is a file.",
            "Give the folder that holds config.json, or a Hugging Face model id.",
        ).of_input()
    config = _read_json(folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise _model_error(
            f"{folder / 'config.json'} could not be used.",
            "It does not name a model_type.",
            "Give the folder of a Hugging Face model.",
        )
    half = whole = 0
    for file in weight_files(folder):
        for tensor in read_header(file).values():
            start, end = tensor["data_offsets"]
            if tensor.get("dtype") in _HALF:
                half += end - start
            else:
                whole += end - start
    if (folder / "tokenizer.json").is_file():
        _read_json(folder / "tokenizer.json")
    elif not (folder / "tokenizer.model").is_file() and not (folder / "vocab.json").is_file():
        raise _model_error(
            f"{folder} is not a complete model: tokenizer.json is missing.",
            "Without its tokenizer a model cannot read a text.",
            _FETCH_AGAIN,
        )
    return {**config, "half_precision": half > whole}


def looks_like_path(model: str) -> bool:
    """Whether the name of a model can only be meant as a folder."""
    return model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model


@dataclass(frozen=True)
class FoundModel:
    """Where a model lies, and where it came from."""

    folder: Path
    hub_id: str | None = None
    """None for a local folder."""
    commit: str | None = None


def wanted_files(repository: str, names: Sequence[str]) -> list[str]:
    """Return the files of a hub repository that a model needs: no pickles, none in folders.

    ModelError where its weights are pickles only.
    """
    top = [name for name in names if "/" not in name]
    shards = [name for name in top if _SHARD.fullmatch(name)] if WEIGHTS_INDEX in top else []
    weights = [WEIGHTS_INDEX, *shards] if shards else [name for name in top if name == WEIGHTS]
    if not weights:
        pickles = [name for name in top if Path(name).suffix.lower() in _PICKLE_SUFFIXES]
        if pickles:
            raise _refuse_pickle(Path(repository) / pickles[0])
        raise _model_error(
            f"The repository {repository} holds no model that can be read.",
            f"It has no {WEIGHTS} among its {len(names):,} files.",
            "Name another repository, or give a local folder.",
        ).of_input()
    others = [
        name
        for name in top
        if name.endswith(_SMALL_FILES) and name != WEIGHTS_INDEX and not name.startswith(".")
    ]
    return sorted(others) + weights


def find_model(spec: ModelSpec, job: Job | None = None) -> FoundModel:
    """Return the folder of a model, and its hub id and commit where it came from the hub.

    A hub id is looked up in the local Hugging Face cache first and fetched only where it is not
    complete there and `offline` is not set. ModelError says what to do where neither helps.
    """
    folder = Path(spec.model).expanduser()
    if folder.exists() or looks_like_path(spec.model):
        return FoundModel(folder)
    hub_id = hub_id_of(spec.model)
    if not _HUB_ID.fullmatch(hub_id) or ".." in hub_id or "--" in hub_id:
        raise unknown_model(
            spec.model, "It is neither a folder here, an alias, nor a valid Hugging Face id."
        )
    found = snapshot_here(hub_id, spec.revision)
    if found is not None and (spec.offline or _is_complete(found)):
        return FoundModel(found, hub_id, found.name)
    if spec.offline:
        raise _model_error(
            f"The model {hub_id} is not on this machine.",
            "It is not in the Hugging Face cache, and --offline forbids fetching it.",
            "Run once without --offline, or give a local folder.",
        ).of_input()
    choose = partial(wanted_files, hub_id)
    fetched = fetch(hub_id, revision=spec.revision, choose=choose, job=job or QuietJob())
    return FoundModel(fetched, hub_id, fetched.name)


def _is_complete(folder: Path) -> bool:
    try:
        check_folder(folder)
    except ModelError:
        return False
    return True
