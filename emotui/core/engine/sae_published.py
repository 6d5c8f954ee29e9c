"""SAEs as they were published: Gemma Scope, Llama Scope, SAELens folders of the hub.

Each reader gives the tensors under SAELens's names and the configuration that SAELens's own loader
would make of them, so that what is written from these is read by `sae_formats` as any other.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emotui.core.engine import sae_formats
from emotui.core.engine.sae_formats import refuse
from emotui.core.sae_directory import PretrainedSae, Release

NPZ = "params.npz"
_PARAMETERS = "params.safetensors"
_LLAMA_SCOPE_CONFIG = "hyperparams.json"
_LLAMA_SCOPE_WEIGHTS = "checkpoints/final.safetensors"
_NAMES = {"w_enc": "W_enc", "w_dec": "W_dec"}
_TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
GEMMA_SCOPE_SITES: Mapping[str, str] = {
    "res": "hook_resid_post",
    "mlp": "hook_mlp_out",
    "att": "attn.hook_z",
}
"""Hooks by what the names of Gemma Scope's repositories end in."""
_GEMMA_SCOPE_2_SITES = {"resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out"}

Content = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors under SAELens's names, and what `cfg.json` is to say."""


def jumprelu_config(hook: str, **metadata: Any) -> dict[str, Any]:
    """Return the configuration of Gemma Scope SAEs, without the widths."""
    return {
        "architecture": "jumprelu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if hook.endswith("hook_z") else "none",
        "metadata": {"hook_name": hook, "prepend_bos": True, **metadata},
    }


def read_npz(file: Path) -> dict[str, Tensor]:
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


def _gemma_scope(snapshot: Path, sae: PretrainedSae, release: Release) -> Content:
    site = next(
        (hook for name, hook in GEMMA_SCOPE_SITES.items() if f"-{name}" in release.repository),
        None,
    )
    layer = re.search(r"layer_(\d+)", sae.path)
    if site is None or layer is None:
        raise refuse(
            f"The SAE {release.name}:{sae.id} reads a site that emotui does not have.",
            f"It is {sae.path} of {release.repository}.",
            f"Use one of a layer: --sae '{release.name}:layer_*'.",
        )
    tensors = read_npz(snapshot / sae.path / NPZ)
    hook = f"blocks.{layer.group(1)}.{site}"
    return tensors, jumprelu_config(hook, **_origin(sae, release))


def _gemma_scope_2(snapshot: Path, sae: PretrainedSae, release: Release) -> Content:
    site = next((hook for part, hook in _GEMMA_SCOPE_2_SITES.items() if part in sae.path), None)
    layer = re.search(r"layer_(\d+)", sae.path)
    if site is None or layer is None:
        raise refuse(
            f"The SAE {release.name}:{sae.id} reads a site that emotui does not have.",
            f"It is {sae.path} of {release.repository}.",
            "Use an SAE on the residual stream or on MLP outputs.",
        )
    file = snapshot / sae.path / _PARAMETERS
    found = sae_formats.read_tensors(file, device=torch.device("cpu"))
    tensors = _complete({_NAMES.get(name, name): t for name, t in found.items()}, file)
    hook = f"blocks.{layer.group(1)}.{site}"
    return tensors, jumprelu_config(hook, **_origin(sae, release))


def _llama_scope(snapshot: Path, sae: PretrainedSae, release: Release) -> Content:
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
        **jumprelu_config(hook, **_origin(sae, release)),
        "normalize_activations": "expected_average_only_in",
        "norm_scaling_factor": sae.norm_scaling_factor or factor,
    }
    return _complete(tensors, file), config


def _saelens(snapshot: Path, sae: PretrainedSae, release: Release) -> Content:
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


READERS: Mapping[str, Callable[[Path, PretrainedSae, Release], Content]] = {
    "gemma_2": _gemma_scope,
    "gemma_3": _gemma_scope_2,
    "llama_scope": _llama_scope,
    "": _saelens,
}
"""By SAELens's name of the conversion: get the folder of a repository and read one SAE of it."""

FILES: Mapping[str, tuple[str, ...]] = {
    "gemma_2": (NPZ,),
    "gemma_3": (_PARAMETERS,),
    "llama_scope": (_LLAMA_SCOPE_CONFIG, _LLAMA_SCOPE_WEIGHTS),
    "": (sae_formats.CONFIG, sae_formats.WEIGHTS),
}
"""What each of them reads in an SAE's folder."""

STORED_BYTES: Mapping[str, int] = {"llama_scope": 2}
"""Bytes of a number in their files where these are not float32."""
