"""Two traces compared: readouts, features, answers and written texts, first and second.

Every difference is second minus first. Pure: records in, a record out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec

from emotui.core.records import AnswerRule, ProbeKind, ProbeSummary, Site, Trace, Trust

KEPT_AT_READOUT = 512
KEPT_ELSEWHERE = 32
"""Most features of an SAE that a trace holds at a token: one that is not there may be smaller."""
Pair = tuple[int, int]
"""A token of the first trace, and the token of the second that it is compared with."""
Change = Literal["appeared", "vanished", "stayed"]


class ComparedTrace(msgspec.Struct, frozen=True):
    """What must be known of one of the two."""

    id: str
    model: str
    fingerprint: str
    template: str
    raw: str
    edits: tuple[str, ...]
    tokens: tuple[str, ...]
    readout: int
    last: int
    written: tuple[str, ...] = ()
    """What the model wrote on, where that was asked for."""


class ReadoutDifferences(msgspec.Struct, frozen=True):
    """Readouts that both traces have, as columns."""

    site: tuple[Site, ...] = ()
    layer: tuple[int, ...] = ()
    pair: tuple[int, ...] = ()
    """Index into `Difference.pairs`."""
    emotion: tuple[str, ...] = ()
    first: tuple[float, ...] = ()
    second: tuple[float, ...] = ()
    unit: tuple[Literal["z", "logit"], ...] = ()
    trust: tuple[Trust, ...] = ()
    """The lesser of the two."""
    outside: tuple[bool, ...] = ()
    """Whether either was read where its probe was not fitted to be read."""
    by_construction: tuple[bool, ...] = ()
    """Whether either is moved by an edit along the probe's own direction."""


class FeatureDifferences(msgspec.Struct, frozen=True):
    """Features that are active in either trace, as columns."""

    change: tuple[Change, ...] = ()
    sae: tuple[str, ...] = ()
    site: tuple[Site, ...] = ()
    layer: tuple[int, ...] = ()
    pair: tuple[int, ...] = ()
    index: tuple[int, ...] = ()
    first: tuple[float, ...] = ()
    """Activation; 0 where the trace does not hold it."""
    second: tuple[float, ...] = ()
    certain: tuple[bool, ...] = ()
    """Whether what is not held is certainly not active: False where only the largest were kept."""
    label: tuple[str, ...] = ()


class AnswerDifferences(msgspec.Struct, frozen=True):
    """The answers, label by label; empty where the label sets or the rules differ."""

    set: str = ""
    rule: AnswerRule | None = None
    labels: tuple[str, ...] = ()
    first: tuple[float, ...] = ()
    second: tuple[float, ...] = ()


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """How the second trace differs from the first."""

    first: ComparedTrace
    second: ComparedTrace
    relation: Literal["edited", "same_text", "two_texts"]
    """`edited`: the first is an ancestor by its edits: same text, and the second has more of
    them."""
    aligned: bool
    """Whether every token has its partner: the prompts are the same tokens."""
    pairs: tuple[Pair, ...]
    readouts: ReadoutDifferences
    features: FeatureDifferences
    answer: AnswerDifferences
    notes: tuple[str, ...] = ()
    """What the numbers do not say by themselves."""


def compare_traces(first: Trace, second: Trace) -> Difference:
    """Return how the second trace differs from the first, at every pair of tokens.

    Where the prompts differ, tokens of the template around the text are paired from both ends, and
    the texts' last tokens; words of different texts are not. Layers are paired by number.
    """
    pairs = pairs_of(first, second)
    same_model = first.run.fingerprint == second.run.fingerprint
    same_text = first.text == second.text
    edited = same_model and same_text and _is_before(first, second)
    return Difference(
        first=_side(first),
        second=_side(second),
        relation="edited" if edited else "same_text" if same_text else "two_texts",
        aligned=_same_prompt(first, second),
        pairs=pairs,
        readouts=_readouts(first, second, pairs),
        features=_features(first, second, pairs) if same_model else FeatureDifferences(),
        answer=_answers(first, second),
        notes=tuple(_notes(first, second)),
    )


def at_readout(difference: Difference) -> Difference:
    """Return the same with the rows of the readout alone."""
    place = difference.pairs.index((difference.first.readout, difference.second.readout))

    def kept(columns: ReadoutDifferences | FeatureDifferences) -> dict[str, tuple[object, ...]]:
        rows = [row for row, pair in enumerate(columns.pair) if pair == place]
        return {
            name: tuple(getattr(columns, name)[row] for row in rows)
            for name in columns.__struct_fields__
        }

    return msgspec.structs.replace(
        difference,
        readouts=msgspec.structs.replace(difference.readouts, **kept(difference.readouts)),
        features=msgspec.structs.replace(difference.features, **kept(difference.features)),
    )


def _side(trace: Trace) -> ComparedTrace:
    generation = trace.generation
    return ComparedTrace(
        id=trace.id,
        model=trace.run.model,
        fingerprint=trace.run.fingerprint,
        template=trace.run.template,
        raw=trace.text.raw,
        edits=trace.edits,
        tokens=tuple(token.string for token in trace.text.tokens),
        readout=trace.text.readout,
        last=trace.text.last,
        written=() if generation is None else tuple(one.text for one in generation.samples),
    )


def _is_before(first: Trace, second: Trace) -> bool:
    count = len(first.edits)
    return len(second.edits) > count and second.edits[:count] == first.edits


def _same_prompt(first: Trace, second: Trace) -> bool:
    def prompt(trace: Trace) -> list[tuple[str, str]]:
        return [(token.string, token.part) for token in trace.text.tokens]

    return prompt(first) == prompt(second)


def pairs_of(first: Trace, second: Trace) -> tuple[Pair, ...]:
    """Return the tokens that are compared, ascending: all of them where the prompts are equal."""
    ours, theirs = first.text.tokens, second.text.tokens
    if _same_prompt(first, second):
        return tuple((place, place) for place in range(len(ours)))
    pairs = {(first.text.readout, second.text.readout), (first.text.last, second.text.last)}
    shorter = min(len(ours), len(theirs))
    for place in range(shorter):
        one, other = ours[place], theirs[place]
        if "text" in (one.part, other.part) or one.string != other.string:
            break
        pairs.add((place, place))
    for back in range(1, shorter + 1):
        one, other = ours[-back], theirs[-back]
        if "text" in (one.part, other.part) or one.string != other.string:
            break
        pairs.add((len(ours) - back, len(theirs) - back))
    return tuple(sorted(pairs))


_Place = tuple[Site, int, int, str]
"""Site, layer, position, emotion."""
_WORSE: Mapping[Trust, int] = {"trusted": 0, "lexical": 1, "untrusted": 2}


def _readouts(first: Trace, second: Trace, pairs: tuple[Pair, ...]) -> ReadoutDifferences:
    ours, theirs = _rows(first), _rows(second)
    one, other = first.readouts, second.readouts
    partner = {pair[0]: (number, pair[1]) for number, pair in enumerate(pairs)}
    rows: list[tuple[object, ...]] = []
    for (site, layer, position, emotion), mine in ours.items():
        if position not in partner:
            continue
        number, place = partner[position]
        its = theirs.get((site, layer, place, emotion))
        if its is None:
            continue
        z, their_z = one.z[mine], other.z[its]
        if z is not None and their_z is not None:
            values: tuple[float, float, str] = (z, their_z, "z")
        elif one.probe[mine] == other.probe[its]:
            values = (one.value[mine], other.value[its], "logit")
        else:
            continue  # logits of two probes are not on one scale
        trust = max(one.trust[mine], other.trust[its], key=lambda word: _WORSE[word])
        marks = (one.mark[mine], other.mark[its])
        rows.append(
            (
                *(site, layer, number, emotion, *values, trust),
                *("outside" in marks, "by_construction" in marks),
            )
        )
    rows.sort(key=lambda row: (str(row[0]), row[1], row[2]))  # emotions stay in their order
    return ReadoutDifferences(*map(tuple, zip(*rows, strict=True)))


def _rows(trace: Trace) -> dict[_Place, int]:
    """Return the row of each place: of the probe kind that was fitted there where there is one."""
    columns = trace.readouts
    known: dict[str, ProbeSummary] = {probe.id: probe for probe in trace.probes}
    found: dict[_Place, int] = {}
    rows = zip(
        columns.site, columns.layer, columns.position, columns.emotion, columns.probe, strict=True
    )
    for row, (site, layer, position, emotion, probe) in enumerate(rows):
        wanted: ProbeKind = "readout" if position == trace.text.readout else "token"
        place = (site, layer, position, emotion)
        if place not in found or (probe in known and known[probe].kind == wanted):
            found[place] = row
    return found


def _features(first: Trace, second: Trace, pairs: tuple[Pair, ...]) -> FeatureDifferences:
    shared = {reading.sae for reading in first.saes} & {reading.sae for reading in second.saes}
    ours, theirs = _active(first, shared), _active(second, shared)
    rows: list[tuple[object, ...]] = []
    for number, (place, partner) in enumerate(pairs):
        for sae in sorted(shared):
            mine, its = ours.get((sae, place), {}), theirs.get((sae, partner), {})
            for index in sorted({*mine, *its}):
                one, other = mine.get(index), its.get(index)
                row = one or other
                assert row is not None
                change: Change = "stayed" if one and other else "vanished" if one else "appeared"
                lacking, at_end = (its, partner == second.text.readout)
                if change == "appeared":
                    lacking, at_end = (mine, place == first.text.readout)
                limit = KEPT_AT_READOUT if at_end else KEPT_ELSEWHERE
                rows.append(
                    (
                        *(change, sae, row[2], row[3], number, index),
                        *(one[0] if one else 0.0, other[0] if other else 0.0),
                        *(change == "stayed" or len(lacking) < limit, row[1]),
                    )
                )
    return FeatureDifferences(*map(tuple, zip(*rows, strict=True)))


_Active = dict[tuple[str, int], dict[int, tuple[float, str, Site, int]]]


def _active(trace: Trace, shared: set[str]) -> _Active:
    """Return activation, label, site and layer of the features by SAE and token, then index."""
    columns = trace.features
    found: _Active = {}
    for row, sae in enumerate(columns.sae):
        if sae in shared:
            found.setdefault((sae, columns.position[row]), {})[columns.index[row]] = (
                columns.activation[row],
                columns.label[row],
                columns.site[row],
                columns.layer[row],
            )
    return found


def _answers(first: Trace, second: Trace) -> AnswerDifferences:
    one, other = first.answer, second.answer
    if one is None or other is None or (one.set, one.rule) != (other.set, other.rule):
        return AnswerDifferences()
    labels = tuple(label for label in one.labels if label in other.labels)
    return AnswerDifferences(
        set=one.set,
        rule=one.rule,
        labels=labels,
        first=tuple(one.labels[label] for label in labels),
        second=tuple(other.labels[label] for label in labels),
    )


def _notes(first: Trace, second: Trace) -> Iterator[str]:
    one, other = first.run, second.run
    if one.fingerprint != other.fingerprint:
        yield (
            f"Two models, {one.model} and {other.model}: layers are paired by number, z is each "
            "one's own, features are not compared."
        )
        if one.layers != other.layers:
            yield f"They have {one.layers} and {other.layers} layers."
    elif (one.dtype, one.device) != (other.dtype, other.device):
        yield (
            f"Computed in {one.dtype} on {one.device} and in {other.dtype} on {other.device}: "
            "small differences are rounding."
        )
    if one.template != other.template:
        yield f"Two prompts, {one.template} and {other.template}: readouts mean different things."
    elif not _same_prompt(first, second):
        yield "Two texts: only tokens of the template, and the texts' last, are compared."
    probes = {probe.id for probe in first.probes}, {probe.id for probe in second.probes}
    if one.fingerprint == other.fingerprint and probes[0] != probes[1]:
        yield "They were read with different probes: z is each probe's own."
    answers = first.answer, second.answer
    if None not in answers and not _answers(first, second).labels:
        yield "The answers are of different label sets or rules, so they are not compared."
