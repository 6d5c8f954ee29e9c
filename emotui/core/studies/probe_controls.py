"""What the probes of the study are held against beyond shuffled labels and the mean embedding:
counts of words, random directions, and the same architecture with random weights (METHODS 3)."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emotui.core.emotions import words_of
from emotui.core.engine import controls
from emotui.core.engine.design import Design
from emotui.core.engine.probe_controls import random_directions
from emotui.core.studies.common.fits import fit_place

if TYPE_CHECKING:
    from emotui.core.studies.common.running import Running

_MOST_WORDS = 3000


def word_weights(texts: Sequence[str], train: Sequence[int]) -> Tensor:
    """Return TF-IDF of the commonest words of the training texts, [texts, words], unit rows.

    idf = log((1 + n) / (1 + texts with the word)) + 1, as scikit-learn's; words of one training
    text alone are left out.
    """
    words = [words_of(text) for text in texts]
    among = Counter(word for row in train for word in set(words[row]))
    common = [(word, n) for word, n in sorted(among.items()) if n > 1]
    kept = sorted(common, key=lambda one: (-one[1], one[0]))[:_MOST_WORDS]
    column = {word: number for number, (word, _) in enumerate(kept)}
    counts = torch.zeros(len(texts), max(len(kept), 1))
    for row, found in enumerate(words):
        for word in found:
            if word in column:
                counts[row, column[word]] += 1
    seen = torch.tensor([float(n) for _, n in kept] or [0.0])
    weighted = counts * (((1 + len(train)) / (1 + seen)).log() + 1)
    unit: Tensor = weighted / weighted.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return unit


def text_probe(texts: Sequence[str], design: Design, study: Running) -> float:
    """Return the balanced accuracy on the judged texts of a probe that sees words alone."""
    inputs = word_weights(texts, design.train.tolist())
    fits = fit_place(study, inputs, design, phase="fitting on words")
    judged = design.judged
    return float(
        controls.balanced_accuracy(
            fits.predicted[0, judged], design.labels[judged], classes=design.classes
        )
    )


def projected(
    h: Tensor, without: Tensor | None, *, count: int, generator: torch.Generator
) -> Tensor:
    """Return `h` [n, d] along `count` random directions, [n, count].

    With `without` [d, K], the directions are orthogonal to all of its columns.
    """
    directions = random_directions(h.shape[1], count, generator=generator, without=without)
    return h @ directions


@contextmanager
def random_weights(study: Running) -> Iterator[None]:
    """Run the model inside with matrices drawn anew, as before training; norms and biases stay.

    The weights are put back on every path; meanwhile the model takes its memory twice.
    """
    model = study.model.hf
    kept = copy.deepcopy(model.state_dict())
    spread = float(getattr(model.config.get_text_config(), "initializer_range", 0.02))
    try:
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                drawn = torch.randn(parameter.shape, generator=study.generator(f"weights {name}"))
                parameter.data.copy_(spread * drawn)
        yield
    finally:
        model.load_state_dict(kept)
