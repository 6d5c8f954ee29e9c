"""One feature in detail: as a JSON document, and as lines of text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from emotui.core.details import (
    CorpusReading,
    FeatureDetail,
    FeatureHere,
    FiringText,
    RemovedHere,
    WrittenToken,
    margin_of,
)
from emotui.core.records import Token
from emotui.core.text import clean

RAMP = "·░▒▓█"
"""Glyphs of an activation, from above 0 to the largest."""
Section = tuple[str, list[str]]
"""A heading and its lines."""


class FeatureDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `emotui feature --json` prints."""

    schema: Literal["emotui-feature"] = "emotui-feature"
    schema_version: Literal[1] = 1
    model: str
    fingerprint: str
    feature: FeatureDetail


def document_bytes(detail: FeatureDetail, *, model: str, fingerprint: str) -> bytes:
    """Return the document as JSON: sorted keys, a newline at the end."""
    document = FeatureDocument(model=model, fingerprint=fingerprint, feature=detail)
    return msgspec.json.encode(document, order="sorted") + b"\n"


def sections_of(detail: FeatureDetail, *, emotion: str = "", width: int = 100) -> list[Section]:
    """Return what is known of a feature, cleaned, in sections of lines of `width` characters.

    `emotion` is the one whose readout is told layer by layer; "" is the one that changed most.
    """
    sections = [("", _names(detail))]
    if detail.here is not None:
        sections.append(("Activation in this text", _activation(detail.here, width)))
        sections.append((f"Removed at token {detail.here.position}", _removed(detail, emotion)))
    sections.append(("Promotes", _flow(map(_written, detail.promoted), width)))
    sections.append(("Suppresses", _flow(map(_written, detail.suppressed), width)))
    if detail.corpus is not None:
        sections += _corpus(detail.corpus, width)
    return [(heading, _wrapped(rows, width)) for heading, rows in sections]


def _wrapped(rows: Sequence[str], width: int) -> list[str]:
    """Return lines cut at spaces where they are longer than `width`; what goes on is indented."""
    return [
        part
        for row in rows
        for part in (
            [row] if len(row) <= width else textwrap.wrap(row, width, subsequent_indent="  ")
        )
    ]


def lines_of(detail: FeatureDetail, *, emotion: str = "", width: int = 100) -> list[str]:
    """Return the same as lines, an empty one before each heading."""
    lines: list[str] = []
    for heading, rows in sections_of(detail, emotion=emotion, width=width):
        if heading:
            lines += ["", heading]
        lines += [f"  {row}" if heading else row for row in rows]
    return lines


def ramp_of(value: float, largest: float) -> str:
    """Return the glyph of an activation beside the largest; "" where it is not active."""
    if not value > 0 or not largest > 0:
        return ""
    return RAMP[min(len(RAMP) - 1, int(value / largest * len(RAMP)))]


def _names(detail: FeatureDetail) -> list[str]:
    lines = [
        f"{detail.name}  of {clean(detail.sae)} ({detail.width:,} features)",
        f"label: {clean(detail.label) or 'none'}"
        + (f"  ({clean(detail.label_origin)})" if detail.label_origin else ""),
    ]
    if detail.explanation:
        lines.append(f'explained: "{clean(detail.explanation)}" ({clean(detail.origin)})')
    if detail.mismatch:
        lines.append(f"mismatch: {clean(detail.mismatch)}")
    if detail.measured is None:
        lines.append("selectivity: not measured here with held-out texts; `emotui labels fit` does")
    else:
        found = detail.measured
        said = "separates" if found.named else "singles out no emotion; nearest"
        lines.append(
            f"measured: {said} {clean(found.emotion)}, area {found.area:.2f}, on held-out texts "
            f"{found.confirmed:.2f}, p {found.p:.3g}{', specific to it' if found.specific else ''}"
        )
    lines.append(f"page: {clean(detail.page)}" if detail.page else "page: not known at Neuronpedia")
    return lines


def _activation(here: FeatureHere, width: int) -> list[str]:
    largest = max(here.activation, default=0.0)
    tokens = [token.string for token in here.text.tokens]
    lines = _flow(_marked(tokens, here.activation, largest), width, between="")
    rows = sorted(range(len(tokens)), key=lambda row: -here.activation[row])
    for row in [row for row in rows[:6] if here.activation[row] > 0]:
        bar = "█" * max(1, round(10 * here.activation[row] / largest))
        part = _part(here.text.tokens[row])
        lines.append(
            f"{'▸' if row == here.position else ' '}{row:>4} {_quoted(tokens[row]):<16} "
            f"{here.activation[row]:>8.3f}  {bar:<10}  {part}".rstrip()
        )
    if largest <= 0:
        lines.append("It is not active on any token of this prompt.")
    if here.edits:
        lines.append(f"in force: {clean('; '.join(here.edits))}")
    return lines


def _part(token: Token) -> str:
    if token.special:
        return "special token"
    return "" if token.part == "text" else "template"


def _removed(detail: FeatureDetail, emotion: str) -> list[str]:
    here = detail.here
    assert here is not None
    estimate = "not computed"
    if here.attribution is not None:
        estimate = f"{here.attribution:+.3f} on {clean(here.metric)}"
    lines = [f"estimated by one backward pass: {estimate}"]
    if here.removed is None:
        return [*lines, clean(here.note)]
    removed = here.removed
    emotion = emotion if emotion in _emotions(removed) else _most_changed(removed)
    lines.append(f"exact: {clean(removed.edit)}")
    before = margin_of(removed.answer_before, emotion)
    after = margin_of(removed.answer_after, emotion)
    if before is not None and after is not None:
        lines.append(
            f"answer margin of {clean(emotion)}: {before:+.3f} → {after:+.3f} "
            f"({after - before:+.3f} logits), probability "
            f"{removed.answer_before[emotion]:.3f} → {removed.answer_after[emotion]:.3f}"
        )
    for effect in removed.effects:
        if effect.metric in (f"answer.{emotion}", f"readout.{emotion}"):
            lines.append(f"{clean(effect.metric)} {effect.delta:+.4f}: {clean(effect.verdict)}")
    rows = [row for row, name in enumerate(removed.emotion) if name == emotion]
    if rows:
        lines.append(f"readout of {clean(emotion)} ({removed.unit}) at the readout, by layer:")
    for row in rows:
        change = removed.after[row] - removed.before[row]
        lines.append(
            f"  L{removed.layer[row]:<3} {removed.before[row]:>+8.3f} → "
            f"{removed.after[row]:>+8.3f}   {change:>+8.3f}"
        )
    return lines


def _emotions(removed: RemovedHere) -> set[str]:
    return {*removed.emotion, *removed.answer_before}


def _most_changed(removed: RemovedHere) -> str:
    changes = {
        label: abs(removed.answer_after.get(label, value) - value)
        for label, value in removed.answer_before.items()
    }
    return max(changes, key=lambda label: changes[label], default="")


def _corpus(corpus: CorpusReading, width: int) -> list[Section]:
    rows = [
        f"{clean(one.emotion):<14} area {one.area:.2f}  {'█' * round(10 * one.area):<10}  "
        f"active on {one.active:>4.0%} of {one.texts}, mean {one.mean:.3f}"
        for one in corpus.selectivity
    ]
    heading = (
        f"Emotions it separates, at the readout of {corpus.texts:,} texts of the corpus "
        f"({corpus.template})"
    )
    texts: list[str] = []
    largest = max((max(one.activation, default=0.0) for one in corpus.strongest), default=0.0)
    for one in corpus.strongest:
        texts += _firing(one, largest, width)
    if not texts:
        texts = ["It is active on none of them."]
    return [
        (heading, rows),
        (f"Texts of the corpus where it is strongest (active on {corpus.active:.0%})", texts),
    ]


def _firing(one: FiringText, largest: float, width: int) -> list[str]:
    peak = max(one.activation, default=0.0)
    flow = _flow(_marked(one.tokens, one.activation, largest), width - 2, between="")
    return [f"{peak:>8.3f}  {clean(one.emotion)}", *(f"  {line}" for line in flow)]


def _marked(tokens: Sequence[str], activation: Sequence[float], largest: float) -> Iterable[str]:
    """Yield each token, and after an active one its glyph and number."""
    for token, value in zip(tokens, activation, strict=True):
        glyph = ramp_of(value, largest)
        yield f"{clean(token)}{f'{glyph}{value:.1f}' if glyph else ''}"


def _written(token: WrittenToken) -> str:
    return f"{_quoted(token.token)} {token.z:+.1f}"


def _quoted(token: str) -> str:
    return repr(clean(token))


def _flow(parts: Iterable[str], width: int, *, between: str = "  ") -> list[str]:
    """Return parts one after the other, in lines of at most `width` characters."""
    lines: list[str] = []
    line = ""
    for part in parts:
        if line and len(line) + len(between) + len(part) > width:
            lines.append(line)
            line = ""
        line = f"{line}{between}{part}" if line else part.lstrip() if not between else part
    return [*lines, line] if line else lines
