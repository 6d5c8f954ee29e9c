"""Finished work of a run: one sealed safetensors file for each chunk of a stage.

A stage is cut into chunks at fixed places, and each is computed by itself, so a run that was
interrupted anywhere and resumed has the same bytes as one that was not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import load as tensors_from_bytes
from torch import Tensor

from emotui.cache import sealed
from emotui.core.engine.packed import tensors_to_bytes
from emotui.core.studies.common import folder as folders

_Record = TypeVar("_Record")


class Chunks:
    """The chunks of one stage, numbered from 0."""

    def __init__(self, folder: Path, stage: str, count: int) -> None:
        self._folder = folder / folders.CHUNKS / stage
        self.stage = stage
        self.count = count

    def path(self, number: int) -> Path:
        """Return where a chunk lies, finished or not."""
        return self._folder / f"{number:05d}.safetensors"

    def has(self, number: int) -> bool:
        """Return whether a chunk is finished and whole; a damaged one is to be done again."""
        try:
            sealed.unseal(self.path(number).read_bytes())
        except (OSError, sealed.Damaged):
            return False
        return True

    def put(self, number: int, tensors: dict[str, Tensor]) -> None:
        """Keep a finished chunk; CacheError where the disk does not take it."""
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        folders.write(self.path(number), sealed.seal(tensors_to_bytes(on_cpu), {}))

    def get(self, number: int) -> dict[str, Tensor]:
        """Return the tensors of a finished chunk, on the CPU."""
        tensors: dict[str, Tensor] = tensors_from_bytes(self.path(number).read_bytes())
        return tensors

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self.get(number) for number in range(self.count))

    def joined(self, name: str, at: int | None = None) -> Tensor:
        """Return one tensor of all chunks, one under the other along the first dimension.

        With `at`, of each tensor only row `at` of its first dimension; the rest is not read.
        """
        parts = []
        for number in range(self.count):
            with safe_open(self.path(number), framework="pt") as file:
                parts.append(file.get_tensor(name) if at is None else file.get_slice(name)[at])
        return torch.cat(parts)


def packed(record: Any) -> Tensor:
    """Return a record as bytes in a tensor, to be kept in a chunk."""
    return torch.frombuffer(bytearray(msgspec.msgpack.encode(record)), dtype=torch.uint8)


def unpacked(tensor: Tensor, record: type[_Record]) -> _Record:
    """Return what `packed` was given."""
    return msgspec.msgpack.decode(tensor.numpy().tobytes(), type=record)
