"""A screen to test: a made-up model and cache, and an engine whose events a test releases."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy
from safetensors.numpy import save
from support_traces import LABELS, made_up_trace
from textual.pilot import Pilot

from emotui.app import EmotuiApp
from emotui.cache.keys import request_key, trace_id
from emotui.cache.prepare import prepare
from emotui.cache.probes import ProbeCard
from emotui.cache.store import Store
from emotui.core.errors import Cancelled
from emotui.core.protocol import (
    Inspected,
    InspectRequest,
    ModelSpec,
    Operation,
    Outcome,
    Progress,
)
from emotui.core.records import Readouts, Trace
from emotui.ui.state import OpenOptions

TEXT = "Lily was sad because her toy was lost."


class FakeAsked:
    """A request the test answers."""

    def __init__(self, number: int, operation: Operation) -> None:
        self.number = number
        self.operation: Any = operation
        self.cancelled = False
        self.outcome: Outcome | None = None
        self.error: Exception | None = None
        self._done: list[Callable[[Any], None]] = []
        self._progress: list[Callable[[Progress], None]] = []

    def result(self, timeout: float | None = None) -> Outcome:
        if self.error is not None:
            raise self.error
        assert self.outcome is not None
        return self.outcome

    def cancel(self) -> None:
        self.cancelled = True
        if self.outcome is None and self.error is None:
            self.fail(Cancelled("The work was cancelled."))

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._done.append(callback)

    def on_progress(self, callback: Callable[[Progress], None]) -> None:
        self._progress.append(callback)

    def progress(self, phase: str, done: int = 0, total: int = 0) -> None:
        for callback in self._progress:
            callback(Progress(self.number, phase, done, total))

    def notice(self, line: str) -> None:
        for callback in self._progress:
            callback(Progress(self.number, line, notice=True))

    def finish(self, outcome: Outcome) -> None:
        self.outcome = outcome
        for callback in self._done:
            callback(self)

    def fail(self, error: Exception) -> None:
        self.error = error
        for callback in self._done:
            callback(self)


@dataclass
class FakeEngine:
    """An engine that does nothing by itself."""

    asked: list[FakeAsked] = field(default_factory=list)
    started: int = 0
    closed: bool = False

    def start(self) -> None:
        self.started += 1

    def submit(self, operation: Operation) -> FakeAsked:
        self.asked.append(FakeAsked(len(self.asked) + 1, operation))
        return self.asked[-1]

    def close(self) -> None:
        self.closed = True


class Scene:
    """One model, one cache, one engine."""

    def __init__(self, folder: Path) -> None:
        self.engine = FakeEngine()
        self.model = folder / "made-up-model"
        self.model.mkdir()
        (self.model / "config.json").write_text('{"model_type": "llama"}')
        weights = save({"weight": numpy.zeros(4, dtype=numpy.float32)})
        (self.model / "model.safetensors").write_bytes(weights)
        self.cache = folder / "screen-cache"
        self.cache.mkdir(mode=0o700)

    def request(self, text: str = TEXT, **changes: Any) -> InspectRequest:
        spec = ModelSpec(model=str(self.model))
        return InspectRequest(spec=spec, text=text, cache_dir=str(self.cache), **changes)

    def put_probes(self, *, template: str = "ask") -> tuple[str, ...]:
        """Store the cards of a readout and a token probe."""
        with Store.open(self.cache) as store:
            fingerprint = prepare(self.request(), store).fingerprint
            assert fingerprint is not None
            for kind in ("readout", "token"):
                card = ProbeCard(
                    id=f"probe-{kind}",
                    fingerprint=fingerprint,
                    model=str(self.model),
                    kind=kind,
                    label_set="ekman7",
                    emotions=LABELS,
                    template=template,
                    data="situations",
                    created="2026-01-01T00:00:00Z",
                    sites=("resid", "attn", "mlp"),
                    layers=(-1, 0, 1, 2, 3),
                    n_texts=100,
                    scores=(),
                )
                payload = save({"weight": numpy.zeros(1, dtype=numpy.float32)})
                store.put_probe(card.id, payload, card)
        return ("probe-readout", "probe-token")

    def put_trace(
        self,
        text: str = TEXT,
        *,
        probes: tuple[str, ...] = (),
        edits: tuple[str, ...] = (),
        change: Any = None,
        **shape: Any,
    ) -> Trace:
        """Store the made-up trace that answers a request for `text`."""
        with Store.open(self.cache) as store:
            fingerprint = prepare(self.request(), store).fingerprint
            assert fingerprint is not None
            request = self.request(text, probes=probes, edits=edits, selected=bool(edits))
            key = request_key(request, fingerprint)
            trace = made_up_trace(trace_id=trace_id(key), raw=text, model=str(self.model), **shape)
            trace = msgspec.structs.replace(
                trace, run=msgspec.structs.replace(trace.run, fingerprint=fingerprint)
            )
            if not probes:
                trace = msgspec.structs.replace(trace, probes=(), readouts=Readouts())
            if change is not None:
                trace = change(trace)
            store.put_trace(trace, key)
        return trace

    def answer(self, asked: FakeAsked, **shape: Any) -> Trace:
        """Answer an inspect request as an engine does: trace into the cache, then its id."""
        wanted = asked.operation
        trace = self.put_trace(wanted.text, probes=wanted.probes, edits=wanted.edits, **shape)
        asked.finish(Inspected(trace_id=trace.id, cached=False, forwards=1, seconds=0.5))
        return trace

    @asynccontextmanager
    async def open(
        self, text: str = TEXT, *, size: tuple[int, int] = (100, 30), **options: Any
    ) -> AsyncIterator[tuple[EmotuiApp, Pilot[int]]]:
        """Run the app on a text, headless."""
        app = EmotuiApp(OpenOptions(request=self.request(text), **options), engine=self.engine)
        try:
            async with app.run_test(size=size) as pilot:
                await pilot.pause()
                yield app, pilot
        finally:
            app.workbench.close()


async def until(pilot: Pilot[int], condition: Callable[[], object]) -> None:
    """Let messages pass until the condition holds; fails after about five seconds."""
    for _ in range(500):
        if condition():
            await pilot.pause()
            return
        await pilot.pause(0.01)
    raise AssertionError("it did not come about")


def lines_of(app: EmotuiApp) -> list[str]:
    """Return what is on the screen, line by line, without colours."""
    width = app.size.width
    return [
        "".join(segment.text for segment in strip)[:width].rstrip()
        for strip in app.screen._compositor.render_strips()
    ]


def text_on(app: EmotuiApp) -> str:
    """Return what is on the screen, without colours."""
    return "\n".join(lines_of(app))


def trace_of(app: EmotuiApp) -> Trace:
    """Return the trace on the screen; fails where there is none yet."""
    assert app.explorer.state.readings is not None
    return app.explorer.state.readings.trace


def edits_of(app: EmotuiApp) -> tuple[str, ...] | None:
    """Return the edits of the trace on the screen; None where there is none yet."""
    readings = app.explorer.state.readings
    return None if readings is None else readings.trace.edits


def notice_of(app: EmotuiApp) -> str:
    """Return what the notice says, in one line; "" where there is none."""
    notice = app.explorer.state.notice
    return "" if notice is None else " ".join(notice.lines)
