"""Where in a model an emotion of a text is: readable, used, written; each beside its control.

readable    z of the readout probe at the readout of each layer, above what neutral texts reach.
used        the residual at the readout replaced by that of neutral texts, a layer at a time: the
            share of the answer's margin that goes (METHODS 1.4, normalised). Control: replaced by
            that of other texts of the same emotion.
written     <output - mean of neutral texts, gradient of the margin> of every attention and MLP
            output at the readout, attention by source token; the largest are replaced by the
            neutral mean and run (exact). Control: by the mean of texts of the same emotion.

The margin is the emotion's logit minus the mean of the other labels' at the deciding token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import msgspec
import torch
from torch import Tensor

from emotui.cache.located import keep_where, kept_where
from emotui.core.corpus import Situation, load_situations
from emotui.core.engine.answer import LabelTokens, label_tokens
from emotui.core.engine.attribute import Metric, answer_metric, gradients, margin
from emotui.core.engine.capture import Activations, Hook, Job, capture, hooked
from emotui.core.engine.runs import activations_of
from emotui.core.engine.value_paths import attention_sources
from emotui.core.errors import UsageError
from emotui.core.phases import MAIN_SHARE, USED_SHARE, is_main, is_readable, is_used
from emotui.core.protocol import Located, WhereRequest
from emotui.core.records import TextRecord, Trust, Where, WhereLayers, WhereSources, WhereWriter
from emotui.core.text import Template, clean, template_named

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.engine.instruments import Instruments
    from emotui.core.engine.layered import Layered
    from emotui.core.engine.model import LoadedModel
    from emotui.core.engine.probes import Probe

TEXTS = 8
"""Texts of the corpus to compare with, of each kind."""
WRITERS = 4
"""Outputs that are replaced and run."""

Component = Literal["attn", "mlp"]


@dataclass(frozen=True)
class Compared:
    """A text, and others that stand in its place: all to the deciding token."""

    model: LoadedModel
    labels: LabelTokens
    emotion: str
    ids: tuple[int, ...]
    """Prompt and what the labels share."""
    first: int
    """The readout: from here on the tokens are the same after every text."""
    run: Activations
    neutral: tuple[Activations, ...]
    same: tuple[Activations, ...]
    job: Job

    def margins(self, logits: Tensor) -> Tensor:
        """Return the margin of logits [..., vocabulary]: [...]."""
        scores = logits[..., list(self.labels.deciding)].float()
        return margin(scores, self.labels.labels.index(self.emotion))

    def with_rows(self, site: Literal["resid", "attn", "mlp"], layer: int, rows: Tensor) -> Tensor:
        """Return the margins [n] with rows [n, positions, d] in place of the last positions."""

        def put(tensor: Tensor) -> Tensor:
            changed = tensor.clone()
            changed[:, -rows.shape[1] :] = rows.to(tensor)
            return changed

        with hooked(self.model, [Hook(site, layer, put)], job=self.job):
            return self.margins(self.model.forward([self.ids] * len(rows))[:, -1])


def locate(
    request: WhereRequest, model: LoadedModel, instruments: Instruments, store: Store, job: Job
) -> Located:
    """Tell where an emotion of a text is, from the store where it was told before.

    UsageError for an emotion the label set does not have, or labels that no single token tells
    apart; TextError for a text the model cannot read.
    """
    before = model.forwards
    template = template_named(request.template)
    labels = label_tokens(model.reader, request.label_set, template)
    _check(request.emotion, labels)
    length = model.context_length - labels.room
    text = model.reader.read(request.text, template, context_length=length)
    probe = next((p for p in instruments.probes(request.probes) if p.kind == "readout"), None)
    ids = [token.id for token in text.tokens]
    where = kept_where(store, request, fingerprint=model.fingerprint)
    if where is None:
        plain = activations_of(model, store, ids, all_sites=False, job=job)
        compared = _compared(request, model, labels, text, template, job)
        where = _where(request, compared, text, plain, probe)
        keep_where(store, request, where, fingerprint=model.fingerprint)
    return Located(where, model.forwards - before)


def _check(emotion: str, labels: LabelTokens) -> None:
    if emotion not in labels.labels:
        raise UsageError(
            f"{clean(emotion)!r} is no label of {labels.set}.",
            todo=f"Use one of: {', '.join(labels.labels)}.",
        )
    if labels.rule == "whole_label":
        raise UsageError(
            f"The labels of {labels.set} are not told apart by one token of this model.",
            why="Where an answer is used and written needs a single deciding token.",
            todo="Use another label set (--labels).",
        )


def _compared(
    request: WhereRequest,
    model: LoadedModel,
    labels: LabelTokens,
    text: TextRecord,
    template: Template,
    job: Job,
) -> Compared:
    def run(words: str) -> Activations:
        record = model.reader.read(
            words, template, context_length=model.context_length - labels.room
        )
        ids = [*(token.id for token in record.tokens), *labels.prefix]
        return capture(model, ids, all_sites=True, job=job)

    def runs(texts: Sequence[str], phase: str) -> tuple[Activations, ...]:
        found = []
        for number, words in enumerate(texts):
            job.progress(phase, number, len(texts))
            found.append(run(words))
        return tuple(found)

    neutral = [request.neutral] if request.neutral else near(request.text, "neutral")
    ids = (*(token.id for token in text.tokens), *labels.prefix)
    return Compared(
        model,
        labels,
        request.emotion,
        ids,
        first=text.readout,
        run=capture(model, ids, all_sites=True, job=job),
        neutral=runs(neutral, "running neutral texts"),
        same=runs(near(request.text, request.emotion), "running texts of the same emotion"),
        job=job,
    )


def near(text: str, emotion: str) -> list[str]:
    """Return texts of the corpus that have an emotion without naming it, of like length.

    The nearest in number of words, one a topic, the text itself never among them.
    """
    length = len(text.split())

    def distance(one: Situation) -> tuple[int, str]:
        return abs(len(one.text.split()) - length), one.id

    chosen: dict[str, str] = {}
    for one in sorted(load_situations(), key=distance):
        if one.emotion == emotion and not one.named and one.text != text:
            chosen.setdefault(one.topic, one.text)
    return list(chosen.values())[:TEXTS]


def _where(
    request: WhereRequest,
    compared: Compared,
    text: TextRecord,
    plain: Activations,
    probe: Probe | None,
) -> Where:
    model, job = compared.model, compared.job
    own = float(compared.margins(compared.run.logits))
    neutral = float(compared.margins(torch.stack([run.logits for run in compared.neutral])).mean())
    span = own - neutral
    moved, control = _moved(compared, own, span)
    metric = answer_metric(compared.labels, compared.emotion)
    assert metric is not None  # the rule is not whole_label
    writes, slopes = _writes(compared, metric)
    job.progress("reading attention by source")
    found = attention_sources(model, compared.ids, slopes["attn"], job=job)
    z, null = _readable(probe, plain, compared.emotion, len(text.tokens))
    layers = WhereLayers(
        layer=tuple(range(model.n_layers)),
        z=z,
        trust=_trust(probe, compared.emotion, model.n_layers),
        moved=tuple(moved),
        control=tuple(control),
        attn=tuple(writes["attn"].tolist()),
        mlp=tuple(writes["mlp"].tolist()),
    )
    where = Where(
        emotion=compared.emotion,
        label_set=compared.labels.set,
        template=request.template,
        text=text,
        margin=own,
        neutral_margin=neutral,
        neutral_texts=len(compared.neutral),
        same_texts=len(compared.same),
        null=null,
        readable_from=longest_run([is_readable(value, null) for value in z]),
        used_from=longest_run(
            [is_used(span, share, other) for share, other in zip(moved, control, strict=True)]
        ),
        layers=layers,
        sources=_source_columns(found, len(text.tokens)),
        writers=_writers(compared, writes, found, text, own),
        sentence="",
    )
    return msgspec.structs.replace(where, sentence=sentence_of(where, text))


def _moved(compared: Compared, own: float, span: float) -> tuple[list[float], list[float | None]]:
    """Return, by layer, the median share moved by neutral texts, and the control's."""
    moved: list[float] = []
    control: list[float | None] = []
    unit = span if abs(span) > 1e-9 else 1e-9
    sources = (*compared.neutral, *compared.same)
    positions = len(compared.ids) - compared.first
    for layer in range(compared.model.n_layers):
        compared.job.progress("patching the readout", layer, compared.model.n_layers)
        rows = torch.stack([run.at("resid", layer)[-positions:] for run in sources])
        shares = (own - compared.with_rows("resid", layer, rows)) / unit
        moved.append(float(shares[: len(compared.neutral)].median()))
        others = shares[len(compared.neutral) :].abs()
        control.append(float(others.median()) if len(others) else None)
    return moved, control


def _writes(
    compared: Compared, metric: Metric
) -> tuple[dict[Component, Tensor], dict[Component, Tensor]]:
    """Return, by component, the writes [layers] beyond the neutral mean, and slopes [layers, d].

    At the deciding token.
    """
    compared.job.progress("attributing")
    found = gradients(
        compared.model,
        compared.ids,
        replace(metric, suffix=()),
        all_sites=True,
        job=compared.job,
    )
    slopes: dict[Component, Tensor] = {
        "attn": _last(found.kept["attn"]),
        "mlp": _last(found.kept["mlp"]),
    }
    writes: dict[Component, Tensor] = {}
    for site in slopes:
        own, mean = _at_last(compared.run, site), _mean(compared.neutral, site)
        writes[site] = torch.linalg.vecdot(own - mean, slopes[site].float())
    return writes, slopes


def _at_last(run: Activations, site: Component) -> Tensor:
    return _last(run.kept[site]).float()


def _last(rows: Layered) -> Tensor:
    """Return what stands at the last token, [layers, d], on the CPU."""
    return rows.each(lambda part: part[:, -1]).cpu()


def _mean(runs: Sequence[Activations], site: Component) -> Tensor:
    return torch.stack([_at_last(run, site) for run in runs]).mean(dim=0)


def _writers(
    compared: Compared,
    writes: dict[Component, Tensor],
    found: Tensor | None,
    text: TextRecord,
    own: float,
) -> tuple[WhereWriter, ...]:
    """Return the outputs with the largest writes, each replaced and run, by exact effect."""
    inside = [p for p, token in enumerate(text.tokens) if token.part == "text"]
    ranked = sorted(
        (
            (float(write), site, layer)
            for site in writes
            for layer, write in enumerate(writes[site])
        ),
        reverse=True,
    )
    writers = []
    for write, site, layer in ranked[:WRITERS]:
        means = [_mean(compared.neutral, site)[layer]]
        means += [_mean(compared.same, site)[layer]] if compared.same else []
        falls = own - compared.with_rows(site, layer, torch.stack(means)[:, None])
        source = None
        if site == "attn" and found is not None:
            source = inside[int(found[layer, inside].argmax())]
        writers.append(
            WhereWriter(
                site=site,
                layer=layer,
                write=write,
                exact=float(falls[0]),
                control=float(falls[1]) if len(falls) > 1 else None,
                source=source,
            )
        )
    return tuple(sorted(writers, key=lambda writer: -writer.exact))


def _readable(
    probe: Probe | None, run: Activations, emotion: str, n_tokens: int
) -> tuple[tuple[float | None, ...], float | None]:
    """Return z by layer from 0 of the residual at the readout, and what it must be above."""
    nothing = (None,) * run.n_layers
    if probe is None or emotion not in probe.emotions:
        return nothing, None
    column = probe.emotions.index(emotion)
    z: list[float | None] = []
    for layer in range(run.n_layers):
        row = probe.places.index(("resid", layer))
        at = slice(row, row + 1)
        logits = probe.logits(run.at("resid", layer)[-1].view(1, 1, -1), at)
        value = float(probe.z_of(logits, at)[0, 0, column])
        z.append(None if value != value else value)
    return tuple(z), probe.summary(n_tokens).marked_above.get("resid")


def _trust(probe: Probe | None, emotion: str, n_layers: int) -> tuple[Trust | None, ...]:
    if probe is None or emotion not in probe.emotions:
        return (None,) * n_layers
    scores = probe.file.card.scores
    return tuple(scores[probe.places.index(("resid", layer))].trust for layer in range(n_layers))


def _source_columns(found: Tensor | None, n_tokens: int) -> WhereSources:
    if found is None:
        return WhereSources()
    n_layers = found.shape[0]
    return WhereSources(
        layer=tuple(layer for layer in range(n_layers) for _ in range(n_tokens)),
        position=tuple(range(n_tokens)) * n_layers,
        value=tuple(found[:, :n_tokens].flatten().tolist()),
    )


def longest_run(holds: Sequence[bool]) -> int | None:
    """Return where the longest run of True begins (the first of equals); None without any."""
    best: tuple[int, int] | None = None
    start: int | None = None
    for place, held in enumerate([*holds, False]):
        if held and start is None:
            start = place
        elif not held and start is not None:
            if best is None or place - start > best[1] - best[0]:
                best = (start, place)
            start = None
    return None if best is None else best[0]


def sentence_of(where: Where, text: TextRecord) -> str:
    """Return the claims in one sentence, each with its control in brackets."""
    span = where.margin - where.neutral_margin
    parts = [_said_readable(where)]
    if span <= 0:
        parts.append(
            f"the answer leans to {where.emotion} no more than after neutral texts (margin "
            f"{where.margin:+.2f}, theirs {where.neutral_margin:+.2f}), so not used"
        )
        return "; ".join(parts)
    parts.append(_said_used(where))
    named = [writer for writer in where.writers if is_main(writer, span)]
    if named:
        said = " and ".join(_said_writer(writer, text) for writer in named[:2])
        parts.append(f"written mainly by {said}")
    elif any(writer.exact >= MAIN_SHARE * span for writer in where.writers):
        parts.append(
            "written by no output shown to write the emotion: the mean of other texts of "
            f"{where.emotion} in its place takes as much away"
        )
    else:
        parts.append("written by no single output alone")
    return "; ".join(parts)


def _said_readable(where: Where) -> str:
    if all(z is None for z in where.layers.z):
        return "no readout probe says where it is readable"
    if where.readable_from is None:
        return (
            "readable at no layer above neutral texts"
            if where.null is not None
            else ("the probe has no neutral texts to say where it is readable")
        )
    z = where.layers.z[where.readable_from]
    trust = where.layers.trust[where.readable_from]
    doubt = "" if trust == "trusted" else f", by a probe that is {trust} there"
    return (
        f"readable from L{where.readable_from} (z {z:.1f}, neutral texts below "
        f"{where.null:.1f}{doubt})"
    )


def _said_used(where: Where) -> str:
    layers = where.layers
    best = where.used_from
    if best is None:
        best = max(layers.layer, key=lambda layer: layers.moved[layer])
    share, control = layers.moved[best], layers.control[best]
    if where.used_from is None:
        if share < USED_SHARE or control is None:
            return "used at no layer (no patch at the readout moves half of the margin)"
        return (
            f"not shown to be used: neutral texts move {share:.0%} of the margin at L{best}, but "
            f"other texts of {where.emotion} {control:.0%}"
        )
    beside = "" if control is None else f", {control:.0%} from texts of the same emotion"
    return f"used from L{where.used_from} ({share:.0%} moved from neutral texts{beside})"


def _said_writer(writer: WhereWriter, text: TextRecord) -> str:
    said = f"{writer.site}.{writer.layer}"
    if writer.source is not None:
        said += f" from {clean(text.tokens[writer.source].string.strip())!r}"
    control = "" if writer.control is None else f", control {writer.control:+.2f}"
    return f"{said} ({writer.exact:+.2f} logits{control})"
