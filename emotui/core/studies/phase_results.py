"""What the study `phases` finds, and how it follows from what was measured text by text."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor

from emotui.core.studies.phase_curves import onset
from emotui.core.studies.phase_segments import segmentations
from emotui.core.studies.sae_texts import SaeFit

DRAWS = 1000
"""Bootstrap draws of units of texts: those of one group and label go together."""
UNSTABLE = 0.15
"""Share of the layers above which an interval of a boundary is called unstable."""
_OTHERS = 200
_ENDS = torch.tensor([0.025, 0.975], dtype=torch.float64)
_BOUNDARY_ENDS = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
VERDICTS = {1: "gradual, no phases", 2: "two phases", 3: "three phases"}


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """One curve over the layers: what was measured, what there is without any signal, the rest."""

    name: str
    observed: tuple[float, ...]
    null: tuple[float, ...]
    null_is: str
    """In words."""
    net: tuple[float, ...]
    """Observed less null: what is segmented."""
    low: tuple[float, ...]
    high: tuple[float, ...]
    """95 % interval of `net`."""


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
    bent: bool
    """S and G speak for steps, but smooth curves fit as well, so it is called gradual."""
    ahead: float
    """Information criterion of the best smooth curves less that of the steps: 6 and more speak
    for steps, below 0 the smooth ones are better."""
    stepped: float
    """Squared error that the steps leave, as a share."""
    smooth: float
    """What the best smooth curves leave."""
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
    pair_texts: int
    """Different texts in these pairs."""
    draws: int
    """Bootstrap draws of every interval."""
    curves: tuple[Curve, ...]
    main: Verdict
    decodable: Verdict
    """The same with the decodable emotion curve in the place of the causal one."""
    noise: tuple[str, ...]
    """Curves left out of the segmentation: their range is within their interval, or they are
    nowhere above their null."""
    onset: dict[str, int | None]
    """First of two layers running above the 95th percentile of the largest value over layers
    under the null of the curve; of each emotion curve."""


@dataclass(frozen=True)
class Measured:
    """What was measured; n texts, P pairs, L layers, all on the CPU."""

    layers: tuple[int, ...]
    semantic: str
    first: Tensor
    """[n], bool: the half that choices were made on."""
    columns: dict[str, Tensor]
    """[n or m, L] each: `hits`, `base`, `events`, `mass`, `valence_mass`, `whole`, and where there
    is a semantic column `right` [m, L]; [shuffles, L]: `null`, `valence_null`, `semantic_null`."""
    units: Tensor
    """[n], long: texts of one number are drawn together."""
    read_units: Tensor | None
    """[m], long, of the texts with a semantic value."""
    pairs: Tensor
    """[P, 2]: source and target as rows of the texts."""
    source: Tensor
    """[P, 2]: the model's answer to these."""
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
    names = _names(measured)
    observed = _curves(measured, _all(measured))
    drawn = _curves(measured, _resampled(measured, generator))
    nulls = _nulls(measured, generator)
    net = {name: observed[name][0] - nulls[name].level for name in names}
    again = {name: drawn[name] - nulls[name].level for name in names}
    curves = tuple(_curve(name, observed[name][0], again[name], nulls[name]) for name in names)
    noise = [one.name for one in curves if _is_noise(one)]
    base = [name for name in ("token", "semantic") if name in names]
    pairs = len(measured.source)
    causal = "emotion (patched)" if pairs else "emotion (features)"

    def sound(last: str) -> list[str]:
        return [name for name in (*base, last) if name not in noise]

    found = {
        name: onset(observed[name][0], one.highest)
        for name, one in nulls.items()
        if one.highest is not None
    }
    return PhasesResult(
        texts=texts,
        unreadable=unreadable,
        labels=labels,
        fits=fits,
        layers=measured.layers,
        semantic=measured.semantic,
        pairs=pairs,
        pair_texts=len(set(measured.pairs.flatten().tolist())),
        draws=DRAWS,
        curves=curves,
        main=_verdict(measured.layers, net, again, sound(causal)),
        decodable=_verdict(measured.layers, net, again, sound("emotion (features)")),
        noise=tuple(name for name in (*base, causal, "emotion (features)") if name in noise),
        onset={n: None if at is None else measured.layers[at] for n, at in found.items()},
    )


def _curve(name: str, observed: Tensor, again: Tensor, null: Null) -> Curve:
    net = observed - null.level
    low, high = again.nanquantile(_ENDS, dim=0)
    if null.draws is not None:
        # Without any signal the value is one more draw of the null, however the texts are drawn.
        ordered = null.draws.sort(dim=0).values
        last = max(int(_ENDS[0] * (len(ordered) + 1)), 1)
        below, above = ordered[last - 1], ordered[-last]
        low = torch.minimum(low, observed - above)
        high = torch.maximum(high, observed - below)
    return Curve(
        name=name,
        observed=tuple(observed.tolist()),
        null=tuple(null.level.tolist()),
        null_is=null.words,
        net=tuple(net.tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
    )


def _is_noise(curve: Curve) -> bool:
    """Whether a curve varies no more than its interval, or never lies above its null."""
    widths = [high - low for low, high in zip(curve.low, curve.high, strict=True)]
    flat = max(curve.net) - min(curve.net) <= sum(widths) / len(widths)
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


@dataclass(frozen=True)
class _Weights:
    """How often each text or pair counts, [D, n] each."""

    texts: Tensor
    """[D, n]; 0 in the half that choices were made on."""
    read: Tensor
    """[D, m]."""
    pairs: Tensor
    """[D, P]."""


def _all(measured: Measured) -> _Weights:
    read, pairs = len(measured.columns.get("right", ())), len(measured.source)
    second = (~measured.first).double()[None]
    return _Weights(second, second.new_ones(1, read), second.new_ones(1, pairs))


def _resampled(measured: Measured, generator: torch.Generator) -> _Weights:
    """Draw units with their texts; a pair counts as often as both of its texts were drawn."""
    texts = times_drawn(measured.units, generator, draws=DRAWS)
    units = measured.read_units
    read = texts[:, :0] if units is None else times_drawn(units, generator, draws=DRAWS)
    by_text = times_drawn(torch.arange(len(measured.first)), generator, draws=DRAWS)
    source, target = measured.pairs.unbind(dim=1)
    return _Weights(texts * ~measured.first, read, by_text[:, source] * by_text[:, target])


def times_drawn(units: Tensor, generator: torch.Generator, *, draws: int) -> Tensor:
    """Return how often each text [draws, n] is in a draw of as many `units` [n] as there are."""
    names, of_text = torch.unique(units, return_inverse=True)
    drawn = torch.randint(len(names), (draws, len(names)), generator=generator)
    times = torch.zeros(draws, len(names), dtype=torch.float64)
    return times.scatter_add_(1, drawn, torch.ones_like(times))[:, of_text]


def _curves(measured: Measured, weights: _Weights) -> dict[str, Tensor]:
    """Return each curve [D, L] over weighted texts, texts with a semantic value, and pairs.

    NaN where a draw has none of what a curve is of.
    """
    column, texts = measured.columns, weights.texts
    whole = column["whole"].clamp(min=1e-12)
    count = texts.sum(dim=1, keepdim=True)
    found = {
        "token": (texts @ column["hits"]) / (texts @ column["events"]).clamp(min=1),
        "emotion (features)": texts @ (column["mass"] / whole) / count,
        "valence (features)": texts @ (column["valence_mass"] / whole) / count,
    }
    if "right" in column:
        read = weights.read
        found["semantic"] = (read @ column["right"]) / read.sum(dim=1, keepdim=True)
    if len(measured.source):
        source, patched, pairs = measured.source, measured.patched, weights.pairs
        carried = (patched == source[:, :1]).double()
        found["emotion (patched)"] = (pairs @ carried) / pairs.sum(dim=1, keepdim=True)
        opposite = _opposite(measured)
        if bool(opposite.any()):
            some = pairs * opposite
            sign = measured.valence[patched] == measured.valence[source[:, :1]]
            found["valence (patched)"] = (some @ sign.double()) / some.sum(dim=1, keepdim=True)
    return found


@dataclass(frozen=True)
class Null:
    """What a curve is without any signal."""

    level: Tensor
    """[L]."""
    words: str
    draws: Tensor | None = None
    """[shuffles, L], of which the curve would be one more."""
    highest: float | None = None
    """95th percentile of the largest value over the layers; None where no onset is asked for."""


def _nulls(measured: Measured, generator: torch.Generator) -> dict[str, Null]:
    column = measured.columns
    texts = _all(measured).texts[0]
    nothing = torch.zeros(len(measured.layers), dtype=torch.float64)
    nulls = {
        "token": Null(
            (texts @ column["base"]) / (texts @ column["events"]).clamp(min=1),
            "the commonest token, guessed at every firing",
        ),
        "emotion (features)": Null(
            column["null"].mean(dim=0),
            "features selective for labels shuffled over units of texts",
            highest=_highest(column["null"]),
        ),
        "valence (features)": Null(
            column["valence_null"].mean(dim=0),
            "features selective for valence shuffled over units of texts",
        ),
    }
    if "semantic_null" in column:
        nulls["semantic"] = Null(
            column["semantic_null"].mean(dim=0),
            f"{measured.semantic} dealt anew among units of texts of the same label",
            draws=column["semantic_null"],
        )
    if len(measured.source):
        rates = _other_sources(measured, generator)
        nulls["emotion (patched)"] = Null(
            rates.mean(dim=0),
            "answers of another pair's source, neither source nor target of this one",
            highest=_highest(rates),
        )
        nulls["valence (patched)"] = Null(
            nothing, "none: unpatched, no target is answered with its source's valence"
        )
    return nulls


def _other_sources(measured: Measured, generator: torch.Generator) -> Tensor:
    """Return how often [200, L] patched answers are those of another pair's source."""
    drawn = []
    for _ in range(_OTHERS):
        order = torch.randperm(len(measured.source), generator=generator)
        other = measured.source[order, :1]
        apart = (other != measured.source[:, :1]) & (other != measured.source[:, 1:])
        hit = (measured.patched == other) & apart
        drawn.append(hit.double().sum(dim=0) / apart.sum().clamp(min=1))
    return torch.stack(drawn)


def _highest(draws: Tensor) -> float:
    return float(draws.amax(dim=1).quantile(0.95))


def _verdict(
    layers: tuple[int, ...], net: dict[str, Tensor], again: dict[str, Tensor], names: list[str]
) -> Verdict:
    if not names:
        return Verdict(
            curves=(),
            steps=0.0,
            third=0.0,
            phases=1,
            bent=False,
            ahead=0.0,
            stepped=1.0,
            smooth=1.0,
            agree=1.0,
            boundaries=(),
        )
    found = segmentations(torch.stack([net[name] for name in names], dim=1)[None])
    draws = torch.stack([again[name] for name in names], dim=2)
    drawn = segmentations(draws[draws.isfinite().flatten(1).all(dim=1)])
    phases = int(found.phases)
    begins = torch.tensor(layers)[drawn.boundaries(phases)]
    boundaries = []
    for number, begin in enumerate(found.boundaries(phases)[0].tolist()):
        low, median, high = begins[:, number].double().quantile(_BOUNDARY_ENDS).tolist()
        boundaries.append(
            Boundary(
                layer=layers[begin],
                median=median,
                low=low,
                high=high,
                unstable=high - low > UNSTABLE * len(layers),
            )
        )
    return Verdict(
        curves=tuple(names),
        steps=float(found.steps),
        third=float(found.third),
        phases=phases,
        bent=bool(found.bent),
        ahead=float(found.ahead),
        stepped=float(found.stepped),
        smooth=float(found.smooth),
        agree=float((drawn.phases == phases).double().mean()),
        boundaries=tuple(boundaries),
    )
