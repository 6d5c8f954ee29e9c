"""What the model writes, before and after edits, as the screen shows it. No widgets here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from emotui.cache.probes import DEFINED
from emotui.core.export.written import Change, changes_of
from emotui.core.protocol import GenerationSpec, Progress
from emotui.core.records import Generation, Trace, Written
from emotui.ui.paint import fit, visible

NEW_TOKENS = 40
MORE_SAMPLES = 8
TEMPERATURE = 0.8
"""Of samples, where the text was written greedily before."""
_KINDS = (
    ("answer", "answer"),
    ("readout", "readout z"),
    ("token", "tokens z"),
    ("while_written", "writing z"),
)
_EMOTION = 10
_CELL = 16


@dataclass(frozen=True)
class Side:
    """The texts written without edits, or with them."""

    finished: tuple[Written, ...] = ()
    growing: str | None = None
    """The text that is being written; None where none is."""
    done: int = 0
    """Its tokens."""
    generation: Generation | None = None
    """All of them, once they are written and kept."""


@dataclass(frozen=True)
class Writing:
    """What the Generate screen shows."""

    text: str
    """The text that is continued, uncleaned."""
    edits: tuple[str, ...]
    emotion: str
    """The chosen one."""
    spec: GenerationSpec
    doubts: Mapping[tuple[str, int], str] = field(default_factory=dict)
    """As `doubts_of`."""
    before: Side = Side()
    after: Side = Side()
    running: bool = True
    phase: str = ""
    notice: tuple[str, ...] = ()

    def side(self, *, edited: bool) -> Side:
        """Return one side."""
        return self.after if edited else self.before

    def with_side(self, side: Side, *, edited: bool) -> Writing:
        """Return the same with another side."""
        return replace(self, after=side) if edited else replace(self, before=side)


def progressed(writing: Writing, progress: Progress, *, edited: bool) -> Writing:
    """Return what is shown after a progress event: the text grown, or one more finished."""
    side = writing.side(edited=edited)
    if progress.written is not None:
        side = replace(side, finished=(*side.finished, progress.written), growing=None, done=0)
        phase = ""
    elif progress.text:
        side, phase = replace(side, growing=progress.text, done=progress.done), ""
    else:
        phase = progress.phase
    return replace(writing.with_side(side, edited=edited), phase=phase)


def finished(writing: Writing, generation: Generation, *, edited: bool) -> Writing:
    """Return what is shown once one side is written; more may follow."""
    side = Side(finished=generation.samples, generation=generation)
    left = bool(writing.edits) and not edited
    return replace(writing.with_side(side, edited=edited), phase="", running=left)


def stopped(writing: Writing, *notice: str) -> Writing:
    """Return what is shown after an error or a cancel: what was finished stays."""
    return replace(writing, running=False, phase="", notice=notice)


def more(spec: GenerationSpec) -> GenerationSpec:
    """Return the specification with more samples; the first of them are those there are."""
    if spec.temperature == 0:
        return GenerationSpec(spec.new_tokens, TEMPERATURE, MORE_SAMPLES)
    return GenerationSpec(spec.new_tokens, spec.temperature, spec.samples + MORE_SAMPLES)


def longer(spec: GenerationSpec) -> GenerationSpec:
    """Return the specification with twice as many tokens."""
    return GenerationSpec(2 * spec.new_tokens, spec.temperature, spec.samples)


def how(spec: GenerationSpec) -> str:
    """Return a specification in words."""
    if spec.temperature == 0:
        return f"{spec.new_tokens} tokens, greedy"
    texts = "1 text" if spec.samples == 1 else f"{spec.samples} texts"
    return f"{texts} of {spec.new_tokens} tokens, temperature {spec.temperature:g}"


def parse_spec(words: str) -> GenerationSpec | None:
    """Return the specification that words as `60 x8 t0.8` ask for; None for others.

    What is not said is 40 tokens, one text, greedy; several texts are drawn at temperature 0.8.
    """
    tokens, samples = NEW_TOKENS, 1
    temperature: float | None = None
    try:
        for word in words.split():
            if word.startswith("x"):
                samples = int(word[1:])
            elif word.startswith("t"):
                temperature = float(word[1:])
            else:
                tokens = int(word)
    except ValueError:
        return None
    if temperature is None:
        temperature = TEMPERATURE if samples > 1 else 0.0
    if tokens < 1 or samples < 1 or not (math.isfinite(temperature) and temperature >= 0):
        return None
    return GenerationSpec(tokens, temperature, samples)


def counts_of(written: Written, *, edited: bool) -> str:
    """Return seed, length, and how often the edits acted in prefill and while decoding."""
    said = f"seed {written.seed} · {len(written.tokens)} tokens"
    if edited and written.fired_in_prompt is not None:
        decoded = written.fired - written.fired_in_prompt
        said += f" · acted {written.fired_in_prompt} in prompt, {decoded} after"
    return said


def paragraphs(writing: Writing, *, edited: bool) -> list[tuple[str, str]]:
    """Return a heading and a text, cleaned, for each text of a side."""
    side = writing.side(edited=edited)
    found = [
        (counts_of(one, edited=edited), _shown(one.text) or "(nothing)") for one in side.finished
    ]
    if side.growing is not None:
        heading = f"writing · {side.done} of {writing.spec.new_tokens}"
        found.append((heading, f"{_shown(side.growing)}▌"))
    return found


def remarks(writing: Writing) -> list[str]:
    """Return what must be known of the comparison, in words."""
    if not writing.edits:
        return ["Nothing is edited, so there is nothing to compare with: edit, then g again."]
    before, after = writing.before.generation, writing.after.generation
    if before is None or after is None:
        return []
    if not any(one.fired for one in after.samples):
        return [
            "The edits acted nowhere: the prompt ends with the text, without the question after it."
        ]
    pairs = list(zip(before.samples, after.samples, strict=True))
    same = sum(one.tokens == other.tokens for one, other in pairs)
    if same == len(pairs):
        return ["The edits changed no token of what was written."]
    return [f"{same} of {len(pairs)} texts are the same with the edits."] if same else []


def _shown(text: str) -> str:
    return "\n".join(visible(line) for line in text.strip().splitlines())


def reading_lines(writing: Writing) -> list[str]:
    """Return what was read in the texts: an emotion a row, the chosen one first; [] before that."""
    before, after = writing.before.generation, writing.after.generation
    if before is None or (writing.edits and after is None):
        return []
    changes = {change.metric: change for change in changes_of(before, after)}
    emotions = dict.fromkeys(metric.partition(".")[2] for metric in changes)
    ranked = sorted(
        emotions,
        key=lambda emotion: (emotion != writing.emotion, -_size(changes, emotion)),
    )
    kinds = [kind for kind in _KINDS if any(m.startswith(f"{kind[0]}.") for m in changes)]
    head = "".join(f"{_heading(writing, before, kind, name):>{_CELL}}" for kind, name in kinds)
    lines = [f"{'':{_EMOTION}}{head}"]
    for emotion in ranked:
        cells = [_cell(changes.get(f"{kind}.{emotion}"), kind) for kind, _ in kinds]
        name = _row_name(writing, before, emotion)
        lines.append(f"{name:<{_EMOTION}}" + "".join(f"{c:>{_CELL}}" for c in cells))
    lines.append("answer, readout, tokens: what was written, read again alone without edits;")
    lines.append("writing: its tokens as they were written, edits in force")
    if re.search(r"L\d+[lu]\b", head) or any(" " in key for key, _ in writing.doubts):
        lines.append("l lexical, u untrusted: what the probe is worth at its best layer")
    chosen = [
        changes[f"{kind}.{ranked[0]}"] for kind, _ in kinds if f"{kind}.{ranked[0]}" in changes
    ]
    intervals = [
        f"{change.metric} {_interval(change)}" for change in chosen if change.low is not None
    ]
    if intervals:
        lines.append(f"change, 95 % over {chosen[0].n} pairs: " + " · ".join(intervals))
    return lines


def _size(changes: dict[str, Change], emotion: str) -> float:
    change = changes.get(f"answer.{emotion}")
    if change is None:
        return 0.0
    return abs(change.before if change.after is None else change.after - change.before)


def doubts_of(trace: Trace) -> dict[tuple[str, int], str]:
    """Return a letter for each kind of probe and layer that is lexical or untrusted.

    Of the probes of emotions that the user defined, kind and emotion stand together: what they are
    worth says nothing of the others.
    """
    names = {
        probe.id: f"{probe.kind} {probe.emotions[0]}"
        if probe.label_set.startswith(DEFINED)
        else probe.kind
        for probe in trace.probes
    }
    columns = trace.readouts
    rows = zip(columns.probe, columns.site, columns.layer, columns.trust, strict=True)
    return {
        (names[probe], layer): trust[0]
        for probe, site, layer, trust in rows
        if site == "resid" and trust != "trusted" and probe in names
    }


def _heading(writing: Writing, generation: Generation, kind: str, name: str) -> str:
    """Return a column's name, with the layer that the probe is read at and its trust."""
    layers = _layers_read(generation, kind)
    own = {key.split(" ", 1)[1] for key, _ in writing.doubts if " " in key}
    for emotion, (probe, layer) in layers.items():
        if emotion not in own:
            return f"{name} L{layer}{writing.doubts.get((probe, layer), '')}"
    return name


def _row_name(writing: Writing, generation: Generation, emotion: str) -> str:
    """Return an emotion, with the trust of its own probes where the user defined it."""
    letters = {
        writing.doubts.get((f"{probe} {emotion}", layer), "")
        for kind, _ in _KINDS
        for probe, layer in [_layers_read(generation, kind).get(emotion, ("", 0))]
    }
    doubt = "".join(sorted(letters - {""}))
    return f"{fit(visible(emotion), _EMOTION - 1 - len(doubt)).rstrip()} {doubt}".rstrip()


def _layers_read(generation: Generation, kind: str) -> dict[str, tuple[str, int]]:
    """Return the kind of probe and the layer that each emotion of a column is read with."""
    wanted = ("token", "while_written") if kind == "while_written" else (kind, "read_again")
    return {
        emotion: (probe, layer)
        for sample in generation.samples
        for probe, read, layer, emotion in zip(
            *(sample.readings.kind, sample.readings.how, sample.readings.layer),
            sample.readings.emotion,
            strict=True,
        )
        if (probe, read) == wanted
    }


def _cell(change: Change | None, kind: str) -> str:
    if change is None:
        return "-"
    form = ".2f" if kind == "answer" else "+.1f"
    before = format(change.before, form)
    return before if change.after is None else f"{before} → {format(change.after, form)}"


def _interval(change: Change) -> str:
    return f"{change.low:+.2f} to {change.high:+.2f}"
