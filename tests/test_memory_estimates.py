"""Memory: estimates against what is really held, SAEs under a budget, and running out of it."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support_models import WIDTH, tiny_folder, tiny_model

from emotui.core.client import EngineClient
from emotui.core.engine import memory, weights
from emotui.core.engine.capture import QuietJob
from emotui.core.engine.model import load_model
from emotui.core.engine.model_files import check_folder, weight_headers
from emotui.core.engine.sites import SITE_TABLES
from emotui.core.errors import OutOfMemory, UsageError
from emotui.core.protocol import Inspected, InspectRequest, LoadRequest, ModelSpec
from emotui.core.sizes import bytes_of, in_bytes, in_time

LINUX = Path("/proc/self/status").exists()
on_linux = pytest.mark.skipif(not LINUX, reason="memory of a process is read from /proc")
TEXT = "My dog died last week, and the house is very quiet now."
FEATURES = 163_840
ONE = 2 * WIDTH * FEATURES * 4


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("8GiB", 8 * 2**30),
        ("500 MB", 500_000_000),
        ("1.5g", 3 * 2**29),
        ("1048576B", 2**20),
        ("64KiB", 2**16),
    ],
)
def test_sizes_are_read(text: str, count: int) -> None:
    assert bytes_of(text) == count


@pytest.mark.parametrize(
    "text", ["", "eight", "-1GiB", "0", "0GiB", "5 parsecs", "1e9", "8GiB; rm"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no size"):
        bytes_of(text)


def test_a_number_without_a_unit_is_no_size() -> None:
    """`--sae-memory 5` would hold the SAEs to five bytes, where five gigabytes were meant."""
    with pytest.raises(UsageError, match="no size: it has no unit") as caught:
        bytes_of("5")
    assert caught.value.todo == "Give one: 5GiB, 5MiB, or 5B for bytes."


def test_sizes_and_times_are_written() -> None:
    assert [in_bytes(n) for n in (999, 2**20, 302 * 2**20, 5.2 * 2**30)] == [
        "999 bytes",
        "1.0 MiB",
        "302 MiB",
        "5.2 GiB",
    ]
    assert [in_time(n) for n in (0.2, 40, 720, 6000)] == ["1 s", "40 s", "12 min", "1.7 h"]


@pytest.mark.parametrize("family", tuple(SITE_TABLES))
def test_headers_tell_the_bytes_of_the_weights(family: str) -> None:
    """Counted from the files alone, as many bytes as the parameters that PyTorch then holds."""
    folder = tiny_folder(family)
    weights = memory.weights_of(weight_headers(folder), check_folder(folder))
    unique = {p.data_ptr(): p.nbytes for p in tiny_model(family).hf.parameters()}
    assert weights.in_memory(4) == sum(unique.values())
    assert weights.in_memory(2) == sum(unique.values()) // 2


def test_free_memory_is_what_the_tightest_limit_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "_cgroup_free", lambda: 700)
    assert memory.free_bytes(cpu) == 700
    monkeypatch.setattr(memory, "_cgroup_free", lambda: -5)
    assert memory.free_bytes(cpu) == 0
    for name in ("_cgroup_free", "_system_free", "_limit_free"):
        monkeypatch.setattr(memory, name, lambda: None)
    assert memory.free_bytes(cpu) == memory.UNKNOWN_FREE


def test_a_control_group_counts_what_it_caches_as_free(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 500\nactive_file 250\n")
    assert memory._left_in(str(tmp_path), "memory.max", "memory.current") == [850]
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._left_in(str(tmp_path), "memory.max", "memory.current") == []


# ------------------------------------------------------------------- a real engine, measured


@pytest.fixture(scope="module")
def large_saes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Eight SAEs of 60 MiB, two for each layer of a tiny model, in two folders."""
    root = tmp_path_factory.mktemp("large")
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(FEATURES, WIDTH, generator=generator) / WIDTH**0.5
    tensors = {
        "W_enc": rows.T.contiguous(),
        "W_dec": rows,
        "b_enc": torch.full((FEATURES,), -1.0),
        "b_dec": torch.zeros(WIDTH),
    }
    for hook in ("hook_resid_post", "hook_mlp_out"):
        for layer in range(4):
            folder = root / f"{hook}_{layer}"
            folder.mkdir()
            save_file(tensors, folder / "sae_weights.safetensors")
            config = {"architecture": "standard", "d_in": WIDTH, "d_sae": FEATURES}
            config |= {"metadata": {"hook_name": f"blocks.{layer}.{hook}", "prepend_bos": True}}
            (folder / "cfg.json").write_text(json.dumps(config))
    yield root
    for file in root.rglob("*.safetensors"):
        file.unlink()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[EngineClient]:
    with EngineClient(tmp_path / "cache") as client:
        yield client


def _told(pid: int, name: str) -> int:
    told = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert told is not None
    return 1024 * int(told.group(1))


def _request(tmp_path: Path, **named: Any) -> InspectRequest:
    spec = ModelSpec(str(tiny_folder("gemma2")), sae_memory=named.pop("sae_memory", None))
    named = {"text": TEXT, "cache_dir": str(tmp_path / "cache"), **named}
    return InspectRequest(spec=spec, **named)


@on_linux
def test_walking_all_saes_with_room_for_two_keeps_to_the_estimate(
    tmp_path: Path, large_saes: Path, client: EngineClient
) -> None:
    """Eight SAEs of 60 MiB; the peak of the process, as Linux counts it, is within 10 %."""
    plain = client.submit(_request(tmp_path, sae_memory=2 * ONE)).result(120)
    assert isinstance(plain, Inspected) and client.pid is not None
    before = _told(client.pid, "VmHWM")
    lines: list[str] = []
    request = _request(tmp_path, sae_memory=2 * ONE, saes=(str(large_saes),))
    pending = client.submit(request)
    pending.on_progress(lambda told: lines.append(told.phase) if told.notice else None)
    done = pending.result(120)
    assert isinstance(done, Inspected)
    peak = _told(client.pid, "VmHWM")
    assert peak == pytest.approx(done.peak_bytes, rel=0.02)
    assert 0.9 * done.estimate_bytes <= peak <= 1.1 * done.estimate_bytes
    assert peak - before < 4 * ONE  # never all eight
    # The user was told before, in one line.
    assert len(lines) == 1
    assert f"{in_bytes(2 * ONE)} of SAEs (8 to read, {in_bytes(8 * ONE)} in all)" in lines[0]


@on_linux
def test_an_sae_that_does_not_fit_is_named_and_the_session_goes_on(
    tmp_path: Path, large_saes: Path, client: EngineClient
) -> None:
    """A real limit on the engine's memory, so that the allocation itself fails."""
    first = client.submit(_request(tmp_path)).result(120)
    pid = client.pid
    assert isinstance(first, Inspected) and pid is not None
    soft, hard = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (_told(pid, "VmSize") + ONE // 2, hard))
    with_saes = _request(tmp_path, saes=(str(large_saes),))
    with pytest.raises(OutOfMemory) as caught:
        client.submit(with_saes).result(120)
    error = caught.value
    assert "not enough memory for the SAE" in error.what and "hook" not in error.what
    assert f"{in_bytes(ONE)} in float32" in error.why and "163,840 features" in error.why
    assert "--dtype bfloat16" in error.todo and "features (--sae RELEASE:ID" in error.todo
    assert client.pid == pid
    again = client.submit(_request(tmp_path)).result(60)
    assert isinstance(again, Inspected)
    assert (again.trace_id, again.cached) == (first.trace_id, True)
    resource.prlimit(pid, resource.RLIMIT_AS, (soft, hard))
    done = client.submit(with_saes).result(120)
    assert isinstance(done, Inspected) and client.pid == pid


@on_linux
def test_a_model_that_cannot_fit_is_refused_before_it_is_read(
    tmp_path: Path, client: EngineClient
) -> None:
    first = client.submit(_request(tmp_path)).result(120)
    pid = client.pid
    assert isinstance(first, Inspected) and pid is not None
    folder = _large_model(tmp_path / "large", 200)
    soft, hard = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (_told(pid, "VmSize") + 150 * 2**20, hard))
    lines: list[str] = []
    pending = client.submit(LoadRequest(ModelSpec(str(folder)), str(tmp_path / "cache")))
    pending.on_progress(lambda told: lines.append(told.phase) if told.notice else None)
    with pytest.raises(OutOfMemory) as caught:
        pending.result(120)
    assert caught.value.what == "There was not enough memory to load large in float32."
    assert "200 MiB" in caught.value.why and "were free" in caught.value.why
    # Address space is not memory: what was free there says little by itself.
    assert "of address space that this process may use (`ulimit -v`)" in caught.value.why
    assert "--dtype bfloat16 takes 100 MiB" in caught.value.todo
    assert "200 MiB of weights in float32" in lines[0] and "free" in lines[0]
    resource.prlimit(pid, resource.RLIMIT_AS, (soft, hard))
    again = client.submit(_request(tmp_path)).result(60)
    assert isinstance(again, Inspected) and again.cached and client.pid == pid


def _large_model(folder: Path, mebibytes: int) -> Path:
    """Copy a tiny model with an embedding grown until all of it has that size."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    small = tiny_folder("gemma2")
    config = Gemma2Config.from_pretrained(small)
    rest = memory.weights_of(weight_headers(small), check_folder(small)).values - 512 * WIDTH
    config.vocab_size = (mebibytes * 2**18 - rest) // WIDTH
    Gemma2ForCausalLM(config).save_pretrained(folder)
    for file in small.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize(
    "problem",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("unable to mmap 64 bytes: Cannot allocate memory (12)"),
    ],
    ids=["python", "cuda", "cpu", "mmap"],
)
def test_any_kind_of_out_of_memory_says_what_was_loaded_and_what_fits(
    problem: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    def fail(*_arguments: object, **_named: object) -> object:
        raise problem

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(OutOfMemory) as caught:
        load_model(ModelSpec(str(tiny_folder("llama"))), QuietJob())
    assert "load llama in float32" in caught.value.what
    assert "--dtype bfloat16" in caught.value.todo
    with pytest.raises(OutOfMemory) as caught:
        load_model(ModelSpec(str(tiny_folder("llama")), dtype="bfloat16"), QuietJob())
    assert "--dtype int8" in caught.value.todo and "--dtype nf4" in caught.value.todo
    monkeypatch.setattr(weights, "find_spec", lambda _package: None)  # nothing that quantises
    with pytest.raises(OutOfMemory) as caught:
        load_model(ModelSpec(str(tiny_folder("llama")), dtype="bfloat16"), QuietJob())
    assert "smaller model" in caught.value.todo


def test_a_text_that_does_not_fit_says_how_many_tokens_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emotui.core.engine import inspect as inspecting
    from emotui.core.engine.operations import Session, handle

    def fail(*_arguments: object, **_named: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    session = Session()
    kept = handle(_request(tmp_path), QuietJob(), session)
    with monkeypatch.context() as patched:
        patched.setattr(inspecting, "activations_of", fail)
        with pytest.raises(OutOfMemory) as caught:
            handle(_request(tmp_path, text="Lily was sad."), QuietJob(), session)
    assert re.search(r"read these \d+ tokens", caught.value.what)
    assert "tokens would fit" in caught.value.todo and "--dtype bfloat16" in caught.value.todo
    again = handle(_request(tmp_path), QuietJob(), session)
    assert isinstance(kept, Inspected) and isinstance(again, Inspected)
    assert (again.trace_id, again.cached) == (kept.trace_id, True)
    session.close_store()


@pytest.mark.parametrize("how", ["no room for the graph", "the allocator failed"])
def test_a_trace_does_without_attribution_where_the_graph_does_not_fit(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emotui.core.engine import attributor
    from emotui.core.engine.operations import Session, handle

    def fail(*_arguments: object, **_named: object) -> object:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    if how == "the allocator failed":
        monkeypatch.setattr(attributor, "gradients", fail)
    else:
        monkeypatch.setattr(attributor, "free_bytes", lambda _device: 1000)
    session = Session()
    done = handle(_request(tmp_path), QuietJob(), session)
    assert isinstance(done, Inspected)
    trace = session.store(str(tmp_path / "cache")).get_trace(done.trace_id)
    session.close_store()
    assert trace.answer is not None and trace.attribution is not None
    assert trace.attribution.value is None
    assert "not enough memory for the backward pass" in trace.attribution.note
