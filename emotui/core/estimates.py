"""Estimate against exact: what attribution promised of an ablation, and what it then did.

Attribution estimates by one backward pass what ablating a feature does to a metric (a first-order
Taylor estimate, METHODS 2.4); the ablation itself is exact. Both are of the trace before the edit:
its estimates, and its metric before and after.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from emotui.core.edits import FeatureEdit, JointEdit, parse_edit, positions_in
from emotui.core.errors import EditError
from emotui.core.records import Answer, Estimate, Trace

DISAGREES_FROM = 0.5
"""Share of the larger of the two from which their distance is a disagreement."""
TOO_SMALL = 0.05
"""In logits: where both are below it, their distance says nothing."""


def estimate_of_last_edit(trace: Trace, parent: Trace | None) -> Estimate | None:
    """Return what was estimated of the last edit and what it did.

    None where the edit ablates no feature, where the metric cannot be read after it, or where any
    feature at any edited token has no estimate.
    """
    if parent is None or parent.attribution is None or len(trace.edits) != len(parent.edits) + 1:
        return None
    places = _ablated(trace)
    metric, before = parent.attribution.metric, parent.attribution.value
    after = _metric_of(trace, metric)
    if not places or before is None or after is None:
        return None
    columns = parent.features
    known = {
        (site, layer, index, position): value
        for site, layer, index, position, value in zip(
            columns.site, columns.layer, columns.index, columns.position, columns.attribution,
            strict=True,
        )
    }  # fmt: skip
    # All active features are kept at the readout; elsewhere one that is missing may be active.
    if any(place not in known and place[3] != trace.text.readout for place in places):
        return None
    found = [known[place] for place in places if place in known]
    estimates = [value for value in found if value is not None]
    if not found or len(estimates) < len(found):
        return None
    estimated, exact = sum(estimates), after - before
    return Estimate(metric, estimated, exact, _disagree(estimated, exact))


def _ablated(trace: Trace) -> Sequence[tuple[str, int, int, int]]:
    """Return site, layer, index and position of all that the last edit ablates."""
    try:
        edit = parse_edit(trace.edits[-1])
        parts = edit.parts if isinstance(edit, JointEdit) else (edit,)
        return [
            (part.site, part.layer, part.index, position)
            for part in parts
            if isinstance(part, FeatureEdit) and part.operation == "ablate"
            for position in positions_in(part.positions, trace.text)
        ]
    except EditError:
        return ()


def _metric_of(trace: Trace, metric: str) -> float | None:
    """Return a metric of attribution, in logits, from what a trace holds; None where it cannot."""
    kind, _, name = metric.partition(".")
    if kind == "answer":
        return None if trace.answer is None else _margin(trace.answer, name)
    emotion, _, layer = name.partition("@L")
    rows = trace.readouts
    readers = {probe.id for probe in trace.probes if probe.kind == "readout"}
    for row, value in enumerate(rows.value):
        place = (rows.site[row], rows.position[row], rows.emotion[row], str(rows.layer[row]))
        wanted = ("resid", trace.text.readout, emotion, layer)
        if place == wanted and rows.probe[row] in readers:
            return value
    return None


def _margin(answer: Answer, label: str) -> float | None:
    """Return a label's logit minus the mean of the others': softmax keeps such differences."""
    if answer.labels.get(label, 0.0) <= 0 or min(answer.labels.values()) <= 0:
        return None
    logits = {name: math.log(value) for name, value in answer.labels.items()}
    others = [value for name, value in logits.items() if name != label]
    return logits[label] - sum(others) / len(others) if others else None


def _disagree(estimated: float, exact: float) -> bool:
    largest = max(abs(estimated), abs(exact))
    return largest >= TOO_SMALL and abs(estimated - exact) > DISAGREES_FROM * largest


def sentence_of(estimate: Estimate) -> str:
    """Return an estimate beside the exact value, in words."""
    estimated, exact = f"{estimate.estimated:+.3f}", f"{estimate.exact:+.3f}"
    numbers = f"{estimate.metric}: estimated {estimated}, exact {exact} logits"
    return f"{numbers} ≠ the estimate misled" if estimate.disagrees else numbers
