"""A text asked in every form, and emotion words after a text: as JSON, and as lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import Literal

import msgspec

from emotui.core.emotion_terms import TermProfile, TextTerms
from emotui.core.emotions import PLUTCHIK
from emotui.core.forms import FormAnswer, TextConsistency
from emotui.core.text import clean

_BAR = 20
_WIDTH = 74


class ConsistencyDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `emotui consistency --json` prints."""

    schema: Literal["emotui-consistency"] = "emotui-consistency"
    schema_version: Literal[1] = 1
    model: str
    fingerprint: str
    text: str
    consistency: TextConsistency


class TermsDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `emotui terms --json` prints."""

    schema: Literal["emotui-terms"] = "emotui-terms"
    schema_version: Literal[1] = 1
    model: str
    fingerprint: str
    text: str
    terms: TextTerms


def document_bytes(document: ConsistencyDocument | TermsDocument) -> bytes:
    """Return a document as JSON: sorted keys, a newline at the end."""
    return msgspec.json.encode(document, order="sorted") + b"\n"


def consistency_lines(found: TextConsistency) -> list[str]:
    """Return what was answered in each form, at most 78 characters wide."""
    shares = [
        f"prompts agree {_share(found.templates_agree)}",
        f"orders agree {_share(found.orders_agree)}",
        f"negations turn {_share(found.negated)}",
    ]
    lines = [
        f"The answer: {found.badge}.",
        f"Of pairs of forms, {', '.join(shares)}. Averaged over the orders: {found.averaged}.",
    ]
    if found.probe_layer is not None:
        lines.append(
            f"The probe at L{found.probe_layer}, fitted in one prompt: pairs agree "
            f"{_share(found.probe_agrees)}."
        )
    else:
        lines.append("No probe is trusted for this prompt, so none was asked.")
    lines.append(f"Labels of {found.label_set} are told apart by the rule {found.rule}.")
    named = [one for one in found.answers if one.group in ("template", "order", "denied")]
    lines = [part for line in lines for part in wrap(line, _WIDTH)]
    lines += ["", f"{'':<8} {'form':<11} {'answer':<14} {'p':>5} valid {'probe':<14} lens"]
    lines += [_named(one, before) for one, before in _beside(named)]
    stated = [one for one in found.answers if one.group in ("binary", "negation")]
    lines += ["", f"{'':<8} {'form':<11} {'the writer feels':<17} {'':<10} {'p':>5} valid"]
    lines += [
        f"{_kind(one, before):<8} {one.form:<11} {clean(one.about):<17} {one.answer:<10} "
        f"{one.probability:>5.2f} {_valid(one)}"
        for one, before in _beside(stated)
    ]
    lines += [
        "",
        "valid: the likeliest next token of all begins an answer. lens: the layer",
        "from which on the logit lens gives this answer. denied: the same prompt",
        "after 'None of this happened:'.",
    ]
    return lines


def _beside(rows: Sequence[FormAnswer]) -> list[tuple[FormAnswer, FormAnswer | None]]:
    return list(zip(rows, [None, *rows[:-1]], strict=True))


def _kind(one: FormAnswer, before: FormAnswer | None) -> str:
    return "" if before is not None and before.group == one.group else one.group


def _named(one: FormAnswer, before: FormAnswer | None) -> str:
    return (
        f"{_kind(one, before):<8} {one.form:<11} {clean(one.answer):<14} {one.probability:>5.2f} "
        f"{_valid(one):<5} {clean(one.probe) or '-':<14} {_settled(one)}"
    )


def _valid(one: FormAnswer) -> str:
    return "yes" if one.valid else "no"


def _settled(one: FormAnswer) -> str:
    """Return the first layer from which the lens gives the answer; - where it is not read."""
    if not one.lens:
        return "-"
    layer = len(one.lens)
    while layer and one.lens[layer - 1] == one.answer:
        layer -= 1
    return f"L{layer}" if layer < len(one.lens) else "-"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


_FLAT = 10  # times an even share; below, the likeliest word hardly stands out


def terms_lines(found: TextTerms) -> list[str]:
    """Return the likeliest words and what they are made of, at most 78 characters wide."""
    plain, edited = found.plain, found.edited
    lines = [
        f"{found.words} words of {clean(found.table)} after the prompt {found.template}; "
        "p over the list.",
        f"corrected: the scores after {found.neutral!r} are subtracted (PMI).",
    ]
    lines += ["", *_word_lines("likeliest", plain)]
    if edited is not None:
        lines += ["", f"with {'; '.join(clean(edit) for edit in found.edits)}"]
        lines += _word_lines("likeliest", edited)
    beside = f"{'with edits':>12}" if edited is not None else ""
    lines += ["", f"{'made of':<14} {'p':>6} {'corrected':>10}{beside}"]
    for emotion in PLUTCHIK:
        after = "" if edited is None else f"{edited.weights[emotion]:>12.3f}"
        bar = "#" * round(_BAR * min(1.0, plain.weights[emotion]))
        lines.append(
            f"{emotion:<14} {plain.weights[emotion]:>6.3f} {plain.corrected[emotion]:>10.3f}"
            f"{after}  {bar}"
        )
    lines.append(f"{'undecomposed':<14} {plain.undecomposed:>6.3f}")
    lines.append(f"{'entropy':<14} {plain.entropy:>6.2f} nats")
    if plain.undecomposed > max(plain.weights.values()):
        lines.append("No emotion: more is on words made of none of the eight than on any of these.")
    if max(one.corrected for one in plain.terms) < _FLAT / found.words:
        lines.append("corrected is nearly even over the words: its order says little here.")
    if found.divergence is not None:
        lines.append(f"The edits move the eight by {found.divergence:.4f} nats (Jensen-Shannon).")
    if found.layers:
        lines += ["", "layer " + " ".join(f"{emotion[:7]:>7}" for emotion in PLUTCHIK)]
        lines += [
            f"L{layer:<4} " + " ".join(f"{value:>7.3f}" for value in row)
            for layer, row in enumerate(found.layers)
        ]
    return lines


def _word_lines(title: str, profile: TermProfile) -> list[str]:
    by_p = sorted(profile.terms, key=lambda term: -term.probability)[:6]
    by_corrected = sorted(profile.terms, key=lambda term: -term.corrected)[:6]
    likeliest = ", ".join(f"{clean(one.term)} {one.probability:.2f}" for one in by_p)
    informative = ", ".join(f"{clean(one.term)} {one.corrected:.2f}" for one in by_corrected)
    return [
        line
        for name, words in ((title, likeliest), ("corrected", informative))
        for line in wrap(f"{name:<10} {words}", _WIDTH, subsequent_indent=" " * 11)
    ]
