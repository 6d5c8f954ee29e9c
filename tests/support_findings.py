"""A hand-built model whose answer rests on one word, and what asks it."""

from __future__ import annotations

from pathlib import Path

import torch
from support_models import WIDTH, copied, tiny_folder
from transformers import LlamaForCausalLM

from emotui.core.emotions import LABEL_SETS
from emotui.core.engine.answer import label_tokens
from emotui.core.engine.capture import QuietJob
from emotui.core.engine.model import load_model
from emotui.core.protocol import ModelSpec
from emotui.core.text import template_named

LABELS = LABEL_SETS["ekman7"]
SADNESS, JOY = LABELS.index("sadness"), LABELS.index("joy")
CARRIER = 1
"""The layer whose attention carries what the tokens mean to the readout."""


@torch.no_grad()
def word_reader(root: Path, sad: dict[str, float], *, background: float = 0.5) -> Path:
    """Write a Llama that leans to sadness by the words in `sad`, and to joy by `background`.

    Each word is one token, which carries its strength; every token is attended to alike, and
    nothing else reaches the answer.
    """
    folder = copied(tiny_folder("llama"), root / "word-reader")
    reader = load_model(ModelSpec(str(folder)), QuietJob()).reader
    model = LlamaForCausalLM.from_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(512, WIDTH, generator=generator)
    embedding[:, : len(LABELS)] = 0
    template = template_named("ask")
    for word, strength in sad.items():
        (token,) = reader.continuation_ids(word)
        embedding[token, SADNESS] = strength
    embedding[reader.read("x", template).tokens[-1].id, JOY] = background
    model.model.embed_tokens.weight.copy_(embedding)
    model.lm_head.weight.zero_()
    for number, token in enumerate(label_tokens(reader, "ekman7", template).deciding):
        model.lm_head.weight[token, number] = 4.0
    model.model.norm.weight.fill_(1.0)
    for layer, block in enumerate(model.model.layers):
        block.mlp.down_proj.weight.zero_()
        block.self_attn.o_proj.weight.zero_()
        block.input_layernorm.weight.fill_(1.0)
        if layer == CARRIER:
            for projection in ("q_proj", "k_proj", "v_proj"):
                getattr(block.self_attn, projection).weight.zero_()
            for number in range(len(LABELS)):
                block.self_attn.v_proj.weight[number, number] = 1.0
                block.self_attn.o_proj.weight[number, number] = 10.0
    model.save_pretrained(folder)
    return folder
