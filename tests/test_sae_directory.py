"""SAEs by name: the directory without SAELens, formats that are converted, what is refused."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from support_models import WIDTH, tiny_model
from support_saes import write_sae

from emotui.cache.fingerprints import sae_identity
from emotui.cache.store import Store
from emotui.commands.models import sae_sources
from emotui.core import sae_directory
from emotui.core.engine.capture import capture
from emotui.core.engine.model import LoadedModel
from emotui.core.engine.saes import load_saes
from emotui.core.errors import SaeError
from emotui.core.model_names import ALIASES, base_name, near_names, same_family
from emotui.core.sae_directory import (
    DEFAULTS,
    PretrainedSae,
    Release,
    chosen,
    default_source,
    directory,
    layer_of,
    releases_for,
    width_of,
)

TEXT = "My dog died last week, and the house is very quiet now."
FEATURES = 96
Arrays = dict[str, Any]


def arrays_of(seed: int = 0, *, d_in: int = WIDTH, width: int = FEATURES) -> Arrays:
    random = np.random.default_rng(seed)
    whole = {
        "W_enc": random.normal(0, 0.3, (d_in, width)),
        "W_dec": random.normal(0, 0.3, (width, d_in)),
        "b_enc": random.normal(0, 0.1, width),
        "b_dec": random.normal(0, 0.1, d_in),
        "threshold": random.uniform(0, 0.2, width),
    }
    return {name: array.astype(np.float32) for name, array in whole.items()}


def npz(arrays: Arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.fixture
def model() -> LoadedModel:
    return tiny_model("gemma2")


@pytest.fixture
def from_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., LoadedModel]:
    """Give the tiny model a hub id, and files to the local Hugging Face cache."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = "f" * 40

    def make(hub_id: str, repository: str = "", files: dict[str, bytes] | None = None) -> Any:
        if repository:
            home = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
            (home / "refs").mkdir(parents=True)
            (home / "refs" / "main").write_text(commit)
            for name, content in (files or {}).items():
                path = home / "snapshots" / commit / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        return replace(tiny_model("gemma2"), hub_id=hub_id)

    return make


def test_the_directory_is_that_of_saelens_and_needs_neither_it_nor_torch() -> None:
    code = (
        "import sys; from emotui.core.sae_directory import directory\n"
        "d = directory()\n"
        "assert not {'torch', 'sae_lens', 'transformers'} & set(sys.modules)\n"
        "print(len(d), sum(len(r.saes) for r in d.values()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lookup = pytest.importorskip("sae_lens.loading.pretrained_saes_directory")
    theirs = lookup.get_pretrained_saes_directory()
    counts = f"{len(theirs)} {sum(len(one.saes_map) for one in theirs.values())}"
    assert done.stdout.strip() == counts
    for name, release in directory().items():
        assert (release.repository, release.model) == (theirs[name].repo_id, theirs[name].model)
        assert {one.id: one.path for one in release.saes} == theirs[name].saes_map


@pytest.mark.parametrize("model", DEFAULTS)
def test_defaults_name_one_sae_a_layer(model: str) -> None:
    release, saes = chosen(DEFAULTS[model])
    layers = [layer_of(one.id) for one in saes]
    assert set(layers) == set(range(len(saes))) and len(layers) == len(saes)
    assert base_name(release.model) == model
    assert release.readable


def test_what_a_source_means() -> None:
    name = "gemma-scope-2b-pt-res-canonical"
    _, alone = chosen(name)
    _, patterned = chosen(f"{name}:layer_*/width_16k/canonical")
    assert alone == patterned
    assert len(alone) == 26
    _, one = chosen(f"{name}:layer_3/width_65k/canonical")
    assert [sae.id for sae in one] == ["layer_3/width_65k/canonical"]
    assert [width_of(f"width_{text}") for text in ("16k", "65k", "262k", "1m")] == [
        2**14,
        2**16,
        2**18,
        2**20,
    ]
    assert default_source("google/gemma-2-2b") == default_source("gemma-2-2b")
    assert default_source("gpt2-small") == DEFAULTS["gpt2"]
    assert default_source("/a/folder/of/mine") is None
    assert [one.readable for one in releases_for("gemma-2-2b")][:6] == [True] * 6


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("gemma-scope-2b-pt-rez-canonical", "gemma-scope-2b-pt-res-canonical"),
        ("gemma-scope-2b-pt-res-canonical:layer_3/width_17k/canonical", "layer_3/width_16k"),
        ("gemma-scope-2-4b-pt-att", "does not read"),
        ("gemma-scope-2b-pt-transcoders", "does not read"),
        ("temporal-sae-gemma-2-2b", "temporal"),
        ("\x1b[31mnothing-like-it", "neither a folder here"),
    ],
)
def test_unknown_and_unreadable_sources(source: str, said: str) -> None:
    with pytest.raises(SaeError) as caught:
        chosen(source)
    assert said in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert caught.value.todo


def test_names_of_models() -> None:
    assert all(alias == alias.lower() for alias in ALIASES)
    assert base_name("google/gemma-2-2b") == base_name("gemma-2-2b") == "gemma-2-2b"
    assert same_family("gemma-2-2b", "google/gemma-2-2b-it")
    assert same_family("gpt2-small", "openai-community/gpt2")
    assert not same_family("gemma-2-2b", "google/gemma-2-9b")
    assert near_names("meta-lama/Llama-3.2-1B", ALIASES.values())[0] == ALIASES["llama-3.2-1b"]


def test_saes_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    def sources(model: str, *named: str, offline: bool = False) -> tuple[str, ...]:
        return sae_sources(model, named, offline=offline, cache_dir=tmp_path)

    assert sources("gemma-2-2b") == (DEFAULTS["gemma-2-2b"],)
    assert sources("gemma-2-2b", "none") == ()
    assert sources("gemma-2-2b", "a", "b") == ("a", "b")
    assert sources("someone/else") == ()
    assert sources("gemma-2-2b", offline=True) == ()
    (tmp_path / "saes" / "gemma-scope-2b-pt-res-canonical").mkdir(parents=True)
    assert sources("gemma-2-2b", offline=True) == (DEFAULTS["gemma-2-2b"],)


def test_a_local_npz_is_read_as_saelens_reads_it(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loader of SAELens is given the same file; its encode must equal ours to the bit."""
    arrays = arrays_of()
    place = "layer_2/width_16k/average_l0_7"
    file = tmp_path / "gemma-scope-2b-pt-res" / place / "params.npz"
    file.parent.mkdir(parents=True)
    file.write_bytes(npz(arrays))
    h = capture(model, model.reader.prompt_ids(TEXT)).at("resid", 2)

    loaders = pytest.importorskip("sae_lens.loading.pretrained_sae_loaders")
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig

    monkeypatch.setattr(loaders, "hf_hub_download", lambda **_named: str(file))
    config, state, _ = loaders.gemma_2_sae_huggingface_loader("google/gemma-scope-2b-pt-res", place)
    theirs = JumpReLUSAE(JumpReLUSAEConfig(d_in=WIDTH, d_sae=FEATURES, apply_b_dec_to_input=False))
    theirs.load_state_dict(state)
    assert config["hook_name"] == "blocks.2.hook_resid_post"

    for source in (file, tmp_path / "gemma-scope-2b-pt-res", file.parent):
        saes = load_saes(str(source), model, root=tmp_path / "cache")
        assert saes.places == [("resid", 2)]
        ours = saes.get("resid", 2)
        with torch.no_grad():
            assert torch.equal(ours.encode(h), theirs.encode(h))
            assert torch.equal(ours.decode(ours.encode(h)), theirs.decode(theirs.encode(h)))
        assert 0 < int((ours.encode(h) > 0).sum()) < h.shape[0] * FEATURES
    converted = list((tmp_path / "cache" / "saes").rglob("sae_weights.safetensors"))
    assert len(converted) == 1, "converted once"
    assert torch.equal(load_file(converted[0])["W_enc"], torch.from_numpy(arrays["W_enc"]))


def test_an_npz_is_converted_in_the_dtype_of_the_run(model: LoadedModel, tmp_path: Path) -> None:
    file = tmp_path / "my-scope-mlp" / "layer_1" / "params.npz"
    file.parent.mkdir(parents=True)
    file.write_bytes(npz(arrays_of()))
    low = replace(model, dtype=torch.bfloat16)
    sae = load_saes(str(file), low, root=tmp_path / "cache").get("mlp", 1)
    assert sae.weights.encoder.dtype == torch.bfloat16
    (converted,) = (tmp_path / "cache").rglob("sae_weights.safetensors")
    assert {tensor.dtype for tensor in load_file(converted).values()} == {torch.bfloat16}


def _object_array() -> bytes:
    return npz({**arrays_of(), "b_enc": np.array([{"a": 1}] * FEATURES, dtype=object)})


_BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "a pickle inside": (_object_array, "pickle"),
    "cut short": (lambda: npz(arrays_of())[:-200], "damaged"),
    "no zip": (lambda: b"nothing of the kind", "pickle|damaged"),
    "empty": (lambda: b"", "damaged"),
    "a missing array": (
        lambda: npz({n: a for n, a in arrays_of().items() if n != "threshold"}),
        "no threshold",
    ),
    "NaN": (lambda: npz({**arrays_of(), "b_enc": np.full(FEATURES, np.nan)}), "not finite"),
    "whole numbers": (lambda: npz({**arrays_of(), "b_enc": np.zeros(FEATURES, int)}), "not finite"),
    "widths apart": (lambda: npz({**arrays_of(), "b_dec": np.zeros(3)}), r"b_dec is \[3\]"),
    "of another model": (lambda: npz(arrays_of(d_in=2304)), "width 2304; the model's have 48"),
}


@pytest.mark.parametrize("name", _BROKEN)
def test_broken_npz_files_are_refused(name: str, model: LoadedModel, tmp_path: Path) -> None:
    make, said = _BROKEN[name]
    file = tmp_path / "gemma-scope-2b-pt-res" / "layer_0" / "params.npz"
    file.parent.mkdir(parents=True)
    file.write_bytes(make())
    with pytest.raises(SaeError, match=said) as caught:
        load_saes(str(file), model, root=tmp_path / "cache")
    assert caught.value.todo
    left = list((tmp_path / "cache").rglob(".new-*"))
    assert left == []


def test_an_npz_that_does_not_say_its_site(model: LoadedModel, tmp_path: Path) -> None:
    for place, said in (
        ("saes", "no site"),
        ("scope-res", "no layer"),
        ("scope-transcoders/layer_1", "transcoders"),
    ):
        file = tmp_path / place / "params.npz"
        file.parent.mkdir(parents=True)
        file.write_bytes(npz(arrays_of()))
        with pytest.raises(SaeError, match=said):
            load_saes(str(file), model, root=tmp_path / "cache")


def _first(name: str, count: int) -> tuple[Release, tuple[PretrainedSae, ...]]:
    release, saes = chosen(name)
    return release, saes[:count]


def test_a_release_from_the_local_hub_cache(
    from_the_hub: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    name = "gemma-scope-2b-pt-res-canonical"
    release, (sae,) = _first(f"{name}:layer_3/width_16k/canonical", 1)
    files = {f"{sae.path}/params.npz": npz(arrays_of())}
    model = from_the_hub("google/gemma-2-2b", release.repository, files)
    source = f"{name}:layer_3/width_16k/canonical"
    saes = load_saes(source, model, root=tmp_path / "cache")
    assert [one.id for one in saes] == [f"{name}/resid.3"]
    (config,) = (tmp_path / "cache" / "saes" / name).rglob("cfg.json")
    assert json.loads(config.read_text())["metadata"]["neuronpedia_id"] == sae.neuronpedia
    # What was converted is enough: neither the hub's cache nor a connection is needed again.
    for file in (tmp_path / "hub").rglob("params.npz"):
        file.unlink()
    assert load_saes(source, model, root=tmp_path / "cache").places == [("resid", 3)]
    with pytest.raises(SaeError, match="not on this machine"):
        other = replace(model, spec=replace_offline(model))
        load_saes(f"{name}:layer_2/width_16k/canonical", other, root=tmp_path / "cache")


def replace_offline(model: LoadedModel) -> Any:
    import msgspec

    return msgspec.structs.replace(model.spec, offline=True)


def test_saes_of_another_model_are_refused(
    from_the_hub: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    model = from_the_hub("google/gemma-2-9b")
    with pytest.raises(SaeError) as caught:
        load_saes("gemma-scope-2b-pt-res-canonical", model, root=tmp_path)
    assert "trained on gemma-2-2b; the model is google/gemma-2-9b" in caught.value.why
    folder = write_sae(tmp_path / "sae", d_in=WIDTH, hook="blocks.1.hook_resid_post")
    config = json.loads((folder / "cfg.json").read_text())
    config["metadata"]["model_name"] = "gpt2-small"
    (folder / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(SaeError, match="trained on gpt2-small"):
        load_saes(str(folder), model)
    config["metadata"]["model_name"] = "gemma-2-9b-it"
    (folder / "cfg.json").write_text(json.dumps(config))
    assert len(load_saes(str(folder), model)) == 1


def test_a_saelens_release_is_centred_where_its_model_was(
    from_the_hub: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    """gpt2-small-res-jb was trained on centred residuals, which plain GPT-2 does not have."""
    release, (sae,) = _first("gpt2-small-res-jb:blocks.2.hook_resid_pre", 1)
    local = write_sae(
        tmp_path / "local", d_in=WIDTH, hook="blocks.2.hook_resid_pre", k=None, width=FEATURES
    )
    old = json.loads((local / "cfg.json").read_text())
    old = {**old, "architecture": "standard", "hook_point": old.pop("metadata")["hook_name"]}
    weights = load_file(local / "sae_weights.safetensors")
    del weights["threshold"]
    files = {
        f"{sae.path}/cfg.json": json.dumps(old).encode(),
        f"{sae.path}/sae_weights.safetensors": save(weights),
    }
    from_the_hub("openai-community/gpt2", release.repository, files)
    gpt2 = replace(tiny_model("gpt2"), hub_id="openai-community/gpt2")
    ours = load_saes(
        "gpt2-small-res-jb:blocks.2.hook_resid_pre", gpt2, root=tmp_path / "cache"
    ).get("resid", 1)
    assert ours.config.centred
    h = capture(gpt2, gpt2.reader.prompt_ids(TEXT)).at("resid", 1)
    centred = h - h.mean(dim=-1, keepdim=True)
    expected = ((centred - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]).relu()
    torch.testing.assert_close(ours.encode(h), expected)
    torch.testing.assert_close(ours.encode(h + 3.0), expected, atol=1e-4, rtol=1e-4)


def test_llama_scope_is_read_as_saelens_reads_it(
    from_the_hub: Callable[..., LoadedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, (sae,) = _first("llama_scope_lxr_8x:l2r_8x", 1)
    random = torch.Generator().manual_seed(4)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random) * 0.3

    weights = {
        "encoder.weight": noise(FEATURES, WIDTH),
        "decoder.weight": noise(WIDTH, FEATURES),
        "encoder.bias": noise(FEATURES),
        "decoder.bias": noise(WIDTH),
    }
    own = {
        "d_model": WIDTH,
        "d_sae": FEATURES,
        "jump_relu_threshold": 0.05,
        "dataset_average_activation_norm": {"in": 9.0, "out": 9.0},
        "hook_point_in": "blocks.2.hook_resid_post",
    }
    files = {
        f"{sae.path}/hyperparams.json": json.dumps(own).encode(),
        f"{sae.path}/checkpoints/final.safetensors": save(weights),
    }
    from_the_hub("meta-llama/Llama-3.1-8B", release.repository, files)
    model = replace(tiny_model("llama"), hub_id="meta-llama/Llama-3.1-8B")
    ours = load_saes("llama_scope_lxr_8x:l2r_8x", model, root=tmp_path / "cache").get("resid", 2)

    loaders = pytest.importorskip("sae_lens.loading.pretrained_sae_loaders")
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig

    (snapshot,) = (tmp_path / "hub").glob("*/snapshots/*")

    def download(repo_id: str, filename: str, *, subfolder: str = "", **_named: Any) -> str:
        assert repo_id == release.repository
        return str(snapshot / subfolder / filename)

    monkeypatch.setattr(loaders, "hf_hub_download", download)
    _, state, _ = loaders.llama_scope_sae_huggingface_loader(
        release.repository, sae.path, cfg_overrides={"dtype": "float32"}
    )
    theirs = JumpReLUSAE(
        JumpReLUSAEConfig(
            d_in=WIDTH,
            d_sae=FEATURES,
            apply_b_dec_to_input=False,
            normalize_activations="expected_average_only_in",
        )
    )
    theirs.load_state_dict(state)
    theirs.fold_activation_norm_scaling_factor(sae.norm_scaling_factor)
    h = capture(model, model.reader.prompt_ids(TEXT)).at("resid", 2)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(h), theirs.encode(h), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            ours.decode(ours.encode(h)), theirs.decode(theirs.encode(h)), rtol=1e-5, atol=1e-5
        )
    assert 0 < int((ours.encode(h) > 0).sum()) < h.shape[0] * FEATURES


def test_the_identity_of_an_npz_follows_its_content(tmp_path: Path, cache_dir: Path) -> None:
    file = tmp_path / "params.npz"
    with Store.open(cache_dir) as store:
        file.write_bytes(npz(arrays_of(0)))
        first = sae_identity(str(file), store)
        file.write_bytes(npz(arrays_of(1)))
        assert sae_identity(str(file), store) != first
        assert sae_identity("gemma-scope-2b-pt-res-canonical", store) == (
            "gemma-scope-2b-pt-res-canonical"
        )


def _models(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "emotui", "models", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_command_lists_models_and_releases() -> None:
    done = _models("gemma-2-2b", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)["models"]}
    assert rows["gemma-2-2b"]["hub_id"] == "google/gemma-2-2b"
    assert rows["gemma-2-2b"]["default_sae"] == DEFAULTS["gemma-2-2b"]
    counts = {one["name"]: one["saes"] for one in rows["gemma-2-2b"]["releases"]}
    assert counts["gemma-scope-2b-pt-res-canonical"] == 58
    text = _models("gemma-scope-2b-pt-res-canonical")
    assert "layer_25/width_65k/canonical" in text.stdout
    assert "gemma-2-2b/0-gemmascope-res-16k" in text.stdout
    missing = _models("gema-2-2b")
    assert missing.returncode == 2
    assert "gemma-2-2b" in missing.stderr
    assert missing.stdout == ""


def test_without_sae_lens_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sae_directory, "find_spec", lambda _name: None)
    with pytest.raises(SaeError) as caught:
        sae_directory.directory_file()
    assert "pip install" in caught.value.todo


def test_a_tuned_model_is_given_the_releases_of_its_base() -> None:
    done = _models("gemma-2-2b-it", "--json")
    (row,) = json.loads(done.stdout)["models"]
    assert row["releases"] == []
    related = {one["name"]: one for one in row["related"]}
    assert related["gemma-scope-2b-pt-res-canonical"]["model"] == "gemma-2-2b"
    assert all(one["readable"] for one in row["related"])
    assert all(same_family(one["model"], "gemma-2-2b-it") for one in row["related"])
    text = _models("gemma-2-2b-it").stdout
    assert "trained on gemma-2-2b" in text and "gemma-scope-2b-pt-res-canonical" in text
    assert " 0 releases" not in _models("gemma-2-2b-it").stderr


def test_a_release_that_is_not_read_says_why() -> None:
    unread = [one for one in sae_directory.directory().values() if not one.readable]
    assert unread and all(one.unreadable for one in unread)
    assert not [
        one for one in sae_directory.directory().values() if one.readable != (not one.unreadable)
    ]
    heads = next(one for one in unread if one.conversion == "gemma_3" and "-att" in one.name)
    assert "heads" in heads.unreadable
    transcoder = next(one for one in unread if "transcoder" in one.name)
    assert "write another" in transcoder.unreadable
    lines = _models(base_name(heads.model)).stdout.splitlines()
    (line,) = [one for one in lines if one.split()[:2] == ["x", heads.name]]
    assert line.endswith(heads.unreadable)
    with pytest.raises(SaeError, match="does not read") as caught:
        sae_directory.chosen(heads.name)
    assert "heads" in caught.value.why and "pickle" not in caught.value.why
