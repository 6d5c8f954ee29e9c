"""What an edit did on other texts, in lines of plain text: printed, and shown on the screen."""

from __future__ import annotations

from emotui.core.findings import Repeated, Spread, Verification
from emotui.core.text import clean


def lines_of(found: Verification) -> list[str]:
    """Return what the edit did on other texts: the judged metric in words, then all in a table."""
    texts, judged, controls = sentences_of(found)
    lines = [*texts, "", *judged, "", *controls, "", _heading(found)]
    lines += [_row(one, _width(found)) for one in found.metrics]
    lines.append("same: texts whose change has the sign it has here, of those it acted on")
    return lines


def sentences_of(found: Verification) -> tuple[list[str], list[str], list[str]]:
    """Return in words which texts, what the judged metric did on them, and which controls."""
    done, acted = len(found.others.id), sum(found.others.acted)
    count = f"{done} texts" if found.complete else f"{done} of {found.asked} texts"
    judged = _judged(found)
    texts = [
        f"{clean(found.edits[-1])} on {count}: {found.source}",
        f"{found.positions}; it changed something on {acted} of {done}",
        *found.notes,
    ]
    said = [f"{judged.metric}: here {judged.here:+.3g}; {judged.verdict}."]
    if acted < done:
        said.append(f"Over all texts, 0 where it did nothing: {_over(judged.every)}.")
    return texts, said, _controls(found, judged)


def summary_of(found: Verification) -> tuple[str, ...]:
    """Return two short lines: median and interval of the judged metric, and what stands by it."""
    judged = _judged(found)
    acted, total = judged.acted, len(found.others.id)
    if acted.median is None:
        return (f"on other texts, {judged.metric}: acted on none of {total}",)
    any_way, shaped = (f"{one.rank or '-'}/{len(one.medians) + 1}" for one in judged.controls)
    end = judged.verdict.rpartition("; ")[2]
    end = {True: "verified", False: "not verified", None: end}[judged.verified]
    return (
        f"on other texts, {judged.metric}: median {acted.median:+.3g} "
        f"[{acted.low:+.3g}, {acted.high:+.3g}]",
        f"{acted.texts} of {total} texts, sign kept on {acted.same_sign}, rank {any_way}, "
        f"shaped {shaped}: {end}",
    )


def _judged(found: Verification) -> Repeated:
    return next(one for one in found.metrics if one.metric == found.metric)


def _controls(found: Verification, judged: Repeated) -> list[str]:
    counts = [len(one.medians) for one in judged.controls]
    if not any(counts):
        return ["No control was run: the edit acted on no text."]
    picked = ""
    if found.picked_from > 1:
        picked = (
            f", each the best of {found.picked_from} by {found.metric} on this text, as the "
            "feature was picked"
        )
    return [
        f"Controls, of the norm of the edit's own change: {counts[0]} random directions of any "
        f"way{picked}; {counts[1]} shaped like the data. Ranks are by the median, in the "
        "direction each took on this text."
    ]


def _width(found: Verification) -> int:
    return max(len(one.metric) for one in found.metrics)


def _heading(found: Verification) -> str:
    return (
        f"{'':{_width(found)}} {'here':>8} {'median':>8}  {'95 % interval':<18} "
        f"{'same':>5} {'any':>5} {'shaped':>6}"
    )


def _row(one: Repeated, width: int) -> str:
    any_way, shaped = (f"{c.rank or '-'}/{len(c.medians) + 1}" for c in one.controls)
    same = f"{one.acted.same_sign}/{one.acted.texts}"
    interval = f"{_number(one.acted.low)}, {_number(one.acted.high)}"
    return (
        f"{one.metric:{width}} {_number(one.here):>8} {_number(one.acted.median):>8}  "
        f"{interval:<18} {same:>5} {any_way:>5} {shaped:>6}"
    )


def _over(spread: Spread) -> str:
    return (
        f"median {_number(spread.median)} [{_number(spread.low)}, {_number(spread.high)}], "
        f"same sign on {spread.same_sign} of {spread.texts}"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2g}"
