"""Which SAE features are specific to an emotion, which are shared, which follow valence (SAE
paper; METHODS 2.3; the rules stand in `feature_kinds`).

By default a feature is taken at its largest activation over the text's own tokens; the template,
BOS and special tokens are left out. Traps avoided: choices are made on one half of the texts and
kept only where the other half bears them out; p holds over all features and labels of a layer;
the same rules are run on shuffled labels; no topic is in both halves. A feature that is selective
need not have an effect: on another task the two went against each other (METHODS 2.3), so what
is found here only nominates, and the study `trace` decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor

from emotui.core.errors import UsageError
from emotui.core.studies.common.chunks import packed, unpacked
from emotui.core.studies.common.report import Cell, Heat, Line, Plot, Report, Table
from emotui.core.studies.common.running import Cost, Implementation, Running
from emotui.core.studies.feature_kinds import (
    KINDS,
    NULL_DRAWS,
    Groups,
    coactivation,
    kinds_of,
    lexical_share,
)
from emotui.core.studies.sae_texts import (
    LEAST_EXPLAINED,
    NEGATIVE,
    NEUTRAL,
    POSITIVE,
    FeatureTexts,
    SaeFit,
    feature_bytes,
    feature_texts,
    halves,
)

_LISTED = 20
"""Features of each kind that a layer lists."""


class FeatureRow(msgspec.Struct, frozen=True, kw_only=True):
    """One feature that is listed."""

    feature: str
    kind: str
    label: str
    """The emotion, `positive` or `negative`, or "" for a shared one."""
    area: float
    """AUC on the half that choices were made on: of the label against all others, of positive
    against negative, or of emotional against neutral texts."""
    confirmed: float
    """The same on the other half."""
    on_words: float | None
    """Share of its 20 strongest texts where it is strongest on an emotion word."""


class LayerKinds(msgspec.Struct, frozen=True, kw_only=True):
    """What was found in one SAE."""

    sae: str
    site: str
    layer: int
    tested: int
    """Features that fire often enough."""
    specific: tuple[int, ...]
    """By label."""
    specific_shuffled: tuple[float, ...]
    """The same under shuffled labels, mean over the shufflings: how many to expect by chance."""
    specific_shuffled_95: tuple[float, ...]
    """95th percentile over these."""
    counts: dict[str, int]
    """Features of each kind."""
    shuffled: dict[str, float]
    """The same under shuffled labels, mean over the shufflings."""
    shuffled_95: dict[str, float]
    coactivation: tuple[tuple[float | None, ...], ...]
    """[labels, labels]: mean overlap of the texts that top features fire on."""
    on_words: dict[str, float | None]
    """Kind to share of strongest activations on an emotion word; `all tested` is the control."""
    features: tuple[FeatureRow, ...]


class FeaturesResult(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    texts: int
    unreadable: int
    position: str
    labels: dict[str, int]
    """Label to texts."""
    left_out: dict[str, int]
    """Labels with too few texts in a half, and how many they have."""
    first: int
    """Texts of the half that choices were made on."""
    shufflings: int
    """Of the labels, that `shuffled` is over."""
    neutral: bool
    """Whether there are neutral texts: without them nothing can be called shared."""
    fits: tuple[SaeFit, ...]
    layers: tuple[LayerKinds, ...]


def run(study: Running) -> FeaturesResult:
    """Encode all texts and measure every SAE, one at a time."""
    position = study.text("position")
    if position not in ("text", "readout"):
        raise UsageError("position is `text` or `readout`.")
    found = feature_texts(study)
    taken = taken_of(study, found, least=study.number("least"))

    def work(number: int) -> dict[str, Tensor]:
        values = found.largest(number) if position == "text" else found.at_readout(number)
        return {"layer": packed(_measured(study, found, taken, number, values))}

    chunks = study.stage("kinds of features", len(found.saes), work, phase="measuring the features")
    counts = torch.bincount(taken.groups.labels, minlength=taken.groups.classes).tolist()
    return FeaturesResult(
        texts=len(taken.rows),
        unreadable=study.run.dataset.texts - len(found.index),
        position=position,
        labels=dict(zip(taken.labels, counts, strict=True)),
        left_out=taken.left_out,
        first=int(taken.groups.first.sum()),
        shufflings=NULL_DRAWS,
        neutral=taken.groups.neutral is not None,
        fits=found.fits(),
        layers=tuple(unpacked(chunk["layer"], LayerKinds) for chunk in chunks),
    )


@dataclass(frozen=True)
class Taken:
    """The texts of the labels that have enough of them."""

    rows: Tensor
    """[n], long: rows of what was read."""
    labels: tuple[str, ...]
    left_out: dict[str, int]
    groups: Groups


def taken_of(study: Running, found: FeatureTexts, *, least: int) -> Taken:
    """Return the texts of labels with at least `least` in each half; UsageError below two."""
    names, items = study.dataset.labels, study.dataset.items(found.index.tolist())
    first = halves(items, study.run.seed)
    smaller = [
        min(int((side & (found.gold == k)).sum()) for side in (first, ~first))
        for k in range(len(names))
    ]
    kept = [k for k in range(len(names)) if smaller[k] >= max(least, 1)]
    if len(kept) < 2:
        said = ", ".join(f"{name} {n}" for name, n in zip(names, smaller, strict=True))
        raise UsageError(
            "There are too few texts to tell features apart.",
            why=f"Fewer than two labels have {least} texts in each half; the smaller half has: "
            f"{said}.",
            todo="Give more texts, or raise --limit; --set least=N lowers the bar.",
        )
    labels = tuple(names[k] for k in kept)
    number = {k: n for n, k in enumerate(kept)}
    rows = torch.tensor([n for n, label in enumerate(found.gold.tolist()) if label in number])
    units: dict[tuple[str, int], int] = {}
    mine = [items[row] for row in rows.tolist()]
    groups = Groups(
        labels=torch.tensor([number[item.label] for item in mine]),
        classes=len(labels),
        neutral=labels.index(NEUTRAL) if NEUTRAL in labels else None,
        positive=torch.tensor([label in POSITIVE for label in labels]),
        negative=torch.tensor([label in NEGATIVE for label in labels]),
        first=first[rows],
        units=torch.tensor(
            [units.setdefault((item.group, item.label), len(units)) for item in mine]
        ),
    )
    counts = torch.bincount(found.gold, minlength=len(names)).tolist()
    left_out = {name: counts[k] for k, name in enumerate(names) if k not in number}
    return Taken(rows, labels, left_out, groups)


def _measured(
    study: Running, found: FeatureTexts, taken: Taken, number: int, values: Tensor
) -> LayerKinds:
    sae, labels, groups, values = found.saes[number], taken.labels, taken.groups, values[taken.rows]
    kinds = kinds_of(
        values, groups, shuffles=study.number("shuffles"), seed=study.run.seed + number
    )
    on_words = found.on_words(number)[taken.rows]
    members = {
        "specific": kinds.specific >= 0,
        "valence": kinds.valence != 0,
        "shared": kinds.shared,
    }
    expected = kinds.shuffled.mean(dim=0).tolist()
    at_most = kinds.shuffled.quantile(0.95, dim=0).tolist()
    prefix = "" if sae.site == "resid" else f"{sae.site}:"
    judged = {
        "specific": torch.stack([kinds.area.amax(dim=0), kinds.confirmed]),
        "valence": kinds.valence_area,
        "shared": kinds.shared_area,
    }
    rows = []
    for kind, inside in members.items():
        chosen = inside.nonzero().flatten()
        area, confirmed = judged[kind]
        strength = (area[chosen] - 0.5).abs()
        for j in chosen[strength.argsort(descending=True, stable=True)][:_LISTED].tolist():
            one = torch.zeros_like(inside)
            one[j] = True
            rows.append(
                FeatureRow(
                    feature=f"{prefix}L{sae.layer}/{j}",
                    kind=kind,
                    label=_label(kind, j, kinds.specific, kinds.valence, labels),
                    area=float(area[j]),
                    confirmed=float(confirmed[j]),
                    on_words=lexical_share(values, on_words, one),
                )
            )
    specific = kinds.specific[kinds.specific >= 0]
    overlap = coactivation(values, kinds, groups)
    shares = {kind: lexical_share(values, on_words, inside) for kind, inside in members.items()}
    return LayerKinds(
        sae=sae.id,
        site=sae.site,
        layer=sae.layer,
        tested=int(kinds.tested.sum()),
        specific=tuple(torch.bincount(specific, minlength=groups.classes).tolist()),
        specific_shuffled=tuple(expected[len(KINDS) :]),
        specific_shuffled_95=tuple(at_most[len(KINDS) :]),
        counts={kind: int(inside.sum()) for kind, inside in members.items()},
        shuffled=dict(zip(KINDS, expected[: len(KINDS)], strict=True)),
        shuffled_95=dict(zip(KINDS, at_most[: len(KINDS)], strict=True)),
        coactivation=tuple(
            tuple(value if value == value else None for value in row) for row in overlap.tolist()
        ),
        on_words={**shares, "all tested": lexical_share(values, on_words, kinds.tested)},
        features=tuple(rows),
    )


def _label(kind: str, j: int, specific: Tensor, valence: Tensor, labels: tuple[str, ...]) -> str:
    if kind == "specific":
        return labels[int(specific[j])]
    if kind == "valence":
        return "positive" if int(valence[j]) > 0 else "negative"
    return ""


def report(result: FeaturesResult) -> Report:
    """Say how many features of each kind there are, beside what shuffled labels give."""
    labels = tuple(result.labels)
    rows: list[tuple[Cell, ...]] = []
    for one in result.layers:
        for n, label in enumerate(labels):
            chance = (one.specific_shuffled[n], one.specific_shuffled_95[n])
            rows.append((one.site, one.layer, label, one.specific[n], *chance))
    kinds: list[tuple[Cell, ...]] = [
        (
            *(one.site, one.layer, one.tested, kind, one.counts[kind], one.shuffled[kind]),
            *(one.shuffled_95[kind], one.on_words[kind], one.on_words["all tested"]),
        )
        for one in result.layers
        for kind in KINDS
    ]
    listed: list[tuple[Cell, ...]] = [
        (row.feature, row.kind, row.label, row.area, row.confirmed, row.on_words)
        for one in result.layers
        for row in one.features
    ]
    tables = (
        Table(
            "Specific features by layer and label",
            ("site", "layer", "label", "specific", "shuffled", "shuffled_95"),
            tuple(rows),
        ),
        Table(
            "Features by layer and kind",
            (
                *("site", "layer", "tested", "kind", "features", "shuffled", "shuffled_95"),
                *("on_emotion_words", "all_on_emotion_words"),
            ),
            tuple(kinds),
        ),
        Table(
            "Features (the 20 of each kind and layer with the largest AUC)",
            ("feature", "kind", "label", "auc", "confirmed", "on_emotion_words"),
            tuple(listed),
        ),
    )
    return Report(tuple(_sentences(result)), tables, tuple(_plots(result)), tuple(_heats(result)))


def _sentences(result: FeaturesResult) -> list[str]:
    labels = tuple(result.labels)
    counts = ", ".join(f"{label} {n}" for label, n in result.labels.items())
    where = "anywhere in the text" if result.position == "text" else "at the readout"
    found = [
        f"{result.texts:,} texts ({counts}); {result.first:,} to choose on, the others to confirm; "
        f"features {where}."
    ]
    if result.left_out:
        said = ", ".join(f"{label} {n}" for label, n in result.left_out.items())
        found.append(f"Left out, with too few texts in a half: {said}.")
    for kind in KINDS:
        total = sum(one.counts[kind] for one in result.layers)
        null = sum(one.shuffled[kind] for one in result.layers)
        if kind == "shared" and not result.neutral:
            found.append("There are no neutral texts, so no feature can be called shared.")
            continue
        found.append(
            f"{kind}: {total:,} features over all layers; shuffled labels give {null:.1f}."
        )
    found.append(
        f"shuffled and shuffled_95: mean and 95th percentile over {result.shufflings} shufflings "
        "of the labels of units of texts, by the same rules: so many to expect by chance. Counts "
        "have no interval: none is valid for features that are chosen and confirmed."
    )
    by_label = {n: sum(one.specific[n] for one in result.layers) for n in range(len(labels))}
    ordered = sorted(by_label, key=lambda n: by_label[n])
    listed = ", ".join(f"{labels[n]} {by_label[n]}" for n in reversed(ordered))
    found.append(f"Specific to: {listed}.")
    if {"anger", "disgust"} <= set(labels):
        found += _disgust(result, labels)
    words = [one.on_words["specific"] for one in result.layers]
    shares = [share for share in words if share is not None]
    control = [s for one in result.layers if (s := one.on_words["all tested"]) is not None]
    if shares and control:
        found.append(
            f"Specific features are strongest on an emotion word in "
            f"{sum(shares) / len(shares):.0%} of their strongest texts, all tested features in "
            f"{sum(control) / len(control):.0%}: what is above is lexical."
        )
    found.append("Selectivity nominates features; whether they have an effect is asked by `trace`.")
    return found + fit_sentences(result.fits, result.unreadable)


def fit_sentences(fits: tuple[SaeFit, ...], unreadable: int) -> list[str]:
    """Say which SAEs rebuild these texts badly, and how many texts could not be read."""
    found = []
    low = [f for f in fits if f.explained is None or f.explained < LEAST_EXPLAINED]
    if low:
        said = ", ".join(
            f"{fit.sae} {'-' if fit.explained is None else f'{fit.explained:.2f}'}" for fit in low
        )
        found.append(
            f"Unreliable, less than {LEAST_EXPLAINED} of the variance of these texts explained: "
            f"{said}."
        )
    elif fits:
        shares = [fit.explained for fit in fits if fit.explained is not None]
        found.append(
            f"The SAEs explain {min(shares):.2f} to {max(shares):.2f} of the variance of these "
            f"texts, with {min(f.active for f in fits):.0f} to {max(f.active for f in fits):.0f} "
            "features active on a token."
        )
    if unreadable:
        found.append(f"{unreadable:,} texts are too long for the model with the prompt.")
    return found


def _disgust(result: FeaturesResult, labels: tuple[str, ...]) -> list[str]:
    disgust, anger = labels.index("disgust"), labels.index("anger")
    others = [n for n, label in enumerate(labels) if label not in ("disgust", "anger", NEUTRAL)]
    pairs, rest = [], []
    for one in result.layers:
        pairs += [v for v in [one.coactivation[disgust][anger]] if v is not None]
        rest += [v for n in others if (v := one.coactivation[disgust][n]) is not None]
    if not pairs or not rest:
        return []
    return [
        f"Top features of disgust and anger fire on the same texts with an overlap of "
        f"{sum(pairs) / len(pairs):.2f}, disgust and the other emotions "
        f"{sum(rest) / len(rest):.2f}."
    ]


def _plots(result: FeaturesResult) -> list[Plot]:
    labels, plots = tuple(result.labels), []
    for site in dict.fromkeys(one.site for one in result.layers):
        layers = [one for one in result.layers if one.site == site]
        x = tuple(float(one.layer) for one in layers)
        lines = [
            Line(
                name=label,
                x=x,
                y=tuple(float(one.specific[n]) for one in layers),
            )
            for n, label in enumerate(labels)
        ]
        shuffled = tuple(one.shuffled["specific"] for one in layers)
        lines.append(Line(name="all, shuffled labels", x=x, y=shuffled, control=True))
        plots.append(Plot(f"Specific features, {site}", "layer", "features", tuple(lines)))
        kinds = [
            line
            for kind in KINDS
            for line in (
                Line(name=kind, x=x, y=tuple(float(one.counts[kind]) for one in layers)),
                Line(
                    name=f"{kind}, shuffled",
                    x=x,
                    y=tuple(one.shuffled[kind] for one in layers),
                    control=True,
                ),
            )
        ]
        plots.append(Plot(f"Features by kind, {site}", "layer", "features", tuple(kinds)))
    return plots


def _heats(result: FeaturesResult) -> list[Heat]:
    labels = tuple(result.labels)
    chosen = [
        result.layers[n] for n in sorted({0, len(result.layers) // 2, -1 % len(result.layers)})
    ]
    return [
        Heat(
            f"Overlap of the texts that top features fire on, {one.site}.{one.layer}",
            labels,
            labels,
            one.coactivation,
        )
        for one in chosen
    ]


def cost(study: Running) -> Cost:
    """Return one forward a text; the arithmetic is over the widest SAE."""
    texts = study.run.dataset.texts
    width = max((sae.width for sae in study.saes), default=0)
    return Cost(
        forwards=1.5 * texts,
        disk_bytes=feature_bytes(study, events=False),
        memory_bytes=16 * texts * width,
        seconds=len(study.saes) * texts * width * study.number("shuffles") * 8 / 2e10,
    )


STUDY = Implementation(run=run, report=report, cost=cost)
