"""SAEs that are not SAELens folders yet: fetched, converted once to one, and kept in the cache.

`CACHE/saes/RELEASE/ID/DTYPE/` holds `cfg.json` and `sae_weights.safetensors` in the run's dtype,
as `sae_formats` reads them. What stands there is used without the hub and without a connection.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from emotui.core.engine import sae_formats
from emotui.core.engine.hub import fetch, snapshot_here
from emotui.core.engine.sae_formats import refuse
from emotui.core.errors import ModelError, SaeError
from emotui.core.model_names import base_name, same_family
from emotui.core.sae_directory import PretrainedSae, Release, chosen, is_path

if TYPE_CHECKING:
    from emotui.core.engine.capture import Job
    from emotui.core.engine.model import LoadedModel

NPZ = "params.npz"
FOLDER = "saes"
_LLAMA_SCOPE_CONFIG = "hyperparams.json"
_LLAMA_SCOPE_WEIGHTS = "checkpoints/final.safetensors"
_NAMES = {"w_enc": "W_enc", "w_dec": "W_dec"}
_TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
_GEMMA_SCOPE_SITES = {"res": "hook_resid_post", "mlp": "hook_mlp_out"}
_SITE_IN_NAME = re.compile(r"(?:^|[-_])(res|mlp|att|transcoders?)(?:$|[-_])")


@dataclass(frozen=True)
class FoundSaes:
    """Folders of SAEs on this machine, and the name that their features go by."""

    name: str
    folders: tuple[Path, ...]


def find_saes(source: str, model: LoadedModel, *, root: Path | None, job: Job) -> FoundSaes:
    """Return the SAE folders of a source: a folder or npz file here, or RELEASE[:ID].

    `root` is the cache's folder, where what is converted goes; None keeps it for this process
    only. SaeError where there are none, they cannot be fetched, or they are another model's.
    """
    if not is_path(source):
        release, saes = chosen(source)
        return _from_release(release, saes, model, _place(root), job)
    path = Path(source).expanduser()
    files = [path] if path.is_file() and path.suffix == ".npz" else _npz_files(path)
    if not files:
        return FoundSaes(path.resolve().name, tuple(sae_formats.sae_folders(path)))
    folders = []
    for number, file in enumerate(files):
        job.check()
        job.progress("converting the SAEs", number, len(files))
        folders.append(_from_local_npz(file, model, _place(root)))
    return FoundSaes(path.resolve().stem if path.is_file() else path.resolve().name, tuple(folders))


def _place(root: Path | None) -> Path:
    if root is not None:
        return root / FOLDER
    return _temporary() / FOLDER


@cache
def _temporary() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="emotui-saes-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _npz_files(path: Path) -> list[Path]:
    if not path.is_dir() or (path / sae_formats.CONFIG).is_file():
        return []
    if any(path.glob(f"*/{sae_formats.CONFIG}")):
        return []
    return sorted(path.rglob(NPZ))


def _from_local_npz(file: Path, model: LoadedModel, root: Path) -> Path:
    place = file.resolve()
    site = next(
        (found.group(1) for part in reversed(place.parts) if (found := _SITE_IN_NAME.search(part))),
        None,
    )
    layer = re.search(r"layer_(\d+)", str(place))
    if site not in _GEMMA_SCOPE_SITES or layer is None:
        raise refuse(
            f"{file} does not say which site and layer it reads.",
            "The layer is read from a folder layer_N in its path, the site from one whose name "
            f"ends in -res or -mlp; found {site or 'no site'} and "
            f"{layer.group(0) if layer else 'no layer'}.",
            "Keep the layout of the hub: gemma-scope-2b-pt-res/layer_12/width_16k/....",
        )
    status = place.stat()
    mark = hashlib.sha256(f"{place}\0{status.st_size}\0{status.st_mtime_ns}".encode()).hexdigest()
    hook = f"blocks.{layer.group(1)}.{_GEMMA_SCOPE_SITES[site]}"
    return _converted(
        root / "local" / mark[:16] / model.dtype_name,
        lambda: (_read_npz(file), _jumprelu_config(hook)),
        dtype=model.dtype,
    )


def _from_release(
    release: Release, saes: Sequence[PretrainedSae], model: LoadedModel, root: Path, job: Job
) -> FoundSaes:
    _check_model(release, model)
    places = {
        one.id: root / release.name / _as_file_name(one.id) / model.dtype_name for one in saes
    }
    missing = [one for one in saes if not (places[one.id] / sae_formats.CONFIG).is_file()]
    if missing:
        snapshot = _fetched(release, missing, offline=model.spec.offline, job=job)
        for number, one in enumerate(missing):
            job.check()
            job.progress("converting the SAEs", number, len(missing))
            read = _READERS[release.conversion]
            _converted(places[one.id], partial(read, snapshot, one, release), dtype=model.dtype)
    return FoundSaes(release.name, tuple(places[one.id] for one in saes))


def _check_model(release: Release, model: LoadedModel) -> None:
    """Refuse SAEs of another model; a local folder has no name to compare."""
    if model.hub_id is not None and not same_family(release.model, model.hub_id):
        raise refuse(
            f"The SAEs of {release.name} do not fit the model.",
            f"They were trained on {release.model}; the model is {model.hub_id}.",
            f"`emotui models {base_name(model.hub_id)}` lists the SAEs of this model.",
        )


def _as_file_name(sae_id: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", sae_id).lstrip(".") or "sae"


def _wanted_files(release: Release, sae: PretrainedSae) -> tuple[str, ...]:
    names = {
        "gemma_2": (NPZ,),
        "gemma_3": ("params.safetensors",),
        "llama_scope": (_LLAMA_SCOPE_CONFIG, _LLAMA_SCOPE_WEIGHTS),
        "": (sae_formats.CONFIG, sae_formats.WEIGHTS),
    }[release.conversion]
    return tuple(f"{sae.path}/{name}" for name in names)


def _fetched(release: Release, saes: Sequence[PretrainedSae], *, offline: bool, job: Job) -> Path:
    """Return a snapshot folder that holds the files of these SAEs."""
    wanted = [name for one in saes for name in _wanted_files(release, one)]
    here = snapshot_here(release.repository)
    if here is not None and all((here / name).is_file() for name in wanted):
        return here
    if offline:
        raise refuse(
            f"The SAEs of {release.name} are not on this machine.",
            f"{len(saes)} are missing, and --offline forbids fetching them.",
            "Run once without --offline, or use --sae none.",
        )

    def choose(names: Sequence[str]) -> list[str]:
        absent = sorted(set(wanted) - set(names))
        if absent:
            raise refuse(
                f"The repository {release.repository} has no {absent[0]}.",
                f"SAELens's directory names it; {len(absent)} of {len(wanted)} files are missing.",
                "Name other SAEs with --sae RELEASE:ID.",
            )
        return wanted

    try:
        return fetch(release.repository, revision=None, choose=choose, job=job)
    except ModelError as error:
        what = error.what.replace("The model ", "The repository ")
        raise SaeError(what, why=error.why, todo=error.todo) from error


Read = Callable[[], tuple[dict[str, Tensor], dict[str, Any]]]
"""Returns the tensors under SAELens's names, and `cfg.json`."""


def _converted(target: Path, read: Read, *, dtype: torch.dtype) -> Path:
    """Write an SAE folder in one piece, or find it there."""
    if (target / sae_formats.CONFIG).is_file():
        return target
    tensors, config = read()
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
    try:
        whole = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
        d_in, width = whole["W_enc"].shape
        config = {"d_in": d_in, "d_sae": width, **config, "dtype": str(dtype)[len("torch.") :]}
        save_file(whole, unfinished / sae_formats.WEIGHTS)
        (unfinished / sae_formats.CONFIG).write_text(json.dumps(config, indent=1))
        if target.exists():  # without a configuration: left by hand
            shutil.rmtree(target)
        unfinished.rename(target)
    except OSError as error:
        if (target / sae_formats.CONFIG).is_file():
            return target  # another process was quicker
        raise refuse(
            f"The SAE could not be kept in {target}.",
            f"{error.strerror or error}.",
            "Make room, or choose another folder with --cache-dir.",
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _jumprelu_config(hook: str, **metadata: Any) -> dict[str, Any]:
    """Return the configuration of Gemma Scope SAEs, without the widths."""
    return {
        "architecture": "jumprelu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"hook_name": hook, "prepend_bos": True, **metadata},
    }


def _read_npz(file: Path) -> dict[str, Tensor]:
    """Return the arrays of a Gemma Scope params.npz, float32 as they are; never a pickle."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            tensors = {
                _NAMES.get(name.lower(), name): torch.from_numpy(np.ascontiguousarray(arrays[name]))
                for name in arrays.files
            }
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as error:
        pickled = "pickle" in str(error).lower()
        raise refuse(
            f"{file} was refused." if pickled else f"{file} could not be read.",
            "It holds pickled objects: loading one runs whatever code it holds."
            if pickled
            else f"It is damaged or cut short ({type(error).__name__}).",
            "Download it again from its repository.",
        ) from error
    return _complete(tensors, file)


def _complete(tensors: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Check that a JumpReLU SAE is whole, of one width and finite."""
    kept = {name: tensors[name] for name in _TENSORS if name in tensors}
    missing = [name for name in _TENSORS if name not in kept]
    if missing:
        raise refuse(f"{file} is no Gemma Scope SAE.", f"It has no {', '.join(missing)}.")
    if kept["W_enc"].ndim != 2:
        raise refuse(f"{file} is no Gemma Scope SAE.", "Its W_enc is not a matrix.")
    d_in, width = kept["W_enc"].shape
    shapes = {"W_enc": (d_in, width), "W_dec": (width, d_in), "b_dec": (d_in,)}
    for name, tensor in kept.items():
        if tuple(tensor.shape) != shapes.get(name, (width,)):
            raise refuse(
                f"The weights in {file} do not fit together.",
                f"{name} is {list(tensor.shape)}, W_enc is {[d_in, width]}.",
            )
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise refuse(f"{file} was refused.", f"{name} holds numbers that are not finite.")
    factor = tensors.get("scaling_factor")
    if factor is not None and not bool((factor == 1).all()):
        raise refuse(f"The SAE in {file} cannot be used.", "It has a fine-tuned scaling factor.")
    return kept


def _gemma_scope(
    snapshot: Path, sae: PretrainedSae, release: Release
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    site = next(
        (hook for name, hook in _GEMMA_SCOPE_SITES.items() if f"-{name}" in release.repository),
        None,
    )
    layer = re.search(r"layer_(\d+)", sae.path)
    if site is None or layer is None:
        raise refuse(
            f"The SAE {release.name}:{sae.id} reads a site that emotui does not have.",
            f"It is {sae.path} of {release.repository}.",
            f"Use one of a layer: --sae '{release.name}:layer_*'.",
        )
    tensors = _read_npz(snapshot / sae.path / NPZ)
    hook = f"blocks.{layer.group(1)}.{site}"
    return tensors, _jumprelu_config(hook, **_origin(sae, release))


_GEMMA_SCOPE_2_SITES = {"resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out"}


def _gemma_scope_2(
    snapshot: Path, sae: PretrainedSae, release: Release
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    site = next((hook for part, hook in _GEMMA_SCOPE_2_SITES.items() if part in sae.path), None)
    layer = re.search(r"layer_(\d+)", sae.path)
    if site is None or layer is None:
        raise refuse(
            f"The SAE {release.name}:{sae.id} reads a site that emotui does not have.",
            f"It is {sae.path} of {release.repository}.",
            "Use an SAE on the residual stream or on MLP outputs.",
        )
    file = snapshot / sae.path / "params.safetensors"
    found = sae_formats.read_tensors(file, device=torch.device("cpu"))
    tensors = _complete({_NAMES.get(name, name): t for name, t in found.items()}, file)
    hook = f"blocks.{layer.group(1)}.{site}"
    return tensors, _jumprelu_config(hook, **_origin(sae, release))


def _llama_scope(
    snapshot: Path, sae: PretrainedSae, release: Release
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read an SAE of Llama Scope: one threshold for all features, in units of scaled inputs."""
    folder = snapshot / sae.path
    own = sae_formats.read_json(folder / _LLAMA_SCOPE_CONFIG)
    file = folder / _LLAMA_SCOPE_WEIGHTS
    sae_formats.read_weights_header(file)
    found = sae_formats.read_tensors(file, device=torch.device("cpu"))
    try:
        mean_norm = float(own["dataset_average_activation_norm"]["in"])
        factor = float(own["d_model"]) ** 0.5 / mean_norm
        threshold = torch.full((int(own["d_sae"]),), float(own["jump_relu_threshold"]) * factor)
        tensors = {
            "W_enc": found["encoder.weight"].T,
            "W_dec": found["decoder.weight"].T,
            "b_enc": found["encoder.bias"],
            "b_dec": found["decoder.bias"],
            "threshold": threshold,
        }
        hook = str(own["hook_point_in"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise refuse(
            f"The SAE {release.name}:{sae.id} could not be read.",
            f"Its {_LLAMA_SCOPE_CONFIG} or its weights lack {error}.",
        ) from error
    config = {
        **_jumprelu_config(hook, **_origin(sae, release)),
        "normalize_activations": "expected_average_only_in",
        "norm_scaling_factor": sae.norm_scaling_factor or factor,
    }
    return _complete(tensors, file), config


def _saelens(
    snapshot: Path, sae: PretrainedSae, release: Release
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a SAELens folder, with what the directory puts over its configuration."""
    folder = snapshot / sae.path
    config = sae_formats.read_json(folder / sae_formats.CONFIG)
    metadata = dict(config.get("metadata") or {})
    config.update(release.overrides)
    if "sae_lens_version" not in {**config, **metadata}:
        config.setdefault("prepend_bos", True)  # as SAELens reads what is older than version 6
    file = folder / sae_formats.WEIGHTS
    sae_formats.read_weights_header(file)
    tensors = sae_formats.read_tensors(file, device=torch.device("cpu"))
    return tensors, {**config, "metadata": {**metadata, **_origin(sae, release)}}


def _origin(sae: PretrainedSae, release: Release) -> dict[str, Any]:
    return {
        "model_name": release.model,
        "neuronpedia_id": sae.neuronpedia,
        "sae_lens_release": release.name,
        "sae_lens_id": sae.id,
    }


_READERS: Mapping[
    str,
    Callable[[Path, PretrainedSae, Release], tuple[dict[str, Tensor], dict[str, Any]]],
] = {"gemma_2": _gemma_scope, "gemma_3": _gemma_scope_2, "llama_scope": _llama_scope, "": _saelens}
