"""The words that SAE features promote: the logit lens of their decoder directions.

For a direction v the ranking of unembed(norm(v) - norm(0)): an RMS norm scales v, a layer norm
centres it and adds a bias, which norm(0) takes away again. So the gain of the final norm counts,
and nothing else of it does. Same ranking as (v * gain) @ E (nostalgebraist 2020, on directions).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emotui.core.text import clean

if TYPE_CHECKING:
    from emotui.core.engine.model import LoadedModel
    from emotui.core.engine.saes import Sae

WORDS = 4
_LOOKED_AT = 48  # tokens looked at for words; most tokens of a vocabulary are pieces or marks
_LONGEST = 24
_CHUNK_VALUES = 2**25  # logits held at a time: 128 MB in float32


def words_at_once(vocabulary: int) -> int:
    """Return for how many directions the logits are held at a time."""
    return max(1, _CHUNK_VALUES // vocabulary)


@torch.no_grad()
def promoted_tokens(
    model: LoadedModel, directions: Tensor, *, allowed: Tensor | None = None, count: int = WORDS
) -> Tensor:
    """Return the ids [F, count] of the tokens whose logits `directions` [F, d] raise most.

    `allowed` [vocabulary] (bool) leaves the others out.
    """
    size = words_at_once(model.vocabulary)
    parts = []
    for start in range(0, len(directions), size):
        logits = model.sites.promotion(directions[start : start + size].to(model.dtype)).float()
        if allowed is not None:
            logits[:, : len(allowed)].masked_fill_(~allowed.to(logits.device), -torch.inf)
            logits[:, len(allowed) :] = -torch.inf
        parts.append(logits.topk(min(count, logits.shape[1]), dim=-1).indices.cpu())
    return torch.cat(parts) if parts else torch.empty(0, count, dtype=torch.long)


@torch.no_grad()
def written_by(model: LoadedModel, sae: Sae, indices: Sequence[int]) -> Tensor:
    """Return what one unit of each feature writes to the residual stream: [F, d_model].

    Of an SAE on the heads' outputs, through the output projection of the attention.
    """
    directions = sae.directions(indices).to(model.dtype)
    return directions if sae.site != "z" else model.sites.written_by_heads(sae.layer, directions)


def promoted_words(model: LoadedModel, directions: Tensor, *, count: int = WORDS) -> list[str]:
    """Return, for each direction, the first `count` words among the tokens it promotes most.

    A word is a token of letters alone, written without the space before it; each stands once.
    "" where there is none among the 48 tokens looked at.
    """
    return [
        " ".join(_words(model, row, count))
        for row in promoted_tokens(model, directions, count=_LOOKED_AT).tolist()
    ]


def _words(model: LoadedModel, ids: list[int], count: int) -> list[str]:
    found: dict[str, None] = {}
    for token in ids:
        word = clean(model.reader.string(token).strip())[:_LONGEST]
        if word.isalpha():
            found.setdefault(word)
        if len(found) == count:
            break
    return list(found)
