"""A model's folder, judged before transformers sees it: what is missing, cut short, or unsafe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from emotui.core.errors import ModelError
from emotui.core.protocol import ModelSpec
from emotui.core.text import clean

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "gemma-2-2b": "google/gemma-2-2b",
        "gemma-2-2b-it": "google/gemma-2-2b-it",
        "gemma-2-9b": "google/gemma-2-9b",
        "gemma-2-9b-it": "google/gemma-2-9b-it",
        "gpt2": "openai-community/gpt2",
        "gpt2-small": "openai-community/gpt2",
        "gpt2-medium": "openai-community/gpt2-medium",
        "llama-3.2-1b": "meta-llama/Llama-3.2-1B",
        "llama-3.2-3b": "meta-llama/Llama-3.2-3B",
        "llama-3.1-8b": "meta-llama/Llama-3.1-8B",
        "llama-3.1-8b-instruct": "meta-llama/Llama-3.1-8B-Instruct",
        "mistral-7b": "mistralai/Mistral-7B-v0.1",
        "qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B",
        "qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B",
    }
)
"""Short names of models whose architecture is in the site table."""

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_MAX_HEADER_BYTES = 100_000_000
_HALF = ("BF16", "F16")


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


def _weight_files(folder: Path) -> list[Path]:
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
        )
    config = _read_json(folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise _model_error(
            f"{folder / 'config.json'} could not be used.",
            "It does not name a model_type.",
            "Give the folder of a Hugging Face model.",
        )
    half = whole = 0
    for file in _weight_files(folder):
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


def find_model(spec: ModelSpec) -> FoundModel:
    """Return the folder of a model, and its hub id and commit where it came from the hub.

    A hub id is looked up in the local Hugging Face cache first and fetched only where it is not
    complete there and `offline` is not set. ModelError says what to do where neither helps.
    """
    folder = Path(spec.model).expanduser()
    if folder.exists() or looks_like_path(spec.model):
        return FoundModel(folder)
    hub_id = ALIASES.get(spec.model.lower(), spec.model)
    found = _snapshot(hub_id, spec.revision, local_only=True)
    if found is not None and (spec.offline or _is_complete(found)):
        return FoundModel(found, hub_id, found.name)
    if spec.offline:
        raise _model_error(
            f"The model {hub_id} is not on this machine.",
            "It is not in the Hugging Face cache, and --offline forbids fetching it.",
            "Run once without --offline, or give a local folder.",
        )
    fetched = _snapshot(hub_id, spec.revision, local_only=False)
    assert fetched is not None
    return FoundModel(fetched, hub_id, fetched.name)


def _is_complete(folder: Path) -> bool:
    try:
        check_folder(folder)
    except ModelError:
        return False
    return True


def _snapshot(hub_id: str, revision: str | None, *, local_only: bool) -> Path | None:
    """Return the snapshot folder; None where `local_only` and it is not there."""
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                hub_id,
                revision=revision,
                local_files_only=local_only,
                allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"],
                ignore_patterns=["*/*"],
            )
        )
    except hub.HFValidationError as error:
        raise _model_error(
            f"There is no model called {hub_id!r}.",
            "It is neither a folder here, an alias, nor a valid Hugging Face id.",
            f"Known aliases: {', '.join(ALIASES)}.",
        ) from error
    except hub.LocalEntryNotFoundError as error:
        if local_only:
            return None
        raise _model_error(
            f"The model {hub_id} could not be fetched.",
            "The Hugging Face hub could not be reached, and the model is not in the local cache.",
            "Check the name and the network, or give a local folder.",
        ) from error
    except hub.GatedRepoError as error:
        raise _model_error(
            f"The model {hub_id} is gated.",
            "Its owners ask for an agreement before they hand it out.",
            f"Accept the terms at https://huggingface.co/{hub_id}, then run `hf auth login`.",
        ) from error
    except hub.RevisionNotFoundError as error:
        raise _model_error(
            f"The model {hub_id} has no revision {revision!r}.", "", "Check --revision."
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise _model_error(
            f"There is no model called {hub_id!r}.",
            "It is neither a folder here, an alias, nor a public model of the Hugging Face hub.",
            f"Known aliases: {', '.join(ALIASES)}.",
        ) from error
    except OSError as error:
        raise _model_error(
            f"The model {hub_id} could not be fetched.",
            f"{type(error).__name__} while talking to the Hugging Face hub.",
            "Check the network and the space on the disk, or give a local folder.",
        ) from error
