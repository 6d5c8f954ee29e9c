"""Multinomial logistic regression with an L2 penalty, many fits at once on batched tensors.

Cells (a layer and a site) have their own inputs; the replicates of a cell (penalty strengths,
folds, shuffled labels) share them. For each cell and replicate the objective is scikit-learn's,
divided by C times the sum of the weights:

    sum_i w_i * cross_entropy_i / sum_i w_i  +  ||W||^2 / (2 * C * sum_i w_i)

The bias is not penalised. Solved by Newton's method with conjugate gradients for the step and
backtracking for its length; nothing is random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

_CONJUGATE_STEPS = 60
_HALVINGS = 20
_SUFFICIENT = 1e-4  # Armijo's constant
_CURVATURE_FLOOR = 1e-12


@dataclass(frozen=True)
class LogisticFit:
    """Solutions for each of C cells and R replicates, K classes, d inputs."""

    weight: Tensor
    """[C, R, d, K]."""
    bias: Tensor
    """[C, R, K]; sums to 0 over the classes."""
    objective: Tensor
    """[C, R]."""
    gradient: Tensor
    """[C, R], the largest absolute entry of the gradient that is left."""

    def logits(self, inputs: Tensor) -> Tensor:
        """Return the class logits [C, R, n, K] of `inputs` [C, n, d]."""
        return torch.einsum("cnd,crdk->crnk", inputs, self.weight) + self.bias.unsqueeze(2)


def balanced_weights(labels: Tensor, *, classes: int, keep: Tensor | None = None) -> Tensor:
    """Return row weights that give every class the same total, and sum to the number of rows.

    `labels` is [R, n]; `keep` [R, n] (bool) sets the weight of other rows to 0. A class without
    rows has no weight.
    """
    kept = torch.ones_like(labels, dtype=torch.bool) if keep is None else keep
    members = one_hot(labels, classes) * kept.unsqueeze(-1)
    counts = members.sum(dim=1)
    present = (counts > 0).sum(dim=1, keepdim=True).clamp(min=1)
    each = kept.sum(dim=1, keepdim=True) / (present * counts.clamp(min=1))
    return torch.where(kept, each.gather(1, labels), torch.zeros_like(each[:, :1]))


class _Problem:
    """The objective, its gradient and its curvature; parameters are [C, d + 1, R, K]."""

    def __init__(
        self, inputs: Tensor, labels: Tensor, classes: int, strength: Tensor, weights: Tensor
    ) -> None:
        cells, rows, width = inputs.shape
        self.shape: tuple[int, int, int, int] = (cells, width + 1, labels.shape[0], classes)
        ones = inputs.new_ones(cells, rows, 1)
        self._design = torch.cat([inputs, ones], dim=2)
        self._target = one_hot(labels.T, classes).to(inputs).unsqueeze(0)
        total = weights.sum(dim=1)
        self._row_weights = (weights / total.unsqueeze(1)).T[None, :, :, None].to(inputs)
        penalised = inputs.new_ones(1, width + 1, 1, 1)
        penalised[:, -1] = 0
        self._ridge = penalised / (strength * total)[:, None, :, None].to(inputs)

    def of_cells(self, cells: Tensor) -> _Problem:
        """Return the problem of some cells alone."""
        part = object.__new__(_Problem)
        part.shape = (len(cells), *self.shape[1:])
        part._design = self._design[cells]
        part._target = self._target
        part._row_weights = self._row_weights
        part._ridge = self._ridge[cells]
        return part

    def logits(self, parameters: Tensor) -> Tensor:
        cells, _, replicates, classes = self.shape
        product = torch.bmm(self._design, parameters.flatten(2))
        return product.view(cells, -1, replicates, classes)

    def _back(self, per_row: Tensor) -> Tensor:
        return torch.bmm(self._design.transpose(1, 2), per_row.flatten(2)).view(self.shape)

    def objective(self, logits: Tensor, parameters: Tensor) -> Tensor:
        loss = logits.logsumexp(dim=3, keepdim=True) - (logits * self._target).sum(3, keepdim=True)
        fit = (loss * self._row_weights).sum(dim=(1, 3))
        return fit + 0.5 * (self._ridge * parameters.square()).sum(dim=(1, 3))

    def gradient(self, probabilities: Tensor, parameters: Tensor) -> Tensor:
        residual = (probabilities - self._target) * self._row_weights
        return self._back(residual) + self._ridge * parameters

    def curve(self, probabilities: Tensor, direction: Tensor) -> Tensor:
        """Return the Hessian times a direction."""
        along = self.logits(direction)
        spread = probabilities * along
        spread = spread - probabilities * spread.sum(dim=3, keepdim=True)
        return self._back(spread * self._row_weights) + self._ridge * direction


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum(dim=(1, 3), keepdim=True)


def _newton_direction(problem: _Problem, probabilities: Tensor, gradient: Tensor) -> Tensor:
    """Solve Hessian * step = -gradient by conjugate gradients, each problem as far as it needs."""
    step = torch.zeros_like(gradient)
    residual = -gradient
    direction = residual
    size = _dot(residual, residual)
    start = size.sqrt()
    # Loose far from the solution, tight near it: the usual forcing sequence sqrt(|g|).
    enough = (start * start.sqrt().clamp(max=0.1)).square()
    for _ in range(_CONJUGATE_STEPS):
        active = size > enough
        if not bool(active.any()):
            break
        curved = problem.curve(probabilities, direction)
        curvature = _dot(direction, curved)
        length = torch.where(active, size / curvature.clamp(min=_CURVATURE_FLOOR), 0.0)
        step = step + length * direction
        residual = residual - length * curved
        new_size = _dot(residual, residual)
        ratio = torch.where(active, new_size / size.clamp(min=_CURVATURE_FLOOR**2), 0.0)
        direction = residual + ratio * direction
        size = torch.where(active, new_size, size)
    return step


@dataclass(frozen=True)
class _Step:
    """Where a step led; `value` and `left` (the gradient) are of where it started."""

    parameters: Tensor
    value: Tensor
    left: Tensor
    moved: Tensor
    """[C, R], whether a step was taken: not where the gradient was small enough, or no step could
    be seen to improve."""


def _newton_step(problem: _Problem, parameters: Tensor, tolerance: float) -> _Step:
    logits = problem.logits(parameters)
    value = problem.objective(logits, parameters)
    probabilities = logits.softmax(dim=3)
    gradient = problem.gradient(probabilities, parameters)
    left = gradient.abs().amax(dim=(1, 3))
    length = torch.where(left > tolerance, 1.0, 0.0).to(parameters)
    if not bool((length > 0).any()):
        return _Step(parameters, value, left, length > 0)
    # Replicates that are done get no direction: their share of the work ends at once.
    direction = _newton_direction(problem, probabilities, gradient * (length > 0)[:, None, :, None])
    slope = _dot(gradient, direction).squeeze(3).squeeze(1)
    along = problem.logits(direction)
    worse = length > 0
    for _ in range(_HALVINGS):
        stride = length[:, None, :, None]
        new_value = problem.objective(logits + stride * along, parameters + stride * direction)
        worse = (new_value > value + _SUFFICIENT * length * slope) & (length > 0)
        if not bool(worse.any()):
            break
        length = torch.where(worse, length / 2, length)
    # At the limit of the dtype a step cannot be seen to improve: it is not taken.
    length = torch.where(worse, 0.0, length)
    return _Step(parameters + length[:, None, :, None] * direction, value, left, length > 0)


def fit_logistic(
    inputs: Tensor,
    labels: Tensor,
    *,
    classes: int,
    strength: Tensor,
    weights: Tensor | None = None,
    tolerance: float = 1e-4,
    max_steps: int = 40,
    check: Callable[[], None] = lambda: None,
) -> LogisticFit:
    """Fit every cell and replicate.

    `inputs` [C, n, d] (float32 or float64, standardised), `labels` [R, n] (long), `strength`
    [C, R] or broadcastable (C of scikit-learn: larger is weaker), `weights` [R, n] row weights
    (None: class-balanced). Stops where the largest gradient entry is below `tolerance`. `check`
    is called at every step and may raise.
    """
    if weights is None:
        weights = balanced_weights(labels, classes=classes)
    strength = strength.expand(inputs.shape[0], labels.shape[0])
    problem = _Problem(inputs, labels, classes, strength, weights)
    parameters = inputs.new_zeros(problem.shape)
    value = inputs.new_zeros(strength.shape)
    gradient = inputs.new_zeros(strength.shape)
    cells = torch.arange(len(inputs), device=inputs.device)
    part = problem
    for _ in range(max_steps):
        check()
        step = _newton_step(part, parameters[cells], tolerance)
        parameters[cells], value[cells], gradient[cells] = step.parameters, step.value, step.left
        # Cells that are done drop out: the slowest few set the pace otherwise.
        going = step.moved.any(dim=1)
        if not bool(going.all()):
            cells = cells[going]
            if not len(cells):
                break
            part = problem.of_cells(cells)
    arranged = parameters.permute(0, 2, 1, 3)
    bias = arranged[:, :, -1]
    return LogisticFit(
        weight=arranged[:, :, :-1].contiguous(),
        bias=bias - bias.mean(dim=2, keepdim=True),
        objective=value,
        gradient=gradient,
    )
