"""One download by huggingface_hub: run beside the request, counted, told, and cancelled.

The library downloads in a thread of its own and counts on a bar of ours; the request's thread
tells the job what arrived and hears a cancel, also while nothing arrives. Files in Xet storage
come by hf_xet, which counts from threads of its own, swallows (and prints) what a bar raises and
goes on: such a transfer is ended by ending hf_xet's session.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from emotui.core.sizes import in_bytes, in_time
from emotui.core.text import clean

if TYPE_CHECKING:
    from emotui.core.engine.capture import Job

_LISTEN_SECONDS = 0.1
_END_SECONDS = 2.0
"""How long a cancelled download is waited for: one in a silent connection ends later by itself."""


class Meter:
    """Counts the bytes of a download and reports them, with the time left, to a job."""

    def __init__(self) -> None:
        self.total = 0
        self.done = 0
        self._before = 0
        self._repo = ""
        self._job: Job | None = None
        self._started = 0.0

    def begin(self, repo: str, total: int, job: Job) -> None:
        """Start to count towards `total` bytes."""
        self._repo, self.total, self._job = repo, total, job
        self._started = time.monotonic()
        if total:
            job.progress(f"downloading {clean(repo)}: {in_bytes(total)}", 0, 100)

    def advance(self, count: int) -> None:
        """Count bytes that arrived; raises Cancelled where the job was cancelled."""
        self.done += count
        if self._job is None:
            return
        self._job.check()
        if not self.total:  # the hub did not tell the sizes
            self._job.progress(f"downloading {clean(self._repo)}: {in_bytes(self.done)}")
            return
        share = min(self.done / self.total, 1.0)
        seconds = time.monotonic() - self._started
        left = f", {in_time(seconds * (1 - share) / share)} left" if 0 < share < 1 else ""
        what = f"{in_bytes(self.done)} of {in_bytes(self.total)}{left}"
        self._job.progress(f"downloading {clean(self._repo)}: {what}", int(100 * share), 100)

    def finished(self, size: int) -> None:
        """Note that a file is whole, also where it came another way than through the bar."""
        self._before += size
        self.advance(self._before - self.done)


class _Stopped(Exception):
    """Leads the library's thread out of a download that was cancelled."""


class _Counts:
    """What the bar of one file tells: bytes that arrived, from any thread."""

    def __init__(self) -> None:
        self.arrived: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        """Bytes, one entry for each step; None at the end."""
        self.stopped = threading.Event()
        self.thread: threading.Thread | None = None

    def check(self) -> None:
        """Raise in the library's own thread where the download was cancelled."""
        if self.stopped.is_set() and threading.current_thread() is self.thread:
            raise _Stopped


def transfer(download: Callable[[type[Any]], object], *, meter: Meter, job: Job) -> None:
    """Run `download`, which gets the class of its progress bars, and count on `meter`.

    Raises what it raises; Cancelled within two seconds of the job's, whatever the download does.
    """
    counts = _Counts()
    bars = _bar_class(counts)
    problems: list[BaseException] = []

    def work() -> None:
        try:
            download(bars)
        except BaseException as problem:
            problems.append(problem)
        finally:
            counts.arrived.put(None)

    thread = counts.thread = threading.Thread(target=work, name="download", daemon=True)
    thread.start()
    try:
        _tell(counts, meter, job)
    except BaseException:
        _end(counts, thread)
        raise
    thread.join()
    if problems:
        raise problems[0]


def _tell(counts: _Counts, meter: Meter, job: Job) -> None:
    while True:
        try:
            count = counts.arrived.get(timeout=_LISTEN_SECONDS)
        except queue.Empty:
            job.check()
            continue
        if count is None:
            return
        meter.advance(count)


def _end(counts: _Counts, thread: threading.Thread) -> None:
    counts.stopped.set()
    deadline = time.monotonic() + _END_SECONDS
    while thread.is_alive() and time.monotonic() < deadline:
        _end_xet()  # again and again: the transfer may have been about to begin
        thread.join(_LISTEN_SECONDS)


def _end_xet() -> None:
    """End hf_xet's session, as huggingface_hub does at a keyboard interrupt; it makes another."""
    with contextlib.suppress(ImportError):
        from huggingface_hub.utils import _xet

        abort: Callable[[], None] = getattr(_xet, "abort_xet_session", lambda: None)
        abort()


def _bar_class(counts: _Counts) -> type[Any]:
    """Return the class that huggingface_hub makes a bar of for each file, in its own one's place.

    A bar counts bytes written (`update`) and bytes received (`update_transfer`), which run ahead
    of those written, or are fewer where they were compressed. Told is the larger, at most the
    size: each byte once. Everything else of tqdm's surface is tqdm's, and shows nothing.
    """
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            counts.check()
            of_tqdm: Any = super().__init__  # it has no types
            of_tqdm(*arguments, **{**named, "disable": True})
            self._lock_of_counts = threading.Lock()
            self._received = self._told = self.n

        def update(self, n: float | None = 1) -> bool | None:
            """Count bytes written."""
            with self._lock_of_counts:
                self.n += int(n or 0)
                self._tell()
            counts.check()
            return None

        def update_transfer(self, n: float | None = 1) -> None:
            """Count bytes received."""
            with self._lock_of_counts:
                self._received += int(n or 0)
                self._tell()
            counts.check()

        def set_transfer_postfix_str(self, *_arguments: Any, **_named: Any) -> None:
            """Take what is shown beside a bar."""

        def _tell(self) -> None:
            arrived = max(self.n, min(self._received, self.total or self.n))
            if arrived != self._told:
                counts.arrived.put(arrived - self._told)
                self._told = arrived

    return Bar
