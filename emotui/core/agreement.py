"""Read, lens, say: what a probe reads at a token, what the logit lens ranks, what is answered.

The probe's class is that of its largest logit, the rule its accuracy was measured with. The lens
is compared among the labels' own words. Labels are paired by name: what another set does not have
cannot be compared with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from emotui.core.records import Agreement, Answer, Lens, Mark, Trace, Trust

Verdict = Literal["agree", "disagree", ""]


@dataclass(frozen=True)
class ProbeRead:
    """What a probe reads at one layer and token of the residual stream."""

    emotion: str
    z: float | None
    trust: Trust
    mark: Mark
    emotions: tuple[str, ...]
    """All the probe tells apart."""

    @property
    def counts(self) -> bool:
        """Whether it can disagree: trusted, and at the kind of token it was fitted on."""
        return self.trust == "trusted" and self.mark == ""


@dataclass(frozen=True)
class LensRead:
    """How the lens ranks the labels' words at one layer and token."""

    labels: tuple[str, ...]
    """Likeliest first."""
    probability: Mapping[str, float]
    """Among the labels."""
    vocabulary: Mapping[str, int] | None
    """Label to its rank in the whole vocabulary, 1 the likeliest; None off the readout."""


@dataclass(frozen=True)
class Said:
    """One place of a trace: read, lens, say."""

    read: ProbeRead | None
    lens: LensRead | None
    answer: str | None
    """The likeliest label of the model's answer to the whole prompt."""
    pairs: tuple[tuple[str, str], ...]
    """Which of `probe`, `lens` and `answer` differ; only those that can be compared."""
    compared: int
    """How many of the three could be compared with another."""

    @property
    def verdict(self) -> Verdict:
        """Return the word for it; "" where fewer than two could be compared."""
        if self.compared < 2:
            return ""
        return "disagree" if self.pairs else "agree"


def said_at(trace: Trace, position: int, layer: int) -> Said:
    """Return what is read, ranked and answered at a token and layer of the residual stream."""
    return said_from(trace, position, layer, rows_at(trace, position))


Rows = Mapping[tuple[str, int], Sequence[int]]
"""Rows of the readouts of the residual stream at one token, by probe and layer."""


def rows_at(trace: Trace, position: int) -> Rows:
    """Return the rows at a token."""
    columns = trace.readouts
    found: dict[tuple[str, int], list[int]] = {}
    for row, at in enumerate(columns.position):
        if at == position and columns.site[row] == "resid":
            found.setdefault((columns.probe[row], columns.layer[row]), []).append(row)
    return found


def said_from(trace: Trace, position: int, layer: int, rows: Rows) -> Said:
    """Return the same from the rows at the token, where the caller has them."""
    read = probe_read(trace, position, layer, rows)
    return _said(read, lens_read(trace, position, layer), trace.answer)


def _said(read: ProbeRead | None, lens: LensRead | None, answer: Answer | None) -> Said:
    labels = () if answer is None else tuple(answer.labels)
    said = None if answer is None else max(labels, key=lambda label: answer.labels[label])
    claims: dict[str, tuple[str, tuple[str, ...]]] = {}
    if read is not None and read.counts:
        claims["probe"] = (read.emotion, read.emotions)
    if lens is not None:
        claims["lens"] = (lens.labels[0], lens.labels)
    if said is not None:
        claims["answer"] = (said, labels)
    comparable = [
        (one, other)
        for one, other in combinations(claims, 2)
        if claims[one][0] in claims[other][1] and claims[other][0] in claims[one][1]
    ]
    differing = tuple(pair for pair in comparable if claims[pair[0]][0] != claims[pair[1]][0])
    return Said(read, lens, said, differing, len({name for pair in comparable for name in pair}))


def probe_read(trace: Trace, position: int, layer: int, rows: Rows) -> ProbeRead | None:
    """Return what the probe of a token's kind reads there; None without one."""
    wanted = "readout" if position == trace.text.readout else "token"
    columns = trace.readouts
    for probe in sorted(trace.probes, key=lambda probe: probe.kind != wanted):
        here = rows.get((probe.id, layer))
        if not here:
            continue
        best = max(here, key=lambda row: columns.value[row])
        # An edit along one emotion says nothing new of any of the probe's classes.
        marks = [columns.mark[row] for row in here if columns.mark[row]]
        return ProbeRead(
            emotion=columns.emotion[best],
            z=columns.z[best],
            trust=columns.trust[best],
            mark=marks[0] if marks else "",
            emotions=probe.emotions,
        )
    return None


def lens_read(trace: Trace, position: int, layer: int) -> LensRead | None:
    """Return how the lens ranks the labels' words there; None where it was not read."""
    lens = trace.lens
    if lens is None or layer < 0:
        return None
    words = lens.words
    if position not in words.position:
        return _from_answers(lens, layer) if position == trace.text.readout else None
    count, layers = len(words.labels), trace.run.layers
    start = (words.position.index(position) * layers + layer) * count
    shares = dict(zip(words.labels, words.probability[start : start + count], strict=True))
    ranks = None
    if position == trace.text.readout:
        row = words.rank[layer * count : (layer + 1) * count]
        ranks = {label: 1 + rank for label, rank in zip(words.labels, row, strict=True)}
    return _ranked(shares, ranks)


def _from_answers(lens: Lens, layer: int) -> LensRead | None:
    """Return what traces without words hold: the readout, among the labels."""
    if not lens.answers:
        return None
    return _ranked({label: values[layer] for label, values in lens.answers.items()}, None)


def _ranked(shares: Mapping[str, float], ranks: Mapping[str, int] | None) -> LensRead:
    order = sorted(shares, key=lambda label: -shares[label])
    return LensRead(tuple(order), shares, ranks)


def agreement_of(trace: Trace) -> Agreement:
    """Return the columns of a trace: every layer at the readout."""
    readout, layers = trace.text.readout, range(trace.run.layers)
    there = rows_at(trace, readout)
    rows = [said_from(trace, readout, layer, there) for layer in layers]
    return Agreement(
        layer=tuple(layers),
        read=tuple(None if said.read is None else said.read.emotion for said in rows),
        trust=tuple(None if said.read is None else said.read.trust for said in rows),
        lens=tuple(None if said.lens is None else said.lens.labels[0] for said in rows),
        answer=tuple(said.answer for said in rows),
        verdict=tuple(said.verdict for said in rows),
    )


def words_of(said: Said, before: Said | None = None) -> str:
    """Return one line: what is read, ranked and answered, and what disagrees; see `parts_of`."""
    return " · ".join(part for part in parts_of(said, before) if part)


def parts_of(said: Said, before: Said | None = None) -> tuple[str, str, str, str]:
    """Return what is read, what is ranked, what is answered, and what disagrees; "" for nothing.

    `before` is the same place without the last edit: what changed is written `fear→joy`. `#4` is
    a rank in the whole vocabulary, `1/7` one among the labels.
    """
    read, lens = said.read, said.lens
    reads, lens_words, answers, verdict = "no probe", "", "", ""
    if read is not None:
        former = None if before is None or before.read is None else before.read.emotion
        note = read.mark.replace("_", " ") or read.trust
        reads = f"reads {_changed(former, read.emotion)} ({note})"
    if lens is not None:
        former = None if before is None or before.lens is None else before.lens.labels[0]
        lens_words = f"lens {_changed(former, lens.labels[0])} {_place(lens, lens.labels[0])}"
        if read is not None and read.emotion in lens.labels[1:]:
            lens_words += f", {read.emotion} {_place(lens, read.emotion)}"
    if said.answer is not None:
        former = None if before is None else before.answer
        answers = f"answers {_changed(former, said.answer)}"
    if said.pairs:
        verdict = f"≠ {_disagreeing(said)}"
    elif before is not None and before.pairs:
        verdict = "agree now"
    return reads, lens_words, answers, verdict


def sentence_of_fragments(answer: Answer) -> str:
    """Return which labels are compared by the beginning of a word; uncleaned, "" for none."""
    if not answer.fragments:
        return ""
    named = ", ".join(f"{label} by {token!r}" for label, token in answer.fragments.items())
    return (
        f"These labels need more than one token and are compared by one of them: {named}. It may "
        "as well begin another word, so their probabilities are not those of the labels."
    )


def _changed(before: str | None, now: str) -> str:
    return now if before in (None, now) else f"{before}→{now}"


def _place(lens: LensRead, label: str) -> str:
    if lens.vocabulary is not None:
        return f"#{lens.vocabulary[label]:,}"
    return f"{lens.labels.index(label) + 1}/{len(lens.labels)}"


def _disagreeing(said: Said) -> str:
    """Return which of the three stands alone, or that none agrees with another."""
    names = [name for pair in said.pairs for name in pair]
    if len(said.pairs) == 1:
        return f"{names[0]} and {names[1]} disagree"
    if len(said.pairs) == 3:
        return "all disagree"
    return f"{max(names, key=names.count)} disagrees"
