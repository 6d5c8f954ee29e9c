"""The attribution a trace carries: against plain autograd, its cost, its refusals, its report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import torch
from support_attribute import FAMILIES, TEXT, ids_of
from support_models import LAYERS, WIDTH, tiny_folder, tiny_model
from support_saes import write_residual_saes, write_sae
from torch import Tensor, nn

from emotui.cache.store import Store
from emotui.core.engine.answer import label_tokens
from emotui.core.engine.attribute import margin
from emotui.core.engine.attributor import metric_of
from emotui.core.engine.capture import Hook, QuietJob, capture
from emotui.core.engine.inspect import inspect
from emotui.core.engine.instruments import Instruments
from emotui.core.engine.model import LoadedModel
from emotui.core.engine.saes import load_saes
from emotui.core.errors import UsageError
from emotui.core.protocol import Inspected, InspectRequest, ModelSpec
from emotui.core.records import Answer, Trace
from emotui.core.text import template_named


class Bench:
    """One tiny model with SAEs at every site, and a store."""

    def __init__(self, family: str, root: Path) -> None:
        self.model = tiny_model(family)
        self.store = Store.open(root / "cache")
        self.saes = write_residual_saes(root / "saes", d_in=WIDTH, layers=LAYERS)
        write_sae(root / "mixed" / "mlp_1", d_in=WIDTH, hook="blocks.1.hook_mlp_out", k=None)
        write_sae(root / "mixed" / "attn_2", d_in=WIDTH, hook="blocks.2.hook_attn_out", k=None)
        self.mixed = root / "mixed"
        self.request = InspectRequest(
            spec=ModelSpec(str(tiny_folder(family))),
            text=TEXT,
            cache_dir=str(root / "cache"),
            saes=(str(self.saes), str(self.mixed)),
        )
        self.instruments = Instruments(self.model, self.store)

    def inspect(self, **changes: Any) -> Inspected:
        request = msgspec.structs.replace(self.request, **changes)
        return inspect(request, self.model, self.instruments, self.store, QuietJob())

    def trace(self, **changes: Any) -> Trace:
        return self.store.get_trace(self.inspect(**changes).trace_id)


@pytest.fixture(scope="module", params=FAMILIES)
def bench(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    made = Bench(request.param, tmp_path_factory.mktemp("bench"))
    yield made
    made.store.close()


def block_output(model: LoadedModel, layer: int) -> nn.Module:
    hf = model.hf
    blocks = hf.transformer.h if model.architecture == "gpt2" else hf.model.layers
    return cast(nn.Module, blocks[layer])


def test_a_trace_carries_what_plain_autograd_gives(bench: Bench) -> None:
    trace = bench.trace()
    model = bench.model
    assert trace.answer is not None and trace.attribution is not None
    top, _ = max(trace.answer.labels.items(), key=lambda one: one[1])
    assert trace.attribution.metric == f"answer.{top}" and trace.attribution.note == ""
    labels = label_tokens(model.reader, "ekman7", template_named("ask"))
    kept: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            tensor = output[0] if isinstance(output, tuple) else output
            kept[layer] = tensor.detach().requires_grad_() if layer == 0 else tensor
            if layer > 0:
                return None
            return (kept[0], *output[1:]) if isinstance(output, tuple) else kept[0]

        return hook

    handles = [
        block_output(model, layer).register_forward_hook(keep(layer)) for layer in range(LAYERS)
    ]
    ids = [*ids_of(model), *labels.prefix]
    logits = model.hf(torch.tensor([ids]), use_cache=False).logits[0, -1]
    for handle in handles:
        handle.remove()
    scores = logits[list(labels.deciding)]
    own = labels.labels.index(top)
    value = scores[own] - (scores.sum() - scores[own]) / (len(scores) - 1)
    assert trace.attribution.value == pytest.approx(float(value.detach()), abs=1e-4)
    slopes = torch.autograd.grad(value, [kept[layer] for layer in range(LAYERS)])
    saes = load_saes(str(bench.saes), model)
    rows, features = 0, trace.features
    for row, sae_id in enumerate(features.sae):
        if features.site[row] != "resid":
            continue
        layer, position = features.layer[row], features.position[row]
        direction = saes.get("resid", layer).weights.decoder[features.index[row]]
        expected = -features.activation[row] * float(direction @ slopes[layer][0, position])
        assert features.attribution[row] == pytest.approx(expected, rel=1e-3, abs=1e-4), sae_id
        rows += 1
    assert rows > 100


def test_every_feature_of_every_site_and_every_output_is_attributed(bench: Bench) -> None:
    trace = bench.trace()
    assert {"resid", "attn", "mlp"} == set(trace.features.site)
    assert all(value is not None for value in trace.features.attribution)
    assert trace.attribution is not None
    writes = trace.attribution.writes
    n_tokens = len(trace.text.tokens)
    assert len(writes.value) == (2 * LAYERS + 1) * n_tokens
    # By hand: scaling one output by a little moves the metric by its write.
    row = next(
        row
        for row, place in enumerate(zip(writes.site, writes.layer, writes.position, strict=True))
        if place == ("mlp", LAYERS - 1, n_tokens - 1)
    )
    labels = label_tokens(bench.model.reader, "ekman7", template_named("ask"))
    column = labels.labels.index(trace.attribution.metric.removeprefix("answer."))

    def scaled(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        changed[:, n_tokens - 1] *= 1.01
        return changed

    ids = [*ids_of(bench.model), *labels.prefix]
    moved, still = (
        margin(capture(bench.model, ids, hooks=hooks).logits[list(labels.deciding)], column)
        for hooks in ([Hook("mlp", LAYERS - 1, scaled)], [])
    )
    assert float(moved - still) * 100 == pytest.approx(writes.value[row], rel=0.05, abs=2e-2)


def test_the_pass_is_made_once_for_a_metric_and_kept(bench: Bench) -> None:
    text = "The milk had turned and there was mould on the bread."
    assert bench.inspect(text=text, saes=(), all_sites=True, metric="none").forwards >= 1
    assert bench.inspect(text=text, saes=(), all_sites=True).forwards == 1
    # From here on, no SAE costs a pass; another metric costs its own.
    assert bench.inspect(text=text, saes=(str(bench.saes),)).forwards <= 1
    assert bench.inspect(text=text).forwards == 0
    assert bench.inspect(text=text, seed=1).forwards == 0
    assert bench.inspect(text=text, metric="answer.fear").forwards <= 1
    plain = bench.trace(text=text, metric="none")
    assert plain.attribution is None and set(plain.features.attribution) == {None}
    fear = bench.trace(text=text, metric="answer.fear")
    assert fear.attribution is not None and fear.attribution.metric == "answer.fear"
    assert fear.features.activation == plain.features.activation


def test_where_no_single_token_decides_it_says_so(bench: Bench) -> None:
    trace = bench.trace(label_set="goemotions28")
    assert trace.answer is not None and trace.attribution is not None
    assert trace.answer.rule == "whole_label", "as the tokenizer of the tiny models has it"
    assert trace.attribution.metric == "" and trace.attribution.value is None
    assert "no single token decides" in trace.attribution.note
    assert set(trace.features.attribution) == {None}


@pytest.mark.parametrize(
    ("metric", "why"),
    [
        ("best", "There is no metric"),
        ("answer.hunger", "no emotion of the label set ekman7"),
        ("answer.joy@L2", "There is no metric"),
        ("readout.joy", "no readout probe is in force"),
    ],
)
def test_a_metric_that_does_not_exist_says_what_does(metric: str, why: str) -> None:
    model = tiny_model("llama")
    labels = label_tokens(model.reader, "ekman7", template_named("ask"))
    answer = Answer(dict.fromkeys(labels.labels, 1 / 7), "ekman7", labels.rule, 1)
    with pytest.raises(UsageError) as caught:
        metric_of(metric, labels=labels, answer=answer, probes=(), n_layers=LAYERS, readout=5)
    assert why in str(caught.value) and caught.value.todo


def test_the_plain_report_names_what_matters_most(bench: Bench) -> None:
    from emotui.commands.report import report_of

    trace = bench.trace()
    report = report_of(trace)
    assert trace.attribution is not None
    assert f"attribution to {trace.attribution.metric}" in report
    features = trace.features
    row = max(range(len(features.index)), key=lambda row: abs(features.attribution[row] or 0.0))
    assert f"L{features.layer[row]}/{features.index[row]} at {features.position[row]}" in report
    assert "attribution" not in report_of(bench.trace(metric="none"))
    assert "no attribution: The labels" in report_of(bench.trace(label_set="goemotions28"))
