"""A trace as a page of plain text for a terminal or a pipe."""

from __future__ import annotations

from emotui.core.agreement import rows_at, said_from, sentence_of_fragments, words_of
from emotui.core.estimates import estimate_of_last_edit, sentence_of
from emotui.core.export.markdown import POORLY_REBUILT
from emotui.core.probe_words import line_of
from emotui.core.records import EMBEDDING_LAYER, Readouts, Trace
from emotui.core.text import clean

_TRUST = {"trusted": "", "lexical": "l", "untrusted": "u"}
_BAR_WIDTH = 24
_TOP_FEATURES = 3
_TOP_ATTRIBUTED = 5


def report_of(trace: Trace, parent: Trace | None = None) -> str:
    """Return what a reader wants first: answer, readouts by layer, lens, features; no colour.

    `parent` is the trace without the last edit, where there is one.
    """
    sections = [
        *(_head(trace), _effects(trace, parent), _answer(trace), _readouts(trace), _lens(trace)),
        _said(trace, parent),
        _features(trace),
        _attribution(trace),
    ]
    return "\n".join("\n".join(section) + "\n" for section in sections if section)


def _head(trace: Trace) -> list[str]:
    run = trace.run
    text_tokens = sum(token.part == "text" for token in trace.text.tokens)
    return [
        f"trace {trace.id}  {clean(run.model)}  {run.dtype} on {run.device}  "
        f"template {run.template}",
        f"{clean(trace.text.raw)}",
        f"{len(trace.text.tokens)} tokens, {text_tokens} of them the text's, "
        f"{'BOS' if run.bos else 'no BOS'}; attention {clean(run.attention)}; "
        f"revision {clean(run.revision or 'none')}",
        *([f"note: {clean(run.note)}"] if run.note else []),
    ]


def _effects(trace: Trace, parent: Trace | None) -> list[str]:
    if trace.intervention is None:
        return []
    done = trace.intervention
    lines = [f"edit    {clean(edit)}" for edit in trace.edits]
    lines.append(
        f"  acted at {done.fired} {'place' if done.fired == 1 else 'places'}; "
        f"delta {done.delta_norm:.3f} of the activation's norm; "
        f"KL of the next token {done.kl:.4g} nats" + ("; selected" if done.selected else "")
    )
    lines += [f"  {clean(note)}" for note in done.notes]
    if (estimate := estimate_of_last_edit(trace, parent)) is not None:
        lines.append(f"  {sentence_of(estimate)}")
    lines.append("  the last edit: before -> after, and its rank beside controls")
    width = max((len(effect.metric) for effect in trace.effects), default=0)
    for effect in trace.effects:
        lines.append(
            f"  {effect.metric.ljust(width)}  {effect.before:+.3f} -> {effect.after:+.3f}  "
            f"({effect.delta:+.4f})  {effect.verdict}"
        )
    if done.selected and not any(
        control.name == "selection" for effect in trace.effects for control in effect.controls
    ):
        lines.append("  what was edited was selected; it was not tested against that")
    notes = {
        f"  {control.name.replace('_', ' ')}: {control.note}"
        for effect in trace.effects
        for control in effect.controls
        if control.note
    }
    return lines + sorted(notes)


def _answer(trace: Trace) -> list[str]:
    if trace.answer is None:
        return []
    answer = trace.answer
    rows = sorted(answer.labels.items(), key=lambda item: -item[1])
    width = max(len(label) for label in answer.labels)
    lines = [f"answer  {answer.set}, rule {answer.rule.replace('_', ' ')}"]
    if answer.mass is not None:
        lines[0] += f"; these labels hold {answer.mass:.2f} of the next token"
    if answer.fragments:
        lines.append(f"  {clean(sentence_of_fragments(answer))}")
    for label, probability in rows:
        bar = "#" * round(probability * _BAR_WIDTH)
        lines.append(f"  {label.ljust(width)}  {probability:.3f}  {bar}")
    return lines


def _readouts(trace: Trace) -> list[str]:
    lines: list[str] = []
    for probe in trace.probes:
        rows = _rows_of(trace.readouts, probe.id, trace.text.readout)
        cells = _cells(trace.readouts, rows)
        if not cells:
            continue
        position = "the readout" if probe.kind == "readout" else "the readout, outside its kind"
        lines.append(
            f"probe   {probe.kind}, {probe.label_set}, residual at {position}, "
            f"{_unit(trace.readouts, rows)} (l lexical, u untrusted)"
        )
        lines.append(f"  {clean(line_of(probe))}")
        lines.append("  layer  " + "".join(emotion[:8].rjust(9) for emotion in probe.emotions))
        for layer in sorted({layer for layer, _ in cells}, reverse=True):
            name = "emb" if layer == EMBEDDING_LAYER else str(layer)
            row = "".join(cells.get((layer, emotion), "").rjust(9) for emotion in probe.emotions)
            lines.append(f"  {name.rjust(5)}  {row}")
    return lines


def _rows_of(readouts: Readouts, probe: str, position: int) -> list[int]:
    """Return the rows of the residual of one probe at one position."""
    wanted = (probe, "resid", position)
    places = zip(readouts.probe, readouts.site, readouts.position, strict=True)
    return [row for row, place in enumerate(places) if place == wanted]


def _unit(readouts: Readouts, rows: list[int]) -> str:
    """Return what the numbers of the rows are."""
    known = [readouts.z[row] is not None for row in rows]
    if all(known):
        return "z"
    return (
        "z; ? a logit, where there is no z"
        if any(known)
        else ("logits, marked ?: the probe saw no neutral texts, so there is no z")
    )


def _cells(readouts: Readouts, rows: list[int]) -> dict[tuple[int, str], str]:
    """Return these rows, printed."""
    cells: dict[tuple[int, str], str] = {}
    for row in rows:
        z = readouts.z[row]
        number = f"{readouts.value[row]:+.2f}?" if z is None else f"{z:+.1f}"
        cells[readouts.layer[row], readouts.emotion[row]] = number + (
            _TRUST[readouts.trust[row]] or " "
        )
    return cells


def _lens(trace: Trace) -> list[str]:
    if trace.lens is None or not trace.lens.layer:
        return []
    lines = ["lens    likeliest next tokens by layer, final norm recomputed"]
    words: dict[int, list[str]] = {}
    for layer, token, probability in zip(
        trace.lens.layer, trace.lens.token, trace.lens.probability, strict=True
    ):
        words.setdefault(layer, []).append(f"{clean(token).strip()!r} {probability:.2f}")
    lines += [
        f"  {layer:5d}  " + "  ".join(words[layer][:5]) for layer in sorted(words, reverse=True)
    ]
    return lines


def _said(trace: Trace, parent: Trace | None) -> list[str]:
    """Return what is read, ranked and answered at the readout, a line a layer."""
    if trace.lens is None or not trace.lens.answers:
        return []
    lines = [
        "read, lens, say    the probe, the rank of label words in the lens, the answer; "
        "≠ where they differ"
    ]
    readout = trace.text.readout
    if parent is not None and parent.text != trace.text:
        parent = None
    rows = rows_at(trace, readout)
    theirs = {} if parent is None else rows_at(parent, readout)
    for layer in reversed(range(trace.run.layers)):
        before = None if parent is None else said_from(parent, readout, layer, theirs)
        line = words_of(said_from(trace, readout, layer, rows), before)
        lines.append(f"  {layer:5d}  {clean(line)}")
    return lines


def _features(trace: Trace) -> list[str]:
    rows = [
        row
        for row, position in enumerate(trace.features.position)
        if position == trace.text.readout
    ]
    if not rows:
        return []
    features = trace.features
    lines = ["features at the readout, strongest of each layer", *_rebuilt(trace)]
    by_layer: dict[tuple[int, str], list[int]] = {}
    for row in sorted(rows, key=lambda row: -features.activation[row]):
        by_layer.setdefault((features.layer[row], features.site[row]), []).append(row)
    for layer, site in sorted(by_layer, reverse=True):
        shown = by_layer[layer, site][:_TOP_FEATURES]
        lines.append(
            f"  {site}.{layer}  "
            + "  ".join(
                f"L{layer}/{features.index[row]} {features.activation[row]:.2f}"
                + (f" {clean(features.label[row])}" if features.label[row] else "")
                for row in shown
            )
        )
    return lines


def _rebuilt(trace: Trace) -> list[str]:
    """Return how much of this text's variance the SAEs explain, and which rebuild it badly."""
    known = [sae for sae in trace.saes if sae.variance_explained is not None]
    if not known:
        return []
    values = [sae.variance_explained or 0.0 for sae in known]
    poor = [
        f"{sae.site}.{sae.layer} ({value:.2f})"
        for sae, value in zip(known, values, strict=True)
        if value < POORLY_REBUILT
    ]
    lines = [f"  the SAEs explain {min(values):.2f} to {max(values):.2f} of this text's variance"]
    if poor:
        lines.append(f"  badly rebuilt, so read with care: {', '.join(poor)}")
    return lines


def _attribution(trace: Trace) -> list[str]:
    """Return the features and outputs that one backward pass says matter most."""
    found = trace.attribution
    if found is None:
        return []
    if found.value is None:
        return [f"no attribution: {found.note}"]
    lines = [f"attribution to {clean(found.metric)} ({found.value:+.3f} logits), an estimate"]
    features, strings = trace.features, [clean(token.string) for token in trace.text.tokens]
    rows = [row for row, value in enumerate(features.attribution) if value is not None]
    rows.sort(key=lambda row: -abs(features.attribution[row] or 0.0))
    for row in rows[:_TOP_ATTRIBUTED]:
        site = "" if features.site[row] == "resid" else f"{features.site[row]}:"
        lines.append(
            f"  without {site}L{features.layer[row]}/{features.index[row]} at "
            f"{features.position[row]} {strings[features.position[row]]!r}: "
            f"{features.attribution[row]:+.3f}"
        )
    writes = found.writes
    order = sorted(range(len(writes.value)), key=lambda row: -abs(writes.value[row]))
    said = []
    for row in order[:_TOP_ATTRIBUTED]:
        layer, position = writes.layer[row], writes.position[row]
        where = "emb" if layer == EMBEDDING_LAYER else f"{writes.site[row]}.{layer}"
        said.append(f"{where} at {position} {strings[position]!r} {writes.value[row]:+.3f}")
    return [*lines, "  largest writes: " + "; ".join(said)]
