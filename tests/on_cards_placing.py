"""Vectors live on their layer's device, and no more is copied than must; see `test_cards.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support_cards import CARDS, Moves
from support_edits import ids_of, materials_of, random_probe, read
from support_models import LAYERS, WIDTH
from support_on_cards import cards, few_texts, loaded
from support_saes import write_residual_saes
from torch import Tensor

from emotui.cache.store import Store
from emotui.core.edits import parse_edit
from emotui.core.engine import memory
from emotui.core.engine.answer import label_tokens
from emotui.core.engine.attribute import Gradients, answer_metric, gradients
from emotui.core.engine.capture import Activations, QuietJob, capture
from emotui.core.engine.inspect import inspect
from emotui.core.engine.instruments import Instruments
from emotui.core.engine.intervene import group_edits, place_edits
from emotui.core.engine.model import LoadedModel
from emotui.core.engine.probes import load_probe
from emotui.core.engine.rerun import adding, rerun
from emotui.core.engine.sae_memory import SaeMemory
from emotui.core.engine.saes import SaeWeights, load_saes
from emotui.core.engine.sites import HOOK_SITES
from emotui.core.engine.statistics import corpus_statistics
from emotui.core.engine.steps import AddStep, ProjectStep, RandomStep, SetStep, Step
from emotui.core.protocol import InspectRequest
from emotui.core.text import template_named

__all__ = ["cards", "few_texts"]

LAYERS_OF_ALL = range(-1, LAYERS)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return loaded("two cards", "llama")


def _device(layer: int) -> torch.device:
    return torch.device(CARDS[layer >= LAYERS // 2])


def test_each_layer_names_the_device_of_its_block(model: LoadedModel) -> None:
    assert [model.device_at(layer) for layer in LAYERS_OF_ALL] == [*map(_device, LAYERS_OF_ALL)]
    assert (model.device, model.device_name) == (_device(-1), "+".join(CARDS))
    for layer, block in enumerate(model.sites.blocks):
        assert {parameter.device for parameter in block.parameters()} == {_device(layer)}


def test_activations_and_gradients_live_with_their_layer(model: LoadedModel) -> None:
    ids = ids_of(model)
    metric = answer_metric(label_tokens(model.reader, "ekman7", template_named("ask")), "joy")
    assert metric is not None
    run = capture(model, ids, all_sites=True)
    slopes = gradients(model, ids, metric, all_sites=True)
    read_again = Activations.from_bytes(run.to_bytes(), key="", devices=model.devices)
    slopes_again = Gradients.from_bytes(slopes.to_bytes(), devices=model.devices)
    for found in (run, slopes, read_again, slopes_again):
        for site in HOOK_SITES:
            for layer in LAYERS_OF_ALL if site == "resid" else range(LAYERS):
                assert found.at(site, layer).device == _device(layer)
    assert run.logits.device == read_again.logits.device == _device(-1)
    assert slopes.writes.device.type == "cpu"
    assert run.resid.device.type == "cpu", "all layers in one are read on the CPU"


def test_saes_are_held_on_the_device_of_their_layer(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_residual_saes(tmp_path / "saes", d_in=WIDTH, layers=LAYERS)
    for sae in load_saes(str(folder), model):
        weights = sae.weights
        tensors = (weights.encoder, weights.decoder, weights.encoder_bias, weights.decoder_norm)
        assert {tensor.device for tensor in tensors} == {_device(sae.layer)}
        assert sae.encode(torch.zeros(WIDTH)).device == _device(sae.layer)
    # Each device has a budget of its own: nine tenths of its room are room for one SAE.
    size = sae.owner.size_of(sae)
    held = SaeMemory[SaeWeights]()
    first, second = _device(0), _device(LAYERS - 1)
    free = {first: int(1.2 * size), second: 10 * size}
    monkeypatch.setattr(
        memory,
        "free_bytes",
        lambda device: free[device] - sum(one.size for one in held._counted(device).values()),
    )
    saes = load_saes(str(folder), model, held=held)
    for sae in saes:
        assert sae.weights is not None
    assert [sae.layer for sae in saes.missing()] == [0]
    assert held.will_hold({second: [size, size]}) == 2 * size
    assert held.will_hold({first: [size]}) < size, "there is room for one, and one is there"
    # A budget that was set is one for all.
    few = load_saes(str(folder), model, budget_bytes=2 * size)
    for sae in few:
        assert sae.weights is not None
    assert [sae.layer for sae in few.missing()] == [0, 1]


def test_probe_rows_and_the_corpus_live_with_their_layer(
    model: LoadedModel, tmp_path: Path
) -> None:
    probe = load_probe(random_probe(model).to_bytes(), model)
    for row, (_, layer) in enumerate(probe.places):
        tensors = (probe.weight[row], probe.center[row], probe.bias[row], probe.neutral_sd[row])
        assert {tensor.device for tensor in tensors} == {_device(layer)}
    with Store.open(tmp_path / "cache") as store:
        for _ in ("measured", "read again"):
            found = corpus_statistics(model, template_named("ask"), store, QuietJob())
            for site in ("resid", "attn", "mlp"):
                for layer in range(LAYERS):
                    assert found.mean(site, layer, "text").device == _device(layer)
                    assert found.sample(site, layer, "readout", 3).device == _device(layer)
                    drawn = found.directions(site, layer, "text", count=2, seed=1)
                    assert drawn.device == _device(layer)


@pytest.mark.parametrize(
    "line",
    [
        "promote joy L1-2 +0.2 along row",
        "promote joy L1-2 +0.2",
        "project out anger",
        "modulate +other_agency L1-2 +0.2",
        "knock attn L0-3 random at all",
        "knock mlp L0-3 zero at all",
    ],
)
def test_what_an_edit_puts_in_lies_where_it_acts(line: str, model: LoadedModel) -> None:
    materials = materials_of(model, probes=[random_probe(model)])
    groups = group_edits(place_edits([parse_edit(line)], read(model)), materials)
    assert {_device(group.place[1]) for group in groups} == {_device(0), _device(LAYERS - 1)}
    for group in groups:
        for step in group.steps:
            assert _vector_of(step).device == _device(group.place[1])


def _vector_of(step: Step) -> Tensor:
    if isinstance(step, AddStep):
        return step.vector
    if isinstance(step, ProjectStep):
        return step.unit
    assert isinstance(step, SetStep | RandomStep)
    return step.values if isinstance(step, SetStep) else step.directions


def _large(moves: Moves, tokens: int) -> list[tuple[int, ...]]:
    """Return the shapes of vectors of all tokens that went from one card to the other."""
    shapes = [move.shape for move in moves.between_cards()]
    return [shape for shape in shapes if shape[-2:] == (tokens, WIDTH)]


def test_activations_cross_once_a_forward_and_once_on_the_way_back(
    model: LoadedModel, cards: Moves, tmp_path: Path
) -> None:
    """Whatever is read of a text: features, probes, the lens, attribution."""
    folder = write_residual_saes(tmp_path / "saes", d_in=WIDTH, layers=LAYERS)
    probe = random_probe(model)
    with Store.open(tmp_path / "cache") as store:
        store.put_probe(probe.id, probe.to_bytes(), probe.file.card)
        request = InspectRequest(
            spec=model.spec,
            text="My dog died last week.",
            cache_dir="",
            saes=(str(folder),),
            probes=(probe.id,),
            all_sites=True,
        )
        cards.made.clear()
        done = inspect(request, model, Instruments(model, store), store, QuietJob())
        tokens = len(store.get_trace(done.trace_id).text.tokens)
    assert done.forwards == 2
    assert _large(cards, tokens) == [(1, tokens, WIDTH)] * 3


@pytest.mark.parametrize(("start", "crossings"), [(0, 1), (2, 1), (3, 0), (LAYERS, 0)])
def test_rows_cross_where_the_blocks_do(
    start: int, crossings: int, model: LoadedModel, cards: Moves
) -> None:
    ids = ids_of(model)
    run = capture(model, ids)
    resid = run.at("resid", start - 1)
    deltas = torch.ones(3, len(ids), WIDTH).to(resid.device)
    cards.made.clear()
    rerun(model, resid, start=start, n_rows=3, hooks=adding(deltas, "resid", start - 1))
    assert _large(cards, len(ids)) == [(3, len(ids), WIDTH)] * crossings
