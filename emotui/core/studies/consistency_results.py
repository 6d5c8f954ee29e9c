"""What the study of consistency finds; None stands where a number is not defined."""

from __future__ import annotations

import msgspec


class FormRow(msgspec.Struct, frozen=True, kw_only=True):
    """One form that asks for a label, over all texts."""

    group: str
    form: str
    valid: float
    """Share of texts where what the model would write begins with a label."""
    accuracy: float | None
    """Balanced over the labels of the dataset; None without labels."""
    lost: float | None
    """Mean probability of the true label in the first form minus here, over texts."""
    p: float | None
    """Of that difference: Wilcoxon signed-rank, Holm over forms."""
    same: float
    """Share of texts with the answer of the first form."""
    commonest: str
    commonest_share: float


class AgreementRow(msgspec.Struct, frozen=True, kw_only=True):
    """How far forms of one kind agree, by the answer or by what stands inside."""

    group: str
    """`template` or `order`."""
    readout: str
    """`answer`, `probe L5`, `lens`."""
    layer: int | None
    forms: int
    majority: float
    """Mean over texts of the share of forms with the commonest answer."""
    agreement: float
    """Mean over texts of the share of pairs of forms that agree."""
    kappa: float | None
    """Fleiss; None where every text has the same answer in every form."""
    low: float | None
    high: float | None
    divergence: float | None
    """Of the answer: mean Jensen-Shannon divergence to the mean over forms, nats."""


class PairRow(msgspec.Struct, frozen=True, kw_only=True):
    """Two ways to ask whether a statement holds."""

    kind: str
    """`order`, `wording` or `negation`."""
    first: str
    second: str
    consistent: float
    """Share of statements answered alike; for a negation, answered differently."""
    chance: float
    """Of that share, if the two answers were independent at their own rates."""
    kappa: float | None
    """Cohen; None where one of the forms is answered the same way every time."""
    low: float | None
    high: float | None
    agrees_first: float
    """Share of statements that the first form affirms: the bias of the answer."""
    agrees_second: float
    valid: float
    """Share of statements with a valid answer in both."""
    gap: float | None
    """For a negation: mean |P(agree with it) + P(agree with its negation) - 1|."""


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """Where in the list the answer stands, over texts and orders; `answer last` is left out."""

    counts: tuple[int, ...]
    expected: tuple[float, ...]
    """If labels were answered as often as they are, wherever they stand."""
    statistic: float
    """Chi-square of the two; without a p, since the orders of one text are not independent."""
    p: float | None = None
    """Of results of before it was left out."""


class Axis(msgspec.Struct, frozen=True, kw_only=True):
    """Items of one axis of a questionnaire."""

    axis: str
    items: int
    score: float
    """Mean of key times +1 where the statement is affirmed, -1 else."""
    negated_score: float
    """The same by the negations, turned; what it should be equal to."""


class Questionnaire(msgspec.Struct, frozen=True, kw_only=True):
    """The model's own answers to statements."""

    file: str
    digest: str
    items: int
    valid: float
    pairs: tuple[PairRow, ...]
    axes: tuple[Axis, ...]


class ConsistencyResult(msgspec.Struct, frozen=True, kw_only=True):
    """Answers and internal readouts of the same texts in many forms."""

    texts: int
    unreadable: int
    """Texts too long in one of the forms."""
    labels: tuple[str, ...]
    rule: str
    """How the labels are told apart in the first form."""
    statement_rule: str
    """How `True` and `False` are told apart."""
    fragments: tuple[str, ...] = ()
    """Labels and statement words whose first token is white space or one letter: because of them
    whole words are compared."""
    gold: tuple[str, ...]
    counts: dict[str, int]
    """Label of the dataset to number of texts read."""
    forms: tuple[FormRow, ...]
    agreements: tuple[AgreementRow, ...]
    statements: int
    """Two a text: of the answer in the first form, and of another label, taken in turn."""
    pairs: tuple[PairRow, ...]
    position: Position
    averaged_accuracy: float | None
    """Balanced, of probabilities averaged over the orders."""
    forward_accuracy: float | None
    denied_unchanged: float
    """Share of texts with the same answer after `None of this happened:`."""
    probe: str
    probe_layer: int | None
    probe_template: str
    probe_cosine: tuple[float | None, float | None]
    """Mean over pairs of templates, and of orders, of the cosine of the probe's logits."""
    feature_cosine: tuple[float | None, float | None]
    """The same of the SAEs' activations, mean over SAEs."""
    badge: str
    questionnaire: Questionnaire | None
