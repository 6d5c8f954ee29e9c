"""A trace as one long table of readouts, in CSV (RFC 4180, UTF-8, a header line)."""

from __future__ import annotations

import csv
import io

from emotui.core.records import Trace

COLUMNS = (
    *("trace", "probe", "probe_kind", "site", "layer", "position", "token", "part"),
    *("emotion", "value", "z", "trust", "mark"),
)
"""`position` counts the tokens of the prompt from 0, layer -1 is the embedding; `value` is the
probe's logit, and `z` is empty where there is none."""

_SIGNS_OF_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n")


def csv_bytes(trace: Trace) -> bytes:
    """Return one row for each readout of a trace, of every token, site and layer it holds.

    Tokens are as they are in the text; one that a spreadsheet would take for a formula has an
    apostrophe before it.
    """
    target = io.StringIO(newline="")
    writer = csv.writer(target)
    writer.writerow(COLUMNS)
    kinds = {probe.id: probe.kind for probe in trace.probes}
    rows, tokens = trace.readouts, trace.text.tokens
    for probe, site, layer, position, emotion, value, z, trust, mark in zip(
        *(rows.probe, rows.site, rows.layer, rows.position, rows.emotion),
        *(rows.value, rows.z, rows.trust, rows.mark),
        strict=True,
    ):
        token = tokens[position]
        writer.writerow(
            (
                *(trace.id, probe, kinds.get(probe, ""), site, layer, position),
                *(_cell(token.string), token.part, _cell(emotion), value),
                *("" if z is None else z, trust, mark),
            )
        )
    return target.getvalue().encode("utf-8", "backslashreplace")


def _cell(text: str) -> str:
    return f"'{text}" if text.lstrip(" ").startswith(_SIGNS_OF_FORMULAS) else text
