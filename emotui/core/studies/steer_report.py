"""The result of `steer` as it is read: a gain is claimed only where it beats what it must."""

from __future__ import annotations

from emotui.core.studies.common.report import Cell, Line, Plot, Report, Table
from emotui.core.studies.steer_fit import PENALTIES
from emotui.core.studies.steer_results import EvaluatedSet, Gain, SteerResult

_HIGH = 1.10
_FEW = 20  # texts of a label; below, its recall is hardly known
_METHODS = ("targeted", "global", "matched", "logit bias", "few-shot", "nearest mean")


def report(result: SteerResult) -> Report:
    """Say of every dataset whether steering beats the baselines, and what it costs."""
    scored: list[tuple[Cell, ...]] = [
        (
            *(one.dataset, one.shots, one.method, one.balanced_accuracy, one.low, one.high),
            *(one.accuracy, one.macro_f1, one.mcnemar, *one.recall),
        )
        for one in result.scored
    ]
    gains: list[tuple[Cell, ...]] = [
        (
            *(one.dataset, one.shots, one.method),
            *(one.over[name] for name in _OVER),
            *(one.best, one.low, one.high, one.matched_low, one.matched_high),
            "gain" if one.claimed else "no gain claimed",
        )
        for one in result.gains
    ]
    fits: list[tuple[Cell, ...]] = [
        (
            *(fit.shots, label, sum(k == n for _, _, k in fit.features), fit.targeted[n]),
            *(fit.fitted[n], fit.penalty),
        )
        for fit in result.trained
        for n, label in enumerate(result.labels)
    ]
    tables = (
        Table(
            "Methods",
            (
                *("dataset", "shots", "method", "balanced_accuracy", "low", "high", "accuracy"),
                *("macro_f1", "mcnemar_p", *(f"recall {label}" for label in result.labels)),
            ),
            tuple(scored),
        ),
        Table(
            "Steering less each baseline, balanced accuracy",
            (
                *("dataset", "shots", "method", *(f"over {name}" for name in _OVER)),
                *("best baseline", "low", "high", "over matched low", "over matched high"),
                "verdict",
            ),
            tuple(gains),
        ),
        Table(
            "Scales", ("shots", "label", "features", "targeted", "global", "penalty"), tuple(fits)
        ),
        Table(
            "Texts the methods are judged on",
            ("dataset", *result.labels, "all"),
            tuple(
                (
                    one.name or "held out",
                    *(one.labels.get(label, 0) for label in result.labels),
                    one.texts,
                )
                for one in result.datasets
            ),
        ),
        Table(
            "Every token of neutral passages edited",
            (
                *("shots", "passages", "targeted_ppl_ratio", "targeted_kl"),
                *("global_ppl_ratio", "global_kl"),
            ),
            tuple(
                (
                    *(one.shots, one.passages, one.targeted_perplexity, one.targeted_divergence),
                    *(one.global_perplexity, one.global_divergence),
                )
                for one in result.sides
            ),
        ),
    )
    return Report(tuple(_sentences(result)), tables, tuple(_plots(result)))


_OVER = ("none", "logit bias", "few-shot", "matched")


def _sentences(result: SteerResult) -> list[str]:
    shots = ", ".join(str(fit.shots) for fit in result.trained)
    layers = ", ".join(map(str, result.layers))
    found = [
        f"Features of layers {layers}, chosen and scaled on {shots} examples a label, at the "
        "readout; without an edit each dataset is read as `none` says."
    ]
    for dataset in result.datasets:
        found.append(_of_dataset(result, dataset))
    found += [_penalties(result), *_few(result)]
    found += _costs(result)
    return found


def _penalties(result: SteerResult) -> str:
    """Say under which penalties the global scales were fitted, and which lie at the grid's edge."""
    said = ", ".join(f"{fit.penalty:g} with {fit.shots}" for fit in result.trained)
    line = f"Global scales were fitted under a penalty (on their distance from 1) of {said}."
    edge = [fit for fit in result.trained if fit.penalty in (PENALTIES[0], PENALTIES[-1])]
    if edge:
        shots = ", ".join(str(fit.shots) for fit in edge)
        line += (
            f" With {shots} that is the edge of the grid ({PENALTIES[0]:g} to {PENALTIES[-1]:g})"
        )
        ones = [fit for fit in edge if all(scale == 1 for scale in fit.fitted)]
        line += ": with " + ", ".join(str(fit.shots) for fit in ones) if ones else ""
        line += " all scales are 1, so nothing is edited." if ones else "."
    return line


def _few(result: SteerResult) -> list[str]:
    """Name the labels of which a dataset has too few texts for a recall."""
    found = []
    for one in result.datasets:
        few = [f"{label} {n}" for label, n in one.labels.items() if n < _FEW]
        if few:
            found.append(
                f"On {one.name or 'the held-out texts'} the recall of some labels, and with it the "
                f"balanced accuracy, rests on few texts: {', '.join(few)}."
            )
    return found


def _of_dataset(result: SteerResult, dataset: EvaluatedSet) -> str:
    where = "held out" if dataset.own else "of other origin"
    mine = [one for one in result.gains if one.dataset == dataset.name]
    if not mine:
        return f"{dataset.name} ({where}): no text is left to judge on."
    base = next(
        one.balanced_accuracy
        for one in result.scored
        if one.dataset == dataset.name and one.method == "none"
    )
    head = f"{dataset.name} ({where}, {dataset.texts:,} texts, balanced accuracy {base:.3f}): "
    claimed = [one for one in mine if one.claimed]
    if claimed:
        return head + "; ".join(_said(one) for one in claimed) + "."
    best = max(mine, key=lambda one: min(one.over.values()))
    return (
        f"{head}no gain is claimed; the nearest, {_said(best)}, is not above all of no edit, "
        "logit bias, few-shot and matched features with both intervals above 0."
    )


def _said(one: Gain) -> str:
    over = ", ".join(f"{name} {one.over[name]:+.3f}" for name in _OVER)
    return (
        f"{one.method} with {one.shots} examples a label ({over}; "
        f"against {one.best} {one.low:+.3f} to {one.high:+.3f})"
    )


def _costs(result: SteerResult) -> list[str]:
    found = [
        "Edited at the readout alone, the perplexity of a text is untouched by construction; with "
        "every token edited it is multiplied by "
        + ", ".join(
            f"{one.targeted_perplexity:.2f} (targeted) and {one.global_perplexity:.2f} (global) "
            f"with {one.shots}"
            for one in result.sides
        )
        + "."
    ]
    if any(max(s.targeted_perplexity, s.global_perplexity) > _HIGH for s in result.sides):
        found.append(f"A ratio above {_HIGH:.2f} says that such an edit breaks more than emotion.")
    zero = max((one.zero_effect for one in result.datasets), default=0.0)
    found.append(f"Scales of 1 change no score by more than {zero:.1e} (rounding).")
    for one in result.datasets:
        wanted = [fit.examples for fit in result.trained]
        short = [
            f"{fit.shots}: {used:.0f} of {n}"
            for fit, used, n in zip(result.trained, one.few_shot_used, wanted, strict=True)
            if used < n - 0.5
        ]
        if short:
            found.append(
                f"Few-shot prompts on {one.name} hold only what fits into the context (examples a "
                f"label: examples used): {'; '.join(short)}."
            )
    return found


def _plots(result: SteerResult) -> list[Plot]:
    plots = []
    for dataset in result.datasets:
        mine = [one for one in result.scored if one.dataset == dataset.name]
        lines = []
        for method in _METHODS:
            rows = sorted((o for o in mine if o.method == method), key=lambda one: one.shots)
            lines.append(
                Line(
                    name=method,
                    x=tuple(float(one.shots) for one in rows),
                    y=tuple(one.balanced_accuracy for one in rows),
                    low=tuple(one.low for one in rows) if method in ("targeted", "global") else (),
                    high=tuple(one.high for one in rows)
                    if method in ("targeted", "global")
                    else (),
                    control=method not in ("targeted", "global"),
                )
            )
        none = [one.balanced_accuracy for one in mine if one.method == "none"]
        if none:
            x = tuple(float(fit.shots) for fit in result.trained)
            lines.append(Line(name="none", x=x, y=(none[0],) * len(x), control=True))
            plots.append(
                Plot(f"{dataset.name}", "examples a label", "balanced accuracy", tuple(lines))
            )
    return plots
