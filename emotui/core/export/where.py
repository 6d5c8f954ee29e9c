"""Where an emotion of a text is: as a JSON document, and as lines of text."""

from __future__ import annotations

from typing import Literal

import msgspec

from emotui.core.phases import phases_of
from emotui.core.records import Where
from emotui.core.text import clean

CLOSE_MARGINS = 0.25
"""Share of the margin that the way to neutral texts must exceed, for shares of it to be steady."""
LEGEND = "R readable  U used  W written by an output of this layer"


class WhereDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `emotui where --json` prints, and what the screen writes."""

    schema: Literal["emotui-where"] = "emotui-where"
    schema_version: Literal[1] = 1
    model: str
    fingerprint: str
    where: Where


def document_bytes(where: Where, *, model: str, fingerprint: str) -> bytes:
    """Return the document as JSON: sorted keys, a newline at the end."""
    document = WhereDocument(model=model, fingerprint=fingerprint, where=where)
    return msgspec.json.encode(document, order="sorted") + b"\n"


def table_of(where: Where, *, width: int = 110) -> list[str]:
    """Return the numbers that the sentence was made from, each beside its control, in lines.

    Of the tokens that attention wrote from, as many as fit in `width` characters.
    """
    strings = [clean(token.string) for token in where.text.tokens]
    lines = [
        f"margin {where.margin:+.3f}; after {where.neutral_texts} neutral "
        f"{'text' if where.neutral_texts == 1 else 'texts'} {where.neutral_margin:+.3f}; "
        f"{where.same_texts} other texts of {where.emotion}",
        *_close(where),
        "",
        "layer            z   moved control     attn      mlp  attention from",
    ]
    columns = where.layers
    for layer, phases in reversed(list(zip(columns.layer, phases_of(where), strict=True))):
        moved, control = columns.moved[layer], columns.control[layer]
        numbers = (
            f"{layer:>5}  {phases.letters}  {_or_dash(columns.z[layer], '+6.2f', 6)}  "
            f"{moved:6.0%} {_or_dash(control, '7.0%', 7)}  {columns.attn[layer]:+7.3f}  "
            f"{columns.mlp[layer]:+7.3f}  "
        )
        lines.append(numbers + _main_sources(where, layer, strings, width - len(numbers)))
    null = "-" if where.null is None else f"{where.null:.2f}"
    lines += [
        "",
        LEGEND,
        f"z: the readout probe; neutral texts reach {null}",
        "moved: with neutral texts at the readout, share of the way to their margin",
        "control: the same with other texts of the emotion",
        "attn, mlp: written beyond the mean of neutral texts, in logits",
        "",
        "replaced by the neutral mean, the margin falls by (by texts of the emotion)",
    ]
    for writer in where.writers:
        lines.append(
            f"  {writer.site}.{writer.layer:<3} estimate {writer.write:+.3f}  exact "
            f"{writer.exact:+.3f}  ({_or_dash(writer.control, '+.3f', 1)})"
        )
    return lines


def _close(where: Where) -> list[str]:
    """Return that shares say little, where the margin is hardly above that of neutral texts."""
    span = where.margin - where.neutral_margin
    if span > CLOSE_MARGINS * abs(where.margin):
        return []
    return [
        f"The margin is {span:+.3f} above that of neutral texts: shares of so little are unsteady,",
        "and say little about where the emotion is.",
    ]


def _or_dash(value: float | None, form: str, width: int) -> str:
    return "-".rjust(width) if value is None else format(value, form)


def _main_sources(where: Where, layer: int, strings: list[str], width: int) -> str:
    rows = [
        (value, position)
        for at, position, value in zip(
            where.sources.layer, where.sources.position, where.sources.value, strict=True
        )
        if at == layer and value > 0
    ]
    said = [f"{strings[at]!r} {value:+.2f}" for value, at in sorted(rows, reverse=True)[:2]]
    while said and len(", ".join(said)) > width:
        said.pop()
    return ", ".join(said)
