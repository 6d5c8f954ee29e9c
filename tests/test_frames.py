"""The frames between the two processes."""

from __future__ import annotations

import io
from typing import Any, BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support_process import ask

from emotui.core.errors import Cancelled, EngineError
from emotui.core.protocol import (
    MAX_FRAME_BYTES,
    CancelRequest,
    Done,
    Failure,
    Request,
    Result,
    read_event,
    read_incoming,
    write_frame,
)


class Trickle(io.RawIOBase):
    """A pipe that takes and gives one byte at a time."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = bytearray(content)

    def write(self, data: Any) -> int:
        self.content += memoryview(data)[:1]
        return 1

    def read(self, size: int = -1) -> bytes:
        byte = bytes(self.content[:1])
        del self.content[:1]
        return byte


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 2**31))
def test_a_message_survives_a_pipe_of_single_bytes(text: str, number: int) -> None:
    pipe = cast(BinaryIO, Trickle())
    messages: list[Request | CancelRequest] = [Request(number, ask(text)), CancelRequest(number)]
    for message in messages:
        write_frame(pipe, message)
    assert [read_incoming(pipe), read_incoming(pipe)] == messages
    assert read_incoming(pipe) is None


def test_a_frame_is_a_big_endian_length_and_messagepack() -> None:
    stream = io.BytesIO()
    write_frame(stream, Result(3, Done()))
    head, body = stream.getvalue()[:4], stream.getvalue()[4:]
    assert int.from_bytes(head, "big") == len(body)
    assert b"result" in body and b"done" in body


@pytest.mark.parametrize("cut", [1, 3, 4, 5, -1])
def test_a_message_cut_short_is_an_error(cut: int) -> None:
    stream = io.BytesIO()
    write_frame(stream, Result(3, Done()))
    with pytest.raises(EngineError, match="ended before"):
        read_event(io.BytesIO(stream.getvalue()[:cut]))


def test_a_length_over_the_limit_is_refused_unread() -> None:
    stream = io.BytesIO((MAX_FRAME_BYTES + 1).to_bytes(4, "big") + b"x" * 10)
    with pytest.raises(EngineError, match="claimed"):
        read_event(stream)
    assert stream.tell() == 4


@pytest.mark.parametrize("body", [b"\xc1", b"\x81\xa4type\xa7unknown", b"\x93\x01\x02\x03", b""])
def test_a_body_of_another_protocol_is_an_error(body: bytes) -> None:
    with pytest.raises(EngineError, match="cannot be read"):
        read_event(io.BytesIO(len(body).to_bytes(4, "big") + body))


def test_a_message_over_the_limit_is_not_written() -> None:
    stream = io.BytesIO()
    with pytest.raises(EngineError, match="too large"):
        write_frame(stream, Request(1, ask("x" * MAX_FRAME_BYTES)))
    assert stream.getvalue() == b""


def test_failure_is_an_event_of_the_protocol() -> None:
    stream = io.BytesIO()
    write_frame(stream, Failure(4, Cancelled("It was cancelled.").to_wire()))
    assert read_event(io.BytesIO(stream.getvalue())) == Failure(
        4, {"kind": "Cancelled", "what": "It was cancelled.", "why": "", "todo": ""}
    )
