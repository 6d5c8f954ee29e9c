"""Tensors as safetensors bytes: what the library reads, and what it writes."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from emotui.core.engine.packed import tensors_to_bytes

_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(3, 5, generator=generator) * 40
    named = {f"a {str(dtype)[6:]} “array”": drawn.to(dtype) for dtype in _DTYPES}
    return {
        **named,
        "number": torch.tensor(3.5),
        "empty": torch.zeros(0, 7, dtype=torch.bfloat16),
        "odd": torch.arange(3, dtype=torch.uint8),
    }


def test_the_library_reads_what_was_written() -> None:
    tensors = _tensors()
    read = load(tensors_to_bytes(tensors))
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor), name


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("metadata", [None, {"kind": "x"}])
def test_the_bytes_are_those_of_the_library(
    dtype: torch.dtype, metadata: dict[str, str] | None
) -> None:
    tensors = {"b": torch.ones(2, 3, dtype=dtype), "a": torch.zeros(5, dtype=dtype)}
    assert tensors_to_bytes(tensors, metadata) == save(tensors, metadata)


def test_views_and_gradients_are_written_as_they_are() -> None:
    whole = torch.arange(24.0).view(4, 6).requires_grad_()
    part = whole[1:3, ::2]
    assert torch.equal(load(tensors_to_bytes({"part": part}))["part"], part.detach())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_no_length_is_remembered() -> None:
    def resident_kilobytes() -> int:
        gc.collect()
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))

    tensors_to_bytes({"a": torch.zeros(2)})
    before = resident_kilobytes()
    for length in range(3, 2003):
        tensors_to_bytes({"a": torch.zeros(length)})
    # By safetensors.torch it was 6 kB for each: 12 MB.
    assert resident_kilobytes() - before < 1_000
