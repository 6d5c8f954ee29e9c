"""The whole way on CUDA: inspect, edit, resume, write, and memory as PyTorch counts it there."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from support_models import LAYERS, WIDTH, tiny_folder
from support_saes import write_residual_saes
from transformers import AutoModelForCausalLM

from emotui.core.engine import statistics
from emotui.core.engine.capture import Hook, QuietJob, capture
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.operations import Session, handle
from emotui.core.engine.rerun import adding, rerun
from emotui.core.engine.saes import load_saes
from emotui.core.engine.sites import SITE_TABLES
from emotui.core.engine.speak import generate
from emotui.core.errors import ModelError
from emotui.core.protocol import Inspected, InspectRequest, ModelSpec
from emotui.core.records import Trace

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
]
TEXT = "My dog died last week, and the house is very quiet now."
FAMILIES = ("gemma2", "gpt2", "llama")


def _model(family: str, device_map: str | None = None) -> LoadedModel:
    folder = str(tiny_folder(family))
    spec = ModelSpec(folder, device="cuda", dtype="float32", device_map=device_map)
    return load_model(spec, QuietJob())


def _inspected(session: Session, tmp_path: Path, device: str, saes: Path, *edits: str) -> Trace:
    request = InspectRequest(
        spec=ModelSpec(str(tiny_folder("gemma2")), device=device, dtype="float32"),
        text=TEXT,
        cache_dir=str(tmp_path / "cache"),
        saes=(str(saes),),
        edits=edits,
    )
    done = handle(request, QuietJob(), session)
    assert isinstance(done, Inspected)
    if device == "cuda":
        assert 0 < done.peak_bytes == torch.cuda.max_memory_allocated()
    return session.store(request.cache_dir).get_trace(done.trace_id)


def test_a_trace_and_an_edit_are_those_of_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = statistics.statistics_texts()[:24]
    monkeypatch.setattr(statistics, "statistics_texts", lambda: few)
    saes = write_residual_saes(tmp_path / "saes", d_in=WIDTH, layers=LAYERS)
    session = Session()
    plain = _inspected(session, tmp_path, "cuda", saes)
    edit = f"ablate L1/{plain.features.index[plain.features.layer.index(1)]} at all"
    traces = {
        device: [
            _inspected(session, tmp_path, device, saes),
            _inspected(session, tmp_path, device, saes, edit),
        ]
        for device in ("cuda", "cpu")
    }
    session.close_store()
    for on_gpu, on_cpu in zip(traces["cuda"], traces["cpu"], strict=True):
        assert on_gpu.run.device.startswith("cuda") and on_cpu.run.device == "cpu"
        assert on_gpu.answer is not None and on_cpu.answer is not None
        assert on_gpu.answer.labels == pytest.approx(on_cpu.answer.labels, rel=1e-3)
        activations = [
            dict(
                zip(
                    zip(f.layer, f.index, f.position, strict=True),
                    f.activation,
                    strict=True,
                )
            )
            for f in (on_gpu.features, on_cpu.features)
        ]
        both = activations[0].keys() & activations[1].keys()
        assert len(both) > 0.95 * len(activations[1])
        for row in both:
            assert activations[0][row] == pytest.approx(activations[1][row], abs=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_resuming_equals_a_full_run(family: str) -> None:
    model = _model(family)
    ids = model.reader.prompt_ids(TEXT)
    delta = torch.randn(1, len(ids), model.d_model, device="cuda")
    clean = capture(model, ids)
    rows = rerun(model, clean.at("resid", 0), start=1, n_rows=1, hooks=adding(delta, "resid", 1))
    full = capture(model, ids, hooks=[Hook("resid", 1, lambda h: h + delta)])
    torch.testing.assert_close(rows.logits[0], full.logits, rtol=0, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_writing_is_as_on_the_cpu(family: str) -> None:
    on_gpu = _model(family)
    on_cpu = load_model(ModelSpec(str(tiny_folder(family)), device="cpu"), QuietJob())
    ids = on_gpu.reader.prompt_ids(TEXT)
    assert generate(on_gpu, ids, new_tokens=8) == generate(on_cpu, ids, new_tokens=8)


def test_a_seed_draws_the_same_as_on_the_cpu() -> None:
    """Of the same probabilities: draws are made on the CPU."""
    on_gpu = _model("llama")
    ids = on_gpu.reader.prompt_ids(TEXT)
    on_cpu = load_model(ModelSpec(str(tiny_folder("llama")), device="cpu"), QuietJob())
    written = [
        generate(model, ids, new_tokens=8, temperature=0.8, seed=3) for model in (on_gpu, on_cpu)
    ]
    assert written[0] == written[1]


def test_a_device_map_runs_and_equals_one_device() -> None:
    spread = _model("llama", device_map="auto")
    ids = spread.reader.prompt_ids(TEXT)
    one = capture(_model("llama"), ids)
    torch.testing.assert_close(capture(spread, ids).logits, one.logits, rtol=0, atol=1e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="PyTorch sees no two CUDA devices")
@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_live_on_the_gpu_of_their_layer(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two GPUs, the blocks in halves: a tiny model that accelerate would leave on one."""
    whole = _model(family)
    table = SITE_TABLES[family]
    path = table.blocks.split(".")
    places = {}
    for depth in range(len(path)):
        above = ".".join(path[:depth])
        for name, _ in whole.hf.get_submodule(above).named_children():
            places[f"{above}.{name}" if above else name] = 0
        del places[".".join(path[: depth + 1])]
    places |= {f"{table.blocks}.{n}": int(n >= LAYERS // 2) for n in range(LAYERS)}
    places[table.final_norm] = 1
    load = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM,
        "from_pretrained",
        lambda folder, **named: load(folder, **{**named, "device_map": places}),
    )
    spread = _model(family, device_map="auto")
    assert spread.device_name == "cuda:0+cuda:1"
    ids = spread.reader.prompt_ids(TEXT)
    run, same = capture(spread, ids, all_sites=True), capture(whole, ids, all_sites=True)
    torch.testing.assert_close(run.logits.cpu(), same.logits.cpu(), rtol=0, atol=1e-3)
    saes = load_saes(str(write_residual_saes(tmp_path, d_in=WIDTH, layers=LAYERS)), spread)
    for sae in saes:
        on = torch.device("cuda", int(sae.layer >= LAYERS // 2))
        h = run.at("resid", sae.layer)
        assert {h.device, sae.weights.encoder.device, sae.encode(h).device} == {on}
        torch.testing.assert_close(h.cpu(), same.at("resid", sae.layer).cpu(), rtol=0, atol=1e-3)


def test_quantised_weights_are_run_or_their_package_is_named() -> None:
    spec = ModelSpec(str(tiny_folder("llama")), device="cuda", dtype="int8")
    if find_spec("bitsandbytes") is None:
        with pytest.raises(ModelError, match="bitsandbytes"):
            load_model(spec, QuietJob())
        return
    model = load_model(spec, QuietJob())
    assert model.dtype_name == "int8"
    logits = capture(model, model.reader.prompt_ids(TEXT)).logits
    assert bool(torch.isfinite(logits).all())
