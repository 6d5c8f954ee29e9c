"""Describe every SAE feature of the demo: the tokens it promotes and the emotion it singles out.

    python scripts/demo/label_features.py --data ../shared/data --model build/demo/model/best \
        --saes build/demo/saes

Writes beside each SAE `labels.json` (index to a short text) and `selectivity.json`. Selectivity is
measured at the readout on texts the model was not trained on (GoEmotions' dev rows of one label,
the dev topics), in two halves. On the first: the area under the curve of one emotion against the
rest, and its p over 500 shufflings of the labels as the maximum over features and emotions of the
layer. A feature is specific to an emotion where that area is >= 0.75 with p < 0.05, the emotions
above neutral count for at most 1.5, and the second half's area is >= 0.70.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from demo_data import EKMAN7, SITUATION13, goemotions, single_label, situations
from demo_model import encode, label_ids
from demo_residuals import residuals
from sae_lens import SAE
from torch import Tensor
from transformers import AutoTokenizer, Gemma2ForCausalLM, PreTrainedTokenizerFast

from emotui.core.engine.selectivity import Halves, SelectivityMeter

_LEVEL = 0.05
_TOKENS = 4
_LEAST_SEEN = 50  # times a token occurs in training; the embedding of others is hardly trained
_PER_CLASS = 250  # so that the common classes do not decide everything


def readable(tokenizer: PreTrainedTokenizerFast, data: Path) -> Tensor:
    """Return which tokens [vocabulary] stand for letters and are common, or are labels."""
    counts = torch.zeros(len(tokenizer), dtype=torch.long)
    for row in encode(goemotions(data, "train"), tokenizer):
        counts[list(row.ids)] += 1
    counts[label_ids(tokenizer, SITUATION13)] = _LEAST_SEEN
    words = [tokenizer.decode([token]).strip() for token in range(len(tokenizer))]
    return (counts >= _LEAST_SEEN) & torch.tensor([word.isalpha() for word in words])


def promoted(model: Gemma2ForCausalLM, decoder: Tensor, allowed: Tensor) -> Tensor:
    """Return the allowed tokens [feature, n] whose logits a feature's direction raises most."""
    gain = 1 + model.model.norm.weight
    embedding = model.lm_head.weight
    logits = (decoder * gain) @ (embedding - embedding.mean(0)).T
    logits = logits.masked_fill(~allowed, -torch.inf)
    return logits.topk(_TOKENS, dim=-1).indices


def judged(features: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return class, area, p, breadth and the confirming area of every feature."""
    generator = torch.Generator().manual_seed(0)
    select = torch.rand(len(labels), generator=generator) < 0.5
    halves = Halves(labels, len(EKMAN7), len(EKMAN7) - 1, select, torch.arange(len(labels)))
    meter = SelectivityMeter(halves)
    meter.add(features)
    return vars(meter.result())


def label_of(words: str, emotion: str, *, confirmed: float, p: float, specific: bool) -> str:
    """Return `fear .91*: words`: the emotion and the second half's area where p < 0.05.

    The star marks a feature that is specific to it; without p < 0.05 the words stand alone.
    """
    if p >= _LEVEL:
        return words
    return f"{emotion} {confirmed:.2f}".replace(" 0.", " .") + f"{'*' if specific else ''}: {words}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--saes", type=Path, required=True)
    options = parser.parse_args()

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = Gemma2ForCausalLM.from_pretrained(
        options.model, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    kept: dict[int, int] = {}
    examples = []
    for row in (*situations("dev"), *single_label(goemotions(options.data, "dev"))):
        if row.ekman is None or row.weight != 1:
            continue
        label = row.ekman.index(1.0)
        kept[label] = kept.get(label, 0) + 1
        if kept[label] <= _PER_CLASS:
            examples.append(row)
    found = residuals(model, tokenizer, encode(examples, tokenizer), question=True)
    row_of_readout = found.row[found.readout]
    labels = torch.tensor([row.ekman.index(1.0) for row in examples if row.ekman])[row_of_readout]
    allowed = readable(tokenizer, options.data)
    for folder in sorted(options.saes.glob("resid.*")):
        layer = int(folder.name.rpartition(".")[2])
        sae = SAE.load_from_disk(folder, device="cpu", dtype="float32")
        with torch.inference_mode():
            features = sae.encode(found.layers[layer][found.readout])
            result = judged(features, labels)
            tokens = promoted(model, sae.W_dec, allowed)
        texts, table = {}, {}
        for index in range(features.shape[1]):
            words = " ".join(tokenizer.decode([token]).strip() for token in tokens[index].tolist())
            name = EKMAN7[int(result["emotion"][index])]
            texts[index] = label_of(
                words,
                name,
                confirmed=float(result["confirmed"][index]),
                p=float(result["p"][index]),
                specific=bool(result["specific"][index]),
            )
            if (features[:, index] > 0).any():
                table[index] = {
                    "emotion": name,
                    "specific": bool(result["specific"][index]),
                    **{
                        key: round(float(result[key][index]), 4)
                        for key in ("area", "confirmed", "p", "breadth")
                    },
                }
        (folder / "labels.json").write_text(
            json.dumps(texts, indent=0, ensure_ascii=False), encoding="utf-8"
        )
        (folder / "selectivity.json").write_text(json.dumps(table, indent=0))
        print(f"layer {layer}: {int(result['specific'].sum())} specific features", flush=True)


if __name__ == "__main__":
    main()
