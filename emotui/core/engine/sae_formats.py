"""SAEs on disk: the folder SAELens writes, read and judged before a weight is used.

A folder holds `cfg.json` and `sae_weights.safetensors`, and may hold `labels.json` (index to
text), `statistics.safetensors` (`mean` [d_in]: the mean of the site over the training corpus) and
`activation_scaler.json` (the factor of `expected_average_only_in`). A source is one such folder
or a folder of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from emotui.core.engine.memory import is_out_of_memory
from emotui.core.engine.model_files import read_header
from emotui.core.errors import ModelError, SaeError
from emotui.core.records import Site
from emotui.core.text import clean

Architecture = Literal["standard", "topk", "jumprelu"]

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
LABELS = "labels.json"
STATISTICS = "statistics.safetensors"
SCALER = "activation_scaler.json"

_ARCHITECTURES: Mapping[str, Architecture] = {
    "standard": "standard",
    "topk": "topk",
    "jumprelu": "jumprelu",
}
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16}
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
_MAX_LABEL = 200
_CENTRED = "center_writing_weights"
_COPY_AGAIN = "Copy or download the folder again, or save it again with SAELens."
_HOOKS: tuple[tuple[str, Site, int, str], ...] = (
    (r"blocks\.(\d+)\.(?:hook_resid_post|hook_out)", "resid", 0, "resid"),
    (r"blocks\.(\d+)\.(?:hook_resid_pre|hook_in)", "resid", -1, "resid_pre"),
    (r"blocks\.(\d+)\.(?:hook_attn_out|ln1_post\.hook_out)", "attn", 0, "attn"),
    (r"blocks\.(\d+)\.(?:hook_mlp_out|ln2_post\.hook_out)", "mlp", 0, "mlp"),
    (r"blocks\.(\d+)\.attn\.hook_z", "z", 0, "z"),
    (r"(?:model\.layers|transformer\.h|gpt_neox\.layers)\.(\d+)", "resid", 0, "resid"),
)


def refuse(what: str, why: str = "", todo: str = _COPY_AGAIN) -> SaeError:
    """Return a SaeError with cleaned text (paths and names come from files)."""
    return SaeError(clean(what), why=clean(why), todo=clean(todo))


@dataclass(frozen=True)
class SaeConfig:
    """What `cfg.json` says, in emotui's terms."""

    folder: Path
    architecture: Architecture
    d_in: int
    width: int
    site: Site
    layer: int
    """Of `site`: -1 for the SAE of `blocks.0.hook_resid_pre`."""
    own_name: str
    """The site and layer under the SAE's own name, as in `resid_pre.3`."""
    apply_b_dec_to_input: bool
    k: int | None
    """Of topk; None for the others."""
    rescale_by_decoder_norm: bool
    """Of topk: pre-activations count by the norm of their decoder row, which then counts as 1."""
    prepend_bos: bool | None
    """Whether the SAE was trained on texts that begin with BOS; None where it does not say."""
    centred: bool
    """Whether the SAE reads activations whose mean over their width was taken away: it was trained
    on a model whose writing weights were centred, as TransformerLens does for LayerNorm models."""
    model_name: str | None
    """The model it was trained on; None where it does not say."""
    neuronpedia: str | None
    """Its id at Neuronpedia, as in `gemma-2-2b/20-gemmascope-res-16k`; None where it says none."""
    scale: float
    """The factor of `expected_average_only_in`, still to be folded in; 1 otherwise."""
    key: str
    """16 hex digits that change when the folder's content does."""
    stored: torch.dtype | None
    """The dtype of its weights; None where emotui runs in no such dtype."""


def read_json(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file; SaeError where it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise refuse(
            f"{path} could not be read.", f"It is damaged or cut short ({type(error).__name__})."
        ) from error
    if not isinstance(content, dict):
        raise refuse(f"{path} could not be read.", "It holds no JSON object.")
    return content


def site_of(hook_name: str) -> tuple[Site, int, str] | None:
    """Return site, layer and own name of a TransformerLens or Hugging Face hook name."""
    for pattern, site, shift, name in _HOOKS:
        if found := re.fullmatch(pattern, hook_name):
            layer = int(found.group(1))
            return site, layer + shift, f"{name}.{layer}"
    return None


def sae_folders(source: Path) -> list[Path]:
    """Return the SAE folders of a source: itself, or those right inside it, by name.

    SaeError where there is none, saying what stands there instead.
    """
    if (source / CONFIG).is_file():
        return [source]
    if not source.is_dir():
        raise refuse(
            f"There is no SAE folder at {source}.",
            "The path does not exist." if not source.exists() else "It is a file.",
            f"Give a folder with {CONFIG} and {WEIGHTS}, or a folder of such folders.",
        ).of_input()
    folders = sorted(path.parent for path in source.glob(f"*/{CONFIG}"))
    if folders:
        return folders
    inside = sorted(path for path in source.rglob("*") if path.suffix.lower() in _PICKLES)
    if inside:
        raise _refuse_pickle(inside[0])
    raise refuse(
        f"{source} holds no SAE.",
        f"Neither it nor a folder in it has a {CONFIG}.",
        "Save the SAE with SAELens (save_model or save_inference_model) and give that folder.",
    ).of_input()


def _refuse_pickle(path: Path) -> SaeError:
    return refuse(
        f"{path} was refused.",
        "It is a pickle: loading one runs whatever code it holds.",
        "Save the SAE with SAELens: it writes safetensors.",
    )


def read_config(folder: Path) -> SaeConfig:
    """Read and judge `cfg.json` and the header of the weights; no weight is read.

    SaeError names an architecture, hook, normalisation or option that emotui cannot run as
    SAELens would.
    """
    config = read_json(folder / CONFIG)
    metadata = config.get("metadata")
    both = {**config, **(metadata if isinstance(metadata, dict) else {})}
    if "hook_point" in config:  # SAELens before version 6
        both.setdefault("hook_name", config["hook_point"])
    architecture, k = _architecture(folder, config)
    hook_name = both.get("hook_name")
    site = site_of(hook_name) if isinstance(hook_name, str) else None
    reshaped = config.get("reshape_activations", "none")
    # `z` is captured with its heads side by side, which is what hook_z asks for.
    if site is None or reshaped not in (("none", "hook_z") if site[0] == "z" else ("none",)):
        raise refuse(
            f"The SAE in {folder} reads a site that emotui does not have.",
            f"Its hook is {hook_name!r}.",
            "Use an SAE on hook_resid_pre, hook_resid_post, hook_attn_out, hook_mlp_out or "
            "attn.hook_z.",
        )
    shape = _shapes(folder)
    d_in, width = config.get("d_in"), config.get("d_sae")
    if not isinstance(d_in, int) or shape["W_dec"] != [width, d_in]:
        raise refuse(
            f"The weights of the SAE in {folder} do not fit its {CONFIG}.",
            f"W_dec is {shape['W_dec']}, d_sae and d_in are {width} and {d_in}.",
        )
    if k is not None and not 1 <= k <= shape["W_dec"][0]:
        raise refuse(f"The SAE in {folder} cannot be used.", f"Its k is {k}, its width {width}.")
    prepend_bos, neuronpedia = both.get("prepend_bos"), both.get("neuronpedia_id")
    return SaeConfig(
        folder=folder,
        architecture=architecture,
        d_in=d_in,
        width=shape["W_dec"][0],
        site=site[0],
        layer=site[1],
        own_name=site[2],
        apply_b_dec_to_input=bool(config.get("apply_b_dec_to_input", True)),
        k=k,
        rescale_by_decoder_norm=bool(config.get("rescale_acts_by_decoder_norm", False)),
        prepend_bos=prepend_bos if isinstance(prepend_bos, bool) else None,
        centred=bool((both.get("model_from_pretrained_kwargs") or {}).get(_CENTRED)),
        model_name=both["model_name"] if isinstance(both.get("model_name"), str) else None,
        neuronpedia=neuronpedia if isinstance(neuronpedia, str) else None,
        scale=_scale(folder, config),
        key=_key(folder),
        stored=_DTYPES.get(str(read_weights_header(folder / WEIGHTS)["W_dec"].get("dtype"))),
    )


def _architecture(folder: Path, config: Mapping[str, Any]) -> tuple[Architecture, int | None]:
    name = config.get("architecture", "standard")
    k = config.get("k")
    activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    if activation == "topk":  # SAELens before version 6
        name, k = "topk", (config.get("activation_fn_kwargs") or {}).get("k")
    elif activation != "relu":
        name = f"{name} with {activation}"
    known = _ARCHITECTURES.get(str(name))
    if known is None:
        raise refuse(
            f"The SAE in {folder} has an architecture that emotui does not run.",
            f"It is {name!r}.",
            f"Use one of: {', '.join(_ARCHITECTURES)}. BatchTopK and Matryoshka SAEs become "
            "jumprelu through SAELens's save_inference_model.",
        )
    if known != "topk":
        return known, None
    if not isinstance(k, int):
        raise refuse(f"The SAE in {folder} cannot be used.", f"It is topk, and its k is {k!r}.")
    return known, k


def _scale(folder: Path, config: Mapping[str, Any]) -> float:
    how = config.get("normalize_activations") or "none"
    if how is True:
        how = "expected_average_only_in"
    if how == "none":
        return 1.0
    if how != "expected_average_only_in":
        raise refuse(
            f"The SAE in {folder} normalises its input in a way that emotui does not run.",
            f"normalize_activations is {how!r}.",
            "Use an SAE with none, or with expected_average_only_in and its factor.",
        )
    factor = config.get("norm_scaling_factor")
    if factor is None and (folder / SCALER).is_file():
        factor = read_json(folder / SCALER).get("scaling_factor")
    if not isinstance(factor, int | float) or isinstance(factor, bool) or not factor > 0:
        raise refuse(
            f"The SAE in {folder} cannot be used as it stands.",
            "It expects inputs divided by their average norm, and that factor is not stored.",
            f"Save it with SAELens after training (the factor is folded in then), or write it to "
            f"{SCALER} as scaling_factor.",
        )
    return float(factor)


def _shapes(folder: Path) -> dict[str, list[int]]:
    path = folder / WEIGHTS
    if not path.is_file():
        pickles = sorted(p for p in folder.iterdir() if p.suffix.lower() in _PICKLES)
        if pickles:
            raise _refuse_pickle(pickles[0])
        raise refuse(f"{folder} is not a complete SAE.", f"{WEIGHTS} is missing.")
    shapes = {name: list(entry["shape"]) for name, entry in read_weights_header(path).items()}
    missing = {"W_enc", "W_dec", "b_enc", "b_dec"} - shapes.keys()
    if missing:
        raise refuse(f"{path} is not a complete SAE.", f"It has no {', '.join(sorted(missing))}.")
    return shapes


def read_weights_header(path: Path) -> dict[str, Any]:
    """Return the header of a safetensors file; SaeError where it is a pickle or cut short."""
    try:
        return read_header(path)
    except ModelError as error:
        if "pickle" in error.why:
            raise _refuse_pickle(path) from error
        raise SaeError(error.what, why=error.why, todo=_COPY_AGAIN) from error


def _key(folder: Path) -> str:
    """Hash the small files whole, of the weights the header, the size and the time."""
    digest = hashlib.sha256()
    for name in (CONFIG, LABELS, STATISTICS, SCALER):
        path = folder / name
        digest.update(path.read_bytes() if path.is_file() else b"")
        digest.update(b"\0")
    status = (folder / WEIGHTS).stat()
    digest.update(json.dumps(_shapes(folder), sort_keys=True).encode())
    digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def read_tensors(
    path: Path, *, device: torch.device, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, all finite.

    On the CPU they are memory-mapped, but those of another dtype than `dtype` are converted, one
    after the other. SaeError where the file cannot be read or holds a number that is not finite.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            names = list(file.keys())
        tensors: dict[str, Tensor] = {}
        for name in names:
            # Opened for each: what was mapped of the one before is gone once it is converted.
            with safe_open(str(path), framework="pt") as file:
                found = file.get_tensor(name).to(device)
            # In the dtype it has, and by one sum: anything else would be a copy of the whole.
            if found.is_floating_point() and not bool(torch.isfinite(found.sum())):
                raise refuse(f"{path} was refused.", f"{name} holds numbers that are not finite.")
            tensors[name] = found if dtype is None else found.to(dtype)
    except (OSError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise refuse(
            f"{path} could not be read.", f"It is damaged ({type(error).__name__})."
        ) from error
    return tensors


def read_labels(folder: Path) -> dict[int, str]:
    """Return `labels.json` as index to text (at most 200 characters); empty without the file."""
    path = folder / LABELS
    if not path.is_file():
        return {}
    try:
        return {int(index): str(label)[:_MAX_LABEL] for index, label in read_json(path).items()}
    except ValueError as error:
        raise refuse(f"{path} could not be used.", "Its keys are not feature indices.") from error
