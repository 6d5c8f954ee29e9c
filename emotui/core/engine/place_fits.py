"""Fitting one kind of probe at every place of a model, with its controls, and judging it there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emotui.cache.probes import ProbeScore
from emotui.core.engine import controls
from emotui.core.engine.capture import Job
from emotui.core.engine.collect import Place
from emotui.core.engine.design import FOLDS, Design
from emotui.core.engine.logistic import LogisticFit, balanced_weights, fit_logistic
from emotui.core.engine.ridge import fit_ridge
from emotui.core.records import Site

STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""C of scikit-learn on standardised inputs: larger is a weaker penalty."""
_CHUNK_VALUES = 2**27  # inputs held in float32 at a time: 512 MB
_SHUFFLED_TOLERANCE = 1e-3
_CONSTANT = 1e-5  # sd over size below which an input is constant


@dataclass(frozen=True)
class PlaceFits:
    """One kind of probe at P places; n texts, J judged ones, K labels, S shufflings."""

    strength: Tensor
    """[P]."""
    center: Tensor
    """[P, d]."""
    weight: Tensor
    """[P, d, K], on inputs minus `center`."""
    bias: Tensor
    """[P, K]."""
    fold_weight: Tensor
    """[P, F, d, K], on inputs minus `center`."""
    fold_bias: Tensor
    """[P, F, K]."""
    predicted: Tensor
    """[P, n], the label each text is given."""
    shuffled: Tensor
    """[P, S], balanced accuracy on the judged texts after fitting on shuffled labels."""


def fit_places(
    inputs: Tensor,
    design: Design,
    *,
    seed: int,
    job: Job,
    phase: str,
    device: torch.device,
    preview: bool = False,
) -> PlaceFits:
    """Fit one kind of probe at every place; `inputs` is [P, n, d].

    Done in chunks of places, in float32 on `device`. Deterministic for a seed. A preview is fitted
    by ridge regression in closed form, its controls too.
    """
    per_place = inputs.shape[1] * inputs.shape[2]
    size = max(1, _CHUNK_VALUES // per_place)
    parts = []
    for start in range(0, inputs.shape[0], size):
        job.check()
        job.progress(phase, start, inputs.shape[0])
        chunk = inputs[start : start + size].to(device, torch.float32)
        parts.append(_fit_chunk(chunk, design, seed=seed, job=job, preview=preview))
    job.progress(phase, inputs.shape[0], inputs.shape[0])
    names = PlaceFits.__dataclass_fields__
    return PlaceFits(**{name: torch.cat([getattr(p, name) for p in parts]) for name in names})


def _standardised(inputs: Tensor, train: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the inputs standardised by the training rows, their mean, and 1 / sd.

    1 / sd is 0 for an input that is constant.
    """
    fitted = inputs[:, train]
    center = fitted.mean(dim=1)
    sd = fitted.std(dim=1)
    size = fitted.square().mean(dim=1).sqrt()
    inverse = torch.where(sd > _CONSTANT * size, 1 / sd.clamp(min=1e-30), 0.0)
    return (inputs - center[:, None]) * inverse[:, None], center, inverse


def _fit_chunk(inputs: Tensor, design: Design, *, seed: int, job: Job, preview: bool) -> PlaceFits:
    device = inputs.device
    labels, train, dev = (t.to(device) for t in (design.labels, design.train, design.dev))
    classes = design.classes
    standard, center, inverse = _standardised(inputs, train)
    fitted, targets = standard[:, train], labels[train]

    def fit(replicates: Tensor, strength: Tensor, **options: object) -> LogisticFit:
        if preview:
            weights = options.get("weights")
            keep = weights > 0 if isinstance(weights, Tensor) else None
            return fit_ridge(fitted, replicates, classes=classes, keep=keep)
        return fit_logistic(
            fitted,
            replicates,
            classes=classes,
            strength=strength,
            check=job.check,
            **options,  # type: ignore[arg-type]
        )

    grid = torch.tensor(STRENGTHS[-1:] if preview else STRENGTHS, device=device)
    tried = fit(targets.expand(len(grid), -1), grid)
    loss = _balanced_loss(tried.logits(standard[:, dev]), labels[dev], classes)
    chosen = loss.argmin(dim=1)
    strength = grid[chosen]
    places = torch.arange(len(chosen), device=device)
    weight, bias = tried.weight[places, chosen], tried.bias[places, chosen]
    predicted = (torch.bmm(standard, weight) + bias[:, None]).argmax(dim=2)

    judged = design.judged.to(device)
    shuffled = fit(
        _shufflings(targets, seed), strength[:, None], tolerance=_SHUFFLED_TOLERANCE
    ).logits(standard[:, judged])
    # On the CPU: some accelerators have no float64.
    guesses = shuffled.argmax(3).cpu()
    chance = controls.balanced_accuracy(guesses, design.labels[design.judged], classes=classes)

    folds = design.folds.to(device)[train]
    outside = folds[None] != torch.arange(FOLDS, device=device)[:, None]
    replicates = targets.expand(FOLDS, -1)
    weights = balanced_weights(replicates, classes=classes, keep=outside)
    folded = fit(replicates, strength[:, None], weights=weights)
    return PlaceFits(
        strength=strength.cpu(),
        center=center.cpu(),
        weight=(weight * inverse[..., None]).cpu(),
        bias=bias.cpu(),
        fold_weight=(folded.weight * inverse[:, None, :, None]).cpu(),
        fold_bias=folded.bias.cpu(),
        predicted=predicted.cpu(),
        shuffled=chance,
    )


def _balanced_loss(logits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the class-balanced cross-entropy [P, R] of logits [P, R, n, K]."""
    weights = balanced_weights(labels[None], classes=classes)[0]
    chosen = logits.log_softmax(dim=3).gather(
        3, labels[None, None, :, None].expand(*logits.shape[:2], -1, 1)
    )
    return -(chosen.squeeze(3) * weights).sum(dim=2) / weights.sum()


def _shufflings(labels: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(labels), generator=generator) for _ in range(controls.SHUFFLES)]
    return torch.stack([labels[order.to(labels.device)] for order in orders])


def scores_of(
    fits: PlaceFits, bag: Tensor, places: tuple[Place, ...], design: Design
) -> tuple[ProbeScore, ...]:
    """Judge every place; `bag` [n] is what the bag-of-embeddings probe predicts."""
    classes = design.classes
    accuracy = {
        name: controls.balanced_accuracy(
            fits.predicted[:, rows], design.labels[rows], classes=classes
        ).tolist()
        for name, rows in {**design.subsets, "dev": design.dev, "judged": design.judged}.items()
    }
    labels = design.labels[design.judged]
    rival = bag[design.judged]
    bag_accuracy = float(controls.balanced_accuracy(rival, labels, classes=classes))
    margins, errors = controls.margin(
        fits.predicted[:, design.judged], rival, labels, classes=classes
    )
    chance = {
        site: controls.chance_level(
            fits.shuffled[[index for index, place in enumerate(places) if place[0] == site]]
        )
        for site in {site for site, _ in places}
    }

    def score(index: int, site: Site, layer: int) -> ProbeScore:
        judged = accuracy["judged"][index]
        mean, high = chance[site]
        apart = {
            f"{name}_accuracy": accuracy[name][index]
            for name in ("dev", "test", "named", "unnamed", "other")
            if name in accuracy
        }
        return ProbeScore(
            site=site,
            layer=layer,
            balanced_accuracy=judged,
            shuffled_95=high,
            shuffled_mean=mean,
            bag_accuracy=bag_accuracy,
            bag_error=float(errors[index]),
            trust=controls.verdict(
                accuracy=judged,
                shuffled_95=high,
                bag_margin=float(margins[index]),
                bag_error=float(errors[index]),
            ),
            **apart,
        )

    return tuple(score(index, site, layer) for index, (site, layer) in enumerate(places))


def out_of_fold(fits: PlaceFits, design: Design, row: int, h: Tensor, place: int) -> Tensor:
    """Return logits [tokens, K] of `h` [tokens, d] by a probe that was not fitted on text `row`."""
    fold = int(design.folds[row])
    centered = h - fits.center[place]
    if fold < 0:
        return centered @ fits.weight[place] + fits.bias[place]
    return centered @ fits.fold_weight[place, fold] + fits.fold_bias[place, fold]
