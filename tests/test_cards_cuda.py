"""What is asked of `torch.cuda` and made of it; its answers are given, so no GPU is needed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support_models import tiny_model
from torch import nn

from emotui.core.engine import doctor, memory
from emotui.core.engine.memory import Estimate, Weights
from emotui.core.engine.model import resolve_device
from emotui.core.engine.sites import runs_on
from emotui.core.engine.weights import Placement, too_large
from emotui.core.errors import ModelError

GIB = 2**30


class Cuda:
    """Two GPUs of 8 GiB; of the second more is taken."""

    free = (6 * GIB, 2 * GIB)
    reserved = (1 * GIB, 3 * GIB)
    allocated = (GIB // 2, 2 * GIB)
    emptied = 0

    def index(self, device: object = None) -> int:
        if isinstance(device, torch.device):
            return device.index or 0
        return device if isinstance(device, int) else 0

    def empty(self) -> None:
        self.emptied += 1


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    tiny_model("llama")  # on the CPU, before there seems to be anything else
    given = Cuda()
    answers = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 2,
        "get_device_name": lambda device: f"GPU {given.index(device)}",
        "mem_get_info": lambda device=None: (given.free[given.index(device)], 8 * GIB),
        "memory_reserved": lambda device=None: given.reserved[given.index(device)],
        "memory_allocated": lambda device=None: given.allocated[given.index(device)],
        "max_memory_allocated": lambda device=None: 2 * given.allocated[given.index(device)],
        "empty_cache": given.empty,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    return given


def test_devices_that_are_there_are_taken(cuda: Cuda) -> None:
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ModelError, match="sees 2 CUDA devices") as refused:
        resolve_device("cuda:2")
    assert "--device cpu" in refused.value.todo


def test_what_pytorch_keeps_for_itself_is_free(cuda: Cuda) -> None:
    """Blocks that hold nothing now are given out again before any are asked of the driver."""
    for name, number in (("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)):
        device = torch.device(name)
        kept = cuda.reserved[number] - cuda.allocated[number]
        assert memory.free_bytes(device) == cuda.free[number] + kept
        assert memory.held_bytes(device) == cuda.allocated[number]
        assert memory.peak_bytes(device) == 2 * cuda.allocated[number]


def test_memory_of_a_spread_model_is_that_of_each_of_its_devices_once(cuda: Cuda) -> None:
    model = dataclasses.replace(tiny_model("llama"))
    vars(model)["devices"] = tuple(torch.device("cuda", n) for n in (0, 0, 0, 1, 1))
    assert model.over_devices(memory.held_bytes) == sum(cuda.allocated)
    assert model.over_devices(memory.peak_bytes) == 2 * sum(cuda.allocated)


def test_memory_that_is_let_go_is_given_back(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.free_memory()
    assert cuda.emptied == 1
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    memory.free_memory()
    assert cuda.emptied == 1, "nothing is begun on a GPU to give nothing back"


def test_what_would_fit_names_the_other_gpus_and_the_cpu(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = Weights(in_file=40 * GIB, values=10 * GIB, other=0, stored=frozenset({"F32"}))
    placement = Placement(torch.float32, torch.device("cuda"))
    estimate = Estimate(0, (("of weights", 40 * GIB),), cuda.free[0])
    monkeypatch.setattr(memory, "_cgroup_free", lambda: None)
    monkeypatch.setattr(memory, "_limit_free", lambda: None)
    for free, said in ((64 * GIB, True), (8 * GIB, False)):
        monkeypatch.setattr(memory, "_system_free", lambda free=free: free)
        error = too_large("m", weights, placement, estimate)
        assert "40.0 GiB on cuda; 6.0 GiB were free" in error.why.replace("40 GiB", "40.0 GiB")
        assert "--device-map auto spreads it over all GPUs" in error.todo
        assert ("--device cpu has the room" in error.todo) is said
    spread = dataclasses.replace(placement, device_map="auto")
    assert "--device-map" not in too_large("m", weights, spread, estimate).todo


def test_doctor_names_each_gpu_with_its_memory(cuda: Cuda) -> None:
    facts = {name: said for name, said, _ in doctor._devices()}
    assert "GPU 0, 6" in facts["cuda:0"] and "GPU 1, 2" in facts["cuda:1"]


def test_numbers_of_a_device_map_are_gpus() -> None:
    """As accelerate writes them for `auto`: the hook of a module says where it is run."""
    module = nn.Linear(2, 2)
    assert runs_on(module, torch.device("cpu")) == torch.device("cpu")
    module._hf_hook = type("Hook", (), {"execution_device": 1})()
    assert runs_on(module, torch.device("cpu")) == torch.device("cuda:1")
    model = dataclasses.replace(tiny_model("llama"), hf=nn.Module())
    model.hf.hf_device_map = {"embed": 0, "layers.0": 0, "layers.1": 1, "head": "cpu"}
    assert model.spread and model.device_name == "cuda:0+cuda:1+cpu"
