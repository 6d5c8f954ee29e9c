"""The arithmetic of the study of consistency: pure functions of answers (METHODS 6).

Raw agreement is dominated by the bias of the answer, so kappa, chance and rates stand beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from emotui.core.forms import LEAST_VALID, ROBUST_KAPPA, ROBUST_NEGATION
from emotui.core.studies.common.paired import chi_square, holm, wilcoxon
from emotui.core.studies.common.resampling import (
    Interval,
    cohen_interval,
    fleiss_interval,
)
from emotui.core.studies.common.statistics import (
    balanced,
    cohen_kappa,
    fleiss_kappa,
    jensen_shannon,
)
from emotui.core.studies.consistency_results import AgreementRow, FormRow, PairRow, Position


def form_rows(
    scores: Tensor,
    valid: Tensor,
    gold: Tensor,
    groups: Sequence[str],
    names: Sequence[str],
    labels: Sequence[str],
) -> tuple[FormRow, ...]:
    """Return one row a form; the first is what the others are held against.

    `scores` [n, F, labels] log-probabilities, `valid` [n, F], `gold` [n] index of a label or -1.
    """
    answers = scores.argmax(dim=-1)
    labelled = gold >= 0
    true = gold.clamp_min(0)
    on_true = scores.softmax(dim=-1)[torch.arange(len(gold)), :, true][labelled].double()
    differences = [on_true[:, 0] - on_true[:, form] for form in range(len(names))]
    p = holm([None, *(wilcoxon(one) for one in differences[1:])])
    rows = []
    for form, name in enumerate(names):
        counts = torch.bincount(answers[:, form], minlength=len(labels))
        rows.append(
            FormRow(
                group=groups[form],
                form=name,
                valid=_mean(valid[:, form]),
                accuracy=_accuracy(answers[:, form], gold, len(labels)),
                lost=_mean(differences[form]) if len(on_true) else None,
                p=p[form],
                same=_mean(answers[:, form] == answers[:, 0]),
                commonest=labels[int(counts.argmax())],
                commonest_share=float(counts.max()) / max(len(gold), 1),
            )
        )
    return tuple(rows)


def _accuracy(answers: Tensor, gold: Tensor, classes: int) -> float | None:
    labelled = gold >= 0
    if not labelled.any():
        return None
    right = answers[labelled] == gold[labelled]
    return float(balanced(right, gold[labelled], classes=classes))


def agreement_row(
    answers: Tensor,
    *,
    classes: int,
    group: str,
    readout: str,
    generator: torch.Generator,
    layer: int | None = None,
    probabilities: Tensor | None = None,
) -> AgreementRow:
    """Return how far forms agree: `answers` [n, forms], `probabilities` [n, forms, classes]."""
    counts = one_hot(answers, classes).sum(dim=1).double()
    forms = answers.shape[1]
    pairs = (counts.square().sum(dim=1) - forms) / (forms * (forms - 1))
    low, high = _bounds(fleiss_interval(counts, generator))
    divergence = None
    if probabilities is not None:
        middle = probabilities.mean(dim=1, keepdim=True).expand_as(probabilities)
        divergence = _mean(jensen_shannon(probabilities, middle))
    return AgreementRow(
        group=group,
        readout=readout,
        layer=layer,
        forms=forms,
        majority=_mean(counts.max(dim=1).values / forms),
        agreement=_mean(pairs),
        kappa=_number(fleiss_kappa(counts)),
        low=low,
        high=high,
        divergence=divergence,
    )


def pair_row(
    first: Tensor,
    second: Tensor,
    valid: Tensor,
    *,
    kind: str,
    names: tuple[str, str],
    texts: Tensor,
    generator: torch.Generator,
) -> PairRow:
    """Compare two forms of statements by P(agree), [m] each; `valid` [m] bool, of both.

    `texts` [m] says which text a statement is about. Where one of the forms is answered the same
    way every time there is no kappa: nothing can be told from an answer that never varies.
    For kind `negation` the second is the statement's negation: consistent is to answer it the
    other way round, and kappa is with its answer turned.
    """
    yes, other = first > 0.5, second > 0.5
    wanted = ~other if kind == "negation" else other
    p, q = float(yes.double().mean()), float(wanted.double().mean())
    kappa, low, high = None, None, None
    if 0 < p < 1 and 0 < q < 1:
        kappa = _number(cohen_kappa(yes, wanted, classes=2))
        low, high = _bounds(cohen_interval(yes, wanted, texts, generator, classes=2))
    return PairRow(
        kind=kind,
        first=names[0],
        second=names[1],
        consistent=_mean(yes == wanted),
        chance=p * q + (1 - p) * (1 - q),
        kappa=kappa,
        low=low,
        high=high,
        agrees_first=p,
        agrees_second=_mean(other),
        valid=_mean(valid),
        gap=_mean((first.double() + second.double() - 1).abs()) if kind == "negation" else None,
    )


def position_of(answers: Tensor, slots: Tensor) -> Position:
    """Return where in the list answers stand, against where they would by the labels alone.

    `answers` [n, orders], `slots` [n, orders, labels] where each label stands. Expected is what
    labels that are answered as often would give if where they stand did not matter.
    """
    labels = slots.shape[-1]
    chosen = slots.gather(-1, answers.unsqueeze(-1)).flatten()
    counts = torch.bincount(chosen, minlength=labels)
    # Of each text its own share of labels: then a label that is always answered expects itself.
    share = one_hot(answers, labels).double().mean(dim=1)
    there = one_hot(slots, labels).double()  # [n, orders, label, slot]
    expected = torch.einsum("nl,nols->s", share, there)
    statistic, _ = chi_square(counts, expected)  # its p would need independent orders
    return Position(
        counts=tuple(counts.tolist()), expected=tuple(expected.tolist()), statistic=statistic
    )


def negation_kappas(pairs: Sequence[PairRow]) -> list[float | None]:
    """Return the kappas against negations; None where the model writes hardly any answer."""
    return [
        pair.kappa if pair.valid >= LEAST_VALID else None
        for pair in pairs
        if pair.kind == "negation"
    ]


def badge_of(template: float | None, order: float | None, negations: Sequence[float | None]) -> str:
    """Return `robust`, or what the answers depend on: kappas below the bars of METHODS 6f."""
    known = (("templates", template), ("orders", order))
    failing = [name for name, kappa in known if kappa is not None and kappa < ROBUST_KAPPA]
    if any(kappa is not None and kappa < ROBUST_NEGATION for kappa in negations):
        failing.append("negations")
    open_ = [name for name, kappa in known if kappa is None]
    if "negations" not in failing and None in negations:
        open_.append("negations")
    unjudged = f"{', '.join(open_)}: no valid answers, or one that never varies"
    if failing:
        dependent = f"form-dependent ({', '.join(failing)})"
        return f"{dependent}; not judged ({unjudged})" if open_ else dependent
    return f"not judged ({unjudged})" if open_ else "robust"


def _bounds(interval: Interval) -> tuple[float | None, float | None]:
    return _number(float(interval[0])), _number(float(interval[1]))


def _number(value: float) -> float | None:
    return value if value == value else None


def _mean(values: Tensor) -> float:
    return float(values.double().mean()) if values.numel() else 0.0
