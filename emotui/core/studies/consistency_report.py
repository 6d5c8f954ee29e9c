"""The result of the study of consistency in sentences, tables and plots."""

from __future__ import annotations

from collections.abc import Sequence

from emotui.core.forms import LEAST_VALID
from emotui.core.studies.common.report import Cell, Line, Plot, Report, Table
from emotui.core.studies.consistency_results import (
    AgreementRow,
    ConsistencyResult,
    PairRow,
    Questionnaire,
)

_GROUPS = {"template": "prompts", "order": "orders of the labels"}


def report(result: ConsistencyResult) -> Report:
    """Say how far the answers stay, and whether what stands inside is steadier."""
    sentences = [
        f"{result.texts:,} texts were asked in {len(result.forms)} forms that name labels, and "
        f"{result.statements:,} statements in six. Badge: {result.badge}.",
        *(_said(row) for row in result.agreements if row.readout == "answer"),
        _internal(result),
        *(_said_pair(pair) for pair in result.pairs if pair.kind == "negation"),
        _said_position(result),
        _said_valid(result),
        f"With {'None of this happened:'!r} before the text, {result.denied_unchanged:.0%} of the "
        "answers stay the same; a reader of the whole prompt would change most.",
    ]
    if result.averaged_accuracy is not None:
        sentences.append(
            f"Averaged over the orders the answer has a balanced accuracy of "
            f"{result.averaged_accuracy:.2f}; in the forward order {result.forward_accuracy:.2f}."
        )
    if result.unreadable:
        sentences.append(f"{result.unreadable:,} texts were too long in one of the forms.")
    tables = [_forms_table(result), _agreements_table(result), _pairs_table(result.pairs)]
    if result.questionnaire is not None:
        sentences.append(_said_questionnaire(result.questionnaire))
        tables += _questionnaire_tables(result.questionnaire)
    return Report(tuple(sentences), tuple(tables), plots=_plots(result))


def _kappa(kappa: float | None, low: float | None = None, high: float | None = None) -> str:
    if kappa is None:
        return "not defined, an answer never varies"
    interval = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
    return f"{kappa:.2f}{interval}"


def _said(row: AgreementRow) -> str:
    return (
        f"Over {row.forms} {_GROUPS[row.group]} two answers to a text agree in {row.agreement:.0%} "
        f"of the pairs; Fleiss' kappa {_kappa(row.kappa, row.low, row.high)}."
    )


def _internal(result: ConsistencyResult) -> str:
    probes = [row for row in result.agreements if row.readout == "probe"]
    if not probes:
        return (
            "No probe is trusted in this prompt, so no probe was asked; `emotui probe fit` fits "
            "them. The logit lens is in the plots."
        )
    said = []
    for row in probes:
        answer = next(
            one for one in result.agreements if (one.group, one.readout) == (row.group, "answer")
        )
        said.append(
            f"over {_GROUPS[row.group]} kappa {_kappa(row.kappa, row.low, row.high)}, the answer's "
            f"{_kappa(answer.kappa, answer.low, answer.high)}"
        )
    return (
        f"The probe at layer {result.probe_layer}, fitted in {result.probe_template!r} alone: "
        f"{'; '.join(said)}."
    )


def _said_pair(pair: PairRow) -> str:
    return (
        f"Negated ({pair.second!r}), {pair.consistent:.0%} of the statements are answered the "
        f"other way round, by chance {pair.chance:.0%}; kappa "
        f"{_kappa(pair.kappa, pair.low, pair.high)}. The statement is affirmed in "
        f"{pair.agrees_first:.0%}, its negation in {pair.agrees_second:.0%}; the model writes an "
        f"answer to both in {pair.valid:.0%}"
        + ("." if pair.valid >= LEAST_VALID else ", so that none of this is what it would say.")
    )


def _said_position(result: ConsistencyResult) -> str:
    position = result.position
    shares = ", ".join(f"{n / max(sum(position.counts), 1):.0%}" for n in position.counts)
    return (
        f"Where in the list the answer stands, from first to last: {shares}; against what the "
        f"texts' own answers expect, chi-square {position.statistic:.1f} (without a p: the orders "
        "of one text are not independent)."
    )


def _said_valid(result: ConsistencyResult) -> str:
    worst = min(result.forms, key=lambda row: row.valid)
    statements = min((pair.valid for pair in result.pairs), default=0.0)
    return (
        f"What the model would write begins an answer in {result.forms[0].valid:.0%} of the texts "
        f"in the first form, in {worst.valid:.0%} in the worst ({worst.form}); for statements in "
        f"{statements:.0%} in the worst pair. Where it does not, the answer is what is likeliest "
        "among the words all the same. Labels are told apart by the rule "
        f"{result.rule!r}, True and False by {result.statement_rule!r}."
        + (
            f" The first token of {', '.join(result.fragments)} is white space or one letter, "
            "which begins many other words, so whole words are compared."
            if result.fragments
            else ""
        )
    )


def _forms_table(result: ConsistencyResult) -> Table:
    columns = ("kind", "form", "valid", "accuracy", "lost", "p", "same", "commonest", "share")
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            *(row.group, row.form, row.valid, row.accuracy, row.lost, row.p, row.same),
            *(row.commonest, row.commonest_share),
        )
        for row in result.forms
    )
    return Table("Forms that ask for a label", columns, rows)


def _agreements_table(result: ConsistencyResult) -> Table:
    columns = (
        *("kind", "readout", "layer", "forms", "majority", "agreement"),
        *("kappa", "low", "high", "divergence"),
    )
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            *(row.group, row.readout, "" if row.layer is None else f"L{row.layer}", row.forms),
            *(row.majority, row.agreement, row.kappa, row.low, row.high, row.divergence),
        )
        for row in result.agreements
    )
    return Table("Agreement over forms", columns, rows)


def _pairs_table(pairs: Sequence[PairRow], title: str = "Statements") -> Table:
    columns = (
        *("kind", "first", "second", "consistent", "chance", "kappa", "low", "high"),
        *("affirms first", "affirms second", "valid", "gap"),
    )
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            *(pair.kind, pair.first, pair.second, pair.consistent, pair.chance, pair.kappa),
            *(pair.low, pair.high, pair.agrees_first, pair.agrees_second, pair.valid, pair.gap),
        )
        for pair in pairs
    )
    return Table(title, columns, rows)


def _said_questionnaire(found: Questionnaire) -> str:
    negation = found.pairs[-1]
    return (
        f"{found.items:,} items of {found.file}: valid answers {found.valid:.0%}; a negation turns "
        f"{negation.consistent:.0%} of the answers (chance {negation.chance:.0%}), kappa "
        f"{_kappa(negation.kappa, negation.low, negation.high)}. A score on an axis means "
        "something only where its negated score is like it."
    )


def _questionnaire_tables(found: Questionnaire) -> list[Table]:
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (axis.axis, axis.items, axis.score, axis.negated_score) for axis in found.axes
    )
    return [
        _pairs_table(found.pairs, "Items of the questionnaire"),
        Table("Axes", ("axis", "items", "score", "score by negations"), rows),
    ]


def _plots(result: ConsistencyResult) -> tuple[Plot, ...]:
    lines = []
    for group, name in _GROUPS.items():
        rows = [row for row in result.agreements if (row.group, row.readout) == (group, "lens")]
        if not rows:
            return ()
        answer = next(
            row for row in result.agreements if (row.group, row.readout) == (group, "answer")
        )
        x = tuple(float(row.layer or 0) for row in rows)
        lines += [
            Line(
                f"lens, {name}",
                x,
                tuple(row.kappa for row in rows),
                tuple(row.low for row in rows),
                tuple(row.high for row in rows),
            ),
            Line(f"answer, {name}", x, (answer.kappa,) * len(x), control=True),
        ]
    return (Plot("Fleiss' kappa over forms", "layer", "kappa", tuple(lines)),)
