"""The real engine behind the real client: torch after the hello, load, inspect, cancel, recover."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support_process import ask, fake_client, runs, wait_until

from emotui.cache.store import Store
from emotui.core.client import EngineClient
from emotui.core.errors import Cancelled, EngineError, ModelError, TextError
from emotui.core.protocol import (
    Done,
    Event,
    Generated,
    GenerateRequest,
    Hello,
    Inspected,
    InspectRequest,
    Loaded,
    LoadRequest,
    ModelSpec,
    Progress,
    ShutdownRequest,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine") / "cache"


@pytest.fixture(scope="module")
def events() -> list[Event]:
    return []


@pytest.fixture(scope="module")
def client(root: Path, events: list[Event]) -> Iterator[EngineClient]:
    with EngineClient(root, on_event=events.append, offline=True) as client:
        yield client


@pytest.fixture
def spec(stories: Path) -> ModelSpec:
    return ModelSpec(model=str(stories))


def has_torch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc")
def test_the_hello_comes_before_torch_and_torch_without_a_request(client: EngineClient) -> None:
    hello = client.wait_until_ready(30)
    assert not has_torch(hello.pid)
    assert wait_until(lambda: has_torch(hello.pid), 60)


def test_a_model_is_loaded_with_progress(
    client: EngineClient, events: list[Event], spec: ModelSpec, root: Path
) -> None:
    loaded = client.submit(LoadRequest(spec, str(root))).result(90)
    assert isinstance(loaded, Loaded)
    assert (loaded.layers, loaded.d_model, loaded.dtype) == (5, 64, "float32")
    assert any(isinstance(event, Progress) for event in events)
    assert isinstance(events[0], Hello)


def test_a_text_is_inspected_and_its_trace_is_there(
    client: EngineClient, spec: ModelSpec, root: Path
) -> None:
    request = InspectRequest(spec=spec, text="Lily was sad.", cache_dir=str(root))
    first = client.submit(request).result(90)
    again = client.submit(request).result(90)
    assert isinstance(first, Inspected) and isinstance(again, Inspected)
    assert (first.cached, first.forwards > 0) == (False, True)
    assert (again.trace_id, again.cached, again.forwards) == (first.trace_id, True, 0)
    with Store.open(root) as store:
        assert store.get_trace(first.trace_id).text.raw == "Lily was sad."


def test_the_errors_of_operations_arrive_as_they_are(
    client: EngineClient, spec: ModelSpec, root: Path, tmp_path: Path
) -> None:
    with pytest.raises(TextError):
        client.submit(InspectRequest(spec=spec, text=" ", cache_dir=str(root))).result(90)
    nowhere = ModelSpec(model=str(tmp_path / "nowhere"))
    with pytest.raises(ModelError):
        client.submit(LoadRequest(nowhere, str(root))).result(90)


def test_a_generation_is_cancelled_between_tokens(client: EngineClient, spec: ModelSpec) -> None:
    request = GenerateRequest(spec=spec, text="Once upon a time", new_tokens=400)
    client.submit(GenerateRequest(spec=spec, text="Once", new_tokens=2)).result(90)
    pid = client.pid
    pending = client.submit(request)
    time.sleep(0.1)
    begun = time.monotonic()
    pending.cancel()
    with pytest.raises(Cancelled):
        pending.result(30)
    assert time.monotonic() - begun < 3.0
    spoken = client.submit(GenerateRequest(spec=spec, text="Once", new_tokens=2)).result(90)
    assert isinstance(spoken, Generated) and len(spoken.tokens) == 2
    assert client.pid == pid


def test_after_a_kill_the_next_request_has_an_engine_and_the_work_is_there(
    client: EngineClient, spec: ModelSpec, root: Path
) -> None:
    request = InspectRequest(spec=spec, text="Lily was sad.", cache_dir=str(root))
    client.submit(request).result(90)
    pid = client.wait_until_ready(30).pid
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: client.pid is None)
    found = client.submit(request).result(90)
    assert isinstance(found, Inspected) and (found.cached, found.forwards) == (True, 0)
    assert client.submit(ShutdownRequest()).result(30) == Done()
    assert wait_until(lambda: not runs(pid))


def test_a_request_is_cancelled_while_torch_is_imported(tmp_path: Path, spec: ModelSpec) -> None:
    with EngineClient(tmp_path / "cache") as client:
        client.wait_until_ready(30)
        pending = client.submit(LoadRequest(spec, str(tmp_path / "cache")))
        time.sleep(0.3)
        begun = time.monotonic()
        pending.cancel()
        with pytest.raises(Cancelled):
            pending.result(30)
        assert time.monotonic() - begun < 3.0


def test_torch_out_of_memory_is_told_and_outlived(cache_dir: Path) -> None:
    with fake_client(cache_dir) as client:
        pid = client.wait_until_ready(30).pid
        for text in ("tensor", "device"):
            with pytest.raises(EngineError) as caught:
                client.submit(ask(text)).result(60)
            assert "not enough memory" in caught.value.what
            assert "--dtype" in caught.value.todo
        assert client.submit(ask("again")).result(30) == Inspected("again", False, 1, 0.0)
        assert client.pid == pid
