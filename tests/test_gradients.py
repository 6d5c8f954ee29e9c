"""Gradients and estimates against finite differences, exact ablation and a linear model."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from support_attribute import FAMILIES, ids_of
from support_models import LAYERS, WIDTH, tiny_folder, tiny_model
from support_saes import write_residual_saes
from torch import Tensor, nn

from emotui.core.engine.answer import label_tokens
from emotui.core.engine.attribute import (
    Gradients,
    Metric,
    answer_metric,
    estimates,
    gradients,
    margin,
    readout_metric,
)
from emotui.core.engine.capture import Hook, QuietJob, capture
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.saes import load_saes
from emotui.core.engine.sites import SITE_TABLES, Sites
from emotui.core.errors import Cancelled
from emotui.core.protocol import ModelSpec
from emotui.core.records import Site
from emotui.core.text import template_named

SITES: tuple[Site, ...] = ("resid", "attn", "mlp")


@functools.cache
def in_double(family: str) -> LoadedModel:
    model = load_model(ModelSpec(model=str(tiny_folder(family))), QuietJob())
    return dataclasses.replace(model, hf=model.hf.double(), dtype=torch.float64)


@pytest.fixture
def _all_in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep float64 where transformers computes norms and softmaxes in float32."""
    to, narrow, softmax = Tensor.to, Tensor.float, nn.functional.softmax

    def stay(tensor: Tensor, *arguments: Any, **named: Any) -> Tensor:
        if tensor.dtype == torch.float64 and arguments == (torch.float32,):
            return tensor
        return to(tensor, *arguments, **named)

    def wide(tensor: Tensor) -> Tensor:
        return tensor if tensor.dtype == torch.float64 else narrow(tensor)

    def wide_softmax(tensor: Tensor, *arguments: Any, **named: Any) -> Tensor:
        if tensor.dtype == torch.float64:
            named.pop("dtype", None)
        return softmax(tensor, *arguments, **named)

    monkeypatch.setattr(Tensor, "to", stay)
    monkeypatch.setattr(Tensor, "float", wide)
    monkeypatch.setattr(nn.functional, "softmax", wide_softmax)


@pytest.fixture(params=FAMILIES)
def double(request: pytest.FixtureRequest, _all_in_double: None) -> LoadedModel:
    return in_double(request.param)


def joy_metric(model: LoadedModel) -> Metric:
    metric = answer_metric(label_tokens(model.reader, "ekman7", template_named("ask")), "joy")
    assert metric is not None
    return metric


def joy_of(model: LoadedModel, logits: Tensor) -> float:
    """The metric by hand: joy's logit minus the mean of the other six."""
    labels = label_tokens(model.reader, "ekman7", template_named("ask"))
    scores = dict(zip(labels.labels, logits[list(labels.deciding)].tolist(), strict=True))
    own = scores.pop("joy")
    return float(own - sum(scores.values()) / len(scores))


def run_of(model: LoadedModel, hooks: list[Hook]) -> float:
    suffix = list(joy_metric(model).suffix)
    return joy_of(model, capture(model, [*ids_of(model), *suffix], hooks=hooks).logits)


def adding(site: Site, layer: int, position: int, vector: Tensor) -> Hook:
    def function(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        changed[..., position, :] += vector
        return changed

    return Hook(site, layer, function)


def slope_by_differences(
    model: LoadedModel,
    site: Site,
    layer: int,
    position: int,
    vector: Tensor,
    before: list[Hook] | None = None,
    *,
    step: float = 1e-5,
) -> float:
    up, down = (
        run_of(model, [*(before or []), adding(site, layer, position, sign * step * vector)])
        for sign in (1, -1)
    )
    return (up - down) / (2 * step)


def places(model: LoadedModel) -> Iterator[tuple[Site, int, int, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    n_tokens = len(ids_of(model))
    for site in SITES:
        for layer in range(-1 if site == "resid" else 0, LAYERS):
            position = int(torch.randint(n_tokens, (1,), generator=generator))
            yield site, layer, position, torch.randn(WIDTH, generator=generator).double()
        yield site, LAYERS - 1, n_tokens - 1, torch.randn(WIDTH, generator=generator).double()


def test_gradients_equal_finite_differences(double: LoadedModel) -> None:
    found = gradients(double, ids_of(double), joy_metric(double), all_sites=True)
    assert found.value == pytest.approx(run_of(double, []), abs=1e-9)
    seen = 0
    for site, layer, position, vector in places(double):
        expected = slope_by_differences(double, site, layer, position, vector)
        given = float(found.at(site, layer)[position] @ vector)
        assert given == pytest.approx(expected, rel=1e-5, abs=1e-7), (site, layer, position)
        seen += abs(expected) > 1e-3
    assert seen >= 6, "most of these places reach the answer"


def test_gradients_pass_through_the_edits_in_force(double: LoadedModel) -> None:
    """A clamp hides what lies before it: the slope is that of the edited model."""

    generator = torch.Generator().manual_seed(2)
    direction = torch.randn(WIDTH, generator=generator).double()
    direction /= direction.norm()

    def clamp(tensor: Tensor) -> Tensor:
        return tensor + (2.0 - tensor @ direction)[..., None] * direction

    edits = [Hook("resid", 1, clamp)]
    found = gradients(double, ids_of(double), joy_metric(double), hooks=edits)
    plain = gradients(double, ids_of(double), joy_metric(double))
    vector = direction + 0.3 * torch.randn(WIDTH, generator=generator).double()
    for layer, position in ((0, 3), (0, 5), (-1, 2)):
        expected = slope_by_differences(double, "resid", layer, position, vector, edits)
        given = float(found.at("resid", layer)[position] @ vector)
        assert given == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert given != pytest.approx(float(plain.at("resid", layer)[position] @ vector), rel=1e-3)
    # What the clamp has set is past it: nothing before it moves that.
    assert float(found.at("resid", 1)[3] @ direction) != pytest.approx(0, abs=1e-6)


def test_estimates_equal_exact_ablation_where_the_ablation_is_small(
    double: LoadedModel, tmp_path: Path
) -> None:
    saes = load_saes(str(write_residual_saes(tmp_path / "s", d_in=WIDTH, layers=LAYERS)), double)
    found = gradients(double, ids_of(double), joy_metric(double))
    run = capture(double, ids_of(double))
    share = 1e-6
    for layer in range(LAYERS):
        sae = saes.get("resid", layer)
        for position in (4, run.readout):
            features = sae.encode(run.at("resid", layer)[position])
            index = int(features.argmax())
            f = float(features[index])
            (estimate,) = estimates(
                sae,
                found.at("resid", layer),
                index=[index],
                position=[position],
                activation=[f],
            ).tolist()
            removed = -share * f * sae.directions([index])[0]
            edited = run_of(double, [adding("resid", layer, position, removed)])
            assert (edited - found.value) / share == pytest.approx(estimate, rel=1e-3, abs=1e-6)


class _Identity(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h


@pytest.fixture
def linear(_all_in_double: None) -> LoadedModel:
    """A model in which the answer is linear in the residual stream: dead blocks, no norm."""
    model = in_double("llama")
    hf: Any = copy.deepcopy(model.hf)
    for block in hf.model.layers:
        block.self_attn.o_proj.weight.data.zero_()
        block.mlp.down_proj.weight.data.zero_()
    hf.model.norm = _Identity()
    return dataclasses.replace(model, hf=hf, sites=Sites(hf, SITE_TABLES["llama"]))


def test_estimates_are_exact_where_the_model_is_linear(linear: LoadedModel, tmp_path: Path) -> None:
    saes = load_saes(str(write_residual_saes(tmp_path / "s", d_in=WIDTH, layers=LAYERS)), linear)
    found = gradients(linear, ids_of(linear), joy_metric(linear))
    run = capture(linear, ids_of(linear))
    # All of the answer was written by the embedding of the last token.
    writes = found.writes[:, -1]
    assert float(writes[0]) == pytest.approx(found.value, abs=1e-5)
    assert writes[1:].abs().max() == 0
    biggest = 0.0
    for layer in range(LAYERS):
        sae = saes.get("resid", layer)
        features = sae.encode(run.at("resid", layer)[-1])
        active = features.nonzero().flatten().tolist()
        given = estimates(
            sae,
            found.at("resid", layer),
            index=active,
            position=[run.readout] * len(active),
            activation=features[active].tolist(),
        )
        for index, estimate in zip(active, given.tolist(), strict=True):
            removed = -features[index] * sae.directions([index])[0]
            exact = run_of(linear, [adding("resid", layer, run.readout, removed)]) - found.value
            assert estimate == pytest.approx(exact, abs=1e-9)
            biggest = max(biggest, abs(exact))
    assert biggest > 0.1


def ranks(values: Tensor) -> Tensor:
    return values.argsort().argsort().double()


def spearman(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([ranks(one), ranks(other)]))[0, 1])


def test_estimates_rank_as_exact_ablation_does(
    stories: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """On a trained model, with the sign too: a flipped sign would give -1."""
    model = load_model(ModelSpec(model=str(stories)), QuietJob())
    saes = load_saes(str(write_residual_saes(tmp_path / "s", d_in=64, layers=5)), model)
    ids = ids_of(model, "Lily was sad because her toy was lost.")
    metric = joy_metric(model)
    found, run = gradients(model, ids, metric), capture(model, ids)
    given: list[float] = []
    exact: list[float] = []
    for layer in range(5):
        sae = saes.get("resid", layer)
        features = sae.encode(run.at("resid", layer)[-1])
        active = features.nonzero().flatten().tolist()
        given += estimates(
            sae,
            found.at("resid", layer),
            index=active,
            position=[run.readout] * len(active),
            activation=features[active].tolist(),
        ).tolist()
        for index in active:
            removed = -features[index] * sae.directions([index])[0]
            hook = adding("resid", layer, run.readout, removed)
            logits = capture(model, [*ids, *metric.suffix], hooks=[hook]).logits
            exact.append(joy_of(model, logits) - found.value)
    rho = spearman(torch.tensor(given), torch.tensor(exact))
    record_property("spearman", rho)
    print(f"Spearman of estimate and exact ablation, {len(given)} features: {rho:.3f}")  # noqa: T201
    assert len(given) >= 30
    assert rho > 0.5


def test_a_probe_readout_is_a_metric_with_no_slope_above_its_layer(double: LoadedModel) -> None:
    generator = torch.Generator().manual_seed(3)
    probe = cast(
        Any,
        SimpleNamespace(
            id="p",
            places=(("resid", -1), ("resid", 0), ("resid", 1), ("resid", 2)),
            emotions=("anger", "joy"),
            weight=torch.randn(4, WIDTH, 2, generator=generator),
            center=torch.randn(4, WIDTH, generator=generator),
            bias=torch.randn(4, 2, generator=generator),
        ),
    )
    ids = ids_of(double)
    metric = readout_metric(probe, "joy", 1, len(ids) - 1)
    assert metric.name == "readout.joy@L1"
    found = gradients(double, ids, metric, all_sites=True)
    h = capture(double, ids).at("resid", 1)[-1]
    expected = (h - probe.center[2].double()) @ probe.weight[2, :, 1].double() + probe.bias[2, 1]
    assert found.value == pytest.approx(float(expected), abs=1e-6)
    assert torch.allclose(found.at("resid", 1)[-1], probe.weight[2, :, 1].double())
    assert found.at("resid", 1)[:-1].abs().max() == 0
    for site, layer in (("resid", 2), ("resid", 3), ("attn", 2), ("mlp", 3)):
        assert found.at(cast(Site, site), layer).abs().max() == 0
    assert found.at("resid", 0)[:-1].abs().max() > 0, "earlier tokens reach it by attention"


def test_the_margin_is_a_label_against_the_mean_of_the_others() -> None:
    assert float(margin(torch.tensor([1.0, 2.0, 6.0]), 2)) == 4.5
    assert margin(torch.tensor([[1.0, 2.0], [5.0, 1.0]]), 0).tolist() == [-1.0, 4.0]


def test_gradients_leave_nothing_behind_and_can_be_cancelled() -> None:
    model = tiny_model("gpt2")
    before = model.forwards
    gradients(model, ids_of(model), joy_metric(model))
    assert model.forwards - before == 1
    assert all(p.grad is None and not p.requires_grad for p in model.hf.parameters())
    assert not model.forward([ids_of(model)]).requires_grad

    class OnTheWayBack(QuietJob):
        checks = 0

        def check(self) -> None:
            self.checks += 1
            if self.checks == LAYERS + 3:  # past the blocks of the forward
                raise Cancelled("The work was cancelled.")

    with pytest.raises(Cancelled):
        gradients(model, ids_of(model), joy_metric(model), job=OnTheWayBack())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules()]
    assert sum(hooks) == 0


def test_gradients_come_back_from_their_bytes() -> None:
    model = tiny_model("llama")
    found = gradients(model, ids_of(model), joy_metric(model), all_sites=True)
    again = Gradients.from_bytes(found.to_bytes(), devices=model.devices)
    assert again.value == found.value
    for name in ("resid", "attn", "mlp", "writes"):
        assert torch.equal(getattr(again, name), getattr(found, name))
    narrow = gradients(model, ids_of(model), joy_metric(model))
    with pytest.raises(KeyError, match=r"mlp\.0"):
        Gradients.from_bytes(narrow.to_bytes(), devices=model.devices).at("mlp", 0)
