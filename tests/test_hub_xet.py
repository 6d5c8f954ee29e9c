"""Downloads from Xet storage: hf_xet itself, over a storage in a folder and one that never answers.

Where a test needs the transfer to take a certain course (lagging, compressed, broken off), only
hf_xet's download group is replaced; huggingface_hub's own way to it is always run.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from socket import create_server
from types import SimpleNamespace, TracebackType
from typing import Any, Self

import pytest
from support_hub import COMMIT, Hub, serving
from test_hub import MODEL, Recording, emotui, gemma_repository

from emotui.core.engine.capture import QuietJob
from emotui.core.engine.hub import fetch
from emotui.core.engine.model_files import find_model, wanted_files
from emotui.core.errors import Cancelled, ModelError
from emotui.core.protocol import ModelSpec
from emotui.core.sizes import in_bytes

hf_xet = pytest.importorskip("hf_xet")


@pytest.fixture
def storage(tmp_path: Path) -> str:
    """The address of a Xet storage in a folder, which hf_xet reads as it reads one far away."""
    (tmp_path / "storage").mkdir()
    return f"local://{tmp_path / 'storage'}"


def store(storage: str, content: bytes, place: Path) -> str:
    """Put a file into the storage and return its hash there."""
    place.write_bytes(content)
    with hf_xet.XetSession().new_upload_commit(endpoint=storage) as commit:
        handle = commit.start_upload_file(str(place))
    return str(handle.result().xet_info.hash)


@pytest.fixture
def hub(tmp_path: Path, storage: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub whose model has its two shards, and one large file, in Xet storage."""
    repository = gemma_repository()
    for name in list(repository.files):
        if name.startswith("model-"):
            content = repository.files[name]
            repository.xet[name] = store(storage, content, tmp_path / "to-store")
    repository.storage = storage
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with serving({MODEL: repository}) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


class Watching(Recording):
    """A recording job that notes the threads it is called from, and can be cancelled from any."""

    def __init__(self, *, cancel_at: int | None = None) -> None:
        super().__init__(cancel_at=cancel_at)
        self.threads: set[int] = set()
        self.notices: list[str] = []
        self.cancelled = threading.Event()

    def progress(self, phase: str, done: int = 0, total: int = 0, /) -> None:
        self.threads.add(threading.get_ident())
        super().progress(phase, done, total)

    def notice(self, line: str, /) -> None:
        self.notices.append(line)

    def check(self) -> None:
        if self.cancelled.is_set():
            raise Cancelled("The work was cancelled.")
        super().check()


def counts_of(job: Recording) -> list[int]:
    return [done for phase, done, _ in job.seen if phase.startswith("downloading")]


def total_of(hub: Hub) -> int:
    files = hub.repositories[MODEL].files
    return sum(len(files[name]) for name in wanted_files(MODEL, list(files)))


def test_a_model_in_xet_storage_arrives_by_hf_xet_itself(
    hub: Hub, capfd: pytest.CaptureFixture[str]
) -> None:
    job = Watching()
    found = find_model(ModelSpec("gemma-2-2b"), job)
    repository = hub.repositories[MODEL]
    for name in repository.xet:
        assert (found.folder / name).read_bytes() == repository.files[name]
        assert f"{COMMIT}/{name}" not in hub.gets(), "over the storage, not over HTTP"
    asked = [path for _, path, _ in hub.requests]
    assert f"/api/models/{MODEL}/xet-read-token/{COMMIT}" in asked
    total = in_bytes(total_of(hub))
    assert job.notices == [f"Downloading {MODEL}: {total}."]
    assert counts_of(job) == sorted(counts_of(job))
    assert job.seen[-1] == (f"downloading {MODEL}: {total} of {total}", 100, 100)
    assert job.threads == {threading.get_ident()}
    assert capfd.readouterr().err == "", "hf_xet prints what a callback raises"
    assert find_model(ModelSpec("gemma-2-2b", offline=True)).commit == COMMIT


def test_the_command_fetches_a_model_from_xet_storage(hub: Hub, tmp_path: Path) -> None:
    arguments = ("inspect", "Lily was sad.", "--model", "gemma-2-2b", "--sae", "none", "--json")
    done = emotui(*arguments, root=tmp_path, hub=hub)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"]["revision"] == COMMIT
    assert f"Downloading {MODEL}: {in_bytes(total_of(hub))}." in done.stderr
    fetched = [name for name in hub.gets() if "model-" in name]
    assert fetched == []
    again = emotui(*arguments, "--offline", root=tmp_path)
    assert (again.returncode, again.stdout) == (0, done.stdout)


def test_a_storage_that_never_answers_can_be_cancelled(
    hub: Hub, storage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """hf_xet goes on whatever a callback raises: only an end of its session ends it."""
    repository = hub.repositories[MODEL]
    with closing(create_server(("127.0.0.1", 0))) as silent:
        repository.storage = f"http://127.0.0.1:{silent.getsockname()[1]}"
        job = Watching()
        timer = threading.Timer(1.0, job.cancelled.set)
        timer.start()
        began = time.monotonic()
        with pytest.raises(Cancelled):
            find_model(ModelSpec(MODEL), job)
        assert time.monotonic() - began < 2.5
    assert "Traceback" not in capfd.readouterr().err
    with pytest.raises(ModelError, match="not on this machine"):
        find_model(ModelSpec(MODEL, offline=True))
    _no_transfer_goes_on()
    forget_tokens()
    repository.storage = storage
    assert find_model(ModelSpec(MODEL)).commit == COMMIT


def forget_tokens() -> None:
    """huggingface_hub keeps a token, with the storage's address, until it expires."""
    from huggingface_hub.utils import _xet

    _xet.XET_CONNECTION_INFO_CACHE.clear()


def _no_transfer_goes_on() -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        names = [one.name for one in threading.enumerate()]
        if "download" not in names:
            return
        time.sleep(0.05)
    raise AssertionError(names)


def test_what_hf_xet_raises_is_told_with_what_to_do(hub: Hub) -> None:
    forget_tokens()
    repository = hub.repositories[MODEL]
    lost = sorted(repository.xet)[-1]
    kept, repository.xet[lost] = repository.xet[lost], "a" * 64
    with pytest.raises(ModelError) as caught:
        find_model(ModelSpec(MODEL))
    assert f"The download of {MODEL} broke off at" in caught.value.what
    assert "RuntimeError" in caught.value.why
    assert "again" in caught.value.todo
    assert "HF_HUB_DISABLE_XET=1" in caught.value.todo
    with pytest.raises(ModelError):
        find_model(ModelSpec(MODEL, offline=True))
    before = len(hub.gets())
    repository.xet[lost] = kept
    assert find_model(ModelSpec(MODEL)).commit == COMMIT
    assert hub.gets()[before:] == [], "what was whole is not fetched again"


class Course:
    """What a transfer does, step by step: bytes written and bytes received so far."""

    def __init__(self, *steps: tuple[float, float], error: Exception | None = None) -> None:
        self.steps, self.error = steps, error
        self.raised: list[BaseException] = []


class Group:
    """hf_xet's download group as huggingface_hub uses it, on a course of its own.

    As hf_xet does it: callbacks come from another thread, the last from the waiting one, and what
    they raise is swallowed.
    """

    def __init__(self, course: Course, contents: dict[int, bytes], callback: Any) -> None:
        self.course, self.contents, self.callback = course, contents, callback
        self.aborted = threading.Event()
        self.thread: threading.Thread | None = None
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self.thread is not None
        self.thread.join()
        if self.aborted.is_set():
            raise RuntimeError("Operation cancelled: Task cancelled: task 12 was cancelled")
        if self.course.error is not None:
            raise self.course.error
        self.call(1.0, self.course.steps[-1][1])

    def start_download_file(self, info: Any, path: str) -> None:
        self.size = info.file_size
        Path(path).write_bytes(self.contents[self.size])
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        for written, received in self.course.steps:
            if self.aborted.wait(0.02):
                return
            self.call(written, received)

    def call(self, written: float, received: float) -> None:
        report = SimpleNamespace(
            total_bytes=self.size,
            total_bytes_completed=int(written * self.size),
            total_transfer_bytes=self.size,
            total_transfer_bytes_completed=int(received * self.size),
            total_bytes_completion_rate=None,
            total_transfer_bytes_completion_rate=1e6,
        )
        try:
            self.callback(report, {})
        except BaseException as problem:
            self.course.raised.append(problem)


@pytest.fixture
def on_course(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Callable[[Course], None]:
    """Have the transfers of Xet files take a course."""
    contents = {len(content): content for content in hub.repositories[MODEL].files.values()}

    def take(course: Course) -> None:
        class Session:
            group: Group | None = None

            def new_file_download_group(self, *, progress_callback: Any, **_: Any) -> Group:
                Session.group = Group(course, contents, progress_callback)
                return Session.group

            def sigint_abort(self) -> None:
                if Session.group is not None:
                    Session.group.aborted.set()

        monkeypatch.setattr("hf_xet.XetSession", Session)
        monkeypatch.setattr("huggingface_hub.utils._xet._GLOBAL_XET_HOLDER._session", None)

    return take


LAGGING = ((0.0, 0.1), (0.0, 0.4), (0.3, 0.6), (0.3, 0.9), (0.9, 0.9))
COMPRESSED = ((0.1, 0.05), (0.5, 0.2), (0.8, 0.3), (1.0, 0.3))
MORE = ((0.0, 0.5), (0.2, 1.0), (0.4, 1.4))


@pytest.mark.parametrize("steps", [LAGGING, COMPRESSED, MORE])
def test_bytes_are_counted_once_however_they_come(
    hub: Hub, on_course: Callable[[Course], None], steps: tuple[tuple[float, float], ...]
) -> None:
    course = Course(*steps)
    on_course(course)
    job = Watching()
    find_model(ModelSpec(MODEL), job)
    assert course.raised == []
    total = total_of(hub)
    counts = counts_of(job)
    assert counts == sorted(counts)
    assert counts[-1] == 100
    assert job.seen[-1][0].endswith(f"{in_bytes(total)} of {in_bytes(total)}")
    # A shard is about half of the whole: after its first step the count stands where it says.
    small = total - sum(len(hub.repositories[MODEL].files[n]) for n in hub.repositories[MODEL].xet)
    first = len(hub.repositories[MODEL].files["model-00001-of-00002.safetensors"])
    arrived = [small + int(min(1.0, max(one)) * first) for one in steps]
    for bytes_then in arrived:
        assert int(100 * bytes_then / total) in counts
    assert job.threads == {threading.get_ident()}


def test_cancel_inside_a_transfer(hub: Hub, on_course: Callable[[Course], None]) -> None:
    course = Course(*((n / 200, n / 200) for n in range(200)))
    on_course(course)
    job = Watching(cancel_at=20)
    with pytest.raises(Cancelled):
        find_model(ModelSpec(MODEL), job)
    assert course.raised == [], "hf_xet would print it, and go on"
    assert counts_of(job)[-1] < 60
    with pytest.raises(ModelError, match="not on this machine"):
        find_model(ModelSpec(MODEL, offline=True))
    _no_transfer_goes_on()
    on_course(Course((1.0, 1.0)))
    assert find_model(ModelSpec(MODEL)).commit == COMMIT


def test_an_error_inside_a_transfer(hub: Hub, on_course: Callable[[Course], None]) -> None:
    on_course(Course((0.0, 0.5), error=RuntimeError("Task error: CAS Client Error: timed out")))
    with pytest.raises(ModelError) as caught:
        find_model(ModelSpec(MODEL))
    assert "CAS Client Error" in caught.value.why
    small = total_of(hub) - sum(
        len(hub.repositories[MODEL].files[name]) for name in hub.repositories[MODEL].xet
    )
    first = len(hub.repositories[MODEL].files["model-00001-of-00002.safetensors"])
    then = in_bytes(small + first // 2)
    assert f"broke off at {then} of {in_bytes(total_of(hub))}" in caught.value.what
    assert "again" in caught.value.todo


def test_without_xet_the_redirect_is_followed_and_taken_up_where_it_broke(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4096)
    monkeypatch.setattr("time.sleep", lambda _seconds: None)  # between the library's attempts
    repository = hub.repositories[MODEL]
    shard = "model-00002-of-00002.safetensors"
    repository.breaks, repository.breaks_left = shard, 1
    job = Watching()
    found = find_model(ModelSpec(MODEL), job)
    assert (found.folder / shard).read_bytes() == repository.files[shard]
    (asked,) = {wanted for path, wanted in hub.ranges if path.endswith(shard)}
    middle = len(repository.files[shard]) // 2
    start = int(asked.removeprefix("bytes=").removesuffix("-"))
    assert middle - 4096 < start <= middle, "what had arrived, but for a part of a chunk"
    counts = counts_of(job)
    assert counts == sorted(counts)
    assert counts.count(100) <= 2, "the count does not run ahead of the bytes"


def test_a_stalled_http_download_can_be_cancelled(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    repository = hub.repositories[MODEL]
    repository.stalls = "model-00001-of-00002.safetensors"
    job = Watching()
    timer = threading.Timer(0.5, job.cancelled.set)
    timer.start()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        find_model(ModelSpec(MODEL), job)
    assert time.monotonic() - began < 4
    repository.stalls = ""
    hub.ended.set()
    _no_transfer_goes_on()


def test_sizes_that_the_hub_does_not_tell_are_not_made_up(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.hf_api import HfApi, ModelInfo

    ask = HfApi.model_info

    def without_sizes(*arguments: Any, **named: Any) -> ModelInfo:
        info = ask(*arguments, **named)
        for one in info.siblings or ():
            one.size = None
        return info

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", without_sizes)
    job = Watching()
    find_model(ModelSpec(MODEL), job)
    phases = [phase for phase, _, _ in job.seen if phase.startswith("downloading")]
    assert phases[-1] == f"downloading {MODEL}: {in_bytes(total_of(hub))}"
    assert {(done, total) for phase, done, total in job.seen if phase in phases} == {(0, 0)}
    assert job.notices == []


@pytest.mark.parametrize("problem", [TypeError("unsupported"), ValueError("x"), RuntimeError("y")])
def test_whatever_the_library_raises_is_an_error_of_ours(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    def broken(*_arguments: Any, **_named: Any) -> None:
        raise problem

    def choose(_names: Sequence[str]) -> list[str]:
        return ["config.json"]

    monkeypatch.setattr("huggingface_hub.hf_hub_download", broken)
    with pytest.raises(ModelError) as caught:
        fetch(MODEL, revision=None, choose=choose, job=QuietJob())
    assert caught.value.why == f"{type(problem).__name__}: {problem}"
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", broken)
    with pytest.raises(ModelError) as caught:
        fetch(MODEL, revision=None, choose=choose, job=QuietJob())
    assert "could not be fetched" in caught.value.what
    assert type(problem).__name__ in caught.value.why


def test_a_storage_token_that_is_refused(hub: Hub) -> None:
    forget_tokens()
    hub.repositories[MODEL].storage = ""
    with pytest.raises(ModelError, match="broke off") as caught:
        find_model(ModelSpec(MODEL))
    assert "403" in caught.value.why
    assert "HF_HUB_DISABLE_XET=1" in caught.value.todo
