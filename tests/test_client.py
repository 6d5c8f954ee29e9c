"""The engine's process and its client, with fake operations in a real process."""

from __future__ import annotations

import os
import pty
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from support_process import SHOUT, ask, fake_client, runs, wait_until

from emotui.core.client import EngineClient
from emotui.core.errors import CacheError, Cancelled, EngineError, ModelError, TextError, UsageError
from emotui.core.protocol import (
    MAX_FRAME_BYTES,
    Done,
    Event,
    Inspected,
    Progress,
    ShutdownRequest,
)

HELPER = str(Path(__file__).with_name("support_process.py"))


@pytest.fixture
def client(cache_dir: Path) -> Iterator[EngineClient]:
    with fake_client(cache_dir) as client:
        yield client


def answer(client: EngineClient, text: str) -> str:
    outcome = client.submit(ask(text)).result(30)
    assert isinstance(outcome, Inspected)
    return outcome.trace_id


def failure(client: EngineClient, text: str, kind: type[Exception] = EngineError) -> str:
    with pytest.raises(kind) as caught:
        client.submit(ask(text)).result(30)
    return str(caught.value)


# Asking


def test_requests_are_answered_in_order_by_one_process(client: EngineClient) -> None:
    pending = [client.submit(ask(f"text {number}")) for number in range(20)]
    outcomes = [one.result(30) for one in pending]
    assert outcomes == [Inspected(f"text {number}", False, 1, 0.0) for number in range(20)]
    assert client.pid is not None and runs(client.pid)


def test_the_hello_does_not_wait_for_the_warm_up(cache_dir: Path) -> None:
    with fake_client(cache_dir, "slow") as client:
        hello = client.wait_until_ready(30)
        assert hello.pid == client.pid
        said = time.monotonic()
        answer(client, "text")
        assert time.monotonic() - said > 0.5


def test_the_engine_does_not_import_torch_by_itself(client: EngineClient) -> None:
    assert answer(client, "torch") == "False"


def test_starting_and_asking_does_not_wait(cache_dir: Path) -> None:
    with fake_client(cache_dir) as client:
        before = time.monotonic()
        client.start()
        client.submit(ask("x" * 2_000_000))
        assert time.monotonic() - before < 1.0


def test_the_client_imports_nothing_heavy() -> None:
    code = (
        "import sys, emotui.core.client\n"
        "heavy = {'torch', 'numpy', 'transformers', 'textual', 'rich', 'asyncio'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_error_of_the_operation_keeps_its_kind_and_words(client: EngineClient) -> None:
    with pytest.raises(ModelError) as caught:
        client.submit(ask("refuse")).result(30)
    assert (caught.value.what, caught.value.why, caught.value.todo) == (
        "There is no such model.",
        "It is a test.",
        "Go on.",
    )
    assert answer(client, "again") == "again"


@pytest.mark.parametrize("text", ["memory", "exit"])
def test_the_engine_outlives_a_fault(client: EngineClient, text: str) -> None:
    pid = client.wait_until_ready(30).pid
    message = failure(client, text)
    assert ("memory" in message) == (text == "memory")
    assert answer(client, "again") == "again"
    assert client.pid == pid


def test_an_unexpected_error_is_told_and_logged_without_the_text(client: EngineClient) -> None:
    message = failure(client, "fault Mother's diary, naïve secret")
    assert "ValueError: could not read" in message and "as a picture" in message
    assert client.log is not None
    log = client.log.read_text()
    assert "ValueError" in log and "support_process.py" in log
    for word in ("Mother", "diary", "secret", "naïve", "na\\xefve"):
        assert word not in message and word not in log


def test_a_broken_installation_is_told_and_tried_again(cache_dir: Path) -> None:
    with fake_client(cache_dir, "second") as client:
        assert answer(client, "text") == "text"
        assert client.log is not None and "a library is broken" in client.log.read_text()


def test_a_text_that_is_not_unicode_is_refused_here(client: EngineClient) -> None:
    with pytest.raises(TextError, match="Character 3"):
        client.submit(ask("ab\udcff"))
    assert answer(client, "again") == "again"


def test_a_text_over_the_limit_is_refused_here(client: EngineClient) -> None:
    with pytest.raises(EngineError, match="too large"):
        client.submit(ask("x" * (MAX_FRAME_BYTES + 1)))


def test_an_outcome_over_the_limit_is_an_error_of_its_request(client: EngineClient) -> None:
    assert "too large" in failure(client, f"large {MAX_FRAME_BYTES}")
    assert answer(client, "again") == "again"


def test_the_engine_runs_at_nice_10(client: EngineClient) -> None:
    assert answer(client, "nice") == str(min(19, os.nice(0) + 10))


def test_ctrl_c_of_the_terminal_is_not_for_the_engine(client: EngineClient) -> None:
    pid = client.wait_until_ready(30).pid
    assert os.getsid(pid) == pid
    pending = client.submit(ask("sleep 0.3"))
    os.kill(pid, signal.SIGINT)
    assert pending.result(30) == Inspected("sleep 0.3", False, 1, 0.0)


def test_the_environment_is_quiet_and_offline_where_asked(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for offline, expected in ((False, "absent"), (True, "1")):
        with fake_client(cache_dir, offline=offline) as client:
            assert answer(client, "environment HF_HUB_OFFLINE") == expected
            assert answer(client, "environment TQDM_DISABLE") == "1"
            assert answer(client, "environment TOKENIZERS_PARALLELISM") == "false"


def test_shutdown_ends_the_engine_after_what_runs(client: EngineClient) -> None:
    pid = client.wait_until_ready(30).pid
    first, last = client.submit(ask("sleep 0.2")), client.submit(ShutdownRequest())
    assert last.result(30) == Done()
    assert first.done and first.error is None
    assert wait_until(lambda: not runs(pid), 2)
    assert answer(client, "again") == "again"


# Progress and callbacks


def test_progress_comes_at_most_ten_times_a_second(client: EngineClient) -> None:
    answer(client, "text")
    heard: list[tuple[float, Progress]] = []
    begun = time.monotonic()
    pending = client.submit(ask("count 300"))
    pending.on_progress(lambda progress: heard.append((time.monotonic(), progress)))
    pending.result(30)
    seconds = time.monotonic() - begun
    assert 3 <= len(heard) <= seconds * 10 + 2
    counts = [progress.done for _, progress in heard]
    assert counts == sorted(counts) and {progress.total for _, progress in heard} == {300}


def test_the_latest_phase_is_told_even_if_nothing_follows(client: EngineClient) -> None:
    phases: list[str] = []
    pending = client.submit(ask("phases 0.4"))
    pending.on_progress(lambda progress: phases.append(progress.phase))
    pending.result(30)
    assert phases == ["short", "long"]


def test_callbacks_and_events_tell_the_same_and_may_fail(cache_dir: Path) -> None:
    events: list[Event] = []

    def listen(event: Event) -> None:
        events.append(event)
        raise RuntimeError("a broken listener")

    def fail(_pending: object) -> None:
        raise RuntimeError("a broken callback")

    with fake_client(cache_dir, on_event=listen) as client:
        told: list[str] = []
        done = threading.Event()
        pending = client.submit(ask("sleep 0.1"))
        pending.add_done_callback(lambda _: told.append(threading.current_thread().name))
        pending.add_done_callback(fail)
        pending.add_done_callback(lambda _: done.set())
        assert done.wait(30)
        assert told == ["engine-reader"]
        late: list[bool] = []
        pending.add_done_callback(lambda one: late.append(one.done))
        assert late == [True]
        failure(client, "refuse", ModelError)
    kinds = [type(event) for event in events if not isinstance(event, Progress)]
    assert [kind.__name__ for kind in kinds] == ["Hello", "Result", "Failure"]


# Cancelling


def test_a_running_request_is_cancelled_and_the_engine_stays(client: EngineClient) -> None:
    pid = client.wait_until_ready(30).pid
    pending = client.submit(ask("sleep 30"))
    time.sleep(0.2)
    before = time.monotonic()
    pending.cancel()
    with pytest.raises(Cancelled):
        pending.result(30)
    assert time.monotonic() - before < 2.0
    assert answer(client, "again") == "again" and client.pid == pid


def test_a_waiting_request_is_cancelled_at_once(client: EngineClient) -> None:
    client.wait_until_ready(30)
    first, second = client.submit(ask("sleep 0.6")), client.submit(ask("never"))
    time.sleep(0.1)
    second.cancel()
    with pytest.raises(Cancelled):
        second.result(0.4)
    assert not first.done
    assert first.result(30) == Inspected("sleep 0.6", False, 1, 0.0)
    second.cancel()
    first.cancel()
    client.cancel(12345)


@pytest.mark.parametrize("text", ["hang", "hold"])
def test_a_request_that_does_not_hear_is_killed_and_the_others_go_on(
    cache_dir: Path, text: str
) -> None:
    with fake_client(cache_dir, grace=0.3) as client:
        pid = client.wait_until_ready(30).pid
        answer(client, "warm")
        deaf, cancelled, waits = (client.submit(ask(one)) for one in (text, "never", "waits"))
        time.sleep(0.2)
        before = time.monotonic()
        cancelled.cancel()
        deaf.cancel()
        for one in (deaf, cancelled):
            with pytest.raises(Cancelled):
                one.result(5)
        assert time.monotonic() - before < 3.0
        assert waits.result(30) == Inspected("waits", False, 1, 0.0)
        assert not runs(pid) and client.pid not in (None, pid)


# Ends


@pytest.mark.parametrize(
    ("text", "said"),
    [("crash 0.2", "SIGSEGV"), ("kill 0.2", "SIGKILL")],
)
def test_the_end_of_an_engine_is_told_with_its_log_and_it_starts_again(
    client: EngineClient, text: str, said: str
) -> None:
    pid = client.wait_until_ready(30).pid
    log = client.log
    first, second = client.submit(ask(text)), client.submit(ask("behind it"))
    for pending in (first, second):
        with pytest.raises(EngineError) as caught:
            pending.result(30)
        assert said in caught.value.what and str(log) in caught.value.todo
    if said == "SIGSEGV":
        assert "Segmentation fault" in caught.value.why
    assert answer(client, "again") == "again"
    assert client.pid != pid and not runs(pid)


def test_an_engine_killed_while_idle_is_replaced_unnoticed(client: EngineClient) -> None:
    pid = client.wait_until_ready(30).pid
    answer(client, "text")
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: client.pid is None)
    assert answer(client, "again") == "again"


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("foreign", "another protocol"),
        ("talkative", "message"),
        ("mute", "did not say hello"),
        ("dead", "No module named 'everything'"),
    ],
)
def test_an_engine_that_does_not_start_is_told(cache_dir: Path, mode: str, message: str) -> None:
    with fake_client(cache_dir, mode, hello_timeout=1.0) as client:
        assert message in failure(client, "text")
        with pytest.raises(EngineError, match=message):
            client.wait_until_ready(30)


def test_a_python_that_is_not_there_is_told(cache_dir: Path) -> None:
    with EngineClient(cache_dir, python="/nowhere/python") as client:
        assert "/nowhere/python" in failure(client, "text")


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with fake_client(tmp_path / "file") as client:
        assert "--cache-dir" in failure(client, "text", CacheError)


@pytest.mark.parametrize("text", ["sleep 30", "hang", "hold"])
def test_close_ends_the_engine_within_a_second(cache_dir: Path, text: str) -> None:
    client = fake_client(cache_dir)
    pid = client.wait_until_ready(30).pid
    answer(client, "warm")
    running, waiting = client.submit(ask(text)), client.submit(ask("waits"))
    time.sleep(0.1)
    before = time.monotonic()
    client.close()
    assert time.monotonic() - before < 3.0
    assert not runs(pid)
    for pending in (running, waiting):
        with pytest.raises(Cancelled):
            pending.result(1)
    client.close()
    with pytest.raises(EngineError, match="closed"):
        client.submit(ask("late"))


@pytest.mark.parametrize("text", ["idle", "sleep 30", "hang", "hold"])
def test_the_engine_ends_with_a_parent_that_is_killed(cache_dir: Path, text: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, HELPER, "parent", str(cache_dir), text], stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    with parent, parent.stdout as said:
        pid = int(said.readline())
        assert runs(pid)
        time.sleep(0.2)
        parent.kill()
        assert wait_until(lambda: not runs(pid), 1.0)


# Output and files


def test_nothing_the_engine_says_reaches_the_terminal(cache_dir: Path) -> None:
    """On a pseudo-terminal, so that what looks for a terminal finds one."""
    terminal, device = pty.openpty()
    parent = subprocess.Popen(
        [sys.executable, HELPER, "ask", str(cache_dir), "shout"],
        stdin=device,
        stdout=device,
        stderr=device,
        start_new_session=True,
    )
    os.close(device)
    assert parent.wait(30) == 0
    seen = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # Linux: the other side is closed
            break
        if not part:
            break
        seen += part
    os.close(terminal)
    assert seen == b""
    (log,) = (cache_dir / "logs").iterdir()
    written = log.read_text()
    for source in (
        *("print", "stderr", "descriptor 1", "descriptor 2", "puts", "warning", "logging"),
        *("handler", "child", "tqdm"),
    ):
        assert f"{SHOUT} {source}" in written


def test_logs_are_private_and_few(cache_dir: Path) -> None:
    folder = cache_dir / "logs"
    for number in range(40):
        folder.mkdir(exist_ok=True, mode=0o700)
        (folder / f"engine-20000101T0000{number:02}-1.log").write_text("old")
    with fake_client(cache_dir) as client:
        answer(client, "text")
        assert client.log is not None and client.log.parent == folder
        assert stat.S_IMODE(client.log.stat().st_mode) == 0o600
        assert len(list(folder.iterdir())) <= 21
    with fake_client(cache_dir / "new") as client:
        answer(client, "text")
    assert stat.S_IMODE((cache_dir / "new" / "logs").stat().st_mode) == 0o700


def test_a_module_in_the_users_folder_is_not_imported(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "logging.py").write_text("raise SystemExit('the wrong module')")
    (tmp_path / "torch.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(tmp_path)
    with EngineClient(cache_dir) as client:
        assert client.wait_until_ready(30).protocol == "emotui-engine"


@pytest.mark.parametrize("text", [3, None, ["a"], b"a"])
def test_a_value_of_a_wrong_type_is_refused_before_it_is_sent(
    client: EngineClient, text: object
) -> None:
    with pytest.raises(UsageError, match="text was of the wrong type"):
        client.submit(msgspec.structs.replace(ask("SHOUT"), text=text))
    with pytest.raises(UsageError, match="cannot be sent"):
        client.submit(msgspec.structs.replace(ask("SHOUT"), text=object()))
    assert client.pid is None
    assert answer(client, "after") == "after"


def test_nobody_waits_for_a_reader_that_failed(
    client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: object) -> EngineError:
        raise TypeError("expected string or bytes-like object")

    monkeypatch.setattr("emotui.core.child.Child.death", broken)
    waiting = [client.submit(ask("sleep 0.5")), client.submit(ask("crash 0"))]
    waiting[0].result(30)
    with pytest.raises(EngineError, match="connection to the engine failed"):
        waiting[1].result(30)
    monkeypatch.undo()
    assert answer(client, "again") == "again"


def test_nobody_waits_for_a_writer_that_failed(
    client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("emotui.core.client.start_child", broken)
    with pytest.raises(EngineError, match="RuntimeError"):
        client.submit(ask("first")).result(30)
    monkeypatch.undo()
    assert answer(client, "again") == "again"


def test_an_event_that_breaks_the_reader_ends_the_wait(
    client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answer(client, "before") == "before"

    def broken(*_arguments: object) -> None:
        raise AttributeError("no such thing")

    monkeypatch.setattr(EngineClient, "_take", broken)
    pending = client.submit(ask("first"))
    with pytest.raises(EngineError, match="AttributeError"):
        pending.result(30)
