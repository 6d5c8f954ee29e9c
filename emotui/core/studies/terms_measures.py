"""The arithmetic of the study of emotion words (EXPRESS; METHODS 5): pure functions of words.

A word stands for the set of the basic emotions of which its weight is at least one half, as EmoLex
gives yes or no; divergences take the weights themselves.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emotui.core.emotion_terms import Term
from emotui.core.emotions import PLUTCHIK
from emotui.core.studies.common.paired import cohen_d, holm, wilcoxon
from emotui.core.studies.common.resampling import mean_interval
from emotui.core.studies.common.statistics import jensen_shannon
from emotui.core.studies.terms_results import Confusion, TermsRow

HALF = 0.5
MASK = "<mask>"
_SHUFFLES = 20


@dataclass(frozen=True)
class Vectors:
    """Words as vectors over the eight."""

    weights: Mapping[str, tuple[float, ...]]

    @classmethod
    def of(cls, terms: Sequence[Term]) -> Vectors:
        """Return the vectors of terms."""
        return cls({term.term: term.weights for term in terms})

    def rows(self, words: Sequence[str]) -> Tensor:
        """Return [n, 8], float64; an unknown word is all zero."""
        nothing = (0.0,) * len(PLUTCHIK)
        found = [self.weights.get(word, nothing) for word in words]
        return torch.tensor(found, dtype=torch.float64).view(-1, len(PLUTCHIK))


@dataclass(frozen=True)
class Scored:
    """Of each example, how near the prediction is."""

    same: Tensor
    """[n], bool: the very word. In a control a share of several draws."""
    same_set: Tensor
    """[n], likewise."""
    f1: Tensor
    """[n], float64."""
    js: Tensor
    """[n], float64; NaN where a composition is not defined."""


def scored(
    predicted: Sequence[str],
    true: Sequence[str],
    vectors: Vectors,
    *,
    composition: Tensor | None = None,
) -> Scored:
    """Compare words; `composition` [n, 8] is the prediction's where it is not the word's own.

    A word that is not in the table has no set, so it is never the same set as another word.
    """
    guess, gold = vectors.rows(predicted), vectors.rows(true)
    first, second = guess >= HALF, gold >= HALF
    both = (first & second).sum(dim=1).double()
    sizes = (first.sum(dim=1) + second.sum(dim=1)).double()
    made = guess if composition is None else composition.double()
    same = torch.tensor([a == b for a, b in zip(predicted, true, strict=True)])
    known = torch.tensor(
        [
            a in vectors.weights and b in vectors.weights
            for a, b in zip(predicted, true, strict=True)
        ]
    )
    return Scored(
        same=same,
        same_set=same | (known & (first == second).all(dim=1)),
        f1=torch.where(sizes > 0, 2 * both / sizes.clamp_min(1), torch.zeros_like(sizes)),
        js=divergence(made, gold),
    )


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """Return Jensen-Shannon of two compositions [n, 8], normalised; NaN where one is empty."""
    defined = (first.sum(dim=-1) > 0) & (second.sum(dim=-1) > 0)
    p, q = _shares(first), _shares(second)
    return torch.where(defined, jensen_shannon(p, q), torch.full_like(p[..., 0], torch.nan))


def _shares(made: Tensor) -> Tensor:
    """Return compositions [n, 8] that sum to 1; an empty one stays empty."""
    return made / made.sum(dim=-1, keepdim=True).clamp_min(1e-300)


def terms_row(
    found: Scored,
    *,
    condition: str,
    readout: str,
    generator: torch.Generator,
    invalid: Tensor | None = None,
    p_true: float | None = None,
    control: bool = False,
    texts: Tensor | None = None,
) -> TermsRow:
    """Return the means of one condition; `texts` [n] says which text each example is a mask of."""
    low, high = mean_interval(found.f1, generator, texts=texts)
    defined = ~found.js.isnan()
    known = found.js[defined]
    js_low, js_high = None, None
    if len(known):
        of = None if texts is None else texts[defined]
        js_low, js_high = (float(one) for one in mean_interval(known, generator, texts=of))
    return TermsRow(
        condition=condition,
        readout=readout,
        control=control,
        examples=len(found.f1),
        invalid=None if invalid is None else float(invalid.double().mean()),
        acc_l=float(found.same.double().mean()),
        acc_v=float(found.same_set.double().mean()),
        f1_v=float(found.f1.mean()),
        f1_low=float(low),
        f1_high=float(high),
        js=float(known.mean()) if len(known) else None,
        js_low=js_low,
        js_high=js_high,
        js_examples=len(known),
        p_true=p_true,
        d=None,
        p=None,
    )


def controls(
    predicted: Sequence[str],
    true: Sequence[str],
    vectors: Vectors,
    *,
    condition: str,
    readout: str,
    generator: torch.Generator,
    composition: Tensor | None = None,
    texts: Tensor | None = None,
) -> tuple[TermsRow, ...]:
    """Return two controls, measured as the condition is.

    The predictions of other texts, their `composition` [n, 8] with them where the condition has
    one; and one prediction for every text: the commonest true word, with the mean of the
    compositions (of the commonest true word where the condition has none).
    """
    shares = None if composition is None else _shares(composition.double())
    draws = []
    for _ in range(_SHUFFLES):
        order = torch.randperm(len(true), generator=generator)
        moved = None if shares is None else shares[order]
        draws.append(
            scored([predicted[n] for n in order.tolist()], true, vectors, composition=moved)
        )
    shuffled = Scored(
        same=torch.stack([one.same.double() for one in draws]).mean(dim=0),
        same_set=torch.stack([one.same_set.double() for one in draws]).mean(dim=0),
        f1=torch.stack([one.f1 for one in draws]).mean(dim=0),
        js=torch.stack([one.js for one in draws]).nanmean(dim=0),
    )
    commonest = Counter(true).most_common(1)[0][0]
    middle = None if shares is None else shares.mean(dim=0).expand_as(shares)
    constant = scored([commonest] * len(true), true, vectors, composition=middle)
    mean = "" if middle is None else ", the mean composition"
    return (
        terms_row(
            shuffled,
            condition=f"{condition}, predictions of other texts",
            readout=readout,
            generator=generator,
            control=True,
            texts=texts,
        ),
        terms_row(
            constant,
            condition=f"always {commonest!r}{mean}",
            readout=readout,
            generator=generator,
            control=True,
            texts=texts,
        ),
    )


def against_first(
    f1: Sequence[Mapping[int, float]],
) -> list[tuple[float | None, float | None]]:
    """Return Cohen's d and Holm's p of each condition's F1 against the first's, by example.

    Each maps an example to its F1; those in both are compared. (None, None) for the first.
    """
    differences = [
        torch.tensor([one[key] - f1[0][key] for key in one if key in f1[0]], dtype=torch.float64)
        for one in f1
    ]
    p = holm([None, *(wilcoxon(one) for one in differences[1:])])
    return [(None, None), *((cohen_d(d), q) for d, q in zip(differences[1:], p[1:], strict=True))]


def confusions(
    predicted: Sequence[str], true: Sequence[str], *, condition: str, readout: str, most: int
) -> tuple[Confusion, ...]:
    """Return the commonest pairs of a true word and another that was predicted."""
    totals = Counter(true)
    wrong = Counter((t, p) for t, p in zip(true, predicted, strict=True) if t != p)
    ordered = sorted(wrong.items(), key=lambda pair: (-pair[1], pair[0]))
    return tuple(
        Confusion(
            condition=condition,
            readout=readout,
            term=term,
            predicted=other,
            texts=count,
            share=count / totals[term],
        )
        for (term, other), count in ordered[:most]
    )


_SEPARATORS = re.compile(r"""[,;\[\](){}"“”\n|.:!?]|(?<!\w)'|'(?!\w)""")


def words_in(answer: str, count: int, *, thought: bool = False) -> list[str]:
    """Return the first `count` entries of a written answer, lower case; "" for those missing.

    With `thought` what stands before the last `Answer:` is left out. An entry of several words
    stays one, which is no word of a table.
    """
    if thought and "answer:" in answer.lower():
        answer = answer[answer.lower().rindex("answer:") + len("answer:") :]
    entries = [" ".join(part.split()).lower() for part in _SEPARATORS.split(answer)]
    found = [entry for entry in entries if entry][:count]
    return [*found, *[""] * (count - len(found))]


def true_words(cell: str) -> list[str]:
    """Return the words of a cell of the dataset, as `sad`, `sad, alone` or `['sad', 'alone']`."""
    return [word for word in words_in(cell, cell.count(",") + 1) if word]
