"""Directions as llama.cpp control vectors: written, read by the gguf package, imported, refused."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load
from support_command import emotui_here
from support_models import LAYERS, WIDTH, tiny_folder

from emotui.cache import control_vector
from emotui.cache.control_vector import read_control_vector, write_control_vector
from emotui.cache.store import Store
from emotui.core.errors import ProbeError

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")


def vectors(layers: int = LAYERS, width: int = WIDTH) -> dict[int, Any]:
    random = np.random.default_rng(0)
    return {layer: random.normal(size=width).astype(np.float32) for layer in range(layers)}


def test_what_is_written_is_read_by_the_package_and_by_us(tmp_path: Path) -> None:
    path, directions = tmp_path / "v.gguf", vectors()
    layers = write_control_vector(path, directions, architecture="llama", name="fear")
    assert layers == tuple(range(1, LAYERS))
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    assert set(tensors) == {f"direction.{layer}" for layer in layers}
    assert all(np.array_equal(tensors[f"direction.{n}"], directions[n]) for n in layers)
    found = read_control_vector(path)
    assert found.model_hint == "llama"
    assert all(np.array_equal(found.directions[n], directions[n]) for n in layers)


def _other(path: Path, *, architecture: str = "controlvector", **tensors: Any) -> Path:
    writer = gguf.GGUFWriter(str(path), architecture)
    for name, array in tensors.items():
        writer.add_tensor(name.replace("__", "."), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_files_that_are_no_control_vector_are_refused(tmp_path: Path) -> None:
    def refused(path: Path, words: str) -> None:
        with pytest.raises(ProbeError) as told:
            read_control_vector(path)
        assert words in f"{told.value.what} {told.value.why}"

    plain = tmp_path / "plain.gguf"
    plain.write_bytes(b"not a gguf at all")
    refused(plain, "no GGUF file")
    refused(tmp_path / "absent.gguf", "No such file")
    one = np.ones(8, dtype=np.float32)
    refused(_other(tmp_path / "a", architecture="llama", direction__1=one), "'llama'")
    refused(_other(tmp_path / "b", token_embd=one), "token_embd")
    refused(_other(tmp_path / "c", direction__1=np.ones((2, 8), np.float32)), "direction.1")
    refused(_other(tmp_path / "d", direction__1=one * np.nan), "not finite")
    cut = _other(tmp_path / "e", direction__1=one, direction__2=one)
    cut.write_bytes(cut.read_bytes()[:90])
    refused(cut, "damaged")
    huge = tmp_path / "f"
    huge.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**40, 2**40))
    refused(huge, "damaged")


def test_without_the_package_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ProbeError) as told:
        control_vector.write_control_vector(
            tmp_path / "v.gguf", vectors(), architecture="", name="fear"
        )
    assert "pip install 'emotui[gguf]'" in told.value.todo


def emotui(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "emotui", *arguments, "--cache-dir", str(cache)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_import_export_and_the_directions_stay_the_same(tmp_path: Path) -> None:
    cache, model = tmp_path / "cache", ("--model", str(tiny_folder("llama")))
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    directions = vectors()
    write_control_vector(first, directions, architecture="llama", name="awe")
    done = emotui("probe", "import", str(first), "--name", "awe", *model, "--json", cache=cache)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["judged_on"].startswith("nothing")
    with Store.open(cache) as store:
        cards = store.probes()
        tensors = load(store.get_probe(made["probe_ids"][0]))
    assert {score.trust for card in cards for score in card.scores} == {"untrusted"}
    unit = directions[2] / np.linalg.norm(directions[2])
    assert np.allclose(tensors["weight"][1 + 2, :, 0], unit, atol=1e-6)
    assert np.isfinite(tensors["neutral_sd"][1 + 2]).all()
    back = emotui_here(
        "probe", "export", made["probe_ids"][0], "awe", "-o", str(second), cache_dir=cache
    )
    assert back.returncode == 0 and "Not trusted at layers" in back.stderr
    again = read_control_vector(second).directions
    assert set(again) == {1, 2, 3}
    assert np.allclose(again[2], unit, atol=1e-6)
    trace = emotui_here("inspect", "A text.", *model, "--sae", "none", "--json", cache_dir=cache)
    document = json.loads(trace.stdout)
    assert set(document["readouts"]["emotion"]) == {"awe"}
    assert {probe["held_out_accuracy"] for probe in document["probes"]} == {None}
    for form in ("md", "html"):
        page = emotui_here("export", document["id"], "--to", form, cache_dir=cache).stdout
        assert "not measured" in page and "accuracy 0.50" not in page


def test_nothing_that_was_not_measured_is_listed_as_a_number(tmp_path: Path) -> None:
    cache, model = tmp_path / "cache", ("--model", str(tiny_folder("llama")))
    file = tmp_path / "first.gguf"
    write_control_vector(file, vectors(), architecture="llama", name="awe")
    done = emotui_here("probe", "import", str(file), "--name", "awe", *model, cache_dir=cache)
    assert done.returncode == 0, done.stderr
    listed = emotui_here("probe", "list", cache_dir=cache).stdout
    rows = [line for line in listed.splitlines() if "defined-awe" in line]
    assert len(rows) == 2
    assert listed.count("not measured") == 2 and "0.50" not in listed
    shown = emotui_here("probe", "show", rows[0].split()[0], cache_dir=cache)
    assert shown.returncode == 0 and "judged on  nothing" in shown.stdout
    assert "0.50" not in shown.stdout and "no scores" in shown.stderr
    emotions = emotui_here("emotion", "list", cache_dir=cache).stdout
    assert "readout: not measured, untrusted" in emotions and "0.50" not in emotions
    asked = json.loads(emotui_here("emotion", "list", "--json", cache_dir=cache).stdout)
    assert asked[0]["accuracy"] is None


def test_vectors_of_other_models_and_wrong_names_are_refused(tmp_path: Path) -> None:
    cache, model = tmp_path / "cache", ("--model", str(tiny_folder("llama")))
    narrow, deep = tmp_path / "narrow.gguf", tmp_path / "deep.gguf"
    write_control_vector(narrow, vectors(width=WIDTH - 1), architecture="", name="x")
    write_control_vector(deep, vectors(layers=LAYERS + 3), architecture="", name="x")
    for path, words in ((narrow, f"{WIDTH - 1} wide"), (deep, f"layer {LAYERS + 2}")):
        done = emotui_here("probe", "import", str(path), "--name", "awe", *model, cache_dir=cache)
        assert done.returncode == 2 and words in done.stderr
    done = emotui_here("probe", "import", str(narrow), "--name", "joy", *model, cache_dir=cache)
    assert done.returncode == 2 and "already" in done.stderr
