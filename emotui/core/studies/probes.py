"""At which layers and sites the emotion, and each appraisal, can be read (Tak et al.; METHODS 1.3,
3), with every number beside what it must beat.

One logistic regression at each layer and site, on standardised activations of the readout, its
penalty chosen on held-out groups and judged on others. Two targets, because they answer different
questions: the label of the dataset on all texts (`gold`), and what the model answered (`answer`),
which late layers must hold, since the answer is a linear function of the last residual. Appraisals
by ridge regression. Attention and MLP outputs are the tensors added to the residual, after Gemma's
post-norms; Tak et al. read them before, and keep only texts that the model answered rightly, which
makes late accuracy partly a tautology.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from emotui.core.engine import controls
from emotui.core.engine.appraisals import ridge
from emotui.core.engine.collect import Place, places_of
from emotui.core.engine.design import Design, design_of
from emotui.core.engine.labelled import Labelled, LabelledText, Row, Split, split_rows
from emotui.core.engine.place_fits import PlaceFits, scores_of
from emotui.core.engine.probe_controls import first_word_labels
from emotui.core.errors import UsageError
from emotui.core.records import EMBEDDING_LAYER
from emotui.core.studies.common.chunks import Chunks
from emotui.core.studies.common.dataset import Item
from emotui.core.studies.common.fits import fit_place
from emotui.core.studies.common.readings import Readings, readings, readings_bytes
from emotui.core.studies.common.resampling import balanced_interval
from emotui.core.studies.common.running import Cost, Implementation, Running
from emotui.core.studies.common.statistics import balanced, cohen_kappa, pearson
from emotui.core.studies.probe_controls import projected, random_weights, text_probe
from emotui.core.studies.probe_report import report
from emotui.core.studies.probe_results import (
    SITES,
    Agreement,
    AppraisalResult,
    Cosines,
    ProbesResult,
    ProjectedResult,
    TargetResult,
)
from emotui.core.studies.table import study_named

LEAST_OF_A_LABEL = study_named("probes").least_of_a_label
"""Texts of a label below which 15 % held out are fewer than five."""
_CONSTANT = 1e-5  # sd over size below which an input is constant
_LEAST_RATED = 20  # texts with all appraisals
_KEPT = ("strength", "center", "weight", "bias", "predicted", "shuffled")


def run(study: Running) -> ProbesResult:
    """Read all texts, fit every target at every place, with its controls."""
    places = places_of(study.model.n_layers)
    found = readings(study, places)
    items = study.dataset.items(found.index.tolist())
    splits = _splits(items, study.dataset.labels, study.run.seed)
    labels = study.dataset.labels
    answers = _answers(study, found)
    gold = _Target("gold", found.gold, labels, items, splits)
    words = _first_words(study, items, found.gold)
    targets = [
        gold,
        _Target("answer", answers, study.tokens.labels, items, splits),
        # Split by text: a word that is not among the training texts has nothing to be read from.
        _Target("first word", words, labels, items, _splits_of(words, items, study.run.seed)),
    ]
    results, fits = [], {}
    for target in targets:
        if target.design is None:
            continue
        fits[target.name] = _fitted(study, found, target, target.name)
        results.append(_judged(study, found, target, target.name, fits[target.name]))
    if "gold" not in fits:
        raise UsageError(
            "There are too few texts to judge probes on.",
            why=f"Fewer than two labels have {LEAST_OF_A_LABEL} texts: {_counts(gold)}."
            if len(gold.kept) < 2
            else f"{gold.refused} Held out for that are: {gold.held_out}.",
            todo="Give more texts, or raise --limit.",
        )
    if study.text("random") == "yes":
        with random_weights(study):
            empty = readings(study, places, stage="texts-random")
        name = "gold, random weights"
        results.append(_judged(study, empty, gold, name, _fitted(study, empty, gold, name)))
    appraisals, rows = _appraisals(study, found, items, splits)
    named = [study.tokens.labels.index(label) for label in labels]
    return ProbesResult(
        texts=len(items),
        unreadable=study.run.dataset.texts - len(items),
        model_accuracy=float(
            balanced(torch.tensor(named)[found.gold] == answers, found.gold, classes=len(labels))
        ),
        chance=1 / len(gold.kept),
        targets=tuple(results),
        not_fitted={t.name: _counts(t) for t in targets if t.design is None},
        words=text_probe([item.text for item in gold.items], gold.must_design, study),
        projections=_projections(study, found, gold, fits["gold"]),
        appraisal_source="author-assigned" if study.request.data == "bundled" else "the dataset",
        appraisals=appraisals,
        cosines=_cosines(study, found, gold, fits["gold"], rows),
        agreement=_agreement(items, study.tokens.labels),
    )


class _Target:
    """A label for each text that was read; texts of rare labels are left out."""

    def __init__(
        self,
        name: str,
        labels: Tensor,
        names: Sequence[str],
        items: Sequence[Item],
        splits: Sequence[Split],
    ) -> None:
        counts = Counter(label for label in labels.tolist() if label >= 0)
        self.name = name
        kept = [n for n in range(len(names)) if counts[n] >= LEAST_OF_A_LABEL]
        self.kept = tuple(names[n] for n in kept)
        self.counts = {names[n]: counts[n] for n in range(len(names)) if counts[n]}
        number = {label: position for position, label in enumerate(kept)}
        self.rows = torch.tensor(
            [row for row, label in enumerate(labels.tolist()) if label in number], dtype=torch.long
        )
        self.items = [items[row] for row in self.rows.tolist()]
        held = Counter(
            label for label, split in zip(labels.tolist(), splits, strict=True) if split == "test"
        )
        self.held_out = ", ".join(f"{names[label]} {held[label]}" for label in kept)
        """How many texts of each label are there to be judged on."""
        self.refused = ""
        """Why there is no design although two labels have enough texts."""
        self.design = self._design(labels, number, splits) if len(kept) > 1 else None

    def _design(
        self, labels: Tensor, number: dict[int, int], splits: Sequence[Split]
    ) -> Design | None:
        texts = tuple(
            LabelledText("", number[int(labels[row])], splits[row], item.named, item.group)
            for row, item in zip(self.rows.tolist(), self.items, strict=True)
        )
        try:
            return design_of(Labelled(texts, self.kept, self.name), seed=0)
        except UsageError as error:
            self.refused = error.why or error.what
            return None

    @property
    def must_design(self) -> Design:
        """The design of a target that has one."""
        assert self.design is not None
        return self.design


def _counts(target: _Target) -> str:
    return ", ".join(f"{label} {count}" for label, count in target.counts.items()) or "none"


def _splits(items: Sequence[Item], labels: Sequence[str], seed: int) -> list[Split]:
    """Return the split of each text: the corpus's own, else by group (METHODS 3)."""
    own: list[Split] = [item.split for item in items if item.split]
    if len(own) == len(items):
        return own
    rows = [Row("", labels[item.label], item.group, item.named, None) for item in items]
    return [row.split or "train" for row in split_rows(rows, seed)]


def _splits_of(labels: Tensor, items: Sequence[Item], seed: int) -> list[Split]:
    rows = [
        Row("", str(label), item.id, item.named, None)
        for label, item in zip(labels.tolist(), items, strict=True)
    ]
    return [row.split or "train" for row in split_rows(rows, seed)]


def _answers(study: Running, found: Readings) -> Tensor:
    """Return the model's answer among the labels of the dataset, as an index of the label set."""
    named = torch.tensor([study.tokens.labels.index(label) for label in study.dataset.labels])
    return named[found.scores[:, named].argmax(dim=1)]


def _first_words(study: Running, items: Sequence[Item], gold: Tensor) -> Tensor:
    """Return a label for each text that follows from its first word alone (Hewitt and Liang).

    Each word draws its label once, by the frequencies of the gold labels.
    """
    shares = torch.bincount(gold, minlength=len(study.dataset.labels)).double()
    texts = [item.text for item in items]
    return first_word_labels(texts, shares, study.generator("first words"))[0]


def _fitted(study: Running, found: Readings, target: _Target, name: str) -> Chunks:
    """Fit a target at every place, one chunk a place."""
    design = target.must_design
    stage = f"fits {name}".replace(", ", "-").replace(" ", "-")

    def work(number: int) -> dict[str, Tensor]:
        inputs = found.at(found.places[number])[target.rows]
        fits = fit_place(study, inputs, design)
        return {field: getattr(fits, field) for field in _KEPT}

    return study.stage(stage, len(found.places), work, phase=f"fitting {name}")


def _places_fits(chunks: Chunks) -> PlaceFits:
    columns: dict[str, Any] = {field: chunks.joined(field) for field in _KEPT}
    none = torch.empty(0)
    return PlaceFits(**columns, fold_weight=none, fold_bias=none)


def _judged(
    study: Running, found: Readings, target: _Target, name: str, chunks: Chunks
) -> TargetResult:
    design, fits = target.must_design, _places_fits(chunks)
    bag = fit_place(study, found.bag[target.rows], design)
    correct = fits.predicted[:, design.judged] == design.labels[design.judged]
    truth = design.labels[design.judged]
    low, high = balanced_interval(correct.T, truth, study.generator(f"intervals {name}"))
    return TargetResult(
        target=name,
        labels={label: target.counts[label] for label in target.kept},
        left_out={label: n for label, n in target.counts.items() if label not in target.kept},
        judged_on=design.judged_on,
        judged=len(truth),
        scores=scores_of(fits, bag.predicted[0], found.places, design),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        accuracy=tuple(correct.double().mean(dim=1).tolist()),
    )


def _projections(
    study: Running, found: Readings, target: _Target, chunks: Chunks
) -> ProjectedResult:
    """Read the target from random directions, free ones and ones orthogonal to the probe's."""
    design, layers = target.must_design, range(EMBEDDING_LAYER, study.model.n_layers)
    judged = design.labels[design.judged]
    weights = chunks.joined("weight")
    accuracy: dict[bool, list[float]] = {False: [], True: []}
    for layer in layers:
        place: Place = ("resid", layer)
        h = found.at(place)[target.rows].float()
        for orthogonal, column in accuracy.items():
            inputs = projected(
                h,
                weights[found.places.index(place)] if orthogonal else None,
                count=design.classes,
                generator=study.generator(f"directions {layer}"),
            )
            fits = fit_place(study, inputs, design)
            column.append(
                float(
                    controls.balanced_accuracy(
                        fits.predicted[0, design.judged], judged, classes=design.classes
                    )
                )
            )
    return ProjectedResult(
        layer=tuple(layers), random=tuple(accuracy[False]), without=tuple(accuracy[True])
    )


def _appraisals(
    study: Running, found: Readings, items: Sequence[Item], splits: Sequence[Split]
) -> tuple[tuple[AppraisalResult, ...], dict[int, Tensor]]:
    """Fit each appraisal at every place; also the rows of each layer of the residual stream."""
    names = study.dataset.appraisals
    targets = torch.tensor([item.appraisals for item in items], dtype=torch.float64)
    rated = [n for n in range(len(items)) if names and not bool(targets[n].isnan().any())]
    parts = {
        split: torch.tensor([k for k, n in enumerate(rated) if splits[n] == split])
        for split in ("train", "dev", "test")
    }
    if len(rated) < _LEAST_RATED or any(len(rows) < 2 for rows in parts.values()):
        return (), {}
    wanted = targets[rated]

    def work(number: int) -> dict[str, Tensor]:
        inputs = _varying(found.at(found.places[number])[rated].double())
        rows, score = ridge(inputs, wanted, parts)
        read = inputs[parts["test"]] @ rows.T
        return {
            "rows": rows[None],
            "score": score[None],
            "pearson": pearson(read, wanted[parts["test"]])[None],
        }

    chunks = study.stage("appraisals", len(found.places), work, phase="fitting the appraisals")
    score, r = chunks.joined("score"), chunks.joined("pearson")
    results = []
    for site in SITES:
        at = [n for n, place in enumerate(found.places) if place[0] == site]
        results += [
            AppraisalResult(
                name=name,
                site=site,
                layer=tuple(found.places[n][1] for n in at),
                r_squared=tuple(score[at, column].tolist()),
                pearson=tuple(_or_none(v) for v in r[at, column].tolist()),
            )
            for column, name in enumerate(names)
        ]
    rows = chunks.joined("rows")
    return tuple(results), {
        layer: rows[n] for n, (site, layer) in enumerate(found.places) if site == "resid"
    }


def _varying(inputs: Tensor) -> Tensor:
    """Return inputs [n, d], those that are constant but for rounding set to zero."""
    constant = inputs.std(dim=0) <= _CONSTANT * inputs.square().mean(dim=0).sqrt()
    return inputs.masked_fill(constant, 0)


def _or_none(value: float) -> float | None:
    return value if value == value else None


def _cosines(
    study: Running, found: Readings, target: _Target, chunks: Chunks, rows: dict[int, Tensor]
) -> Cosines | None:
    if not rows:
        return None
    design, weights = target.must_design, chunks.joined("weight")
    values, means = [], []
    for layer, appraisals in rows.items():
        place: Place = ("resid", layer)
        w = weights[found.places.index(place)].T.double()
        w = _unit(w - w.mean(dim=0))  # softmax leaves what all rows share undetermined
        values.append(tuple(map(tuple, (w @ _unit(appraisals.double()).T).tolist())))
        h = found.at(place)[target.rows][design.train].double()
        truth = design.labels[design.train]
        apart = torch.stack(
            [h[truth == k].mean(0) - h[truth != k].mean(0) for k in range(design.classes)]
        )
        means.append(tuple((w * _unit(apart)).sum(dim=1).tolist()))
    return Cosines(
        layer=tuple(rows),
        emotions=target.kept,
        appraisals=study.dataset.appraisals,
        values=tuple(values),
        means=tuple(means),
    )


def _unit(rows: Tensor) -> Tensor:
    unit: Tensor = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return unit


def _agreement(items: Sequence[Item], labels: Sequence[str]) -> Agreement | None:
    """Compare every two readers' labels, text by text; None where there are fewer than two."""
    raters = len(items[0].extra) if items else 0
    number = {label: n for n, label in enumerate(labels)}
    first, second = [], []
    for item in items:
        given = [number.get(word.lower(), -1) for word in item.extra]
        pairs = [(a, b) for a in range(raters) for b in range(raters) if a != b]
        first += [given[a] for a, b in pairs if given[a] >= 0 and given[b] >= 0]
        second += [given[b] for a, b in pairs if given[a] >= 0 and given[b] >= 0]
    if not first:
        return None
    one, other = torch.tensor(first), torch.tensor(second)
    return Agreement(
        raters=raters,
        pairs=len(first) // 2,
        accuracy=float(balanced(one == other, one, classes=len(labels))),
        kappa=_or_none(cohen_kappa(one, other, classes=len(labels))),
    )


def cost(study: Running) -> Cost:
    """Return one forward a text (two with random weights) and the fits of three targets."""
    model, texts = study.model, study.run.dataset.texts
    places = places_of(model.n_layers)
    runs = 2 if study.text("random") == "yes" else 1
    labels = len(study.dataset.labels)
    # A fit is about this many passes over its inputs: replicates times Newton steps times solver.
    passes = 3 * 30 * 40
    seconds = runs * len(places) * passes * texts * model.d_model * labels / 5e9
    return Cost(
        forwards=runs * texts,
        disk_bytes=runs * readings_bytes(study, len(places)),
        memory_bytes=40 * texts * model.d_model,
        seconds=seconds,
    )


STUDY = Implementation(run=run, report=report, cost=cost)
