"""What changes over several texts come to: medians, their intervals, signs, rank and words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from emotui.core.findings import Repeated, Rivals, Spread

if TYPE_CHECKING:
    from emotui.core.records import Effect

RESAMPLES = 2000
"""Bootstrap samples of the texts for the interval of a median."""
LEAST_TEXTS = 6
"""Texts the edit must have acted on for anything to be said of other texts: of five, all lie on
one side of the median more than one time in twenty by chance (2 / 2^5)."""
MUCH_SMALLER = 2.0
"""From this ratio of the change here to the median elsewhere, the verdict names it."""

Numbers = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Directions:
    """What random directions change: `here` [directions] on this text, `there` [texts, ...]."""

    name: Literal["any_way", "shaped_like_data"]
    here: Numbers
    there: Numbers


@dataclass(frozen=True)
class Judged:
    """One metric on this text and on others, as it is handed to `repeated`."""

    effect: Effect
    deltas: Numbers
    """[texts], the edit's."""
    controls: tuple[Directions, ...]
    acted: np.ndarray[Any, np.dtype[np.bool_]]
    """[texts]."""
    fair: bool
    """Whether the directions were picked by this metric, or the edit was not picked either."""
    picked_by: str


def spread(deltas: Numbers, sign: float, *, seed: int) -> Spread:
    """Return median, its interval and how many deltas [texts] have a sign.

    95 % percentile bootstrap over texts (Efron and Tibshirani 1993, ch. 13).
    """
    if not len(deltas):
        return Spread(0, None, None, None, 0)
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(deltas), size=(RESAMPLES, len(deltas)))
    low, high = np.percentile(np.median(deltas[drawn], axis=1), (2.5, 97.5))
    same = int((np.sign(deltas) == sign).sum()) if sign else 0
    return Spread(len(deltas), float(np.median(deltas)), float(low), float(high), same)


def repeated(judged: Judged, *, seed: int) -> Repeated:
    """Return what the texts say of one metric."""
    here = judged.effect.delta
    sign = float(np.sign(here))
    acted = spread(judged.deltas[judged.acted], sign, seed=seed)
    controls = tuple(_rivals(one, judged.acted, acted.median, sign) for one in judged.controls)
    verified, verdict = _verdict(judged, acted, controls)
    return Repeated(
        metric=judged.effect.metric,
        here=here,
        acted=acted,
        every=spread(judged.deltas, sign, seed=seed),
        controls=controls,
        verified=verified,
        verdict=verdict,
    )


def _rivals(
    found: Directions,
    acted: np.ndarray[Any, np.dtype[np.bool_]],
    median: float | None,
    sign: float,
) -> Rivals:
    if median is None:
        return Rivals(found.name, (), (), None)
    kept = found.there[acted] * np.sign(found.here)
    medians = np.median(kept, axis=0)
    rank = 1 + int((medians >= median * sign).sum()) if sign else None
    shares = (kept > 0).mean(axis=0)
    return Rivals(found.name, tuple(medians.tolist()), tuple(shares.tolist()), rank)


def said(spread: Spread, total: int) -> str:
    """Return median and interval in words."""
    if spread.median is None:
        return f"acted on none of {total} texts"
    return (
        f"median {spread.median:+.3g} [{spread.low:+.3g}, {spread.high:+.3g}] over "
        f"{spread.texts} of {total} texts"
    )


_NAMES = {"any_way": "random directions", "shaped_like_data": "directions shaped like the data"}


def _verdict(judged: Judged, acted: Spread, controls: Sequence[Rivals]) -> tuple[bool | None, str]:
    """Return whether the change holds on other texts, median and interval first.

    It does where the interval keeps the sign it has here and no uniform direction does as much.
    """
    first = said(acted, len(judged.deltas))
    if judged.effect.verdict.startswith("No measurable effect"):
        return None, f"{first}; not measurable on this text, so there is nothing to verify"
    if acted.texts < LEAST_TEXTS:
        return None, f"{first}; too few to say (at least {LEAST_TEXTS})"
    assert acted.low is not None and acted.high is not None
    beside = ", ".join(
        f"rank {one.rank} of {len(one.medians) + 1} beside {_NAMES[one.name]}" for one in controls
    )
    first += f"; same sign as here on {acted.same_sign}; {beside}"
    if not judged.fair:
        return None, f"{first}; not judged: the directions were picked by {judged.picked_by}"
    if (acted.low if judged.effect.delta > 0 else -acted.high) <= 0:
        return False, f"{first}; not verified: the interval does not keep the sign"
    uniform, shaped = (_reaching(one) for one in controls)
    if uniform:
        return False, f"{first}; not verified: {uniform} do as much"
    # Shaped like the data they often lie along the emotion itself, so they are no veto.
    though = [f"{shaped} do as much"] if shaped else []
    assert acted.median is not None
    smaller = abs(judged.effect.delta) / abs(acted.median)
    if smaller >= MUCH_SMALLER:
        though.append(f"it is {smaller:.0f} times smaller there than here")
    return True, f"{first}; verified" + (f", though {' and '.join(though)}" if though else "")


def _reaching(control: Rivals) -> str:
    """Return in words how many directions do as much as the edit; "" where none does."""
    count = (control.rank or 1) - 1
    return f"{count} of {len(control.medians)} {_NAMES[control.name]}" if count else ""


def main_metric(effects: Sequence[Effect]) -> str:
    """Return what an edit is judged by where nothing is named.

    The largest measurable change of the answer; else of a readout that it does not move by
    construction; else the divergence of the next token.
    """
    for kind in ("answer.", "readout."):
        found = [
            effect
            for effect in effects
            if effect.metric.startswith(kind)
            and not effect.verdict.startswith("No measurable effect")
            and "By construction" not in effect.verdict
        ]
        if found:
            return max(found, key=lambda effect: abs(effect.delta)).metric
    return "kl"
