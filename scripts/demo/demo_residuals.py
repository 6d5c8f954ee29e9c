"""Residuals of the demo model over many texts, by layer, for training and measuring its SAEs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from demo_model import Encoded, collate
from torch import Tensor
from transformers import Gemma2ForCausalLM, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Residuals:
    """Outputs of every block at the kept tokens."""

    layers: Tensor
    """[layer, token, width], float32."""
    row: Tensor
    """[token], the text each token belongs to."""
    in_text: Tensor
    """[token], False for the question's tokens."""
    readout: Tensor
    """[token], True for the last token of each prompt."""


def _block_outputs(model: Gemma2ForCausalLM, ids: Tensor) -> Tensor:
    kept: list[Tensor] = []

    def keep(_module: object, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        kept.append((output if isinstance(output, Tensor) else output[0]).detach())

    handles = [layer.register_forward_hook(keep) for layer in model.model.layers]
    try:
        model.model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(kept)


def _batches(rows: Sequence[Encoded], size: int) -> Iterator[list[int]]:
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    for start in range(0, len(order), size):
        yield order[start : start + size]


@torch.inference_mode()
def residuals(
    model: Gemma2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Encoded],
    *,
    question: bool,
) -> Residuals:
    """Return the residuals of `rows` at their text tokens, without BOS.

    With `question`, at the tokens of " The emotion is" too.
    """
    model.eval()
    layers, owner, inside, last = [], [], [], []
    for members in _batches(rows, 64):
        batch = collate([rows[index] for index in members], pad=tokenizer.pad_token_id)
        found = _block_outputs(model, batch.ids)
        place = torch.arange(batch.ids.shape[1])
        text = (place > 0) & (place < batch.text_end[:, None])
        keep = (place > 0) & (place < batch.length[:, None]) if question else text
        layers.append(found[:, keep])
        owner.append(torch.tensor(members)[:, None].expand_as(keep)[keep])
        inside.append(text[keep])
        last.append((place == batch.length[:, None] - 1)[keep])
    return Residuals(torch.cat(layers, dim=1), torch.cat(owner), torch.cat(inside), torch.cat(last))
