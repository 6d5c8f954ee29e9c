"""emotui from Python: the page of examples, arrays against plain hooks, and errors."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support_models import LAYERS, WIDTH, tiny_folder
from support_saes import write_residual_saes
from transformers import AutoModelForCausalLM

import emotui
from emotui.cache.demo import DEMO_MODEL
from emotui.core.records import Trace

PAGE = Path(__file__).parent.parent / "docs" / "python.md"
TEXT = "My dog died last week."


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def session(cache: Path) -> Iterator[emotui.Session]:
    with emotui.open(cache_dir=cache) as opened:
        yield opened


def hooked_states(folder: Path, ids: list[int], dtype: torch.dtype) -> dict[int, np.ndarray]:
    """The outputs of the blocks, by plain PyTorch hooks on the Hugging Face model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    kept: dict[int, np.ndarray] = {}

    def keep(layer: int) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            kept[layer] = tensor[0].float().numpy()

        return hook

    for layer, block in enumerate(model.model.layers):
        block.register_forward_hook(keep(layer))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    return kept


def test_the_examples_of_the_page_run(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EMOTUI_CACHE_DIR", str(cache))
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    opened = emotui.open
    monkeypatch.setattr(emotui, "open", lambda: opened(cache_dir=cache), raising=False)
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["answer"] == "sadness"
    assert list(names["layers"]) == list(range(-1, 8))
    # At the embedding every readout token is the same: there is no z to count from.
    assert np.isnan(names["z"][0]) and np.isfinite(names["z"][1:]).all()
    assert names["h"].shape == (len(names["trace"].tokens), 128)
    assert np.abs(names["moved"]).max() > 0
    assert len(names["texts"]) == 2 and "sadness" in names["found"].emotion
    printed = capsys.readouterr().out
    assert "best-of-" in printed
    assert "There is no layer 99 to edit. The model has layers 0 to 7." in printed


def test_activations_are_those_of_plain_hooks(session: emotui.Session) -> None:
    trace = session.inspect(TEXT)
    ids = [token.id for token in trace.record.text.tokens]
    states = hooked_states(DEMO_MODEL, ids, torch.float32)
    for layer, state in states.items():
        ours = trace.activations("resid", layer)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, state, atol=1e-4)
    # The attention and MLP outputs are what a block adds (post-norms included).
    for layer in range(1, len(states)):
        added = trace.activations("attn", layer) + trace.activations("mlp", layer)
        np.testing.assert_allclose(added, states[layer] - states[layer - 1], atol=1e-3)


def test_edits_are_in_force_in_the_arrays(tmp_path: Path) -> None:
    saes = write_residual_saes(tmp_path / "saes", d_in=WIDTH, layers=LAYERS)
    with emotui.open(
        str(tiny_folder("llama")), sae=str(saes), cache_dir=tmp_path / "cache", offline=True
    ) as session:
        plain = session.inspect(TEXT)
        columns = plain.features
        rows = (columns["layer"] == 1) & (columns["position"] == plain.record.text.readout)
        index = int(columns["index"][rows][0])
        size = float(columns["activation"][rows][0])
        edited = session.inspect(TEXT, edits=[f"ablate L1/{index} at readout"])
        assert edited.ancestors()[0] == plain.record
        from safetensors.numpy import load_file

        decoder = load_file(saes / "layer_1" / "sae_weights.safetensors")["W_dec"]
        moved = edited.activations("resid", 1) - plain.activations("resid", 1)
        np.testing.assert_allclose(moved[-1], -size * decoder[index], atol=1e-4)
        assert np.abs(moved[:-1]).max() < 1e-5
        assert np.abs(edited.activations("resid", 0) - plain.activations("resid", 0)).max() < 1e-5


def test_bfloat16_is_read_exactly(tmp_path: Path) -> None:
    folder = tiny_folder("llama")
    with emotui.open(
        str(folder), sae="none", dtype="bfloat16", cache_dir=tmp_path, offline=True
    ) as session:
        trace = session.inspect(TEXT)
        ids = [token.id for token in trace.record.text.tokens]
        states = hooked_states(Path(folder), ids, torch.bfloat16)
        np.testing.assert_array_equal(trace.activations("resid", 2), states[2])
        assert trace.features["index"].shape == (0,)


def test_a_record_is_what_the_cache_holds(session: emotui.Session) -> None:
    first, second = session.inspect(TEXT), session.inspect(TEXT)
    assert isinstance(first.record, Trace) and first.record == second.record
    assert first.record.answer is not None
    assert first.answer == pytest.approx(dict(first.record.answer.labels))
    assert {len(column) for column in first.readouts.values()} == {len(first.record.readouts.z)}
    assert TEXT not in repr(first)
    assert json.loads(first.to_json())["id"] == first.record.id


def test_errors_say_what_is_wrong(session: emotui.Session) -> None:
    with pytest.raises(emotui.TextError):
        session.inspect("")
    with pytest.raises(emotui.EditError, match="not understood: 'abblate'"):
        session.inspect(TEXT, edits=["abblate L1/2"])
    with pytest.raises(emotui.UsageError, match="a single string"):
        session.inspect(TEXT, edits="ablate L1/2")
    trace = session.inspect(TEXT)
    absent: list[tuple[Any, int]] = [("resid", 8), ("attn", -1), ("head", 0)]
    for site, layer in absent:
        with pytest.raises(emotui.UsageError, match=rf"no activations {site}\.{layer}"):
            trace.activations(site, layer)
    with pytest.raises(emotui.ModelError):
        emotui.open("/nowhere/at/all", sae="none", offline=True, private=True).inspect(TEXT)


def test_a_closed_session_says_so(tmp_path: Path) -> None:
    with emotui.open(cache_dir=tmp_path) as session:
        pass
    with pytest.raises(emotui.EngineError, match="session was closed"):
        session.inspect("A text that is in no cache.")


def test_importing_emotui_costs_nothing() -> None:
    code = "import sys, emotui; print(*sorted({n.split('.')[0] for n in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "msgspec", "typer", "textual"} & set(done.stdout.split())
    assert set(emotui.__all__) <= set(dir(emotui))
    for name in emotui.__all__:
        assert getattr(emotui, name) is not None
    misspelt = "opne"
    with pytest.raises(AttributeError, match="no attribute 'opne'"):
        getattr(emotui, misspelt)


def test_arguments_of_a_wrong_type_are_refused_at_once(tmp_path: Path) -> None:
    wrong: list[Any] = [
        lambda one: one.inspect(3),
        lambda one: one.inspect(None),
        lambda one: one.inspect(TEXT, edits=[3]),
        lambda one: one.inspect(TEXT, edits=None),
        lambda one: one.inspect(TEXT, metric=1),
        lambda one: one.inspect(TEXT, seed="0"),
        lambda one: one.inspect(TEXT, selected="yes"),
        lambda one: one.generate(TEXT, new_tokens="5"),
        lambda one: one.generate(TEXT, new_tokens=True),
        lambda one: one.generate(TEXT, temperature=None),
        lambda one: one.generate(TEXT, samples=1.5),
        lambda one: one.where(TEXT, None),
        lambda one: one.where(None, "joy"),
        lambda one: one.where(TEXT, "joy", neutral=1),
        lambda one: one.fit_probes(3),
        lambda one: one.fit_probes(seed=None),
    ]
    for call in wrong:
        with emotui.open(cache_dir=tmp_path) as session:
            began = time.monotonic()
            with pytest.raises(emotui.UsageError):
                call(session)
            assert time.monotonic() - began < 1
            assert session._client.pid is None
    options: list[dict[str, Any]] = [
        {"model": 3},
        {"sae": 3},
        {"sae": [3]},
        {"device": None},
        {"dtype": 16},
        {"template": None},
        {"label_set": 1},
        {"revision": 1},
        {"offline": "no"},
        {"cache_dir": 3},
    ]
    for option in options:
        with pytest.raises(emotui.UsageError):
            emotui.open(**option)


def test_values_that_cannot_be_meant_are_told(session: emotui.Session) -> None:
    wrong: list[Any] = [
        lambda: session.where(TEXT, "nostalgia"),
        lambda: session.where(TEXT, ""),
        lambda: session.generate(TEXT, new_tokens=0),
        lambda: session.generate(TEXT, temperature=-1.0),
        lambda: session.generate(TEXT, temperature=float("nan")),
        lambda: session.generate(TEXT, samples=0),
        lambda: session.inspect(TEXT, metric="nonsense"),
        lambda: session.inspect(TEXT, metric="answer.nonsense"),
        lambda: session.inspect(TEXT, seed=2**80),
    ]
    missed = []
    for number, call in enumerate(wrong):
        try:
            call()
        except emotui.UsageError:
            continue
        except emotui.EmotuiError as error:
            missed.append((number, type(error).__name__, str(error)))
        else:
            missed.append((number, "", "no error"))
    assert not missed
