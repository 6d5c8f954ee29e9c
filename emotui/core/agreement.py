"""Read, lens, say: what a probe reads at a token, what the logit lens ranks, what is answered.

The probe's class is that of its largest logit, the rule its accuracy was measured with. The lens
is compared among the labels' own words. Labels are paired by name: what another set does not have
cannot be compared with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from emotui.core.records import Agreement, Answer, Lens, Mark, ProbeSummary, Readouts, Trace, Trust

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
    return _said(
        probe_read(trace, position, layer), lens_read(trace, position, layer), trace.answer
    )


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


def probe_read(trace: Trace, position: int, layer: int) -> ProbeRead | None:
    """Return what the probe of a token's kind reads there; None without one."""
    wanted = "readout" if position == trace.text.readout else "token"
    probes = sorted(trace.probes, key=lambda probe: probe.kind != wanted)
    for probe in probes:
        rows = _rows(trace.readouts, probe, position, layer)
        if rows:
            columns = trace.readouts
            best = max(rows, key=lambda row: columns.value[row])
            # An edit along one emotion says nothing new of any of the probe's classes.
            marks = [columns.mark[row] for row in rows if columns.mark[row]]
            return ProbeRead(
                emotion=columns.emotion[best],
                z=columns.z[best],
                trust=columns.trust[best],
                mark=marks[0] if marks else "",
                emotions=probe.emotions,
            )
    return None


def _rows(readouts: Readouts, probe: ProbeSummary, position: int, layer: int) -> list[int]:
    return [
        row
        for row, at in enumerate(readouts.position)
        if at == position
        and readouts.layer[row] == layer
        and readouts.site[row] == "resid"
        and readouts.probe[row] == probe.id
    ]


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
    rows = [said_at(trace, trace.text.readout, layer) for layer in range(trace.run.layers)]
    return Agreement(
        layer=tuple(range(trace.run.layers)),
        read=tuple(None if said.read is None else said.read.emotion for said in rows),
        trust=tuple(None if said.read is None else said.read.trust for said in rows),
        lens=tuple(None if said.lens is None else said.lens.labels[0] for said in rows),
        answer=tuple(said.answer for said in rows),
        verdict=tuple(said.verdict for said in rows),
    )


def words_of(said: Said) -> str:
    """Return one line: what is read, ranked and answered, and what disagrees."""
    parts = []
    if said.read is None:
        parts.append("no probe")
    else:
        note = said.read.mark.replace("_", " ") or said.read.trust
        parts.append(f"reads {said.read.emotion} ({note})")
    if said.lens is not None:
        parts.append(_lens_words(said.lens, said.read))
    if said.answer is not None:
        parts.append(f"answers {said.answer}")
    line = " · ".join(parts)
    if said.pairs:
        line += " · ≠ " + ", ".join("/".join(pair) for pair in said.pairs) + " disagree"
    return line


def _lens_words(lens: LensRead, read: ProbeRead | None) -> str:
    shown = [lens.labels[0]]
    if read is not None and read.emotion in lens.labels[1:]:
        shown.append(read.emotion)

    def place(label: str) -> str:
        if lens.vocabulary is not None:
            return f"{label} #{lens.vocabulary[label]:,}"
        return f"{label} {lens.labels.index(label) + 1}/{len(lens.labels)}"

    return "lens " + ", ".join(place(label) for label in shown)
