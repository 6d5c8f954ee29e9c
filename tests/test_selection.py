"""The best of all active features is an effect only if it beats the best of as many controls.

Ranked among its own controls, the feature that was picked for its effect is first by the picking
alone. Here the picking is paid for: a control of every active feature, a random direction of the
norm of what its ablation adds, and of these the one of largest effect; so 39 times. By chance the
best feature exceeds all 39 one time in 40. The rule stands in this file: what is shown of one edit
ranks it beside its own controls and marks it `selected`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from support_edits import ids_of
from support_models import LAYERS, WIDTH, tiny_model
from support_saes import write_sae
from test_planted import CARRIER, SADNESS, TEXT, coordinate_saes, planted_model
from torch import Tensor

from emotui.core.engine.answer import label_tokens
from emotui.core.engine.attribute import margin
from emotui.core.engine.capture import Activations, Hook, QuietJob, capture
from emotui.core.engine.exact import ablations
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.rerun import Rows, rerun
from emotui.core.engine.saes import Sae, load_saes
from emotui.core.protocol import ModelSpec
from emotui.core.text import template_named

DRAWS = 39
SEEDS = 100
Feature = tuple[Sae, int]


def active_features(saes: Sequence[Sae], run: Activations) -> list[Feature]:
    return [
        (sae, int(index))
        for sae in saes
        for index in sae.encode(run.at("resid", sae.layer)[-1]).nonzero().flatten()
    ]


def effects_on(model: LoadedModel, run: Activations, rows: Rows) -> Tensor:
    """How far each row moves the margin of the likeliest answer."""
    deciding = list(label_tokens(model.reader, "ekman7", template_named("ask")).deciding)
    before = run.logits[deciding]
    top = int(before.argmax())
    return (margin(rows.logits[:, deciding], top) - margin(before, top)).abs()


def controls(run: Activations, features: Sequence[Feature], seed: int, model: LoadedModel) -> Rows:
    """Run `DRAWS` random directions of each feature's norm and layer, at the readout."""
    sizes = [
        sae.encode(run.at("resid", sae.layer)[-1])[index] * sae.directions([index])[0].norm()
        for sae, index in features
    ]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(DRAWS * len(features), WIDTH, generator=generator)
    added = drawn / drawn.norm(dim=-1, keepdim=True) * torch.stack(sizes * DRAWS)[:, None]
    layers = torch.tensor([sae.layer for sae, _ in features] * DRAWS)

    def hooks(rows: range) -> list[Hook]:
        def hook(layer: int) -> Hook:
            here = torch.where(layers == layer, 1.0, 0.0)[rows.start : rows.stop, None]
            return Hook(
                "resid",
                layer,
                lambda h: h + (here * added[rows.start : rows.stop])[:, None],
            )

        return [hook(layer) for layer in sorted(set(layers.tolist()))]

    start = int(layers.min())
    return rerun(
        model,
        run.resid[start],
        start=start,
        n_rows=len(layers),
        hooks=hooks,
        first=len(run.token_ids) - 1,
    )


def best_beyond_controls(
    model: LoadedModel, saes: Sequence[Sae], run: Activations, seed: int
) -> tuple[Feature, bool]:
    """Return the active feature of largest effect, and whether it beats all 39 maxima."""
    features = active_features(saes, run)
    rows = ablations(model, run, features, position=len(run.token_ids) - 1)
    effects = effects_on(model, run, rows)
    largest = effects_on(model, run, controls(run, features, seed, model)).max()
    return features[int(effects.argmax())], bool(effects.max() > largest)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_where_no_feature_is_special_the_best_is_no_effect(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    run = capture(model, ids_of(model))
    reported = 0
    for seed in range(SEEDS):
        root = tmp_path / str(seed)
        for layer in range(LAYERS):
            hook = f"blocks.{layer}.hook_resid_post"
            number = SEEDS * (layer + 1) + seed
            write_sae(root / str(layer), d_in=WIDTH, width=128, hook=hook, seed=number)
        saes = list(load_saes(str(root), model))
        reported += best_beyond_controls(model, saes, run, seed)[1]
    assert reported <= 5


def test_a_feature_that_causes_the_answer_is_an_effect(tmp_path: Path) -> None:
    """So the rule does not pass by saying nothing."""
    model = load_model(ModelSpec(str(planted_model(tmp_path))), QuietJob())
    saes = list(load_saes(str(coordinate_saes(tmp_path / "saes")), model))
    run = capture(model, ids_of(model, TEXT))
    (sae, index), beyond = best_beyond_controls(model, saes, run, 0)
    assert (index, beyond) == (SADNESS, True)
    assert sae.layer >= CARRIER
