"""The demo's architecture, its batches, and the forward pass that training and measuring share."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from demo_data import EKMAN7, GOEMOTIONS28, SITUATION13, Example
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

from emotui.core.emotions import PLUTCHIK
from emotui.core.text import TEMPLATES

LAYERS = 8
WIDTH = 128
CONTEXT = 256


def new_model(tokenizer: PreTrainedTokenizerFast) -> Gemma2ForCausalLM:
    """Return the demo model with fresh weights: 8 layers of width 128, tied embeddings."""
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=320,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            query_pre_attn_scalar=32,
            max_position_embeddings=CONTEXT,
            sliding_window=128,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attn_implementation="eager",
        )
    )


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """An example with its token ids: BOS, the text, the question; `text_end` is the text's end."""

    ids: tuple[int, ...]
    text_end: int
    example: Example


def encode(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerFast, *, limit: int = CONTEXT
) -> list[Encoded]:
    """Tokenise text and question apart, as the explorer does; texts are cut at `limit` tokens."""
    question = tokenizer.encode(TEMPLATES["ask"].after, add_special_tokens=False)
    room = limit - len(question)
    encoded = []
    for example, ids in zip(
        examples, tokenizer([example.text for example in examples])["input_ids"], strict=True
    ):
        text = ids[:room]
        encoded.append(
            Encoded(ids=(*text, *question), text_end=len(text), example=example),
        )
    return encoded


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Right-padded ids [batch, position] and the targets of the rows."""

    ids: Tensor
    length: Tensor
    text_end: Tensor
    ekman: Tensor
    ekman_weight: Tensor
    adjust: Tensor
    """1 where the row comes from a source with the comments' uneven class shares."""
    thirteen: Tensor
    """Index into SITUATION13, -1 where absent."""
    thirteen_weight: Tensor
    fine: Tensor
    has_fine: Tensor
    plutchik: Tensor
    has_plutchik: Tensor


def collate(rows: Sequence[Encoded], *, pad: int) -> Batch:
    """Return the rows as one batch."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), pad)
    ekman = torch.zeros(len(rows), len(EKMAN7))
    weight = torch.zeros(len(rows))
    fine = torch.zeros(len(rows), len(GOEMOTIONS28))
    plutchik = torch.zeros(len(rows), len(PLUTCHIK))
    for index, row in enumerate(rows):
        example = row.example
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        if example.ekman is not None:
            ekman[index] = torch.tensor(example.ekman)
            weight[index] = example.weight
        fine[index, list(example.fine or ())] = 1
        plutchik[index, list(example.plutchik or ())] = 1
    examples = [row.example for row in rows]
    return Batch(
        ids=ids,
        length=torch.tensor([len(row.ids) for row in rows]),
        text_end=torch.tensor([row.text_end for row in rows]),
        ekman=ekman,
        ekman_weight=weight,
        adjust=torch.tensor([float(x.source != "situations") for x in examples]),
        thirteen=torch.tensor([-1 if x.thirteen is None else x.thirteen for x in examples]),
        thirteen_weight=torch.tensor(
            [1.0 if x.source == "situations" else x.weight for x in examples]
        ),
        fine=fine,
        has_fine=torch.tensor([float(x.fine is not None) for x in examples]),
        plutchik=plutchik,
        has_plutchik=torch.tensor([float(x.plutchik is not None) for x in examples]),
    )


def batches(
    rows: Sequence[Encoded], *, tokens: int, pad: int, chooser: random.Random | None = None
) -> Iterator[Batch]:
    """Yield batches of rows of like length, about `tokens` tokens each, shuffled by `chooser`."""
    jitter = (lambda: chooser.uniform(-4, 4)) if chooser else (lambda: 0.0)
    order = sorted(rows, key=lambda row: len(row.ids) + jitter())
    groups: list[list[Encoded]] = [[]]
    for row in order:
        if groups[-1] and (len(groups[-1]) + 1) * len(row.ids) > tokens:
            groups.append([])
        groups[-1].append(row)
    if chooser:
        chooser.shuffle(groups)
    for group in groups:
        yield collate(group, pad=pad)


def label_ids(tokenizer: PreTrainedTokenizerFast, labels: Sequence[str]) -> Tensor:
    """Return the token of " label" for every label."""
    return torch.tensor(
        [tokenizer.encode(f" {label}", add_special_tokens=False)[0] for label in labels]
    )


class Helper(nn.Module):
    """Heads that only shape the training and are dropped from the shipped model."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Linear(WIDTH, len(GOEMOTIONS28))
        self.plutchik = nn.Linear(WIDTH, len(PLUTCHIK))
        self.text = nn.Linear(WIDTH, len(EKMAN7))


def capped(model: Gemma2ForCausalLM, hidden: Tensor) -> Tensor:
    """Return next-token logits of final hidden states, soft-capped as Gemma-2 does."""
    cap = model.config.final_logit_softcapping
    return torch.tanh(model.lm_head(hidden) / cap) * cap


@torch.inference_mode()
def answers(
    model: Gemma2ForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Encoded]
) -> Tensor:
    """Return logits at the readout, [row, vocabulary], float32, in the order of `rows`."""
    model.eval()
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    out = torch.empty(len(rows), model.config.vocab_size)
    for start in range(0, len(order), 64):
        chosen = order[start : start + 64]
        batch = collate([rows[index] for index in chosen], pad=tokenizer.pad_token_id)
        hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(chosen)), batch.length - 1]
        out[chosen] = capped(model, last).float()
    return out


def scores(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    """Return accuracy and balanced accuracy (mean recall of the classes present)."""
    right = (logits.argmax(-1) == targets).float()
    recalls = [right[targets == label].mean() for label in targets.unique()]
    return right.mean().item(), torch.stack(recalls).mean().item()


__all__ = [
    "CONTEXT",
    "LAYERS",
    "SITUATION13",
    "WIDTH",
    "Batch",
    "Encoded",
    "Helper",
    "answers",
    "batches",
    "capped",
    "collate",
    "encode",
    "label_ids",
    "new_model",
    "scores",
]
