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

from emotui.core.engine.answer import LabelTokens, whole_label_scores
from emotui.core.engine.capture import Hook, hooked
from emotui.core.engine.collect import Place, batches, text_mask
from emotui.core.engine.rerun import RowHooks
from emotui.core.records import EMBEDDING_LAYER, TextRecord
from emotui.core.studies.common.chunks import Chunks
from emotui.core.studies.common.dataset import Item

if TYPE_CHECKING:
    from emotui.core.engine.capture import Job
    from emotui.core.engine.model import LoadedModel
    from emotui.core.studies.common.running import Running


@dataclass(frozen=True)
class Batch:
    """One forward pass of prompts of equal length."""

    h: Tensor
    """[places, rows, d_model], at the readout, in the run's dtype on its device."""
    scores: Tensor
    """[rows, labels], float32 on the CPU: logits, or log-probabilities of whole labels."""
    logits: Tensor
    """[rows, vocabulary], at the readout."""


def _no_hooks(_rows: range) -> Sequence[Hook]:
    return ()


@torch.no_grad()
def run_batch(
    model: LoadedModel,
    prompts: Sequence[Sequence[int]],
    tokens: LabelTokens,
    *,
    places: Sequence[Place] = (),
    edits: RowHooks = _no_hooks,
    watching: Sequence[Hook] = (),
    job: Job | None = None,
) -> Batch:
    """Run prompts of equal length under edits, and read `places` and the answer.

    `edits(rows)` gives the hooks of some of the prompts; each gets [len(rows), tokens, width] and
    must count tokens from the start: where labels share their first tokens or need all of them,
    they act in one or more further forwards of longer prompts (of one prompt at a time, repeated
    for each label). What is kept, and what `watching` hooks see in the first forward, is what the
    edits left.
    """
    kept: dict[int, Tensor] = {}

    def keeping(number: int) -> Callable[[Tensor], None]:
        def function(tensor: Tensor) -> None:
            kept[number] = tensor[:, -1].detach().clone()

        return function

    own = [Hook(site, layer, keeping(n)) for n, (site, layer) in enumerate(places)]
    everyone = edits(range(len(prompts)))
    with hooked(model, (*everyone, *watching, *own), job=job):
        logits = model.forward(prompts)[:, -1]
    if tokens.rule == "first_token":
        scores = logits[:, list(tokens.deciding)]
    elif tokens.rule == "after_shared_prefix":
        with hooked(model, everyone, job=job):
            after = model.forward([[*prompt, *tokens.prefix] for prompt in prompts])
        scores = after[:, -1, list(tokens.deciding)]
    else:
        rows = []
        for number, prompt in enumerate(prompts):
            with hooked(model, edits(range(number, number + 1)), job=job):
                rows.append(whole_label_scores(model, prompt, tokens.sequences))
        scores = torch.stack(rows)
    none = logits.new_zeros(0, len(prompts), model.d_model)
    h = torch.stack([kept[number] for number in range(len(places))]) if places else none
    return Batch(h, scores.float().cpu(), logits)


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
