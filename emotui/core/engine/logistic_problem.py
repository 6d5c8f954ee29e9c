"""The objective of many logistic regressions at once, with its gradient and curvature.

Parameters are [C, R, K, w]: C cells, R replicates, K classes, and w columns, which are the d
inputs, one for the bias, and zeros up to a width that matrix products are quick at. Logits, and
whatever there is of each row, are [C, R, K, n]: with the rows last, products and sums over the few
classes take half the time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

_INVERSE_VALUES = 2**27  # of inverses held at a time: 512 MB; beyond, there are none
_INVERSE_WIDTH = 1032  # beyond, inverting takes longer than it saves
_ALIGNED = 8  # columns


class Problem:
    """The objective of C cells and R replicates: see `logistic` for its formula.

    `inputs` [C, n, d], `labels` [R, n], `strength` [C, R], `weights` [R, n].
    """

    def __init__(
        self, inputs: Tensor, labels: Tensor, classes: int, strength: Tensor, weights: Tensor
    ) -> None:
        cells, rows, width = inputs.shape
        padded = -(-(width + 1) // _ALIGNED) * _ALIGNED
        self.shape: tuple[int, int, int, int] = (cells, labels.shape[0], classes, padded)
        self._design = inputs.new_zeros(cells, rows, padded)
        self._design[..., :width] = inputs
        self._design[..., width] = 1
        total = weights.sum(dim=1)
        self._row_weights = (weights / total[:, None])[None, :, None].to(inputs)
        self._target = one_hot(labels, classes).transpose(1, 2)[None] * self._row_weights
        self._labels = labels[None, :, None]
        self._ridge = inputs.new_zeros(cells, labels.shape[0], 1, padded)
        self._ridge[..., :width] = 1 / (strength * total).to(inputs)[..., None, None]
        self.inverse = self._inverses(inputs, classes)
        """Inverses [C, R or 1, w, w] of X'WX / K + ridge; None where they are too large."""

    def _inverses(self, inputs: Tensor, classes: int) -> Tensor | None:
        cells, _, width = inputs.shape
        ridge = self._ridge[:, :, 0, 0]
        count = 1 if bool((ridge == ridge[:, :1]).all()) else ridge.shape[1]
        padded = self.shape[3]
        if padded > _INVERSE_WIDTH or cells * count * padded**2 > _INVERSE_VALUES:
            return None
        # The row weights of replicates differ little on the whole: those of the first serve all.
        scaled = inputs * (self._row_weights[0, 0, 0] / classes).sqrt()[None, :, None]
        gram = torch.bmm(scaled.transpose(1, 2), scaled).unsqueeze(1).repeat(1, count, 1, 1)
        gram.diagonal(dim1=2, dim2=3).add_(ridge[:, :count, None])
        inverse = inputs.new_zeros(cells, count, padded, padded)
        # Inverted once: applied sixty times, and solving with factors is many times slower.
        inverse[..., :width, :width] = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        inverse[..., width, width] = classes
        return inverse

    def preconditioned(self, residual: Tensor) -> Tensor:
        """Return the first guess of the inverse curvature times a gradient."""
        assert self.inverse is not None
        if self.inverse.shape[1] == 1:
            return torch.bmm(residual.flatten(1, 2), self.inverse[:, 0]).view_as(residual)
        return residual @ self.inverse

    def zeros(self) -> Tensor:
        """Return the parameters to begin with."""
        return self._design.new_zeros(self.shape)

    def of(self, cells: Tensor, replicates: Tensor) -> Problem:
        """Return the problem of some cells and some of their replicates, by index in order."""
        part = object.__new__(Problem)
        # The largest by far: copied only where it gets smaller.
        part._design = self._design if len(cells) == self.shape[0] else self._design[cells]
        part.shape = (len(cells), len(replicates), *self.shape[2:])
        part._target, part._labels = self._target[:, replicates], self._labels[:, replicates]
        part._row_weights = self._row_weights[:, replicates]
        part._ridge = self._ridge[cells][:, replicates]
        part.inverse = None if self.inverse is None else self.inverse[cells]
        if part.inverse is not None and part.inverse.shape[1] > 1:
            part.inverse = part.inverse[:, replicates]
        return part

    def logits(self, parameters: Tensor) -> Tensor:
        """Return the logits [C, R, K, n]."""
        product = torch.bmm(parameters.flatten(1, 2), self._design.transpose(1, 2))
        return product.view(*parameters.shape[:3], -1)

    def _back(self, per_row: Tensor) -> Tensor:
        return torch.bmm(per_row.flatten(1, 2), self._design).view(self.shape)

    def objective(self, logits: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the objective [C, R], exp(logits - their largest), and its sum over the classes.

        The last two, [C, R, K, n] and [C, R, 1, n], are what `gradient` and `shares` go on with.
        """
        largest = logits.amax(dim=2, keepdim=True)
        powers = (logits - largest).exp_()
        total = powers.sum(dim=2, keepdim=True)
        chosen = logits.gather(2, self._labels.expand(len(logits), -1, -1, -1))
        loss = largest.add_(total.log()).sub_(chosen)
        fit = (loss * self._row_weights).sum(dim=(2, 3))
        value = fit + 0.5 * dot(self._ridge * parameters, parameters)
        return value, powers, total

    def gradient(self, powers: Tensor, total: Tensor, parameters: Tensor) -> Tensor:
        """Return the gradient; `powers` is overwritten."""
        residual = powers.mul_(self._row_weights / total).sub_(self._target)
        return self._back(residual).addcmul_(self._ridge, parameters)

    def curve(self, probabilities: Tensor, direction: Tensor) -> Tensor:
        """Return the Hessian times a direction."""
        along = self.logits(direction)
        spread = probabilities * along
        spread = spread - probabilities * spread.sum(dim=2, keepdim=True)
        return self._back(spread * self._row_weights).addcmul_(self._ridge, direction)


def dot(left: Tensor, right: Tensor) -> Tensor:
    """Return the inner products [C, R] of parameters."""
    return (left * right).sum(dim=(2, 3))
