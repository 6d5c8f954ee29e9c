"""Fitting scales, and the baselines, on a handful of labelled texts; they choose everything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from emotui.core.studies.steer_runs import Feature

GRID = (1.0, 0.5, 0.0, 1.5, 2.0, 3.0, 5.0, 8.0)
"""Scales that are tried, the unedited first: of equals the first is taken."""
PENALTIES = (0.0001, 0.001, 0.01, 0.1, 1.0)
DEFAULT_PENALTY = 0.01
SWEEPS = 2
_BIAS_PENALTY = 0.01

Score = Callable[[Sequence[Mapping[Feature, float]]], Tensor]
"""Scores [texts, settings, labels] of the training texts under settings of scales."""


@dataclass
class _Path:
    """One fit: what is scaled together, on which texts, under which penalty."""

    of: Mapping[Feature, int]
    """The label each feature belongs to."""
    penalty: float
    texts: Tensor
    """[n], bool."""
    scales: Tensor
    """[labels]."""

    def setting(self, label: int, scale: float) -> dict[Feature, float]:
        """Return the factors with one label's scale replaced."""
        scales = self.scales.tolist()
        scales[label] = scale
        return {feature: scales[mine] for feature, mine in self.of.items()}


@dataclass(frozen=True)
class Fitted:
    """Scales by label, of the causal features and of each draw of matched ones."""

    scales: Tensor
    """[labels]."""
    matched: tuple[Tensor, ...]
    penalty: float


def fit_global(
    score: Score,
    gold: Tensor,
    shot: Tensor,
    of: Mapping[Feature, int],
    matched: Sequence[Mapping[Feature, int]],
    *,
    labels: int,
) -> Fitted:
    """Fit one scale a label by coordinate search on cross-entropy + penalty * ||s - 1||^2.

    `gold` [n] the labels, `shot` [n] which example of its label a text is: the penalty is the one
    with the least cross-entropy on shots left out (up to five); with one shot it is 0.01. The
    matched features are fitted in the same way, under the same penalty.
    """
    everything = torch.ones(len(gold), dtype=torch.bool)
    folds = sorted(set(shot.tolist()))[:5]
    folds = folds if len(folds) > 1 else []
    penalties = PENALTIES if folds else (DEFAULT_PENALTY,)
    sets = [of, *matched]
    final = [_Path(one, p, everything, torch.ones(labels)) for p in penalties for one in sets]
    tried = [_Path(of, p, shot != fold, torch.ones(labels)) for p in penalties for fold in folds]
    paths = [*final, *tried]
    last = torch.zeros(len(gold), len(paths), labels)
    for label in [*range(labels)] * SWEEPS:
        if not any(mine == label for path in paths for mine in path.of.values()):
            continue
        settings = [path.setting(label, scale) for path in paths for scale in GRID]
        scores = score(settings).view(len(gold), len(paths), len(GRID), -1)
        for number, path in enumerate(paths):
            best = _best(scores[:, number], gold, path, label)
            path.scales[label] = GRID[best]
            last[:, number] = scores[:, number, best]
    losses = [
        sum(
            float(cross_entropy(last[~path.texts, number], gold[~path.texts]))
            for number, path in enumerate(paths)
            if number >= len(final) and path.penalty == penalty
        )
        for penalty in penalties
    ]
    chosen = losses.index(min(losses))
    mine = final[chosen * len(sets) : (chosen + 1) * len(sets)]
    return Fitted(mine[0].scales, tuple(path.scales for path in mine[1:]), penalties[chosen])


def _best(scores: Tensor, gold: Tensor, path: _Path, label: int) -> int:
    """Return which scale of the grid is best; `scores` [n, grid, labels]."""
    losses = []
    for number, scale in enumerate(GRID):
        scales = path.scales.clone()
        scales[label] = scale
        loss = cross_entropy(scores[path.texts, number], gold[path.texts])
        losses.append(float(loss + path.penalty * (scales - 1).square().sum()))
    least = min(losses)
    return next(n for n, loss in enumerate(losses) if loss <= least + 1e-6)


def fit_targeted(
    score: Score,
    gold: Tensor,
    clean: Tensor,
    of: Mapping[Feature, int],
    *,
    labels: int,
    never: int | None,
) -> Tensor:
    """Return scales [labels]: one above 1 for all weak labels, those with a recall below the mean.

    `clean` [n, labels] are the scores without edits; `never` a label that is not scaled (neutral).
    """
    right = (clean.argmax(dim=1) == gold).double()
    present = sorted(set(gold.tolist()))
    recall = {k: float(right[gold == k].mean()) for k in present}
    mean = sum(recall.values()) / len(recall)
    weak = [k for k in present if k != never and recall[k] < mean]
    grid = [scale for scale in GRID if scale >= 1]
    settings = [
        {feature: scale if mine in weak else 1.0 for feature, mine in of.items()} for scale in grid
    ]
    scores = score(settings)
    losses = [float(cross_entropy(scores[:, n], gold)) for n in range(len(grid))]
    best = grid[losses.index(min(losses))]
    return torch.tensor([best if k in weak else 1.0 for k in range(labels)])


def fit_bias(clean: Tensor, gold: Tensor) -> Tensor:
    """Return what is added to each label's score [labels]: cross-entropy with a small penalty."""
    scores, bias = clean.double(), torch.zeros(clean.shape[1], dtype=torch.float64)
    bias.requires_grad_()
    optimiser = torch.optim.LBFGS([bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = cross_entropy(scores + bias, gold) + _BIAS_PENALTY * bias.square().sum()
        torch.autograd.backward(loss)
        return loss

    with torch.enable_grad():
        optimiser.step(closure)  # type: ignore[no-untyped-call]
    return bias.detach().float()


def class_means(h: Tensor, gold: Tensor, *, labels: int) -> tuple[Tensor, Tensor]:
    """Return the grand mean [d] and each label's mean less it [labels, d]; NaN without texts."""
    means = torch.stack([h[gold == k].double().mean(dim=0) for k in range(labels)])
    centre = means.nanmean(dim=0)
    return centre, means - centre


def nearest_mean(h: Tensor, centre: Tensor, means: Tensor) -> Tensor:
    """Return the label [n] whose mean has the largest cosine with `h` [n, d]."""
    cosine = torch.nn.functional.cosine_similarity(
        (h.double() - centre)[:, None], means[None], dim=-1
    )
    return cosine.nan_to_num(-2).argmax(dim=1)
