"""Completion of edits: what is offered leads to lines that parse, and wrong words are found."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emotui.core.corpus import APPRAISALS
from emotui.core.edits import OPERATIONS, parse_edit
from emotui.core.edits.completion import (
    EditContext,
    completed,
    edit_choices,
    wrong_span,
)
from emotui.core.emotions import EKMAN
from emotui.core.errors import EditError

OPEN = {"t1": "0123456789abcdef", "t2": "fedcba9876543210"}
CONTEXT = EditContext(
    layers=6,
    layer=3,
    features={"L3/12": "sorrow", "mlp:L3/7": "", "L5/40": "[red]loss\x1b[0m"},
    emotions=(*EKMAN, "neutral"),
    appraisals=APPRAISALS,
    traces={"t1": "the first text", "t2": "another"},
    recipes={"calm": "2 edits"},
    words=("toy", 'a"quote'),
    tokens=9,
    position=4,
)


def offered(line: str, cursor: int | None = None, context: EditContext = CONTEXT) -> list[str]:
    cursor = len(line) if cursor is None else cursor
    found = completed(line, cursor, lambda before: edit_choices(before, context))
    return [completion.text for completion in found]


def parses(line: str) -> bool:
    try:
        parse_edit(line, here=4, open_traces=OPEN)
    except EditError:
        return False
    return True


@settings(max_examples=400)
@given(st.data())
def test_accepted_step_by_step_every_completion_leads_to_an_edit(data: st.DataObject) -> None:
    line = data.draw(st.sampled_from(OPERATIONS)) + " "
    for _ in range(2 * len(APPRAISALS) + 12):
        choices = offered(line)
        if not choices:
            break
        if parses(line) and data.draw(st.booleans()):
            break
        found = completed(line, len(line), lambda before: edit_choices(before, CONTEXT))
        chosen = data.draw(st.sampled_from(found))
        # What was typed of a word is replaced by the whole of it.
        typed = data.draw(st.integers(0, len(chosen.text)))
        begun = line + chosen.text[:typed]
        if typed == len(chosen.text):
            line = begun + " "
            continue
        again = completed(begun, len(begun), lambda before: edit_choices(before, CONTEXT))
        (same,) = [one for one in again if one.text == chosen.text]
        line = same.put_in(begun) + " "
    assert parses(line), line


@pytest.mark.parametrize(
    ("line", "first"),
    [
        ("", ["ablate", "scale"]),
        ("mod", ["modulate"]),
        ("@", ["@calm"]),
        ("ablate ", ["L3/12", "mlp:L3/7", "L5/40"]),
        ("ABLATE l5", ["L5/40"]),
        ("ablate L3/12 ", ["at", "mlp:L3/7", "L5/40"]),
        ("ablate L9/9999 at ", ["here", "all", "readout", "last", '"toy"', '"a\\"quote"', "0"]),
        ('ablate L3/12 at "t', ['"toy"']),
        ("scale L3/12 ", ["x2", "x0.5", "x-1"]),
        ("clamp L3/12 ", ["="]),
        ("clamp L3/12 = ", ["1", "10", "30"]),
        ("clamp L3/12 =3 ", ["at"]),
        ("steer L3/12 +", ["+0.1", "+0.5"]),
        ("knock ", ["attn", "mlp", "head"]),
        ("knock attn ", ["L3", "L3-5", "L0"]),
        ("knock head ", ["L3.0", "L0.0"]),
        ("knock mlp L2 ", ["at", "mean", "zero", "random", "resample"]),
        ("patch resid L3 ", ["from"]),
        ("patch resid L3 from ", ["t1", "t2", '"another text"']),
        ('patch resid L3 from "a b" at ', ["readout", "last"]),
        ("promote ", list(EKMAN)),
        ("promote joy L3 +0.1 at l", ["last"]),
        ("project ", ["out"]),
        ("project out fear ", ["at", "L3"]),
        ("modulate +effort ", ["L3"]),
        ("modulate +effort L1 +0.1 ", ["at", "keep"]),
    ],
)
def test_what_is_offered_next(line: str, first: list[str]) -> None:
    assert offered(line)[: len(first)] == first


@pytest.mark.parametrize("line", ["wobble ", "ablate joy ", "ablate L3/12 at here ", "@calm "])
def test_nothing_is_offered_after_what_cannot_go_on(line: str) -> None:
    assert offered(line) == []


def test_one_appraisal_is_not_offered_twice() -> None:
    line = f"modulate +{APPRAISALS[0]} L1 +0.1 keep "
    assert APPRAISALS[0] not in offered(line)
    assert APPRAISALS[1] in offered(line)


def test_a_word_in_the_middle_is_completed_in_its_place() -> None:
    line = "promote an L3 +0.1 at readout"
    (found,) = completed(line, 10, lambda before: edit_choices(before, CONTEXT))
    assert found.put_in(line) == "promote anger L3 +0.1 at readout"
    assert offered("knock  L3 mean", 6) == ["attn", "mlp", "head"]


def test_without_a_cursor_or_a_model_nothing_is_invented() -> None:
    empty = EditContext()
    assert "here" not in offered("ablate L1/1 at ", context=empty)
    assert offered("ablate ", context=empty) == []
    assert offered("knock attn ", context=empty) == []


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("wobble L3/1", "wobble"),
        ("ablate joy at all", "joy"),
        ("ablate L3/1 wobble", "wobble"),
        ("ablate L3/1 at attn", "attn"),
        ("knock attn L3 attn", "attn"),
        ("knock attn L5-3 mean", "L5-3"),
        ("scale L3/1 2", "2"),
        ("steer L3/1 +nan", "+nan"),
        ("patch resid L3 from t9", "t9"),
        ("patch resid L3 from t1 at all", "all"),
        ("modulate +effort L1 +0.1 keep effort", "effort"),
        ("ablate L3/1 L3/1 at all", "L3/1"),
        ('ablate L3/1 at "toy', '"toy'),
        ("project joy", "joy"),
        ("ablate L3/1 at 7-3", "7-3"),
        ("ablate L3/1 at all all", "all"),
    ],
)
def test_the_wrong_word_is_pointed_at(line: str, wrong: str) -> None:
    with pytest.raises(EditError) as caught:
        parse_edit(line, here=4, open_traces=OPEN)
    start, end = wrong_span(line, caught.value)
    assert line[start:end] == wrong
    # Of a word that occurs twice it is the later one here.
    assert start == line.rfind(wrong)


@pytest.mark.parametrize("line", ["", "ablate", "knock attn", "ablate L3/1 at", "promote joy L3"])
def test_a_missing_word_is_pointed_at_behind_the_line(line: str) -> None:
    with pytest.raises(EditError) as caught:
        parse_edit(line)
    assert wrong_span(line, caught.value) == (len(line), len(line) + 1)


@given(st.text(max_size=60), st.integers(0, 60))
def test_any_line_can_be_completed_and_pointed_into(line: str, cursor: int) -> None:
    cursor = min(cursor, len(line))
    for completion in completed(line, cursor, lambda before: edit_choices(before, CONTEXT)):
        assert line[: completion.start] == completion.put_in(line)[: completion.start]
        assert completion.start <= cursor <= completion.end or completion.start == cursor
    try:
        parse_edit(line)
    except EditError as error:
        start, end = wrong_span(line, error)
        assert 0 <= start < end <= len(line) + 1
