"""A real engine process whose operations are fake: what it does stands in the request's text.

Run as a program it is the engine; imported it helps tests to start one and to watch processes.
"""

from __future__ import annotations

import ctypes
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emotui.core.client import EngineClient
from emotui.core.engine.__main__ import main
from emotui.core.engine.serve import Handler, Job
from emotui.core.errors import ModelError
from emotui.core.protocol import Event, Inspected, InspectRequest, ModelSpec, Operation, Outcome

SPEC = ModelSpec(model="none")
SHOUT = "leaked to the terminal"


def ask(text: str, cache_dir: Path | str = "none") -> InspectRequest:
    return InspectRequest(spec=SPEC, text=text, cache_dir=str(cache_dir))


def fake_client(cache_dir: Path, mode: str = "", **options: Any) -> EngineClient:
    command = (sys.executable, __file__, *([mode] if mode else []))
    return EngineClient(cache_dir, command=command, **options)


def runs(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return condition()


def _shout() -> None:
    print(SHOUT, "print")  # noqa: T201
    sys.stdout.flush()
    print(SHOUT, "stderr", file=sys.stderr)  # noqa: T201
    os.write(1, f"{SHOUT} descriptor 1\n".encode())
    os.write(2, f"{SHOUT} descriptor 2\n".encode())
    ctypes.CDLL(None).puts(f"{SHOUT} puts".encode())
    ctypes.CDLL(None).fflush(None)
    warnings.warn(f"{SHOUT} warning", stacklevel=1)
    logging.getLogger("a.library").error("%s logging", SHOUT)
    handler = logging.StreamHandler()
    handler.emit(logging.makeLogRecord({"msg": f"{SHOUT} handler"}))
    subprocess.run(["echo", f"{SHOUT} child"], check=True)
    import tqdm  # type: ignore[import-untyped]

    for _ in tqdm.tqdm(range(3), desc=f"{SHOUT} tqdm", disable=False):
        pass


def _do(text: str, job: Job) -> Outcome:
    word, _, rest = text.partition(" ")
    match word:
        case "sleep":
            end = time.monotonic() + float(rest)
            while time.monotonic() < end:
                job.check()
                time.sleep(0.005)
        case "hang":
            time.sleep(60)
        case "hold":  # a C call that keeps the interpreter to itself
            ctypes.PyDLL(None).sleep(60)
        case "count":
            for done in range(int(rest)):
                job.progress("counting", done + 1, int(rest))
                job.check()
                time.sleep(0.002)
        case "phases":
            job.progress("short")
            job.progress("long")
            time.sleep(float(rest))
        case "shout":
            _shout()
        case "fault":
            raise ValueError(f"could not read {rest!r} as a picture")
        case "refuse":
            raise ModelError("There is no such model.", why="It is a test.", todo="Go on.")
        case "memory":
            bytearray(1 << 62)
        case "tensor":
            import torch

            torch.empty(1 << 60)
        case "device":
            import torch

            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        case "exit":
            sys.exit(7)
        case "crash":
            time.sleep(float(rest))
            ctypes.string_at(0)
        case "kill":
            time.sleep(float(rest))
            os.kill(os.getpid(), 9)
        case "environment":
            return Inspected(os.environ.get(rest, "absent"), False, 0, 0.0)
        case "nice":
            return Inspected(str(os.nice(0)), False, 0, 0.0)
        case "torch":
            return Inspected(str("torch" in sys.modules), False, 0, 0.0)
        case "large":
            return Inspected("x" * int(rest), False, 0, 0.0)
    return Inspected(text, False, 1, 0.0)


def _handle(operation: Operation, job: Job) -> Outcome:
    assert isinstance(operation, InspectRequest)
    return _do(operation.text, job)


def _prepare() -> Handler:
    return _handle


def _prepare_slowly() -> Handler:
    time.sleep(1.0)
    return _handle


def _prepare_at_the_second_try() -> Handler:
    if not os.environ.get("TRIED"):
        os.environ["TRIED"] = "1"
        raise ImportError("a library is broken")
    return _handle


def _as_a_parent(cache_dir: Path, text: str) -> None:
    """Start an engine, ask it, say its process id, and wait to be killed."""
    client = fake_client(cache_dir)
    hello = client.wait_until_ready(30)
    client.submit(ask("ready")).result(30)
    client.submit(ask(text))
    sys.stdout.write(f"{hello.pid}\n")
    sys.stdout.flush()
    time.sleep(60)


def _events_of(cache_dir: Path, texts: list[str]) -> None:
    """Ask for texts and end: what else reaches this terminal came from the engine."""
    events: list[Event] = []
    with fake_client(cache_dir, on_event=events.append) as client:
        for text in texts:
            client.submit(ask(text)).result(30)


if __name__ == "__main__":
    match sys.argv[1]:
        case "parent":
            _as_a_parent(Path(sys.argv[2]), sys.argv[3])
        case "ask":
            _events_of(Path(sys.argv[2]), sys.argv[3:])
        case "slow":
            main(sys.argv[2:], prepare=_prepare_slowly)
        case "second":
            main(sys.argv[2:], prepare=_prepare_at_the_second_try)
        case "mute":
            time.sleep(60)
        case "talkative":
            sys.stdout.write("Welcome to this environment!\n" * 40)
        case "foreign":
            from emotui.core.protocol import Hello, write_frame

            write_frame(sys.stdout.buffer, Hello("emotui-engine", 999, os.getpid()))
            time.sleep(60)
        case "dead":
            sys.exit("No module named 'everything'")
        case _:
            main(sys.argv[1:], prepare=_prepare)
