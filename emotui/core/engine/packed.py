"""Tensors as one safetensors document.

safetensors.torch reaches a tensor's bytes through a ctypes array type of its length, which ctypes
keeps for good: 6 kB for every length that was ever saved. Here nothing is kept. Reading is left to
safetensors.torch.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def tensors_to_bytes(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Return the tensors, on any device, as safetensors bytes.

    Widest dtypes first, so that every array is aligned. KeyError for a dtype that is not kept.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    parts: list[memoryview] = []
    start = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        values = tensor.detach().cpu().contiguous().view(-1)
        part = values.view(torch.uint8).numpy().data
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": tuple(tensor.shape),
            "data_offsets": (start, start + part.nbytes),
        }
        parts.append(part)
        start += part.nbytes
    head = msgspec.json.encode(header)
    head += b" " * (-len(head) % 8)
    return b"".join([len(head).to_bytes(8, "little"), head, *parts])
