"""The best of all active features is an effect only if it beats the best of as many directions.

Ranked among its own controls, the feature that was picked for its effect is first by the picking
alone. An edit that is marked `selected` pays for it: see `emotui.core.engine.selection`. Here the
feature of largest effect, by exact ablation of all, is handed to `inspect` as a user would.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support_edits import TEXT as SHOUTED
from support_edits import ids_of, random_probe
from support_models import LAYERS, WIDTH, tiny_folder, tiny_model
from support_saes import write_sae
from test_intervene import in_dtype
from test_planted import CARRIER, SADNESS, TEXT, coordinate_saes, planted_model
from torch import Tensor

from emotui.cache.store import Store
from emotui.core.engine.answer import label_tokens
from emotui.core.engine.attribute import answer_metric, gradients, margin
from emotui.core.engine.capture import Activations, Hook, QuietJob, capture, hooked
from emotui.core.engine.exact import ablations
from emotui.core.engine.inspect import inspect
from emotui.core.engine.instruments import Instruments
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.rerun import slopes
from emotui.core.engine.saes import Sae, load_saes
from emotui.core.engine.selection import DRAWS
from emotui.core.export.markdown import markdown_bytes
from emotui.core.protocol import InspectRequest, ModelSpec
from emotui.core.records import Control, Site, Trace
from emotui.core.text import template_named
from emotui.ui.effect_rows import facts_of

SEEDS = 100
Feature = tuple[Sae, int]


def active_features(saes: list[Sae], run: Activations) -> list[Feature]:
    return [
        (sae, int(index))
        for sae in saes
        for index in sae.encode(run.at("resid", sae.layer)[-1]).nonzero().flatten()
    ]


def best_feature(model: LoadedModel, saes: list[Sae], run: Activations) -> tuple[Feature, int]:
    """Return the feature whose ablation moves the likeliest answer most, and of how many."""
    features = active_features(saes, run)
    rows = ablations(model, run, features, position=len(run.token_ids) - 1)
    deciding = list(label_tokens(model.reader, "ekman7", template_named("ask")).deciding)
    before = run.logits[deciding]
    top = int(before.argmax())
    moved: Tensor = (margin(rows.logits[:, deciding], top) - margin(before, top)).abs()
    return features[int(moved.argmax())], len(features)


def selections(trace: Trace) -> dict[str, Control]:
    """The control of each metric that has one drawn."""
    return {
        effect.metric: control
        for effect in trace.effects
        for control in effect.controls
        if control.name == "selection" and control.deltas
    }


@pytest.mark.parametrize("family", ["llama", pytest.param("gpt2", marks=pytest.mark.soak)])
def test_where_no_feature_is_special_the_best_is_no_effect(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    run = capture(model, ids_of(model))
    reported = 0
    with Store.open(tmp_path / "cache") as store:
        for seed in range(SEEDS):
            root = tmp_path / str(seed)
            for layer in range(LAYERS):
                hook = f"blocks.{layer}.hook_resid_post"
                number = SEEDS * (layer + 1) + seed
                write_sae(root / str(layer), d_in=WIDTH, width=128, hook=hook, seed=number)
            (sae, index), count = best_feature(model, list(load_saes(str(root), model)), run)
            instruments = Instruments(model, store)
            instruments._probes["random"] = random_probe(model, seed=seed)
            request = InspectRequest(
                spec=ModelSpec(str(tiny_folder(family))),
                text=SHOUTED,
                cache_dir=str(store.root),
                saes=(str(root),),
                probes=("random",),
                edits=(f"ablate L{sae.layer}/{index} at readout",),
                selected=True,
                metric="none",
                seed=seed,
            )
            done = inspect(request, model, instruments, store, QuietJob())
            trace = store.get_trace(done.trace_id)
            found = selections(trace)
            assert len(found) == 10  # seven labels, three emotions of the probe
            assert {control.candidates for control in found.values()} == {count}
            assert {len(control.deltas) for control in found.values()} == {DRAWS}
            said = [e.verdict for e in trace.effects if "Selected: beyond" in e.verdict]
            silent = [e for e in trace.effects if "No effect beyond selection" in e.verdict]
            beyond = [c for c in found.values() if c.rank == 1]
            assert len(said) <= len(beyond) and (said or silent)
            reported += bool(said)
    assert reported <= 5


def test_a_feature_that_causes_the_answer_is_an_effect(tmp_path: Path) -> None:
    """So the rule does not pass by saying nothing."""
    model = load_model(ModelSpec(str(planted_model(tmp_path))), QuietJob())
    folder = coordinate_saes(tmp_path / "saes")
    run = capture(model, ids_of(model, TEXT))
    (sae, index), count = best_feature(model, list(load_saes(str(folder), model)), run)
    assert index == SADNESS and sae.layer >= CARRIER
    with Store.open(tmp_path / "cache") as store:
        request = InspectRequest(
            spec=ModelSpec(str(tmp_path / "planted")),
            text=TEXT,
            cache_dir=str(store.root),
            saes=(str(folder),),
            edits=(f"ablate L{sae.layer}/{index} at readout",),
            selected=True,
        )
        done = inspect(request, model, Instruments(model, store), store, QuietJob())
        trace = store.get_trace(done.trace_id)
        (effect,) = (e for e in trace.effects if e.metric == "answer.sadness")
        assert effect.verdict.startswith(
            f"Selected: beyond {DRAWS} of {DRAWS} best-of-{count} random draws; rank 1 of"
        )
        fact = f"selected: of {DRAWS} best-of-{count} draws, answer beyond {DRAWS}"
        assert fact in facts_of(trace)
        assert f"the best of {count} random directions" in markdown_bytes(trace).decode()


@pytest.mark.parametrize("where", ["readout", "3-5"])
def test_the_maxima_are_those_of_directions_that_are_all_drawn_and_all_run(
    where: str, tmp_path: Path
) -> None:
    """The slopes only save rows: quartiles of 395 maxima, of estimates and of everything run."""
    model = tiny_model("llama")
    folder = tmp_path / "saes"
    for layer in range(LAYERS):
        hook = f"blocks.{layer}.hook_resid_post"
        write_sae(folder / str(layer), d_in=WIDTH, width=32, hook=hook, seed=layer, k=4)
    saes = list(load_saes(str(folder), model))
    run = capture(model, ids_of(model))
    at = [run.readout] if where == "readout" else [3, 4, 5]
    index = int(saes[1].encode(run.at("resid", 1)[at[-1]]).argmax())
    maxima: list[float] = []
    with Store.open(tmp_path / "cache") as store:
        for seed in range(5):
            request = InspectRequest(
                spec=ModelSpec(str(tiny_folder("llama"))),
                text=SHOUTED,
                cache_dir=str(store.root),
                saes=(str(folder),),
                edits=(f"ablate L1/{index} at {where}",),
                selected=True,
                metric="none",
                seed=seed,
            )
            done = inspect(request, model, Instruments(model, store), store, QuietJob())
            control = selections(store.get_trace(done.trace_id))["answer.joy"]
            maxima += control.deltas
    whole = torch.stack([maxima_by_hand(model, saes, run, at, seed) for seed in range(len(maxima))])
    assert control.candidates == len(active_at(saes, run, at))
    quartiles = torch.tensor([0.25, 0.5, 0.75])
    ours, theirs = torch.tensor(maxima).quantile(quartiles), whole.quantile(quartiles)
    assert torch.allclose(ours, theirs, rtol=0.1), (ours, theirs)


def active_at(saes: list[Sae], run: Activations, at: list[int]) -> list[tuple[int, Tensor]]:
    """Layer, and norm of what ablating adds at each position, of each active feature."""
    return [
        (sae.layer, sizes)
        for sae in saes
        for sizes in (sae.encode(run.at("resid", sae.layer)[at]) * sae.weights.decoder_norm).T
        if bool(sizes.any())
    ]


def maxima_by_hand(
    model: LoadedModel, saes: list[Sae], run: Activations, at: list[int], seed: int
) -> Tensor:
    """Run a random direction for each active feature; return the largest change of any label."""
    deciding = list(label_tokens(model.reader, "ekman7", template_named("ask")).deciding)
    features = active_at(saes, run, at)
    drawn = torch.randn(len(features), WIDTH, generator=torch.Generator().manual_seed(1000 + seed))
    unit = drawn / drawn.norm(dim=-1, keepdim=True)
    sizes = torch.stack([size for _, size in features])
    layers = torch.tensor([layer for layer, _ in features])

    def hook(layer: int) -> Hook:
        def function(tensor: Tensor) -> Tensor:
            changed = tensor.clone()
            mine = layers == layer
            changed[mine[:, None].nonzero()[:, :1], at] += (sizes[..., None] * unit[:, None])[mine]
            return changed

        return Hook("resid", layer, function)

    hooks = [hook(layer) for layer in range(LAYERS)]
    with torch.no_grad(), hooked(model, hooks):
        logits = model.forward([run.token_ids] * len(features))[:, -1]
    after = logits[:, deciding].softmax(dim=-1)
    return (after - run.logits[deciding].softmax(dim=-1)).abs().max()


@pytest.mark.parametrize("first", [0, 4])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_slopes_are_those_of_one_whole_backward_pass(family: str, first: int) -> None:
    """Resumed at a layer and a token, many numbers at once, against one metric of the full run."""
    model = in_dtype(family, torch.float64)
    run = capture(model, ids_of(model))
    labels = label_tokens(model.reader, "ekman7", template_named("ask"))
    deciding = list(labels.deciding)
    places: list[tuple[Site, int]] = [("resid", 1), ("mlp", 2), ("attn", 3)]
    found = slopes(
        model,
        run.resid[1],
        start=1,
        places=places,
        value=lambda logits, _resid: logits[:, deciding],
        first=first,
    )
    metric = answer_metric(labels, "joy")
    assert metric is not None
    whole = gradients(model, run.token_ids, metric, all_sites=True)
    joy = labels.labels.index("joy")
    others = [row for row in range(len(deciding)) if row != joy]
    for site, layer in places:
        slope = found[site, layer]
        assert slope.shape == (len(deciding), len(run.token_ids) - first, WIDTH)
        margin_slope = slope[joy] - slope[others].mean(dim=0)
        # Norms and rotations of some families are computed in float32 whatever the dtype.
        assert (margin_slope - whole.at(site, layer)[first:]).abs().max() < 1e-6
        assert margin_slope.abs().max() > 1e-2
