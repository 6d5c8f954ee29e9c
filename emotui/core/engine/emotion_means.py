"""Directions of emotions as differences of means: texts of one emotion less those of the others.

Taken at the readout of bundled situations of training topics, as many of each emotion, half of
them without an emotion word. Read once for a model and template and kept in the cache. Of the
directions METHODS 3 names for interventions this is the one that lies where the data lies; the
row of a probe need not: it tells the emotions apart, whatever else varies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load as tensors_from_bytes
from torch import Tensor

from emotui.cache.statistics import emotion_texts, emotions_part
from emotui.core.corpus import Situation
from emotui.core.edits import STAYED
from emotui.core.engine.collect import places_of, visit
from emotui.core.engine.packed import tensors_to_bytes
from emotui.core.engine.statistics import statistics_key
from emotui.core.errors import EditError
from emotui.core.text import Template, clean

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.engine.capture import Job
    from emotui.core.engine.model import LoadedModel


@dataclass(frozen=True)
class EmotionMeans:
    """What stands at the readout after texts of each emotion, on the CPU."""

    emotions: tuple[str, ...]
    means: Tensor
    """[layers, emotions, d_model], float32."""

    def unit(self, emotion: str, others: Sequence[str], layer: int) -> Tensor:
        """Return the unit direction [d_model], float64: a mean less the mean of those of others.

        `others` that the corpus does not have are left out. EditError where it does not have the
        emotion, or nothing to tell it from.
        """
        rivals = [name for name in others if name != emotion and name in self.emotions]
        if emotion not in self.emotions or not rivals:
            raise EditError(
                f"The bundled corpus has no texts to take the direction of {clean(emotion)} from.",
                why=f"It has texts of: {', '.join(self.emotions)}.",
                todo=f"Promote it along the probe: `along row` after the amount. {STAYED}",
            )
        means = self.means[layer].double()
        rows = [self.emotions.index(name) for name in rivals]
        direction = means[self.emotions.index(emotion)] - means[rows].mean(dim=0)
        norm = float(direction.norm())
        if not norm > 0:
            raise EditError(
                f"{clean(emotion)} has no direction at layer {layer}.",
                why="What stands at the readout there is the same after every text.",
                todo=f"Promote it at another layer. {STAYED}",
            )
        return direction / norm


def emotion_means(model: LoadedModel, template: Template, store: Store, job: Job) -> EmotionMeans:
    """Return the means of a model and template, from the cache where they are."""
    texts = emotion_texts()
    emotions = tuple(dict.fromkeys(one.emotion for one in texts))
    key = statistics_key(model, emotions_part(template.name))
    stored = store.get_entry("statistics", key)
    if stored is None:
        means = _measured(model, template, texts, emotions, job)
        store.put_entry("statistics", key, tensors_to_bytes({"means": means}))
    else:
        means = tensors_from_bytes(stored)["means"]
    return EmotionMeans(emotions, means)


def _measured(
    model: LoadedModel,
    template: Template,
    texts: Sequence[Situation],
    emotions: Sequence[str],
    job: Job,
) -> Tensor:
    records = [
        model.reader.read(one.text, template, context_length=model.context_length) for one in texts
    ]
    places = places_of(model.n_layers)
    sums = torch.zeros(model.n_layers, len(emotions), model.d_model, dtype=torch.float64)
    counts = torch.zeros(len(emotions), dtype=torch.float64)
    rows = torch.tensor([emotions.index(one.emotion) for one in texts])
    counts.index_add_(0, rows, torch.ones(len(texts), dtype=torch.float64))

    def receive(members: list[int], place: int, tensor: Tensor) -> None:
        site, layer = places[place]
        if site == "resid" and layer >= 0:
            sums[layer].index_add_(0, rows[members], tensor[:, -1].double().cpu())

    visit(model, records, receive, job=job, phase="reading the corpus for emotions")
    return (sums / counts[:, None]).float().contiguous()
