"""Traces with edits: effects, controls, lineage and what is said where nothing happens."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from support_edits import EMOTIONS, random_probe
from support_models import LAYERS, WIDTH, tiny_folder, tiny_model
from support_saes import write_residual_saes

from emotui.cache.recipes import Recipe, save_recipe
from emotui.cache.store import Store
from emotui.core.emotions import LABEL_SETS
from emotui.core.engine.capture import QuietJob
from emotui.core.engine.inspect import inspect
from emotui.core.engine.instruments import Instruments
from emotui.core.engine.model import LoadedModel
from emotui.core.errors import EditError
from emotui.core.export.json import document_bytes
from emotui.core.protocol import Inspected, InspectRequest, ModelSpec
from emotui.core.records import Effect, Trace
from emotui.core.text import template_named

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
        matched, random, other, selection = effect.controls
        assert len(matched.deltas) == len(set(matched.targets)) <= 32
        assert (len(matched.deltas) == 32) == (matched.note == "")
        assert f"L1/{feature}" not in matched.targets
        assert matched.rank == 1 + sum(abs(d) >= abs(effect.delta) for d in matched.deltas)
        assert len(random.deltas) == 5
        assert other.deltas == () and "no probe" in other.note
        assert selection.name == "selection" and len(selection.deltas) == 79
        assert selection.rank == 1 + sum(d >= abs(effect.delta) for d in selection.deltas)
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
    (note,) = trace.intervention.notes
    assert note == f"L1/{inactive} is not active at 3: the edit changed nothing"
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


@pytest.mark.parametrize("amount", ["1e30", "1e22"])
def test_an_amount_beyond_float32_is_refused_and_nothing_is_kept(bench: Bench, amount: str) -> None:
    bench.inspect()
    before = bench.store.traces()
    with pytest.raises(EditError, match="too large"):
        bench.inspect(f"steer L1/3 +{amount} at all")
    assert bench.store.traces() == before


def test_an_amount_far_beyond_the_activation_is_said(bench: Bench) -> None:
    bench.inspect()
    far, near = (
        bench.store.get_trace(bench.inspect(f"steer L1/3 {amount} at all").trace_id).intervention
        for amount in ("+1000000000", "+0.1")
    )
    assert far is not None and "times the activation's own norm" in " ".join(far.notes)
    assert near is not None and "own norm" not in " ".join(near.notes)


def test_a_model_without_saes_says_so(bench: Bench) -> None:
    request = msgspec.structs.replace(bench.request, saes=(), edits=("ablate L1/3 at all",))
    with pytest.raises(EditError, match="No SAE is loaded"):
        inspect(request, bench.model, bench.instruments, bench.store, QuietJob())


# Edits of no feature


@pytest.fixture(scope="module")
def probed(bench: Bench) -> Bench:
    """The bench with a readout probe of random directions in force."""
    probe = random_probe(bench.model)
    bench.store.put_probe(probe.id, probe.to_bytes(), probe.file.card)
    made = copy(bench)
    made.request = msgspec.structs.replace(bench.request, probes=(probe.id,))
    return made


EVERY_KIND = (
    "knock attn L1-2 mean",
    "knock mlp L2 zero at all",
    "knock mlp L1 resample",
    "knock attn L0-3 random",
    "knock head L1.2 mean",
    'patch resid L2 from "Lily was happy because her friend came back."',
    "promote joy L1-2 +0.2",
    "project out anger",
    "modulate +other_agency -pleasantness L1-2 +0.2 keep predictability",
)


@pytest.mark.parametrize("line", EVERY_KIND)
def test_every_kind_of_edit_stands_beside_its_controls(probed: Bench, line: str) -> None:
    root, trace = probed.trace(), probed.trace(line)
    assert trace.parent == root.id and trace.edits[0].startswith(line)
    assert trace.intervention is not None and trace.answer is not None and root.answer is not None
    assert trace.intervention.delta_norm > 0 and trace.intervention.kl > 0
    effect = effect_of(trace, "answer.joy")
    assert effect.before == pytest.approx(root.answer.labels["joy"], abs=1e-6)
    assert effect.after == pytest.approx(trace.answer.labels["joy"], abs=1e-6)
    matched, random, other = effect.controls
    assert matched.deltas == () and "feature" in matched.note
    assert len(random.deltas) == len(set(random.deltas)) == 5
    assert random.rank == 1 + sum(abs(d) >= abs(effect.delta) for d in random.deltas)
    assert ("other seeds" in random.note) is line.endswith("random")
    along = line.startswith(("promote", "project"))
    assert len(other.deltas) == (len(EMOTIONS) - 1 if along else 0)
    assert other.note
    again = probed.inspect(line)
    assert (again.cached, again.forwards) == (True, 0)


@pytest.mark.parametrize("template", ["ask", "raw"])
def test_the_readout_by_its_number_has_the_controls_of_the_readout(
    bench: Bench, template: str
) -> None:
    """How a position is written changes nothing: not the effect, not what it is held against."""
    template = template_named(template).name
    request = msgspec.structs.replace(bench.request, template=template)

    def edited(line: str) -> Trace:
        asked = msgspec.structs.replace(request, edits=(line,))
        done = inspect(asked, bench.model, bench.instruments, bench.store, QuietJob())
        return bench.store.get_trace(done.trace_id)

    plain = inspect(request, bench.model, bench.instruments, bench.store, QuietJob())
    text = bench.store.get_trace(plain.trace_id).text
    named = edited("steer L1/3 +0.3 at readout")
    numbered = edited(f"steer L1/3 +0.3 at {text.readout}")
    assert named.effects == numbered.effects
    earlier = edited(f"steer L1/3 +0.3 at {text.readout - 1}")
    assert [e.metric for e in earlier.effects] == [e.metric for e in named.effects]
    assert earlier.effects != named.effects


@pytest.mark.parametrize(
    "line", ["ablate {feature} at readout", "steer {feature} +0.2 at all", "promote joy L1 +0.1"]
)
def test_a_probe_without_neutral_texts_measures_no_effect_and_the_trace_is_kept(
    bench: Bench, line: str
) -> None:
    """It has no z: every number of the effects is one of the answer or the divergence."""
    probe = random_probe(bench.model)
    missing = torch.full((len(probe.places), len(EMOTIONS)), torch.nan)
    card = msgspec.structs.replace(probe.file.card, id="without-neutral")
    file = msgspec.structs.replace(probe.file, card=card)
    without = replace(probe, file=file, neutral_mean=missing, neutral_sd=missing)
    bench.store.put_probe(without.id, without.to_bytes(), card)
    edit = line.format(feature=f"L1/{bench.active(1)[0]}")
    request = msgspec.structs.replace(
        bench.request, edits=(edit,), selected=True, probes=(without.id,)
    )
    done = inspect(request, bench.model, bench.instruments, bench.store, QuietJob())
    trace = bench.store.get_trace(done.trace_id)
    metrics = {effect.metric.partition(".")[0] for effect in trace.effects}
    assert metrics == {"answer", "kl"}
    assert trace.intervention is not None and trace.intervention.readout_layer is None
    numbers = [delta for e in trace.effects for c in e.controls for delta in c.deltas]
    assert numbers and all(math.isfinite(number) for number in numbers)


def test_another_emotion_as_control_is_that_edit_made_alone(probed: Bench) -> None:
    trace = probed.trace("promote joy L1-2 +0.2")
    control = effect_of(trace, "answer.fear").controls[2]
    line = "promote anger L1-2 +0.2 at readout"
    alone = effect_of(probed.trace(line), "answer.fear")
    assert control.deltas[control.targets.index(line)] == pytest.approx(alone.delta, abs=1e-5)


def test_another_seed_as_control_is_that_knock_out_made_alone(probed: Bench) -> None:
    line = "knock mlp L1-2 random at readout"
    control = effect_of(probed.trace(line), "answer.fear").controls[1]
    seeded = copy(probed)
    seeded.request = msgspec.structs.replace(probed.request, seed=2)
    alone = effect_of(seeded.trace(line), "answer.fear")
    assert control.deltas[control.targets.index("seed 2")] == pytest.approx(alone.delta, abs=1e-5)


def test_random_directions_are_of_the_norm_of_the_edit_at_each_layer(probed: Bench) -> None:
    """Their size on the residual right after is that of the edit: promotion in a single layer."""
    trace = probed.trace("promote joy L3 +0.2 along row")
    # At the last layer nothing lies behind the edit but the readout: the deltas of a probe's
    # logits are products of its rows with the added vector, so their sizes compare.
    effect = effect_of(trace, "readout.joy")
    (random,) = [c for c in effect.controls if c.name == "random_directions"]
    assert max(abs(delta) for delta in random.deltas) < abs(effect.delta)
    assert any(abs(delta) > 1e-4 for delta in random.deltas)


def test_readouts_along_the_edit_are_marked_by_construction(probed: Bench) -> None:
    for line, first in (("promote joy L2 +0.2", 2), ("project out joy", 0)):
        trace = probed.trace(line)
        readouts = trace.readouts
        for row, mark in enumerate(readouts.mark):
            lowest = first + (readouts.site[row] != "resid")
            own = (
                readouts.emotion[row] == "joy"
                and readouts.layer[row] >= lowest
                and readouts.position[row] == trace.text.readout
            )
            assert (mark == "by_construction") is own
        assert "By construction" in effect_of(trace, "readout.joy").verdict
        assert "By construction" not in effect_of(trace, "readout.anger").verdict
        # Later edits that are along nothing leave the mark.
        more = probed.trace(line, "knock mlp L3 zero")
        assert more.readouts.mark == readouts.mark
        assert "By construction" not in effect_of(more, "readout.joy").verdict


def test_modulation_says_what_is_left_and_how_much_it_added(probed: Bench) -> None:
    trace = probed.trace("modulate +effort L1-2 +0.2 keep urgency standards")
    assert trace.intervention is not None
    total, first, second = trace.intervention.notes
    assert "at each of 2 layers" in total and "0.4 of the mean norm" in total
    for layer, note in ((1, first), (2, second)):
        found = re.match(r"L(\d): (\d\.\d\d) of the norm is left once", note)
        assert found is not None and int(found[1]) == layer and 0 < float(found[2]) <= 1
        scores = re.findall(r"(effort|urgency|standards) (-?\d\.\d\d)", note)
        assert [name for name, _ in scores] == ["effort", "urgency", "standards"]
        untrusted = note.partition("not to be trusted: ")[2]
        for name, score in scores:
            assert float(score) >= 0 or name in untrusted
    plain = probed.trace("knock mlp L2 zero").intervention
    assert plain is not None and plain.notes == ()


def test_a_patch_from_a_trace_is_that_from_its_text(probed: Bench) -> None:
    text = "Lily was happy because her friend came back."
    source = probed.inspect(text=text).trace_id
    by_id = probed.trace(f"patch resid L2 from {source[:8]}")
    assert by_id.edits == (f"patch resid L2 from {source} at readout",)
    by_text = probed.trace(f'patch resid L2 from "{text}"')
    assert by_id.answer == by_text.answer and by_id.readouts == by_text.readouts
    # At the last layer, the source's whole answer is transferred.
    whole = probed.trace(f"patch resid L{LAYERS - 1} from {source}")
    theirs = probed.store.get_trace(source)
    assert whole.answer is not None and theirs.answer is not None
    for label, probability in theirs.answer.labels.items():
        assert whole.answer.labels[label] == pytest.approx(probability, abs=1e-5)


def test_a_patch_from_an_edited_trace_takes_its_edits_along(probed: Bench) -> None:
    text = "Lily was happy because her friend came back."
    edited = probed.inspect("knock attn L1-2 zero at all", text=text).trace_id
    whole = probed.trace(f"patch resid L{LAYERS - 1} from {edited}")
    theirs = probed.store.get_trace(edited)
    assert whole.answer is not None and theirs.answer is not None
    for label, probability in theirs.answer.labels.items():
        assert whole.answer.labels[label] == pytest.approx(probability, abs=1e-5)


def test_a_patch_from_a_file_is_kept_as_what_is_in_it(probed: Bench, tmp_path: Path) -> None:
    text = "Lily was happy because her friend came back."
    theirs = probed.store.get_trace(probed.inspect(text=text).trace_id)
    file = tmp_path / "lily.json"
    file.write_bytes(document_bytes(theirs, all_tokens=False))
    trace = probed.trace(f"patch resid L2 from {file}")
    assert trace.edits == (f"patch resid L2 from {theirs.id} at readout",)
    elsewhere = msgspec.structs.replace(theirs, id="f" * 16)
    file.write_bytes(document_bytes(elsewhere, all_tokens=False))
    by_text = probed.trace(f"patch resid L2 from {file}")
    assert by_text.edits == (f'patch resid L2 from "{text}" at readout',)
    assert by_text.answer == trace.answer


def damaged_documents(theirs: Trace) -> list[tuple[str, Trace | bytes]]:
    run, replaced = theirs.run, msgspec.structs.replace
    unknown = replaced(theirs, id="f" * 16)
    return [
        ("another model", replaced(unknown, run=replaced(run, fingerprint="0" * 64))),
        ("another shape", replaced(unknown, run=replaced(run, d_model=7))),
        ("another shape", replaced(unknown, run=replaced(run, layers=99))),
        ("template is another", replaced(unknown, run=replaced(run, template="raw"))),
        ("run with edits", replaced(unknown, edits=("knock attn L1 zero at readout",))),
        ("not a trace", b"{}"),
        ("not a trace", b"\xff\x00"),
    ]


def test_a_patch_that_cannot_be_is_refused(probed: Bench, tmp_path: Path) -> None:
    theirs = probed.trace()
    before = probed.store.traces()
    file = tmp_path / "other.json"
    for words, document in damaged_documents(theirs):
        data = (
            document if isinstance(document, bytes) else document_bytes(document, all_tokens=False)
        )
        file.write_bytes(data)
        with pytest.raises(EditError, match=words) as caught:
            probed.inspect(f"patch resid L2 from {file}")
        assert str(tmp_path) not in str(caught.value)
    for line, words in (
        (f"patch resid L2 from {tmp_path / 'absent.json'}", "could not be read"),
        (f"patch resid L2 from {tmp_path}/", "could not be read"),
        ("patch resid L2 from 0000000000000000", "nothing to patch from"),
        ("patch resid L9 from 00000000", "nothing to patch from"),
        ('patch resid L9 from "another text"', "no layer 9"),
    ):
        with pytest.raises(EditError, match=words):
            probed.inspect(line)
    assert probed.store.traces() == before


def test_a_trace_of_another_model_is_refused(probed: Bench) -> None:
    theirs = probed.trace()
    foreign = msgspec.structs.replace(
        theirs, id="0" * 16, run=msgspec.structs.replace(theirs.run, fingerprint="0" * 64)
    )
    probed.store.put_trace(foreign, "0" * 64)
    with pytest.raises(EditError, match="another model"):
        probed.inspect("patch resid L2 from 0000000000000000")
    probed.store.delete("0" * 16)


def test_a_recipe_is_the_edits_it_stands_for(probed: Bench) -> None:
    lines = ("knock attn L1 mean at readout", "promote joy L2 +0.1 at readout")
    recipe = Recipe("calm", probed.model.fingerprint, "tiny", lines)
    save_recipe(probed.store.root, recipe)
    assert probed.inspect("@calm").trace_id == probed.inspect(*lines).trace_id
    save_recipe(probed.store.root, msgspec.structs.replace(recipe, fingerprint="0" * 64))
    with pytest.raises(EditError, match="another model"):
        probed.inspect("@calm")


def test_stacked_edits_of_all_kinds_resume_and_are_cached(probed: Bench) -> None:
    feature = probed.active(1)[0]
    lines = (
        "knock attn L1-2 mean",
        f"ablate L1/{feature} at all",
        "promote joy L1-2 +0.2",
        "knock head L1.0 zero",
        f"scale L1/{feature} x2 at all",
    )
    last = probed.trace(*lines)
    effect = effect_of(last, "answer.joy")
    parent = probed.trace(*lines[:-1])
    assert last.parent == parent.id and parent.answer is not None and last.answer is not None
    assert effect.before == pytest.approx(parent.answer.labels["joy"], abs=1e-6)
    assert effect.after == pytest.approx(last.answer.labels["joy"], abs=1e-6)
    matched = effect.controls[0]
    assert f"L1/{feature}" not in matched.targets and len(matched.deltas) > 0


def test_undoing_a_selected_edit_finds_the_trace_that_was_shown(bench: Bench) -> None:
    one, two = bench.active(2)[2:4]
    first = bench.inspect(f"ablate L2/{one} at all", selected=True)
    second = bench.trace(f"ablate L2/{one} at all", f"ablate L2/{two} at all", selected=True)
    assert second.parent == first.trace_id
    assert bench.store.get_trace(first.trace_id).parent == bench.trace().id
