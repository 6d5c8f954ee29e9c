"""Measure the demo model's answers beside a bag-of-words classifier of the same training texts.

    python benchmarks/demo_answers.py --data ../shared/data [--model FOLDER] [--json]

GoEmotions: test rows with exactly one label. Situations: held-out topics, with and without emotion
words. crowd-enVENT: never trained on, the emotion word hidden. Seven classes (Ekman and neutral);
events whose emotion has no class of its own are also counted under their nearest ("mapped").
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import AutoTokenizer, Gemma2ForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts" / "demo"))

import demo_data
from demo_data import EKMAN7, SITUATION13, Example
from demo_model import answers, encode, label_ids

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("EMOTUI_DATA", ROOT.parent / "shared" / "data"))


def texts_to_measure(data: Path, split: str) -> dict[str, list[Example]]:
    """Return the sets of texts by name; for `dev`, what choices may be made on."""
    sets = {"GoEmotions": demo_data.single_label(demo_data.goemotions(data, split))}
    held = demo_data.situations(split)
    direct = [row for row in held if row.ekman is not None and row.weight == 1]
    sets["situations without emotion words"] = [row for row in direct if not row.named]
    sets["situations naming the emotion"] = [row for row in direct if row.named]
    if split == "test":
        events = demo_data.crowd_envent(data)
        sets["crowd-enVENT"] = [row for row in events if row.weight == 1]
        sets["crowd-enVENT, guilt to relief mapped"] = events
    return sets


def classes(examples: Sequence[Example]) -> np.ndarray:
    """Return the index into EKMAN7 of each text."""
    return np.array([np.argmax(example.ekman) for example in examples])


def figures(predicted: np.ndarray, truth: np.ndarray) -> dict[str, object]:
    """Return accuracy, balanced accuracy and recall by class."""
    recall = {
        label: round(float((predicted[truth == index] == index).mean()), 3)
        for index, label in enumerate(EKMAN7)
        if (truth == index).any()
    }
    return {
        "n": len(truth),
        "accuracy": round(float((predicted == truth).mean()), 4),
        "balanced": round(float(np.mean(list(recall.values()))), 4),
        "majority": round(float(np.bincount(truth).max() / len(truth)), 4),
        "recall": recall,
    }


class BagOfWords:
    """TF-IDF of words and pairs of words, and logistic regression, on the demo's own texts.

    Trained on GoEmotions' rows of one label and the situations of the training topics, with the
    same adjustment for class shares as the demo.
    """

    def __init__(self, data: Path, *, adjust: float = 0.5) -> None:
        comments = demo_data.single_label(demo_data.goemotions(data, "train"))
        told = [row for row in demo_data.situations("train") if row.ekman and row.weight == 1]
        train = [*comments, *told]
        self._vectors = TfidfVectorizer(
            ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=r"(?u)\w+|[^\w\s]"
        )
        matrix = self._vectors.fit_transform([row.text for row in train])
        self._classifier = LogisticRegression(C=3, max_iter=300).fit(matrix, classes(train))
        shares = np.bincount(classes(comments), minlength=len(EKMAN7)) / len(comments)
        self._adjustment = adjust * np.log(shares)

    def __call__(self, examples: Sequence[Example]) -> np.ndarray:
        logits = self._classifier.predict_log_proba(
            self._vectors.transform([example.text for example in examples])
        )
        return (logits - self._adjustment).argmax(axis=1)


def thirteen(logits: torch.Tensor, ids: torch.Tensor, rows: Sequence[Example]) -> dict[str, float]:
    """Return balanced accuracy over the situations' thirteen labels, by half."""
    predicted = logits[:, ids].argmax(-1).numpy()
    found = {}
    for name, named in (("naming the emotion", True), ("without emotion words", False)):
        recalls = []
        for label in range(len(SITUATION13)):
            own = [i for i, x in enumerate(rows) if x.thirteen == label and x.named is named]
            recalls.append((predicted[own] == label).mean())
        found[name] = round(float(np.mean(recalls)), 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--model", type=Path, default=ROOT / "emotui" / "demo" / "emotui-demo")
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = Gemma2ForCausalLM.from_pretrained(
        options.model, dtype=getattr(torch, options.dtype), attn_implementation="eager"
    )
    seven = label_ids(tokenizer, EKMAN7)
    labels = label_ids(tokenizer, SITUATION13)
    bag = BagOfWords(options.data)
    report: dict[str, object] = {}
    for name, examples in texts_to_measure(options.data, options.split).items():
        truth = classes(examples)
        logits = answers(model, tokenizer, encode(examples, tokenizer))
        report[name] = {
            "demo": figures(logits[:, seven].argmax(-1).numpy(), truth),
            "bag of words": figures(bag(examples), truth),
            "answers that are a label": round(
                float(
                    torch.isin(logits.argmax(-1), label_ids(tokenizer, SITUATION13)).float().mean()
                ),
                4,
            ),
        }
    held = demo_data.situations(options.split)
    report["situations, thirteen labels, balanced"] = thirteen(
        answers(model, tokenizer, encode(held, tokenizer)),
        labels,
        held,
    )
    if options.json:
        print(json.dumps(report, indent=1))
        return
    print(
        f"{'texts':42}{'n':>6}{'majority':>10}{'demo acc':>10}{'bal':>7}{'bag acc':>10}{'bal':>7}"
    )
    for name, entry in report.items():
        if "demo" in entry:
            demo, words = entry["demo"], entry["bag of words"]
            print(
                f"{name:42}{demo['n']:6}{demo['majority']:10.3f}{demo['accuracy']:10.3f}"
                f"{demo['balanced']:7.3f}{words['accuracy']:10.3f}{words['balanced']:7.3f}"
            )
    print(json.dumps(report["situations, thirteen labels, balanced"]))
    print(json.dumps(report["GoEmotions"]["demo"]["recall"]))


if __name__ == "__main__":
    main()
