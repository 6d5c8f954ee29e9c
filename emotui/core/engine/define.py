"""An emotion of the user's own: a direction from a few texts, or from a word, as a probe file.

At every place, with m+ the mean of the texts, m0 that of the corpus's neutral texts and s the
latter's standard deviation by coordinate: w = (m+ - m0) / s^2, scaled so that the logit is +1 at m+
and -1 at m0. Judged by leaving out each text in turn (and each fold of neutral texts, by topic);
controls as in any fit: shuffled labels and the same direction in the bag of embeddings.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import torch
from torch import Tensor

from emotui.cache.probes import ProbeCard, ProbeScore
from emotui.core.corpus import load_situations
from emotui.core.engine import controls
from emotui.core.engine.collect import Place, collect
from emotui.core.engine.defined import KINDS, defined_card, defined_probe
from emotui.core.engine.design import FOLDS, Design
from emotui.core.engine.labelled import NEUTRAL, labels_of
from emotui.core.engine.place_fits import PlaceFits
from emotui.core.errors import UsageError
from emotui.core.protocol import Defined, DefineRequest
from emotui.core.records import ProbeKind
from emotui.core.text import clean, template_named

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.engine.capture import Job
    from emotui.core.engine.model import LoadedModel

LEAST_TEXTS = 5
DEFINE_VERSION = 1
"""Raised whenever the same definition would give another probe."""
FRAMES = (
    *("I feel {}.", "She was full of {}.", "What he felt was {}.", "It was a moment of {}."),
    *("There was {} in their faces.", "They spoke of nothing but {}.", "This is about {}."),
    *("{} came over me.", "All that was left was {}.", "The letter was full of {}."),
)
"""The texts that a word is put into."""
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")


def checked_name(name: str, label_set: str) -> str:
    """Return the name of a new emotion; UsageError where it cannot be one, or is in the set."""
    name = name.strip().lower()
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"An emotion cannot be called {clean(name)[:40]!r}.",
            todo="Use letters, digits, - and _, beginning with a letter; at most 40.",
        )
    if name in labels_of(label_set):
        raise UsageError(
            f"{name} is a label of {label_set} already.",
            why="Its probes are fitted on the corpus; two rows of one name could not be told "
            "apart.",
            todo="Choose another name.",
        )
    return name


@dataclass(frozen=True)
class _Judged:
    """What leaving out says of P places: n+ texts first, then n0 neutral ones."""

    accuracy: Tensor
    """[P], balanced."""
    predicted: Tensor
    """[P, n+ + n0], 1 where the text was told to be of the emotion."""


def define_emotion(request: DefineRequest, model: LoadedModel, store: Store, job: Job) -> Defined:
    """Fit the direction at every place, judge it, and store it as a readout and a token probe.

    UsageError for a name or texts that cannot be used; TextError for a text the model cannot read.
    """
    started, before = time.monotonic(), model.forwards
    name = checked_name(request.name, request.label_set)
    given, data = _given(request, model)
    template = template_named(request.template)
    neutral = [item for item in load_situations() if item.emotion == NEUTRAL]
    corpus = [s.text for s in load_situations() if s.emotion == name and not s.named]
    judging = [text for text in request.other if text.strip()] or corpus
    texts = [*given, *(item.text for item in neutral), *judging]
    records = [
        model.reader.read(text, template, context_length=model.context_length) for text in texts
    ]
    topics = sorted({item.topic for item in neutral})
    fold_of = [topics.index(item.topic) % FOLDS for item in neutral]
    design = _design(len(given), len(neutral), len(judging), fold_of)
    collected = collect(model, records, job=job)
    inputs = {"token": collected.mean.float(), "readout": collected.readout.float()}
    bag_place = collected.places.index(("resid", -1))
    bag = _left_out(inputs["token"][bag_place, None], design).predicted[0]
    made, cards = [], []
    for kind in KINDS:
        job.check()
        job.progress(f"fitting the {kind} direction")
        fits, judged = _fits(inputs[kind], design), _left_out(inputs[kind], design)
        scores = _scores(inputs[kind], fits, judged, bag, design, collected.places, request.seed)
        card = defined_card(
            request,
            model,
            name=name,
            kind=kind,
            digest=_digest(request, model, name, kind, given),
            data=data,
            n_texts=len(given),
            judged_on=_judged_on(request, name, other=scores[0].other_accuracy is not None),
            scores=scores,
        )
        made.append(
            defined_probe(fits, card, inputs[kind], design, records, collected.places, model, job)
        )
        cards.append(card)
    job.check()
    for probe in made:
        store.put_probe(probe.id, probe.to_bytes(), probe.file.card)
    return Defined(
        name=name,
        probe_ids=tuple(probe.id for probe in made),
        best=tuple(_best(card) for card in cards),
        texts=len(given),
        data=data,
        judged_on=cards[0].judged_on,
        forwards=model.forwards - before,
        seconds=time.monotonic() - started,
    )


def _given(request: DefineRequest, model: LoadedModel) -> tuple[list[str], str]:
    """Return the texts of the definition, and what a reader is told of them."""
    if (request.word is None) == (not request.texts):
        raise UsageError(
            "An emotion is defined from a word or from texts.",
            todo=f"Give one word, or at least {LEAST_TEXTS} texts.",
        )
    if request.word is not None:
        word = " ".join(request.word.split())
        if not word:
            raise UsageError("The word is empty.", todo="Give a word, such as grief.")
        ids = model.reader.continuation_ids(f" {word}")
        pieces = " ".join(repr(clean(model.reader.string(token))) for token in ids)
        split = (
            "one token"
            if len(ids) == 1
            else f"the tokenizer splits it into {len(ids)}: {pieces}; all of them are read"
        )
        return (
            [frame.format(word).strip() for frame in FRAMES],
            f"the word {clean(word)[:40]!r} in {len(FRAMES)} sentences ({split})",
        )
    texts = list(dict.fromkeys(" ".join(text.split()) for text in request.texts if text.strip()))
    if len(texts) < LEAST_TEXTS:
        raise UsageError(
            f"{len(texts)} different texts are too few to define an emotion from.",
            why="A direction from fewer says more about these texts than about an emotion.",
            todo=f"Give at least {LEAST_TEXTS}, or one word in their place.",
        )
    return texts, f"{len(texts)} texts of the user's against {NEUTRAL} situations"


def _design(given: int, neutral: int, judging: int, fold_of: list[int]) -> Design:
    count = given + neutral
    rows = torch.arange(count + judging)
    labels = torch.ones(count + judging, dtype=torch.long)
    labels[given:count] = 0
    folds = torch.full((count + judging,), -1)
    folds[given:count] = torch.tensor(fold_of)
    return Design(
        labels=labels,
        classes=2,
        train=rows[:count],
        dev=rows[:count],
        judged=rows[:count],
        subsets={"other": rows[count:]} if judging else {},
        judged_on="",
        folds=folds,
        neutral=rows[given:count],
    )


def _directions(positive: Tensor, neutral: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights and centers [..., d] of the means [..., d]."""
    difference = positive - neutral
    raw = difference / variance
    length = (raw * difference).sum(-1, keepdim=True)
    weight = torch.where(length > 0, 2 * raw / length.clamp(min=1e-30), 0.0)
    return weight, (positive + neutral) / 2


def _variance(neutral: Tensor) -> Tensor:
    """Return [P, d], never far below the place's mean: a constant input must not decide."""
    variance = neutral.var(dim=1)
    return variance.clamp_min(0) + 0.01 * variance.mean(-1, keepdim=True) + 1e-12


def _left_out(inputs: Tensor, design: Design) -> _Judged:
    """Leave out each text of the emotion, and each fold of neutral texts; `inputs` [P, n, d]."""
    given = design.labels[design.train] == 1
    return _leaving_out(
        inputs[:, design.train][:, given],
        inputs[:, design.neutral],
        design.folds[design.neutral],
    )


def _leaving_out(positive: Tensor, neutral: Tensor, folds: Tensor) -> _Judged:
    variance = _variance(neutral)
    count = positive.shape[1]
    mean, floor = positive.mean(1), neutral.mean(1)
    without = (count * mean[:, None] - positive) / (count - 1)
    weight, center = _directions(without, floor[:, None], variance[:, None])
    hits = ((positive - center) * weight).sum(-1) > 0
    told = torch.zeros(neutral.shape[:2], dtype=torch.bool)
    for fold in range(FOLDS):
        inside = folds == fold
        if not bool(inside.any()):
            continue
        weight, center = _directions(mean, neutral[:, ~inside].mean(1), variance)
        scores = ((neutral[:, inside] - center[:, None]) * weight[:, None]).sum(-1)
        told[:, inside] = scores > 0
    accuracy = (hits.double().mean(1) + (~told).double().mean(1)) / 2
    return _Judged(accuracy, torch.cat([hits, told], dim=1).long())


def _fits(inputs: Tensor, design: Design) -> PlaceFits:
    """Return the directions at every place, and those without each fold of neutral texts."""
    given = inputs[:, design.train][:, design.labels[design.train] == 1].mean(1)
    neutral, folds = inputs[:, design.neutral], design.folds[design.neutral]
    variance = _variance(neutral)
    weight, center = _directions(given, neutral.mean(1), variance)
    weights, biases = [], []
    for fold in range(FOLDS):
        one, middle = _directions(given, neutral[:, folds != fold].mean(1), variance)
        weights.append(one)
        biases.append(((center - middle) * one).sum(-1))
    places = len(weight)
    return PlaceFits(
        strength=torch.ones(places),
        center=center,
        weight=weight.unsqueeze(-1),
        bias=torch.zeros(places, 1),
        fold_weight=torch.stack(weights, dim=1).unsqueeze(-1),
        fold_bias=torch.stack(biases, dim=1).unsqueeze(-1),
        predicted=torch.empty(places, 0),
        shuffled=torch.empty(places, 0),
    )


def _shuffled(inputs: Tensor, design: Design, seed: int) -> Tensor:
    """Return [P, shuffles]: the accuracy where the texts of the emotion are drawn from all."""
    pool = inputs[:, design.train]
    count = int((design.labels[design.train] == 1).sum())
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(controls.SHUFFLES):
        order = torch.randperm(pool.shape[1], generator=generator)
        folds = torch.arange(pool.shape[1] - count) % FOLDS
        judged = _leaving_out(pool[:, order[:count]], pool[:, order[count:]], folds)
        found.append(judged.accuracy)
    return torch.stack(found, dim=1)


def _scores(
    inputs: Tensor,
    fits: PlaceFits,
    judged: _Judged,
    bag: Tensor,
    design: Design,
    places: tuple[Place, ...],
    seed: int,
) -> tuple[ProbeScore, ...]:
    shuffled = _shuffled(inputs, design, seed)
    labels = design.labels[design.judged]
    judged_elsewhere = "other" in design.subsets
    bag_accuracy = float(controls.balanced_accuracy(bag, labels, classes=2))
    margins, errors = controls.margin(judged.predicted, bag, labels, classes=2)
    layers = {
        site: [index for index, place in enumerate(places) if place[0] == site]
        for site in {site for site, _ in places}
    }
    chance = {site: controls.chance_level(shuffled[rows]) for site, rows in layers.items()}
    needed = {
        site: controls.margin_needed(judged.predicted[rows], bag, labels, classes=2)
        for site, rows in layers.items()
    }
    other: list[float] | None = None
    if judged_elsewhere:
        h = inputs[:, design.subsets["other"]] - fits.center[:, None]
        hits = (h @ fits.weight).squeeze(-1) > 0
        count = int((labels == 1).sum())
        rejected = (judged.predicted[:, count:] == 0).double().mean(1)
        other = ((hits.double().mean(1) + rejected) / 2).tolist()
    scores = []
    for index, (site, layer) in enumerate(places):
        mean, high = chance[site]
        own = float(judged.accuracy[index])
        # Texts of another source decide where there are some.
        accuracy = own if other is None else other[index]
        trust = controls.verdict(
            accuracy=min(own, accuracy),
            shuffled_95=high,
            bag_margin=float(margins[index]),
            bag_error=float(errors[index]),
            needed=needed[site],
            # Told from neutral texts of another hand, a direction may be one of style.
            may_trust=judged_elsewhere,
        )
        scores.append(
            ProbeScore(
                site=site,
                layer=layer,
                balanced_accuracy=accuracy,
                shuffled_95=high,
                shuffled_mean=mean,
                bag_accuracy=bag_accuracy,
                bag_error=float(errors[index]),
                bag_errors_needed=needed[site] if needed[site] < math.inf else None,
                dev_accuracy=own,
                other_accuracy=None if other is None else other[index],
                trust=trust,
            )
        )
    return tuple(scores)


def _digest(
    request: DefineRequest, model: LoadedModel, name: str, kind: ProbeKind, given: list[str]
) -> str:
    """Return the hash of all that the directions depend on."""
    identity = hashlib.sha256()
    template = msgspec.json.encode(template_named(request.template)).decode()
    for part in (
        *(str(DEFINE_VERSION), model.fingerprint, model.dtype_name, model.device.type, kind),
        *(name, template, str(request.seed), *given, "other", *request.other),
    ):
        identity.update(part.encode(errors="surrogatepass") + b"\0")
    return identity.hexdigest()


def _judged_on(request: DefineRequest, name: str, *, other: bool) -> str:
    own = "its own texts, each left out in turn"
    if request.other:
        return f"{len(request.other)} texts of another source, and {own}"
    if other:
        return f"corpus situations of {name} without emotion words, and {own}"
    return f"{own}; without texts of another source it is never trusted"


def _best(card: ProbeCard) -> tuple[int, float, str]:
    resid = [score for score in card.scores if score.site == "resid"]
    best = max(resid, key=lambda score: (score.dev_accuracy or 0.0, -score.layer))
    return best.layer, best.dev_accuracy or 0.0, best.trust
