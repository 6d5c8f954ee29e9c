"""What an emotion of the user's own is stored as: a probe of one output at every place, its card.

Its label set holds it alone and is named after it. Definitions and imported directions differ in
how they come by the directions, not in what they are stored as.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from torch import Tensor

from emotui.cache.probes import DEFINED, ProbeCard, ProbeScore
from emotui.core.engine.fit import neutral_scale, readout_logits, thresholds_of, token_logits
from emotui.core.engine.probes import Probe, ProbeFile
from emotui.core.model_names import recorded_name
from emotui.core.protocol import DefineRequest, ImportDirectionRequest
from emotui.core.records import ProbeKind, TextRecord

if TYPE_CHECKING:
    from emotui.core.engine.capture import Job
    from emotui.core.engine.collect import Place
    from emotui.core.engine.design import Design
    from emotui.core.engine.model import LoadedModel
    from emotui.core.engine.place_fits import PlaceFits

KINDS: tuple[ProbeKind, ProbeKind] = ("readout", "token")
"""A user's own emotion is stored as one probe of each."""
_ID_DIGITS = 8


def defined_card(
    request: DefineRequest | ImportDirectionRequest,
    model: LoadedModel,
    *,
    name: str,
    kind: ProbeKind,
    digest: str,
    data: str,
    n_texts: int,
    judged_on: str,
    scores: tuple[ProbeScore, ...],
) -> ProbeCard:
    """Return the card of an emotion called `name`.

    `digest` is in hex digits, of all that the directions depend on.
    """
    return ProbeCard(
        id=f"{DEFINED}{name}-{kind}-{request.template}-{digest[:_ID_DIGITS]}",
        fingerprint=model.fingerprint,
        model=recorded_name(request.spec.model),
        kind=kind,
        label_set=f"{DEFINED}{name}",
        emotions=(name,),
        template=request.template,
        data=data,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        sites=("resid", "attn", "mlp"),
        layers=tuple(range(-1, model.n_layers)),
        n_texts=n_texts,
        judged_on=judged_on,
        scores=scores,
    )


def defined_probe(
    fits: PlaceFits,
    card: ProbeCard,
    inputs: Tensor,
    design: Design,
    records: list[TextRecord],
    places: tuple[Place, ...],
    model: LoadedModel,
    job: Job,
) -> Probe:
    """Return the probe of the directions `fits`, its scale and thresholds from neutral texts.

    `inputs` [P, n, d] are of the card's kind, one row for each of `records`.
    """
    one = replace(design, classes=1)  # a single output
    lengths: list[int] | None = None
    if card.kind == "readout":
        logits = readout_logits(fits, one, inputs)
    else:
        logits = token_logits(fits, one, records, model, job)
        lengths = [len(records[row].tokens) for row in design.neutral.tolist()]
    mean, sd = neutral_scale(logits, fits.bias)
    thresholds = thresholds_of(logits, mean, sd, places, lengths)
    file = ProbeFile(card, tuple(fits.strength.tolist()), thresholds)
    return Probe(file, fits.weight, fits.center, fits.bias, mean, sd)
