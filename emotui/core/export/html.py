"""HTML: one page of a trace, complete in itself: shaded tokens, heat maps, effects, answer.

No script, no picture and no font from elsewhere, and a policy in the page that forbids them.
Every string of a text, a model or a label is cleaned and escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from emotui.core.export.verification import sentences_of
from emotui.core.findings import Verification
from emotui.core.records import Control, Note, ProbeKind, ProbeSummary, Site, Trace, Trust
from emotui.core.text import clean

_STRONGEST = 4.0  # z at which the shade is full
_TOP_FEATURES = 20
_MAKES_NO_CLAIM = "neutral"
_RESID: Site = "resid"
_TRUST: Mapping[Trust, int] = {"trusted": 2, "lexical": 1, "untrusted": 0}
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;"
    "color:#222;background:#fff}table{border-collapse:collapse;font-size:13px;margin:1rem 0}"
    "td,th{padding:2px 6px;border-bottom:1px solid #ddd;text-align:right}"
    "td:first-child,th:first-child{text-align:left}.text{white-space:pre-wrap;line-height:2.1}"
    ".token{padding:2px 0;border-radius:2px}.aside{color:#666}.untrusted{color:#888}"
    ".hollow{outline:1px dashed #888;outline-offset:-1px}.wide{overflow-x:auto}"
    "figure{margin:1rem 0}figcaption{color:#444}td.words{text-align:left;max-width:24rem}"
)


@dataclass(frozen=True)
class _Cell:
    z: float | None
    trust: Trust
    hollow: bool
    """Read outside the kind of position the probe was fitted on, or along an edit's direction."""


_Cells = Mapping[tuple[int, int, str], _Cell]
"""Layer, position and emotion to what the probe reads in the residual stream."""


def html_bytes(
    trace: Trace,
    *,
    notes: Sequence[Note] = (),
    verification: Verification | None = None,
) -> bytes:
    """Return the page of a trace, UTF-8; the same trace and notes give the same bytes.

    `notes` are what the user wrote beside the trace; `verification` is of its last edit. A part
    that the trace has nothing for is left out, and said where its absence would mislead.
    """
    title = f"{trace.run.model}: trace {trace.id}"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width">',
        f"<title>{_said(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{_said(title)}</h1>",
        *_run(trace),
        *_readings(trace),
        *_edits(trace),
        *_effects(trace),
        *_elsewhere(verification),
        *_answer(trace),
        *_features(trace),
        *_notes(notes),
        "</body></html>\n",
    ]
    return "\n".join(parts).encode("utf-8", "replace")


def _said(text: str) -> str:
    return escape(clean(text))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are HTML already."""
    cells = "".join(f"<th>{name}</th>" for name in head)
    body = "".join(
        f"<tr>{''.join(one if one.startswith('<td') else f'<td>{one}</td>' for one in row)}</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{cells}</tr>{body}</table></div>'


def _run(trace: Trace) -> Iterable[str]:
    run = trace.run
    facts = [
        f"{run.architecture}, {run.layers} layers of width {run.d_model}, counted from "
        f"{run.layer_base}; {run.dtype} on {run.device}, attention {run.attention}",
        f"fingerprint {run.fingerprint[:16]}"
        + ("" if run.revision is None else f", revision {run.revision}"),
        f"template {run.template}, seed {run.seed}",
        ", ".join(f"{name} {version}" for name, version in sorted(run.packages.items())),
    ]
    yield f'<p class="aside">{"<br>".join(_said(fact) for fact in facts)}</p>'
    if run.note:
        yield f"<p><strong>{_said(run.note)}</strong></p>"


def _cells(trace: Trace, probe: ProbeSummary) -> dict[tuple[int, int, str], _Cell]:
    columns = trace.readouts
    return {
        (columns.layer[row], columns.position[row], columns.emotion[row]): _Cell(
            columns.z[row], columns.trust[row], bool(columns.mark[row])
        )
        for row in range(len(columns.probe))
        if columns.probe[row] == probe.id and columns.site[row] == _RESID
    }


def _probe(trace: Trace, kind: ProbeKind) -> ProbeSummary | None:
    return next((one for one in trace.probes if one.kind == kind), None)


def _emotion(trace: Trace, probe: ProbeSummary) -> str:
    """Return the emotion that is shaded: the answer's likeliest that the probe tells."""
    known = [one for one in probe.emotions if one != _MAKES_NO_CLAIM] or list(probe.emotions)
    answered = {} if trace.answer is None else trace.answer.labels
    return max(known, key=lambda one: (answered.get(one, -1.0), -known.index(one)))


def _layer_shown(cells: _Cells) -> int:
    """Return the highest layer among those that are trusted most; no number of the text chooses."""
    best = max(_TRUST[cell.trust] for cell in cells.values())
    return max(layer for (layer, _, _), cell in cells.items() if _TRUST[cell.trust] == best)


def _readings(trace: Trace) -> Iterable[str]:
    yield "<h2>Text</h2>"
    token = _probe(trace, "token")
    # A document that was written with the readout alone holds no token of the text.
    cells = {
        place: cell
        for place, cell in ({} if token is None else _cells(trace, token)).items()
        if trace.text.tokens[place[1]].part == "text"
    }
    if token is None or not cells:
        yield f'<p class="text">{_tokens(trace, {}, 0, "")}</p>'
        yield "<p>The trace holds no probe readings of these tokens: nothing is shaded.</p>"
    else:
        emotion, layer = _emotion(trace, token), _layer_shown(cells)
        yield f'<p class="text">{_tokens(trace, cells, layer, emotion)}</p>'
        trust = next(cell.trust for (at, _, _), cell in cells.items() if at == layer)
        yield (
            f"<p>Shaded: {_said(emotion)} at layer {_layer(layer)} ({trust}), "
            f"{_legend()}. Template and special tokens are grey.</p>"
        )
        yield "<h2>Layers</h2>"
        yield _by_token(trace, cells, emotion)
    readout = _probe(trace, "readout")
    found = {} if readout is None else _cells(trace, readout)
    if readout is not None and found:
        yield _by_emotion(trace, found, readout)


def _legend() -> str:
    return (
        "z against neutral texts; orange above, blue below; outlined where the number says little "
        "(read where the probe was not fitted, or along an edit's own direction)"
    )


def _layer(layer: int) -> str:
    return "emb" if layer < 0 else str(layer)


def _shade(z: float | None) -> str:
    if z is None or not math.isfinite(z):
        return ""
    depth = min(abs(z) / _STRONGEST, 1.0)
    colour = "217,131,36" if z > 0 else "85,149,207"
    return f"background:rgba({colour},{0.75 * depth:.2f})"


def _tokens(trace: Trace, cells: _Cells, layer: int, emotion: str) -> str:
    parts = []
    for position, token in enumerate(trace.text.tokens):
        cell = cells.get((layer, position, emotion))
        inside = token.part == "text" and not token.special
        known = cell is not None and cell.z is not None and inside
        about = f"{position}: {token.string!r}"
        if known and cell is not None:
            about += f", z {cell.z:+.2f}"
        names = ["token", *(["aside"] if not inside else [])]
        names += ["hollow"] if known and cell is not None and cell.hollow else []
        style = f' style="{_shade(cell.z)}"' if known and cell is not None else ""
        parts.append(
            f'<span class="{" ".join(names)}" title="{_said(about)}"{style}>'
            f"{_said(token.string)}</span>"
        )
    return "".join(parts)


def _number(cell: _Cell | None) -> str:
    if cell is None or cell.z is None or not math.isfinite(cell.z):
        return "<td></td>"
    names = [
        *(["hollow"] if cell.hollow else []),
        *(["untrusted"] if cell.trust == "untrusted" else []),
    ]
    return f'<td class="{" ".join(names)}" style="{_shade(cell.z)}">{cell.z:+.1f}</td>'


def _trust_at(cells: _Cells, layer: int) -> Trust:
    return next(cell.trust for (at, _, _), cell in cells.items() if at == layer)


def _by_token(trace: Trace, cells: _Cells, emotion: str) -> str:
    layers = sorted({layer for layer, _, _ in cells}, reverse=True)
    shown = [n for n, token in enumerate(trace.text.tokens) if token.part == "text"]
    head = ["layer", "trust", *(_said(trace.text.tokens[n].string) for n in shown)]
    rows = (
        [
            _layer(layer),
            _trust_at(cells, layer),
            *(_number(cells.get((layer, n, emotion))) for n in shown),
        ]
        for layer in layers
    )
    caption = f"{_said(emotion)} at every token and layer of the residual stream, z"
    return f"<figure><figcaption>{caption}</figcaption>{_table(head, rows)}</figure>"


def _by_emotion(trace: Trace, cells: _Cells, probe: ProbeSummary) -> str:
    layers = sorted({layer for layer, _, _ in cells}, reverse=True)
    head = ["layer", "trust", *map(_said, probe.emotions)]
    at = trace.text.readout
    rows = (
        [
            _layer(layer),
            _trust_at(cells, layer),
            *(_number(cells.get((layer, at, emotion))) for emotion in probe.emotions),
        ]
        for layer in layers
    )
    scores = "its accuracy not measured"
    if probe.held_out_accuracy is not None and probe.bag_accuracy is not None:
        scores = (
            f"held-out balanced accuracy {probe.held_out_accuracy:.2f}, bag of embeddings "
            f"{probe.bag_accuracy:.2f}"
        )
    judged = f", judged on {_said(probe.judged_on)}" if probe.judged_on else ""
    has_z = any(cell.z is not None for cell in cells.values())
    unit = "z" if has_z else "without z, as the probe saw no neutral texts"
    caption = (
        f"every emotion at the readout, {unit}; probe {_said(probe.id)}, fitted on "
        f"{_said(probe.data)}{judged}, {scores}"
    )
    return f"<figure><figcaption>{caption}</figcaption>{_table(head, rows)}</figure>"


def _edits(trace: Trace) -> Iterable[str]:
    if trace.edits:
        listed = "".join(f"<li><code>{_said(edit)}</code></li>" for edit in trace.edits)
        yield f"<h2>Edits, in the order they were made</h2><ol>{listed}</ol>"
    if trace.intervention is not None:
        done = trace.intervention
        selected = "; selected on this same text" if done.selected else ""
        yield (
            f"<p>The hook fired at {done.fired} places; the delta is at most {done.delta_norm:.3g} "
            f"of the activation's norm; KL of the next token {done.kl:.3g} nats{selected}.</p>"
        )
        for note in done.notes:
            yield f"<p>{_said(note)}</p>"


def _effects(trace: Trace) -> Iterable[str]:
    if not trace.effects:
        return
    names = list(dict.fromkeys(c.name for effect in trace.effects for c in effect.controls))
    head = ["metric", "clean", "before", "after", "change"]
    head += [name.replace("_", " ") for name in names] + ["noise", "verdict"]
    rows = []
    for effect in trace.effects:
        by_name = {control.name: control for control in effect.controls}
        numbers = (f"{value:.4g}" for value in (effect.clean, effect.before, effect.after))
        rows.append(
            [
                _said(effect.metric),
                *numbers,
                f"{effect.delta:+.4g}",
                *(_control(by_name.get(name)) for name in names),
                f"{effect.noise:.1g}",
                f'<td class="words">{_said(effect.verdict)}</td>',
            ]
        )
    yield f"<h2>Effects of the last edit</h2>{_table(head, rows)}"
    said = [f"{c.name.replace('_', ' ')}: {c.note}" for e in trace.effects for c in e.controls]
    wanted = [line for line in dict.fromkeys(said) if not line.endswith(": ")]
    if wanted:
        yield f"<ul>{''.join(f'<li>{_said(line)}</li>' for line in wanted)}</ul>"


def _control(control: Control | None) -> str:
    if control is None or not control.deltas:
        return "none"
    low, high = min(control.deltas), max(control.deltas)
    rank = "" if control.rank is None else f"rank {control.rank} of {len(control.deltas) + 1}; "
    return f"{rank}{low:+.2g} to {high:+.2g}"


def _elsewhere(found: Verification | None) -> Iterable[str]:
    if found is None:
        return
    lines = [line for group in sentences_of(found) for line in group]
    yield "<h2>On other texts</h2>" + "".join(f"<p>{_said(line)}</p>" for line in lines)


def _answer(trace: Trace) -> Iterable[str]:
    if trace.answer is None:
        return
    rows = sorted(trace.answer.labels.items(), key=lambda item: (-item[1], item[0]))
    table = _table(["label", "probability"], ([_said(n), f"{p:.4f}"] for n, p in rows))
    yield f"<h2>The model's answer</h2>{table}"


def _features(trace: Trace) -> Iterable[str]:
    columns = trace.features
    rows = [n for n, at in enumerate(columns.position) if at == trace.text.readout]
    if not rows:
        return

    def size(row: int) -> float:
        estimate = columns.attribution[row]
        return abs(estimate) if estimate is not None else 0.0

    rows.sort(key=lambda row: (-size(row), -columns.activation[row], columns.layer[row]))
    head = ["feature", "site", "activation", "estimated effect of ablating", "label"]
    body = []
    for row in rows[:_TOP_FEATURES]:
        estimate = columns.attribution[row]
        body.append(
            [
                f"L{columns.layer[row]}/{columns.index[row]}",
                columns.site[row],
                f"{columns.activation[row]:.3g}",
                "" if estimate is None else f"{estimate:+.3g}",
                f'<td class="words">{_said(columns.label[row])}</td>',
            ]
        )
    metric = "" if trace.attribution is None else f" on {_said(trace.attribution.metric)}"
    yield (
        f"<h2>Features at the readout</h2><p>{len(body)} of {len(rows)}, largest estimate"
        f"{metric} first; an estimate is no effect until an ablation confirms it.</p>"
        f"{_table(head, body)}"
    )
    for sae in trace.saes:
        if sae.variance_explained is not None and sae.variance_explained < 0.5:
            yield (
                f"<p>The SAE of {sae.site}.{sae.layer} rebuilds this text badly (variance "
                f"explained {sae.variance_explained:.2f}).</p>"
            )


def _notes(notes: Sequence[Note]) -> Iterable[str]:
    if notes:
        listed = "".join(f"<li>{_said(note.time)}: {_said(note.text)}</li>" for note in notes)
        yield f"<h2>Notes</h2><ul>{listed}</ul>"
