"""Made-up classes and texts for the tests of fits."""

from __future__ import annotations

import torch
from torch import Tensor

from emotui.core.emotions import LABEL_SETS
from emotui.core.engine.labelled import Labelled, LabelledText, Split

CPU = torch.device("cpu")


def clusters(rows: int, width: int, classes: int, spread: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + width)
    labels = torch.randint(classes, (rows,), generator=generator)
    labels[: rows // 3] = 0  # unbalanced
    centers = spread * torch.randn(classes, width, generator=generator)
    inputs = centers[labels] + torch.randn(rows, width, generator=generator)
    return (inputs - inputs.mean(0)) / inputs.std(0), labels


def planted_texts() -> Labelled:
    texts = []
    for topic in range(40):
        split: Split = "test" if topic < 6 else "dev" if topic < 12 else "train"
        for label in range(7):
            for copy in range(4):
                named = copy % 2 == 0
                text = LabelledText(f"{topic} {label} {copy}", label, split, named, str(topic))
                texts.append(text)
    return Labelled(tuple(texts), LABEL_SETS["ekman7"], "planted")
