"""Running many texts and keeping one vector a layer and site: the readout's, and a mean.

Texts of equal length share a batch, so nothing is ever padded and no mask is needed: the numbers
are those of single runs up to the rounding of batched kernels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emotui.core.engine.capture import Hook, Job, hooked
from emotui.core.records import EMBEDDING_LAYER, Site, TextRecord

if TYPE_CHECKING:
    from emotui.core.engine.model import LoadedModel

Place = tuple[Site, int]
"""A site and a layer; (`resid`, -1) is the embedding."""

TOKENS_PER_BATCH = 4096
"""Most tokens of one forward pass over a corpus."""


@dataclass(frozen=True)
class Collected:
    """Vectors of n texts at P places, on the CPU in the run's dtype."""

    places: tuple[Place, ...]
    readout: Tensor
    """[P, n, d_model], at the last token of the prompt."""
    mean: Tensor
    """[P, n, d_model], averaged over the tokens of the user's text."""


def places_of(n_layers: int) -> tuple[Place, ...]:
    """Return every place of a model: the residual from layer -1 on, then attention, then MLP."""
    layers = range(n_layers)
    resid: tuple[Place, ...] = tuple(("resid", layer) for layer in (EMBEDDING_LAYER, *layers))
    attn: tuple[Place, ...] = tuple(("attn", layer) for layer in layers)
    mlp: tuple[Place, ...] = tuple(("mlp", layer) for layer in layers)
    return resid + attn + mlp


def batches(lengths: Sequence[int], *, most_tokens: int = TOKENS_PER_BATCH) -> Iterator[list[int]]:
    """Yield the indices of texts of equal length, at most `most_tokens` tokens at a time."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for text, length in enumerate(lengths):
        by_length[length].append(text)
    for length in sorted(by_length):
        size = max(1, most_tokens // max(length, 1))
        members = by_length[length]
        for start in range(0, len(members), size):
            yield members[start : start + size]


def visit(
    model: LoadedModel,
    texts: Sequence[TextRecord],
    receive: Callable[[list[int], int, Tensor], None],
    *,
    job: Job,
    phase: str,
) -> None:
    """Run every text and hand each place's tensor to `receive`.

    `receive` gets the indices of the texts in the batch, the index of the place in `places_of`,
    and the tensor [batch, tokens, d_model], which it must not keep.
    """
    places = places_of(model.n_layers)
    done = 0
    for members in batches([len(text.tokens) for text in texts]):
        job.check()
        job.progress(phase, done, len(texts))
        hooks = [
            Hook(site, layer, _handing_on(receive, members, index))
            for index, (site, layer) in enumerate(places)
        ]
        with hooked(model, hooks, job=job):
            model.forward([[token.id for token in texts[text].tokens] for text in members])
        done += len(members)
    job.progress(phase, done, len(texts))


def _handing_on(
    receive: Callable[[list[int], int, Tensor], None], members: list[int], index: int
) -> Callable[[Tensor], None]:
    def function(tensor: Tensor) -> None:
        receive(members, index, tensor.detach())

    return function


def text_mask(text: TextRecord) -> list[bool]:
    """Return, for each token, whether it is part of the user's text."""
    return [token.part == "text" for token in text.tokens]


def collect(model: LoadedModel, texts: Sequence[TextRecord], *, job: Job) -> Collected:
    """Run every text and return its vectors at the readout and averaged over its own tokens."""
    places = places_of(model.n_layers)
    shape = (len(places), len(texts), model.d_model)
    readout = torch.empty(shape, dtype=model.dtype)
    mean = torch.empty(shape, dtype=model.dtype)
    masks = [text_mask(text) for text in texts]

    def receive(members: list[int], place: int, tensor: Tensor) -> None:
        inside = torch.tensor([masks[text] for text in members], device=tensor.device)
        share = inside.float() / inside.sum(dim=1, keepdim=True)
        # In float32: averaging in bfloat16 would lose what distinguishes texts.
        averaged = torch.einsum("bt,btd->bd", share, tensor.float())
        readout[place, members] = tensor[:, -1].to("cpu", model.dtype)
        mean[place, members] = averaged.to("cpu", model.dtype)

    visit(model, texts, receive, job=job, phase="running the model")
    return Collected(places, readout, mean)
