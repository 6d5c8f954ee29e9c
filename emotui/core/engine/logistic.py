"""Multinomial logistic regression with an L2 penalty, many fits at once on batched tensors.

Cells (a layer and a site) have their own inputs; the replicates of a cell (penalty strengths,
folds, shuffled labels) share them. For each cell and replicate the objective is scikit-learn's,
divided by C times the sum of the weights:

    sum_i w_i * cross_entropy_i / sum_i w_i  +  ||W||^2 / (2 * C * sum_i w_i)

The bias is not penalised. Solved by limited-memory BFGS (Nocedal and Wright, chapter 7) with
backtracking, whose first guess of the curvature is (X'WX / K + ridge)^-1 class by class: what it is
where every class is as likely. Where inputs are so wide that these matrices would not fit into
memory, by Newton's method with conjugate gradients. Nothing is random.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

TOLERANCE = 1e-4
"""Of the gradient, where the caller names none."""
_CONJUGATE_STEPS = 60
_HALVINGS = 20
_SUFFICIENT = 1e-4  # Armijo's constant
_CURVATURE_FLOOR = 1e-12
_THREADS = 4
_LEAST_CELLS = 4  # in a thread
_QUASI_STEPS = 10  # quasi-Newton steps for each step of Newton's method
_DECREMENT = 0.1  # share of the tolerance that the objective may still fall by, twice over,
_AT_TOLERANCE = 1e-4  # at this one; the fall goes with the square of the gradient that is left
_MEMORY = 10  # pairs of steps and gradient changes
_INVERSE_VALUES = 2**27  # of inverses held at a time: 512 MB; beyond, there are none


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
    """The objective, its gradient and its curvature; parameters are [C, d + 1, R, K].

    Logits, and whatever there is of each row, are [C, R, K, n]: with the rows last, products and
    sums over the few classes take half the time.
    """

    def __init__(
        self, inputs: Tensor, labels: Tensor, classes: int, strength: Tensor, weights: Tensor
    ) -> None:
        cells, rows, width = inputs.shape
        self.shape: tuple[int, int, int, int] = (cells, width + 1, labels.shape[0], classes)
        ones = inputs.new_ones(cells, rows, 1)
        self._design = torch.cat([inputs, ones], dim=2)
        self._target = one_hot(labels, classes).transpose(1, 2)[None].to(inputs).contiguous()
        self._labels = labels[None, :, None]
        total = weights.sum(dim=1)
        self._row_weights = (weights / total.unsqueeze(1))[None, :, None].to(inputs)
        penalised = inputs.new_ones(1, width + 1, 1, 1)
        penalised[:, -1] = 0
        self._ridge = penalised / (strength * total)[:, None, :, None].to(inputs)
        self.inverse = self._inverses(inputs, classes)
        """Inverses [C, R or 1, d, d] of X'WX / K + ridge; None where they are too large."""

    def _inverses(self, inputs: Tensor, classes: int) -> Tensor | None:
        cells, _, width = inputs.shape
        ridge = self._ridge[:, 0, :, 0]
        count = 1 if bool((ridge == ridge[:, :1]).all()) else ridge.shape[1]
        if cells * count * width**2 > _INVERSE_VALUES:
            return None
        # The row weights of replicates differ little on the whole: those of the first serve all.
        scaled = inputs * (self._row_weights[0, 0, 0] / classes).sqrt()[None, :, None]
        gram = torch.bmm(scaled.transpose(1, 2), scaled).unsqueeze(1).repeat(1, count, 1, 1)
        gram.diagonal(dim1=2, dim2=3).add_(ridge.expand(cells, -1)[:, :count, None])
        # Inverted once: applied sixty times, and solving with factors is many times slower.
        inverse: Tensor = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        return inverse

    def preconditioned(self, residual: Tensor) -> Tensor:
        """Return the first guess of the inverse curvature times a gradient."""
        assert self.inverse is not None
        body = residual[:, :-1]  # [C, d, R, K]
        if self.inverse.shape[1] == 1:
            solved = torch.bmm(self.inverse[:, 0], body.flatten(2)).view_as(body)
        else:
            solved = (self.inverse @ body.transpose(1, 2)).transpose(1, 2)
        return torch.cat([solved, residual[:, -1:] * self.shape[3]], dim=1)

    def zeros(self) -> Tensor:
        """Return the parameters to begin with."""
        return self._design.new_zeros(self.shape)

    def of_cells(self, cells: Tensor) -> _Problem:
        """Return the problem of some cells alone, by index or mask."""
        part = object.__new__(_Problem)
        part._design = self._design[cells]
        part.shape = (len(part._design), *self.shape[1:])
        part._target, part._labels = self._target, self._labels
        part._row_weights = self._row_weights
        part._ridge = self._ridge[cells]
        part.inverse = None if self.inverse is None else self.inverse[cells]
        return part

    def logits(self, parameters: Tensor) -> Tensor:
        cells, _, replicates, classes = self.shape
        columns = parameters.flatten(2).transpose(1, 2)
        product = torch.bmm(columns, self._design.transpose(1, 2))
        return product.view(cells, replicates, classes, -1)

    def _back(self, per_row: Tensor) -> Tensor:
        product = torch.bmm(per_row.flatten(1, 2), self._design)
        return product.transpose(1, 2).reshape(self.shape)

    def objective(self, logits: Tensor, parameters: Tensor) -> Tensor:
        chosen = logits.gather(2, self._labels.expand(len(logits), -1, -1, -1))
        loss = logits.logsumexp(dim=2, keepdim=True) - chosen
        fit = (loss * self._row_weights).sum(dim=(2, 3))
        return fit + 0.5 * (self._ridge * parameters.square()).sum(dim=(1, 3))

    def gradient(self, probabilities: Tensor, parameters: Tensor) -> Tensor:
        residual = (probabilities - self._target).mul_(self._row_weights)
        return self._back(residual) + self._ridge * parameters

    def curve(self, probabilities: Tensor, direction: Tensor) -> Tensor:
        """Return the Hessian times a direction."""
        along = self.logits(direction)
        spread = probabilities * along
        spread = spread - probabilities * spread.sum(dim=2, keepdim=True)
        return self._back(spread * self._row_weights) + self._ridge * direction


def _softmax(logits: Tensor) -> Tensor:
    """Return the probabilities of the classes; quicker than torch's softmax for few of them."""
    return (logits - logits.logsumexp(dim=2, keepdim=True)).exp_()


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
    probabilities = _softmax(logits)
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
        new_value = problem.objective(
            logits + length[:, :, None, None] * along,
            parameters + length[:, None, :, None] * direction,
        )
        worse = (new_value > value + _SUFFICIENT * length * slope) & (length > 0)
        if not bool(worse.any()):
            break
        length = torch.where(worse, length / 2, length)
    # At the limit of the dtype a step cannot be seen to improve: it is not taken.
    length = torch.where(worse, 0.0, length)
    return _Step(parameters + length[:, None, :, None] * direction, value, left, length > 0)


@dataclass
class _Run:
    """Where a quasi-Newton run of some cells is."""

    parameters: Tensor
    logits: Tensor
    value: Tensor
    gradient: Tensor
    pairs: list[tuple[Tensor, Tensor, Tensor]]
    """Step, change of the gradient, and 1 / their product (0 where there was no step)."""

    def of_cells(self, kept: Tensor) -> _Run:
        """Return the run of some of its cells."""
        pairs = [(step[kept], change[kept], weight[kept]) for step, change, weight in self.pairs]
        return _Run(
            self.parameters[kept], self.logits[kept], self.value[kept], self.gradient[kept], pairs
        )


def _begun(problem: _Problem, parameters: Tensor) -> _Run:
    logits = problem.logits(parameters)
    value = problem.objective(logits, parameters)
    gradient = problem.gradient(_softmax(logits), parameters)
    return _Run(parameters, logits, value, gradient, [])


def _quasi_direction(problem: _Problem, run: _Run) -> Tensor:
    """Return minus the inverse curvature times the gradient, by the two-loop recursion."""
    direction = -run.gradient
    shares = []
    for step, change, weight in reversed(run.pairs):
        share = weight * _dot(step, direction)
        shares.append(share)
        direction = direction - share * change
    direction = problem.preconditioned(direction)
    for (step, change, weight), share in zip(run.pairs, reversed(shares), strict=True):
        direction = direction + step * (share - weight * _dot(change, direction))
    return direction


def _quasi_step(problem: _Problem, run: _Run, tolerance: float) -> Tensor:
    """Take a step in place; return [C, R], where one was taken."""
    going = run.gradient.abs().amax(dim=(1, 3)) > tolerance
    if not bool(going.any()):
        return going
    direction = _quasi_direction(problem, run)
    slope = _dot(run.gradient, direction).squeeze(3).squeeze(1)
    # Half the slope is what the objective is still above its minimum, where curvature is known.
    going = going & (slope < -_DECREMENT * tolerance * min(1.0, tolerance / _AT_TOLERANCE))
    direction = direction * going[:, None, :, None]
    along = problem.logits(direction)
    length = going.to(run.parameters)
    value = run.value
    worse = going
    for _ in range(_HALVINGS):
        logits = run.logits + length[:, :, None, None] * along
        parameters = run.parameters + length[:, None, :, None] * direction
        value = problem.objective(logits, parameters)
        worse = (value > run.value + _SUFFICIENT * length * slope) & (length > 0)
        if not bool(worse.any()):
            break
        length = torch.where(worse, length / 2, length)
    if bool(worse.any()):  # at the limit of the dtype no step can be seen to improve
        length = torch.where(worse, 0.0, length)
        logits = run.logits + length[:, :, None, None] * along
        parameters = run.parameters + length[:, None, :, None] * direction
        value = torch.where(worse, run.value, value)
    gradient = problem.gradient(_softmax(logits), parameters)
    step, change = parameters - run.parameters, gradient - run.gradient
    product = _dot(step, change)
    weight = torch.where(product > 0, 1 / product.clamp(min=1e-30), 0.0)
    run.pairs = [*run.pairs[1 - _MEMORY :], (step, change, weight)]
    run.parameters, run.logits, run.value, run.gradient = parameters, logits, value, gradient
    return length > 0


def _quasi_newton(
    problem: _Problem, tolerance: float, max_steps: int, check: Callable[[], None]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return parameters, objective and the largest gradient entry left, of every cell."""
    run = _begun(problem, problem.zeros())
    parameters, value, gradient = run.parameters.clone(), run.value.clone(), run.gradient.clone()
    cells = torch.arange(len(parameters), device=parameters.device)
    for _ in range(max_steps):
        check()
        moved = _quasi_step(problem, run, tolerance)
        # Cells that are done drop out: the slowest few set the pace otherwise.
        going = moved.any(dim=1)
        if bool(going.all()):
            continue
        parameters[cells], value[cells] = run.parameters, run.value
        gradient[cells] = run.gradient
        cells = cells[going]
        if not len(cells):
            break
        problem, run = problem.of_cells(going), run.of_cells(going)
    if len(cells):
        parameters[cells], value[cells] = run.parameters, run.value
        gradient[cells] = run.gradient
    return parameters, value, gradient.abs().amax(dim=(1, 3))


def _newton(
    problem: _Problem, tolerance: float, max_steps: int, check: Callable[[], None]
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_quasi_newton`, without a first guess of the curvature."""
    parameters = problem.zeros()
    value, gradient = parameters[:, 0, :, 0].clone(), parameters[:, 0, :, 0].clone()
    cells = torch.arange(len(parameters), device=parameters.device)
    part = problem
    for _ in range(max_steps):
        check()
        step = _newton_step(part, parameters[cells], tolerance)
        parameters[cells], value[cells], gradient[cells] = step.parameters, step.value, step.left
        going = step.moved.any(dim=1)
        if not bool(going.all()):
            cells = cells[going]
            if not len(cells):
                break
            part = problem.of_cells(cells)
    return parameters, value, gradient


def _parts(inputs: Tensor) -> list[slice]:
    """Return the cells in parts, each for a thread of its own: on the CPU, as many as cores.

    Threads that share one product wait for each other at every one of hundreds; these do not.
    """
    cells = len(inputs)
    threads = 1
    if inputs.device.type == "cpu" and torch.get_num_threads() == 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        threads = max(1, min(_THREADS, cores or 1, cells // _LEAST_CELLS))
    edges = [round(cells * part / threads) for part in range(threads + 1)]
    return [slice(*pair) for pair in itertools.pairwise(edges)]


def fit_logistic(
    inputs: Tensor,
    labels: Tensor,
    *,
    classes: int,
    strength: Tensor,
    weights: Tensor | None = None,
    tolerance: float = TOLERANCE,
    max_steps: int = 40,
    check: Callable[[], None] = lambda: None,
) -> LogisticFit:
    """Fit every cell and replicate.

    `inputs` [C, n, d] (float32 or float64, standardised), `labels` [R, n] (long), `strength`
    [C, R] or broadcastable (C of scikit-learn: larger is weaker), `weights` [R, n] row weights
    (None: class-balanced). Stops where the largest gradient entry is below `tolerance`, or where
    the objective could fall by no more than such a gradient stands for. `check` is called at
    every step and may raise.
    """
    if weights is None:
        weights = balanced_weights(labels, classes=classes)
    strength = strength.expand(inputs.shape[0], labels.shape[0])
    parts = _parts(inputs)

    def solve(cells: slice) -> tuple[Tensor, Tensor, Tensor]:
        problem = _Problem(inputs[cells], labels, classes, strength[cells], weights)
        if problem.inverse is None:
            return _newton(problem, tolerance, max_steps, check)
        return _quasi_newton(problem, tolerance, _QUASI_STEPS * max_steps, check)

    if len(parts) == 1:
        found = [solve(parts[0])]
    else:
        with ThreadPoolExecutor(len(parts)) as pool:
            found = list(pool.map(solve, parts))
    parameters, value, gradient = (torch.cat(column) for column in zip(*found, strict=True))
    arranged = parameters.permute(0, 2, 1, 3)
    bias = arranged[:, :, -1]
    return LogisticFit(
        weight=arranged[:, :, :-1].contiguous(),
        bias=bias - bias.mean(dim=2, keepdim=True),
        objective=value,
        gradient=gradient,
    )
