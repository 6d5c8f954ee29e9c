"""What an edit did on other texts, in lines of plain text: printed, and shown on the screen."""

from __future__ import annotations

from emotui.core.findings import Repeated, Spread, Verification
from emotui.core.text import clean


def lines_of(found: Verification) -> list[str]:
    """Return what the edit did on other texts: the judged metric first, then all of them."""
    done, acted = len(found.others.id), sum(found.others.acted)
    texts = f"{done} texts" if found.complete else f"{done} of {found.asked} texts"
    lines = [
        f"{clean(found.edits[-1])} on {texts}: {found.source}",
        f"  {found.positions}; it changed something on {acted} of {done}",
        *(f"  {note}" for note in found.notes),
    ]
    judged = next(one for one in found.metrics if one.metric == found.metric)
    lines += ["", f"{judged.metric}: here {judged.here:+.3g}; {judged.verdict}.", ""]
    lines.append(
        f"random directions of the same norm: {len(judged.controls[0].medians)} of any way"
        + (
            f", each the best of {found.picked_from} by {found.metric} on this text, as the "
            "feature was picked"
            if found.picked_from > 1
            else ""
        )
        + f"; {len(judged.controls[1].medians)} shaped like the data"
        if judged.controls and judged.controls[0].medians
        else "no control was run: the edit acted on no text"
    )
    width = max(len(one.metric) for one in found.metrics)
    lines += ["", _heading(width)]
    lines += [_row(one, width) for one in found.metrics]
    return lines


def _heading(width: int) -> str:
    return (
        f"{'change of':{width}}     here   median  95 % interval       same sign  "
        "any way  shaped  over all texts"
    )


def _row(one: Repeated, width: int) -> str:
    ranks = [f"{c.rank or '-'}/{len(c.medians) + 1}" for c in one.controls]
    return (
        f"{one.metric:{width}}  {one.here:+.4f}  {_numbers(one.acted)}  "
        f"{one.acted.same_sign:>3} of {one.acted.texts:<3}  {ranks[0]:>7}  {ranks[1]:>6}  "
        f"{_number(one.every.median)} [{_number(one.every.low)}, {_number(one.every.high)}]"
    )


def _numbers(spread: Spread) -> str:
    interval = f"[{_number(spread.low)}, {_number(spread.high)}]"
    return f"{_number(spread.median)}  {interval:<19}"


def _number(value: float | None) -> str:
    return "-".rjust(7) if value is None else f"{value:+.4f}"


def summary_of(found: Verification) -> tuple[str, str]:
    """Return one or two lines: the judged metric on other texts, and how many it acted on."""
    judged = next(one for one in found.metrics if one.metric == found.metric)
    first, _, rest = judged.verdict.partition("; ")
    return f"on other texts, {judged.metric}: {first}", rest
