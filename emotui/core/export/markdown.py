"""Markdown: what a trace measured as a methods paragraph, its effects, remarks, and notes.

The text itself is left out: what a paper quotes is its author's to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from emotui.core.agreement import sentence_of_fragments
from emotui.core.estimates import estimate_of_last_edit, sentence_of
from emotui.core.export.verification import sentences_of
from emotui.core.findings import Verification
from emotui.core.records import Control, Effect, Note, ProbeSummary, SaeReading, Trace
from emotui.core.text import clean

_MARKDOWN = re.compile(r"([\\`*_\[\]<>|#])")
POORLY_REBUILT = 0.5
_CONTROLS: dict[str, str] = {
    "matched_features": "matched features",
    "random_directions": "random directions",
    "other_emotion": "other emotion",
    "selection": "best of random directions",
}
_RULES = {
    "first_token": "the softmax over the logits of the labels' first tokens at the readout",
    "after_shared_prefix": "the softmax over the labels' first differing tokens, the tokens they "
    "share appended to the prompt",
    "whole_label": "the softmax over the summed log-probabilities of the whole labels",
}


def markdown_bytes(
    trace: Trace,
    *,
    ancestors: Sequence[Trace] = (),
    notes: Sequence[Note] = (),
    verification: Verification | None = None,
) -> bytes:
    """Return the document of a trace, UTF-8; the same trace and notes give the same bytes.

    `notes` are what the user wrote beside the trace and its ancestors; `verification` is of its
    last edit.
    """
    parts = [
        f"# Trace {_code(trace.id)} of {_said(trace.run.model)}",
        "## Methods",
        " ".join(_methods(trace, ancestors)),
        *_edits(trace),
        *_effects(trace),
        *_elsewhere(verification),
        *_answer(trace),
        *_notes(trace, notes),
        "## Remarks",
        "\n".join(f"- {remark}" for remark in _remarks(trace)),
    ]
    return ("\n\n".join(part for part in parts if part) + "\n").encode("utf-8", "replace")


def _said(text: str) -> str:
    """Return a string of others as plain text in Markdown."""
    return _MARKDOWN.sub(r"\\\1", clean(text))


def _code(text: str) -> str:
    """Return a string of others as code; a backtick in it becomes an apostrophe."""
    plain = clean(text).replace("`", "'")
    return f"`{plain}`"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _methods(trace: Trace, ancestors: Sequence[Trace]) -> Iterable[str]:
    run, text = trace.run, trace.text
    inside = sum(token.part == "text" for token in text.tokens)
    revision = "" if run.revision is None else f", revision {_code(run.revision)}"
    yield (
        f"One text (n = 1; {inside} tokens, {len(text.tokens)} with its template "
        f"{_code(run.template)}{', BOS at the front' if run.bos else ''}) was run through "
        f"{_said(run.model)} ({_said(run.architecture)}, {run.layers} layers of width "
        f"{run.d_model}{revision}, fingerprint {_code(run.fingerprint[:16])}) in {run.dtype} on "
        f"{_said(run.device)}, attention {_said(run.attention)}, seed {run.seed}. Layers count "
        f"from {run.layer_base}."
    )
    if trace.answer is not None:
        yield (
            f"The model's answer is {_RULES[trace.answer.rule]} (label set "
            f"{_said(trace.answer.set)}, {len(trace.answer.labels)} labels)."
        )
        if trace.answer.mass is not None:
            yield (
                f"The labels' first tokens hold {trace.answer.mass:.3g} of the whole next-token "
                "distribution."
            )
        if trace.answer.fragments:
            yield _said(sentence_of_fragments(trace.answer))
    yield from (_probe(probe, _unit(trace, probe)) for probe in trace.probes)
    if not trace.probes:
        yield "No probe was in force."
    if trace.saes:
        yield _saes(trace.saes)
    if trace.intervention is not None:
        yield from _intervention(trace, ancestors)
    if trace.generation is not None:
        count = len(trace.generation.samples)
        yield (
            f"{count} continuation{'s' if count > 1 else ''} of at most "
            f"{trace.generation.new_tokens} tokens were drawn at temperature "
            f"{trace.generation.temperature:g}, seeds "
            f"{', '.join(str(one.seed) for one in trace.generation.samples)}."
        )
    versions = ", ".join(f"{_said(name)} {_said(v)}" for name, v in sorted(run.packages.items()))
    yield f"Versions: {versions}."


def _unit(trace: Trace, probe: ProbeSummary) -> str:
    """Return what the probe's numbers in a trace are."""
    found = {
        z is not None
        for name, z in zip(trace.readouts.probe, trace.readouts.z, strict=True)
        if name == probe.id
    }
    if False not in found:
        return "z is in standard deviations of neutral texts"
    if True in found:
        return "z is in standard deviations of neutral texts; where there is none, logits stand"
    return "its numbers are logits: without neutral texts there is no z"


def _probe(probe: ProbeSummary, unit: str) -> str:
    at = "the readout" if probe.kind == "readout" else "tokens of the text"
    judged = f", judged on {_said(probe.judged_on)}" if probe.judged_on else ""
    scores = "its accuracy was not measured"
    if probe.held_out_accuracy is not None and probe.bag_accuracy is not None:
        scores = (
            f"held-out balanced accuracy {probe.held_out_accuracy:.3f} at its best layer, bag of "
            f"embeddings {probe.bag_accuracy:.3f}"
        )
    return (
        f"Linear probe {_code(probe.id)}, fitted at {at} under template "
        f"{_code(probe.template)} on {_said(probe.data)}: {len(probe.emotions)} emotions of "
        f"{_said(probe.label_set)}{judged}, {scores}; {unit}."
    )


def _saes(saes: Sequence[SaeReading]) -> str:
    places = ", ".join(f"{sae.site}.{sae.layer}" for sae in saes)
    known = [sae.variance_explained for sae in saes if sae.variance_explained is not None]
    rebuilt = (
        f"; variance explained on this text {min(known):.2f} to {max(known):.2f}" if known else ""
    )
    widths = ", ".join(sorted({f"{sae.architecture} of width {sae.width}" for sae in saes}))
    return f"SAEs were read at {places} ({_said(widths)}){rebuilt}."


def _intervention(trace: Trace, ancestors: Sequence[Trace]) -> Iterable[str]:
    done = trace.intervention
    assert done is not None
    chosen = (
        f"It was picked from a ranking on this same text, which favours it{_paid_for(trace)}."
        if done.selected
        else "It was not recorded as selected: whether it was picked from what this text showed "
        "is not known here."
    )
    yield (
        f"{len(trace.edits)} edit{'s' if len(trace.edits) > 1 else ''} acted on {done.fired} "
        "(site, layer, position) places, each adding a delta to the tensor at its site; for a "
        "feature (f' - f) D, so that the error of the reconstruction plays no part. Effects are "
        f"those of the last edit, against the run without it. {chosen} The norm of its delta is at "
        f"most {done.delta_norm:.3g} of that of the activation; KL(before || after) of the "
        f"next-token distribution at the readout is {done.kl:.4g} nats."
    )
    if done.readout_layer is not None:
        yield f"Readout metrics are z of the readout probe at resid.{done.readout_layer}."
    first = trace.effects[0].controls if trace.effects else ()
    replaced = [one for one in first if one.name != "selection"]
    stand = [f"{len(one.deltas)} {_CONTROLS[one.name]}" for one in replaced if one.deltas]
    absent = [_CONTROLS[one.name] for one in replaced if not one.deltas]
    if stand:
        yield f"Controls, the same edit in their place: {', '.join(stand)}."
    if absent:
        yield f"Without a control: {', '.join(absent)}."
    yield (
        "A rank is 1 + the number of control deltas at least as large in size. Noise is what a "
        "delta of zero changes on the same path, or rounding; below three times that, no effect "
        "is claimed."
    )
    estimate = estimate_of_last_edit(trace, next(iter(ancestors), None))
    if estimate is not None:
        yield f"Attribution beside the edit itself, {sentence_of(estimate)}."
    if not ancestors:
        yield "The traces before the edits were not at hand for this document."


def _paid_for(trace: Trace) -> str:
    """Return what the picking was compared with."""
    controls = (control for effect in trace.effects for control in effect.controls)
    tested = next((one for one in controls if one.name == "selection" and one.deltas), None)
    if tested is None:
        return "; it was not tested against that"
    return (
        f": its effects are compared with the best of {tested.candidates} random directions, as "
        f"many as there were active features at the edited positions, drawn {len(tested.deltas)} "
        "times, each of the norm of what the same edit of that feature would add (largest change "
        "of any label, or of any emotion's readout)"
    )


def _edits(trace: Trace) -> list[str]:
    if not trace.edits:
        return []
    listed = (f"{number}. {_code(edit)}" for number, edit in enumerate(trace.edits, start=1))
    return ["## Edits, in the order they were made", "\n".join(listed)]


def _effects(trace: Trace) -> list[str]:
    if not trace.effects:
        return []
    there = {control.name for effect in trace.effects for control in effect.controls}
    names = [name for name in _CONTROLS if name in there or name != "selection"]
    titles = [_CONTROLS[name] for name in names]
    head = ["metric", "clean", "before", "after", "change", *titles, "noise", "verdict"]
    rows = (_effect(effect, names) for effect in trace.effects)
    return ["## Effects of the last edit", _table(head, rows)]


def _effect(effect: Effect, names: Sequence[str]) -> list[str]:
    by_name: dict[str, Control] = {control.name: control for control in effect.controls}
    return [
        _said(effect.metric),
        *(f"{value:.4g}" for value in (effect.clean, effect.before, effect.after)),
        f"{effect.delta:+.4g}",
        *(_control(by_name.get(name)) for name in names),
        f"{effect.noise:.1g}",
        _said(effect.verdict),
    ]


def _control(control: Control | None) -> str:
    """Return the rank of the edit among the controls, and what these changed at most."""
    if control is None or not control.deltas:
        return "none"
    low, high = min(control.deltas), max(control.deltas)
    spread = f"{low:+.2g}" if low == high else f"{low:+.2g} to {high:+.2g}"
    rank = "" if control.rank is None else f"rank {control.rank} of {len(control.deltas) + 1}; "
    return f"{rank}{spread}"


def _elsewhere(found: Verification | None) -> list[str]:
    """Return what the last edit did on other texts, as a paragraph."""
    if found is None:
        return []
    texts, judged, controls = sentences_of(found)
    sentences = [line[:1].upper() + line[1:].rstrip(".") + "." for line in texts[1:]]
    parts = [f"{_code(texts[0])}.", *map(_said, (*sentences, *judged, *controls))]
    return ["## On other texts", " ".join(parts)]


def _answer(trace: Trace) -> list[str]:
    if trace.answer is None or trace.effects:
        return []
    rows = sorted(trace.answer.labels.items(), key=lambda item: -item[1])
    table = _table(["label", "probability"], ([_said(n), f"{p:.4f}"] for n, p in rows))
    return ["## Answer", table]


def _notes(trace: Trace, notes: Sequence[Note]) -> list[str]:
    if not notes:
        return []
    lines = (
        f"- {_said(note.time)}{'' if note.trace == trace.id else f' on {_code(note.trace)}'}: "
        f"{_said(note.text)}"
        for note in notes
    )
    return ["## Notes", "\n".join(lines)]


def _remarks(trace: Trace) -> Iterable[str]:
    if trace.run.note:
        yield _said(trace.run.note)
    if trace.intervention is not None:
        yield from map(_said, trace.intervention.notes)
    controls = [control for effect in trace.effects for control in effect.controls]
    said = (f"{_CONTROLS[one.name]}: {_said(one.note)}." for one in controls if one.note)
    yield from dict.fromkeys(said)
    yield (
        "Limits: one text and one model; a readout says what can be read, not what is used. A "
        "probe is trusted at a layer only where it beats its controls there (column `trust` of the "
        "JSON export). A feature that looks causal in a late layer may only be close to the "
        "logits."
    )
    for sae in trace.saes:
        if sae.variance_explained is not None and sae.variance_explained < POORLY_REBUILT:
            yield (
                f"The SAE of {sae.site}.{sae.layer} rebuilds this text badly (variance explained "
                f"{sae.variance_explained:.2f})."
            )
