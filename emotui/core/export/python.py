"""Python: a script that redoes a trace's edits with PyTorch hooks and checks its numbers.

The script is `redo.txt` with the trace's numbers put in as a literal. It needs torch, transformers
and safetensors, and no emotui; it names no path of the machine it was written on.
"""

from __future__ import annotations

import math
import pprint
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from emotui.core.edits import (
    Edit,
    FeatureEdit,
    HeadEdit,
    JointEdit,
    KnockEdit,
    Layers,
    ProjectEdit,
    PromoteEdit,
    parse_edit,
    positions_in,
)
from emotui.core.errors import ExportError
from emotui.core.export.json import at_readout
from emotui.core.model_names import hub_id_of
from emotui.core.records import Features, Readouts, Site, Trace
from emotui.core.text import template_named

Norms = Mapping[tuple[Site, int], float]
"""By site and layer, the corpus mean of the norm of the activation: the unit of strength."""
Directions = Mapping[tuple[str, int], Sequence[float]]
"""By emotion and layer, the unit directions that are promoted along, where these are means."""
Fields = dict[str, Any]

_TEMPLATE = Path(__file__).with_name("redo.txt")
_HOLE = "TRACE = {}\n"
_DIGITS = 8
_KEPT_AT_READOUT = 512  # active features of an SAE that a trace keeps there, at most
_LLAMA = ("model.layers", "self_attn", "mlp", "self_attn.o_proj")
_POST_NORMED = (
    *("model.layers", "post_attention_layernorm", "post_feedforward_layernorm"),
    "self_attn.o_proj",
)
MODULES: Mapping[str, tuple[str, str, str, str]] = MappingProxyType(
    {
        **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "phi3"), _LLAMA),
        **dict.fromkeys(("olmo2", "gemma2", "gemma3_text"), _POST_NORMED),
        "gemma3": ("model.language_model.layers", *_POST_NORMED[1:]),
        "gpt_neox": ("gpt_neox.layers", "attention", "mlp", "attention.dense"),
        "gpt2": ("transformer.h", "attn", "mlp", "attn.c_proj"),
    }
)
"""Names of the modules that the hooks go on, by architecture: the blocks, and in each block what
gives `attn`, `mlp` and takes `z`. Those of the engine's site table."""


@dataclass(frozen=True)
class Units:
    """What edits are fractions of, or go along, and no document holds."""

    norms: Norms
    directions: Directions


def script_bytes(
    trace: Trace,
    *,
    ancestors: Sequence[Trace] = (),
    all_tokens: bool = False,
    norms: Norms | None = None,
    directions: Directions | None = None,
) -> bytes:
    """Return the script of a trace; the same trace gives the same bytes.

    Each ancestor is checked too, as far as its edits are the first of the trace's. `norms` are
    needed for steering and promoting alone, `directions` for promoting along means. With
    `all_tokens` false, readouts are those of the readout position. Raises ExportError for an edit
    or a model that the script cannot redo.
    """
    fields = _fields(
        trace, ancestors, all_tokens=all_tokens, units=Units(norms or {}, directions or {})
    )
    literal = pprint.pformat(fields, width=96, compact=True, sort_dicts=False)
    before, found, after = _TEMPLATE.read_text(encoding="utf-8").partition(_HOLE)
    assert found, "redo.txt has a place for the trace"
    return f"{before}TRACE = {ascii_only(literal)}\n{after}".encode()


def ascii_only(literal: str) -> str:
    """Return a Python literal with every other character escaped: none of it can mislead."""
    return literal.encode("ascii", "backslashreplace").decode("ascii")


def _refused(what: str, why: str) -> ExportError:
    return ExportError(what, why=why, todo="Export this trace with --to json or --to md.")


def _fields(trace: Trace, ancestors: Sequence[Trace], *, all_tokens: bool, units: Units) -> Fields:
    run, text = trace.run, trace.text
    names = MODULES.get(run.architecture)
    if names is None:
        raise _refused(
            "The script for this model could not be written.",
            "Where its parts are is known to TransformerLens's bridge alone.",
        )
    edits = [parse_edit(line) for line in trace.edits]
    steps = [
        _steps(number, edit, positions_in(edit.positions, text), run.layers, units)
        for number, edit in enumerate(edits, start=1)
    ]
    lineage = [one for one in ancestors if one.edits == trace.edits[: len(one.edits)]]
    lead = "" if template_named(run.template).chat else " "
    answer = trace.answer
    return {
        "id": trace.id,
        "model": hub_id_of(run.model),
        "revision": run.revision,
        "dtype": run.dtype,
        "attention": run.attention,
        "layers": run.layers,
        "width": run.d_model,
        "seed": run.seed,
        "packages": dict(run.packages),
        "modules": dict(zip(("blocks", "attn", "mlp", "z"), names, strict=True)),
        "saes": list(dict.fromkeys(sae.sae.rpartition("/")[0] or "." for sae in trace.saes)),
        "probes": [probe.id for probe in trace.probes],
        "tokens": [token.id for token in text.tokens],
        "answer": {
            "rule": "first_token" if answer is None else answer.rule,
            "lead": lead,
            "labels": [] if answer is None else list(answer.labels),
        },
        "edits": [
            {"edit": line, "steps": some} for line, some in zip(trace.edits, steps, strict=True)
        ],
        "stages": [
            _stage(one, edits, all_tokens=all_tokens)
            for one in sorted((*lineage, trace), key=lambda one: len(one.edits))
        ],
    }


def _steps(
    number: int, edit: Edit, positions: Sequence[int], layers: int, units: Units
) -> list[Fields]:
    """Return what an edit does at each of its places, as the script reads it."""

    def norm(site: Site, layer: int) -> float:
        if (site, layer) not in units.norms:
            raise _refused(
                f"Edit {number} ({_name(edit)}) could not be put into a script.",
                "Its strength is a fraction of the corpus mean of the norm of the activation, "
                "which is in no document, and not in this cache either.",
            )
        return units.norms[site, layer]

    def direction(emotion: str, layer: int) -> Sequence[float]:
        if (emotion, layer) not in units.directions:
            raise _refused(
                f"Edit {number} ({_name(edit)}) could not be put into a script.",
                "Its direction is a mean over texts of the corpus, which is in no document, and "
                "not in this cache either.",
            )
        return units.directions[emotion, layer]

    if isinstance(edit, JointEdit):
        return [
            step for part in edit.parts for step in _steps(number, part, positions, layers, units)
        ]
    where: Fields = {"positions": list(positions)}
    if isinstance(edit, FeatureEdit):
        value = edit.value or 0.0
        if edit.operation == "steer":
            value *= norm(edit.site, edit.layer)
        place = {"do": edit.operation, "site": edit.site, "layer": edit.layer}
        return [{**place, "index": edit.index, "value": value, **where}]
    if isinstance(edit, KnockEdit | HeadEdit) and edit.kind in ("zero", "random"):
        site = edit.site if isinstance(edit, KnockEdit) else "z"
        head = {} if isinstance(edit, KnockEdit) else {"head": edit.head}
        return [
            {"do": "knock", "kind": edit.kind, "site": site, "layer": layer, **head, **where}
            for layer in edit.layers.numbers
        ]
    if isinstance(edit, PromoteEdit | ProjectEdit):
        window = edit.layers or Layers(0, layers - 1)
        along: Fields = {"site": "resid", "emotion": edit.emotion, **where}
        if isinstance(edit, ProjectEdit):
            return [{"do": "project", "layer": layer, **along} for layer in window.numbers]
        steps: list[Fields] = [
            {"do": "promote", "layer": layer, "value": edit.value * norm("resid", layer), **along}
            for layer in window.numbers
        ]
        if edit.along == "means":
            for step in steps:
                step["unit"] = list(direction(edit.emotion, step["layer"]))
        return steps
    raise _refused(
        f"Edit {number} ({_name(edit)}) could not be put into a script.",
        "What it puts in comes from other texts, which the script does not have.",
    )


def _name(edit: Edit) -> str:
    """Return the kind of an edit, without any text that is in it."""
    kind = f" {edit.kind}" if isinstance(edit, KnockEdit | HeadEdit) else ""
    return str(edit).split(" ", 1)[0] + kind


def _stage(trace: Trace, edits: Sequence[Edit], *, all_tokens: bool) -> Fields:
    """Return the numbers of one trace of the lineage."""
    shown = trace if all_tokens else at_readout(trace)
    done = trace.intervention
    answer = trace.answer
    return {
        "edits": len(trace.edits),
        "answer": None if answer is None else {n: _number(p) for n, p in answer.labels.items()},
        "mass": None if answer is None or answer.mass is None else _number(answer.mass),
        "readout_layer": None if done is None else done.readout_layer,
        "intervention": None
        if done is None
        else {
            "fired": done.fired,
            "kl": _number(done.kl),
            "delta_norm": _number(done.delta_norm),
        },
        "effects": [
            {
                "metric": effect.metric,
                **{
                    state: _number(getattr(effect, state))
                    for state in ("clean", "before", "after", "delta")
                },
            }
            for effect in trace.effects
        ],
        "features": _features(trace, edits),
        "readouts": _readouts(shown.readouts),
    }


def _features(trace: Trace, edits: Sequence[Edit]) -> list[tuple[Site, int, int, int, float]]:
    """Return the activations of all edited features at all edited positions, where known.

    A feature with no row at the readout was not active there, unless the trace was full.
    """
    kept: dict[tuple[Site, int, int], dict[int, float]] = {}
    columns: Features = trace.features
    for row, site in enumerate(columns.site):
        there = kept.setdefault((site, columns.layer[row], columns.position[row]), {})
        there.setdefault(columns.index[row], columns.activation[row])
    wanted = {
        (edit.site, edit.layer, edit.index, position)
        for several in edits
        for edit in (several.parts if isinstance(several, JointEdit) else (several,))
        if isinstance(edit, FeatureEdit)
        for position in positions_in(edit.positions, trace.text)
    }
    found = []
    for site, layer, index, position in sorted(wanted):
        there = kept.get((site, layer, position), {})
        value = there.get(index)
        if value is None and position == trace.text.readout and 0 < len(there) < _KEPT_AT_READOUT:
            value = 0.0
        if value is not None:
            found.append((site, layer, index, position, _number(value)))
    return found


def _readouts(readouts: Readouts) -> list[tuple[Any, ...]]:
    """Return rows of probe, site, layer, position, and the columns of the emotions there."""
    rows: dict[tuple[str, Site, int, int], tuple[list[str], list[float], list[float | None]]] = {}
    for row, probe in enumerate(readouts.probe):
        place = (probe, readouts.site[row], readouts.layer[row], readouts.position[row])
        emotions, values, zs = rows.setdefault(place, ([], [], []))
        emotions.append(readouts.emotion[row])
        values.append(_number(readouts.value[row]))
        z = readouts.z[row]
        zs.append(None if z is None else _number(z))
    return [(*place, *columns) for place, columns in rows.items()]


def _number(value: float) -> float:
    if not math.isfinite(value):
        raise _refused("The trace could not be put into a script.", "A number is not finite.")
    return float(f"{value:.{_DIGITS}g}")
