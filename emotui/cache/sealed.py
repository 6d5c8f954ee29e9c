"""Sealed files: plain safetensors files that carry their own checksum.

A sealed file is the file any safetensors reader knows, with its metadata first in the header and
the checksum first in the metadata, at a fixed place:

    u64 header length | {"__metadata__":{"emotui_sha256":"<64 hex digits>", ... } ... } | arrays

The checksum is SHA-256 over the whole file with those 64 digits replaced by zeros, so a cut, a
flipped bit or a swapped header is found by reading the file alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import BinaryIO

import msgspec

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
_CHECKSUM = "emotui_sha256"
_START = b'{"__metadata__":{"' + _CHECKSUM.encode() + b'":"'
_DIGITS = 64
_BLANK = b"0" * _DIGITS
_AT = _LENGTH_BYTES + len(_START)


class _Tensor(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class Damaged(Exception):
    """The bytes are not a whole sealed file."""


def _header_length(start: bytes) -> int:
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if len(start) < _LENGTH_BYTES or not 2 <= length <= _MAX_HEADER_BYTES:
        raise Damaged("no safetensors header")
    return length


def _parse_header(header: bytes) -> tuple[dict[str, str], dict[str, msgspec.Raw]]:
    try:
        parts = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        metadata = parts.pop("__metadata__", None)
        if metadata is None:
            return {}, parts
        return msgspec.json.decode(metadata, type=dict[str, str]), parts
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged("the header is not readable") from error


def _digest(sealed: bytes) -> bytes:
    view = memoryview(sealed)
    digest = hashlib.sha256(view[:_AT])
    digest.update(_BLANK)
    digest.update(view[_AT + _DIGITS :])
    return digest.hexdigest().encode()


def seal(payload: bytes, metadata: Mapping[str, str]) -> bytes:
    """Return safetensors `payload` with `metadata` added to its own and a checksum.

    Raises ValueError where `payload` is not a safetensors file or misses bytes.
    """
    try:
        length = _header_length(payload)
        own, tensors = _parse_header(payload[_LENGTH_BYTES : _LENGTH_BYTES + length])
        _check_extent(tensors, len(payload) - _LENGTH_BYTES - length)
    except Damaged as error:
        raise ValueError(f"not a safetensors payload: {error}") from error
    merged = {_CHECKSUM: _BLANK.decode(), **{k: v for k, v in own.items() if k != _CHECKSUM}}
    merged.update(metadata)
    header = msgspec.json.encode({"__metadata__": merged, **tensors})
    header += b" " * (-len(header) % 8)
    sealed = bytearray(len(header).to_bytes(_LENGTH_BYTES, "little"))
    sealed += header
    sealed += memoryview(payload)[_LENGTH_BYTES + length :]
    whole = bytes(sealed)
    sealed[_AT : _AT + _DIGITS] = _digest(whole)
    return bytes(sealed)


def _check_extent(tensors: Mapping[str, msgspec.Raw], available: int) -> None:
    try:
        ends = [msgspec.json.decode(raw, type=_Tensor).data_offsets[1] for raw in tensors.values()]
    except msgspec.DecodeError as error:
        raise Damaged("the header is not readable") from error
    if max(ends, default=0) != available:
        raise Damaged("the arrays are cut short")


def unseal(sealed: bytes) -> dict[str, str]:
    """Check a sealed file and return its metadata.

    Raises Damaged where a byte differs from what was sealed.
    """
    length = _header_length(sealed)
    if not sealed.startswith(_START, _LENGTH_BYTES) or len(sealed) < _LENGTH_BYTES + length:
        raise Damaged("not a sealed file")
    if sealed[_AT : _AT + _DIGITS] != _digest(sealed):
        raise Damaged("the checksum differs")
    return _parse_header(sealed[_LENGTH_BYTES : _LENGTH_BYTES + length])[0]


def peek(file: BinaryIO) -> dict[str, str]:
    """Return the metadata of a sealed file without reading its arrays or checking it.

    Raises Damaged where there is no sealed header.
    """
    start = file.read(_AT)
    length = _header_length(start)
    if not start.endswith(_START):
        raise Damaged("not a sealed file")
    return _parse_header(start[_LENGTH_BYTES:] + file.read(length + _LENGTH_BYTES - _AT))[0]
