"""Frames: a 4-byte big-endian length and a MessagePack body of at most 16 MB."""

from __future__ import annotations

import functools
from typing import BinaryIO

import msgspec

from emotui.core.errors import EngineError, UsageError
from emotui.core.protocol.outcomes import Outcome
from emotui.core.protocol.requests import Operation
from emotui.core.records import Written

PROTOCOL = "emotui-engine"
PROTOCOL_VERSION = 1
MAX_FRAME_BYTES = 16 * 1024 * 1024
_LENGTH_BYTES = 4


class Request(msgspec.Struct, frozen=True, tag="request"):
    """One thing asked of the engine."""

    id: int
    op: Operation


class CancelRequest(msgspec.Struct, frozen=True, tag="cancel"):
    """Stop request `id`, whether it runs or waits."""

    id: int


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The engine's first frame."""

    protocol: str
    version: int
    pid: int


PER_CENT = 100


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """How far request `id` is; at most ten a second."""

    id: int
    phase: str
    done: int = 0
    total: int = 0
    """0 where the total is not known; `PER_CENT` where it is bytes, which the phase tells."""
    text: str = ""
    """What was written of the text that is being written, uncleaned; "" where none is."""
    written: Written | None = None
    """A text that was just finished; such an event is always sent, at once."""
    notice: bool = False
    """Whether `phase` is a fact to be kept in sight, such as an estimate, not a step."""
    seconds_left: float | None = None
    """What this phase will still take at its pace so far; None where that is not known yet, and of
    bytes, whose phase tells it."""


class Result(msgspec.Struct, frozen=True, tag="result"):
    """Request `id` is done."""

    id: int
    value: Outcome


class Failure(msgspec.Struct, frozen=True, tag="error"):
    """Request `id` failed; `error` is `EmotuiError.to_wire`."""

    id: int
    error: dict[str, str]


Event = Hello | Progress | Result | Failure
Incoming = Request | CancelRequest

_ENCODER = msgspec.msgpack.Encoder()


# Made when first needed: each takes some milliseconds, which the first paint does not wait for.
@functools.cache
def _events() -> msgspec.msgpack.Decoder[Event]:
    return msgspec.msgpack.Decoder(Event)


@functools.cache
def _incoming() -> msgspec.msgpack.Decoder[Incoming]:
    return msgspec.msgpack.Decoder(Incoming)


def as_frame(message: Event | Incoming) -> bytes:
    """Return the bytes of one message. Raises as `write_frame`, but for OSError."""
    try:
        body = _ENCODER.encode(message)
    except (TypeError, OverflowError) as problem:
        raise UsageError(
            "The request held a value that cannot be sent.",
            why=f"{problem}.",
            todo="Give text and plain Python numbers.",
        ) from None
    if len(body) > MAX_FRAME_BYTES:
        raise EngineError(
            f"A message of {len(body):,} bytes is too large for the engine.",
            why=f"Messages may hold {MAX_FRAME_BYTES:,} bytes.",
            todo="Use a shorter text.",
        )
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def check_incoming(frame: bytes) -> None:
    """Raise UsageError where the engine would refuse a message: a value of a wrong type in it."""
    try:
        _incoming().decode(memoryview(frame)[_LENGTH_BYTES:])
    except msgspec.ValidationError as problem:
        expected, _, place = str(problem).partition(" - at ")
        name = place.strip("`").removeprefix("$").removeprefix(".op").removeprefix(".")
        raise UsageError(
            f"The request's {name or 'operation'} was of the wrong type.",
            why=f"{expected}.",
            todo="Nothing was sent to the engine.",
        ) from None


def write_frame(stream: BinaryIO, message: Event | Incoming) -> None:
    """Write one message, whole, to a blocking stream, buffered or raw, and flush it.

    Raises EngineError for a message over `MAX_FRAME_BYTES`, UnicodeEncodeError for one with a
    lone surrogate (in both cases nothing was written), OSError where the stream is broken.
    """
    left = memoryview(as_frame(message))
    while left:
        left = left[stream.write(left) or 0 :]
    stream.flush()


def _read_exactly(stream: BinaryIO, count: int) -> bytes:
    parts = []
    while count:
        part = stream.read(count)
        if not part:
            break
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _read_body(stream: BinaryIO) -> bytes | None:
    head = _read_exactly(stream, _LENGTH_BYTES)
    if not head:
        return None
    length = int.from_bytes(head, "big")
    if len(head) == _LENGTH_BYTES and length > MAX_FRAME_BYTES:
        raise EngineError(
            f"A message claimed {length:,} bytes.",
            why=f"Messages may hold {MAX_FRAME_BYTES:,} bytes: this is not the engine's protocol.",
        )
    body = _read_exactly(stream, length) if len(head) == _LENGTH_BYTES else b""
    if len(head) < _LENGTH_BYTES or len(body) < length:
        raise EngineError("A message ended before its announced length.")
    return body


def read_event(stream: BinaryIO) -> Event | None:
    """Read what the engine says next; None at the end of the stream, between two messages.

    Raises EngineError for a message that is cut short, too large or not of this protocol.
    """
    body = _read_body(stream)
    try:
        return None if body is None else _events().decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise EngineError("The engine sent a message that cannot be read.") from problem


def read_incoming(stream: BinaryIO) -> Incoming | None:
    """Read what the terminal process asks next; otherwise as `read_event`."""
    body = _read_body(stream)
    try:
        return None if body is None else _incoming().decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise EngineError("The engine was sent a message that cannot be read.") from problem
