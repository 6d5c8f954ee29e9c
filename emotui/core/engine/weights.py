"""Reading a model's weights: what they will take, where they go, and what to do if they do not fit.

A model is on one device, or spread over all GPUs by accelerate (`--device-map auto`). Weights are
in the run's dtype, or quantised by bitsandbytes (`--dtype int8`, `nf4`) where that is installed.
A checkpoint that bitsandbytes has quantised already stays as it is.
"""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emotui.core.engine import memory
from emotui.core.engine.memory import Estimate, Weights
from emotui.core.engine.quantised import (
    QUANTISED,
    QuantisedLinear,
    import_bitsandbytes,
    not_finite,
    with_own_products,
)
from emotui.core.errors import ModelError, OutOfMemory
from emotui.core.sizes import in_bytes
from emotui.core.text import clean

_LARGE_UNEMBEDDING = 2**24
_AGAIN = "Copy or download the folder again."


@dataclass(frozen=True)
class Placement:
    """How a model is to be held."""

    dtype: torch.dtype
    """Of what is computed, and of weights that are not quantised."""
    device: torch.device
    """Where everything is, or with a device map what texts and results are on."""
    quantised: str | None = None
    """`int8` or `nf4`; `fp4` where a checkpoint is stored so."""
    stored: bool = False
    """Whether the checkpoint is of that kind already."""
    device_map: str | dict[str, Any] | None = None
    """As accelerate takes it; None for one device."""
    offload: Path | None = None
    """A folder for weights that a device map puts on the disk."""

    @property
    def words(self) -> str:
        """The dtype as it is written in records."""
        return self.quantised or str(self.dtype).removeprefix("torch.")


def check_packages(placement: Placement) -> None:
    """Import what a placement needs, so that it is held before anything is estimated.

    ModelError where it is missing.
    """
    quantised = f"--dtype {placement.quantised}"
    needed = [
        ("accelerate", "--device-map", placement.device_map is not None),
        ("bitsandbytes", quantised, placement.quantised is not None),
        ("accelerate", quantised, placement.quantised is not None),
    ]
    for package, option, asked in needed:
        if not asked or find_spec(package) is not None:
            continue
        stored = option == quantised and placement.stored
        wanted = "'emotui[quantised]'" if option == quantised else package
        instead = "use a checkpoint that is not quantised" if stored else f"leave {option} out"
        raise ModelError(
            f"{f'This {placement.quantised} checkpoint' if stored else option} needs the package "
            f"{package}, which is not installed.",
            why="transformers leaves this to it.",
            todo=f"Install it (pip install {wanted}), or {instead}.",
        )
    if placement.quantised is not None:
        import_bitsandbytes()
        importlib.import_module("transformers.integrations.bitsandbytes")


def estimated(weights: Weights, placement: Placement, *, device: torch.device) -> Estimate:
    """Return what loading takes at its peak on the device.

    On the CPU, weights that are stored in the run's dtype stay where the file is mapped; others
    are converted while the whole file is mapped.
    """
    itemsize = placement.dtype.itemsize
    held = weights.in_memory(itemsize)
    same = weights.stored <= {_STORED.get(placement.dtype, "")}
    file = 0 if same else weights.in_file
    if placement.stored:
        # Only what is not quantised is copied out of the mapped file.
        file = weights.values * itemsize
    elif placement.quantised is not None:
        held -= int(weights.linear * (itemsize - QUANTISED[placement.quantised]))
        file = _while_quantised(weights, placement.quantised, itemsize, same=same)
    parts = [(f"of weights in {placement.words}", held)]
    if device.type == "cpu" and file:
        parts.append(("of the file while it is converted", file))
    return Estimate(memory.held_bytes(device), tuple(parts), memory.free_bytes(device))


def _while_quantised(weights: Weights, kind: str, itemsize: int, *, same: bool) -> int:
    """Return what there is beside the quantised weights: the file, and copies of one matrix.

    Where the rest is stored in the run's dtype it is not touched before all is quantised, and
    copied then, while the file that holds it is still mapped.
    """
    rest = (weights.values - weights.linear) * itemsize
    copies = _COPIES[kind] * weights.largest_linear
    if same:
        return max(weights.in_file - 2 * rest + copies, weights.file_of_embedding)
    return weights.in_file + copies


_COPIES = {"int8": 8, "nf4": 13}
"""Bytes for each number of a matrix while it is quantised, measured."""

_STORED = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float64: "F64"}


def too_large(name: str, weights: Weights, placement: Placement, estimate: Estimate) -> OutOfMemory:
    """Return the error for weights that do not fit, with what would."""
    return OutOfMemory(
        clean(f"There was not enough memory to load {name} in {placement.words}."),
        why=f"It needs {in_bytes(estimate.added)} on {placement.device}; "
        + memory.what_was_free(estimate.added, estimate.free, placement.device),
        todo=_what_fits(weights, placement, estimate.free),
    )


def _what_fits(weights: Weights, placement: Placement, free: int) -> str:
    options: list[str] = []
    half = weights.in_memory(2)
    if placement.dtype == torch.float32 and half <= free:
        options.append(f"--dtype bfloat16 takes {in_bytes(half)}")
    on_gpu = placement.device.type == "cuda"
    if find_spec("bitsandbytes") is not None and placement.quantised is None:
        for kind in QUANTISED:
            smaller = replace(placement, quantised=kind, dtype=torch.bfloat16)
            added = estimated(weights, smaller, device=placement.device).added
            if added <= free:
                options.append(f"--dtype {kind} takes {in_bytes(added)}")
    if on_gpu and torch.cuda.device_count() > 1 and placement.device_map is None:
        options.append("--device-map auto spreads it over all GPUs")
    if on_gpu and weights.in_memory(placement.dtype.itemsize) <= memory.free_bytes(
        torch.device("cpu")
    ):
        options.append("--device cpu has the room")
    if options:
        return f"What would fit: {'; '.join(options)}."
    return (
        f"Free some memory, or use a smaller model: {in_bytes(free)} hold about "
        f"{free / 2e9:.1f} billion parameters in bfloat16."
    )


def read_weights(folder: Path, *, placement: Placement, attention: str) -> Any:
    """Return the transformers model of a folder, in eval mode, all its weights read and finite.

    ModelError where transformers cannot load it, or weights are missing or not finite; whatever
    says that memory ran out passes as it is.
    """
    from transformers import AutoModelForCausalLM

    if placement.quantised is not None:
        name = not_finite(folder)
        if name is not None:
            raise _not_finite(name, folder)
    given_back = memory.copies_given_back() if placement.quantised else nullcontext()
    try:
        with given_back:
            model, report = AutoModelForCausalLM.from_pretrained(
                str(folder),
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                dtype=placement.dtype,
                attn_implementation=attention,
                output_loading_info=True,
                **_placed(placement),
            )
    except ImportError as error:
        raise ModelError(
            f"The model in {clean(str(folder))} needs a package that is not installed.",
            why=clean(_first_line(error)),
            todo="Install what it names (quantised weights need one of their own), or use the "
            "model in bfloat16.",
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        if memory.is_out_of_memory(error):
            raise
        raise ModelError(
            f"The model in {clean(str(folder))} could not be loaded.",
            why=clean(f"{type(error).__name__}: {_first_line(error)}"),
            todo="Check that the folder holds one complete model that this transformers reads.",
        ) from error
    # transformers fills what it does not find with random numbers and only warns.
    wrong = sorted(report["missing_keys"]) or sorted(map(str, report["mismatched_keys"]))
    if wrong:
        raise ModelError(
            f"The weights in {clean(str(folder))} do not fit its configuration.",
            why=clean(f"{len(wrong)} tensors are missing or of another shape, such as {wrong[0]}."),
            todo=_AGAIN,
        )
    if placement.quantised is None:
        _check_finite(model, folder)
    else:
        with_own_products(model)
    whole = placement.device_map is None and placement.quantised is None
    model = (model.to(placement.device) if whole else model).eval()
    _unembed_rows(model)
    return model


def _placed(placement: Placement) -> dict[str, Any]:
    named: dict[str, Any] = {}
    if placement.device_map is not None:
        named["device_map"] = placement.device_map
        named["offload_folder"] = None if placement.offload is None else str(placement.offload)
    if placement.quantised is not None:
        named.setdefault("device_map", {"": str(placement.device)})
    if placement.quantised is not None and not placement.stored:
        from transformers import BitsAndBytesConfig

        named["quantization_config"] = (
            BitsAndBytesConfig(load_in_8bit=True)
            if placement.quantised == "int8"
            else BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=placement.dtype,
            )
        )
    return named


def _check_finite(model: nn.Module, folder: Path) -> None:
    for name, parameter in model.named_parameters():
        if parameter.is_meta or not parameter.is_floating_point():
            continue
        # One sum tells: it is not finite where any of them is not. In the dtype it has: another
        # would be a copy of the whole.
        if not bool(torch.isfinite(parameter.sum())):
            raise _not_finite(name, folder)


def _not_finite(name: str, folder: Path) -> ModelError:
    return ModelError(
        f"The weights in {clean(str(folder))} were refused.",
        why=clean(f"{name} holds numbers that are not finite."),
        todo=_AGAIN,
    )


def parameters_of(model: nn.Module) -> int:
    """Return the number of a model's parameters; two that are quantised into a byte are two."""
    plain = sum(parameter.numel() for parameter in model.parameters())
    quantised = (m for m in model.modules() if isinstance(m, QuantisedLinear))
    return plain + sum(layer.in_features * layer.out_features for layer in quantised)


def _unembed_rows(model: Any) -> None:
    """Give a large unembedding its rows one after the other.

    Of [:, -1:], which transformers hands it, PyTorch makes a batched product, and for that on the
    CPU a copy of the whole matrix: 1.1 GiB and seconds a forward in Gemma-2-2B.
    """
    unembed = model.get_output_embeddings()
    if unembed is None or unembed.weight.numel() < _LARGE_UNEMBEDDING:
        return

    def in_rows(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = inputs[0].contiguous()
        return (hidden.view(-1, hidden.shape[-1]).view(hidden.shape), *inputs[1:])

    unembed.register_forward_pre_hook(in_rows)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]
