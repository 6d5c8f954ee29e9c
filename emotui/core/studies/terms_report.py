"""The result of the study of emotion words in sentences, tables and plots."""

from __future__ import annotations

from emotui.core.emotions import PLUTCHIK
from emotui.core.studies.common.report import Cell, Heat, Line, Plot, Report, Table
from emotui.core.studies.terms_results import TermsResult, TermsRow


def report(result: TermsResult) -> Report:
    """Say how near the expected words are to the true ones, and what they are made of."""
    sentences = [
        f"{result.examples:,} words were asked for, of {result.texts:,} texts, with "
        f"{result.words:,} words of {result.table} (weights on eight basic emotions; EmoLex, as "
        "published figures use it, also has positive and negative)."
    ]
    if result.without_term:
        sentences.append(
            f"{result.without_term:,} of them have no true word and count in no accuracy."
        )
    if result.unknown:
        sentences.append(
            f"{result.unknown:,} true words are not in the table: they are made of nothing, so "
            "their F1 is 0."
        )
    if result.empty:
        sentences.append(
            f"{result.empty:,} true words are made of none of the eight (neutral): their F1 is 0 "
            "whatever is said, as in the published figures; AccL and AccV say whether it was right."
        )
    sentences += [_said(result, row) for row in result.rows if not row.control]
    sentences += [
        f"{name}: {count:,} were too long for the model and are left out."
        for name, count in result.unreadable.items()
        if count
    ]
    if result.moved is not None:
        sentences.append(_said_moved(result))
    tables = [_rows_table(result), _profiles_table(result)]
    if result.confusions:
        tables.append(_confusions_table(result))
    if result.worst:
        tables.append(_worst_table(result))
    if result.layers:
        tables.append(_layers_table(result))
    prompts = tuple((name, prompt) for name, prompt in result.prompts.items())
    tables.append(Table("Prompts, examples left out", ("condition", "prompt"), prompts))
    return Report(tuple(sentences), tuple(tables), plots=_plots(result), heats=_heats(result))


def _said(result: TermsResult, row: TermsRow) -> str:
    beside = [
        one for one in result.rows if one.control and one.readout == row.readout and row.p is None
    ]
    held = "; ".join(f"{one.condition}: F1V {one.f1_v:.2f}{_divergence(one)}" for one in beside)
    invalid = "" if row.invalid is None else f", {row.invalid:.0%} no word of the table"
    against = "" if row.p is None else f"; against the first condition p {row.p:.2g}"
    return (
        f"{row.condition}, {row.readout}: the very word {row.acc_l:.2f} (AccL), the same basic "
        f"emotions {row.acc_v:.2f} (AccV), F1V {row.f1_v:.2f} [{row.f1_low or 0:.2f}, "
        f"{row.f1_high or 0:.2f}]{_divergence(row)}{invalid}{against}"
        + (f". To be held against {held}." if held else ".")
    )


def _divergence(row: TermsRow) -> str:
    if row.js is None or row.js_low is None or row.js_high is None:
        return ""
    return f", JS {row.js:.3f} [{row.js_low:.3f}, {row.js_high:.3f}]"


def _said_moved(result: TermsResult) -> str:
    moved = result.moved
    assert moved is not None
    changes = sorted(zip(PLUTCHIK, moved.weights, strict=True), key=lambda change: -abs(change[1]))
    largest = ", ".join(f"{emotion} {change:+.3f}" for emotion, change in changes[:3])
    return (
        f"With {moved.edit!r} the composition moves by {moved.js:.4f} nats on average (largest: "
        f"{largest}), and {moved.changed:.0%} of {moved.texts:,} likeliest words change. An edit "
        "has no controls here; `emotui inspect --do` measures it beside random ones."
    )


def _rows_table(result: TermsResult) -> Table:
    columns = (
        *("condition", "readout", "examples", "AccL", "AccV", "F1V", "F1V low", "F1V high"),
        *("JS", "JS low", "JS high", "p true", "invalid", "d", "p", "control"),
    )
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            *(row.condition, row.readout, row.examples, row.acc_l, row.acc_v, row.f1_v),
            *(
                row.f1_low,
                row.f1_high,
                row.js,
                row.js_low,
                row.js_high,
                row.p_true,
                row.invalid,
                row.d,
                row.p,
            ),
            "control" if row.control else "",
        )
        for row in result.rows
    )
    return Table("Words", columns, rows)


def _profiles_table(result: TermsResult) -> Table:
    columns = ("condition", "readout", "true word", "texts", *PLUTCHIK, "undecomposed", "entropy")
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            *(row.condition, row.readout, row.term, row.texts),
            *(*row.weights, row.undecomposed, row.entropy),
        )
        for row in result.profiles
    )
    return Table("What the words are made of", columns, rows)


def _confusions_table(result: TermsResult) -> Table:
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (row.condition, row.readout, row.term, row.predicted, row.texts, row.share)
        for row in result.confusions
    )
    columns = ("condition", "readout", "true word", "predicted", "texts", "share")
    return Table("Commonest confusions", columns, rows)


def _worst_table(result: TermsResult) -> Table:
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (row.id, row.row, row.term, row.predicted, row.f1_v, row.js) for row in result.worst
    )
    columns = ("id", "row", "true word", "predicted", "F1V", "JS")
    return Table("Worst texts, by id", columns, rows)


def _layers_table(result: TermsResult) -> Table:
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (row.layer, *row.weights, row.js_final, row.f1_v) for row in result.layers
    )
    columns = ("layer", *PLUTCHIK, "JS to the last", "F1V")
    return Table(f"Logit lens, mean over {result.layer_texts:,} words asked for", columns, rows)


def _plots(result: TermsResult) -> tuple[Plot, ...]:
    if not result.layers:
        return ()
    x = tuple(float(row.layer) for row in result.layers)
    lines = tuple(
        Line(emotion, x, tuple(row.weights[number] for row in result.layers))
        for number, emotion in enumerate(PLUTCHIK)
    )
    plots = [Plot("What the words of the logit lens are made of", "layer", "weight", lines)]
    first = next((row for row in result.rows if not row.control), None)
    if first is not None and any(row.f1_v is not None for row in result.layers):
        chance = next(row for row in result.rows if row.control)
        plots.append(
            Plot(
                "F1 of the likeliest word of the logit lens",
                "layer",
                "F1V",
                (
                    Line("lens", x, tuple(row.f1_v for row in result.layers)),
                    Line("words of other texts", x, (chance.f1_v,) * len(x), control=True),
                ),
            )
        )
    return tuple(plots)


def _heats(result: TermsResult) -> tuple[Heat, ...]:
    first = result.profiles[0]
    rows = [
        row
        for row in result.profiles
        if (row.condition, row.readout) == (first.condition, first.readout)
    ]
    return (
        Heat(
            f"What the words are made of, by the true word ({first.condition}, {first.readout})",
            tuple(row.term for row in rows),
            PLUTCHIK,
            tuple(row.weights for row in rows),
        ),
    )
