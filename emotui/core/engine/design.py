"""Which of the labelled texts are fitted on, tuned on, judged on, and left out of which fold."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from emotui.core.engine.labelled import LEAST_JUDGED, NEUTRAL, Labelled, LabelledText
from emotui.core.errors import UsageError

FOLDS = 5
NEVER_TRUSTED = "without texts of another source it is never trusted"


@dataclass(frozen=True)
class Design:
    """Who is who among n texts: labels and the rows of each use, as tensors."""

    labels: Tensor
    """[n], long."""
    classes: int
    train: Tensor
    """Indices of rows, as are the next ones."""
    dev: Tensor
    judged: Tensor
    subsets: dict[str, Tensor]
    """Rows whose accuracy is reported apart: test, named, unnamed, other; only those with rows."""
    judged_on: str
    """Which texts the judged ones are, and whether they are of another source."""
    folds: Tensor
    """[n], the fold of a training row, -1 for others."""
    neutral: Tensor
    """Rows of neutral texts of the same source; empty without that label."""
    may_trust: bool = False
    """Whether the judged texts can earn more than `lexical`."""


def design_of(data: Labelled, *, seed: int) -> Design:
    """Return the design of labelled texts.

    UsageError where dev lacks a label, or no held-out texts have enough of each.
    """
    texts = data.texts
    classes = len(data.emotions)

    def rows(which: list[bool]) -> Tensor:
        return torch.tensor([i for i, chosen in enumerate(which) if chosen], dtype=torch.long)

    labels = torch.tensor([text.label for text in texts], dtype=torch.long)
    subsets = {
        "test": rows([text.split == "test" for text in texts]),
        "named": rows([text.split == "test" and text.named for text in texts]),
        "unnamed": rows([text.split == "test" and not text.named for text in texts]),
        "other": rows([text.split == "other" for text in texts]),
    }

    def enough(chosen: Tensor) -> bool:
        counts = torch.bincount(labels[chosen], minlength=classes)
        return bool((counts >= LEAST_JUDGED).all())

    source = f"of the same source; {NEVER_TRUSTED}"
    if data.within:
        source = "of topics that were not fitted on, of the same source"
    elsewhere = (
        "texts of another source"
        if data.another_source
        else f"another file of the same source; {NEVER_TRUSTED}"
    )
    names = {
        "other": f"{elsewhere}: {data.other}" if data.other else elsewhere,
        "unnamed": f"held-out texts without emotion words, {source}",
        "test": f"held-out texts {source}",
    }
    judged = next((name for name in names if enough(subsets[name])), None)
    dev = rows([text.split == "dev" for text in texts])
    if judged is None or len(torch.unique(labels[dev])) < classes:
        raise UsageError(
            "There are too few texts to judge a probe on.",
            why=f"Each label needs {LEAST_JUDGED} held-out texts, which is 15 % of its texts.",
            todo="Give more texts, or leave --data out to use the bundled situations.",
        )
    neutral = data.emotions.index(NEUTRAL) if NEUTRAL in data.emotions else -1
    return Design(
        labels=labels,
        classes=classes,
        train=rows([text.split == "train" for text in texts]),
        dev=dev,
        judged=subsets[judged],
        subsets={name: chosen for name, chosen in subsets.items() if len(chosen)},
        judged_on=names[judged],
        may_trust=data.another_source if judged == "other" else data.within,
        folds=_folds(texts, seed),
        neutral=rows([text.label == neutral and text.split != "other" for text in texts]),
    )


def _folds(texts: tuple[LabelledText, ...], seed: int) -> Tensor:
    """Deal the groups of the training texts to the folds, in an order drawn by hash."""
    groups = sorted(
        {text.group for text in texts if text.split == "train"},
        key=lambda group: hashlib.sha256(f"{seed}:{group}".encode(errors="replace")).digest(),
    )
    fold = {group: number % FOLDS for number, group in enumerate(groups)}
    return torch.tensor([fold[t.group] if t.split == "train" else -1 for t in texts])
