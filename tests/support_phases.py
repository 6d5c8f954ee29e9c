"""Transformers built by hand whose phases, features and causes are known, and texts for them.

Words are single letters: six topics, two letters of each emotion, and fillers. Each letter has a
coordinate of its own; what it means stands in hidden coordinates that no SAE reads. Attention is
uniform, so a layer that reads a hidden coordinate writes the meaning to every later token: the
topic to its own coordinate, an emotion to its own, to one for all emotions, to one for negative
ones or (neutral) to a second of its own. The labels are read from the emotions' own alone.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from support_models import CONTEXT, tiny_folder
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from emotui.core.emotions import LABEL_SETS
from emotui.core.engine.answer import label_tokens
from emotui.core.engine.capture import QuietJob
from emotui.core.engine.model import load_model
from emotui.core.protocol import ModelSpec
from emotui.core.text import template_named

LABELS = LABEL_SETS["ekman7"]
LAYERS, WIDTH, ACTIVE = 12, 64, 3
TOPICS = "abcdef"
LETTERS = {label: "ghijklmnopqrst"[2 * n : 2 * n + 2] for n, label in enumerate(LABELS)}
FILLERS = "uvwxyz"
NEGATIVE = ("anger", "disgust", "fear", "sadness")
TOPIC, EMOTION, AFFECT, VALENCE, CALM = 26, 32, 39, 40, 41
_TOPIC_SOURCE, _EMOTION_SOURCE = 42, 48
_NOISE = 55
MEANINGS = len(TOPICS) + len(LABELS)
_AMOUNT = {"topic": 8.0, "emotion": 30.0, "affect": 22.0, "valence": 16.0}

PHASED = ([4] * len(TOPICS), [8] * len(LABELS))
"""The layers that write each topic and each emotion: phases begin at layers 0, 4 and 8."""
GRADUAL = ([0, 2, 4, 7, 9, 11], [0, 2, 4, 6, 7, 9, 11])


@torch.no_grad()
def phased_model(folder: Path, layers: tuple[Sequence[int], Sequence[int]]) -> Path:
    """Write a model whose topics and emotions are written by the layers named."""
    folder.mkdir(parents=True)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder("llama"))
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    _embed(model, tokenizer)
    for number, block in enumerate(model.model.layers):
        attention = block.self_attn
        for parameter in block.parameters():
            parameter.zero_()
        block.input_layernorm.weight.fill_(1)
        block.post_attention_layernorm.weight.fill_(1)
        for meaning in range(MEANINGS):
            attention.v_proj.weight[meaning, _TOPIC_SOURCE + meaning] = 1
        for meaning, at in enumerate((*layers[0], *layers[1])):
            if at == number:
                _write(attention.o_proj.weight, meaning)
    model.model.norm.weight.fill_(1)
    model.lm_head.weight.zero_()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    reader = load_model(ModelSpec(str(folder)), QuietJob()).reader
    for n, token in enumerate(label_tokens(reader, "ekman7", template_named("ask")).deciding):
        model.lm_head.weight[token, EMOTION + n] = 4
    model.save_pretrained(folder)
    return folder


def _embed(model: Any, tokenizer: Any) -> None:
    weights = model.model.embed_tokens.weight
    weights.zero_()
    weights[:, _NOISE:] = torch.randn(
        512, WIDTH - _NOISE, generator=torch.Generator().manual_seed(0)
    )
    for token in range(len(tokenizer)):
        letter = tokenizer.decode([token]).strip()
        if not letter:
            weights[token] = 0  # a space: which letters it stands apart from must tell nothing
        if len(letter) != 1 or not "a" <= letter <= "z":
            continue
        weights[token] = 0
        weights[token, ord(letter) - ord("a")] = 3
        if letter in TOPICS:
            weights[token, _TOPIC_SOURCE + TOPICS.index(letter)] = 8
        for n, label in enumerate(LABELS):
            if letter in LETTERS[label]:
                weights[token, _EMOTION_SOURCE + n] = 8


def _write(weight: torch.Tensor, meaning: int) -> None:
    if meaning < len(TOPICS):
        weight[TOPIC + meaning, meaning] = _AMOUNT["topic"] * 1.5
        return
    label = LABELS[meaning - len(TOPICS)]
    weight[EMOTION + LABELS.index(label), meaning] = _AMOUNT["emotion"] * 5
    weight[CALM if label == "neutral" else AFFECT, meaning] = _AMOUNT["affect"] * 5
    if label in NEGATIVE:
        weight[VALENCE, meaning] = _AMOUNT["valence"] * 5


def coordinate_saes(root: Path, *, twins: int = 0) -> Path:
    """Write TopK SAEs with a feature for each coordinate but the hidden ones.

    `twins` more features for each emotion fire as its own does, and as strongly, but write to
    coordinates that nothing reads: alike in all but the effect.
    """
    for layer in range(LAYERS):
        folder = root / f"layer_{layer}"
        folder.mkdir(parents=True)
        seen = torch.eye(WIDTH)
        seen[_TOPIC_SOURCE:_NOISE] = 0
        reading, writing = [seen], [torch.eye(WIDTH)]
        for number in range(twins):
            reading.append(seen[:, EMOTION : EMOTION + len(LABELS)])
            writing.append(torch.zeros(len(LABELS), WIDTH))
            writing[-1][:, _NOISE + number] = 1
        width = WIDTH + twins * len(LABELS)
        save_file(
            {
                "W_enc": torch.cat(reading, dim=1).contiguous(),
                "W_dec": torch.cat(writing),
                "b_enc": torch.zeros(width),
                "b_dec": torch.zeros(WIDTH),
            },
            folder / "sae_weights.safetensors",
        )
        config = {
            "architecture": "topk",
            "k": ACTIVE + twins,
            "rescale_acts_by_decoder_norm": False,
            "d_in": WIDTH,
            "d_sae": width,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": {"hook_name": f"blocks.{layer}.hook_resid_post", "prepend_bos": True},
        }
        (folder / "cfg.json").write_text(json.dumps(config))
    return root


def write_letters(path: Path, count: int, *, seed: int = 0) -> Path:
    """Write texts of every emotion in turn, with a topic each, as a CSV file."""
    drawn = random.Random(seed)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label", "subject"))
        for number in range(count):
            label, subject = LABELS[number % len(LABELS)], drawn.choice(TOPICS)
            words = [subject, drawn.choice(LETTERS[label]), *drawn.choices(FILLERS, k=5)]
            writer.writerow((" ".join([drawn.choice(FILLERS), *words]), label, subject))
    return path


def f1(found: set[Any], planted: set[Any]) -> float:
    """Return F1 of a set that was found against the one that was planted."""
    return 2 * len(found & planted) / (len(found) + len(planted))
