"""One engine process: how it is started, ended, and what its log says of its end."""

from __future__ import annotations

import contextlib
import os
import signal
import site
import subprocess
import threading
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, BinaryIO, cast

import emotui
from emotui.core.errors import CacheError, EngineError
from emotui.core.private import Private, without_private
from emotui.core.protocol import Hello

LOGS_KEPT = 20
"""How many logs of earlier engines stay in the folder."""

_QUIET = {
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
_END_OF_INPUT_SECONDS = 0.3
_TERMINATE_SECONDS = 0.3
_REAP_SECONDS = 2.0
_LAST_BREATH_SECONDS = 0.2
_TAIL_BYTES = 8192


class Child:
    """A started engine: its pipes, its log, and why it was ended, if it was ended from here."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log
        self.input = cast(BinaryIO, process.stdin)
        self.output = cast(BinaryIO, process.stdout)
        self.hello: Hello | None = None
        self.ended = False
        """Whether its end is known; guarded by the client's lock."""
        self.buried = threading.Event()
        """Set once those who waited for it have been answered."""
        self.ends_as_asked = False
        """Whether a shutdown or a cancel ends it: requests behind that go to another engine."""
        self._reason = ""
        self._lock = threading.Lock()

    @property
    def said_no_hello(self) -> bool:
        """Whether it never got so far."""
        return self.hello is None

    def kill(self) -> None:
        """End it now; it cannot refuse."""
        with self._lock, contextlib.suppress(OSError):
            self.process.kill()

    def end_for(self, reason: str) -> None:
        """Kill it for a reason that its death then gives."""
        self._reason = reason
        self.kill()

    def end(self) -> None:
        """End its input, ask, then kill: within 0.6 s. Only for the thread that writes to it."""
        with contextlib.suppress(OSError, ValueError):
            self.input.close()
        for seconds, then in (
            (_END_OF_INPUT_SECONDS, self.process.terminate),
            (_TERMINATE_SECONDS, self.process.kill),
            (_REAP_SECONDS, None),
        ):
            try:
                self.process.wait(seconds)
                return
            except subprocess.TimeoutExpired:
                if then is not None:
                    then()

    def ends_by_itself(self) -> bool:
        """Whether it has ended, or does within a fifth of a second."""
        try:
            self.process.wait(_LAST_BREATH_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        return True

    def reap(self) -> int:
        """Wait for its end, which is near, and return its exit status."""
        try:
            status = self.process.wait(_REAP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            status = self.process.wait()
        with contextlib.suppress(OSError):
            self.output.close()
        return status

    def death(self, status: int, private: Iterable[Private]) -> EngineError:
        """Say how it ended: the signal or status, and its log's last words without private ones."""
        happened = "The engine did not start" if self.said_no_hello else "The engine ended"
        cause = self._reason or _status_in_words(status)
        words: frozenset[str] | None = frozenset()
        for some in private:
            words = None if words is None or some is None else words | some
        last = without_private(_last_words(self.log), words)
        return EngineError(
            f"{happened}: {cause}.",
            why=f"Its log ends: {last}" if last else "",
            todo=f"Its log is {self.log}. The next request starts a new engine.",
        )


def _status_in_words(status: int) -> str:
    if status >= 0:
        return f"its exit status was {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = str(-status)
    hint = " (perhaps the system ran out of memory)" if -status == signal.SIGKILL else ""
    return f"signal {name}{hint}"


def _last_words(log: Path) -> str:
    """Return the line of a log that says most of an end: a fatal error, else the last one."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    lines = [line for line in lines if line.strip()]
    fatal = [line for line in lines if line.startswith("Fatal Python error")]
    return (fatal or lines or [""])[-1]


def start_child(command: Sequence[str], log_dir: Path, *, offline: bool) -> Child:
    """Start an engine with a new log of mode 0600 in `log_dir`, in a session of its own.

    On Linux it ends with the calling thread, so call this from one that outlives it. Raises
    CacheError where the log cannot be made, EngineError where the program cannot be started.
    """
    log = _new_log(log_dir)
    environment = {**os.environ, **_QUIET, **(_OFFLINE if offline else {})}
    if path := _path_to_this_package():
        inherited = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join((path, inherited) if inherited else (path,))
    try:
        with log.open("ab") as errors:
            process = _popen((*command, "--log", str(log)), errors, environment)
    except OSError as problem:
        raise EngineError(
            "The engine could not be started.",
            why=f"{command[0]}: {problem.strerror or problem}",
            todo="Check the Python that emotui is installed in.",
        ) from problem
    return Child(process, log)


def _popen(
    command: Sequence[str], errors: IO[bytes], environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,  # until it has taken over: an unset stderr is the terminal
        env=environment,
        bufsize=0,
        start_new_session=True,  # ctrl+c of the terminal is for the front end
    )


def _path_to_this_package() -> str | None:
    """Return the folder to import emotui from, or None where Python looks there by itself."""
    folder = str(Path(emotui.__file__).resolve().parent.parent)
    known = (*site.getsitepackages(), site.getusersitepackages())
    return None if folder in known else folder


def _new_log(folder: Path) -> Path:
    name = f"engine-{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{os.getpid()}.log"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in sorted(folder.glob("engine-*.log"))[:-LOGS_KEPT]:
            old.unlink(missing_ok=True)
        log = folder / name
        os.close(os.open(log, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as problem:
        raise CacheError(
            f"The engine's log cannot be written in {folder}.",
            why=problem.strerror or str(problem),
            todo="Choose another folder with --cache-dir.",
        ) from problem
    return log
