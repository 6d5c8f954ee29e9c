"""What is found out beside a trace: its last edit on other texts, its text without emotion words.

Frozen records like those of `core.records`; a finding is kept in the cache under the trace's id
and changes nothing of the trace.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class OtherTexts(msgspec.Struct, frozen=True):
    """The texts an edit was repeated on, as columns in the order they were run."""

    id: tuple[str, ...] = ()
    """Of the situation in the bundled corpus."""
    emotion: tuple[str, ...] = ()
    positions: tuple[str, ...] = ()
    """Where the last edit acted: a token, a range `3-7` of neighbours, or several with commas;
    "" where the feature is active nowhere."""
    active: tuple[bool, ...] = ()
    """Whether the edited feature was active there; as `acted` for an edit of no feature."""
    acted: tuple[bool, ...] = ()
    """Whether the edit changed anything there."""
    deltas: dict[str, tuple[float, ...]] = {}
    """Metric to its change by the last edit (after - before), a value a text; 0 where it did not
    act."""


class Spread(msgspec.Struct, frozen=True):
    """A change over several texts."""

    texts: int
    median: float | None
    """None without texts, as the interval."""
    low: float | None
    high: float | None
    """Ends of the 95 % percentile bootstrap interval of the median."""
    same_sign: int
    """Texts on which the change has the sign it has on the trace's own text."""


class Rivals(msgspec.Struct, frozen=True):
    """Random directions, of the norm of what the edit adds at each place of each text."""

    name: Literal["any_way", "shaped_like_data"]
    """`any_way`: drawn uniformly; where the edit's feature was picked, each is the best of
    `Verification.picked_from`. `shaped_like_data`: drawn with the covariance of the activations."""
    medians: tuple[float, ...]
    """Medians of each direction's change over the texts on which the edit acted, times the sign
    it had on the trace's own text: positive kept its sign."""
    same_sign: tuple[float, ...]
    """The share of these texts on which each direction has that sign."""
    rank: int | None
    """1 + how many of these medians are at least as large as the edit's own, which is counted in
    the same way; None where the edit acted on no text."""


class Repeated(msgspec.Struct, frozen=True):
    """One metric's change by the last edit, on this text and on others."""

    metric: str
    here: float
    """On the trace's own text: after - before."""
    acted: Spread
    """Over the texts on which the edit changed anything."""
    every: Spread
    """Over all texts."""
    controls: tuple[Rivals, ...]
    verified: bool | None
    """Whether the interval keeps the sign it has here and no uniform direction does as much; None
    where it was not judged, see `verdict`."""
    verdict: str


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """The last edit of a trace, the earlier ones in force, repeated on other texts."""

    edits: tuple[str, ...]
    source: str
    """Which texts, in words."""
    positions: str
    """How the positions of the edits carry to other texts, in words."""
    asked: int
    """How many texts were asked for."""
    complete: bool
    """Whether all of them, or all there are, were done; False where it was cancelled."""
    metric: str
    """What the edit is judged by, and its controls were picked by."""
    picked_from: int
    """Uniform directions that each of those kept was picked from, by its change of `metric` on
    the trace's own text: as many as there were features to pick the edit's from; 1: not picked."""
    seed: int
    others: OtherTexts
    metrics: tuple[Repeated, ...]
    notes: tuple[str, ...] = ()


class Masked(msgspec.Struct, frozen=True):
    """A text with some words masked, read again."""

    words: tuple[str, ...]
    """As they stand in the text; none for the text as it is."""
    readout: float | None
    """The readout probe's reading of the emotion; None without a probe that knows it."""
    answer: float
    """The probability of the emotion among the labels."""


class Lost(msgspec.Struct, frozen=True):
    """How much of one reading goes with the emotion words, beside other words."""

    metric: Literal["readout", "answer"]
    share: float | None
    """(before - after) / before; None where before is not above `least`: nothing to lose."""
    controls: tuple[float, ...]
    """The same share for each set of other words; empty where `share` is None."""
    rank: int | None
    """1 + how many of these are at least as large; None without any."""
    percentile: float | None
    """Percent of them that are smaller, those equal counting half."""
    least: float | None = None
    """What is read where there is nothing to lose: of the readout the z that neutral texts of this
    length reach, of the answer one over the number of labels. None: not known."""


class WithoutWords(msgspec.Struct, frozen=True, kw_only=True):
    """A text with its emotion words masked, beside other content words masked."""

    text: str
    emotion: str
    label_set: str
    template: str
    placeholder: str
    probe: str | None
    layer: int | None
    """The layer of the residual stream that the readout probe is read at."""
    trust: str | None
    """That of the probe there."""
    unit: Literal["z", "logit"]
    """Of the readouts; the probe's logit where it has no neutral texts."""
    before: Masked
    after: Masked
    """Without the emotion words; `words` are these."""
    masked_text: str
    content_words: int
    """Other content words there are to mask."""
    choices: int
    """Sets of as many other content words that exist; at most 20 of them were drawn."""
    controls: tuple[Masked, ...]
    lost: tuple[Lost, ...]
    seed: int
    sentence: str
