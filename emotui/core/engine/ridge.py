"""A quick linear classifier for previews: ridge regression on class means, all cells at once.

For each cell and replicate, with G = X'X / n of the rows kept and m_k the mean of class k,

    w_k = (G + penalty * tr(G) / d * I)^-1 (m_k - m),   b_k = -<w_k, m_k + m> / 2

the solution of a ridge regression on class indicators that are divided by their class's size, with
the offsets of linear discriminant analysis (Hastie, Tibshirani, Friedman, section 4.3). The
replicates of a cell that keep the same rows share one factorisation.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from emotui.core.engine.logistic import LogisticFit

PENALTY = 0.1


def fit_ridge(
    inputs: Tensor,
    labels: Tensor,
    *,
    classes: int,
    keep: Tensor | None = None,
    penalty: float = PENALTY,
) -> LogisticFit:
    """Fit every cell and replicate in closed form.

    `inputs` [C, n, d] (float32 or float64, standardised), `labels` [R, n] (long), `keep` [R, n]
    (bool; None keeps all rows). `objective` and `gradient` of what is returned are 0.
    """
    kept = torch.ones_like(labels, dtype=torch.bool) if keep is None else keep
    if bool((kept == kept[:1]).all()):
        parts = [_of_rows(inputs, labels, kept[0], classes, penalty)]
    else:
        parts = [
            _of_rows(inputs, labels[[row]], kept[row], classes, penalty)
            for row in range(len(labels))
        ]
    weight = torch.cat([part[0] for part in parts], dim=1)
    bias = torch.cat([part[1] for part in parts], dim=1)
    nothing = inputs.new_zeros(weight.shape[:2])
    return LogisticFit(weight=weight, bias=bias, objective=nothing, gradient=nothing)


def _of_rows(
    inputs: Tensor, labels: Tensor, rows: Tensor, classes: int, penalty: float
) -> tuple[Tensor, Tensor]:
    """Return weights [C, R, d, K] and biases [C, R, K] of replicates that keep the same rows."""
    if not bool(rows.all()):
        inputs, labels = inputs[:, rows], labels[:, rows]
    cells, count, width = inputs.shape
    members = one_hot(labels, classes).to(inputs)  # [R, n, K]
    shares = members / members.sum(dim=1, keepdim=True).clamp(min=1)
    # Class means and the Gram matrix in one pass over the inputs.
    flat = shares.permute(1, 0, 2).reshape(count, -1)
    means = (inputs.transpose(1, 2) @ flat).view(cells, width, len(labels), classes)
    gram = torch.bmm(inputs.transpose(1, 2), inputs) / count
    middle = inputs.mean(dim=1)[:, :, None, None]
    scale = gram.diagonal(dim1=1, dim2=2).mean(dim=1).clamp(min=1e-12)
    gram.diagonal(dim1=1, dim2=2).add_(penalty * scale[:, None])
    factor = torch.linalg.cholesky(gram)
    difference = means - middle
    solved = torch.cholesky_solve(difference.flatten(2), factor).view_as(means)
    bias = -0.5 * (solved * (means + middle)).sum(dim=1)
    return solved.permute(0, 2, 1, 3).contiguous(), bias
