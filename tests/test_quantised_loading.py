"""Loading quantised weights: packages, memory, damaged and quantised files, and what is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support_command import emotui_here
from support_models import copied, tiny_folder
from support_quantised import (
    KINDS,
    TEXT,
    in_float32,
    layers_of,
    needs_bitsandbytes,
    quantised_model,
    rounded,
)
from torch import nn

from emotui.core.client import EngineClient
from emotui.core.engine import memory, weights
from emotui.core.engine.capture import QuietJob, capture
from emotui.core.engine.model import load_model
from emotui.core.engine.model_files import check_folder, weight_headers
from emotui.core.engine.quantised import QuantisedLinear, import_bitsandbytes, with_own_products
from emotui.core.engine.weights import Placement, estimated, too_large
from emotui.core.errors import ModelError, UsageError
from emotui.core.protocol import Inspected, InspectRequest, LoadRequest, ModelSpec

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("package", ["bitsandbytes", "accelerate"])
def test_a_missing_package_is_named_on_the_command_line(
    package: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if package == "accelerate" and needs_bitsandbytes.args[0]:
        pytest.skip("bitsandbytes is missing too, and named first")
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails
    done = emotui_here("inspect", TEXT, "--dtype", kind, "--device", "cpu", cache_dir=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert f"--dtype {kind} needs the package {package}, which is not installed." in done.stderr
    assert "pip install 'emotui[quantised]'" in done.stderr
    assert "Traceback" not in done.stderr


@needs_bitsandbytes
def test_importing_bitsandbytes_fetches_nothing_and_says_nothing(tmp_path: Path) -> None:
    """It asks the package `kernels` for a kernel of the hub, on CPUs with AVX512-BF16."""
    (tmp_path / "kernels.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'asked')!r}).touch()\n"
        "def get_kernel(*words, **named):\n    raise OSError\n"
    )
    program = (
        "import sys, kernels, pathlib\n"
        f"pathlib.Path({str(tmp_path / 'asked')!r}).unlink()\n"
        "mine = sys.modules.pop('kernels') if sys.argv[1] == 'anew' else kernels\n"
        "from emotui.core.engine.quantised import import_bitsandbytes\n"
        "import_bitsandbytes().nn.Linear4bit\n"
        "assert sys.modules.get('kernels') is (None if sys.argv[1] == 'anew' else mine)\n"
    )
    for how in ("anew", "imported"):
        done = subprocess.run(
            [sys.executable, "-c", program, how],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        assert done.stderr == "" and not (tmp_path / "asked").exists()


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_before_they_are_rounded(
    number: float, kind: str, tmp_path: Path
) -> None:
    folder = copied(tiny_folder("llama"), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = number
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="were refused") as caught:
        load_model(ModelSpec(str(folder), dtype=kind, device="cpu"), QuietJob())
    assert "up_proj.weight holds numbers that are not finite" in caught.value.why


def _stored(folder: Path, family: str, **how: Any) -> Path:
    """Write a checkpoint as bitsandbytes and transformers store a quantised one."""
    import_bitsandbytes()
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model = AutoModelForCausalLM.from_pretrained(
        tiny_folder(family),
        dtype=torch.bfloat16,
        quantization_config=BitsAndBytesConfig(**how),
        device_map={"": "cpu"},
    )
    model.save_pretrained(folder)
    for file in tiny_folder(family).glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@needs_bitsandbytes
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_checkpoint_that_is_quantised_already_is_run_as_it_is(
    family: str, tmp_path: Path
) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "int8": {"load_in_8bit": True},
        "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    }
    for name, how in kinds.items():
        folder = _stored(tmp_path / name, family, **how)
        stored = in_float32(load_model(ModelSpec(str(folder), device="cpu"), QuietJob()))
        assert stored.dtype_name == name and layers_of(stored.hf)
        made = in_float32(quantised_model(family, name))
        ids = made.reader.prompt_ids(TEXT)
        torch.testing.assert_close(
            capture(stored, ids).resid, capture(made, ids).resid, rtol=1e-4, atol=1e-4
        )
        # A part of the keys: it cannot be run as anything else.
        for other in {"float32", "bfloat16", *KINDS} - {name}:
            with pytest.raises(UsageError, match=f"stored as {name}; --dtype {other}"):
                load_model(ModelSpec(str(folder), dtype=other, device="cpu"), QuietJob())
        again = load_model(ModelSpec(str(folder), dtype=name, device="cpu"), QuietJob())
        assert again.fingerprint == stored.fingerprint != made.fingerprint


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_scales_that_are_quantised_too_are_read(kind: str, tmp_path: Path) -> None:
    """Double quantisation: scales in 8 bits around their mean, in blocks of 256."""
    how: dict[str, Any] = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": True,
    }
    folder = _stored(tmp_path / "model", "llama", **how)
    model = load_model(ModelSpec(str(folder), device="cpu"), QuietJob())
    assert model.dtype_name == kind
    plain = load_file(tiny_folder("llama") / "model.safetensors")
    for name, layer in layers_of(model.hf).items():
        weight = plain[f"{name}.weight"].bfloat16().float()
        found = layer.weight_in(torch.float32)
        if kind == "fp4":  # coarser where most numbers are
            assert float((found - weight).norm() / weight.norm()) < 0.2
        else:
            expected = rounded(weight, kind)
            assert float((found - expected).norm() / expected.norm()) < 0.02


@needs_bitsandbytes
def test_accelerates_hook_moves_to_the_layer_that_replaces() -> None:
    """What hands tensors from one GPU to the next."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    bnb = import_bitsandbytes()
    model = nn.Sequential(bnb.nn.Linear4bit(64, 32, quant_type="nf4")).to("cpu")
    hook = AlignDevicesHook(execution_device="cpu", io_same_device=True)
    add_hook_to_module(model[0], hook)
    with_own_products(model)
    assert isinstance(model[0], QuantisedLinear)
    assert vars(model[0])["_hf_hook"] is hook and "forward" in vars(model[0])
    assert model(torch.randn(2, 64)).shape == (2, 32)


# ------------------------------------------------------------------------------- memory


def _large_folder(folder: Path, *, shards: str) -> Path:
    """Write a random Llama of 92 million parameters in bfloat16, 184 MB."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        max_position_embeddings=256,
        bos_token_id=2,
        eos_token_id=1,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to_empty(device="cpu").to(torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02, generator=generator)
    model.save_pretrained(folder, max_shard_size=shards)
    for file in tiny_folder("llama").glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@needs_bitsandbytes
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    ("kind", "shards"),
    [
        # On a busy machine the mapped pages of the one file are let go late: a tenth over, once.
        pytest.param("int8", "5GB", marks=pytest.mark.soak),
        ("nf4", "60MB"),
    ],
)
def test_the_peak_of_loading_is_what_was_estimated_and_the_file_is_let_go(
    kind: str, shards: str, tmp_path: Path
) -> None:
    folder = _large_folder(tmp_path / "model", shards=shards)
    size = memory.weights_of(weight_headers(folder), check_folder(folder))
    cache = str(tmp_path / "cache")
    spec = ModelSpec(str(folder), dtype=kind, device="cpu")
    lines: list[str] = []
    with EngineClient(tmp_path / "cache") as client:
        # What a first model makes a process hold is no part of what this one takes.
        small = ModelSpec(str(tiny_folder("llama")), dtype=kind, device="cpu")
        client.submit(InspectRequest(spec=small, text=TEXT, cache_dir=cache)).result(120)
        before = _resident(client.pid)
        loading = client.submit(LoadRequest(spec, cache))
        loading.on_progress(lambda told: lines.append(told.phase) if told.notice else None)
        loading.result(240)
        after = _resident(client.pid)
        done = client.submit(InspectRequest(spec=spec, text=TEXT, cache_dir=cache)).result(240)
    assert isinstance(done, Inspected)
    assert 0.9 * done.estimate_bytes <= done.peak_bytes <= 1.1 * done.estimate_bytes
    assert f"of weights in {kind}" in lines[0] and "of the file" in lines[0]
    # The weights as they are held, and some code: not the file of 166 MiB as well, nor copies.
    held = estimated(size, Placement(torch.bfloat16, CPU, kind), device=CPU).parts[0][1]
    assert after - before < held + 40 * 2**20


def _resident(pid: int | None) -> int:
    with FileIO(f"/proc/{pid}/status") as file:
        lines = file.readall().decode().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_quantised_weights_are_named_where_they_would_fit(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedding is never quantised; on the CPU the file counts while it is converted."""
    million = 10**6
    size = memory.Weights(
        in_file=2400 * million,
        values=1200 * million,
        other=0,
        stored=frozenset({"BF16"}),
        linear=1000 * million,
        largest_linear=million,
        file_of_embedding=400 * million,
    )
    placement = Placement(torch.bfloat16, torch.device(device))
    monkeypatch.setattr(memory, "held_bytes", lambda _device: 0)
    monkeypatch.setattr(memory, "free_bytes", lambda _device: 0)
    needed = {}
    for kind in KINDS:
        quantised = Placement(torch.bfloat16, torch.device(device), kind)
        needed[kind] = estimated(size, quantised, device=torch.device(device)).added
    # 5 bytes a number of the largest matrix are for copies.
    copies = 5 * million if device == "cpu" else 0
    assert needed["int8"] - needed["nf4"] == (1 - 0.5625) * 1000 * million - copies
    assert needed["nf4"] > (0.5625 * 1000 + 2 * 200) * million - 1
    for installed in (True, False):
        monkeypatch.setattr(weights, "find_spec", {"bitsandbytes": installed or None}.get)
        for free in (needed["nf4"], needed["int8"]):
            monkeypatch.setattr(memory, "free_bytes", lambda _device, free=free: free)
            estimate = estimated(size, placement, device=torch.device(device))
            told = too_large("m", size, placement, estimate).todo
            assert ("--dtype nf4" in told) is installed
            assert ("--dtype int8" in told) is (installed and free == needed["int8"])
