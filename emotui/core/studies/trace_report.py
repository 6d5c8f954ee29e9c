"""The result of `trace` as it is read."""

from __future__ import annotations

from emotui.core.studies.common.report import Cell, Heat, Line, Plot, Report, Table
from emotui.core.studies.trace_results import TraceCell, TraceResult

ENOUGH = 10
"""Texts of an emotion below which the sign-flip test has no chance after correction."""


def report(result: TraceResult) -> Report:
    """Say how many features cause each emotion in each phase, beside the matched ones."""
    cells: list[tuple[Cell, ...]] = [
        (
            *(one.emotion, one.phase, one.texts, one.listed, one.matched, one.causal),
            *(one.suppressors, one.null_low, one.null_high, one.largest, one.random),
            *(one.top_share, one.participation, one.missed, one.overlooked, one.attribution_r),
            *(one.joint[3], one.joint_matched[3], one.summed[3], one.others, one.divergence),
        )
        for one in result.cells
    ]
    features: list[tuple[Cell, ...]] = [
        (
            *(one.feature, one.emotion, one.phase, one.layer, one.effect, one.low, one.high),
            *(one.q, one.relative, one.estimate, one.flips, one.verdict),
        )
        for one in result.features
    ]
    tables = (
        Table(
            "Features that were ablated",
            (
                *("feature", "emotion", "phase", "layer", "effect", "low", "high", "q"),
                *("over_random", "attribution", "flips", "verdict"),
            ),
            tuple(row for row in features if row[-1]) or tuple(features[:50]),
        ),
        Table(
            "Emotions by phase",
            (
                *("emotion", "phase", "texts", "ablated", "matched", "causal", "suppressors"),
                *("matched_1", "matched_99", "largest", "random_direction", "top_5_share"),
                *("participation", "missed", "overlooked", "attribution_r", "joint_8"),
                *("joint_8_matched", "sum_of_8", "on_others_8", "kl_neutral_8"),
            ),
            tuple(cells),
        ),
    )
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


def _sentences(result: TraceResult) -> list[str]:
    counts = ", ".join(f"{name} {n}" for name, n in result.emotions.items())
    starts = ", ".join(str(layer) for layer in (0, *result.boundaries))
    found = [
        f"Ablated at the readout in {counts} texts, listed on others; phases begin at layers "
        f"{starts}. Effect: the margin of the text's own label before less after, in logits."
    ]
    few = ", ".join(f"{name} {n}" for name, n in result.emotions.items() if n < ENOUGH)
    if few:
        found.append(
            f"With so few texts nothing can be called causal, so their zeros say nothing: {few}."
        )
    for phase in range(1, result.phases + 1):
        mine = [one for one in result.cells if one.phase == phase]
        said = ", ".join(f"{one.emotion} {one.causal}" for one in mine)
        beyond = max((one.null_high for one in mine), default=0.0)
        found.append(
            f"Phase {phase}: causal features {said}; the largest effect is "
            f"{max(one.largest for one in mine):.2f}, the matched features' 99th percentile at "
            f"most {beyond:.2f}."
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
    found.append(f"Attribution overlooked {missed} of {sampled} sampled active features.")
    found.append(
        "Effects grow towards the logits by themselves: over_random divides them by that of "
        "random directions of the same norm at the same layer."
    )
    return found + _disgust(result)


def _concentration(result: TraceResult) -> list[str]:
    last = [one for one in result.cells if one.phase == result.phases and one.participation]
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
        f"ratio; share of the top five): {said}."
    ]


def _disgust(result: TraceResult) -> list[str]:
    names = tuple(result.emotions)
    if not {"anger", "disgust"} <= set(names):
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
            Line(name=f"{one.emotion}, matched", x=sizes, y=one.joint_matched, control=True)
            for one in mine
        ]
        plots.append(
            Plot(
                f"The strongest ablated together, phase {phase}",
                "features",
                "margin lost",
                tuple(lines),
            )
        )
    return [*plots, _by_layer(result)]


def _by_layer(result: TraceResult) -> Plot:
    """Draw the largest effect at each layer; the control is the null's 99th percentile."""
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
    null = tuple(max(one.null_high for one in cells[phases[layer]]) for layer in layers)
    lines.append(Line(name="matched, 99 %", x=x, y=null, control=True))
    return Plot("Largest effect of one feature", "layer", "margin lost", tuple(lines))
