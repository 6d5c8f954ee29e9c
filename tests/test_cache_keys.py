"""Request keys change with what changes numbers and nothing else; fingerprints tell weights."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from emotui.cache import fingerprints, keys
from emotui.cache.store import Store
from emotui.core import text as text_module
from emotui.core.emotions import LABEL_SETS
from emotui.core.errors import ModelError, UsageError
from emotui.core.protocol import GenerationSpec, InspectRequest, ModelSpec
from emotui.core.text import TEMPLATES

PRINT = "ab" * 32
WORDS = st.text(max_size=12)
SURROGATES = st.text(st.characters(), max_size=12)

requests = st.builds(
    InspectRequest,
    spec=st.builds(
        ModelSpec,
        model=WORDS,
        dtype=st.sampled_from(["auto", "float32", "bfloat16"]),
        device=st.sampled_from(["auto", "cpu", "cuda:1"]),
    ),
    text=SURROGATES,
    cache_dir=WORDS,
    template=st.sampled_from(sorted(TEMPLATES)),
    label_set=st.sampled_from(sorted(LABEL_SETS)),
    saes=st.lists(WORDS, max_size=3).map(tuple),
    probes=st.lists(WORDS, max_size=3).map(tuple),
    edits=st.lists(WORDS, max_size=3).map(tuple),
    selected=st.booleans(),
    all_sites=st.booleans(),
    metric=st.sampled_from(["top", "none", "answer.joy"]),
    generation=st.none()
    | st.builds(GenerationSpec, st.integers(1, 3), st.sampled_from([0.0, 1.0]), st.integers(1, 3)),
    seed=st.integers(0, 5),
)

KEYED = (
    *("text", "template", "label_set", "saes", "probes", "edits", "selected", "all_sites"),
    *("metric", "generation", "seed"),
)


def request_of(**changes: Any) -> InspectRequest:
    spec = ModelSpec(model="m", **{k: changes.pop(k) for k in ("dtype", "device") if k in changes})
    return InspectRequest(spec=spec, text="I lost it.", cache_dir="c", **changes)


@given(requests, requests)
def test_two_requests_share_a_key_only_where_every_field_agrees(
    one: InspectRequest, other: InspectRequest
) -> None:
    def of_importance(request: InspectRequest) -> tuple[object, ...]:
        fields = tuple(getattr(request, name) for name in KEYED)
        return (*fields, request.spec.dtype, request.spec.device)

    same = of_importance(one) == of_importance(other)
    assert (keys.request_key(one, PRINT) == keys.request_key(other, PRINT)) is same


@given(requests, st.data())
def test_each_field_alone_changes_the_key(request_: InspectRequest, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([*KEYED, "dtype", "device", "fingerprint"]))
    other = data.draw(requests)
    key = keys.request_key(request_, PRINT)
    if name == "fingerprint":
        assert keys.request_key(request_, "cd" * 32) != key
        return
    if name in ("dtype", "device"):
        value = getattr(other.spec, name)
        assume(value != getattr(request_.spec, name))
        spec = msgspec.structs.replace(request_.spec, **{name: value})
        changed = msgspec.structs.replace(request_, spec=spec)
    else:
        value = getattr(other, name)
        assume(value != getattr(request_, name))
        changed = msgspec.structs.replace(request_, **{name: value})
    assert keys.request_key(changed, PRINT) != key


@given(requests, WORDS, st.booleans())
def test_where_the_cache_lies_and_who_asks_is_no_part_of_the_key(
    request_: InspectRequest, word: str, offline: bool
) -> None:
    spec = msgspec.structs.replace(request_.spec, model=word, revision=word, offline=offline)
    moved = msgspec.structs.replace(request_, cache_dir=word, spec=spec)
    assert keys.request_key(moved, PRINT) == keys.request_key(request_, PRINT)


def test_a_template_of_the_same_name_with_another_content_has_another_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = keys.request_key(request_of(template="ask"), PRINT)
    changed = msgspec.structs.replace(TEMPLATES["ask"], after=" It feels like")
    monkeypatch.setattr(text_module, "TEMPLATES", MappingProxyType({**TEMPLATES, "ask": changed}))
    assert keys.request_key(request_of(template="ask"), PRINT) != before


def test_an_unknown_template_or_label_set_names_what_there_is() -> None:
    with pytest.raises(UsageError, match="ekman7"):
        keys.request_key(request_of(label_set="moods"), PRINT)
    with pytest.raises(UsageError, match="tak1"):
        keys.request_key(request_of(template="nope"), PRINT)


def test_keys_are_the_same_in_another_process_and_need_no_torch() -> None:
    program = (
        "import sys\n"
        "from emotui.cache import keys, store\n"
        "from emotui.core.protocol import InspectRequest, ModelSpec\n"
        "r = InspectRequest(spec=ModelSpec(model='m'), text='\\u00e9 \\ud800', cache_dir='c',"
        " saes=('a', 'b'))\n"
        "heavy = {'torch', 'transformers', 'textual', 'sae_lens'} & set(sys.modules)\n"
        "print(keys.request_key(r, 'ab' * 32), keys.content_key(fingerprint='f', token_ids=[1, 2],"
        " dtype='float32', device_type='cpu', attention='eager', sites=['resid']), sorted(heavy))\n"
    )
    seen = set()
    for seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        seen.add(done.stdout)
    assert len(seen) == 1
    here = keys.request_key(
        InspectRequest(
            spec=ModelSpec(model="m"), text="\u00e9 \ud800", cache_dir="c", saes=("a", "b")
        ),
        PRINT,
    )
    (line,) = seen
    assert line.split()[0] == here
    assert line.strip().endswith("[]")


def test_content_keys_change_with_every_part() -> None:
    base: dict[str, Any] = {
        "fingerprint": "f",
        "token_ids": [1, 2, 3],
        "dtype": "float32",
        "device_type": "cpu",
        "attention": "eager",
        "sites": ["resid"],
    }
    changes: dict[str, Any] = {
        "fingerprint": "g",
        "token_ids": [1, 23],
        "dtype": "bfloat16",
        "device_type": "cuda",
        "attention": "sdpa",
        "sites": ["resid", "attn"],
    }
    all_keys = {keys.content_key(**base)}
    all_keys |= {keys.content_key(**{**base, name: value}) for name, value in changes.items()}
    assert len(all_keys) == 1 + len(changes)
    derived = {keys.derived_key(key, part) for key in all_keys for part in ("p1", "p2")}
    assert len(derived) == 2 * len(all_keys)


# Fingerprints


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder whose files are long unchanged."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "tokenizer.json").write_text('{"a": 1}')
    (model / "model.safetensors").write_bytes(b"weights" * 1000)
    (model / "README.md").write_text("about")
    return age(model)


def age(model: Path) -> Path:
    for path in model.iterdir():
        os.utime(path, (1_600_000_000, 1_600_000_000))
    return model


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a bit of the weights": lambda model: flip(model / "model.safetensors"),
    "the config": lambda model: (model / "config.json").write_text('{"x": 1}'),
    "the tokenizer": lambda model: (model / "tokenizer.json").write_text("{}"),
    "a second file of weights": lambda model: (model / "z.safetensors").write_bytes(b"x"),
    "a chat template": lambda model: (model / "chat_template.jinja").write_text("x"),
    "the name of the weights": lambda model: (model / "model.safetensors").rename(
        model / "other.safetensors"
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_fingerprint_changes_with(folder: Path, change: Callable[[Path], object]) -> None:
    before = keys.model_fingerprint_of_folder(folder)
    change(folder)
    assert keys.model_fingerprint_of_folder(folder) != before


def test_a_fingerprint_is_of_content_not_of_place_time_or_readme(
    folder: Path, tmp_path: Path
) -> None:
    before = keys.model_fingerprint_of_folder(folder)
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy, copy_function=shutil.copy)
    (copy / "README.md").write_text("something else")
    assert keys.model_fingerprint_of_folder(copy) == before
    assert len(before) == 64


def test_known_files_are_not_read_again_and_changed_ones_are(
    folder: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(cache_dir) as store:
        before = keys.model_fingerprint_of_folder(folder, store)
        read: list[str] = []
        real_open = Path.open

        def counted(path: Path, *args: Any, **kwargs: Any) -> Any:
            read.append(path.name)
            return real_open(path, *args, **kwargs)

        monkeypatch.setattr(Path, "open", counted)
        assert keys.model_fingerprint_of_folder(folder, store) == before
        assert read == []
        flip(folder / "model.safetensors")
        read.clear()
        assert keys.model_fingerprint_of_folder(folder, store) != before
        assert read == ["model.safetensors"]


def test_a_file_that_was_changed_just_now_is_not_remembered(folder: Path, cache_dir: Path) -> None:
    """It could change again within the grain of its time stamp."""
    weights = folder / "model.safetensors"
    with Store.open(cache_dir) as store:
        weights.write_bytes(b"one")
        status = weights.stat()
        one = keys.model_fingerprint_of_folder(folder, store)
        weights.write_bytes(b"two")
        os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert keys.model_fingerprint_of_folder(folder, store) != one


def test_progress_counts_all_bytes_and_can_stop(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    keys.model_fingerprint_of_folder(folder, progress=lambda *count: seen.append(count))
    total = sum(path.stat().st_size for path in folder.iterdir() if path.name != "README.md")
    assert seen[-1] == (total, total)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keys.model_fingerprint_of_folder(folder, progress=stop)


@pytest.mark.parametrize("suffix", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_refused(folder: Path, suffix: str) -> None:
    (folder / "model.safetensors").rename(folder / suffix)
    with pytest.raises(ModelError, match="pickles") as caught:
        keys.model_fingerprint_of_folder(folder)
    assert "safetensors" in caught.value.todo


def test_missing_parts_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model folder"):
        keys.model_fingerprint_of_folder(tmp_path / "nowhere")
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        keys.model_fingerprint_of_folder(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        keys.model_fingerprint_of_folder(folder)


def test_the_commit_comes_from_the_local_hub_cache(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "c5ebcd40d208330abc697524c919956e692655cf"
    home = tmp_path / "hub" / "models--google--gemma-2-2b"
    (home / "refs").mkdir(parents=True)
    (home / "snapshots" / commit).mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert keys.hub_commit("google/gemma-2-2b") == commit
    assert keys.hub_commit("google/gemma-2-2b", commit) == commit
    assert keys.hub_commit("google/gemma-2-2b", "0" * 40) is None
    assert keys.hub_commit("google/gemma-2-9b") is None
    assert keys.hub_commit("../../etc") is None
    assert keys.hub_commit("google/gemma-2-2b", "../../x") is None
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert keys.hub_commit("google/gemma-2-2b") == commit
    with Store.open(cache_dir) as store:
        spec = ModelSpec(model="google/gemma-2-2b")
        known = keys.known_fingerprint(spec, store)
        assert known == keys.fingerprint_of_commit("google/gemma-2-2b", commit)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "gone"))
        assert keys.known_fingerprint(spec, store) == known
        assert keys.known_fingerprint(ModelSpec(model="google/other"), store) is None


def test_a_folder_that_is_gone_keeps_the_fingerprint_it_had(
    folder: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(model=str(folder))
    request = InspectRequest(spec=spec, text="x", cache_dir="")
    with Store.open(cache_dir) as store:
        key = keys.known_request_key(request, store)
        assert key == keys.request_key(request, keys.model_fingerprint_of_folder(folder))
        monkeypatch.setattr(fingerprints, "QUICK_BYTES", 10)
        assert keys.known_request_key(request, store) == key  # the hashes are remembered
    shutil.rmtree(folder)
    with Store.open(cache_dir) as store:
        assert keys.known_request_key(request, store) == key


def test_large_unknown_weights_are_left_to_the_engine(
    folder: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "QUICK_BYTES", 10)
    request = InspectRequest(spec=ModelSpec(model=str(folder)), text="x", cache_dir="")
    with Store.open(cache_dir) as store:
        assert keys.known_request_key(request, store) is None
        keys.model_fingerprint_of_folder(folder, store)  # as the engine does
        assert keys.known_request_key(request, store) is not None


def test_an_sae_folder_is_known_by_its_content(folder: Path, cache_dir: Path) -> None:
    sae = folder.parent / "sae"
    (sae / "layer_1").mkdir(parents=True)
    (sae / "layer_1" / "cfg.json").write_text("{}")
    (sae / "layer_1" / "sae_weights.safetensors").write_bytes(b"abc")
    request = InspectRequest(
        spec=ModelSpec(model=str(folder)), text="x", cache_dir="", saes=(str(sae), "rel:id")
    )
    with Store.open(cache_dir) as store:
        first = keys.known_request_key(request, store)
        (sae / "layer_1" / "sae_weights.safetensors").write_bytes(b"abd")
        second = keys.known_request_key(request, store)
        assert first and second and first != second
        ids = keys.sae_identities(request.saes, store)
        assert ids[1] == "rel:id"
        assert second == keys.request_key(
            request, keys.model_fingerprint_of_folder(folder), sae_ids=ids
        )
        shutil.rmtree(sae)
        assert keys.known_request_key(request, store) == second
