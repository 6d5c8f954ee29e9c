"""What the console offers: the next word of an edit, of a command or of its argument."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from emotui.core.corpus import APPRAISALS
from emotui.core.edits.completion import (
    Choice,
    Completion,
    EditContext,
    completed,
    edit_choices,
)
from emotui.core.model_names import ALIASES
from emotui.core.records import EMBEDDING_LAYER
from emotui.core.text import TEMPLATES
from emotui.ui.commands import EXPORTS, Command
from emotui.ui.paint import visible
from emotui.ui.state import ScreenState

_MOST_WORDS = 40
_MOST_FEATURES = 400
_WORD = re.compile(r"[^\W_][\w'’-]*")


@dataclass(frozen=True, kw_only=True)
class ConsoleContext:
    """What there is to name in the console."""

    edits: EditContext = field(default_factory=EditContext)
    commands: Mapping[str, Command] = field(default_factory=dict)
    tokens: tuple[str, ...] = ()
    """The tokens as they may be painted."""
    saes: tuple[str, ...] = ()
    """The sources of the SAEs in force."""


def console_completions(line: str, cursor: int, context: ConsoleContext) -> list[Completion]:
    """Return what may stand at the cursor of a line of the console."""
    colon = len(line) - len(line.lstrip().removeprefix(":"))
    colon = colon if line.lstrip().startswith(":") and cursor >= colon else 0
    found = completed(line[colon:], cursor - colon, lambda before: _choices(before, context))
    return [Completion(one.text, one.start + colon, one.end + colon, one.note) for one in found]


def context_of(
    state: ScreenState, *, commands: Mapping[str, Command], recipes: Mapping[str, str]
) -> ConsoleContext:
    """Return what there is to name, given what the screen shows and the recipes there are."""
    if state.readings is None:
        return ConsoleContext(
            edits=EditContext(appraisals=APPRAISALS, recipes=recipes), commands=commands
        )
    trace = state.readings.trace
    words = dict.fromkeys(_WORD.findall(trace.text.raw))
    edits = EditContext(
        layers=trace.run.layers,
        layer=None if state.layer == EMBEDDING_LAYER else state.layer,
        features=dict(_features(state)),
        emotions=state.readings.emotions,
        appraisals=APPRAISALS,
        traces={
            visit.name: visit.what
            for visit in state.visits
            if visit.id != trace.id and visit.fingerprint == trace.run.fingerprint
        },
        recipes=recipes,
        words=tuple(words)[:_MOST_WORDS],
        tokens=len(trace.text.tokens),
        position=state.position,
    )
    return ConsoleContext(
        edits=edits,
        commands=commands,
        tokens=state.readings.token_texts,
        saes=tuple(dict.fromkeys(sae.source for sae in trace.saes)),
    )


def _features(state: ScreenState) -> Iterable[Choice]:
    """Yield the features active at the cursor's token: its site and layer first, then the rest."""
    assert state.readings is not None
    here = [(row.name, row.label) for row in state.features]
    others = [
        (row.name, row.label)
        for site in state.readings.sites
        for layer in state.readings.feature_layers(site)
        if (site, layer) != (state.site, state.layer)
        for row in state.readings.features(site, layer, state.position)
    ]
    return [*here, *others[:_MOST_FEATURES]]


def _choices(before: Sequence[str], context: ConsoleContext) -> list[Choice]:
    if not before:
        named = [(name, one.help) for name, one in context.commands.items() if "." not in name]
        whole = [(name, one.help) for name, one in context.commands.items() if "." in name]
        return [*edit_choices(before, context.edits), *named, *whole]
    command = context.commands.get(before[0].lower())
    if command is None:
        return edit_choices(before, context.edits)
    return list(_arguments(command.name, context)) if len(before) == 1 else []


def _arguments(name: str, context: ConsoleContext) -> Iterable[Choice]:
    edits = context.edits
    if name == "export":
        notes = (
            *("the trace", "a script that redoes it", "methods, effects, notes"),
            *("one page to look at", "a table of all readouts"),
            "an attribution graph for Neuronpedia",
        )
        return zip(EXPORTS, notes, strict=True)
    if name == "emotion":
        return [(emotion, "") for emotion in edits.emotions]
    if name == "layer":
        return [*((str(layer), "") for layer in range(edits.layers)), ("emb", "the embedding")]
    if name == "goto":
        tokens = ((str(number), token) for number, token in enumerate(context.tokens))
        return [("readout", "where the answer is read"), ("last", "of the text"), *tokens]
    if name == "save":
        return [(recipe, f"over {what}") for recipe, what in edits.recipes.items()]
    if name == "metric":
        return _metrics(edits)
    if name == "sae":
        return [("none", "no features"), *((one, "in force") for one in context.saes)]
    if name == "models":
        return [(alias, hub_id) for alias, hub_id in ALIASES.items()]
    if name == "template":
        return [(one, visible(made.after.strip())) for one, made in TEMPLATES.items()]
    return []


def _metrics(edits: EditContext) -> Iterable[Choice]:
    yield "top", "the likeliest answer"
    yield from ((f"answer.{one}", "the label's logit, less the others'") for one in edits.emotions)
    yield from ((f"readout.{one}", "the probe, at its best layer") for one in edits.emotions)
    yield "none", "no attribution"
