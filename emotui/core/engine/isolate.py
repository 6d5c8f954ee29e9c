"""The engine's first act: its own pipes, its own log, and an end when its parent ends.

Imports nothing but the standard library, so that no library can write before the log stands.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO, NoReturn

NICENESS = 10
"""Measured: keys of the terminal at 34 to 40 ms instead of 75 to 90 at the 95th percentile."""
_PARENT_WATCH_SECONDS = 0.5
_PR_SET_PDEATHSIG = 1


def detach(log: Path) -> tuple[BinaryIO, BinaryIO]:
    """Keep file descriptors 0 and 1 as the engine's pipes and give the process other ones.

    Afterwards 0 reads nothing and 1 and 2 append to `log` (made with mode 0600), whoever writes:
    Python, C code, a child process, a logging handler. Returns the pipes to read and to write.
    Raises OSError where the log cannot be opened; then nothing was changed.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    log_descriptor = os.open(log, flags, 0o600)
    null_descriptor = os.open(os.devnull, os.O_RDONLY)
    source = os.fdopen(os.dup(0), "rb")
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(null_descriptor, 0)
    os.dup2(log_descriptor, 1)
    os.dup2(log_descriptor, 2)
    os.close(null_descriptor)
    os.close(log_descriptor)
    _rewire_python()
    return source, sink


def _rewire_python() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError):
                stream.reconfigure(errors="backslashreplace", line_buffering=True)
    logging.raiseExceptions = False  # a full disk must not turn a log line into an error
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    logging.captureWarnings(True)
    faulthandler.enable(all_threads=True)


def yield_to_the_terminal() -> None:
    """Run at nice 10, so that keys stay quick while a forward runs."""
    with contextlib.suppress(OSError, AttributeError):
        os.nice(NICENESS)


def end_with_parent() -> None:
    """End this process soon after the thread that started it, or its process, has ended.

    On Linux the kernel does it, even while a C call holds the interpreter; elsewhere a thread
    looks at the parent twice a second. The end of the engine's input covers the rest.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    threading.Thread(target=_watch, args=(parent,), name="parent-watch", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_WATCH_SECONDS)
    leave(0)


def leave(status: int) -> NoReturn:
    """End the process now: threads inside torch abort an ordinary exit.

    Safe at any moment, because every write to the cache is atomic.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)
