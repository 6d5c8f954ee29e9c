"""Train the demo's byte-level BPE tokenizer; every label is one token with its leading space.

python scripts/demo/train_tokenizer.py --data ../shared/data --out build/demo/tokenizer
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from demo_data import EKMAN7, SITUATION13, goemotions, situations, xed
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from emotui.core.text import TEMPLATES

VOCABULARY = 4096
_SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]
# Often enough that byte-pair merging makes one token of each label whatever the data hold.
_LABEL_REPEATS = 3000


def texts(data: Path) -> Iterator[str]:
    """Yield every training text, then the labels and the question as they stand in prompts."""
    for example in (*goemotions(data, "train"), *xed(data), *situations("train")):
        yield example.text
    for label in sorted({*EKMAN7, *SITUATION13}):
        yield from [f" {label}"] * _LABEL_REPEATS
    yield from [TEMPLATES["ask"].after] * _LABEL_REPEATS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        texts(options.data),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=_SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    bos = core.token_to_id("<bos>")
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", bos)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        padding_side="left",
    )
    for label in sorted({*EKMAN7, *SITUATION13}):
        pieces = tokenizer.encode(f" {label}", add_special_tokens=False)
        if len(pieces) != 1:
            raise SystemExit(f"The label {label!r} is {len(pieces)} tokens, not one.")
    tokenizer.save_pretrained(options.out)
    print(f"{len(tokenizer)} tokens -> {options.out}")


if __name__ == "__main__":
    main()
