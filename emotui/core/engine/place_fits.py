"""Fitting one kind of probe at every place of a model, with its controls, and judging it there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emotui.cache.probes import ProbeScore
from emotui.core.engine import controls
from emotui.core.engine.capture import Job
from emotui.core.engine.collect import Place
from emotui.core.engine.design import FOLDS, Design
from emotui.core.engine.logistic import TOLERANCE, LogisticFit, balanced_weights, fit_logistic
from emotui.core.engine.probe_controls import DRAWS, Beside, ControlTask, along_random
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
    beside: Beside | None = None
    """The control task and random directions; None where they were not asked for."""


def fit_places(
    inputs: Tensor,
    design: Design,
    *,
    seed: int,
    job: Job,
    phase: str,
    device: torch.device,
    preview: bool = False,
    task: ControlTask | None = None,
    directions: bool = False,
) -> PlaceFits:
    """Fit one kind of probe at every place; `inputs` is [P, n, d].

    Done in chunks of places, in float32 on `device`. Deterministic for a seed. A preview is fitted
    by ridge regression in closed form, its controls too. With `task` the control task is fitted
    too, and with `directions` random directions of the inputs.
    """
    per_place = inputs.shape[1] * inputs.shape[2]
    size = max(1, _CHUNK_VALUES // per_place)
    counter = _Counter(job, phase, inputs.shape[0] * _fits_of(task, preview, directions=directions))
    parts = []
    for start in range(0, inputs.shape[0], size):
        job.check()
        chunk = inputs[start : start + size].to(device, torch.float32)
        fitting = _Fitting(chunk, design, seed=seed, job=job, counter=counter, preview=preview)
        parts.append(fitting.done(task, directions=directions))
    names = [name for name in PlaceFits.__dataclass_fields__ if name != "beside"]
    columns: dict[str, Any] = {name: torch.cat([getattr(p, name) for p in parts]) for name in names}
    found = [part.beside for part in parts if part.beside is not None]
    if found:
        names = list(Beside.__dataclass_fields__)
        joined = {name: torch.cat([getattr(part, name) for part in found]) for name in names}
        columns["beside"] = Beside(**joined)
    return PlaceFits(**columns)


class _Counter:
    """Tells a job how many single classifiers are fitted."""

    def __init__(self, job: Job, phase: str, total: int) -> None:
        self._job, self._phase, self._total = job, phase, total
        self._done = 0
        job.progress(phase, 0, total)

    def add(self, count: int) -> None:
        """Count what was just fitted."""
        self._done += count
        self._job.progress(self._phase, self._done, self._total)


def _fits_of(task: ControlTask | None, preview: bool, *, directions: bool) -> int:
    """Return how many classifiers are fitted at one place."""
    strengths = 1 if preview else len(STRENGTHS)
    tasks = 0 if task is None else len(task.labels)
    return strengths + controls.SHUFFLES + tasks + FOLDS + (2 * DRAWS if directions else 0)


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


@dataclass(frozen=True)
class _Chosen:
    """Probes at C places on standardised inputs, the strength of each chosen on dev."""

    strength: Tensor
    """[C]."""
    weight: Tensor
    """[C, d, K]."""
    bias: Tensor
    """[C, K]."""
    predicted: Tensor
    """[C, n]."""


class _Fitting:
    """All fits at a chunk of places: the probe, its folds, and what it is held against."""

    def __init__(
        self,
        inputs: Tensor,
        design: Design,
        *,
        seed: int,
        job: Job,
        counter: _Counter,
        preview: bool,
    ) -> None:
        self.inputs, self.design, self.device = inputs, design, inputs.device
        self.seed, self.job, self.preview = seed, job, preview
        self.counter = counter
        self.train, self.judged = design.train.to(self.device), design.judged.to(self.device)
        self.targets = design.labels.to(self.device)[self.train]
        self.standard, self.center, self.inverse = _standardised(inputs, self.train)

    def done(self, task: ControlTask | None, *, directions: bool) -> PlaceFits:
        """Fit everything; tensors on the CPU."""
        chosen = self._choose(self.standard)
        chance, control = self._by_chance(chosen.strength, task)
        folded = self._folds(chosen.strength)
        weight = chosen.weight * self.inverse[..., None]
        predicted = chosen.predicted.cpu()
        beside = None
        if task is not None or directions:
            nothing = torch.full((len(weight),), float("nan"), dtype=torch.float64)
            beside = Beside(
                control=nothing if control is None else control,
                task=nothing if task is None else self._accuracy(predicted, task.judged),
                random=self._random(None, chosen.strength) if directions else nothing,
                orthogonal=self._random(weight, chosen.strength) if directions else nothing,
            )
        return PlaceFits(
            strength=chosen.strength.cpu(),
            center=self.center.cpu(),
            weight=weight.cpu(),
            bias=chosen.bias.cpu(),
            fold_weight=(folded.weight * self.inverse[:, None, :, None]).cpu(),
            fold_bias=folded.bias.cpu(),
            predicted=predicted,
            shuffled=chance,
            beside=beside,
        )

    def _fit(
        self,
        inputs: Tensor,
        replicates: Tensor,
        strength: Tensor,
        *,
        weights: Tensor | None = None,
        tolerance: float = TOLERANCE,
    ) -> LogisticFit:
        classes = self.design.classes
        count = len(inputs) * len(replicates)
        if self.preview:
            keep = None if weights is None else weights > 0
            quick = fit_ridge(inputs, replicates, classes=classes, keep=keep)
            self.counter.add(count)
            return quick
        found = fit_logistic(
            inputs,
            replicates,
            classes=classes,
            strength=strength,
            weights=weights,
            tolerance=tolerance,
            check=self.job.check,
        )
        self.counter.add(count)
        return found

    def _choose(self, standard: Tensor) -> _Chosen:
        """Fit at each strength of the penalty, and keep the one that dev is predicted best by."""
        grid = torch.tensor(STRENGTHS[-1:] if self.preview else STRENGTHS, device=self.device)
        tried = self._fit(standard[:, self.train], self.targets.expand(len(grid), -1), grid)
        dev = self.design.dev.to(self.device)
        labels = self.design.labels.to(self.device)[dev]
        loss = _balanced_loss(tried.logits(standard[:, dev]), labels, self.design.classes)
        best = loss.argmin(dim=1)
        places = torch.arange(len(best), device=self.device)
        weight, bias = tried.weight[places, best], tried.bias[places, best]
        predicted = (torch.bmm(standard, weight) + bias[:, None]).argmax(dim=2)
        return _Chosen(grid[best], weight, bias, predicted)

    def _by_chance(
        self, strength: Tensor, task: ControlTask | None
    ) -> tuple[Tensor, Tensor | None]:
        """Fit on shuffled labels, and on those of the control task, as further replicates.

        Returns accuracies [P, S] on the judged texts, and [P] on those of the control task.
        """
        replicates = _shufflings(self.targets, self.seed)
        shuffles = len(replicates)
        rows = self.judged
        if task is not None:
            given = task.labels.to(self.device)
            replicates = torch.cat([replicates, given[:, self.train]])
            rows = torch.cat([rows, task.judged.to(self.device)])
        fitted = self._fit(
            self.standard[:, self.train],
            replicates,
            strength[:, None],
            tolerance=_SHUFFLED_TOLERANCE,
        )
        # On the CPU: some accelerators have no float64.
        guesses = fitted.logits(self.standard[:, rows]).argmax(3).cpu()
        judged = len(self.judged)
        chance = self._accuracy_of(guesses[:, :shuffles, :judged], self.design.judged)
        if task is None:
            return chance, None
        found = [
            controls.balanced_accuracy(
                guesses[:, shuffles + draw, judged:],
                labels[task.judged],
                classes=self.design.classes,
            )
            for draw, labels in enumerate(task.labels)
        ]
        return chance, torch.stack(found).mean(dim=0)

    def _folds(self, strength: Tensor) -> LogisticFit:
        """Fit without each fold in turn."""
        folds = self.design.folds.to(self.device)[self.train]
        outside = folds[None] != torch.arange(FOLDS, device=self.device)[:, None]
        replicates = self.targets.expand(FOLDS, -1)
        weights = balanced_weights(replicates, classes=self.design.classes, keep=outside)
        fitted = self.standard[:, self.train]
        return self._fit(fitted, replicates, strength[:, None], weights=weights)

    def _random(self, weight: Tensor | None, strength: Tensor) -> Tensor:
        """Return the accuracy [P] from random directions; with `weight`, orthogonal to the probe's.

        Fitted at the probe's own penalty and judged on its texts, as shuffled labels are.
        """
        inputs = along_random(self.inputs, weight, count=self.design.classes, seed=self.seed)
        standard, _, _ = _standardised(inputs, self.train)
        fitted = self._fit(
            standard[:, self.train],
            self.targets[None],
            strength.repeat_interleave(DRAWS)[:, None],
            tolerance=_SHUFFLED_TOLERANCE,
        )
        guesses = fitted.logits(standard[:, self.judged])[:, 0].argmax(2).cpu()
        found = self._accuracy_of(guesses, self.design.judged)
        return found.view(-1, DRAWS).mean(dim=1)

    def _accuracy(self, predicted: Tensor, rows: Tensor) -> Tensor:
        return self._accuracy_of(predicted[..., rows], rows)

    def _accuracy_of(self, guesses: Tensor, rows: Tensor) -> Tensor:
        return controls.balanced_accuracy(
            guesses, self.design.labels[rows], classes=self.design.classes
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
    layers = {
        site: [index for index, place in enumerate(places) if place[0] == site]
        for site in {site for site, _ in places}
    }
    chance = {site: controls.chance_level(fits.shuffled[rows]) for site, rows in layers.items()}
    needed = {
        site: controls.margin_needed(
            fits.predicted[rows][:, design.judged], rival, labels, classes=classes
        )
        for site, rows in layers.items()
    }

    def score(index: int, site: Site, layer: int) -> ProbeScore:
        judged = accuracy["judged"][index]
        mean, high = chance[site]
        apart = {
            f"{name}_accuracy": accuracy[name][index]
            for name in ("dev", "test", "named", "unnamed", "other")
            if name in accuracy
        }
        apart.update(_beside(fits.beside, index))
        return ProbeScore(
            site=site,
            layer=layer,
            balanced_accuracy=judged,
            shuffled_95=high,
            shuffled_mean=mean,
            bag_accuracy=bag_accuracy,
            bag_error=float(errors[index]),
            bag_errors_needed=needed[site] if needed[site] < math.inf else None,
            trust=controls.verdict(
                accuracy=judged,
                shuffled_95=high,
                bag_margin=float(margins[index]),
                bag_error=float(errors[index]),
                needed=needed[site],
                may_trust=design.may_trust,
            ),
            **apart,
        )

    return tuple(score(index, site, layer) for index, (site, layer) in enumerate(places))


def _beside(found: Beside | None, index: int) -> dict[str, float]:
    """Return the fields of a score that say what the further controls reach; only those known."""
    if found is None:
        return {}
    control, task = float(found.control[index]), float(found.task[index])
    fields = {
        "control_accuracy": control,
        "selectivity": task - control,
        "random_accuracy": float(found.random[index]),
        "orthogonal_accuracy": float(found.orthogonal[index]),
    }
    return {name: value for name, value in fields.items() if value == value}


def out_of_fold(fits: PlaceFits, design: Design, row: int, h: Tensor, place: int) -> Tensor:
    """Return logits [tokens, K] of `h` [tokens, d] by a probe that was not fitted on text `row`."""
    fold = int(design.folds[row])
    centered = h - fits.center[place]
    if fold < 0:
        return centered @ fits.weight[place] + fits.bias[place]
    return centered @ fits.fold_weight[place, fold] + fits.fold_bias[place, fold]
