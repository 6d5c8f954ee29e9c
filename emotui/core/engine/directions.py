"""Imported directions as a probe: read against the corpus's neutral texts, and never trusted."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch
from torch import Tensor

from emotui.cache.control_vector import read_control_vector
from emotui.cache.probes import NOT_JUDGED, ProbeScore
from emotui.core.corpus import load_situations
from emotui.core.engine.collect import collect
from emotui.core.engine.define import checked_name
from emotui.core.engine.defined import KINDS, defined_card, defined_probe
from emotui.core.engine.design import FOLDS, Design
from emotui.core.engine.labelled import NEUTRAL
from emotui.core.engine.place_fits import PlaceFits
from emotui.core.errors import ProbeError
from emotui.core.protocol import Defined, ImportDirectionRequest
from emotui.core.records import ProbeKind
from emotui.core.text import clean, template_named

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.engine.capture import Job
    from emotui.core.engine.model import LoadedModel


def import_direction(
    request: ImportDirectionRequest, model: LoadedModel, store: Store, job: Job
) -> Defined:
    """Store the directions of a control vector as a readout and a token probe.

    The logit is the projection on the direction (of length 1) from the mean of neutral texts.
    ProbeError for a file that is no control vector, or of another model.
    """
    started, before = time.monotonic(), model.forwards
    name = checked_name(request.name, request.label_set)
    path = Path(request.path)
    directions = _fitting(path, model)
    template = template_named(request.template)
    items = [item for item in load_situations() if item.emotion == NEUTRAL]
    records = [
        model.reader.read(item.text, template, context_length=model.context_length)
        for item in items
    ]
    topics = sorted({item.topic for item in items})
    rows = torch.arange(len(items))
    folds = torch.tensor([topics.index(item.topic) % FOLDS for item in items])
    design = Design(
        labels=torch.zeros(len(items), dtype=torch.long),
        classes=1,
        train=rows,
        dev=rows,
        judged=rows,
        subsets={},
        judged_on=NOT_JUDGED,
        folds=folds,
        neutral=rows,
    )
    collected = collect(model, records, job=job)
    weight = torch.zeros(len(collected.places), model.d_model)
    for row, (site, layer) in enumerate(collected.places):
        if site == "resid" and layer in directions:
            weight[row] = directions[layer] / directions[layer].norm().clamp(min=1e-30)
    scores = tuple(
        ProbeScore(
            site=site,
            layer=layer,
            balanced_accuracy=0.5 if bool(weight[row].any()) else 0.0,
            shuffled_95=0.5,
            bag_accuracy=0.5,
            trust="untrusted",
            dev_accuracy=0.5 if bool(weight[row].any()) else 0.0,
        )
        for row, (site, layer) in enumerate(collected.places)
    )
    data = f"control vector {clean(path.name)[:60]}, layers {_span(sorted(directions))}"
    ids = []
    for kind, inputs in zip(KINDS, (collected.readout, collected.mean), strict=True):
        job.check()
        fits = _fits(weight, inputs.float().mean(dim=1))
        card = defined_card(
            request,
            model,
            name=name,
            kind=kind,
            digest=_digest(request, model, name, kind, weight),
            data=data,
            n_texts=0,
            judged_on=NOT_JUDGED,
            scores=scores,
        )
        probe = defined_probe(fits, card, inputs, design, records, collected.places, model, job)
        store.put_probe(probe.id, probe.to_bytes(), card)
        ids.append(card.id)
    first = min(directions)
    return Defined(
        name=name,
        probe_ids=tuple(ids),
        best=((first, 0.5, "untrusted"), (first, 0.5, "untrusted")),
        texts=0,
        data=data,
        judged_on=NOT_JUDGED,
        forwards=model.forwards - before,
        seconds=time.monotonic() - started,
    )


def _fitting(path: Path, model: LoadedModel) -> dict[int, Tensor]:
    vector = read_control_vector(path)
    found = {layer: torch.from_numpy(array) for layer, array in vector.directions.items()}
    widths = {len(direction) for direction in found.values()}
    if widths != {model.d_model}:
        raise ProbeError(
            f"{clean(path.name)} is for another model.",
            why=f"Its directions are {', '.join(map(str, sorted(widths)))} wide; the model's "
            f"residual stream is {model.d_model} wide.",
            todo="Give a control vector that was made for this model.",
        ).of_input()
    if max(found) >= model.n_layers:
        raise ProbeError(
            f"{clean(path.name)} is for another model.",
            why=f"It has a direction for layer {max(found)}; the last layer is "
            f"{model.n_layers - 1}.",
            todo="Give a control vector that was made for this model.",
        ).of_input()
    return found


def _fits(weight: Tensor, center: Tensor) -> PlaceFits:
    places = len(weight)
    column = weight.unsqueeze(-1)
    return PlaceFits(
        strength=torch.ones(places),
        center=center,
        weight=column,
        bias=torch.zeros(places, 1),
        fold_weight=column.unsqueeze(1).expand(-1, FOLDS, -1, -1),
        fold_bias=torch.zeros(places, FOLDS, 1),
        predicted=torch.empty(places, 0),
        shuffled=torch.empty(places, 0),
    )


def _span(layers: list[int]) -> str:
    whole = layers == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}-{layers[-1]}" if whole else ", ".join(map(str, layers))


def _digest(
    request: ImportDirectionRequest, model: LoadedModel, name: str, kind: ProbeKind, weight: Tensor
) -> str:
    """Return the hash of all that the probe depends on."""
    identity = hashlib.sha256(weight.numpy().tobytes())
    template = msgspec.json.encode(template_named(request.template))
    for part in (model.fingerprint.encode(), kind.encode(), name.encode(), template):
        identity.update(part + b"\0")
    return identity.hexdigest()
