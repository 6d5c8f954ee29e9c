"""Loading: what is chosen, and what is refused with one clear message."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support_models import copied, tiny_folder, tiny_model

from emotui.cache.keys import fingerprint_of_commit, model_fingerprint_of_folder
from emotui.cache.store import Store
from emotui.core.engine.capture import QuietJob
from emotui.core.engine.model import load_model, resolve_device, resolve_dtype
from emotui.core.engine.model_files import check_folder, find_model
from emotui.core.engine.operations import Session, handle
from emotui.core.errors import Cancelled, ModelError, UsageError
from emotui.core.model_names import ALIASES
from emotui.core.protocol import Diagnosed, DoctorRequest, Loaded, LoadRequest, ModelSpec

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _spec(folder: Path, *, dtype: str = "auto") -> ModelSpec:
    return ModelSpec(model=str(folder), dtype=dtype)


def test_a_real_model_is_loaded_as_its_files_say(stories: Path) -> None:
    model = load_model(_spec(stories), QuietJob())
    config = json.loads((stories / "config.json").read_text())
    assert model.architecture == config["model_type"]
    assert model.n_layers == config["num_hidden_layers"] == 5
    assert (model.d_model, model.vocabulary) == (config["hidden_size"], config["vocab_size"])
    assert model.context_length == config["max_position_embeddings"]
    assert (model.dtype, model.device) == (torch.float32, torch.device("cpu"))
    assert model.fingerprint == model_fingerprint_of_folder(stories)
    assert not model.hf.training
    # Tied weights once: SOURCES.md says 260,032 parameters of 4 bytes, the rest are buffers.
    assert 260_032 * 4 <= model.memory_bytes < 260_032 * 4 + 1024


def test_the_weights_in_memory_are_those_of_the_file(stories: Path) -> None:
    model = load_model(_spec(stories), QuietJob())
    weights = load_file(stories / "model.safetensors")
    parameters = dict(model.hf.named_parameters())
    assert len(weights) > 40
    for name, tensor in weights.items():
        assert torch.equal(parameters[name], tensor), name


def test_forwards_are_counted() -> None:
    model = tiny_model("llama")
    before = model.forwards
    logits = model.forward([[2, 10, 11], [2, 12, 13]], keep=2)
    assert logits.shape == (2, 2, model.vocabulary)
    assert not logits.requires_grad
    assert model.forwards == before + 1


def test_a_second_load_of_the_same_spec_does_nothing(cache_dir: Path) -> None:
    session, spec = Session(), _spec(tiny_folder("gpt2"))
    first = handle(LoadRequest(spec=spec, cache_dir=str(cache_dir)), QuietJob(), session)
    assert isinstance(first, Loaded)
    assert first.architecture == "gpt2"
    model = session.model(spec, QuietJob())
    handle(LoadRequest(spec=spec, cache_dir=str(cache_dir)), QuietJob(), session)
    assert session.model(spec, QuietJob()) is model
    # The store remembers the fingerprint, so a copied cache opens without the weights.
    assert session.store(str(cache_dir)).fingerprint(spec.model) == first.fingerprint
    session.close_store()


def test_bfloat16_is_run_and_reported() -> None:
    model = load_model(_spec(tiny_folder("gemma2"), dtype="bfloat16"), QuietJob())
    assert model.dtype_name == "bfloat16"
    logits = model.forward([model.reader.prompt_ids("My dog died.")])
    assert logits.dtype == torch.bfloat16
    exact = tiny_model("gemma2").forward([model.reader.prompt_ids("My dog died.")])
    torch.testing.assert_close(logits.float(), exact, rtol=0, atol=0.1)


def test_auto_dtype() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert resolve_dtype("auto", cpu, half_checkpoint=True) is torch.float32
    assert resolve_dtype("auto", cuda, half_checkpoint=True) is torch.bfloat16
    assert resolve_dtype("auto", cuda, half_checkpoint=False) is torch.float32


@pytest.mark.parametrize("dtype", ["float16", "fp16", "int4", "float32; rm"])
def test_refused_dtypes(dtype: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_dtype(dtype, torch.device("cpu"), half_checkpoint=False)
    assert "float32" in caught.value.todo


def test_absent_and_nonsense_devices() -> None:
    with pytest.raises(UsageError):
        resolve_device("toaster")
    with pytest.raises(ModelError) as caught:
        resolve_device("cuda:99")
    assert "cpu" in caught.value.todo
    with pytest.raises(ModelError):
        resolve_device("meta")


def test_half_checkpoints_are_recognised_by_their_weights(tmp_path: Path) -> None:
    folder = copied(tiny_folder("llama"), tmp_path / "half")
    weights = load_file(folder / "model.safetensors")
    halves = {name: tensor.bfloat16() for name, tensor in weights.items()}
    save_file(halves, folder / "model.safetensors", {"format": "pt"})
    assert check_folder(folder)["half_precision"] is True
    assert check_folder(tiny_folder("llama"))["half_precision"] is False
    assert load_model(_spec(folder), QuietJob()).dtype is torch.float32


def _cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def _drop_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _not_a_number(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _quantised(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 16}
    (folder / "config.json").write_text(json.dumps(config))


def _pickle_as_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"a": 1}, protocol=4) + b" " * 99)


def _zip_as_safetensors(folder: Path) -> None:
    torch.save({"a": torch.ones(3)}, folder / "model.safetensors")


def _only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))


def _lying_shards(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {"x": "model-00001-of-00002.safetensors", "y": "model-00002-of-00002.safetensors"}
    index = {"metadata": {}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _shard_outside(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"x": "../../etc/passwd"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _wrong_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    changed = {"model_type": "nonesuch", "architectures": ["NonesuchForCausalLM"]}
    (folder / "config.json").write_text(json.dumps({**config, **changed}))


def _huge_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}")


def _header_is_no_json(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 8) + b"not json")


def _append(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"xyz")


_DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "config missing": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "config cut short": (lambda f: _cut(f / "config.json", 0.5), "could not be read"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "no JSON object"),
    "config without type": (lambda f: (f / "config.json").write_text("{}"), "model_type"),
    "unknown architecture": (_wrong_type, "nonesuch"),
    "weights missing": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is"),
    "weights cut short": (lambda f: _cut(f / "model.safetensors", 0.9), "cut short"),
    "header cut short": (lambda f: _cut(f / "model.safetensors", 0.001), "cut short"),
    "weights empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "cut short"),
    "weights too long": (_append, "damaged"),
    "huge header": (_huge_header, "cut short"),
    "header no JSON": (_header_is_no_json, "not a safetensors file"),
    "pickle inside": (_pickle_as_safetensors, "pickle"),
    "zip inside": (_zip_as_safetensors, "pickle"),
    "only pickles": (_only_pickles, "pickle"),
    "shard missing": (_lying_shards, "model-00002-of-00002.safetensors is missing"),
    "shard outside": (_shard_outside, "outside the folder"),
    "tensor missing": (_drop_tensor, "up_proj"),
    "not a number": (_not_a_number, "up_proj.weight holds numbers that are not finite"),
    "quantised": (_quantised, "needs a package"),
    "tokenizer missing": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    "tokenizer cut short": (lambda f: _cut(f / "tokenizer.json", 0.5), "tokenizer.json"),
    "tokenizer nonsense": (
        lambda f: (f / "tokenizer.json").write_text('{"model": 3}'),
        "tokenizer",
    ),
}


@pytest.mark.parametrize("name", _DAMAGES)
def test_damaged_folders_are_refused_with_one_message(name: str, tmp_path: Path) -> None:
    damage, said = _DAMAGES[name]
    folder = copied(tiny_folder("llama"), tmp_path / "model")
    damage(folder)
    with pytest.raises(ModelError) as caught:
        load_model(_spec(folder), QuietJob())
    error = caught.value
    assert said in f"{error.what} {error.why}"
    assert error.exit_code == 1
    assert error.what and error.todo
    assert all(len(line) < 400 for line in str(error).splitlines())


def test_a_header_of_640_bytes_is_no_pickle(tmp_path: Path) -> None:
    """Its first bytes, 0x80 0x02, are also those of a pickle."""
    folder = copied(tiny_folder("llama"), tmp_path / "model")
    save_file({"a": torch.ones(2)}, folder / "model.safetensors")
    content = (folder / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = content[8 : 8 + length].ljust(640)
    whole = struct.pack("<Q", 640) + header + content[8 + length :]
    (folder / "model.safetensors").write_bytes(whole)
    assert whole.startswith(b"\x80\x02")
    assert check_folder(folder)["model_type"] == "llama"


def test_code_beside_the_weights_is_never_run(tmp_path: Path) -> None:
    folder = copied(tiny_folder("llama"), tmp_path / "model")
    marker = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Evil: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    load_model(_spec(folder), QuietJob())
    assert not marker.exists()


@pytest.mark.parametrize("name", ["./nope", "/no/such/model", "~/nope-emotui", "a/b/c"])
def test_a_path_that_does_not_exist(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(ModelSpec(model=name), QuietJob())
    assert "no model folder" in caught.value.what


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("x")
    with pytest.raises(ModelError, match="It is a file"):
        load_model(_spec(tmp_path / "model"), QuietJob())


@pytest.mark.parametrize("name", ["not a name!", "--x", "\x1b[31mred", "a..b"])
def test_a_name_that_is_no_hub_id(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(ModelSpec(model=name), QuietJob())
    assert "\x1b" not in str(caught.value)
    assert "gemma-2-2b" in caught.value.todo


def test_a_hub_model_that_is_not_here_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    started = time.monotonic()
    with pytest.raises(ModelError) as caught:
        load_model(ModelSpec(model="gemma-2-2b", offline=True), QuietJob())
    assert time.monotonic() - started < 6
    assert "google/gemma-2-2b" in caught.value.what
    assert "--offline" in caught.value.todo


def _fake_hub(root: Path, hub_id: str, folder: Path) -> None:
    home = root / f"models--{hub_id.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(_COMMIT)
    shutil.copytree(folder, home / "snapshots" / _COMMIT)


def test_a_cached_hub_model_is_loaded_without_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_dir: Path
) -> None:
    hub_id = ALIASES["gpt2-small"]
    _fake_hub(tmp_path, hub_id, tiny_folder("gpt2"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    spec = ModelSpec(model="gpt2-small", offline=True)
    with Store.open(cache_dir) as store:
        model = load_model(spec, QuietJob(), memo=store)
        assert model.revision == _COMMIT
        assert model.fingerprint == fingerprint_of_commit(hub_id, _COMMIT)
        assert store.fingerprint("gpt2-small") == model.fingerprint
    # Without --offline the complete local snapshot is preferred to the network too.
    assert find_model(ModelSpec(model=hub_id)).commit == _COMMIT


def test_an_incomplete_hub_model_offline_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(tiny_folder("gpt2"), tmp_path / "partial")
    (folder / "model.safetensors").unlink()
    _fake_hub(tmp_path / "hub", "someone/partial", folder)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        load_model(ModelSpec(model="someone/partial", offline=True), QuietJob())


def test_cancel_while_loading() -> None:
    class Cancelling(QuietJob):
        def check(self) -> None:
            raise Cancelled("The work was cancelled.")

    with pytest.raises(Cancelled):
        load_model(_spec(tiny_folder("llama")), Cancelling())


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_doctor_finds_hooked_and_plain_runs_alike(family: str) -> None:
    session = Session()
    outcome = handle(DoctorRequest(spec=_spec(tiny_folder(family))), QuietJob(), session)
    assert isinstance(outcome, Diagnosed)
    facts = {name: (value, good) for name, value, good in outcome.facts}
    for name in (
        *("hooked against plain logits", "residual = input + attn + mlp", "numbers", "BOS"),
        "against TransformerLens",
    ):
        assert facts[name][1], f"{name}: {facts[name][0]}"
    assert float(facts["hooked against plain logits"][0]) <= 1e-5
    assert float(facts["against TransformerLens"][0].split()[0]) <= 1e-5
    # The wheel of an index may leave its local part (+cpu) out of its metadata.
    assert facts["torch"][0].split("+")[0] == torch.__version__.split("+")[0]


def test_a_small_model_runs_on_one_cpu_thread() -> None:
    """More threads would only wait for each other, and on a busy machine for a long time."""
    torch.set_num_threads(2)
    load_model(ModelSpec(model=str(tiny_folder("llama"))), QuietJob())
    assert torch.get_num_threads() == 1
