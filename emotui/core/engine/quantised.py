"""Quantised weights: stored by bitsandbytes, multiplied by emotui.

A layer's weights are dequantised for each product and let go again, in a forward pass and in a
backward pass. So a quantised model is the plain model of those weights: what it computes for a
token depends on no other text of the batch and on no later token, a resumed run equals a full
one, a gradient is that of the numbers that were computed, and a CPU and a GPU compute the same.

bitsandbytes' own products are none of that. LLM.int8 rounds the inputs as well, and which columns
it spares is decided over all tokens of a batch together. Its 4-bit layers, on a CPU with
AVX512-BF16, pack the weights anew in the first forward pass: with scales in bfloat16, for shapes
that are multiples of 32 only, and without a gradient.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emotui.core.engine.model_files import weight_files
from emotui.core.text import clean

QUANTISED = {"int8": 1.0, "nf4": 0.5625}
"""Kinds of quantised weights, and the bytes that a number takes, its scale included."""

_INT8_LARGEST = 127.0
_AT_ONCE = 2**22
_METHOD = "bitsandbytes"
_KERNELS = "kernels"


@contextmanager
def _nothing_fetched() -> Iterator[None]:
    """Keep an import of bitsandbytes from fetching a kernel from the hub, and from saying so.

    Where the package `kernels` is installed it does that on CPUs with AVX512-BF16. The kernel is
    one that is not used here, and `--offline` promises no connection.
    """
    before = sys.modules.get(_KERNELS)
    log = logging.getLogger(_METHOD)
    level = log.level
    log.setLevel(logging.ERROR)
    sys.modules[_KERNELS] = None  # type: ignore[assignment]  # the way to have an import fail
    try:
        yield
    finally:
        log.setLevel(level)
        if before is None:
            del sys.modules[_KERNELS]
        else:
            sys.modules[_KERNELS] = before


def import_bitsandbytes() -> Any:
    """Return the package bitsandbytes; ImportError where it is not installed."""
    if _METHOD not in sys.modules:
        with _nothing_fetched():
            import_module(_METHOD)
    return sys.modules[_METHOD]


def stored_kind(config: Mapping[str, Any]) -> str | None:
    """Return what bitsandbytes has made of a checkpoint: `int8`, `nf4`, `fp4`; None where nothing.

    Other methods of quantisation are None too: transformers says which package they need.
    """
    told = config.get("quantization_config")
    if not isinstance(told, dict) or told.get("quant_method") != _METHOD:
        return None
    if told.get("load_in_8bit"):
        return "int8"
    return "nf4" if told.get("bnb_4bit_quant_type") == "nf4" else "fp4"


class QuantisedLinear(nn.Module):
    """A linear layer of int8 weights with a scale a row, or of 4-bit weights with one a block."""

    packed: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(
        self,
        packed: Tensor,
        scales: Tensor,
        *,
        shape: Sequence[int],
        bias: Tensor | None,
        block: int | None = None,
        kind: str = "int8",
    ) -> None:
        """Hold `packed` and `scales` as they are.

        `packed` is int8 [out, in], or uint8 with two numbers a byte where `block` says for how
        many of them a scale is; `shape` is (out, in). `scales` is float32: by what int8 numbers
        are multiplied, [out, 1], or the largest number of each block.
        """
        super().__init__()
        self.out_features, self.in_features = shape
        self.kind, self._block = kind, block
        if block is not None:
            packed = _padded(packed.view(-1), scales.numel() * block // 2)
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, False))

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        """Return the weights dequantised, [out, in] in `dtype`."""
        if self._block is None:
            return self._from_int8(dtype)
        functional = import_bitsandbytes().functional
        # A row for each block: where a block goes over the end of a row, the kernel for CPUs
        # (0.50.2) takes another block's scale.
        state = functional.QuantState(
            self.scales,
            shape=torch.Size((self.scales.numel(), self._block)),
            blocksize=self._block,
            quant_type=self.kind,
            dtype=dtype,
        )
        numbers: Tensor = functional.dequantize_4bit(self.packed, state)
        count = self.out_features * self.in_features
        return numbers.view(-1)[:count].view(self.out_features, self.in_features)

    def _from_int8(self, dtype: torch.dtype) -> Tensor:
        weight = torch.empty(self.packed.shape, dtype=dtype, device=self.packed.device)
        rows = max(1, _AT_ONCE // self.in_features)
        # The products are float32, rounded once: all at once they would take twice the weights.
        for start in range(0, self.out_features, rows):
            some = slice(start, start + rows)
            weight[some] = self.packed[some] * self.scales[some]
        return weight

    def forward(self, inputs: Tensor) -> Tensor:
        """Return inputs [..., in] times the weights, plus the bias: [..., out], same dtype."""
        outputs: Tensor = _Product.apply(inputs, self)  # type: ignore[no-untyped-call]
        return outputs

    def extra_repr(self) -> str:
        """Return what is printed of the layer."""
        return f"{self.in_features}, {self.out_features}, {self.kind}"


def _padded(packed: Tensor, length: int) -> Tensor:
    short = length - packed.numel()
    return (nn.functional.pad(packed, (0, short)) if short else packed).view(-1, 1)


class _Product(torch.autograd.Function):
    """A linear layer that keeps no dequantised weights for the backward pass."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: QuantisedLinear) -> Tensor:
        ctx.layer = layer
        return nn.functional.linear(inputs, layer.weight_in(inputs.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        (slope,) = slopes
        return slope @ ctx.layer.weight_in(slope.dtype), None


def with_own_products(model: nn.Module) -> None:
    """Replace bitsandbytes' layers by QuantisedLinear, in place; accelerate's hooks move along.

    Parameters that lie in a mapped file are copied: the file would stay mapped for their sake,
    with all the weights that were quantised.
    """
    layers = import_bitsandbytes().nn
    for name, module in list(model.named_modules()):
        if isinstance(module, layers.Linear8bitLt):
            model.set_submodule(name, _hooked_alike(module, _of_int8(module)))
        elif isinstance(module, layers.Linear4bit):
            model.set_submodule(name, _hooked_alike(module, _of_4bit(module)))
    # The small ones first: of a checkpoint in many files, few are then mapped when the embedding
    # is there twice.
    for parameter in sorted(model.parameters(), key=torch.numel):
        if parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()


def _of_int8(module: Any) -> QuantisedLinear:
    scales = module.weight.SCB if module.state.SCB is None else module.state.SCB
    return QuantisedLinear(
        module.weight.data,
        (scales.float() / _INT8_LARGEST)[:, None],
        shape=tuple(module.weight.shape),
        bias=module.bias,
    )


def _of_4bit(module: Any) -> QuantisedLinear:
    state = module.weight.quant_state
    scales = state.absmax
    if state.nested:  # the scales are quantised too
        functional = import_bitsandbytes().functional
        scales = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    return QuantisedLinear(
        module.weight.data.view(torch.uint8),
        scales.float(),
        shape=tuple(state.shape),
        bias=module.bias,
        block=state.blocksize,
        kind=state.quant_type,
    )


def _hooked_alike(module: nn.Module, own: QuantisedLinear) -> QuantisedLinear:
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        from accelerate.hooks import add_hook_to_module, remove_hook_from_module

        remove_hook_from_module(module)
        add_hook_to_module(own, hook)
    return own


def not_finite(folder: Path) -> str | None:
    """Return the name of a tensor in a folder's files with numbers that are not finite, if any.

    Quantised, such a number may come out as any other.
    """
    from safetensors import safe_open

    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            names = tensors.keys()
            for name in names:
                tensor = tensors.get_tensor(name)
                if not tensor.is_floating_point() or not tensor.numel():
                    continue
                if not all(bool(torch.isfinite(end)) for end in tensor.aminmax()):
                    return clean(name)
    return None
