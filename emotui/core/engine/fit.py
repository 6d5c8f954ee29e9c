"""Fitting probes: every layer and site of a model at once, with the controls they are judged by.

Texts are split by topic into train, dev and test. On train: the probe at each strength of the
penalty, of which dev chooses one; the same with 20 shufflings of the labels, with labels drawn for
each first word (the control task), and from random directions; and five folds by topic, whose
out-of-fold scores of neutral texts give z. Everything is judged on texts of another source where
there are some (for a user's file without any, the situations of held-out topics), else on held-out
texts without emotion words; the card says on which.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import torch
from torch import Tensor

from emotui.cache.probes import AppraisalScore, ProbeCard
from emotui.core.engine import controls
from emotui.core.engine.appraisals import appraisal_directions
from emotui.core.engine.collect import Place, collect, text_mask, visit
from emotui.core.engine.design import Design, design_of
from emotui.core.engine.labelled import Labelled, labelled_texts
from emotui.core.engine.place_fits import PlaceFits, fit_places, out_of_fold, scores_of
from emotui.core.engine.probe_controls import ControlTask, control_task
from emotui.core.engine.probes import Probe, ProbeFile, Threshold
from emotui.core.errors import TextError
from emotui.core.model_names import recorded_name
from emotui.core.probe_words import PREVIEW
from emotui.core.protocol import FitRequest, Fitted
from emotui.core.records import ProbeKind, Site, TextRecord
from emotui.core.text import template_named

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.engine.capture import Job
    from emotui.core.engine.model import LoadedModel

FIT_VERSION = 3
"""Raised whenever the same fit would give another probe."""
LEAST_NEUTRAL = 20  # texts below which there is no z
_LEAST_SPREAD = 1e-6  # relative sd below which a place says nothing of neutral texts


def readout_logits(fits: PlaceFits, design: Design, inputs: Tensor) -> list[Tensor]:
    """Return, for each neutral text, out-of-fold logits [P, 1, K] at the readout."""
    return [
        torch.stack(
            [
                out_of_fold(fits, design, row, inputs[place, row, None].float(), place)
                for place in range(inputs.shape[0])
            ]
        )
        for row in design.neutral.tolist()
    ]


def token_logits(
    fits: PlaceFits, design: Design, texts: list[TextRecord], model: LoadedModel, job: Job
) -> list[Tensor]:
    """Run the neutral texts again; for each, out-of-fold logits [P, text tokens, K]."""
    rows = design.neutral.tolist()
    neutral = [texts[row] for row in rows]
    masks = [torch.tensor(text_mask(text)) for text in neutral]
    found = [torch.empty(len(fits.center), int(mask.sum()), design.classes) for mask in masks]

    def receive(members: list[int], place: int, tensor: Tensor) -> None:
        for number, text in enumerate(members):
            h = tensor[number].cpu()[masks[text]].float()
            found[text][place] = out_of_fold(fits, design, rows[text], h, place)

    visit(model, neutral, receive, job=job, phase="reading neutral texts")
    return found


def neutral_scale(logits: list[Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and sd over all positions of the neutral texts, both of the shape of `like`.

    `like` is [P, K], `logits` a [P, positions, K] for each text. NaN where sd is 0, and without
    texts.
    """
    nothing = torch.full_like(like, float("nan"))
    if not logits:
        return nothing, nothing.clone()
    pooled = torch.cat(logits, dim=1).double()
    mean, sd = pooled.mean(dim=1), pooled.std(dim=1)
    seen = sd > _LEAST_SPREAD * (1 + mean.abs())
    return torch.where(seen, mean.float(), nothing), torch.where(seen, sd.float(), nothing)


def thresholds_of(
    logits: list[Tensor],
    mean: Tensor,
    sd: Tensor,
    places: tuple[Place, ...],
    lengths: list[int] | None,
) -> tuple[Threshold, ...]:
    """Return the z that marks, by length of the prompt (`lengths` None: one for any length)."""
    if not logits:
        return ()
    sites = tuple(dict.fromkeys(site for site, _ in places))
    highest: dict[Site, Tensor] = {}
    for site in sites:
        rows = [index for index, place in enumerate(places) if place[0] == site]
        z = [(text[rows] - mean[rows, None]) / sd[rows, None] for text in logits]
        highest[site] = torch.stack([torch.nan_to_num(text, nan=-torch.inf).max() for text in z])
    bins: list[tuple[int | None, list[int]]] = [(None, list(range(len(logits))))]
    if lengths is not None:
        bins = [(longest, members) for longest, members in controls.length_bins(lengths)]
    found = []
    for longest, members in bins:
        above = {site: controls.mark_above(highest[site][members]) for site in sites}
        known = {site: value for site, value in above.items() if value is not None}
        if known:
            found.append(Threshold(longest, known))
    return tuple(found)


def fit_probes(request: FitRequest, model: LoadedModel, store: Store, job: Job) -> Fitted:
    """Fit a readout and a token probe on every layer and site, and store both.

    Beside them the appraisal directions that `modulate` goes along are fitted and cached, unless
    they are or this is a preview; the readout probe's card has their scores.

    UsageError for a label set, template or file that cannot be used; Cancelled, with nothing
    stored, where the user cancelled.
    """
    started, before = time.monotonic(), model.forwards
    job.progress("reading the texts")
    data = labelled_texts(
        label_set=request.label_set,
        data=request.data,
        other=request.other,
        text_column=request.text_column,
        label_column=request.label_column,
        seed=request.seed,
        job=job,
    )
    data, texts = _readable(data, model, request.template)
    design = design_of(data, seed=request.seed)
    task = _control_task(data, design, seed=request.seed)
    collected = collect(model, texts, job=job)
    bag_place = collected.places.index(("resid", -1))
    inputs: dict[ProbeKind, Tensor] = {"token": collected.mean, "readout": collected.readout}
    fits = {
        kind: fit_places(
            tensor,
            design,
            seed=request.seed,
            job=job,
            phase=f"fitting the {kind} probes",
            device=model.device,
            preview=request.preview,
            task=task,
            directions=True,
        )
        for kind, tensor in inputs.items()
    }
    bag = fits["token"].predicted[bag_place]
    made = []
    for kind in ("readout", "token"):
        job.check()
        fitted = fits[kind]
        if len(design.neutral) < LEAST_NEUTRAL:
            logits, lengths = [], None
        elif kind == "readout":
            logits, lengths = readout_logits(fitted, design, collected.readout), None
        else:
            logits = token_logits(fitted, design, texts, model, job)
            lengths = [len(texts[row].tokens) for row in design.neutral.tolist()]
        mean, sd = neutral_scale(logits, fitted.bias)
        card = msgspec.structs.replace(
            _card(request, model, data, kind),
            scores=scores_of(fitted, bag, collected.places, design),
            judged_on=design.judged_on,
            control_words=None if task is None else task.words,
            control_texts=None if task is None else len(task.judged),
        )
        thresholds = thresholds_of(logits, mean, sd, collected.places, lengths)
        file = ProbeFile(card, tuple(fitted.strength.tolist()), thresholds)
        made.append(Probe(file, fitted.weight, fitted.center, fitted.bias, mean, sd))
    if not request.preview:
        template = template_named(request.template)
        found = appraisal_directions(model, template, store, job)
        made[0] = _with_appraisals(made[0], found.scores)
    job.check()
    for probe in made:
        store.put_probe(probe.id, probe.to_bytes(), probe.file.card)
    return Fitted(
        probe_ids=tuple(probe.id for probe in made),
        forwards=model.forwards - before,
        seconds=time.monotonic() - started,
    )


def _with_appraisals(probe: Probe, scores: tuple[AppraisalScore, ...]) -> Probe:
    card = msgspec.structs.replace(probe.file.card, appraisals=scores)
    return dataclasses.replace(probe, file=msgspec.structs.replace(probe.file, card=card))


def _control_task(data: Labelled, design: Design, *, seed: int) -> ControlTask | None:
    held_out = design.subsets.get("test")
    if held_out is None:
        return None
    return control_task(
        [text.text for text in data.texts],
        design.labels,
        train=design.train,
        held_out=held_out,
        classes=design.classes,
        seed=seed,
    )


def _readable(
    data: Labelled, model: LoadedModel, template_name: str
) -> tuple[Labelled, list[TextRecord]]:
    """Tokenise the texts; those the model cannot read (too long, say) are left out."""
    template = template_named(template_name)
    kept, records = [], []
    for text in data.texts:
        try:
            record = model.reader.read(text.text, template, context_length=model.context_length)
        except TextError:
            continue
        kept.append(text)
        records.append(record)
    left_out = len(data.texts) - len(kept)
    name = f"{data.name}; {left_out:,} too long or unreadable" if left_out else data.name
    return msgspec.structs.replace(data, texts=tuple(kept), name=name), records


def _card(request: FitRequest, model: LoadedModel, data: Labelled, kind: ProbeKind) -> ProbeCard:
    """Return the card without its scores; its id follows from all that the fit depends on."""
    identity = hashlib.sha256()
    template = msgspec.json.encode(template_named(request.template))
    for part in (
        *(str(FIT_VERSION), model.fingerprint, model.dtype_name, model.device.type, kind),
        *(request.label_set, template.decode(), data.digest, str(request.seed)),
        *(("preview",) if request.preview else ()),
    ):
        identity.update(part.encode() + b"\0")
    layers = tuple(range(-1, model.n_layers))
    return ProbeCard(
        id=f"{request.label_set}-{kind}-{request.template}-{identity.hexdigest()[:8]}",
        fingerprint=model.fingerprint,
        model=recorded_name(request.spec.model),
        kind=kind,
        label_set=request.label_set,
        emotions=data.emotions,
        template=request.template,
        data=f"{PREVIEW}: {data.name}" if request.preview else data.name,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        sites=("resid", "attn", "mlp"),
        layers=layers,
        n_texts=sum(text.split != "other" for text in data.texts),
        scores=(),
    )
