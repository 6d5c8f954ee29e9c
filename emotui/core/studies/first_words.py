"""The control task of Tak et al.: name the first word of the text (METHODS 1.1).

The same texts in a prompt of the same form, whose answer has nothing to do with emotion: what
turns up there too is how the model answers such prompts. It is used only where the model does it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec
import torch
from torch import Tensor

from emotui.core.engine.answer import LabelTokens
from emotui.core.engine.collect import Place
from emotui.core.studies.common.readings import Readings, readings
from emotui.core.studies.common.statistics import balanced
from emotui.core.text import Template

if TYPE_CHECKING:
    from emotui.core.studies.common.running import Running

TEMPLATE = Template(
    "first-word",
    "What is the first word in the following contexts? Context: My dog died last week. Answer: My "
    "Context: I saw mouldy food. Answer: I Context: ",
    " Answer:",
)
MOST_WORDS = 13
LEAST_TEXTS = 20


class FirstWordsSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the model does the control task."""

    words: int
    """Allowed answers: the commonest first words whose first tokens differ, at most 13."""
    texts: int
    """Texts that begin with one of them and can be read in the prompt."""
    commonest: float | None
    """Share of these that begin with the commonest word: what saying it always would reach."""
    accuracy: float | None
    """Mean over words of the share the model answers rightly; None without any text."""
    used: bool
    """Whether it does the task, and is a control: 20 texts or more, and an accuracy at least
    halfway from that of one word for everything, however common the word, to 1."""


@dataclass(frozen=True)
class FirstWords:
    """The control task of a run."""

    study: Running
    """The same run in the control task's prompt, with its words for labels."""
    found: Readings
    gold: Tensor
    """[n of `found`], the word each text begins with; -1 for one that is not allowed."""
    summary: FirstWordsSummary


def first_words(study: Running, places: tuple[Place, ...]) -> FirstWords | None:
    """Run every text in the control task's prompt; None where fewer than two words can be told.

    `places` are kept at its readout. The stage is called `first-words`.
    """
    counts = Counter(_first(item.text) for item in study.dataset)
    words: dict[str, tuple[int, ...]] = {}
    for word, count in sorted(counts.items(), key=lambda one: (-one[1], one[0])):
        ids = study.model.reader.continuation_ids(f" {word}") if word else ()
        if count > 1 and ids and ids[0] not in {known[0] for known in words.values()}:
            words[word] = ids
        if len(words) == MOST_WORDS:
            break
    if len(words) < 2:
        return None
    tokens = LabelTokens("first-word", tuple(words), tuple(words.values()), (), "first_token")
    control = replace(study, template=TEMPLATE, tokens=tokens)
    found = readings(control, places, stage="first-words")
    number = {word: n for n, word in enumerate(words)}
    items = study.dataset.items(found.index.tolist())
    gold = torch.tensor([number.get(_first(item.text), -1) for item in items], dtype=torch.long)
    asked = gold >= 0
    n = int(asked.sum())
    accuracy = commonest = None
    if n:
        truth = gold[asked]
        right = found.scores.argmax(dim=1)[asked] == truth
        accuracy = float(balanced(right, truth, classes=len(words)))
        commonest = float(torch.bincount(truth).max() / n)
    # Halfway from one word for everything, which has 1 / words, to all right.
    least = (1 + 1 / len(words)) / 2
    used = accuracy is not None and n >= LEAST_TEXTS and accuracy >= least
    summary = FirstWordsSummary(
        words=len(words), texts=n, commonest=commonest, accuracy=accuracy, used=used
    )
    return FirstWords(control, found, gold, summary)


def _first(text: str) -> str:
    return (text.split() or [""])[0]


def said(summary: FirstWordsSummary | None) -> str:
    """Return one sentence on the control task."""
    if summary is None or summary.accuracy is None:
        return "The control task (name the first word) could not be put: too few words recur."
    how = (
        f"balanced accuracy {summary.accuracy:.2f} over {summary.words} words in {summary.texts:,} "
        f"texts, {summary.commonest:.0%} of which begin with the commonest"
    )
    if summary.used:
        return f"Control task (name the first word): the model does it, {how}."
    return (
        f"Control task (name the first word): the model does not do it ({how}), so it is no "
        "control here and was left out."
    )
