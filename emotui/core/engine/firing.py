"""Which texts of the corpus activate each feature of an SAE: one pass for all of its features.

Kept for each feature are the texts with its largest activations on their own tokens, and its
activation at the readout of every text, which tells how it separates the emotions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from emotui.cache.findings import find, keep
from emotui.core.corpus import Situation, load_situations
from emotui.core.details import CorpusReading, FiringText, Selectivity
from emotui.core.emotions import LABEL_SETS
from emotui.core.engine.capture import Hook, Job, hooked
from emotui.core.engine.collect import batches, text_mask
from emotui.core.engine.text_features import encoded_at_once
from emotui.core.errors import TextError
from emotui.core.text import Template

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.engine.model import LoadedModel
    from emotui.core.engine.saes import Sae
    from emotui.core.records import TextRecord

STRONGEST = 8
"""Texts kept for each feature."""

_Arrays = dict[str, "np.ndarray[Any, Any]"]


class _Read(msgspec.Struct, frozen=True):
    texts: tuple[str, ...]
    """Ids of the situations that were read, in the order the arrays number them."""


@dataclass(frozen=True)
class Fired:
    """What every feature of one SAE does on the corpus."""

    texts: tuple[str, ...]
    """Ids of situations."""
    strongest: np.ndarray[Any, Any]
    """int32 [width, 8], numbers of texts; -1 past the last that activates the feature."""
    value: np.ndarray[Any, Any]
    """float32 [width, 8], the largest activation on the text's own tokens."""
    active: np.ndarray[Any, Any]
    """int32 [width], on how many texts any token activates the feature."""
    offsets: np.ndarray[Any, Any]
    """int64 [width + 1]: where a feature's rows begin in the next two."""
    at_text: np.ndarray[Any, Any]
    """int32, the texts at whose readout the feature is active."""
    at_value: np.ndarray[Any, Any]
    """float32, its activation there."""

    def at_readout(self, index: int) -> np.ndarray[Any, Any]:
        """Return a feature's activation at the readout of every text, float32 [texts]."""
        rows = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        values = np.zeros(len(self.texts), dtype=np.float32)
        values[self.at_text[rows]] = self.at_value[rows]
        return values


def corpus_reading(
    sae: Sae,
    index: int,
    model: LoadedModel,
    store: Store,
    job: Job,
    *,
    template: Template,
    label_set: str,
) -> CorpusReading:
    """Return what a feature does on the corpus; the pass over it is made once for each SAE.

    Raises Cancelled with nothing kept.
    """
    fired = fired_by(sae, model, store, job, template=template)
    known = {one.id: one for one in load_situations()}
    rows = [int(row) for row in fired.strongest[index] if row >= 0]
    chosen = [known[fired.texts[row]] for row in rows]
    return CorpusReading(
        template=template.name,
        texts=len(fired.texts),
        label_set=label_set,
        selectivity=selectivity_of(
            fired.at_readout(index),
            [known[text].emotion for text in fired.texts],
            LABEL_SETS[label_set],
        ),
        active=int(fired.active[index]) / max(1, len(fired.texts)),
        strongest=_along_tokens(sae, index, chosen, model, template, job),
    )


def selectivity_of(
    values: np.ndarray[Any, Any], emotions: Sequence[str], labels: Sequence[str]
) -> tuple[Selectivity, ...]:
    """Return how activations [texts] separate each label's texts from those of the others.

    Texts of no label play no part. The largest area comes first.
    """
    named = np.array(emotions)
    inside = np.isin(named, labels)
    values, named = values[inside], named[inside]
    found = []
    for label in labels:
        own, other = values[named == label], np.sort(values[named != label])
        if not len(own) or not len(other):
            continue
        below = np.searchsorted(other, own, side="left")
        upto = np.searchsorted(other, own, side="right")
        found.append(
            Selectivity(
                emotion=label,
                texts=len(own),
                active=float((own > 0).mean()),
                mean=float(own.mean(dtype=np.float64)),
                area=float((below + upto).mean() / (2 * len(other))),
            )
        )
    return tuple(sorted(found, key=lambda one: -one.area))


def fired_by(sae: Sae, model: LoadedModel, store: Store, job: Job, *, template: Template) -> Fired:
    """Return what all features of an SAE do on the corpus, from the store where that is kept."""
    situations = load_situations()
    digest = hashlib.sha256(
        "\n".join(f"{one.id}\t{one.text}" for one in situations).encode()
    ).hexdigest()[:16]
    what = msgspec.json.encode(
        ["firing", sae.key, sae.source, msgspec.to_builtins(template), model.dtype_name, digest]
    ).decode()
    kept = find(store, model.fingerprint, what, _Read)
    if kept is not None:
        read, arrays = kept
        return Fired(read.texts, **{name: arrays[name] for name in _NAMES})
    done = _fire(sae, situations, model, template, job)
    arrays = {name: getattr(done, name) for name in _NAMES}
    keep(store, model.fingerprint, what, _Read(done.texts), arrays)
    return done


_NAMES = ("strongest", "value", "active", "offsets", "at_text", "at_value")


def _fire(
    sae: Sae, situations: Sequence[Situation], model: LoadedModel, template: Template, job: Job
) -> Fired:
    texts, records = _readable(situations, model, template)
    device = model.device_at(sae.layer)
    value = torch.zeros(sae.width, STRONGEST, device=device)
    strongest = torch.full((sae.width, STRONGEST), -1, dtype=torch.int32, device=device)
    active = torch.zeros(sae.width, dtype=torch.int32, device=device)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    done = 0
    for members in batches([len(record.tokens) for record in records]):
        job.check()
        job.progress("reading the corpus", done, len(records))
        inside = torch.tensor([text_mask(records[text]) for text in members], device=device)
        numbers = torch.tensor(members, dtype=torch.int32, device=device)
        for rows, features in _encoded(sae, [records[text] for text in members], model, job):
            here = numbers[rows.start : rows.stop]
            at, column = features[:, -1].nonzero(as_tuple=True)
            parts.append((column.cpu(), here[at].cpu(), features[at, -1, column].float().cpu()))
            own = features.masked_fill(~inside[rows.start : rows.stop, :, None], 0)
            largest = own.amax(dim=1).float().T  # [width, texts]
            active += (largest > 0).sum(dim=1, dtype=torch.int32)
            value, strongest = _merged(value, strongest, largest, here)
        done += len(members)
    job.progress("reading the corpus", done, len(records))
    column, at_text, at_value = (torch.cat(part) for part in zip(*parts, strict=True))
    order = column.argsort(stable=True)
    counts = torch.bincount(column, minlength=sae.width)
    return Fired(
        texts=tuple(texts),
        strongest=torch.where(value > 0, strongest, -1).cpu().numpy(),
        value=value.cpu().numpy(),
        active=active.cpu().numpy(),
        offsets=torch.cat([counts.new_zeros(1), counts.cumsum(0)]).numpy(),
        at_text=at_text[order].numpy(),
        at_value=at_value[order].numpy(),
    )


def _readable(
    situations: Sequence[Situation], model: LoadedModel, template: Template
) -> tuple[list[str], list[TextRecord]]:
    texts, records = [], []
    for one in situations:
        try:
            record = model.reader.read(one.text, template, context_length=model.context_length)
        except TextError:
            continue
        texts.append(one.id)
        records.append(record)
    if not records:
        raise TextError("The model can read no text of the corpus in this template.")
    return texts, records


@torch.no_grad()
def _encoded(
    sae: Sae, records: Sequence[TextRecord], model: LoadedModel, job: Job
) -> Iterator[tuple[range, Tensor]]:
    """Yield texts of equal length, some at a time, and their features [texts, tokens, width]."""
    kept: list[Tensor] = []
    hook = Hook(sae.site, sae.layer, lambda tensor: kept.append(tensor.detach()))
    with hooked(model, [hook], job=job):
        model.forward([[token.id for token in record.tokens] for record in records])
    h = kept[0]
    size = max(1, encoded_at_once(sae.width) // h.shape[1])
    for start in range(0, len(h), size):
        job.check()
        rows = range(start, min(start + size, len(h)))
        yield rows, sae.encode(h[rows.start : rows.stop])


def _merged(
    value: Tensor, strongest: Tensor, largest: Tensor, numbers: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the largest of those kept [width, 8] and of some texts more [width, texts]."""
    together = torch.cat([value, largest], dim=1)
    names = torch.cat([strongest, numbers.expand(len(largest), -1)], dim=1)
    best = together.topk(STRONGEST, dim=1)
    return best.values, names.gather(1, best.indices)


def _along_tokens(
    sae: Sae,
    index: int,
    chosen: Sequence[Situation],
    model: LoadedModel,
    template: Template,
    job: Job,
) -> tuple[FiringText, ...]:
    """Return the activation of a feature at every token of some texts."""
    records = [
        model.reader.read(one.text, template, context_length=model.context_length) for one in chosen
    ]
    found: dict[int, FiringText] = {}
    for members in batches([len(record.tokens) for record in records]):
        for rows, features in _encoded(sae, [records[text] for text in members], model, job):
            for row in rows:
                text = members[row]
                values = features[row - rows.start, :, index].float().tolist()
                own = [place for place, inside in enumerate(text_mask(records[text])) if inside]
                found[text] = FiringText(
                    id=chosen[text].id,
                    emotion=chosen[text].emotion,
                    tokens=tuple(records[text].tokens[place].string for place in own),
                    activation=tuple(values[place] for place in own),
                )
    return tuple(found[text] for text in range(len(chosen)))
