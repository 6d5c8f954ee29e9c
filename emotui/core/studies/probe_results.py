"""What the study `probes` finds."""

from __future__ import annotations

import msgspec

from emotui.cache.probes import ProbeScore
from emotui.core.records import Site

SITES: tuple[Site, ...] = ("resid", "attn", "mlp")


class TargetResult(msgspec.Struct, frozen=True, kw_only=True):
    """How well one target can be read, place by place."""

    target: str
    """`gold`, `answer`, `first word` (a random label for each first word, METHODS 3.2), or one of
    these at a model with random weights."""
    labels: dict[str, int]
    """Label to texts used."""
    left_out: dict[str, int]
    """Labels with fewer than 34 texts."""
    judged_on: str
    judged: int
    scores: tuple[ProbeScore, ...]
    low: tuple[float, ...]
    """95 % bootstrap interval of the balanced accuracy over judged texts, of each score."""
    high: tuple[float, ...]
    accuracy: tuple[float, ...]
    """Plain accuracy on the same texts, as Tak et al. report it."""


class ProjectedResult(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of `gold` in a few dimensions of the residual, layer by layer."""

    layer: tuple[int, ...]
    random: tuple[float, ...]
    """Balanced accuracy from as many random directions as there are labels."""
    without: tuple[float, ...]
    """The same with random directions orthogonal to all of the probe's."""


class AppraisalResult(msgspec.Struct, frozen=True, kw_only=True):
    """How well one appraisal can be read, on held-out groups."""

    name: str
    site: Site
    layer: tuple[int, ...]
    r_squared: tuple[float, ...]
    pearson: tuple[float | None, ...]
    """None where the appraisal, or what is predicted, is constant."""


class Cosines(msgspec.Struct, frozen=True, kw_only=True):
    """Cosine of each emotion's probe row with each appraisal's regression row, residual stream."""

    layer: tuple[int, ...]
    emotions: tuple[str, ...]
    appraisals: tuple[str, ...]
    values: tuple[tuple[tuple[float, ...], ...], ...]
    """[layers, emotions, appraisals]."""
    means: tuple[tuple[float, ...], ...]
    """[layers, emotions]: of the probe row with the difference of means."""


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """How far readers agree with each other: what a probe cannot be expected to beat."""

    raters: int
    pairs: int
    """Pairs of labels compared."""
    accuracy: float
    """Mean balanced accuracy of one reader against another."""
    kappa: float | None


class ProbesResult(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    texts: int
    unreadable: int
    model_accuracy: float
    """Balanced accuracy of the model's own answers, all texts, over the labels of the dataset."""
    chance: float
    targets: tuple[TargetResult, ...]
    not_fitted: dict[str, str]
    """Targets that too few texts have two labels of, and how many have which."""
    words: float | None
    """Balanced accuracy of a probe on the counts of words, judged on the same texts as `gold`."""
    projections: ProjectedResult
    appraisal_source: str
    appraisals: tuple[AppraisalResult, ...]
    cosines: Cosines | None
    agreement: Agreement | None
