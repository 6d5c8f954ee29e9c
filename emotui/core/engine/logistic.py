"""Multinomial logistic regression with an L2 penalty, many fits at once on batched tensors.

Cells (a layer and a site) have their own inputs; the replicates of a cell (penalty strengths,
folds, shuffled labels) share them. For each cell and replicate the objective is scikit-learn's,
divided by C times the sum of the weights:

    sum_i w_i * cross_entropy_i / sum_i w_i  +  ||W||^2 / (2 * C * sum_i w_i)

The bias is not penalised. Solved by limited-memory BFGS, whose first guess of the curvature is
X'WX / K + ridge class by class: what it is where every class is as likely. Where inputs are so wide
that inverting these matrices takes too long or too much memory, by Newton's method with conjugate
gradients. Nothing is random.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from emotui.core.engine.logistic_problem import Problem
from emotui.core.engine.logistic_solvers import Found, newton, quasi_newton

TOLERANCE = 1e-4
"""Of the gradient, where the caller names none."""
_THREADS = 4
_GROUP_BYTES = 2**22  # of inputs
_QUASI_STEPS = 10  # quasi-Newton steps for each step of Newton's method


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


def _division(inputs: Tensor) -> tuple[int, list[slice]]:
    """Return how many threads fit cells of their own, and the groups of cells they take in turn.

    Threads that share one product wait for each other at every one of hundreds; these do not. On
    the CPU a group is small enough to stay in its caches, which every step reads twice: that takes
    half the time of reading it from memory.
    """
    cells, rows, width = inputs.shape
    if inputs.device.type != "cpu":
        return 1, [slice(0, cells)]
    allowed = torch.get_num_threads()
    if allowed == 1:  # as a small model asks for, whose every product is small
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        allowed = min(_THREADS, cores or 1)
    count = -(-cells // max(1, _GROUP_BYTES // (rows * width * inputs.itemsize)))
    threads = min(allowed, max(_THREADS, count), cells)
    count = min(cells, -(-count // threads) * threads)
    edges = [round(cells * part / count) for part in range(count + 1)]
    return threads, [slice(*pair) for pair in itertools.pairwise(edges)]


@contextlib.contextmanager
def _one_each() -> Iterator[None]:
    """Have every thread do its products alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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

    def solve(cells: slice) -> Found:
        problem = Problem(inputs[cells], labels, classes, strength[cells], weights)
        if problem.inverse is None:
            return newton(problem, tolerance, max_steps, check)
        return quasi_newton(problem, tolerance, _QUASI_STEPS * max_steps, check)

    threads, groups = _division(inputs)
    if threads == 1:
        found = [solve(group) for group in groups]
    else:
        with _one_each(), ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(solve, groups))
    bias = torch.cat([one.parameters[..., inputs.shape[2]] for one in found])
    weight = torch.cat([one.parameters[..., : inputs.shape[2]].mT for one in found])
    return LogisticFit(
        weight=weight.contiguous(),
        bias=bias - bias.mean(dim=2, keepdim=True),
        objective=torch.cat([one.objective for one in found]),
        gradient=torch.cat([one.gradient for one in found]),
    )
