"""Tiny random checkpoints of every architecture in the site table, and of one that is not there.

Each has a byte-level BPE of its own, with BOS as the real models of its family have it.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

from emotui.core.engine.capture import QuietJob
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.protocol import ModelSpec

LAYERS = 4
GEMMA_OF_26_LAYERS = "gemma2 of 26 layers"
"""Gemma-2 as deep as google/gemma-2-2b, 16 wide."""
WIDTH = 48
SLIDING_WINDOW = 8
CONTEXT = 128

CORPUS = (
    "My dog died last week, and the house is very quiet now. The emotion is sadness.",
    "Lily was happy because her friend came back. The emotion is joy.",
    "He shouted at me for no reason and I could not answer. The emotion is anger.",
    "A spider as big as a hand ran over the pillow. The emotion is fear.",
    "The milk had turned and there was mould on the bread. The emotion is disgust.",
    "Nobody had told us that the door would be open. The emotion is surprise.",
    "The bus came at nine. The emotion is neutral. It was because I was sad that I was here.",
)

_SHAPE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def _build(family: str) -> Any:
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**_SHAPE, tie_word_embeddings=False))
    if family == "mistral":
        return MistralForCausalLM(MistralConfig(**_SHAPE, sliding_window=SLIDING_WINDOW))
    if family == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**_SHAPE))
    if family == "gemma2":
        config = Gemma2Config(
            **_SHAPE, head_dim=12, query_pre_attn_scalar=12, sliding_window=SLIDING_WINDOW
        )
        assert {"sliding_attention", "full_attention"} == set(config.layer_types)
        return Gemma2ForCausalLM(config)
    if family == GEMMA_OF_26_LAYERS:
        return Gemma2ForCausalLM(
            Gemma2Config(
                **{**_SHAPE, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 26},
                head_dim=4,
                query_pre_attn_scalar=4,
                sliding_window=SLIDING_WINDOW,
            )
        )
    if family in ("gemma3_text", "gemma3"):
        text = Gemma3TextConfig(
            **_SHAPE,
            head_dim=12,
            query_pre_attn_scalar=12,
            sliding_window=SLIDING_WINDOW,
            layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2),
        )
        if family == "gemma3_text":
            return Gemma3ForCausalLM(text)
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
        return Gemma3ForConditionalGeneration(
            Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1)
        )
    if family == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**_SHAPE, head_dim=12))
    if family == "olmo2":
        return Olmo2ForCausalLM(Olmo2Config(**_SHAPE))
    if family == "phi3":
        return Phi3ForCausalLM(Phi3Config(**_SHAPE))
    if family == "stablelm":
        return StableLmForCausalLM(StableLmConfig(**_SHAPE, partial_rotary_factor=0.5))
    if family == "gpt_neox":
        shape = {name: value for name, value in _SHAPE.items() if name != "num_key_value_heads"}
        return GPTNeoXForCausalLM(GPTNeoXConfig(**shape))
    if family == "gpt2":
        config = GPT2Config(
            vocab_size=512,
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=4,
            n_positions=CONTEXT,
            bos_token_id=2,
            eos_token_id=1,
        )
        return GPT2LMHeadModel(config)
    raise ValueError(family)


WITHOUT_BOS = frozenset({"qwen2", "qwen3", "gpt_neox", "olmo2"})
"""Families whose real tokenizers put nothing before a text; of these Qwen has no BOS at all."""


def _tokenizer(family: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<eos>", "<bos>", "<unk>", "<turn>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 4, trainer)
    if family not in WITHOUT_BOS:
        backend.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token=None if family.startswith("qwen") else "<bos>",
        unk_token="<unk>",
        additional_special_tokens=["<turn>"],
        chat_template=(
            "{% if bos_token %}{{ bos_token }}{% endif %}"
            "{% for m in messages %}<turn>{{ m.role }}\n{{ m.content }}\n"
            "{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
        ),
    )


def _enliven(model: Any, seed: int) -> None:
    """Give weights the size of trained ones: at the default 0.02 nothing would differ much."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.data = noise * 0.12
        else:
            parameter.data = parameter.data + noise * 0.1


@functools.cache
def _root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="emotui-tests-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


@functools.cache
def tiny_folder(family: str) -> Path:
    """Return the folder of a tiny checkpoint, built once per test process. Do not write to it."""
    folder = _root() / family
    model = _build(family).eval()
    _enliven(model, seed=len(family))
    model.save_pretrained(folder)
    _tokenizer(family).save_pretrained(folder)
    return folder


@functools.cache
def tiny_model(family: str) -> LoadedModel:
    """Return a tiny checkpoint as the engine loads it, once per test process."""
    return load_model(ModelSpec(model=str(tiny_folder(family))), QuietJob())


def plain_model(folder: Path) -> Any:
    """Return a checkpoint as transformers alone loads it: eager attention, float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=torch.float32, attn_implementation="eager"
    ).eval()


def copied(folder: Path, target: Path) -> Path:
    """Copy a checkpoint so that a test may damage it."""
    target.mkdir(parents=True)
    for file in folder.iterdir():
        shutil.copyfile(file, target / file.name)
    return target
