"""What stands at the readout of every text: the first stage of most studies.

Texts of equal length share a batch, so nothing is padded. Attention and MLP outputs are the
tensors added to the residual (METHODS 1.2); only the readout is kept, in the run's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emotui.core.engine.batch import Batch, run_batch
from emotui.core.engine.capture import Hook
from emotui.core.engine.collect import Place, batches, text_mask
from emotui.core.records import EMBEDDING_LAYER, TextRecord
from emotui.core.studies.common.chunks import Chunks
from emotui.core.studies.common.dataset import Item

if TYPE_CHECKING:
    from emotui.core.studies.common.running import Running

__all__ = ["Batch", "Readings", "readings", "readings_bytes", "run_batch"]


@dataclass(frozen=True)
class Readings:
    """All texts the model could read, in the order of the dataset; n of them."""

    chunks: Chunks
    places: tuple[Place, ...]
    index: Tensor
    """[n], long: `Item.index` of each."""
    gold: Tensor
    """[n], long: its label as an index of `Dataset.labels`; -1 without one."""
    scores: Tensor
    """[n, labels of the set], float32."""

    def at(self, place: Place) -> Tensor:
        """Return what stands at one place, [n, d_model], in the run's dtype, read from disk."""
        return self.chunks.joined("h", at=self.places.index(place))

    @property
    def bag(self) -> Tensor:
        """[n, d_model]: mean embedding of the text's own tokens, no forward pass."""
        return self.chunks.joined("bag")


def readings(study: Running, places: Sequence[Place], *, stage: str = "texts") -> Readings:
    """Run every text once and keep `places` at its readout, its answer and its mean embedding."""
    chunks = study.text_stage(
        stage, lambda items: _read(study, items, tuple(places)), phase="running the model"
    )
    return Readings(
        chunks,
        tuple(places),
        index=chunks.joined("index"),
        gold=chunks.joined("gold"),
        scores=chunks.joined("scores"),
    )


def readings_bytes(study: Running, places: int) -> int:
    """Return how much disk `readings` takes for a number of places."""
    each = (places + 1) * study.model.d_model * study.model.dtype.itemsize
    return study.run.dataset.texts * (each + 4 * len(study.tokens.labels) + 16)


def _read(study: Running, items: Sequence[Item], places: tuple[Place, ...]) -> dict[str, Tensor]:
    model = study.model
    found = study.readable(items)
    texts = [text for _, text in found]
    shape = (len(places), len(found), model.d_model)
    h = torch.zeros(shape, dtype=model.dtype)
    bag = torch.zeros(shape[1:], dtype=model.dtype)
    scores = torch.zeros(len(found), len(study.tokens.labels))
    for rows in batches([len(text.tokens) for text in texts]):
        prompts = [[token.id for token in texts[row].tokens] for row in rows]
        averaging = Hook("resid", EMBEDDING_LAYER, _averaging(texts, rows, bag))
        batch = run_batch(
            model, prompts, study.tokens, places=places, watching=(averaging,), job=study.job
        )
        h[:, rows] = batch.h.cpu()
        scores[rows] = batch.scores
    return {
        "index": torch.tensor([item.index for item, _ in found], dtype=torch.long),
        "gold": torch.tensor([item.label for item, _ in found], dtype=torch.long),
        "scores": scores,
        "h": h,
        "bag": bag,
    }


def _averaging(
    texts: Sequence[TextRecord], rows: list[int], bag: Tensor
) -> Callable[[Tensor], None]:
    masks = torch.tensor([text_mask(texts[row]) for row in rows])

    def function(tensor: Tensor) -> None:
        share = masks.float() / masks.sum(dim=1, keepdim=True)
        # In float32: averaging in bfloat16 would lose what distinguishes texts.
        averaged = torch.einsum("bt,btd->bd", share.to(tensor.device), tensor.float())
        bag[rows] = averaged.to("cpu", bag.dtype)

    return function
