"""How a probe that is in force is said: what it was fitted and judged on, and how well it did."""

from __future__ import annotations

from emotui.core.records import ProbeSummary

PREVIEW = "preview by ridge regression"
"""What the data of a preview begin with: it is quick to fit, and less accurate."""


def data_name(data: str) -> str:
    """Return the short name of what a probe was fitted on: `d.csv`, or `preview d.csv`."""
    preview = data.startswith(PREVIEW)
    name = data.removeprefix(PREVIEW).lstrip(": ").split(" (")[0].split(";")[0].strip()
    return f"preview {name}" if preview else name


def scores_of(probe: ProbeSummary) -> str:
    """Return its accuracy beside the bag of embeddings, or that it was not measured."""
    if probe.held_out_accuracy is None or probe.bag_accuracy is None:
        return "not measured"
    return f"{probe.held_out_accuracy:.2f} held out, {probe.bag_accuracy:.2f} bag of embeddings"


def line_of(probe: ProbeSummary) -> str:
    """Return which probe it is, on what it was fitted and judged, and its scores; uncleaned."""
    judged = f"; judged on {probe.judged_on}" if probe.judged_on else ""
    return f"{probe.id}: fitted on {probe.data}{judged}; {scores_of(probe)}"
