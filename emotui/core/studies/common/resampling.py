"""Bootstrap intervals of means, kappas and pairs, all draws at once; float64 on the CPU.

A draw is how often each text is taken, [texts], so a statistic of the whole sample becomes the same
statistic with weights. `statistics.bootstrap` is for statistics that have no such form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

INTERVAL_DRAWS = 1000
"""Bootstrap draws of an interval (METHODS 6f)."""
LEVEL = 0.95
"""Of every interval: from the 2.5th to the 97.5th percentile of the draws."""
_AT_ONCE = 4_000_000  # counts held at a time

Interval = tuple[Tensor, Tensor]


def resampled(
    statistic: Callable[[Tensor], Tensor],
    texts: int,
    generator: torch.Generator,
    *,
    draws: int = INTERVAL_DRAWS,
) -> Interval:
    """Return the bounds of a statistic over resampled texts.

    `statistic(counts)` gets how often each text was drawn, [draws, texts] float64, and returns
    [draws, ...]; NaN are left out, and a statistic that is NaN in every draw has NaN bounds.
    """
    found = []
    step = max(1, _AT_ONCE // max(texts, 1))
    for begin in range(0, draws, step):
        rows = min(step, draws - begin)
        drawn = torch.randint(texts, (rows, texts), generator=generator)
        counts = torch.zeros(rows, texts, dtype=torch.float64)
        counts.scatter_add_(1, drawn, torch.ones(rows, texts, dtype=torch.float64))
        found.append(statistic(counts))
    tail = (1 - LEVEL) / 2
    low, high = torch.cat(found).nanquantile(
        torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0
    )
    return low, high


def mean_interval(
    values: Tensor,
    generator: torch.Generator,
    *,
    texts: Tensor | None = None,
    draws: int = INTERVAL_DRAWS,
) -> Interval:
    """Return the bounds of the mean of `values` [n, ...] over its first dimension.

    `texts` [n] says which text each value is of: those of one text are drawn together. None where
    each is of a text of its own.
    """
    flat = values.double().reshape(len(values), -1)
    sizes = torch.ones(len(flat), dtype=torch.float64)
    if texts is not None:
        _, text = torch.unique(texts, return_inverse=True)
        number = int(text.max()) + 1
        flat = torch.zeros(number, flat.shape[1], dtype=flat.dtype).index_add_(0, text, flat)
        sizes = torch.zeros(number, dtype=flat.dtype).index_add_(0, text, sizes)
    low, high = resampled(
        lambda counts: counts @ flat / (counts @ sizes)[:, None], len(flat), generator, draws=draws
    )
    return low.view(values.shape[1:]), high.view(values.shape[1:])


def balanced_interval(
    right: Tensor, labels: Tensor, generator: torch.Generator, *, draws: int = INTERVAL_DRAWS
) -> Interval:
    """Return the bounds of the mean over labels of the share that is right.

    `right` [n, ...], `labels` [n] long. Texts are drawn within their label, so that no draw is
    without one.
    """
    flat = right.double().reshape(len(right), -1)
    members = [(labels == label).nonzero().squeeze(1) for label in torch.unique(labels).tolist()]
    drawn = torch.zeros(draws, flat.shape[1], dtype=torch.float64)
    for rows in members:
        chosen = torch.randint(len(rows), (draws, len(rows)), generator=generator)
        counts = torch.zeros(draws, len(rows), dtype=torch.float64)
        counts.scatter_add_(1, chosen, torch.ones(draws, len(rows), dtype=torch.float64))
        drawn += counts @ flat[rows] / len(rows)
    tail = (1 - LEVEL) / 2
    bounds = (drawn / len(members)).quantile(
        torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0
    )
    return bounds[0].view(right.shape[1:]), bounds[1].view(right.shape[1:])


def pair_interval(
    values: Tensor,
    members: Sequence[tuple[int, ...]],
    generator: torch.Generator,
    *,
    draws: int = INTERVAL_DRAWS,
) -> Interval:
    """Return the bounds of the mean of `values` [pairs, ...] where pairs share texts.

    `members` are the texts of each pair. Texts are drawn, not pairs, and a pair counts as often
    as the product of its texts (the pigeonhole bootstrap: Owen, Annals of Applied Statistics 1,
    2007). It errs towards wide: where no text repeats, intervals are up to 1.7 times too wide.
    """
    flat = values.double().reshape(len(values), -1)
    known = sorted({text for pair in members for text in pair})
    place = {text: number for number, text in enumerate(known)}
    at = torch.tensor([[place[text] for text in pair] for pair in members])

    def weighted(counts: Tensor) -> Tensor:
        weights = counts[:, at].prod(dim=2)
        return weights @ flat / weights.sum(dim=1, keepdim=True)

    low, high = resampled(weighted, len(known), generator, draws=draws)
    return low.view(values.shape[1:]), high.view(values.shape[1:])


def fleiss_interval(
    counts: Tensor, generator: torch.Generator, *, draws: int = INTERVAL_DRAWS
) -> Interval:
    """Return the bounds of `statistics.fleiss_kappa` of [texts, classes] over resampled texts."""
    table = counts.double()
    raters = float(table[0].sum())
    agreement = (table.square().sum(dim=1) - raters) / (raters * (raters - 1))

    def kappas(drawn: Tensor) -> Tensor:
        shares = drawn @ table / (len(table) * raters)
        return _kappa(drawn @ agreement / len(table), shares.square().sum(dim=1))

    return resampled(kappas, len(table), generator, draws=draws)


def cohen_interval(
    first: Tensor,
    second: Tensor,
    texts: Tensor,
    generator: torch.Generator,
    *,
    classes: int,
    draws: int = INTERVAL_DRAWS,
) -> Interval:
    """Return the bounds of `statistics.cohen_kappa` of two codings [n] over resampled texts.

    `texts` [n] says which text each coding is of: those of one text are drawn together.
    """
    _, text = torch.unique(texts, return_inverse=True)
    cells = one_hot(first.long() * classes + second.long(), classes**2).double()
    tables = torch.zeros(int(text.max()) + 1, classes**2, dtype=torch.float64)
    tables.index_add_(0, text, cells)

    def kappas(drawn: Tensor) -> Tensor:
        table = (drawn @ tables).view(-1, classes, classes)
        table = table / table.sum(dim=(1, 2), keepdim=True)
        observed = table.diagonal(dim1=1, dim2=2).sum(dim=1)
        return _kappa(observed, (table.sum(dim=1) * table.sum(dim=2)).sum(dim=1))

    return resampled(kappas, len(tables), generator, draws=draws)


def _kappa(observed: Tensor, expected: Tensor) -> Tensor:
    """Return kappas; NaN where chance alone agrees everywhere."""
    kappa = (observed - expected) / (1 - expected)
    return torch.where(expected < 1 - 1e-12, kappa, torch.full_like(kappa, torch.nan))
