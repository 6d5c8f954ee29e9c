"""The result of `trace` as it is read."""

from __future__ import annotations

import math

from emotui.core.studies.common.report import Cell, Heat, Line, Plot, Report, Table
from emotui.core.studies.trace_measures import CALIPER
from emotui.core.studies.trace_results import TraceCell, TraceResult

ENOUGH = 10
"""Texts of an emotion below which nothing is told of it in words."""
_BEYOND = ("causal", "suppressor")
WELL_MATCHED = 0.1
"""Standardised mean difference up to which features and controls count as alike."""


def report(result: TraceResult) -> Report:
    """Say how many features cause each emotion in each phase, beside their controls."""
    tables = (_features(result), _cells(result), _balance(result))
    names = tuple(result.emotions)
    heats = (
        Heat("Overlap of causal features", names, names, result.overlap),
        Heat(
            "Effect of each emotion's eight strongest of the last phase (rows) on the margin of "
            "the texts' own emotion (columns)",
            names,
            names,
            result.cross,
        ),
    )
    return Report(tuple(_sentences(result)), tables, tuple(_plots(result)), heats)


def _features(result: TraceResult) -> Table:
    """List what was called anything, and what has an effect but no control."""
    rows: list[tuple[Cell, ...]] = [
        (
            *(one.feature, one.emotion, one.phase, one.layer, one.effect, one.low, one.high),
            *(one.p, one.control, one.q, one.relative, one.estimate, one.flips, one.verdict),
        )
        for one in result.features
        if one.verdict in _BEYOND or (one.verdict == "unmatched" and one.p < result.level)
    ]
    return Table(
        "Features that were ablated",
        (
            *("feature", "emotion", "phase", "layer", "effect", "low", "high", "p", "control"),
            *("q", "over_random", "attribution", "flips", "verdict"),
        ),
        tuple(rows),
    )


def _cells(result: TraceResult) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            *(one.emotion, one.phase, one.texts, one.listed, one.paired),
            *((one.causal, one.suppressors) if one.judged else ("too few texts", "")),
            *(one.control_low, one.control_high, one.largest, one.random),
            *(one.top_share, one.participation, one.missed, one.overlooked, one.attribution_r),
            *(one.joint[3], one.joint_controls[3], one.summed[3], one.others, one.divergence),
        )
        for one in result.cells
    ]
    return Table(
        "Emotions by phase",
        (
            *("emotion", "phase", "texts", "listed", "with_control", "causal", "suppressors"),
            *("control_low", "control_high", "largest", "random_direction", "top_5_share"),
            *("participation", "missed", "overlooked", "attribution_r", "joint_8"),
            *("joint_8_controls", "sum_of_8", "on_others_8", "kl_neutral_8"),
        ),
        tuple(rows),
    )


def _balance(result: TraceResult) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            *(one.emotion, one.phase, one.paired, one.listed - one.paired),
            *(one.balance.rate_before, one.balance.rate),
            *(one.balance.size_before, one.balance.size),
        )
        for one in result.cells
    ]
    return Table(
        "Balance: standardised mean differences, listed features less others",
        (
            *("emotion", "phase", "with_control", "unmatched", "rate_before", "rate_matched"),
            *("log_size_before", "log_size_matched"),
        ),
        tuple(rows),
    )


def _sentences(result: TraceResult) -> list[str]:
    counts = ", ".join(f"{name} {n}" for name, n in result.emotions.items())
    starts = ", ".join(str(layer) for layer in (0, *result.boundaries))
    found = [
        f"Ablated at the readout in {counts} texts, listed on others; phases begin at layers "
        f"{starts}. Effect: the margin of the text's own label before less after, in logits."
    ]
    if result.too_few:
        found.append(
            "Too few texts for p below .05 whatever their effects, so nothing is called causal "
            f"for: {', '.join(result.too_few)}."
        )
    found.append(_matching(result))
    for phase in range(1, result.phases + 1):
        mine = [one for one in result.cells if one.phase == phase and one.judged]
        if not mine:
            continue
        said = ", ".join(f"{one.emotion} {one.causal} of {one.paired}" for one in mine)
        highs = [one.control_high for one in mine if one.control_high is not None]
        beside = f", that of a control {max(highs):.2f}" if highs else ""
        found.append(
            f"Phase {phase}: causal, of the features with a control: {said}; the largest effect "
            f"of any listed feature is {max(one.largest for one in mine):.2f}{beside}."
        )
    called = [abs(one.effect) for one in result.features if one.verdict in _BEYOND]
    if called:
        found.append(
            f"The smallest effect called causal or suppressing is {min(called):.3f} logits: beyond "
            "its controls is not the same as large."
        )
    found += _concentration(result)
    low = [one for one in result.cells if one.attribution_r is None or one.attribution_r < 0.5]
    if low:
        said = ", ".join(f"{one.emotion} {one.phase}" for one in low)
        found.append(
            f"Attribution and exact effect agree little (r below .5) for {said}: read only the "
            "exact values there."
        )
    missed = sum(one.missed for one in result.cells)
    sampled = sum(one.overlooked for one in result.cells)
    found.append(
        f"Attribution overlooked {missed} of {sampled} sampled active features: effects as large "
        "as the smallest called causal there."
    )
    found.append(
        "Effects grow towards the logits by themselves: over_random divides them by that of "
        "random directions of the same norm at the same layer."
    )
    found.append(
        f"low and high: 95 % bootstrap intervals over the texts of the emotion, percentiles of "
        f"{result.draws:,} draws. p: sign-flip test over texts, exact up to 24."
    )
    return found + _disgust(result)


def _matching(result: TraceResult) -> str:
    listed, paired = (
        sum(one.listed for one in result.cells),
        sum(one.paired for one in result.cells),
    )
    if not paired:
        return (
            "No listed feature has a like one that was not listed, so none is called causal: an "
            "effect may come from firing often and strongly alone."
        )
    said = (
        f"{paired} of {listed} listed features have {_many(result.controls)} alike in firing rate "
        f"and size (within {CALIPER} standard deviations of each); the other {listed - paired} are "
        "unmatched and not called causal, however large their effect. Causal is an effect beyond "
        f"the controls', with a false discovery rate of {result.level:.0%} over all emotions and "
        "phases (sequential step-up over matched sets), and p below .05, corrected."
    )
    least = math.ceil(1 / (result.level * result.controls))
    said += f" Fewer than {least} in all could not be told from chance and count as none."
    worst = max(
        abs(value)
        for one in result.cells
        for value in (one.balance.rate or 0.0, one.balance.size or 0.0)
    )
    if worst > WELL_MATCHED:
        said += (
            f" Matched features still differ from their controls by up to {worst:.2f} standard "
            "deviations on average (table of the balance): read the causal ones there with care."
        )
    return said


def _many(controls: int) -> str:
    return "a control" if controls == 1 else f"{controls} controls each"


def _concentration(result: TraceResult) -> list[str]:
    last = [
        one
        for one in result.cells
        if one.phase == result.phases and one.participation and one.texts >= ENOUGH
    ]
    if not last:
        return []
    ordered = sorted(last, key=lambda one: one.participation or 0)
    said = ", ".join(
        f"{one.emotion} {one.participation:.1f} ({one.top_share:.0%})"
        for one in ordered
        if one.participation is not None and one.top_share is not None
    )
    return [
        f"In the last phase the positive effects are carried by as many features (participation "
        f"ratio; share of the top five), of emotions with {ENOUGH} texts and more: {said}."
    ]


def _disgust(result: TraceResult) -> list[str]:
    names = tuple(result.emotions)
    if min(result.emotions.get(name, 0) for name in ("anger", "disgust")) < ENOUGH:
        return []
    disgust, anger = names.index("disgust"), names.index("anger")
    overlap = result.overlap[disgust][anger]
    as_anger = result.answered[disgust][result.labels.index("anger")]
    own, by_anger = result.cross[disgust][disgust], result.cross[anger][disgust]
    shared = "neither has causal features" if overlap is None else f"overlap {overlap:.2f}"
    return [
        f"Disgust against anger: {shared}; ablating disgust's eight strongest of the last phase "
        f"takes {own:.2f} off the margin of disgust in its texts, ablating anger's {by_anger:.2f}; "
        f"{as_anger} of {result.emotions['disgust']} texts of disgust are answered anger."
    ]


def _plots(result: TraceResult) -> list[Plot]:
    plots = []
    sizes = tuple(float(k) for k in result.joint_sizes)
    for phase in range(1, result.phases + 1):
        mine = [one for one in result.cells if one.phase == phase]
        lines = [Line(name=one.emotion, x=sizes, y=one.joint) for one in mine]
        lines += [
            Line(name=f"{one.emotion}, controls", x=sizes, y=one.joint_controls, control=True)
            for one in mine
        ]
        plots.append(
            Plot(
                f"The strongest with controls ablated together, phase {phase}",
                "features",
                "margin lost",
                tuple(lines),
            )
        )
    return [*plots, _by_layer(result)]


def _by_layer(result: TraceResult) -> Plot:
    """Draw the largest effect at each layer; the dashed line is the largest of any control."""
    layers = sorted({feature.layer for feature in result.features})
    x = tuple(float(layer) for layer in layers)
    lines = []
    for name in result.emotions:
        best: list[float | None] = []
        for layer in layers:
            effects = [f.effect for f in result.features if f.emotion == name and f.layer == layer]
            best.append(max(effects, default=None))
        lines.append(Line(name=name, x=x, y=tuple(best)))
    cells: dict[int, list[TraceCell]] = {}
    for one in result.cells:
        cells.setdefault(one.phase, []).append(one)
    phases = {f.layer: f.phase for f in result.features}
    highs = [[one.control_high for one in cells[phases[layer]]] for layer in layers]
    beside = tuple(max((h for h in own if h is not None), default=None) for own in highs)
    lines.append(Line(name="controls, largest of the phase", x=x, y=beside, control=True))
    return Plot("Largest effect of one feature", "layer", "margin lost", tuple(lines))
