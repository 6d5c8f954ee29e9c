"""Traces with edits: effects, controls, lineage and what is said where nothing happens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from support_models import LAYERS, WIDTH, tiny_folder, tiny_model
from support_saes import write_residual_saes

from emotui.cache.store import Store
from emotui.core.emotions import LABEL_SETS
from emotui.core.engine.capture import QuietJob
from emotui.core.engine.effects import divergence
from emotui.core.engine.inspect import inspect
from emotui.core.engine.instruments import Instruments
from emotui.core.engine.model import LoadedModel
from emotui.core.errors import EditError
from emotui.core.protocol import Inspected, InspectRequest, ModelSpec
from emotui.core.records import Effect, Trace

TEXT = "He shouted at me for no reason and I could not answer."


class Bench:
    """One tiny model with SAEs, and a store."""

    def __init__(self, family: str, root: Path) -> None:
        self.model: LoadedModel = tiny_model(family)
        self.store = Store.open(root / "cache")
        self.request = InspectRequest(
            spec=ModelSpec(str(tiny_folder(family))),
            text=TEXT,
            cache_dir=str(root / "cache"),
            saes=(str(write_residual_saes(root / "saes", d_in=WIDTH, layers=LAYERS)),),
        )
        self.instruments = Instruments(self.model, self.store)

    def inspect(self, *edits: str, selected: bool = False, text: str = TEXT) -> Inspected:
        request = msgspec.structs.replace(self.request, edits=edits, selected=selected, text=text)
        return inspect(request, self.model, self.instruments, self.store, QuietJob())

    def trace(self, *edits: str, selected: bool = False) -> Trace:
        return self.store.get_trace(self.inspect(*edits, selected=selected).trace_id)

    def active(self, layer: int, *, position: int | None = None) -> list[int]:
        """Features that are active at a text token of the plain trace, strongest first."""
        trace = self.trace()
        features = trace.features
        rows = [
            row
            for row, (at, where) in enumerate(zip(features.layer, features.position, strict=True))
            if at == layer and where == (trace.text.last if position is None else position)
        ]
        return [features.index[row] for row in sorted(rows, key=lambda r: -features.activation[r])]


@pytest.fixture(scope="module", params=["llama", "gemma2", "gpt2"])
def bench(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    made = Bench(request.param, tmp_path_factory.mktemp("bench"))
    yield made
    made.store.close()


def effect_of(trace: Trace, metric: str) -> Effect:
    return next(effect for effect in trace.effects if effect.metric == metric)


def test_an_effect_stands_beside_all_its_controls(bench: Bench) -> None:
    feature = bench.active(1)[0]
    root, trace = bench.trace(), bench.trace(f"ablate L1/{feature} at all", selected=True)
    assert trace.parent == root.id and root.parent is None
    assert trace.edits == (f"ablate L1/{feature} at all",)
    assert trace.intervention is not None and trace.intervention.selected
    text_tokens = sum(token.part == "text" for token in trace.text.tokens)
    assert trace.intervention.fired == text_tokens
    assert trace.intervention.kl > 0
    assert trace.intervention.delta_norm > 0
    assert trace.answer is not None and root.answer is not None
    for label in LABEL_SETS["ekman7"]:
        effect = effect_of(trace, f"answer.{label}")
        assert effect.after == pytest.approx(trace.answer.labels[label], abs=1e-6)
        assert effect.before == effect.clean == pytest.approx(root.answer.labels[label], abs=1e-6)
        assert effect.delta == pytest.approx(effect.after - effect.before, abs=1e-7)
        matched, random, other = effect.controls
        assert len(matched.deltas) == len(set(matched.targets)) <= 32
        assert (len(matched.deltas) == 32) == (matched.note == "")
        assert f"L1/{feature}" not in matched.targets
        assert matched.rank == 1 + sum(abs(d) >= abs(effect.delta) for d in matched.deltas)
        assert len(random.deltas) == 5
        assert other.deltas == () and "no probe" in other.note
    kl = effect_of(trace, "kl")
    assert kl.before == pytest.approx(0, abs=1e-6)
    assert kl.after == pytest.approx(trace.intervention.kl, rel=1e-3)


def test_matched_controls_are_what_ablating_that_feature_gives(bench: Bench) -> None:
    """A control row is no other number than the effect of that edit made alone."""
    first, second = bench.active(2)[:2]
    trace = bench.trace(f"ablate L2/{first} at all")
    effect = effect_of(trace, "answer.joy")
    matched = effect.controls[0]
    assert f"L2/{second}" in matched.targets
    as_control = matched.deltas[matched.targets.index(f"L2/{second}")]
    alone = effect_of(bench.trace(f"ablate L2/{second} at all"), "answer.joy")
    assert as_control == pytest.approx(alone.delta, abs=1e-5)


def test_an_inactive_feature_has_no_measurable_effect(bench: Bench) -> None:
    active = set(bench.active(1, position=3))
    inactive = next(index for index in range(64) if index not in active)
    root, trace = bench.trace(), bench.trace(f"ablate L1/{inactive} at 3")
    assert trace.readouts == root.readouts
    assert trace.features == root.features
    assert trace.lens == root.lens and trace.answer == root.answer
    assert trace.intervention is not None
    assert trace.intervention.kl == 0 and trace.intervention.delta_norm == 0
    for effect in trace.effects:
        assert effect.delta == 0
        assert effect.verdict == "No measurable effect of removing this alone."


def test_edits_stack_and_each_state_is_a_cached_trace(bench: Bench) -> None:
    one, two = bench.active(1)[:2]
    lines = (f"ablate L1/{one} at all", f"scale L1/{two} x3 at last", "steer L3/5 +0.2 at readout")
    last = bench.trace(*lines)
    middle = bench.trace(*lines[:2])
    first = bench.trace(*lines[:1])
    assert (last.parent, middle.parent, first.parent) == (middle.id, first.id, bench.trace().id)
    effect = effect_of(last, "answer.joy")
    assert middle.answer is not None and last.answer is not None
    assert effect.before == pytest.approx(middle.answer.labels["joy"], abs=1e-6)
    assert effect.after == pytest.approx(last.answer.labels["joy"], abs=1e-6)
    assert effect.clean == effect_of(first, "answer.joy").before
    again = bench.inspect(*lines)
    assert (again.cached, again.forwards) == (True, 0)


def test_the_printed_form_is_what_is_kept(bench: Bench) -> None:
    feature = bench.active(1)[0]
    loose = bench.inspect(f"ABLATE  L1/{feature}")
    strict = bench.inspect(f"ablate L1/{feature} at all")
    assert strict.cached and loose.trace_id == strict.trace_id


@pytest.mark.parametrize("line", ["ablate L9/1 at all", "ablate L1/64 at all", "ablate L1/1 at 99"])
def test_an_edit_that_does_not_fit_leaves_everything_as_it_was(bench: Bench, line: str) -> None:
    bench.inspect()
    before = bench.store.traces()
    with pytest.raises(EditError):
        bench.inspect(line)
    assert bench.store.traces() == before


def test_a_model_without_saes_says_so(bench: Bench) -> None:
    request = msgspec.structs.replace(bench.request, saes=(), edits=("ablate L1/3 at all",))
    with pytest.raises(EditError, match="No SAE is loaded"):
        inspect(request, bench.model, bench.instruments, bench.store, QuietJob())


def test_divergence_equals_scipy() -> None:
    special = pytest.importorskip("scipy.special")
    before, after = torch.randn(40) * 3, torch.randn(3, 40) * 3
    p = special.softmax(before.double().numpy())
    for row in range(3):
        q = special.softmax(after[row].double().numpy())
        expected = special.rel_entr(p, q).sum()
        assert float(divergence(before, after)[row]) == pytest.approx(expected, rel=1e-5)


def test_undoing_a_selected_edit_finds_the_trace_that_was_shown(bench: Bench) -> None:
    one, two = bench.active(2)[2:4]
    first = bench.inspect(f"ablate L2/{one} at all", selected=True)
    second = bench.trace(f"ablate L2/{one} at all", f"ablate L2/{two} at all", selected=True)
    assert second.parent == first.trace_id
    assert bench.store.get_trace(first.trace_id).parent == bench.trace().id
