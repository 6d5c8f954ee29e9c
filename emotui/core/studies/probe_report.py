"""The result of `probes` as it is read: every curve beside what it must beat."""

from __future__ import annotations

from emotui.cache.probes import ProbeScore
from emotui.core.records import Site
from emotui.core.studies.common.report import Cell, Heat, Line, Plot, Report, Table
from emotui.core.studies.probe_results import SITES, ProbesResult, TargetResult


def report(result: ProbesResult) -> Report:
    """Say from where each target can be read, and lay every curve beside its controls."""
    table = Table(
        "Accuracy by layer and site",
        (
            *("target", "site", "layer", "balanced_accuracy", "low", "high", "accuracy"),
            *("trust", "shuffled_95", "bag_of_embeddings", "named", "unnamed"),
        ),
        tuple(_rows(result)),
    )
    appraisals = Table(
        "Appraisals by layer and site",
        ("appraisal", "site", "layer", "r_squared", "pearson"),
        tuple(
            (one.name, one.site, layer, r2, r)
            for one in result.appraisals
            for layer, r2, r in zip(one.layer, one.r_squared, one.pearson, strict=True)
        ),
    )
    tables = (table, appraisals) if result.appraisals else (table,)
    plots = [_accuracy_plot(result, target) for target in result.targets]
    plots += _appraisal_plots(result)
    return Report(tuple(_sentences(result)), tables, tuple(plots), tuple(_cosine_heats(result)))


def _rows(result: ProbesResult) -> list[tuple[Cell, ...]]:
    return [
        (
            *(target.target, score.site, score.layer, score.balanced_accuracy, low, high),
            *(accuracy, score.trust, score.shuffled_95, score.bag_accuracy),
            *(score.named_accuracy, score.unnamed_accuracy),
        )
        for target in result.targets
        for score, low, high, accuracy in zip(
            target.scores, target.low, target.high, target.accuracy, strict=True
        )
    ]


def _best(target: TargetResult) -> ProbeScore:
    """Return the layer of the residual stream that was best on dev: judged texts choose nothing."""
    resid = [score for score in target.scores if score.site == "resid" and score.layer >= 0]
    return max(resid, key=lambda score: (score.dev_accuracy or 0.0, -score.layer))


def _sentences(result: ProbesResult) -> list[str]:
    found = [
        f"{result.texts:,} texts; the model's own answers have a balanced accuracy of "
        f"{result.model_accuracy:.2f}, guessing {result.chance:.2f}."
    ]
    for target in result.targets:
        best = _best(target)
        trusted = [s.layer for s in target.scores if s.site == "resid" and s.trust == "trusted"]
        where = f"trusted from layer {min(trusted)} on" if trusted else "trusted at no layer"
        if trusted and sorted(trusted) != list(range(min(trusted), max(trusted) + 1)):
            where = "trusted at layers " + ", ".join(map(str, sorted(trusted)))
        counts = ", ".join(f"{label} {n}" for label, n in target.labels.items())
        left_out = ", ".join(f"{label} {n}" for label, n in target.left_out.items())
        found.append(
            f"Target {target.target}: {best.balanced_accuracy:.2f} at layer {best.layer} (chosen "
            f"on dev), on {target.judged} {target.judged_on}; shuffled labels reach "
            f"{best.shuffled_95:.2f} at their best layer, the mean embedding "
            f"{best.bag_accuracy:.2f}; {where}. Texts: {counts}"
            + (f"; left out as too few: {left_out}." if left_out else ".")
        )
    found += [
        f"Target {name} could not be fitted, too few texts of two labels: {counts}."
        for name, counts in result.not_fitted.items()
    ]
    named = {target.target: _best(target) for target in result.targets}
    by_name = {target.target: set(target.labels) for target in result.targets}
    if "gold" in named and by_name["gold"] == by_name.get("first word"):
        apart = named["gold"].balanced_accuracy - named["first word"].balanced_accuracy
        found.append(f"Selectivity (gold less a random label of each first word): {apart:+.2f}.")
    elif "first word" in named:
        found.append("Selectivity is not given: the control task has fewer labels.")
    if result.words is not None:
        gold = [s.balanced_accuracy for s in result.targets[0].scores if s.site == "resid"]
        verdict = "beats" if max(gold) > result.words else "does not beat"
        found.append(
            f"A probe on the words alone (TF-IDF): {result.words:.2f}, which the best layer of the "
            f"residual stream {verdict}."
        )
    if result.agreement is not None:
        found.append(
            f"Readers against each other: {result.agreement.accuracy:.2f} over "
            f"{result.agreement.pairs:,} pairs; no probe can be expected above it."
        )
    if result.appraisals:
        found.append(f"Appraisal values: {result.appraisal_source}.")
    if result.unreadable:
        found.append(f"{result.unreadable:,} texts are too long for the model with the prompt.")
    return found


def _accuracy_plot(result: ProbesResult, target: TargetResult) -> Plot:
    def of(site: Site) -> list[int]:
        return [n for n, score in enumerate(target.scores) if score.site == site]

    lines = [
        Line(
            name=site,
            x=tuple(float(target.scores[n].layer) for n in of(site)),
            y=tuple(target.scores[n].balanced_accuracy for n in of(site)),
            low=tuple(target.low[n] for n in of(site)),
            high=tuple(target.high[n] for n in of(site)),
        )
        for site in SITES
    ]
    resid = [target.scores[n] for n in of("resid")]
    x = tuple(float(score.layer) for score in resid)
    lines.append(_control("shuffled, 95 %", x, tuple(score.shuffled_95 for score in resid)))
    lines.append(_control("mean embedding", x, tuple(score.bag_accuracy for score in resid)))
    if target.target == "gold":
        layers = tuple(float(layer) for layer in result.projections.layer)
        lines.append(_control("random directions", layers, result.projections.random))
        lines.append(_control("without the probe", layers, result.projections.without))
        if result.words is not None:
            lines.append(_control("words (TF-IDF)", x, (result.words,) * len(x)))
        if result.agreement is not None:
            lines.append(_control("readers", x, (result.agreement.accuracy,) * len(x)))
    return Plot(f"Accuracy, {target.target}", "layer", "balanced accuracy", tuple(lines))


def _control(name: str, x: tuple[float, ...], y: tuple[float, ...]) -> Line:
    return Line(name=name, x=x, y=y, control=True)


def _appraisal_plots(result: ProbesResult) -> list[Plot]:
    plots = []
    for site in SITES:
        lines = tuple(
            Line(name=one.name, x=tuple(map(float, one.layer)), y=one.r_squared)
            for one in result.appraisals
            if one.site == site
        )
        if lines:
            plots.append(Plot(f"Appraisals, {site}", "layer", "R² on held-out groups", lines))
    return plots


def _cosine_heats(result: ProbesResult) -> list[Heat]:
    if result.cosines is None:
        return []
    found = result.cosines
    layers = sorted({0, found.layer[len(found.layer) // 2], found.layer[-1]})
    return [
        Heat(
            f"Cosine of emotions and appraisals, residual stream, layer {layer}",
            found.emotions,
            found.appraisals,
            found.values[found.layer.index(layer)],
        )
        for layer in layers
    ]
