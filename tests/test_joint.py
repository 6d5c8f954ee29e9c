"""Several features edited at once: the same as one after the other, and beside sets of others."""

from __future__ import annotations

import pytest
from support_models import LAYERS
from test_edited import Bench, bench, effect_of

from emotui.core.edits import JointEdit, parse_edit
from emotui.core.errors import EditError
from emotui.core.export.python import script_bytes
from emotui.core.records import Control, Effect

__all__ = ["bench"]


def names(bench: Bench, count: int = 2) -> list[str]:
    return [f"L{layer}/{bench.active(layer)[0]}" for layer in range(LAYERS)][:count]


def matched(effect: Effect) -> Control:
    return next(one for one in effect.controls if one.name == "matched_features")


@pytest.mark.parametrize("change", ["ablate {}", "scale {} x2", "clamp {} = 3", "steer {} +0.2"])
def test_a_joint_edit_is_its_parts_one_after_the_other(bench: Bench, change: str) -> None:
    first, second = names(bench)
    joint = bench.trace(f"{change.format(f'{first} {second}')} at last")
    apart = bench.trace(*(f"{change.format(name)} at last" for name in (first, second)))
    assert joint.answer is not None and apart.answer is not None
    assert joint.answer.labels == pytest.approx(apart.answer.labels, abs=1e-6)
    assert joint.parent == bench.trace().id, "one edit, one step back"
    for effect in joint.effects:
        both = effect_of(apart, effect.metric)
        if effect.metric != "kl":
            assert effect.after == pytest.approx(both.after, abs=1e-5)
            assert effect.before == pytest.approx(both.clean, abs=1e-5)


@pytest.mark.parametrize("change", ["ablate {} at last", "steer {} +0.3 at last"])
def test_a_control_set_does_what_editing_that_set_does(bench: Bench, change: str) -> None:
    chosen = names(bench)
    trace = bench.trace(change.format(" ".join(chosen)))
    effect = effect_of(trace, "answer.joy")
    control = matched(effect)
    assert 1 <= len(control.deltas) <= 32
    assert len(set(control.targets)) == len(control.targets)
    for place in (0, len(control.targets) - 1):
        other = bench.trace(change.format(control.targets[place]))
        done = effect_of(other, "answer.joy")
        assert control.deltas[place] == pytest.approx(done.delta, abs=2e-6)
    for target in control.targets:
        edit = parse_edit(change.format(target))
        assert isinstance(edit, JointEdit), "as many, none twice"
        layers = [part.layer for part in edit.parts]
        assert layers == [0, 1]
        assert not {part.feature for part in edit.parts} & set(chosen)
    random = next(one for one in effect.controls if one.name == "random_directions")
    assert len(random.deltas) == 5
    assert "rank" in effect.verdict or "No measurable" in effect.verdict


def test_two_features_of_one_layer_have_sets_of_two_others(bench: Bench) -> None:
    one, two = bench.active(1)[:2]
    trace = bench.trace(f"ablate L1/{one} L1/{two} at last")
    for target in matched(effect_of(trace, "answer.joy")).targets:
        edit = parse_edit(f"ablate {target}")
        assert isinstance(edit, JointEdit)
        assert len({part.index for part in edit.parts} - {one, two}) == 2


def test_where_there_are_no_sets_it_says_so(bench: Bench) -> None:
    first, second = names(bench)
    clamped = matched(effect_of(bench.trace(f"clamp {first} {second} = 3"), "answer.joy"))
    assert clamped.deltas == () and clamped.note
    active = set(bench.active(1))
    silent = [index for index in range(20) if index not in active][:2]
    trace = bench.trace(f"ablate L1/{silent[0]} L1/{silent[1]} at last")
    assert trace.intervention is not None
    assert any("none of them is active" in note for note in trace.intervention.notes)
    assert all("removing these together" in effect.verdict for effect in trace.effects)


def test_a_part_that_is_not_there_is_named(bench: Bench) -> None:
    first = names(bench)[0]
    with pytest.raises(EditError, match=f"There is no layer {LAYERS}"):
        bench.trace(f"ablate {first} L{LAYERS}/1")
    with pytest.raises(EditError, match="There is no feature L0/99999"):
        bench.trace(f"ablate {first} L0/99999")
    with pytest.raises(EditError, match="no SAE"):
        bench.trace(f"ablate {first} mlp:L0/1")


def test_a_joint_edit_is_in_the_script(bench: Bench) -> None:
    first, second = names(bench)
    script = script_bytes(bench.trace(f"ablate {first} {second} at last")).decode()
    assert script.count("'do': 'ablate'") == 2
