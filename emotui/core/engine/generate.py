"""Continuing a text with edits in force, and what the probes and the model make of the result.

The prompt is the user's text and what the template puts before it; the template's question after
it is left out (the chat template is kept whole: it ends with the mark of the model's turn). In the
prompt an edit acts where it says, with `readout` the last token. Of the tokens that follow, edits
at `all` and `last` act on every one when the model reads it; ranges and words are the prompt's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import msgspec
import torch
from torch import Tensor

from emotui.cache.keys import derived_key
from emotui.core.edits import Edit, parse_edit, positions_in
from emotui.core.engine.answer import label_tokens, read_answer
from emotui.core.engine.attributor import best_layer
from emotui.core.engine.capture import Activations, Hook, Job, capture
from emotui.core.engine.edited import materials_of
from emotui.core.engine.intervene import EditGroup, check_layers, group_edits, hooks_of
from emotui.core.engine.kept import keep_record, kept_record
from emotui.core.engine.runs import activations_key
from emotui.core.engine.speak import generate
from emotui.core.engine.steps import PlacedEdit
from emotui.core.errors import TextError, UsageError
from emotui.core.records import Generation, TextRecord, Written, WrittenReadings
from emotui.core.text import Template, template_named

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.engine.answer import LabelTokens
    from emotui.core.engine.instruments import Instruments
    from emotui.core.engine.materials import Materials
    from emotui.core.engine.model import LoadedModel
    from emotui.core.engine.probes import Probe
    from emotui.core.protocol import GenerationSpec, InspectRequest

How = Literal["while_written", "read_again"]

_MOST_SAMPLES = 1000
_TAIL_TOKENS = 12


@dataclass
class Firing:
    """Counts the places that the hooks of edits acted on."""

    in_prompt: int = 0
    at_written: int = 0

    @property
    def places(self) -> int:
        """All of them."""
        return self.in_prompt + self.at_written

    def counted(
        self, groups: Sequence[EditGroup], hooks: Sequence[Hook], *, prompt: bool
    ) -> tuple[Hook, ...]:
        """Return the hooks of the groups, each adding its positions whenever it is called."""
        return tuple(
            replace(hook, function=self._counting(hook.function, len(group.positions), prompt))
            for group, hook in zip(groups, hooks, strict=True)
        )

    def _counting(
        self, function: Callable[[Tensor], Tensor | None], places: int, prompt: bool
    ) -> Callable[[Tensor], Tensor | None]:
        def counting(tensor: Tensor) -> Tensor | None:
            if prompt:
                self.in_prompt += places
            else:
                self.at_written += places
            return function(tensor)

        return counting


@dataclass(frozen=True)
class EditsInForce:
    """The edits as they act on the prompt, and on each token that follows."""

    prompt: tuple[EditGroup, ...] = ()
    step: tuple[EditGroup, ...] = ()
    first: int = 0
    """The position that stands for a written token in `step`."""


def prompt_of(text: TextRecord, template: Template) -> tuple[int, ...]:
    """Return the tokens to continue: up to the last of the user's text, or all of a chat."""
    end = len(text.tokens) if template.chat else text.last + 1
    return tuple(token.id for token in text.tokens[:end])


def edits_in_force(
    lines: Sequence[str], materials: Materials, text: TextRecord, n_prompt: int
) -> EditsInForce:
    """Return the edits on a prompt of the first `n_prompt` tokens of a text and after it.

    Raises EditError as for the text itself.
    """
    edits = [parse_edit(line) for line in lines]
    prompt = [PlacedEdit(edit, _in_prompt(edit, text, n_prompt)) for edit in edits]
    # A token of the text stands for the written ones: what is taken from the corpus is of its kind.
    step = [
        PlacedEdit(edit, (text.last,)) for edit in edits if edit.positions.kind in ("all", "last")
    ]
    return EditsInForce(
        group_edits([placed for placed in prompt if placed.positions], materials),
        group_edits(step, materials),
        first=text.last,
    )


def _in_prompt(edit: Edit, text: TextRecord, n_prompt: int) -> tuple[int, ...]:
    if edit.positions.kind == "readout":
        return (n_prompt - 1,)
    return tuple(p for p in positions_in(edit.positions, text) if p < n_prompt)


@dataclass
class Watched:
    """The residual of written tokens at some layers, kept as the model reads them."""

    layers: tuple[int, ...]
    rows: dict[int, list[Tensor]] = field(default_factory=dict)

    def hooks(self) -> tuple[Hook, ...]:
        """Return the hooks that keep; to be put after those of the edits."""
        return tuple(Hook("resid", layer, self._keeping(layer)) for layer in self.layers)

    def _keeping(self, layer: int) -> Callable[[Tensor], None]:
        def function(tensor: Tensor) -> None:
            self.rows.setdefault(layer, []).append(tensor[0, -1].detach().clone())

        return function


def continuation(
    request: InspectRequest,
    spec: GenerationSpec,
    model: LoadedModel,
    instruments: Instruments,
    store: Store,
    job: Job,
) -> Generation:
    """Return what the model writes after the text of a request, its edits in force.

    Raises as `generation_of`, EditError where an edit does not fit, TextError and UsageError as an
    inspection of the text does.
    """
    template = template_named(request.template)
    labels = label_tokens(model.reader, request.label_set, template)
    text = model.reader.read(
        request.text, template, context_length=model.context_length - labels.room
    )
    probes = instruments.probes(request.probes)
    materials = None
    if request.edits:
        check_layers([parse_edit(line) for line in request.edits], model)
        saes = [sae for source in instruments.saes(request.saes, job) for sae in source]
        job.progress("reading the corpus for the edits")
        materials = materials_of(model, store, text, template, saes, probes, request.seed, job)
    return generation_of(
        model,
        request,
        spec,
        text=text,
        template=template,
        labels=labels,
        probes=probes,
        materials=materials,
        job=job,
        store=store,
    )


@torch.no_grad()
def generation_of(
    model: LoadedModel,
    request: InspectRequest,
    spec: GenerationSpec,
    *,
    text: TextRecord,
    template: Template,
    labels: LabelTokens,
    probes: Sequence[Probe],
    materials: Materials | None,
    job: Job,
    store: Store | None = None,
) -> Generation:
    """Continue a text once for each sample and read what was written.

    `materials` are those of the request's edits; None without any. Each text is kept in the store,
    where there is one, as soon as it is finished, and taken from there. UsageError where the
    specification makes no sense, TextError where the context is too short.
    """
    _check(spec)
    prompt = prompt_of(text, template)
    edits = EditsInForce()
    if materials is not None:
        edits = edits_in_force(request.edits, materials, text, len(prompt))
    told = [
        [request.label_set, request.template, spec.new_tokens, spec.temperature],
        [probe.id for probe in probes],
        [group.identity for group in edits.prompt],
        [group.identity for group in edits.step],
    ]
    plain = activations_key(model, prompt, all_sites=False)
    samples: list[Written] = []
    for number in range(spec.samples):
        seed = request.seed + number
        key = derived_key(plain, f"written:{msgspec.json.encode([seed, *told]).decode()}")
        found = None if store is None else kept_record(store, key, Written)
        if found is None:
            said = f"{number + 1} of {spec.samples}" if spec.samples > 1 else ""
            found = _sample(model, prompt, spec, seed, edits, template, labels, probes, job, said)
            if store is not None:
                keep_record(store, key, found)
        samples.append(found)
        job.wrote(found, number + 1, spec.samples)
    return Generation(spec.new_tokens, spec.temperature, tuple(samples))


def _sample(
    model: LoadedModel,
    prompt: Sequence[int],
    spec: GenerationSpec,
    seed: int,
    edits: EditsInForce,
    template: Template,
    labels: LabelTokens,
    probes: Sequence[Probe],
    job: Job,
    said: str,
) -> Written:
    watched = Watched(tuple({best_layer(p) for p in probes if p.kind == "token"}))
    tokens, firing = write(
        model, prompt, spec, seed=seed, edits=edits, watched=watched, job=job, said=said
    )
    job.check()
    written = model.reader.decode(tokens, after=prompt)
    again = _read_again(model, written, template, labels, job)
    return Written(
        text=written,
        tokens=tokens,
        seed=seed,
        fired=firing.places,
        answer=None if again is None else read_answer(model, again[0], labels, job=job).answer,
        readings=_readings(probes, watched, again),
        fired_in_prompt=firing.in_prompt,
    )


def _check(spec: GenerationSpec) -> None:
    if spec.new_tokens < 1:
        raise UsageError(
            f"{spec.new_tokens} new tokens cannot be written.", todo="Ask for 1 or more."
        )
    if not 1 <= spec.samples <= _MOST_SAMPLES:
        raise UsageError(
            f"{spec.samples} samples cannot be drawn.", todo=f"Ask for 1 to {_MOST_SAMPLES:,}."
        )
    if spec.samples > 1 and spec.temperature == 0:
        raise UsageError(
            f"{spec.samples} samples at temperature 0 would all be the same.",
            todo="Give a temperature above 0, such as 0.8.",
        )


def write(
    model: LoadedModel,
    prompt: Sequence[int],
    spec: GenerationSpec,
    *,
    seed: int,
    edits: EditsInForce,
    watched: Watched,
    job: Job,
    said: str = "",
) -> tuple[tuple[int, ...], Firing]:
    """Return the tokens written after a prompt, and at how many places the edits acted.

    The residuals of written tokens that the model read are kept in `watched`. The job is told the
    text as it grows; `said` says which one it is.
    """
    firing = Firing()
    hooks = firing.counted(edits.prompt, hooks_of(edits.prompt), prompt=True)
    step_hooks = firing.counted(edits.step, hooks_of(edits.step, first=edits.first), prompt=False)
    phase = f"writing {said}".strip()

    def tell(written: Sequence[int]) -> None:
        tail = model.reader.decode(written[-_TAIL_TOKENS:], after=prompt[-1:])
        text = model.reader.decode(written, after=prompt)
        job.writing(f"{phase}: {tail.strip()}", len(written), spec.new_tokens, text)

    tokens = generate(
        model,
        prompt,
        new_tokens=spec.new_tokens,
        temperature=spec.temperature,
        seed=seed,
        hooks=hooks,
        step_hooks=(*step_hooks, *watched.hooks()),
        job=job,
        tell=tell,
    )
    return tokens, firing


def _read_again(
    model: LoadedModel, written: str, template: Template, labels: LabelTokens, job: Job
) -> tuple[Activations, TextRecord] | None:
    """Run the written text alone, without edits; None where it is blank or cannot be read."""
    try:
        text = model.reader.read(
            written, template, context_length=model.context_length - labels.room
        )
    except TextError:
        return None
    return capture(model, [token.id for token in text.tokens], job=job), text


def _readings(
    probes: Sequence[Probe],
    watched: Watched,
    again: tuple[Activations, TextRecord] | None,
) -> WrittenReadings:
    parts: list[WrittenReadings] = []
    for probe in probes:
        layer = best_layer(probe)
        rows = watched.rows.get(layer)
        if probe.kind == "token" and rows:
            parts.append(_columns("while_written", probe, layer, torch.stack(rows)))
        if again is not None:
            run, text = again
            inside = [p for p, token in enumerate(text.tokens) if token.part == "text"]
            where = inside if probe.kind == "token" else [text.readout]
            parts.append(_columns("read_again", probe, layer, run.at("resid", layer)[where]))
    names = WrittenReadings.__struct_fields__
    return WrittenReadings(*(tuple(v for part in parts for v in getattr(part, n)) for n in names))


def _columns(how: How, probe: Probe, layer: int, h: Tensor) -> WrittenReadings:
    """Return the mean reading of residuals [tokens, d_model] of one layer, an emotion a row."""
    row = probe.places.index(("resid", layer))
    at = slice(row, row + 1)
    logits = probe.logits(h.unsqueeze(0), at)
    z = probe.z_of(logits, at)[0].mean(dim=0).tolist()
    count = len(probe.emotions)
    return WrittenReadings(
        how=(how,) * count,
        probe=(probe.id,) * count,
        kind=(probe.kind,) * count,
        layer=(layer,) * count,
        emotion=probe.emotions,
        value=tuple(logits[0].mean(dim=0).tolist()),
        z=tuple(None if value != value else value for value in z),
    )
