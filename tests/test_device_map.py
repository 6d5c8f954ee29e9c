"""Layers spread by accelerate: its hooks and ours on the same modules, and packages that lack.

Here there is one device, so some blocks are put on the disk: accelerate then replaces the
`forward` of every module, as it does between GPUs, and loads those weights for each forward.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from support_models import LAYERS, WIDTH, tiny_folder, tiny_model
from support_saes import write_residual_saes

from emotui.cache.keys import request_key
from emotui.core.edits import FeatureEdit, parse_edit
from emotui.core.engine import weights
from emotui.core.engine.attribute import Metric, gradients
from emotui.core.engine.capture import Hook, QuietJob, capture
from emotui.core.engine.exact import ablations
from emotui.core.engine.intervene import EditGroup, hooks_of
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.rerun import adding, rerun
from emotui.core.engine.saes import load_saes
from emotui.core.engine.sites import SITE_TABLES, Sites
from emotui.core.engine.speak import generate
from emotui.core.engine.steps import AddStep, FeatureStep, PlacedFeatureEdit
from emotui.core.engine.weights import Placement, read_weights
from emotui.core.errors import ModelError
from emotui.core.protocol import InspectRequest, ModelSpec

TEXT = "My dog died last week, and the house is very quiet now."
FAMILIES = ("gemma2", "llama", "gpt_neox")


def _spread(family: str, offload: Path) -> LoadedModel:
    """Return a tiny model whose blocks 1 and 2 are on the disk."""
    one = tiny_model(family)
    table = SITE_TABLES[family]
    head = table.blocks.rpartition(".")[0]
    parts = {f"{head}.{name}" for name, _ in one.hf.get_submodule(head).named_children()}
    places: dict[str, Any] = dict.fromkeys({*parts, table.unembed} - {table.blocks}, "cpu")
    places |= {f"{table.blocks}.{n}": "disk" if n in (1, 2) else "cpu" for n in range(LAYERS)}
    placement = Placement(torch.float32, torch.device("cpu"), device_map=places, offload=offload)
    hf = read_weights(tiny_folder(family), placement=placement, attention=one.attention)
    return dataclasses.replace(one, hf=hf, sites=Sites(hf, table))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_spread_model_gives_the_numbers_of_a_whole_one(family: str, tmp_path: Path) -> None:
    """Forward, resume, gradients and writing; accelerate's hooks are there afterwards too."""
    spread, whole = _spread(family, tmp_path), tiny_model(family)
    block = spread.sites.blocks[1]
    assert spread.spread and not whole.spread
    assert "forward" in vars(block)  # accelerate's
    assert next(block.parameters()).is_meta
    ids = whole.reader.prompt_ids(TEXT)
    clean = capture(whole, ids)
    deltas = torch.randn(2, len(ids), whole.d_model, generator=torch.Generator().manual_seed(1))

    def last_logit(logits: torch.Tensor, _resid: object) -> torch.Tensor:
        return logits[7]

    def adding_to_all(delta: torch.Tensor) -> Hook:
        return Hook("resid", 2, lambda h: h + delta)

    for _ in range(2):
        found = capture(spread, ids, all_sites=True)
        torch.testing.assert_close(found.logits, clean.logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.resid, clean.resid, rtol=0, atol=1e-5)
        rows = rerun(
            spread, clean.at("resid", 1), start=2, n_rows=2, hooks=adding(deltas, "resid", 2)
        )
        for row, delta in enumerate(deltas):
            full = capture(whole, ids, hooks=[adding_to_all(delta)])
            torch.testing.assert_close(rows.logits[row], full.logits, rtol=0, atol=1e-4)
        metric = Metric("test", "test", last_logit)
        mine, theirs = gradients(spread, ids, metric), gradients(whole, ids, metric)
        assert float(theirs.resid.abs().max()) > 0
        torch.testing.assert_close(mine.resid, theirs.resid, rtol=0, atol=1e-5)
        assert generate(spread, ids, new_tokens=4) == generate(whole, ids, new_tokens=4)
        torch.testing.assert_close(
            spread.sites.logits_of(clean.resid[-1]), whole.sites.logits_of(clean.resid[-1])
        )
        assert "forward" in vars(block) and next(block.parameters()).is_meta


@pytest.mark.parametrize("family", ["gemma2", "llama"])
def test_saes_and_directions_act_in_a_spread_model_as_in_a_whole_one(
    family: str, tmp_path: Path
) -> None:
    """Edits at the blocks that are elsewhere: features of an SAE, and a vector that is added."""
    spread, whole = _spread(family, tmp_path / "offload"), tiny_model(family)
    folder = write_residual_saes(tmp_path / "saes", d_in=WIDTH, layers=LAYERS)
    ids = whole.reader.prompt_ids(TEXT)
    last = len(ids) - 1
    clean = capture(whole, ids)
    found: dict[str, list[torch.Tensor]] = {}
    for name, model in (("spread", spread), ("whole", whole)):
        saes = load_saes(str(folder), model)
        features = [
            (sae, int(sae.encode(clean.at("resid", layer)[-1]).argmax()))
            for layer in (1, 2)
            for sae in [saes.get("resid", layer)]
        ]
        run = capture(model, ids)
        exact = ablations(model, run, features, position=last)
        sae, index = features[1]
        edit = parse_edit(f"clamp L2/{index} = 9 at all")
        assert isinstance(edit, FeatureEdit)
        vector = torch.linspace(-1, 1, WIDTH)
        groups = (
            EditGroup(("resid", 1), (AddStep((last,), vector),)),
            EditGroup(
                ("resid", 2), (FeatureStep(sae, (PlacedFeatureEdit(edit, (3, last)),), 0.0),)
            ),
        )
        edited = capture(model, ids, hooks=hooks_of(groups))
        found[name] = [exact.logits, *exact.resid.values(), edited.logits, edited.resid]
    assert float((found["whole"][0] - clean.logits).abs().amax(dim=1).min()) > 1e-3
    assert float((found["whole"][-2] - clean.logits).abs().max()) > 1e-3
    for mine, theirs in zip(found["spread"], found["whole"], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4)


def test_auto_on_one_device_is_that_device() -> None:
    model = load_model(ModelSpec(str(tiny_folder("llama")), device_map="auto"), QuietJob())
    assert (model.device_name, model.spread) == ("cpu", False)
    ids = model.reader.prompt_ids(TEXT)
    torch.testing.assert_close(
        capture(model, ids).logits, capture(tiny_model("llama"), ids).logits, rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("package", "spec"),
    [
        ("accelerate", {"device_map": "auto"}),
        ("bitsandbytes", {"dtype": "int8"}),
        ("bitsandbytes", {"dtype": "nf4"}),
    ],
)
def test_a_missing_package_is_named(
    package: str, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec

    def without(name: str) -> object:
        return None if name == package else found(name)

    monkeypatch.setattr(weights, "find_spec", without)
    with pytest.raises(ModelError) as caught:
        load_model(ModelSpec(str(tiny_folder("llama")), **spec), QuietJob())
    assert f"needs the package {package}" in caught.value.what
    wanted = package if package == "accelerate" else "'emotui[quantised]'"
    assert f"pip install {wanted}" in caught.value.todo


def test_a_device_map_is_part_of_what_is_asked_and_sae_memory_is_not() -> None:
    def key(**named: Any) -> str:
        spec = ModelSpec("m", **named)
        return request_key(InspectRequest(spec=spec, text=TEXT, cache_dir=""), "0" * 64)

    assert key() == key(sae_memory=2**30, device_map=None)
    assert key() != key(device_map="auto")
