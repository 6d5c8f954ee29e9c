"""Starting, asking, cancelling and restarting an engine; torch-free.

An `EngineClient` owns one child process, `python -m emotui.core.engine`, and two threads: one that
starts it and writes to it, one that reads what it says. No method waits for the engine, except
`Pending.result`, `wait_until_ready` and `close`.
"""

from __future__ import annotations

import itertools
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from emotui.core.child import Child, start_child
from emotui.core.errors import Cancelled, EmotuiError, EngineError, TextError, error_from_wire
from emotui.core.pending import Pending, call_back
from emotui.core.private import private_words
from emotui.core.protocol import (
    PROTOCOL,
    PROTOCOL_VERSION,
    CancelRequest,
    Event,
    Failure,
    Hello,
    Incoming,
    Operation,
    Outcome,
    Progress,
    Request,
    Result,
    ShutdownRequest,
    as_frame,
    check_incoming,
    read_event,
    write_frame,
)

GRACE_SECONDS = 0.9
"""How long a cancelled request may go on before its engine is killed."""
HELLO_SECONDS = 60.0
"""How long a new engine may take to say hello: it imports nothing heavy before."""
CLOSE_SECONDS = 0.9
"""How long `close` takes at most."""
_ATTEMPTS = 2
"""How many engines are asked: one that died unnoticed, and a new one."""
_BURIAL_SECONDS = 5.0
"""How long the writer waits for the reader to see an end that it saw."""


class EngineClient:
    """An engine that is there when it is needed. Thread-safe; also a context manager.

    `cache_dir` is where the engine's log goes (`logs/`, made where it is absent). `on_event` is
    called with every event, on a thread of the client or, for a cancel that is answered at once,
    on the caller's; a request that fails because its engine ended is a `Failure` like any other.
    `offline` keeps Hugging Face libraries off the network. `grace` and `hello_timeout` are in
    seconds. `command` replaces the program that is started.
    """

    def __init__(
        self,
        cache_dir: Path,
        *,
        on_event: Callable[[Event], None] | None = None,
        python: str = sys.executable,
        offline: bool = False,
        grace: float = GRACE_SECONDS,
        hello_timeout: float = HELLO_SECONDS,
        command: Sequence[str] | None = None,
    ) -> None:
        self._cache_dir = cache_dir
        self._on_event = on_event
        self._offline = offline
        self._grace = grace
        self._hello_timeout = hello_timeout
        # -P: a file of the user's folder named like a module must not be imported.
        self._command = tuple(command or (python, "-P", "-m", "emotui.core.engine"))
        self._lock = threading.RLock()
        self._ids = itertools.count(1)
        self._turns = itertools.count()
        self._pending: dict[int, Pending] = {}
        self._child: Child | None = None
        self._outbox: queue.SimpleQueue[Pending | int | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._closed = False
        self._ready = threading.Condition(self._lock)
        self._start_error: EmotuiError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the engine in service; None where there is none."""
        with self._lock:
            return self._child.process.pid if self._child is not None else None

    @property
    def log(self) -> Path | None:
        """The log of the engine in service; None where there is none."""
        with self._lock:
            return self._child.log if self._child is not None else None

    def start(self) -> None:
        """Begin to start an engine, which then imports torch; does nothing where one runs.

        `submit` does it too. Raises EngineError where the client is closed.
        """
        with self._lock:
            self._open_outbox()
            self._start_error = None
            self._outbox.put(0)

    def wait_until_ready(self, timeout: float | None = None) -> Hello:
        """Start an engine and wait for its hello.

        Raises the error that kept it from starting, TimeoutError after `timeout` seconds.
        """
        self.start()
        with self._ready:
            if not self._ready.wait_for(self._settled, timeout):
                raise TimeoutError(f"no engine within {timeout} s")
            if self._child is None or self._child.hello is None:
                raise self._start_error or EngineError("The engine was closed.")
            return self._child.hello

    def _settled(self) -> bool:
        said_hello = self._child is not None and self._child.hello is not None
        return said_hello or self._start_error is not None or self._closed

    def submit(self, operation: Operation) -> Pending:
        """Ask for one operation; requests are done one at a time, in order.

        Returns at once. Raises TextError for an operation that is not Unicode, UsageError for one
        with a value of a wrong type, EngineError for one over 16 MB or where the client is closed;
        all else is the error of the Pending.
        """
        request = Request(next(self._ids), operation)
        _refuse_unsendable(request)
        with self._lock:
            self._open_outbox()
            pending = Pending(request, self.cancel)
            self._pending[pending.id] = pending
            self._outbox.put(pending)
            return pending

    def cancel(self, request: int) -> None:
        """Stop a request; does nothing where it is done.

        One that waits is answered at once. If one that runs is not answered within the grace
        period, the engine is killed, and what waited behind it goes to a new one.
        """
        with self._lock:
            pending = self._pending.get(request)
            if pending is None:
                return
            sent = pending.child is not None
            if not sent:
                del self._pending[request]  # so that the writer leaves it out
            elif not pending.cancelling:
                pending.cancelling = True
                self._outbox.put(request)
                timer = threading.Timer(self._grace, self._end_of_grace, (pending,))
                timer.daemon = True
                timer.start()
        if not sent:
            self._finish(pending, None, _cancelled())

    def close(self) -> None:
        """End the engine within a second; what is not done is cancelled. May be called twice."""
        with self._lock:
            already, self._closed = self._closed, True
            writer, child = self._writer, self._child
            waiting = tuple(self._pending.values())
            self._ready.notify_all()
            self._outbox.put(None)
        if already:
            return
        for pending in waiting:
            self._finish(pending, None, _cancelled())
        # The writer must live until its engine has ended: on Linux it is the engine's parent.
        if writer is not None and writer is not threading.current_thread():
            writer.join(CLOSE_SECONDS)
            if writer.is_alive() and child is not None:
                child.kill()
                writer.join(CLOSE_SECONDS)

    # The writer's thread.

    def _open_outbox(self) -> None:
        if self._closed:
            raise EngineError("The engine was closed.", todo="Start emotui again.")
        if self._writer is None:
            self._writer = threading.Thread(target=self._write, name="engine-writer", daemon=True)
            self._writer.start()

    def _write(self) -> None:
        while (item := self._outbox.get()) is not None:
            if isinstance(item, Pending):
                self._send_request(item)
            elif item:
                self._send_cancel(item)
            else:
                self._send_nothing()
        with self._lock:
            child = self._child
        if child is not None:
            child.end()

    def _send_nothing(self) -> None:
        try:
            self._running_child()
        except EmotuiError as problem:
            self._could_not_start(problem)

    def _send_request(self, pending: Pending) -> None:
        try:
            for _ in range(_ATTEMPTS):
                child = self._running_child()
                with self._lock:
                    if pending.id not in self._pending:
                        return
                wrote = _wrote(child, Request(pending.id, pending.operation))
                if not wrote:
                    child.buried.wait(_BURIAL_SECONDS)
                with self._lock:
                    wanted = pending.id in self._pending
                    if wrote and wanted and not child.ended:
                        pending.child, pending.turn = child, next(self._turns)
                        child.ends_as_asked |= isinstance(pending.operation, ShutdownRequest)
                        return
                if not wanted:  # answered, or cancelled while it was written
                    _wrote(child, CancelRequest(pending.id))
                    return
            raise self._start_error or EngineError(
                "The engine ended before it could be asked.",
                todo="Its log is in the cache folder, under logs.",
            )
        except EmotuiError as problem:
            self._could_not_start(problem)
            self._finish(pending, None, problem)
        except Exception as problem:  # or the one who asked, and all later ones, would wait forever
            self._finish(pending, None, _unexpected(problem))

    def _send_cancel(self, request: int) -> None:
        with self._lock:
            pending = self._pending.get(request)
            child = pending.child if pending is not None else None
        if child is not None:
            _wrote(child, CancelRequest(request))

    def _running_child(self) -> Child:
        with self._lock:
            if self._closed:
                raise _cancelled()
            if self._child is not None and not self._child.ended:
                return self._child
        child = start_child(self._command, self._cache_dir / "logs", offline=self._offline)
        with self._lock:
            self._child = child
            self._start_error = None
        threading.Thread(
            target=self._read, args=(child,), name="engine-reader", daemon=True
        ).start()
        return child

    def _could_not_start(self, problem: EmotuiError) -> None:
        with self._ready:
            self._start_error = problem
            self._ready.notify_all()

    # The reader's thread: one for each engine.

    def _read(self, child: Child) -> None:
        problem: EngineError | None = None
        watch = threading.Timer(self._hello_timeout, child.end_for, ("it did not say hello",))
        watch.daemon = True
        watch.start()
        try:
            first = read_event(child.output)
            watch.cancel()
            if first is not None:
                self._greet(child, first)
                while (event := read_event(child.output)) is not None:
                    self._take(event)
        except EngineError as broken:
            problem = broken
        except (OSError, ValueError):
            pass  # the pipe was closed under us: the engine is being ended
        except Exception as fault:
            problem = _unexpected(fault)
        watch.cancel()
        try:
            self._bury(child, problem)
        except Exception as fault:
            self._abandon(child, _unexpected(fault))

    def _greet(self, child: Child, hello: Event) -> None:
        if not isinstance(hello, Hello) or (hello.protocol, hello.version) != (
            PROTOCOL,
            PROTOCOL_VERSION,
        ):
            raise EngineError(
                "The engine speaks another protocol.",
                why=f"This program speaks {PROTOCOL} {PROTOCOL_VERSION}.",
                todo="Install one version of emotui for both, then start it again.",
            )
        with self._ready:
            child.hello = hello
            self._ready.notify_all()
        self._announce(hello)

    def _take(self, event: Event) -> None:
        if isinstance(event, Hello):
            raise EngineError("The engine said hello twice.")
        with self._lock:
            pending = self._pending.get(event.id)
        if pending is None:
            return  # cancelled here before the engine answered
        if isinstance(event, Progress):
            pending.tell(event)
            self._announce(event)
        elif isinstance(event, Result):
            self._finish(pending, event.value, None)
        else:
            self._finish(pending, None, error_from_wire(event.error))

    def _finish(self, pending: Pending, outcome: Outcome | None, error: EmotuiError | None) -> None:
        with self._lock:
            self._pending.pop(pending.id, None)
        if not pending.finish(outcome, error):
            return
        if outcome is not None:
            self._announce(Result(pending.id, outcome))
        elif error is not None:
            self._announce(Failure(pending.id, error.to_wire()))

    def _announce(self, event: Event) -> None:
        if self._on_event is not None:
            call_back(self._on_event, event)

    # The end of an engine.

    def _abandon(self, child: Child, problem: EngineError) -> None:
        """Answer those who wait for an engine that could not be buried, so that nobody waits."""
        child.kill()
        with self._lock:
            child.ended = True
            if self._child is child:
                self._child = None
            lost = [pending for pending in self._pending.values() if pending.child is child]
        self._could_not_start(problem)
        for pending in lost:
            self._finish(pending, None, problem)

    def _bury(self, child: Child, problem: EngineError | None) -> None:
        """Reap an engine whose output ended or broke, and answer those who waited for it."""
        refused = problem is not None and not child.ends_by_itself()
        if refused:
            child.kill()
        status = child.reap()
        with self._lock:
            child.ended = True
            if self._child is child:
                self._child = None
            lost = [pending for pending in self._pending.values() if pending.child is child]
            again = [
                pending
                for pending in lost
                if child.ends_as_asked and not pending.cancelling and not self._closed
            ]
            for pending in again:
                pending.child = None
                self._outbox.put(pending)
        error = child.death(status, [private_words(pending.operation) for pending in lost])
        if problem is not None and (refused or status == 0):
            error = problem
        self._could_not_start(error)
        for pending in lost:
            if pending.cancelling:
                self._finish(pending, None, _cancelled())
            elif pending not in again:
                self._finish(pending, None, error)
        child.buried.set()

    def _end_of_grace(self, pending: Pending) -> None:
        """Answer a cancelled request that its engine did not answer."""
        with self._lock:
            child = pending.child
            if pending.done or child is None:
                return
            mates = (mate for mate in self._pending.values() if mate.child is child)
            runs = pending is min(mates, key=lambda mate: mate.turn, default=pending)
        self._finish(pending, None, _cancelled())
        if runs:
            child.ends_as_asked = True
            child.kill()


def _wrote(child: Child, message: Incoming) -> bool:
    try:
        write_frame(child.input, message)
    except (OSError, ValueError):
        return False
    return True


def _cancelled() -> Cancelled:
    return Cancelled("The work was cancelled.")


def _unexpected(problem: Exception) -> EngineError:
    # Without the message, which may quote a text.
    return EngineError(
        "The connection to the engine failed.",
        why=f"{type(problem).__name__} in this process.",
        todo="Ask again: that starts a new engine.",
    )


def _refuse_unsendable(request: Request) -> None:
    try:
        check_incoming(as_frame(request))
    except UnicodeEncodeError as problem:
        at_fault = "text" if problem.object == getattr(request.op, "text", None) else "request"
        raise TextError(
            f"The {at_fault} is not valid Unicode.",
            why=f"Character {problem.start + 1} stands for a byte that is not UTF-8.",
            todo="Convert it to UTF-8 first.",
        ) from None
