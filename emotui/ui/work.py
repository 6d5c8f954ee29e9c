"""What the screen asks for: look in the cache, ask the engine, fit probes, export.

No Textual and no torch here. Everything that may take longer than a key runs on the shelf's
thread or in the engine; what happened is posted as messages.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from emotui.cache.prepare import prepare, probes_in_force
from emotui.cache.session import Session, save_session
from emotui.cache.store import Store
from emotui.core.errors import (
    CacheError,
    Cancelled,
    EmotuiError,
    EngineError,
    TextError,
    UsageError,
)
from emotui.core.protocol import (
    FitRequest,
    Fitted,
    Inspected,
    InspectRequest,
    LoadRequest,
    Operation,
    Outcome,
    Progress,
)
from emotui.core.records import Trace
from emotui.core.text import clean
from emotui.ui import messages
from emotui.ui.asking import Asked, Engine
from emotui.ui.exports import export_trace
from emotui.ui.recent import RecentReadings
from emotui.ui.shelf import Shelf

Post = Callable[[messages.Fact], object]
Question = Callable[[InspectRequest, Store], Operation | Outcome]


def _unexpected(problem: Exception) -> EngineError:
    # The message of a library may quote the text: only the type is told.
    return EngineError(
        "Something in emotui went wrong.",
        why=f"It was a {type(problem).__name__}.",
        todo="Run the text again; `emotui doctor` shows what to report.",
    )


class Workbench:
    """One request at a time: a new one takes the place of the one before it.

    `base` is what every request has in common; `open_store` and `start_engine` are called when
    first needed, `start_engine` with the folder of the cache. With `load_behind` the model is
    loaded, and what edits need is read, as soon as a cached trace is shown. Methods return at once.
    """

    def __init__(
        self,
        base: InspectRequest,
        post: Post,
        *,
        open_store: Callable[[], Store],
        start_engine: Callable[[Path], Engine],
        fit_missing_probes: bool = True,
        load_behind: bool = False,
    ) -> None:
        self._base = base
        self._settled: InspectRequest | None = None
        """`base` before it was changed, until a request with the change has ended well."""
        self._post = post
        self._open_store = open_store
        self._start_engine = start_engine
        self._fit_missing = fit_missing_probes
        self._load_behind = load_behind
        self._shelf = Shelf()
        self._lock = threading.RLock()
        self._numbers = itertools.count(1)
        self._number = 0
        self._cancelled = 0
        self._asked: Asked | None = None
        self._busy = False
        self._closed = False
        self._foreign: str | None = None
        """The model of the trace on the screen where that is another than the base's."""
        self._store: Store | None = None
        self._engine: Engine | None = None
        self._recent = RecentReadings()

    @property
    def number(self) -> int:
        """The number of the latest request; what belongs to another one is out of date."""
        return self._number

    @property
    def busy(self) -> bool:
        """Whether the latest request is not finished."""
        return self._busy

    @property
    def at_work(self) -> bool:
        """Whether an engine works on it, which closing would cancel."""
        return self._busy and self._asked is not None

    def read(self, text: str, *, edits: tuple[str, ...] | None = None) -> int:
        """Show the trace of a text, from the cache or computed; return the request's number.

        `edits` are in force, in their printed form; None means those the explorer opened with.
        What the screen edits was picked from what it shows of this text, so it is `selected`.
        """
        self._foreign = None
        request = msgspec.structs.replace(self._base, text=text)
        if edits is not None:
            request = msgspec.structs.replace(request, edits=edits, selected=bool(edits))
        return self._begin(lambda number: self._look_up(number, request))

    def open_trace(self, trace_id: str) -> int:
        """Show a cached trace, whatever model it is of; return the request's number."""
        return self._begin(lambda number: self._open(number, trace_id))

    @property
    def foreign(self) -> str | None:
        """The model of the trace on the screen where that is another than the explorer's."""
        return self._foreign

    def require_own(self) -> None:
        """Raise UsageError where the trace on the screen is of another model."""
        if self._foreign is not None:
            raise UsageError(
                f"This trace is of {clean(self._foreign)}, which is not loaded.",
                todo=f"Open emotui with --model {clean(self._foreign)} to go on from it.",
            )

    def with_store(
        self, work: Callable[[Store], object], failed: Callable[[EmotuiError], object]
    ) -> None:
        """Do something with the cache, off the screen's thread, and beside any request.

        `failed` is called there with what went wrong. Both must only post messages.
        """

        def task() -> None:
            try:
                work(self._opened_store())
            except EmotuiError as error:
                failed(error)
            except OSError as error:
                reason = error.strerror or type(error).__name__
                failed(CacheError("It could not be done.", why=reason))
            except Exception as problem:  # the thread goes on, whatever went wrong
                failed(_unexpected(problem))

        self._shelf.do(task)

    def save_session(self, session: Session) -> None:
        """Keep where the explorer is."""
        spec = self._base.spec
        self.with_store(lambda store: save_session(store.root, spec, session), lambda _error: None)

    def settle(self, **fields: str | tuple[str, ...]) -> None:
        """Change what every request from now on has in common: `template`, `metric`, `saes`.

        Taken back where the next request fails.
        """
        self._settled, self._base = self._base, msgspec.structs.replace(self._base, **fields)

    def leave_unfitted(self) -> None:
        """Fit no probes by itself from now on; `fit` does."""
        self._fit_missing = False

    def fit(self, text: str) -> int:
        """Fit probes where there are none, then show the trace of `text` with them."""
        self._fit_missing = True
        return self.read(text)

    def ask(
        self,
        question: Question,
        what: str,
        *,
        text: str,
        edits: tuple[str, ...] = (),
    ) -> int:
        """Ask something that is no trace; return the request's number.

        `question` is called off the screen's thread with the request that would read `text`,
        probes in force, and with the cache: it returns what to ask of the engine, or the answer
        where the cache has it. The answer is posted as `Answered`. `what` names the work.
        """
        request = msgspec.structs.replace(self._base, text=text, edits=edits, selected=bool(edits))
        return self._begin(lambda number: self._put(number, request, question, what))

    def warm_up(self) -> None:
        """Start the engine if none runs: a text is being typed."""
        self._shelf.do(self._warm_up)

    def cancel(self) -> bool:
        """Cancel what runs; return whether anything did. What is finished is kept."""
        with self._lock:
            if not self._busy:
                return False
            asked, number = self._asked, self._number
            self._fit_missing = False
            self._cancelled = number
            if asked is None:
                self._number = next(self._numbers)  # the look-up is no longer waited for
                self._busy = False
        if asked is not None:
            asked.cancel()
        else:
            self._post(messages.WorkFailed(number, Cancelled("Cancelled.")))
        return True

    def export(self, trace: Trace, folder: Path) -> None:
        """Write a trace with its ancestors into `folder` as `emotui-ID.json`."""
        self._shelf.do(lambda: self._export(self._number, trace, folder))

    def close(self, timeout: float = 2.0) -> None:
        """End the engine and let go of the cache."""
        with self._lock:
            self._closed = True
            self._number = next(self._numbers)
            engine = self._engine
        if engine is not None:
            engine.close()
        self._shelf.do(self._close_store)
        self._shelf.close(timeout)

    # Below: on the shelf's thread.

    def _warm_up(self) -> None:
        with contextlib.suppress(EmotuiError), self._lock:
            if not self._closed:
                self._running_engine().start()

    def _running_engine(self) -> Engine:
        if self._engine is None:
            self._engine = self._start_engine(self._opened_store().root)
        return self._engine

    def _begin(self, task: Callable[[int], None]) -> int:
        with self._lock:
            former, self._asked = self._asked, None
            number = self._number = next(self._numbers)
            self._busy = True
        if former is not None:
            former.cancel()
        self._shelf.do(lambda: self._guarded(number, lambda: task(number)))
        return number

    def _guarded(self, number: int, task: Callable[[], None]) -> None:
        """Do it unless the user moved on; say what went wrong."""
        if number != self._number:
            return
        try:
            task()
        except EmotuiError as error:
            self._end(number, messages.WorkFailed(number, error))
        except Exception as problem:
            self._end(number, messages.WorkFailed(number, _unexpected(problem)))

    def _end(self, number: int, message: messages.Fact) -> None:
        with self._lock:
            if number != self._number:
                return
            self._asked, self._busy = None, False
            if isinstance(message, messages.WorkFailed) and self._settled is not None:
                self._base = self._settled
            self._settled = None
        self._post(message)

    def _opened_store(self) -> Store:
        if self._store is None:
            self._store = self._open_store()
        return self._store

    def _close_store(self) -> None:
        if self._store is not None:
            with contextlib.suppress(EmotuiError, OSError):
                self._store.close()
            self._store = None

    def _open(self, number: int, trace_id: str) -> None:
        started = time.monotonic()
        store = self._opened_store()
        trace = store.get_trace(trace_id)
        run = trace.run
        own = prepare(self._base, store).fingerprint == run.fingerprint
        self._foreign = None if own else run.model
        if own:
            labels = trace.answer.set if trace.answer is not None else self._base.label_set
            self._base = msgspec.structs.replace(
                self._base, template=run.template, label_set=labels
            )
        self._show(number, trace, cached=True, seconds=time.monotonic() - started)
        self._end(number, messages.WorkFinished(number))
        if own:
            self._load(self._base)

    def _look_up(self, number: int, request: InspectRequest) -> None:
        started = time.monotonic()
        if not request.text.strip():
            raise TextError("There is no text to read.", todo="Press i and type or paste one.")
        store = self._opened_store()
        prepared = prepare(request, store)
        request = prepared.request
        if prepared.trace_id is None:
            self._inspect(number, request)
            return
        trace = store.get_trace(prepared.trace_id)
        self._show(number, trace, cached=True, seconds=time.monotonic() - started)
        self._continue(number, request, trace)
        self._load(request)

    def _load(self, request: InspectRequest) -> None:
        """Load the model behind a cached trace, once, where that was asked for."""
        if self._load_behind:
            self._load_behind = False
            load = LoadRequest(request.spec, request.cache_dir, template=request.template)
            with contextlib.suppress(EmotuiError), self._lock:
                if not self._closed:
                    self._running_engine().submit(load)

    def _inspect(self, number: int, request: InspectRequest) -> None:
        started = time.monotonic()

        def answered(outcome: Outcome) -> None:
            if not isinstance(outcome, Inspected):
                raise EngineError("The engine gave an answer to another question.")
            trace = self._opened_store().get_trace(outcome.trace_id)
            seconds = time.monotonic() - started
            self._show(number, trace, cached=outcome.cached, seconds=seconds)
            self._continue(number, request, trace)

        self._ask(number, request, "reading the text", answered)

    def _put(self, number: int, request: InspectRequest, question: Question, what: str) -> None:
        self.require_own()
        store = self._opened_store()
        asked = question(prepare(request, store).request, store)
        if isinstance(asked, Outcome):
            self._end(number, messages.Answered(number, asked))
            return
        self._ask(
            number,
            asked,
            what,
            lambda outcome: self._end(number, messages.Answered(number, outcome)),
        )

    def _continue(self, number: int, request: InspectRequest, trace: Trace) -> None:
        """Fit probes where there are none, and read the text again with them."""
        if request.probes:
            self._end(number, messages.WorkFinished(number))
            return
        store = self._opened_store()
        template, label_set = request.template, request.label_set
        probes = probes_in_force(
            store,
            trace.run.fingerprint,
            template=template,
            label_set=label_set,
            chosen=request.chosen,
        )
        if probes:
            self._inspect(number, msgspec.structs.replace(request, probes=probes))
        elif not self._fit_missing:
            self._end(number, messages.WorkFinished(number))
        else:
            fit = FitRequest(
                spec=request.spec,
                cache_dir=request.cache_dir,
                template=template,
                label_set=label_set,
                seed=request.seed,
            )

            def answered(outcome: Outcome) -> None:
                if not isinstance(outcome, Fitted):
                    raise EngineError("The engine gave an answer to another question.")
                found = msgspec.structs.replace(request, probes=outcome.probe_ids)
                self._inspect(number, found)

            self._ask(number, fit, "fitting probes", answered)

    def _ask(
        self, number: int, operation: Operation, what: str, answered: Callable[[Outcome], None]
    ) -> None:
        with self._lock:
            if self._closed or number != self._number:
                return
            if number == self._cancelled:
                raise Cancelled("Cancelled.")
            asked = self._asked = self._running_engine().submit(operation)
        self._post(messages.WorkStarted(number, what))

        def progressed(progress: Progress) -> None:
            if number != self._number:
                return
            if progress.notice:
                self._post(messages.WorkTold(number, progress.phase))
            else:
                self._post(
                    messages.WorkProgressed(
                        number,
                        progress.phase,
                        progress.done,
                        progress.total,
                        progress.seconds_left,
                    )
                )
                if progress.text or progress.written is not None:
                    self._post(messages.TextWritten(number, progress))

        def done(pending: Asked) -> None:
            self._shelf.do(
                lambda: self._guarded(number, lambda: answered(pending.result(timeout=0)))
            )

        asked.on_progress(progressed)
        asked.add_done_callback(done)

    def _show(self, number: int, trace: Trace, *, cached: bool, seconds: float) -> None:
        store = self._opened_store()
        with contextlib.suppress(EmotuiError):
            store.hold(trace.id)
        readings = self._recent.of(trace, store)
        if number == self._number:
            self._post(messages.TraceReady(number, readings, cached=cached, seconds=seconds))

    def _export(self, number: int, trace: Trace, folder: Path) -> None:
        try:
            path, already = export_trace(self._opened_store(), trace, folder)
        except EmotuiError as error:
            self._post(messages.ExportFailed(number, error))
        else:
            self._post(messages.TraceExported(number, path, already=already))
