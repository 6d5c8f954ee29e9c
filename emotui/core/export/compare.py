"""Two traces compared: as a JSON document, and as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from emotui.core.difference import ComparedTrace, Difference, FeatureDifferences, at_readout
from emotui.core.records import EMBEDDING_LAYER
from emotui.core.text import clean

FEATURES = 12
"""Features that are shown of each kind."""
_MOST_COLUMNS = 9
_LARGEST = 20


class CompareDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `emotui compare --json` prints."""

    schema: Literal["emotui-compare"] = "emotui-compare"
    schema_version: Literal[1] = 1
    difference: Difference


def document_bytes(difference: Difference, *, all_tokens: bool = False) -> bytes:
    """Return the document as JSON: sorted keys, a newline at the end; the readout's rows alone
    unless all tokens are asked for."""
    kept = difference if all_tokens else at_readout(difference)
    return msgspec.json.encode(CompareDocument(difference=kept), order="sorted") + b"\n"


def lines_of(difference: Difference) -> list[str]:
    """Return the difference at the readout, cleaned."""
    kept = at_readout(difference)
    lines = [*_named("A", kept.first), *_named("B", kept.second), "Every change is B minus A."]
    lines += [clean(note) for note in kept.notes]
    if kept.answer.labels:
        lines += ["", f"{'answer':<14} {'A':>7} {'B':>7} {'change':>8}", *answer_lines(kept)]
    lines += ["", *_readouts(kept)]
    place = kept.pairs.index((kept.first.readout, kept.second.readout))
    for change in ("vanished", "appeared"):
        rows = changed_features(kept.features, pair=place, change=change)
        if rows:
            lines += ["", f"Features that {change} at the readout"]
            lines += [f"  {line}" for line in feature_lines(kept.features, rows[:FEATURES])]
            if len(rows) > FEATURES:
                lines.append(f"  and {len(rows) - FEATURES} more")
    for name, side in (("A", kept.first), ("B", kept.second)):
        for text in side.written:
            lines += ["", f"Written by {name}", f"  {clean(text)}"]
    return lines


def _named(name: str, side: ComparedTrace) -> Iterator[str]:
    edits = clean("; ".join(side.edits)) or "no edit"
    yield f"{name}  {side.id}  {clean(side.model)}  {clean(side.template)}  {edits}"
    yield f"   {clean(side.raw)}"


def answer_lines(difference: Difference) -> list[str]:
    """Return a line for each label: both probabilities and the change."""
    answer = difference.answer
    rows = zip(answer.labels, answer.first, answer.second, strict=True)
    return [
        f"{clean(label)[:14]:<14} {one:>7.3f} {other:>7.3f} {other - one:>+8.3f}"
        for label, one, other in rows
    ]


def layer_name(layer: int) -> str:
    """Return a layer as tables write it."""
    return "emb" if layer == EMBEDDING_LAYER else f"L{layer}"


def _readouts(kept: Difference) -> list[str]:
    columns = kept.readouts
    if not columns.layer:
        return ["They share no readout."]
    emotions = list(dict.fromkeys(columns.emotion))
    unit = columns.unit[0]
    change = {
        (site, layer, emotion): second - first
        for site, layer, emotion, first, second in zip(
            columns.site, columns.layer, columns.emotion, columns.first, columns.second, strict=True
        )
    }
    if len(emotions) > _MOST_COLUMNS:
        largest = sorted(change, key=lambda place: -abs(change[place]))[:_LARGEST]
        return [
            f"Largest changes of readouts at the readout ({unit})",
            *(
                f"  {site}.{layer_name(layer)} {clean(emotion):<16} "
                f"{change[site, layer, emotion]:>+8.3f}"
                for site, layer, emotion in largest
            ),
        ]
    lines = [f"Change of the readouts at the readout ({unit}), residual stream"]
    lines.append("      " + "".join(f"{clean(emotion)[:9]:>10}" for emotion in emotions))
    layers = sorted({layer for site, layer, _ in change if site == "resid"}, reverse=True)
    for layer in layers:
        cells = (change.get(("resid", layer, emotion)) for emotion in emotions)
        row = "".join(f"{'-':>10}" if cell is None else f"{cell:>+10.3f}" for cell in cells)
        lines.append(f"{layer_name(layer):>5} {row}")
    return lines


def changed_features(
    columns: FeatureDifferences,
    *,
    pair: int,
    change: str,
    site: str | None = None,
    layer: int | None = None,
) -> list[int]:
    """Return the rows of features that changed in a way at a pair of tokens, largest first."""
    rows = [
        row
        for row, how in enumerate(columns.change)
        if how == change
        and columns.pair[row] == pair
        and (site is None or columns.site[row] == site)
        and (layer is None or columns.layer[row] == layer)
    ]
    return sorted(rows, key=lambda row: -abs(columns.second[row] - columns.first[row]))


def feature_lines(columns: FeatureDifferences, rows: list[int]) -> list[str]:
    """Return a line for each feature: name, both activations, label."""
    lines = []
    for row in rows:
        site, layer, index = columns.site[row], columns.layer[row], columns.index[row]
        name = f"L{layer}/{index}" if site == "resid" else f"{site}:L{layer}/{index}"
        doubt = "" if columns.certain[row] else " (or below the largest kept)"
        lines.append(
            f"{name:<12} {columns.first[row]:>8.3f} → {columns.second[row]:>8.3f}  "
            f"{clean(columns.label[row])}{doubt}"
        )
    return lines
