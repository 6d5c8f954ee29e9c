"""Appraisal directions of the residual at the readout, and moving along some with others fixed.

One ridge regression a layer and appraisal (METHODS 1.3), fitted on the bundled situations and
their author-assigned values, kept in the cache; beside them the R^2 of values shuffled among the
texts and of a bag of embeddings. For changed rows W_c with signs c and kept rows
W_k: v = sum_a c_a (I - P) w_a, P the projection on the span of W_k by QR (METHODS 1.7, 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load as tensors_from_bytes
from torch import Tensor

from emotui.cache.probes import AppraisalScore
from emotui.core.corpus import APPRAISALS, Situation, load_situations
from emotui.core.edits import STAYED
from emotui.core.engine.collect import places_of, text_mask, visit
from emotui.core.engine.controls import CHANCE_QUANTILE, SHUFFLES
from emotui.core.engine.packed import tensors_to_bytes
from emotui.core.engine.statistics import statistics_key
from emotui.core.errors import EditError
from emotui.core.text import Template, clean

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.engine.capture import Job
    from emotui.core.engine.model import LoadedModel

MAX_CONDITION = 1e4
"""Largest condition number of the kept rows; above it nothing sensible is left (METHODS 4)."""
LEAST_SURVIVING = 1e-3
"""Smallest share of the norm that must survive the projection."""
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""Penalties tried, as multiples of the mean eigenvalue of the inputs' second moments."""

_OTHER_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "predictability": "predict_event",
        "self_agency": "self_responsblt",
        "other_agency": "other_responsblt",
        "chance_agency": "chance_responsblt",
        "situational_control": "chance_control",
    }
)
"""What appraisals are also called, to their names in the corpus (those of crowd-enVENT)."""


def appraisal_named(word: str) -> str:
    """Return the corpus's name of an appraisal, `-` taken for `_`; EditError says what exists."""
    name = word.replace("-", "_")
    name = _OTHER_NAMES.get(name, name)
    if name not in APPRAISALS:
        raise EditError(
            f"There is no appraisal called {clean(word)!r}.",
            why=f"There are: {', '.join(APPRAISALS)}; also {', '.join(_OTHER_NAMES)}.",
            todo=STAYED,
        )
    return name


@dataclass(frozen=True)
class Appraisals:
    """The directions of every layer of one model under one template, on the CPU."""

    rows: Tensor
    """[layers, appraisals, d_model], float32: what a unit of the appraisal adds to the readout of
    the ridge regression, so not of unit norm."""
    score: Tensor
    """[layers, appraisals], R^2 on held-out topics."""
    scores: tuple[AppraisalScore, ...] = ()
    """The same with its controls, by layer and appraisal."""

    def row(self, layer: int, name: str) -> Tensor:
        """Return one direction, [d_model]."""
        return self.rows[layer, APPRAISALS.index(name)]

    def r_squared(self, layer: int, name: str) -> float:
        """Return how much of an appraisal its regression explains on held-out topics."""
        return float(self.score[layer, APPRAISALS.index(name)])


@dataclass(frozen=True)
class Modulation:
    """A unit direction along changed appraisals, and how much of it keeping others left."""

    unit: Tensor
    """[d_model], float64 on the CPU."""
    surviving: float
    """||v|| over the norm of the same sum without projection."""
    along_kept: tuple[float, ...] = ()
    """Cosine with each kept direction: 0 up to rounding, unless it was made as released."""


def modulation(
    changed: Sequence[tuple[int, Tensor]], kept: Sequence[Tensor], *, released: bool = False
) -> Modulation:
    """Return the direction that moves `changed` (sign, row) and holds `kept` rows where they are.

    `released`: as the published release does, without the projection; how much of the norm would
    have survived it is told all the same. Raises EditError where the kept rows are as good as
    dependent (condition number over 1e4), or where nothing of the direction is left.
    """
    wanted = torch.stack([sign * row.double() for sign, row in changed]).sum(dim=0)
    left = wanted
    if kept:
        rows = torch.stack([row.double() / row.double().norm() for row in kept])
        sizes = torch.linalg.svdvals(rows)
        condition = float(sizes[0] / sizes[-1].clamp_min(1e-300))
        if not condition <= MAX_CONDITION:
            raise EditError(
                "The appraisals to keep cannot be told apart.",
                why=f"The condition number of their directions is {condition:.3g}; at most "
                f"{MAX_CONDITION:.0e} is taken.",
                todo=f"Keep fewer of them. {STAYED}",
            )
        basis = torch.linalg.qr(rows.T).Q
        left = wanted - basis @ (basis.T @ wanted)
    surviving = float(left.norm() / wanted.norm().clamp_min(1e-300))
    if not surviving >= LEAST_SURVIVING:
        raise EditError(
            "Nothing is left of the direction once the others are kept.",
            why=f"{surviving:.2g} of its norm survives: what changes lies in the span of what is "
            "kept, or cancels.",
            todo=f"Keep fewer appraisals, or change others. {STAYED}",
        )
    unit = (wanted if released else left) / (wanted if released else left).norm()
    along = tuple(float(unit @ (row.double() / row.double().norm())) for row in kept)
    return Modulation(unit, surviving, along)


def appraisal_directions(
    model: LoadedModel, template: Template, store: Store, job: Job
) -> Appraisals:
    """Return the directions for a model and template, from the cache where they are."""
    key = statistics_key(model, f"appraisals 2:{template.name}")
    stored = store.get_entry("statistics", key)
    if stored is None:
        tensors = _fitted(model, template, job)
        store.put_entry("statistics", key, tensors_to_bytes(tensors))
    else:
        tensors = tensors_from_bytes(stored)
    return Appraisals(tensors["rows"], tensors["score"], _scores(tensors))


def _scores(tensors: Mapping[str, Tensor]) -> tuple[AppraisalScore, ...]:
    return tuple(
        AppraisalScore(
            appraisal=name,
            layer=layer,
            r_squared=float(tensors["score"][layer, index]),
            dev_r_squared=float(tensors["dev"][layer, index]),
            shuffled_95=float(tensors["shuffled_95"][index]),
            bag_r_squared=float(tensors["bag"][index]),
        )
        for layer in range(len(tensors["score"]))
        for index, name in enumerate(APPRAISALS)
    )


def appraisal_texts() -> tuple[Situation, ...]:
    """Return one half of every pair of the corpus, with and without emotion words in turn."""
    situations = load_situations()
    return tuple(situations[2 * pair + pair % 2] for pair in range(len(situations) // 2))


def _fitted(model: LoadedModel, template: Template, job: Job) -> dict[str, Tensor]:
    situations = appraisal_texts()
    texts = [
        model.reader.read(one.text, template, context_length=model.context_length)
        for one in situations
    ]
    places = places_of(model.n_layers)
    inputs = torch.empty(model.n_layers, len(texts), model.d_model)
    bag = torch.empty(len(texts), model.d_model)
    masks = [torch.tensor(text_mask(text)) for text in texts]

    def receive(members: list[int], place: int, tensor: Tensor) -> None:
        site, layer = places[place]
        if site == "resid" and layer >= 0:
            inputs[layer, members] = tensor[:, -1].float().cpu()
        elif site == "resid":
            for row, text in enumerate(members):
                bag[text] = tensor[row].cpu()[masks[text]].float().mean(dim=0)

    visit(model, texts, receive, job=job, phase="reading the corpus for appraisals")
    targets = torch.tensor([one.appraisals for one in situations], dtype=torch.float64)
    splits = {
        name: torch.tensor([i for i, one in enumerate(situations) if one.split == name])
        for name in ("train", "dev", "test")
    }
    found = []
    for layer in range(model.n_layers):
        job.check()
        job.progress("fitting the appraisals", layer, model.n_layers)
        found.append(regression(inputs[layer], targets, splits, shuffles=SHUFFLES))
    job.progress("fitting the appraisals", model.n_layers, model.n_layers)
    # The best layer of each shuffling: that pays for looking at all of them.
    by_chance = torch.stack([one.shuffled for one in found]).amax(dim=0)
    return {
        "rows": torch.stack([one.rows for one in found]).float(),
        "score": torch.stack([one.score for one in found]).float(),
        "dev": torch.stack([one.dev for one in found]).float(),
        "shuffled_95": by_chance.quantile(CHANCE_QUANTILE, dim=0).float(),
        "bag": regression(bag, targets, splits).score.float(),
    }


@dataclass(frozen=True)
class Regression:
    """Ridge regressions of A appraisals on d inputs, float64."""

    rows: Tensor
    """[A, d]."""
    dev: Tensor
    """[A], R^2 on `dev`."""
    score: Tensor
    """[A], R^2 on `test`."""
    shuffled: Tensor
    """[shuffles, A], the same after fitting on values shuffled among the training texts, at the
    same penalty; all appraisals of a text stay together."""


def ridge(inputs: Tensor, targets: Tensor, splits: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return ridge weights [appraisals, d] and R^2 on `test` [appraisals]; see `regression`."""
    found = regression(inputs, targets, splits)
    return found.rows, found.score


def regression(
    inputs: Tensor, targets: Tensor, splits: Mapping[str, Tensor], *, shuffles: int = 0
) -> Regression:
    """Fit `targets` [n, appraisals] on `inputs` [n, d] by ridge regression, on the rows of `train`.

    The penalty is chosen on `dev` by mean R^2. Inputs are centred and not scaled: scaling each
    would turn the directions.
    """
    x, y = inputs.double(), targets.double()
    train = splits["train"]
    x = x - x[train].mean(dim=0)
    centre = y[train].mean(dim=0)
    u, sizes, v = torch.linalg.svd(x[train], full_matrices=False)
    coordinates = u.T @ (y[train] - centre)
    scale = sizes.square().mean()

    def weights(strength: float, coordinates: Tensor) -> Tensor:
        # Inputs that do not vary (the embedding of a fixed prompt) have weights of zero, not NaN.
        shrunk = sizes / (sizes.square() + strength * scale).clamp_min(1e-300)
        fit: Tensor = (v.T * shrunk) @ coordinates
        return fit

    def score(fit: Tensor, rows: Tensor) -> Tensor:
        missed = (y[rows] - centre - x[rows] @ fit).square().sum(dim=0)
        around = (y[rows] - y[rows].mean(dim=0)).square().sum(dim=0)
        explained: Tensor = 1 - missed / around.clamp_min(1e-12)
        return explained

    fits = {strength: weights(strength, coordinates) for strength in STRENGTHS}
    best = max(fits, key=lambda strength: float(score(fits[strength], splits["dev"]).mean()))
    generator = torch.Generator().manual_seed(0)
    by_chance = []
    for _ in range(shuffles):
        order = torch.randperm(len(train), generator=generator)
        fit = weights(best, u.T @ (y[train][order] - centre))
        by_chance.append(score(fit, splits["test"]))
    return Regression(
        rows=fits[best].T.contiguous(),
        dev=score(fits[best], splits["dev"]),
        score=score(fits[best], splits["test"]),
        shuffled=torch.stack(by_chance) if by_chance else torch.empty(0, y.shape[1]),
    )
