"""From predictions in every condition to the result of the study of emotion words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import torch
from torch import Tensor

from emotui.core.engine.terms import profile_of
from emotui.core.studies.terms_asking import Example
from emotui.core.studies.terms_measures import (
    HALF,
    Scored,
    Vectors,
    against_first,
    confusions,
    controls,
    divergence,
    scored,
    terms_row,
)
from emotui.core.studies.terms_results import (
    Confusion,
    LayerRow,
    Moved,
    ProfileRow,
    TermsResult,
    TermsRow,
    Worst,
)

WORST = 20
CONFUSIONS = 20
_NO_WEIGHTS = torch.zeros(0, 8)
_NO_SCORES = torch.zeros(0, 0)
Layers = tuple[list[int], Tensor, list[list[str]]]


@dataclass(frozen=True, eq=False)
class Predicted:
    """What was predicted in one condition."""

    condition: str
    readout: str
    """`score` or `written`."""
    keys: list[int]
    """The examples that could be read."""
    words: list[str]
    """Written words; [] where words were scored."""
    known: frozenset[str]
    terms: tuple[str, ...] = ()
    weights: Tensor = field(default_factory=lambda: _NO_WEIGHTS)
    raw: Tensor = field(default_factory=lambda: _NO_SCORES)
    """[examples, terms]: log-probabilities."""
    usual: Tensor = field(default_factory=lambda: _NO_SCORES)
    """The same after a neutral text."""
    edited: bool = False


@dataclass(frozen=True, eq=False)
class _Read:
    """One readout of one condition."""

    condition: str
    readout: str
    keys: list[int]
    words: list[str]
    p: Tensor | None
    """[examples, terms]; None where words were written."""
    terms: tuple[str, ...]
    weights: Tensor
    known: frozenset[str]

    @property
    def made(self) -> Tensor | None:
        """[examples, 8]; None where words were written."""
        return None if self.p is None else profile_of(self.p, self.weights).weights


def _reads(found: Predicted) -> list[_Read]:
    if found.readout == "written":
        return [
            _Read(
                found.condition,
                "written",
                found.keys,
                found.words,
                None,
                (),
                found.weights,
                found.known,
            )
        ]
    both = {"likeliest": found.raw, "corrected": found.raw - found.usual}
    return [
        _Read(
            found.condition,
            name,
            found.keys,
            [found.terms[one] for one in scores.argmax(dim=-1).tolist()],
            scores.softmax(dim=-1),
            found.terms,
            found.weights,
            found.known,
        )
        for name, scores in both.items()
    ]


def summary(
    predictions: Sequence[Predicted],
    examples: Mapping[int, Example],
    vectors: Vectors,
    layers: Layers | None,
    *,
    generator: torch.Generator,
    edit: str,
    texts: int,
    unreadable: dict[str, int],
    table: str,
    table_digest: str,
    words: int,
    prompts: dict[str, str],
) -> TermsResult:
    """Return the result; accuracies over the examples with a true word."""
    reads = [read for found in predictions if found.keys for read in _reads(found)]
    rows: list[TermsRow] = []
    of_readout: dict[str, list[tuple[int, dict[int, float]]]] = {}
    worst: tuple[Worst, ...] = ()
    wrong: list[Confusion] = []
    for read in reads:
        places = [n for n, key in enumerate(read.keys) if examples[key].true]
        if not places:
            continue
        true = [examples[read.keys[n]].true for n in places]
        predicted = [read.words[n] for n in places]
        made = None if read.made is None else read.made[places]
        found = scored(predicted, true, vectors, composition=made)
        first = read.readout not in of_readout
        f1 = {read.keys[n]: float(f) for n, f in zip(places, found.f1.tolist(), strict=True)}
        of_readout.setdefault(read.readout, []).append((len(rows), f1))
        texts_of = torch.tensor([examples[read.keys[n]].item.index for n in places])
        rows.append(_row(read, found, places, predicted, true, generator, texts_of))
        if first:
            rows += controls(
                predicted,
                true,
                vectors,
                condition=read.condition,
                readout=read.readout,
                generator=generator,
                composition=made,
                texts=texts_of,
            )
            wrong += confusions(
                predicted,
                true,
                condition=read.condition,
                readout=read.readout,
                most=CONFUSIONS,
            )
            worst = worst or _worst(found, [examples[read.keys[n]] for n in places], predicted)
    for those in of_readout.values():
        for (place, _), (d, p) in zip(those, against_first([f1 for _, f1 in those]), strict=True):
            rows[place] = msgspec.structs.replace(rows[place], d=d, p=p)
    true_words = [one.true for one in examples.values() if one.true]
    return TermsResult(
        texts=texts,
        examples=len(examples),
        unreadable=unreadable,
        table=table,
        table_digest=table_digest,
        words=words,
        unknown=sum(word not in vectors.weights for word in true_words),
        empty=sum(
            word in vectors.weights and max(vectors.weights[word]) < HALF for word in true_words
        ),
        without_term=len(examples) - len(true_words),
        rule="summed log-probability of the whole word",
        rows=tuple(rows),
        profiles=tuple(row for read in reads for row in _profiles(read, examples, vectors)),
        layers=_layer_rows(layers, examples, vectors),
        layer_texts=len(layers[0]) if layers else 0,
        confusions=tuple(wrong),
        worst=worst,
        moved=_moved(predictions, edit),
        prompts=prompts,
    )


def _row(
    read: _Read,
    found: Scored,
    places: list[int],
    predicted: list[str],
    true: list[str],
    generator: torch.Generator,
    texts: Tensor,
) -> TermsRow:
    p_true = None
    if read.p is not None:
        column = {term: number for number, term in enumerate(read.terms)}
        known = [(n, column[word]) for n, word in zip(places, true, strict=True) if word in column]
        if known:
            at, of = zip(*known, strict=True)
            p_true = float(read.p[list(at), list(of)].double().mean())
    invalid = None
    if read.p is None:
        invalid = torch.tensor([word not in read.known for word in predicted])
    return terms_row(
        found,
        condition=read.condition,
        readout=read.readout,
        generator=generator,
        invalid=invalid,
        p_true=p_true,
        texts=texts,
    )


def _worst(
    found: Scored, examples: Sequence[Example], predicted: Sequence[str]
) -> tuple[Worst, ...]:
    js = [None if value != value else value for value in found.js.tolist()]
    f1 = found.f1.tolist()
    order = sorted(
        range(len(examples)),
        key=lambda n: (f1[n], -(js[n] or 0.0), examples[n].key),
    )
    return tuple(
        Worst(
            id=examples[n].item.id,
            row=examples[n].item.row,
            term=examples[n].true,
            predicted=predicted[n],
            f1_v=f1[n],
            js=js[n],
        )
        for n in order[:WORST]
        if f1[n] < 1
    )


def _profiles(read: _Read, examples: Mapping[int, Example], vectors: Vectors) -> list[ProfileRow]:
    true = [examples[key].true for key in read.keys]
    common = [word for word, _ in Counter(word for word in true if word).most_common(12)]
    groups: dict[str, list[int]] = {"all": list(range(len(true)))}
    groups |= {word: [n for n, one in enumerate(true) if one == word] for word in sorted(common)}
    made, whole = read.made, None
    if made is None:
        made = vectors.rows(read.words)
    else:
        assert read.p is not None
        whole = profile_of(read.p, read.weights)
    return [
        ProfileRow(
            condition=read.condition,
            readout=read.readout,
            term=name,
            texts=len(members),
            weights=tuple(made[members].mean(dim=0).tolist()),
            undecomposed=None if whole is None else float(whole.undecomposed[members].mean()),
            entropy=None if whole is None else float(whole.entropy[members].mean()),
        )
        for name, members in groups.items()
    ]


def _layer_rows(
    layers: Layers | None, examples: Mapping[int, Example], vectors: Vectors
) -> tuple[LayerRow, ...]:
    if layers is None or not layers[0]:
        return ()
    keys, made, best = layers
    places = [n for n, key in enumerate(keys) if examples[key].true]
    rows = []
    for layer in range(made.shape[1]):
        f1 = None
        if places:
            guess = [best[n][layer] for n in places]
            f1 = float(scored(guess, [examples[keys[n]].true for n in places], vectors).f1.mean())
        js = divergence(made[:, layer], made[:, -1])
        rows.append(
            LayerRow(
                layer=layer,
                weights=tuple(made[:, layer].mean(dim=0).tolist()),
                js_final=float(js.nan_to_num().mean()),
                f1_v=f1,
            )
        )
    return tuple(rows)


def _moved(predictions: Sequence[Predicted], edit: str) -> Moved | None:
    """Return what the edit did to the composition of the same examples, without shots."""
    scores = [found for found in predictions if found.readout == "score" and found.keys]
    edited = next((found for found in scores if found.edited), None)
    if edited is None:
        return None
    plain = scores[0]
    place = {key: n for n, key in enumerate(plain.keys)}
    shared = [(place[key], n) for n, key in enumerate(edited.keys) if key in place]
    first, second = (
        plain.raw[[a for a, _ in shared]],
        edited.raw[[b for _, b in shared]],
    )
    before, after = (
        profile_of(one.softmax(dim=-1), plain.weights).weights for one in (first, second)
    )
    shares = [one / one.sum(dim=-1, keepdim=True).clamp_min(1e-300) for one in (before, after)]
    return Moved(
        edit=edit,
        texts=len(shared),
        js=float(divergence(after, before).nan_to_num().mean()),
        weights=tuple((shares[1] - shares[0]).mean(dim=0).tolist()),
        changed=float((first.argmax(dim=-1) != second.argmax(dim=-1)).double().mean()),
    )
