"""One SAE feature in detail: what it writes, what it fires on, what removing it here changes.

Frozen records, and what of them is told from two traces without torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from emotui.core.records import Answer, Effect, Site, TextRecord, Trace

SMALLEST_PROBABILITY = 1e-30
"""Below it a margin is not told: the logarithm of what was rounded to nothing."""


class WrittenToken(msgspec.Struct, frozen=True):
    """A token of the vocabulary that a feature's direction raises or lowers."""

    token: str
    """Uncleaned."""
    z: float
    """Its logit by the feature's direction alone, in standard deviations over the vocabulary from
    the mean: the size of a direction, which no norm layer keeps, plays no part."""


class Selectivity(msgspec.Struct, frozen=True):
    """How a feature tells one emotion's texts from those of the other labels, at the readout."""

    emotion: str
    texts: int
    active: float
    """Share of the emotion's texts on which the feature is active."""
    mean: float
    """Mean activation over the emotion's texts."""
    area: float
    """Under the ROC curve: the share of pairs of a text of the emotion and one of another in which
    the former activates the feature more, ties counting half."""


class FiringText(msgspec.Struct, frozen=True):
    """A text of the corpus that activates a feature strongly."""

    id: str
    emotion: str
    tokens: tuple[str, ...]
    """Those of the text, uncleaned; no template or special tokens."""
    activation: tuple[float, ...]
    """At each of these tokens."""


class CorpusReading(msgspec.Struct, frozen=True):
    """What a feature does on the bundled corpus."""

    template: str
    texts: int
    selectivity: tuple[Selectivity, ...]
    """One for each label of the set in force that the corpus has texts of."""
    label_set: str
    active: float
    """Share of all texts on any token of which the feature is active."""
    strongest: tuple[FiringText, ...]
    """By largest activation, the strongest first."""


class MeasuredSelectivity(msgspec.Struct, frozen=True):
    """What `emotui labels fit` measured of a feature."""

    emotion: str
    area: float
    """On the first half of the texts."""
    confirmed: float
    """On the second half."""
    p: float
    """Family-wise."""
    breadth: float
    named: bool
    specific: bool


class RemovedHere(msgspec.Struct, frozen=True):
    """The run with the feature ablated at one token, beside the run without that.

    `layer`, `emotion`, `before` and `after` are columns: the readout probe at the readout, residual
    stream, from the feature's layer on.
    """

    edit: str
    trace: str
    """The id of the trace with the ablation."""
    answer_before: dict[str, float] = {}
    answer_after: dict[str, float] = {}
    layer: tuple[int, ...] = ()
    emotion: tuple[str, ...] = ()
    unit: str = "z"
    """`z`, or `logit` where the probe has no neutral texts."""
    before: tuple[float, ...] = ()
    after: tuple[float, ...] = ()
    effects: tuple[Effect, ...] = ()
    """Each beside its controls."""


class FeatureHere(msgspec.Struct, frozen=True):
    """A feature on the tokens of one run."""

    trace: str
    text: TextRecord
    edits: tuple[str, ...]
    activation: tuple[float, ...]
    """At every token, the edits in force; at special tokens too, where an SAE says little."""
    position: int
    """The token that is looked at."""
    metric: str
    """What is attributed to; "" where nothing is."""
    attribution: float | None
    """Estimated change of the metric were the feature ablated here; None where not computed."""
    removed: RemovedHere | None
    """None where the feature is not active here, or it could not be: `note` says why."""
    note: str = ""


class FeatureDetail(msgspec.Struct, frozen=True, kw_only=True):
    """Everything known of one feature, and of it on one text."""

    name: str
    """As the edit language writes it."""
    sae: str
    source: str
    """A release, or the name of a file or folder, without its path."""
    site: Site
    layer: int
    index: int
    width: int
    """Features of its SAE."""
    label: str
    """As lists of features show it."""
    label_origin: str = ""
    """Where it comes from, in words; an explanation in it has an origin of its own."""
    explanation: str = ""
    """What somebody else calls it; "" without one."""
    origin: str = ""
    """Where the explanation comes from."""
    mismatch: str = ""
    """Where the explanation names an emotion that was not measured, else ""."""
    measured: MeasuredSelectivity | None = None
    """None where `emotui labels fit` was not run for this SAE and model."""
    promoted: tuple[WrittenToken, ...] = ()
    suppressed: tuple[WrittenToken, ...] = ()
    page: str | None = None
    """The address of its page at Neuronpedia; None where its SAE is not known there."""
    corpus: CorpusReading | None = None
    """None where it was not asked for."""
    here: FeatureHere | None = None
    """None without a text."""


def page_of(neuronpedia: str | None, index: int) -> str | None:
    """Return the address of a feature's page from its SAE's id at Neuronpedia."""
    return f"https://www.neuronpedia.org/{neuronpedia}/{index}" if neuronpedia else None


def margin_of(answer: Mapping[str, float], emotion: str) -> float | None:
    """Return a label's logit minus the mean of the others', from the labels' probabilities.

    Of labels read by one token these are the model's own logits, of whole labels their
    log-probabilities. None for an unknown label, fewer than two, or a probability of nothing.
    """
    others = [value for label, value in answer.items() if label != emotion]
    own = answer.get(emotion)
    if own is None or not others or min(own, *others) < SMALLEST_PROBABILITY:
        return None
    return math.log(own) - sum(map(math.log, others)) / len(others)


def removed_between(before: Trace, after: Trace, *, edit: str, layer: int) -> RemovedHere:
    """Return what an ablation changed, from the trace before it and the one with it."""
    first, second = _readings(before, layer), _readings(after, layer)
    places = [place for place in first if place in second]
    standard = all(first[place][1] and second[place][1] for place in places)

    def value(found: tuple[float, bool, float]) -> float:
        return found[0] if standard else found[2]

    return RemovedHere(
        edit=edit,
        trace=after.id,
        answer_before=_labels(before.answer),
        answer_after=_labels(after.answer),
        layer=tuple(place[0] for place in places),
        emotion=tuple(place[1] for place in places),
        unit="z" if standard else "logit",
        before=tuple(value(first[place]) for place in places),
        after=tuple(value(second[place]) for place in places),
        effects=after.effects,
    )


def _labels(answer: Answer | None) -> dict[str, float]:
    return {} if answer is None else dict(answer.labels)


def _readings(trace: Trace, lowest: int) -> dict[tuple[int, str], tuple[float, bool, float]]:
    """Return the readout probes' z (or value), whether it is a z, and value, by layer, emotion."""
    wanted = {probe.id for probe in trace.probes if probe.kind == "readout"}
    columns, readout = trace.readouts, trace.text.readout
    found: dict[tuple[int, str], tuple[float, bool, float]] = {}
    rows = zip(
        columns.probe, columns.site, columns.layer, columns.position, columns.emotion, strict=True
    )
    for row, (probe, site, layer, position, emotion) in enumerate(rows):
        if probe in wanted and site == "resid" and position == readout and layer >= lowest:
            z, plain = columns.z[row], columns.value[row]
            found.setdefault((layer, emotion), (plain if z is None else z, z is not None, plain))
    return dict(sorted(found.items(), key=lambda item: item[0][0]))
