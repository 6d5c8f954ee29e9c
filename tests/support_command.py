"""The command line and its engine in this process: a command without starting two programs.

The client, what travels to the engine and back, and how the engine does a request are the real
ones; only pipes and processes are left out. Each kind of command has a test elsewhere that starts
the program itself.
"""

from __future__ import annotations

import importlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from emotui import cli
from emotui.commands.common import ProgressLine, progress_line
from emotui.core.client import EngineClient
from emotui.core.engine.serve import Job, _Server
from emotui.core.pending import Pending
from emotui.core.protocol import (
    Event,
    Operation,
    Request,
    read_event,
    read_incoming,
    write_frame,
)


class _Engine(_Server):
    """The engine of one client, on a thread."""

    def __init__(self, client: EngineClient) -> None:
        program = importlib.import_module(f"{client._command[-1]}.__main__")
        super().__init__(io.BytesIO(), io.BytesIO(), program._prepare)
        self._client = client
        self._thread = ThreadPoolExecutor(1)

    def send(self, event: Event) -> None:
        frame = io.BytesIO()
        write_frame(frame, event)
        frame.seek(0)
        arrived = read_event(frame)
        assert arrived is not None
        self._client._take(arrived)

    def ask(self, request: Request) -> None:
        frame = io.BytesIO()
        write_frame(frame, request)
        frame.seek(0)
        arrived = read_incoming(frame)
        assert isinstance(arrived, Request)
        self._thread.submit(self._answer, Job(arrived, self.send))

    def _answer(self, job: Job) -> None:
        job.start()
        event = self._do(job)
        job.finish()
        self.send(event)

    def end(self) -> None:
        self._thread.shutdown()


@contextmanager
def _engines_here() -> Iterator[None]:
    engines: dict[EngineClient, _Engine] = {}

    def submit(client: EngineClient, operation: Operation) -> Pending:
        engine = engines.get(client) or engines.setdefault(client, _Engine(client))
        pending = Pending(Request(next(client._ids), operation), client.cancel)
        client._pending[pending.id] = pending
        engine.ask(Request(pending.id, operation))
        return pending

    def close(client: EngineClient) -> None:
        if client in engines:
            engines.pop(client).end()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EngineClient, "submit", submit)
        patch.setattr(EngineClient, "close", close)
        yield


def emotui_here(
    *arguments: str, cache_dir: Path, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run `emotui ARGUMENTS` in this process, as `support_studies.emotui` does in another."""
    done = emotui_bytes_here(*arguments, cache_dir=cache_dir, stdin=stdin)
    out, err = (os.fsdecode(printed) for printed in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


def emotui_bytes_here(
    *arguments: str, cache_dir: Path, stdin: str = ""
) -> subprocess.CompletedProcess[bytes]:
    """Run as `emotui_here` does; what was printed is not decoded."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    vars(progress_line).update(vars(ProgressLine()))  # a program begins with a line of its own
    groups, commands = list(cli.app.registered_groups), list(cli.app.registered_commands)
    try:
        with pytest.MonkeyPatch.context() as patch, _engines_here():
            patch.setenv("EMOTUI_CACHE_DIR", str(cache_dir))
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
            with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
                cli.main(arguments)
    finally:
        # A program adds its groups of commands once.
        cli.app.registered_groups[:], cli.app.registered_commands[:] = groups, commands
    for stream in (out, err):
        stream.flush()
    printed = (stream.buffer.getvalue() for stream in (out, err))
    return subprocess.CompletedProcess(["emotui", *arguments], int(ended.value.code or 0), *printed)
