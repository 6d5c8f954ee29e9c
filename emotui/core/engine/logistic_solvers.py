"""Minimising the objective of many logistic regressions at once.

Limited-memory BFGS with a first guess of the curvature, in its compact form (Byrd, Nocedal and
Schnabel 1994), and Newton's method with conjugate gradients for where there is no such guess; both
with backtracking (Nocedal and Wright, chapters 3 and 7).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from emotui.core.engine.logistic_problem import Problem, dot

_CONJUGATE_STEPS = 60
_HALVINGS = 20
_SUFFICIENT = 1e-4  # Armijo's constant
_CURVATURE_FLOOR = 1e-12
_DECREMENT = 0.1  # share of the tolerance that the objective may still fall by, twice over,
_AT_TOLERANCE = 1e-4  # at this one; the fall goes with the square of the gradient that is left
_MEMORY = 10  # pairs of steps and gradient changes
_FEWER = 0.8  # share of the fits that are still going below which the others are left behind


@dataclass(frozen=True)
class Found:
    """Where the minimisation of C cells and R replicates ended."""

    parameters: Tensor
    """[C, R, K, w]."""
    objective: Tensor
    """[C, R]."""
    gradient: Tensor
    """[C, R], the largest absolute entry of the gradient that is left."""


def _largest(gradient: Tensor) -> Tensor:
    return gradient.abs().amax(dim=(2, 3))


def _spread(per_fit: Tensor) -> Tensor:
    return per_fit[:, :, None, None]


class _Memory:
    """The latest steps and the changes of the gradient along them, of C cells and R replicates.

    A new pair takes the place of the oldest. Tensors are [C R, ...]: as batches of matrices.
    """

    def __init__(self, like: Tensor) -> None:
        self._replicates = like.shape[1]
        fits = like.shape[0] * like.shape[1]
        room = (fits, _MEMORY, like[0, 0].numel())
        self._steps, self._changes = like.new_zeros(room), like.new_zeros(room)
        self._products = like.new_zeros(fits, _MEMORY, _MEMORY)
        self._taken = 0

    def of(self, cells: Tensor, replicates: Tensor) -> _Memory:
        """Return the memory of some cells and some of their replicates."""
        fits = (cells[:, None] * self._replicates + replicates).flatten()
        part = object.__new__(_Memory)
        part._replicates, part._taken = len(replicates), self._taken
        part._steps, part._changes = self._steps[fits], self._changes[fits]
        part._products = self._products[fits]
        return part

    def add(self, step: Tensor, change: Tensor) -> None:
        """Take a pair in; one that shows no curvature counts as none."""
        place = self._taken % _MEMORY
        self._taken += 1
        step, change = (values.flatten(2).flatten(0, 1) for values in (step, change))
        curved = torch.linalg.vecdot(step, change)[:, None] > 0
        self._steps[:, place] = step * curved
        self._changes[:, place] = change = change * curved
        column = torch.bmm(change[:, None], self._steps.mT)[:, 0]
        column[:, place] += ~curved[:, 0]  # what is solved for stays 0 then
        self._products[:, :, place] = column

    def direction(self, problem: Problem, gradient: Tensor) -> Tensor:
        """Return minus the inverse curvature times the gradient."""
        count = min(self._taken, _MEMORY)
        if count == 0:
            return problem.preconditioned(gradient).neg_()
        oldest = (self._taken - count) % _MEMORY
        steps, changes = self._steps[:, :count], self._changes[:, :count]
        # Products of steps with later changes, oldest first: a triangle.
        products = self._products[:, :count, :count].roll((-oldest, -oldest), (1, 2))
        flat = gradient.flatten(2).flatten(0, 1)[:, None]
        along = torch.bmm(flat, steps.mT).roll(-oldest, 2)
        shares = torch.linalg.solve_triangular(products, along.mT, upper=True)
        rest = torch.baddbmm(flat, shares.roll(oldest, 1).mT, changes, alpha=-1)
        solved = problem.preconditioned(rest.view_as(gradient))
        flat = solved.flatten(2).flatten(0, 1)[:, None]
        left = products.diagonal(dim1=1, dim2=2)[..., None] * shares
        left -= torch.bmm(flat, changes.mT).roll(-oldest, 2).mT
        returned = torch.linalg.solve_triangular(products.mT, left, upper=False)
        found = torch.baddbmm(flat, returned.roll(oldest, 1).mT, steps)
        return found.neg_().view_as(gradient)


@dataclass
class _Run:
    """Where a quasi-Newton run of some cells is."""

    parameters: Tensor
    logits: Tensor
    value: Tensor
    gradient: Tensor
    open: Tensor
    """[C, R], whether there is something left to gain."""
    memory: _Memory

    def of(self, cells: Tensor, replicates: Tensor) -> _Run:
        """Return the run of some cells and some of their replicates."""
        fits = (cells[:, None], replicates)
        return _Run(
            self.parameters[fits],
            self.logits[fits],
            self.value[fits],
            self.gradient[fits],
            self.open[fits],
            self.memory.of(cells, replicates),
        )


def _begun(problem: Problem, parameters: Tensor) -> _Run:
    logits = problem.logits(parameters)
    value, powers, total = problem.objective(logits, parameters)
    gradient = problem.gradient(powers, total, parameters)
    there = torch.ones_like(value, dtype=torch.bool)
    return _Run(parameters, logits, value, gradient, there, _Memory(parameters))


def _quasi_step(problem: Problem, run: _Run, tolerance: float) -> None:
    """Take a step in place; a fit that has none to take is closed."""
    run.open &= _largest(run.gradient) > tolerance
    if not bool(run.open.any()):
        return
    direction = run.memory.direction(problem, run.gradient)
    slope = dot(run.gradient, direction)
    # Half the slope is what the objective is still above its minimum, where curvature is known.
    run.open &= slope < -_DECREMENT * tolerance * min(1.0, tolerance / _AT_TOLERANCE)
    direction *= _spread(run.open)
    along = problem.logits(direction)
    length = run.open.to(run.parameters)
    for _ in range(_HALVINGS):
        logits = torch.addcmul(run.logits, along, _spread(length))
        parameters = torch.addcmul(run.parameters, direction, _spread(length))
        value, powers, total = problem.objective(logits, parameters)
        worse = (value > run.value + _SUFFICIENT * length * slope) & run.open
        if not bool(worse.any()):
            break
        length = torch.where(worse, length / 2, length)
    else:  # at the limit of the dtype no step can be seen to improve
        run.open &= ~worse
        length = torch.where(worse, 0.0, length)
        logits = torch.addcmul(run.logits, along, _spread(length))
        parameters = torch.addcmul(run.parameters, direction, _spread(length))
        value, powers, total = problem.objective(logits, parameters)
    gradient = problem.gradient(powers, total, parameters)
    run.memory.add(parameters - run.parameters, gradient - run.gradient)
    run.parameters, run.logits, run.value, run.gradient = parameters, logits, value, gradient


def quasi_newton(
    problem: Problem, tolerance: float, max_steps: int, check: Callable[[], None]
) -> Found:
    """Minimise by limited-memory BFGS; `problem` has its first guess of the curvature.

    Stops where the largest gradient entry is below `tolerance`, or where the objective could fall
    by no more than such a gradient stands for. `check` is called at every step and may raise.
    """
    run = _begun(problem, problem.zeros())
    parameters, value, gradient = run.parameters.clone(), run.value.clone(), run.gradient.clone()
    fits = _all_of(run.open)
    for _ in range(max_steps):
        check()
        _quasi_step(problem, run, tolerance)
        left = _still(run.open)
        if left is None:
            continue
        parameters[fits], value[fits], gradient[fits] = run.parameters, run.value, run.gradient
        if not len(left[0]):
            break
        fits = (fits[0][left[0]], fits[1][left[1]])
        problem, run = problem.of(*left), run.of(*left)
    parameters[fits], value[fits], gradient[fits] = run.parameters, run.value, run.gradient
    return Found(parameters, value, _largest(gradient))


def _all_of(fits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places of cells [C, 1] and of replicates [R] that stand for all fits [C, R]."""
    cells, replicates = (torch.arange(count, device=fits.device) for count in fits.shape)
    return cells[:, None], replicates


def _still(going: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the cells and the replicates that any fit [C, R] still goes on in.

    None where too few would be left behind for it to pay: the slowest few set the pace otherwise.
    """
    cells, replicates = (going.any(dim=dim).nonzero()[:, 0] for dim in (1, 0))
    return None if len(cells) * len(replicates) > _FEWER * going.numel() else (cells, replicates)


def _newton_direction(problem: Problem, probabilities: Tensor, gradient: Tensor) -> Tensor:
    """Solve Hessian * step = -gradient by conjugate gradients, each problem as far as it needs."""
    step = torch.zeros_like(gradient)
    residual = -gradient
    direction = residual
    size = dot(residual, residual)
    start = size.sqrt()
    # Loose far from the solution, tight near it: the usual forcing sequence sqrt(|g|).
    enough = (start * start.sqrt().clamp(max=0.1)).square()
    for _ in range(_CONJUGATE_STEPS):
        active = size > enough
        if not bool(active.any()):
            break
        curved = problem.curve(probabilities, direction)
        curvature = dot(direction, curved)
        length = torch.where(active, size / curvature.clamp(min=_CURVATURE_FLOOR), 0.0)
        step = torch.addcmul(step, direction, _spread(length))
        residual = torch.addcmul(residual, curved, _spread(-length))
        new_size = dot(residual, residual)
        ratio = torch.where(active, new_size / size.clamp(min=_CURVATURE_FLOOR**2), 0.0)
        direction = torch.addcmul(residual, direction, _spread(ratio))
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


def _newton_step(problem: Problem, parameters: Tensor, tolerance: float) -> _Step:
    logits = problem.logits(parameters)
    value, powers, total = problem.objective(logits, parameters)
    probabilities = powers / total
    gradient = problem.gradient(powers, total, parameters)
    left = _largest(gradient)
    length = torch.where(left > tolerance, 1.0, 0.0).to(parameters)
    if not bool((length > 0).any()):
        return _Step(parameters, value, left, length > 0)
    # Replicates that are done get no direction: their share of the work ends at once.
    direction = _newton_direction(problem, probabilities, gradient * _spread(length > 0))
    slope = dot(gradient, direction)
    along = problem.logits(direction)
    worse = length > 0
    for _ in range(_HALVINGS):
        new_value, _, _ = problem.objective(
            torch.addcmul(logits, along, _spread(length)),
            torch.addcmul(parameters, direction, _spread(length)),
        )
        worse = (new_value > value + _SUFFICIENT * length * slope) & (length > 0)
        if not bool(worse.any()):
            break
        length = torch.where(worse, length / 2, length)
    # At the limit of the dtype a step cannot be seen to improve: it is not taken.
    length = torch.where(worse, 0.0, length)
    return _Step(torch.addcmul(parameters, direction, _spread(length)), value, left, length > 0)


def newton(problem: Problem, tolerance: float, max_steps: int, check: Callable[[], None]) -> Found:
    """As `quasi_newton`, without a first guess of the curvature."""
    parameters = problem.zeros()
    value, gradient = parameters[..., 0, 0].clone(), parameters[..., 0, 0].clone()
    fits = _all_of(value)
    for _ in range(max_steps):
        check()
        step = _newton_step(problem, parameters[fits], tolerance)
        parameters[fits], value[fits], gradient[fits] = step.parameters, step.value, step.left
        left = _still(step.moved)
        if left is None:
            continue
        if not len(left[0]):
            break
        fits = (fits[0][left[0]], fits[1][left[1]])
        problem = problem.of(*left)
    return Found(parameters, value, gradient)
