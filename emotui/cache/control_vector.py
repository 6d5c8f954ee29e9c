"""Directions as llama.cpp control vectors: GGUF files with a tensor `direction.L` for each layer.

llama.cpp adds `direction.L` to the output of block L, counted from 0, and has none for block 0; so
`direction.L` is along `resid.L`. Needs the package `gguf`. Torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np

from emotui.core.errors import ProbeError
from emotui.core.text import clean

ARCHITECTURE = "controlvector"
_MAGIC = b"GGUF"
_NAME = re.compile(r"direction\.(\d{1,4})")
_MOST_BYTES = 2**30


class ControlVector(msgspec.Struct, frozen=True):
    """The directions of one file."""

    model_hint: str
    """The architecture it says it is for; "" where it does not say."""
    directions: dict[int, Any]
    """Layer to a float32 array [d_model]."""


def _package() -> ModuleType:
    try:
        import gguf
    except ImportError as error:
        raise ProbeError(
            "GGUF files cannot be read or written here.",
            why="The package gguf is not installed.",
            todo="Install it: pip install 'emotui[gguf]'.",
        ) from error
    module: ModuleType = gguf
    return module


def write_control_vector(
    path: Path, directions: Mapping[int, Any], *, architecture: str, name: str
) -> tuple[int, ...]:
    """Write float32 directions by layer and return the layers written: layer 0 has no place.

    ProbeError without the package, or where no layer is left; OSError where it cannot be written.
    """
    package = _package()
    kept = {layer: vector for layer, vector in sorted(directions.items()) if layer >= 1}
    if not kept:
        raise ProbeError("There is no direction to write.", why="Control vectors begin at layer 1.")
    writer = package.GGUFWriter(str(path), ARCHITECTURE)
    writer.add_name(name)
    if architecture:
        writer.add_string(f"{ARCHITECTURE}.model_hint", architecture)
    writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(kept))
    for layer, vector in kept.items():
        writer.add_tensor(f"direction.{layer}", np.ascontiguousarray(vector, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tuple(kept)


def read_control_vector(path: Path) -> ControlVector:
    """Return the directions of a file; ProbeError where it is no control vector."""

    def refused(why: str, todo: str = "") -> ProbeError:
        what = f"{clean(path.name)} could not be read as a control vector."
        return ProbeError(what, why=why, todo=todo).of_input()

    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise refused(f"{error.strerror}.") from error
    if magic != _MAGIC or size > _MOST_BYTES:
        why = "It is no GGUF file." if magic != _MAGIC else "It is larger than a gigabyte."
        raise refused(why, "Give a control vector in llama.cpp's GGUF.")
    package = _package()
    try:
        reader = package.GGUFReader(str(path), "r")
        fields = {name: _string(reader, name) for name in ("general.architecture", _HINT)}
        found = {str(tensor.name): tensor for tensor in reader.tensors}
        arrays = {name: np.array(tensor.data) for name, tensor in found.items()}
        kinds = {name: tensor.tensor_type.name for name, tensor in found.items()}
    # The package raises what numpy and struct do, and IndexError, on a damaged file.
    except Exception as error:
        raise refused(f"It is damaged ({type(error).__name__}).", "Copy it again.") from error
    if fields["general.architecture"] != ARCHITECTURE:
        kind = clean(fields["general.architecture"] or "no architecture")
        raise refused(f"It is a GGUF of {kind!r}.", "Give a control vector, not a model.")
    directions = {}
    for name, array in arrays.items():
        layer = _NAME.fullmatch(name)
        if layer is None or array.ndim != 1 or kinds[name] not in ("F32", "F16"):
            raise refused(f"Its tensor {clean(name)!r} is no float vector called direction.LAYER.")
        if not np.isfinite(array).all():
            raise refused(f"{clean(name)} holds numbers that are not finite.")
        directions[int(layer[1])] = array.astype(np.float32)
    if not directions:
        raise refused("It holds no direction.")
    return ControlVector(fields[_HINT], directions)


_HINT = f"{ARCHITECTURE}.model_hint"


def _string(reader: Any, name: str) -> str:
    field = reader.get_field(name)
    return "" if field is None else bytes(field.parts[field.data[0]]).decode("utf-8", "replace")
