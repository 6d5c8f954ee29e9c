"""A transformer built by hand that names emotions in two steps, and data it is made for.

The attention of layer ATTENTION carries what a word means to the readout; the MLP of layer MLP
turns it into the answer. It also names the first word of a text, by attention alone. All else is
idle or noise.
"""

from __future__ import annotations

import csv
import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support_hooks import changed_run
from support_models import LAYERS, WIDTH, copied, tiny_folder
from support_studies import run_here
from torch import Tensor
from transformers import LlamaForCausalLM

from emotui.core.emotions import LABEL_SETS
from emotui.core.engine.answer import label_tokens
from emotui.core.engine.capture import QuietJob
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.tokens import TokenReader
from emotui.core.protocol import ModelSpec
from emotui.core.studies.common.folder import StudyDocument
from emotui.core.text import template_named

LABELS = LABEL_SETS["ekman7"]
WORDS = {"joy": " happ", "anger": " told", "sadness": " hand", "fear": " spider"}
"""Tokens that mean an emotion."""
FIRST = (" there", " nine", " was")
"""Tokens a text can begin with in the control task's prompt."""
ATTENTION, MLP = 1, 2
RATINGS = {  # pleasantness, other_responsblt, predict_event, chance_control
    "joy": (5, 3, 3, 2),
    "anger": (1, 5, 2, 1),
    "sadness": (1, 1, 3, 4),
    "fear": (1, 2, 1, 5),
}
APPRAISALS = ("pleasantness", "other_responsblt", "predict_event", "chance_control")
_MEANT, _CARRIED, _WORD, _WORD_CARRIED, _FREE = 14, 7, 21, 24, 27  # first coordinates of each


def _only(reader: TokenReader, text: str) -> int:
    (token,) = reader.continuation_ids(text)
    return token


@torch.no_grad()
def _planted(root: Path) -> Path:
    folder = copied(tiny_folder("llama"), root / "planted")
    reader = load_model(ModelSpec(str(folder)), QuietJob()).reader
    template = template_named("ask")
    model = LlamaForCausalLM.from_pretrained(folder)
    embedding = torch.zeros(512, WIDTH)
    noise = torch.randn(512, WIDTH - _FREE, generator=torch.Generator().manual_seed(0))
    embedding[:, _FREE:] = noise
    for label, word in WORDS.items():
        embedding[_only(reader, word), _MEANT + LABELS.index(label)] = 40.0
    for number, word in enumerate(FIRST):
        embedding[_only(reader, word), _WORD + number] = 40.0
    asked = reader.read("x", template).tokens[-1].id
    embedding[asked, LABELS.index("neutral")] = 0.5
    model.model.embed_tokens.weight.copy_(embedding)
    model.lm_head.weight.zero_()
    for number, token in enumerate(label_tokens(reader, "ekman7", template).deciding):
        model.lm_head.weight[token, number] = 4.0
    for number, word in enumerate(FIRST):
        model.lm_head.weight[_only(reader, word), _WORD_CARRIED + number] = 4.0
    model.model.norm.weight.fill_(1.0)
    for layer, block in enumerate(model.model.layers):
        block.mlp.down_proj.weight.zero_()
        block.self_attn.o_proj.weight.zero_()
        block.input_layernorm.weight.fill_(1.0)
        block.post_attention_layernorm.weight.fill_(1.0)
        if layer == ATTENTION:
            for name in ("q_proj", "k_proj", "v_proj"):  # every token is attended to alike
                getattr(block.self_attn, name).weight.zero_()
            for number in range(len(LABELS)):
                block.self_attn.v_proj.weight[number, _MEANT + number] = 1.0
                block.self_attn.o_proj.weight[_CARRIED + number, number] = 10.0
            for number in range(len(FIRST)):
                block.self_attn.v_proj.weight[7 + number, _WORD + number] = 1.0
                block.self_attn.o_proj.weight[_WORD_CARRIED + number, 7 + number] = 30.0
        if layer == MLP:
            block.mlp.gate_proj.weight.zero_()
            block.mlp.up_proj.weight.zero_()
            for number in range(len(LABELS)):
                block.mlp.gate_proj.weight[number, _CARRIED + number] = 3.0
                block.mlp.up_proj.weight[number, _CARRIED + number] = 1.0
                block.mlp.down_proj.weight[number, number] = 0.15
    model.save_pretrained(folder)
    return folder


@functools.cache
def planted_model() -> LoadedModel:
    """Return the model; built once a test process."""
    root = Path(tempfile.mkdtemp(prefix="emotui-planted-"))
    return load_model(ModelSpec(str(_planted(root))), QuietJob())


def planted_texts(path: Path, count: int = 48) -> Path:
    """Write `count` texts of the four emotions in turn, each text once, with four appraisals."""
    labels, draws = tuple(WORDS), np.random.default_rng(0)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "emotion", *APPRAISALS))
        for number in range(count):
            label = labels[number % len(labels)]
            ending = "y" if label == "joy" else ""
            first = FIRST[number % len(FIRST)].strip()
            text = f"{first}{WORDS[label]}{ending} would {number:03d}"
            # People differ: what is rated varies around the emotion's own.
            rated = [value + draws.integers(-1, 2) for value in RATINGS[label]]
            writer.writerow((text, label, *rated))
    return path


def run_planted(folder: Path, study: str, *, count: int = 48, **fields: Any) -> StudyDocument:
    """Run a study of the model on `count` texts, in `folder`; `fields` are the request's."""
    data = planted_texts(folder / "texts.csv", count)
    return run_here(planted_model(), folder, study, data, **fields)


def texts_of(folder: Path) -> list[str]:
    """Return the texts of a run in `folder`."""
    with (folder / "texts.csv").open() as file:
        return [row["text"] for row in csv.DictReader(file)]


def ids_of(text: str) -> list[int]:
    """Return the tokens of a text in the prompt that runs are asked in."""
    return [token.id for token in planted_model().reader.read(text, template_named("ask")).tokens]


def deciding_tokens() -> list[int]:
    """Return the token that each label is told by after that prompt."""
    return list(label_tokens(planted_model().reader, "ekman7", template_named("ask")).deciding)


def text_scored(folder: Path, scores: Tensor) -> list[int]:
    """Return the tokens of the first text of a run that plain runs give these scores [labels]."""
    model, deciding = planted_model(), deciding_tokens()
    return next(
        ids
        for ids in map(ids_of, texts_of(folder))
        if torch.allclose(changed_run(model, ids, {})[deciding], scores, atol=1e-4)
    )


assert LAYERS == 4 > MLP
