"""What the model wrote, before and after edits: as a page of text, and how readings changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from emotui.core.records import Generation, Trace, Written
from emotui.core.text import clean

_RESAMPLES = 2000
_OUTER_PERCENT = (2.5, 97.5)
_HEADINGS = {
    "answer": "the model's answer to what it wrote, read again without edits",
    "readout": "readout probe, what it wrote read again without edits (z)",
    "token": "token probe, what it wrote read again without edits (z)",
    "while_written": "token probe on the tokens as they were written, edits in force (z)",
}


class Change(msgspec.Struct, frozen=True):
    """One reading of the written texts, averaged over samples."""

    metric: str
    """`answer.EMOTION` (probability), else z: `readout.`, `token.` and `while_written.EMOTION`."""
    n: int
    """Samples in which it could be read, with and without the edits."""
    before: float
    """Without edits."""
    after: float | None
    """With them; None where there are none."""
    low: float | None
    """95 % bootstrap interval of after - before, paired by seed; None below two samples."""
    high: float | None


class GenerationDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `emotui generate --json` prints, and what the screen writes."""

    schema: Literal["emotui-generation"] = "emotui-generation"
    schema_version: Literal[1] = 1
    model: str
    text: str
    edits: tuple[str, ...]
    before_trace: str
    after_trace: str | None
    before: Generation
    after: Generation | None
    changes: tuple[Change, ...]


def document_of(before: Trace, after: Trace | None) -> GenerationDocument:
    """Return the document of a text's continuation without edits, and with them."""
    assert before.generation is not None
    written = None if after is None else after.generation
    return GenerationDocument(
        model=before.run.model,
        text=before.text.raw,
        edits=() if after is None else after.edits,
        before_trace=before.id,
        after_trace=None if after is None else after.id,
        before=before.generation,
        after=written,
        changes=changes_of(before.generation, written),
    )


def document_bytes(document: GenerationDocument) -> bytes:
    """Return the document as JSON: sorted keys, a newline at the end."""
    return msgspec.json.encode(document, order="sorted") + b"\n"


def readings_of(written: Written) -> dict[str, float]:
    """Return the readings of one written text by metric; z where there is one."""
    found: dict[str, float] = {}
    if written.answer is not None:
        found |= {f"answer.{label}": p for label, p in written.answer.labels.items()}
    columns = written.readings
    for how, kind, emotion, z in zip(
        columns.how, columns.kind, columns.emotion, columns.z, strict=True
    ):
        if z is not None:
            found[f"{kind if how == 'read_again' else how}.{emotion}"] = z
    return found


def changes_of(before: Generation, after: Generation | None) -> tuple[Change, ...]:
    """Return each reading averaged over samples, and how the edits changed it.

    Samples are paired by seed; the interval is the percentile bootstrap over pairs, drawn with a
    fixed seed.
    """
    first = [readings_of(sample) for sample in before.samples]
    second = first if after is None else [readings_of(sample) for sample in after.samples]
    pairs = list(zip(first, second, strict=True))
    metrics = dict.fromkeys(metric for one, other in pairs for metric in one if metric in other)
    changes = []
    for metric in metrics:
        values = [
            (one[metric], other[metric])
            for one, other in pairs
            if metric in one and metric in other
        ]
        changes.append(_change(metric, values, edited=after is not None))
    return tuple(changes)


def _change(metric: str, values: Sequence[tuple[float, float]], *, edited: bool) -> Change:
    before = sum(one for one, _ in values) / len(values)
    after = sum(other for _, other in values) / len(values)
    low = high = None
    if edited and len(values) > 1:
        low, high = _interval([other - one for one, other in values])
    return Change(metric, len(values), before, after if edited else None, low, high)


def _interval(differences: Sequence[float]) -> tuple[float, float]:
    import numpy as np

    numbers = np.asarray(differences)
    draws = np.random.default_rng(0).integers(len(numbers), size=(_RESAMPLES, len(numbers)))
    low, high = np.percentile(numbers[draws].mean(axis=1), _OUTER_PERCENT)
    return float(low), float(high)


def page_of(document: GenerationDocument) -> str:
    """Return the texts, before and after, and what was read in them; no colour."""
    lines = [f"{clean(document.model)}  {clean(document.text)}"]
    lines += [f"edit    {clean(edit)}" for edit in document.edits]
    lines += ["", f"without edits (trace {document.before_trace})", *_texts(document.before)]
    if document.after is not None:
        lines += ["", f"with the edits (trace {document.after_trace})", *_texts(document.after)]
    width = max((len(change.metric) for change in document.changes), default=0)
    said = ""
    for change in document.changes:
        kind = change.metric.partition(".")[0]
        if kind != said:
            lines += ["", _HEADINGS[kind]]
            said = kind
        lines.append(f"  {change.metric.ljust(width)}  {_numbers(change)}")
    return "\n".join(lines) + "\n"


def _texts(generation: Generation) -> list[str]:
    lines = []
    for sample in generation.samples:
        fired = f", {fired_of(sample)}" if sample.fired else ""
        lines.append(f"  seed {sample.seed}, {len(sample.tokens)} tokens{fired}")
        lines.append(f"    {clean(sample.text) or '(nothing)'}")
    return lines


def fired_of(sample: Written) -> str:
    """Return how often the edits acted while a text was written, in words."""
    if sample.fired_in_prompt is None:
        return f"edits acted at {sample.fired} places"
    decoded = sample.fired - sample.fired_in_prompt
    return f"edits acted at {sample.fired_in_prompt} places of the prompt, {decoded} written after"


def _numbers(change: Change) -> str:
    if change.after is None:
        return f"{change.before:+.3f}"
    interval = ""
    if change.low is not None and change.high is not None:
        interval = f", 95 % {change.low:+.3f} to {change.high:+.3f}, n {change.n}"
    return (
        f"{change.before:+.3f} -> {change.after:+.3f}  "
        f"({change.after - change.before:+.3f}{interval})"
    )
