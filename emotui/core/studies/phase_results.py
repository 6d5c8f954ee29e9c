"""What the study `phases` finds, and how it follows from what was measured text by text."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor

from emotui.core.studies.phase_curves import UNSTABLE, onset, segmented
from emotui.core.studies.sae_texts import SaeFit

DRAWS = 200
VERDICTS = {1: "gradual, no phases", 2: "two phases", 3: "three phases"}


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """One curve over the layers, with a 95 % interval over texts (or pairs)."""

    name: str
    value: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    null: tuple[float, ...]
    """What it must be held against."""


class Boundary(msgspec.Struct, frozen=True, kw_only=True):
    """Where a phase begins: its first layer, over draws of the texts."""

    layer: int
    median: float
    low: float
    high: float
    """90 % interval."""
    unstable: bool
    """The interval is wider than 15 % of the layers."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What one set of curves says."""

    curves: tuple[str, ...]
    steps: float
    """S: squared error that three steps save against straight lines, as a share."""
    third: float
    """G: squared error that the third phase saves, as a share."""
    phases: int
    agree: float
    """Share of the draws of the texts with the same number of phases."""
    boundaries: tuple[Boundary, ...]


class PhasesResult(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    texts: int
    unreadable: int
    labels: dict[str, int]
    fits: tuple[SaeFit, ...]
    layers: tuple[int, ...]
    semantic: str
    """The column the semantic curve reads; "" for none."""
    pairs: int
    curves: tuple[Curve, ...]
    main: Verdict
    decodable: Verdict
    """The same with the decodable emotion curve in the place of the causal one."""
    noise: tuple[str, ...]
    """Curves left out of the segmentation: their range is within their interval, or they are
    nowhere above their null."""
    onset: dict[str, int | None]
    """First of two layers running above the 95th percentile of the largest value over layers
    under shuffled labels; of each emotion curve."""


@dataclass(frozen=True)
class Measured:
    """What was measured; n texts, P pairs, L layers, all on the CPU."""

    layers: tuple[int, ...]
    semantic: str
    first: Tensor
    """[n], bool: the half that choices were made on."""
    columns: dict[str, Tensor]
    """[n or m, L] each: `hits`, `base`, `events`, `mass`, `valence_mass`, `whole`, and where there
    is a semantic column `right` [m, L] and `semantic_null` [1, L]; `null` [shuffles, L]."""
    source: Tensor
    """[P, 2]: the model's answer to source and target."""
    patched: Tensor
    """[P, L]: its answer to the target with the source's readout."""
    valence: Tensor
    """[labels]: 1, -1 or 0."""


def measure(
    measured: Measured,
    *,
    generator: torch.Generator,
    texts: int,
    unreadable: int,
    labels: dict[str, int],
    fits: tuple[SaeFit, ...],
) -> PhasesResult:
    """Return curves, verdicts and onsets."""
    second = (~measured.first).nonzero().flatten()
    names = _names(measured)
    pairs, read = len(measured.source), len(measured.columns.get("right", ()))
    everything = _curves(measured, second, torch.arange(read), torch.arange(pairs))
    drawn = [
        _curves(
            measured,
            second[torch.randint(len(second), (len(second),), generator=generator)],
            torch.randint(max(read, 1), (read,), generator=generator),
            torch.randint(max(pairs, 1), (pairs,), generator=generator),
        )
        for _ in range(DRAWS)
    ]
    nulls, thresholds = _nulls(measured, second, generator)
    draws = torch.stack([torch.stack([one[name] for name in names]) for one in drawn])
    low, high = draws.quantile(torch.tensor([0.025, 0.975]).double(), dim=0)
    curves = tuple(
        Curve(
            name=name,
            value=tuple(everything[name].tolist()),
            low=tuple(low[n].tolist()),
            high=tuple(high[n].tolist()),
            null=tuple(nulls[name].tolist()),
        )
        for n, name in enumerate(names)
    )
    noise = [one.name for one in curves if _is_noise(one)]
    base = [name for name in ("token", "semantic") if name in names]
    causal = "emotion (patched)" if pairs else "emotion (features)"

    def sound(last: str) -> list[str]:
        return [name for name in (*base, last) if name not in noise]

    found = {name: onset(everything[name], thresholds[name]) for name in thresholds}
    return PhasesResult(
        texts=texts,
        unreadable=unreadable,
        labels=labels,
        fits=fits,
        layers=measured.layers,
        semantic=measured.semantic,
        pairs=pairs,
        curves=curves,
        main=_verdict(measured.layers, everything, drawn, sound(causal)),
        decodable=_verdict(measured.layers, everything, drawn, sound("emotion (features)")),
        noise=tuple(name for name in (*base, causal, "emotion (features)") if name in noise),
        onset={n: None if at is None else measured.layers[at] for n, at in found.items()},
    )


def _is_noise(curve: Curve) -> bool:
    """Whether a curve varies no more than its interval, or never lies above zero."""
    widths = [high - low for low, high in zip(curve.low, curve.high, strict=True)]
    flat = max(curve.value) - min(curve.value) <= sum(widths) / len(widths)
    return flat or max(curve.low) <= 0


def _names(measured: Measured) -> list[str]:
    names = ["token"]
    names += ["semantic"] if "right" in measured.columns else []
    names += ["emotion (features)", "valence (features)"]
    if len(measured.source):
        names += ["emotion (patched)"]
        names += ["valence (patched)"] if bool(_opposite(measured).any()) else []
    return names


def _opposite(measured: Measured) -> Tensor:
    sign = measured.valence[measured.source]
    return sign.prod(dim=1) == -1


def _curves(measured: Measured, texts: Tensor, read: Tensor, pairs: Tensor) -> dict[str, Tensor]:
    """Return each curve [L] over some texts, texts with a semantic value, and pairs."""
    column = measured.columns
    events = column["events"][texts].sum(dim=0).clamp(min=1)
    hits = column["hits"][texts].sum(dim=0) - column["base"][texts].sum(dim=0)
    whole = column["whole"][texts].clamp(min=1e-12)
    found = {
        "token": hits / events,
        "emotion (features)": (column["mass"][texts] / whole).mean(dim=0),
        "valence (features)": (column["valence_mass"][texts] / whole).mean(dim=0),
    }
    if "right" in column:
        found["semantic"] = column["right"][read].mean(dim=0) - column["semantic_null"][0]
    if len(measured.source):
        source, patched = measured.source[pairs], measured.patched[pairs]
        found["emotion (patched)"] = (patched == source[:, :1]).double().mean(dim=0)
        opposite = _opposite(measured)[pairs]
        sign = measured.valence[patched] == measured.valence[source[:, :1]]
        if bool(_opposite(measured).any()):
            some = opposite if bool(opposite.any()) else torch.ones_like(opposite)
            found["valence (patched)"] = sign[some].double().mean(dim=0)
    return found


def _nulls(
    measured: Measured, second: Tensor, generator: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return what each curve is held against [L], and the thresholds of the emotion curves.

    Of `token` the commonest token's score, which is already taken off; of `semantic` the shuffled
    value, likewise; of the features' mass its 95th percentile under shuffled labels; of the
    patched answers how often they equal another pair's source.
    """
    column, zero = measured.columns, torch.zeros(len(measured.layers), dtype=torch.float64)
    events = column["events"][second].sum(dim=0).clamp(min=1)
    null = column["null"]
    nulls = {
        "token": column["base"][second].sum(dim=0) / events,
        "semantic": column.get("semantic_null", zero[None])[0],
        "emotion (features)": null.quantile(0.95, dim=0),
        "valence (features)": zero,
    }
    thresholds = {"emotion (features)": float(null.amax(dim=1).quantile(0.95))}
    if len(measured.source):
        drawn = []
        for _ in range(DRAWS):
            order = torch.randperm(len(measured.source), generator=generator)
            other = measured.source[order, :1]
            apart = (other != measured.source[:, :1]) & (other != measured.source[:, 1:])
            hit = (measured.patched == other) & apart
            drawn.append(hit.double().sum(dim=0) / apart.sum().clamp(min=1))
        rates = torch.stack(drawn)
        nulls["emotion (patched)"] = rates.quantile(0.95, dim=0)
        nulls["valence (patched)"] = zero
        thresholds["emotion (patched)"] = float(rates.amax(dim=1).quantile(0.95))
    return nulls, thresholds


def _verdict(
    layers: tuple[int, ...],
    everything: dict[str, Tensor],
    drawn: list[dict[str, Tensor]],
    names: list[str],
) -> Verdict:
    if not names:
        return Verdict(curves=(), steps=0.0, third=0.0, phases=1, agree=1.0, boundaries=())

    def of(curves: dict[str, Tensor]) -> Tensor:
        return torch.stack([curves[name] for name in names], dim=1)

    found = segmented(of(everything))
    again = [segmented(of(one), phases=found.phases) for one in drawn]
    boundaries = []
    for number, begin in enumerate(found.boundaries):
        at = torch.tensor([layers[one.boundaries[number]] for one in again if one.boundaries])
        low, median, high = at.double().quantile(torch.tensor([0.05, 0.5, 0.95]).double()).tolist()
        boundaries.append(
            Boundary(
                layer=layers[begin],
                median=median,
                low=low,
                high=high,
                unstable=high - low > UNSTABLE * len(layers),
            )
        )
    same = [one.phases == found.phases for one in again]
    return Verdict(
        curves=tuple(names),
        steps=found.steps,
        third=found.third,
        phases=found.phases,
        agree=sum(same) / len(same),
        boundaries=tuple(boundaries),
    )
