"""Do curves over layers fall into phases, or only bend (METHODS 2.2)?

Curves [layers, C] are scaled to 0..1 each and fitted by exact dynamic programming with 1, 2 or 3
constant pieces of at least two layers. With SSE_k their squared error and SSE_line that of a
straight line for each curve:

    S = (SSE_line - SSE_3) / SSE_1      G = (SSE_2 - SSE_3) / SSE_1

S < .10: gradual, no phases; else G < .10: two; else three. The number of phases is not chosen by
BIC or an elbow, which find five segments in a ramp. But a line is no match for what bends: steps
save as much on an exponential, a wide sigmoid or a U. So steps are also held against smooth curves
(cubic regression splines with 2 to 6 parameters a curve, evenly spaced knots), by the Bayesian
information criterion with N = layers x C, a parameter for each level, and two for each boundary,
whose place was searched. Unless the steps are ahead by 6 (strong evidence, Kass and Raftery 1995),
the verdict is gradual.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_STEPS = 0.10
SHORTEST = 2
"""Layers of a phase at least."""
SMOOTH = (2, 3, 4, 5, 6)
"""Parameters of the smooth curves, for each curve."""
AHEAD = 6.0
"""How far the criterion of the steps must be below that of the best smooth curves."""
_BOUNDARY = 2
_FLOOR = 1e-4
"""Mean squared error below which a fit is as good as exact: a hundredth of the range."""


@dataclass(frozen=True)
class Segmentation:
    """How curves fall into phases."""

    steps: float
    """S."""
    third: float
    """G."""
    phases: int
    """1 (gradual), 2 or 3."""
    boundaries: tuple[int, ...]
    """The first layer of each phase but the first."""
    bent: bool
    """S and G speak for steps, but smooth curves fit as well: therefore gradual."""
    ahead: float
    """How far the criterion of the steps (those of S and G, or else two) is below that of the
    best smooth curves; below 0 these are the better."""
    stepped: float
    """Squared error that these steps leave, as a share of that of no curve at all."""
    smooth: float
    """What the best smooth curves leave."""


@dataclass(frozen=True)
class Segmentations:
    """`Segmentation` of D sets of curves, [D] each."""

    steps: Tensor
    third: Tensor
    phases: Tensor
    bent: Tensor
    ahead: Tensor
    stepped: Tensor
    smooth: Tensor
    two: Tensor
    """[D, 1]: where the second of two phases begins."""
    three: Tensor
    """[D, 2]: where the later two of three do."""

    def boundaries(self, phases: int) -> Tensor:
        """Return where the phases but the first begin, [D, phases - 1], if there were so many."""
        return {1: self.two[:, :0], 2: self.two, 3: self.three}[phases]


def scaled(curves: Tensor) -> Tensor:
    """Return curves [..., layers, C] scaled to 0..1 each; constant ones are zero."""
    low, high = curves.amin(dim=-2, keepdim=True), curves.amax(dim=-2, keepdim=True)
    span = high - low
    return torch.where(span > 1e-9, (curves - low) / span.clamp(min=1e-9), 0.0)


def segmented(curves: Tensor) -> Segmentation:
    """Segment curves [layers, C].

    Fewer than six layers cannot be three phases, fewer than four are gradual.
    """
    found = segmentations(curves[None])
    phases = int(found.phases)
    return Segmentation(
        steps=float(found.steps),
        third=float(found.third),
        phases=phases,
        boundaries=tuple(found.boundaries(phases)[0].tolist()),
        bent=bool(found.bent),
        ahead=float(found.ahead),
        stepped=float(found.stepped),
        smooth=float(found.smooth),
    )


def segmentations(curves: Tensor) -> Segmentations:
    """Segment D sets of curves [D, layers, C], all at once."""
    y = scaled(curves.double())
    _, layers, count = y.shape
    cost = _costs(y)
    one = cost[:, 0, layers] if layers >= SHORTEST else y.new_zeros(len(y))
    two, at = (cost[:, 0] + cost[:, :, layers]).min(dim=1)
    both = cost[:, 0, :, None] + cost + cost[:, None, :, layers]
    three, place = both.flatten(1).min(dim=1)
    best = torch.where(three.isfinite(), three, two)
    total = one.clamp(min=1e-300)
    flat = (one <= 1e-9) | ~best.isfinite()
    steps = torch.where(flat, 0.0, (_line(y) - best) / total)
    third = torch.where(flat | ~three.isfinite(), 0.0, (two - three) / total)
    phases = torch.where(steps < LEAST_STEPS, 1, torch.where(third < LEAST_STEPS, 2, 3))
    n = layers * count
    criterion = torch.where(
        phases == 3, _criterion(three, n, 3 * count + 2 * _BOUNDARY),
        _criterion(two, n, 2 * count + _BOUNDARY),
    )  # fmt: skip
    smooth, left = _smooth(y)
    ahead = torch.where(flat, 0.0, smooth - criterion)
    bent = (phases > 1) & (ahead < AHEAD)
    chosen = torch.where(phases == 3, three, two)
    return Segmentations(
        steps=steps,
        third=third,
        phases=torch.where(bent, 1, phases),
        bent=bent,
        ahead=ahead,
        stepped=torch.where(flat, 1.0, chosen / total),
        smooth=torch.where(flat, 1.0, left / total),
        two=at[:, None],
        three=torch.stack([place // (layers + 1), place % (layers + 1)], dim=1),
    )


def _line(y: Tensor) -> Tensor:
    basis = _spline(y.shape[1], 2)
    return (y - basis @ (basis.T @ y)).square().sum(dim=(1, 2))


def _criterion(error: Tensor, n: int, parameters: int) -> Tensor:
    return n * (error / n + _FLOOR).log() + parameters * math.log(n)


def _smooth(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the criterion [D] of the best smooth curves, and the squared error they leave."""
    layers, count = y.shape[1:]
    found = []
    for parameters in SMOOTH:
        if parameters >= layers:
            continue
        basis = _spline(layers, parameters)
        left = (y - basis @ (basis.T @ y)).square().sum(dim=(1, 2))
        found.append(torch.stack([_criterion(left, layers * count, parameters * count), left]))
    if not found:
        nothing = y.new_full((len(y),), float("inf"))
        return nothing, nothing
    stacked = torch.stack(found)
    best = stacked[:, 0].argmin(dim=0)
    rows = torch.arange(len(y))
    return stacked[best, 0, rows], stacked[best, 1, rows]


def _spline(layers: int, parameters: int) -> Tensor:
    """Return an orthonormal basis [layers, parameters] of cubic splines with even knots.

    Below five parameters a polynomial: 2 is a straight line.
    """
    x = torch.linspace(-1, 1, layers, dtype=torch.float64)
    columns = [x**power for power in range(min(parameters, 4))]
    knots = parameters - 4
    for number in range(1, knots + 1):
        columns.append((x + 1 - 2 * number / (knots + 1)).clamp(min=0) ** 3)
    basis: Tensor = torch.linalg.qr(torch.stack(columns, dim=1))[0]
    return basis


def _costs(y: Tensor) -> Tensor:
    """Return the squared error [D, L + 1, L + 1] of one constant over layers [i, j)."""
    zero = y.new_zeros(len(y), 1, y.shape[2])
    sums = torch.cat([zero, y.cumsum(dim=1)], dim=1)
    squares = torch.cat([zero, y.square().cumsum(dim=1)], dim=1).sum(dim=2)
    at = torch.arange(y.shape[1] + 1)
    length = at - at[:, None]
    inside = (sums[:, None] - sums[:, :, None]).square().sum(dim=3)
    cost = squares[:, None] - squares[:, :, None] - inside / length.clamp(min=1)
    return torch.where(length >= SHORTEST, cost.clamp(min=0), float("inf"))
