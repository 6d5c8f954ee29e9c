"""The engine's loop: a thread reads requests, the main thread does them one at a time.

Nothing here imports torch: the handlers do, after the hello was sent.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import BinaryIO

from emotui.core.engine.isolate import leave
from emotui.core.engine.memory import free_memory, is_out_of_memory
from emotui.core.errors import Cancelled, EmotuiError, EngineError, OutOfMemory
from emotui.core.pace import Pace
from emotui.core.private import describe, private_words, traceback_without_private
from emotui.core.protocol import (
    PER_CENT,
    PROTOCOL,
    PROTOCOL_VERSION,
    CancelRequest,
    Done,
    Event,
    Failure,
    Hello,
    Operation,
    Outcome,
    Progress,
    Request,
    Result,
    ShutdownRequest,
    read_incoming,
    write_frame,
)
from emotui.core.records import Written

PROGRESS_SECONDS = 0.1
"""Least time between two progress events of one request."""

_log = logging.getLogger("emotui.engine")


class Job:
    """One request as its operation sees it: tell how far it is, hear that it is cancelled.

    Safe from any thread.
    """

    def __init__(self, request: Request, send: Callable[[Event], None]) -> None:
        self.id = request.id
        self.operation = request.op
        self._send = send
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._started = False
        self._finished = False
        self._waiting: Progress | None = None
        self._sent_at = float("-inf")
        self._timer: threading.Timer | None = None
        self._pace = Pace()

    def progress(self, phase: str, done: int = 0, total: int = 0) -> None:
        """Report a phase and a count; `total` 0 means not known.

        At most one event in 0.1 s is sent; of those in between, the latest follows later.
        """
        with self._lock:
            left = self._left(phase, done, total)
            self._waiting = Progress(self.id, phase, done, total, seconds_left=left)
            self._send_or_wait()

    def writing(self, phase: str, done: int, total: int, text: str) -> None:
        """Report as `progress` does, with the text as it stands; the latest counts."""
        with self._lock:
            left = self._left(phase, done, total)
            self._waiting = Progress(self.id, phase, done, total, text, seconds_left=left)
            self._send_or_wait()

    def wrote(self, written: Written, done: int, total: int) -> None:
        """Hand on a text that is finished, at once; what waits to be sent is dropped."""
        with self._lock:
            self._waiting = None
            if not self._finished:
                self._send(Progress(self.id, "written", done, total, written=written))

    def notice(self, line: str) -> None:
        """Tell the user a fact that stays in sight, at once."""
        with self._lock:
            if not self._finished:
                self._send(Progress(self.id, line, notice=True))

    def check(self) -> None:
        """Raise Cancelled where the user cancelled this request; call it between small steps."""
        if self._cancelled.is_set():
            raise Cancelled("The work was cancelled.")

    @property
    def cancelled(self) -> bool:
        """Whether the user cancelled this request."""
        return self._cancelled.is_set()

    def cancel(self) -> bool:
        """Mark as cancelled; return whether it had not begun, so that nobody else answers it."""
        with self._lock:
            waiting = not self._started and not self._finished
            self._finished = self._finished or waiting
            self._cancelled.set()
            return waiting

    def start(self) -> bool:
        """Begin the work; False where it was cancelled before."""
        with self._lock:
            self._started = not self._finished
            return self._started

    def finish(self) -> None:
        """Send no more progress."""
        with self._lock:
            self._finished = True
            if self._timer is not None:
                self._timer.cancel()

    def _left(self, phase: str, done: int, total: int) -> float | None:
        return None if total == PER_CENT else self._pace.seconds_left(phase, done, total)

    def _send_or_wait(self) -> None:
        if self._waiting is None or self._finished:
            return
        wait = self._sent_at + PROGRESS_SECONDS - time.monotonic()
        if wait <= 0:
            self._send(self._waiting)
            self._waiting = None
            self._sent_at = time.monotonic()
        elif self._timer is None:
            self._timer = threading.Timer(wait, self._on_timer)
            self._timer.daemon = True
            self._timer.start()

    def _on_timer(self) -> None:
        with self._lock:
            self._timer = None
            self._send_or_wait()


Handler = Callable[[Operation, Job], Outcome]
"""Does one operation. May raise any EmotuiError; anything else is reported as a fault."""


class _Server:
    def __init__(self, source: BinaryIO, sink: BinaryIO, prepare: Callable[[], Handler]) -> None:
        self._source = source
        self._sink = sink
        self._sink_lock = threading.Lock()
        self._prepare = prepare
        self._handler: Handler | None = None
        self._jobs: dict[int, Job] = {}
        self._queue: queue.SimpleQueue[Job] = queue.SimpleQueue()

    def send(self, event: Event) -> None:
        try:
            with self._sink_lock:
                write_frame(self._sink, event)
        except OSError:
            leave(0)  # nobody listens any more

    def read(self) -> None:
        """Take requests and cancels until the input ends, which ends the process."""
        try:
            while (incoming := read_incoming(self._source)) is not None:
                if isinstance(incoming, CancelRequest):
                    job = self._jobs.get(incoming.id)
                    if job is not None and job.cancel():
                        self._jobs.pop(job.id, None)
                        self.send(_failure(job.id, Cancelled("The work was cancelled.")))
                else:
                    job = Job(incoming, self.send)
                    self._jobs[job.id] = job
                    self._queue.put(job)
        except EngineError as problem:
            _log.error("%s", problem)
            leave(3)
        except OSError:
            pass
        leave(0)

    def work(self) -> None:
        """Do the requests in order, until one asks for the end."""
        self._warm_up()
        while True:
            job = self._queue.get()
            if not job.start():
                continue
            if isinstance(job.operation, ShutdownRequest):
                self.send(Result(job.id, Done()))
                leave(0)
            event = self._do(job)
            job.finish()
            self._jobs.pop(job.id, None)
            try:
                self.send(event)
            except EngineError as problem:  # an outcome larger than a frame
                self.send(_failure(job.id, problem))

    def _warm_up(self) -> None:
        try:
            self._handler = self._prepare()
        except Exception as problem:  # said again, to the user, by the first request
            _log.error("warm-up failed\n%s", traceback_without_private(problem, frozenset()))

    def _do(self, job: Job) -> Event:
        try:
            if self._handler is None:
                self._handler = self._prepare()
            return Result(job.id, self._handler(job.operation, job))
        except OutOfMemory as problem:
            event = _failure(job.id, problem)
        except EmotuiError as problem:
            return _failure(job.id, problem)
        except BaseException as problem:
            event = _failure(job.id, _as_engine_error(problem, job.operation))
        # Only here are the frames that hold the tensors gone.
        free_memory()
        return event


def _as_engine_error(problem: BaseException, operation: Operation) -> EngineError:
    private = private_words(operation)
    _log.error("a request failed\n%s", traceback_without_private(problem, private))
    if is_out_of_memory(problem):
        return OutOfMemory(
            "There was not enough memory for this.",
            why=describe(problem, private),
            todo="Use --dtype bfloat16, a shorter text, a smaller model or another --device.",
        )
    return EngineError(
        "The engine met an error it did not expect.",
        why=describe(problem, private),
        todo="The engine goes on; its log tells where this happened.",
    )


def _failure(request: int, problem: EmotuiError) -> Failure:
    # A lone surrogate in a file name or a text cannot travel as UTF-8.
    fields = {
        name: value.encode("utf-8", "backslashreplace").decode("utf-8")
        for name, value in problem.to_wire().items()
    }
    return Failure(request, fields)


def serve(source: BinaryIO, sink: BinaryIO, *, prepare: Callable[[], Handler]) -> None:
    """Say hello, then answer requests until the input ends or a shutdown is asked for.

    `prepare` imports what is heavy and returns the handler; it runs after the hello, at once, on
    the calling thread, and again with a request if it failed. Requests are done one at a time in
    their order; a cancel of one that waits is answered at once. Never returns: it ends the
    process, because threads inside torch abort an ordinary exit.
    """
    server = _Server(source, sink, prepare)
    server.send(Hello(PROTOCOL, PROTOCOL_VERSION, os.getpid()))
    threading.Thread(target=server.read, name="requests", daemon=True).start()
    server.work()
