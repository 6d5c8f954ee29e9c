"""Estimate against exact: recomputed from logits, told apart, refused where it cannot be said."""

from __future__ import annotations

import math

import msgspec
import pytest
from support_traces import made_up_trace

from emotui.core.estimates import estimate_of_last_edit, sentence_of
from emotui.core.export.json import document_bytes, read_document
from emotui.core.records import Answer, Attribution, Features, Site, Trace

LOGITS = {"joy": 2.0, "fear": 0.5, "anger": -1.0}


def answer_of(logits: dict[str, float]) -> Answer:
    total = sum(math.exp(value) for value in logits.values())
    labels = {name: math.exp(value) / total for name, value in logits.items()}
    return Answer(labels=labels, set="ekman7", rule="first_token", prompts=1)


def pair(
    *edits: str, change: float, estimates: tuple[float | None, ...] = (-0.5, -0.25, 0.125)
) -> tuple[Trace, Trace]:
    """Return a trace and its parent; the edit takes `change` from the logit of joy."""
    base = made_up_trace()
    readout, count = base.text.readout, len(estimates)
    resid: Site = "resid"
    features = Features(
        sae=("s",) * count, site=(resid,) * count, layer=(1,) * count, index=(5, 6, 7)[:count],
        position=(readout, readout, 1)[:count], activation=(1.0,) * count,
        attribution=estimates, label=("",) * count,
    )  # fmt: skip
    value = LOGITS["joy"] - (LOGITS["fear"] + LOGITS["anger"]) / 2
    parent = msgspec.structs.replace(
        base, features=features, answer=answer_of(LOGITS), edits=(),
        attribution=Attribution(metric="answer.joy", value=value, note=""),
    )  # fmt: skip
    after = answer_of({**LOGITS, "joy": LOGITS["joy"] + change})
    child = msgspec.structs.replace(parent, answer=after, edits=edits, id="c" * 16)
    return child, parent


@pytest.mark.parametrize(
    ("edit", "estimated"),
    [
        ("ablate L1/5 at readout", -0.5),
        ("ablate L1/5 L1/6 at readout", -0.75),
        ("ablate L1/7 at 1", 0.125),
    ],
)
def test_the_exact_value_is_the_change_of_the_logits_margin(edit: str, estimated: float) -> None:
    found = estimate_of_last_edit(*pair(edit, change=-0.4))
    assert found is not None
    assert found.metric == "answer.joy"
    assert found.estimated == pytest.approx(estimated)
    assert found.exact == pytest.approx(-0.4)


@pytest.mark.parametrize(
    ("change", "disagrees"), [(-0.5, False), (-0.26, False), (-0.2, True), (0.4, True)]
)
def test_half_of_the_larger_one_apart_is_a_disagreement(change: float, disagrees: bool) -> None:
    found = estimate_of_last_edit(*pair("ablate L1/5 at readout", change=change))
    assert found is not None
    assert found.disagrees is disagrees
    assert ("misled" in sentence_of(found)) is disagrees


def test_two_numbers_near_zero_do_not_disagree() -> None:
    found = estimate_of_last_edit(
        *pair("ablate L1/5 at readout", change=-0.001, estimates=(0.02, 0.0, 0.0))
    )
    assert found is not None
    assert found.disagrees is False


@pytest.mark.parametrize(
    "edit",
    [
        "scale L1/5 x2 at readout",
        "ablate L1/99 at 1",  # may be active, and is not kept
        "ablate L1/99 at readout",  # was not active: nothing was estimated
        "project out joy at readout",
    ],
)
def test_nothing_is_said_where_nothing_was_estimated(edit: str) -> None:
    assert estimate_of_last_edit(*pair(edit, change=-0.4)) is None


def test_nothing_is_said_without_the_parent_or_an_estimate() -> None:
    child, _ = pair("ablate L1/5 at readout", change=-0.4)
    assert estimate_of_last_edit(child, None) is None
    missing = pair("ablate L1/5 at readout", change=-0.4, estimates=(None, -0.25, 0.125))
    assert estimate_of_last_edit(*missing) is None


def test_a_document_holds_it() -> None:
    child, parent = pair("ablate L1/5 at readout", change=-0.4)
    document = read_document(document_bytes(child, ancestors=[parent], all_tokens=False))
    assert document.estimate is not None
    assert document.estimate.estimated == -0.5
    assert document.estimate.exact == -0.4
    assert read_document(document_bytes(parent, all_tokens=False)).estimate is None
