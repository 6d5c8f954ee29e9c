"""What a probe is held against beside shuffled labels and the bag of embeddings (METHODS 3): the
control task of Hewitt and Liang (2019), and random directions of the same activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DRAWS = 5
"""Control tasks, and sets of random directions, that a control is the mean of."""
_LEAST_JUDGED = 5  # texts of each of two labels, or a drawing of the control task says nothing


@dataclass(frozen=True)
class ControlTask:
    """Labels that mean nothing, but follow from each text's first word: what a probe of the same
    capacity can learn by heart."""

    labels: Tensor
    """[drawings, n]."""
    judged: Tensor
    """Held-out rows whose first word occurs in training."""
    words: int
    """Different first words in training."""


@dataclass(frozen=True)
class Beside:
    """Balanced accuracies at P places, means over the drawings; NaN where not measured."""

    control: Tensor
    """[P], of the control task."""
    task: Tensor
    """[P], of the probe itself on the same texts as the control task."""
    random: Tensor
    """[P], from as many random directions as there are labels."""
    orthogonal: Tensor
    """[P], the same with directions orthogonal to all of the probe's."""


def first_word_labels(
    texts: Sequence[str], shares: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return a label for each text that follows from its first word alone, and the words' numbers.

    Each word draws its label once, by `shares` [classes] (any sum). Both are [n], long.
    """
    words = [(text.lower().split() or [""])[0] for text in texts]
    kinds = {word: number for number, word in enumerate(sorted(set(words)))}
    drawn = torch.multinomial(shares, len(kinds), replacement=True, generator=generator)
    numbers = torch.tensor([kinds[word] for word in words], dtype=torch.long)
    return drawn[numbers], numbers


def control_task(
    texts: Sequence[str],
    labels: Tensor,
    *,
    train: Tensor,
    held_out: Tensor,
    classes: int,
    seed: int,
) -> ControlTask | None:
    """Draw the control task for labelled texts, by the frequencies of their training labels.

    `labels` [n]; `train` and `held_out` are indices of rows. None where first words recur too
    little, or too much, to judge any drawing.
    """
    generator = torch.Generator().manual_seed(seed)
    shares = torch.bincount(labels[train], minlength=classes).double()
    drawings = [first_word_labels(texts, shares, generator) for _ in range(DRAWS)]
    numbers = drawings[0][1]
    judged = held_out[torch.isin(numbers[held_out], numbers[train])]
    kept = [
        drawn
        for drawn, _ in drawings
        if int((torch.bincount(drawn[judged], minlength=classes) >= _LEAST_JUDGED).sum()) > 1
        and len(torch.unique(drawn[train])) > 1
    ]
    if not kept:
        return None
    return ControlTask(torch.stack(kept), judged, len(torch.unique(numbers[train])))


def random_directions(
    width: int, count: int, *, generator: torch.Generator, without: Tensor | None = None
) -> Tensor:
    """Return `count` random unit directions, [width, count], float32 on the CPU.

    With `without` [width, K], they are orthogonal to all of its columns.
    """
    directions = torch.randn(width, count, generator=generator)
    if without is not None:
        basis = torch.linalg.qr(without.cpu().double()).Q.float()
        directions = directions - basis @ (basis.T @ directions)
    unit: Tensor = directions / directions.norm(dim=0).clamp_min(1e-30)
    return unit


def along_random(inputs: Tensor, weight: Tensor | None, *, count: int, seed: int) -> Tensor:
    """Return `inputs` [P, n, d] along random directions, [P * DRAWS, n, count].

    Every place gets the same drawings; with `weight` [P, d, K], made orthogonal to its own probe's.
    """
    drawn = []
    for draw in range(DRAWS):
        per_place = []
        for place in range(len(inputs)):
            without = None if weight is None else weight[place]
            generator = torch.Generator().manual_seed(seed + draw)
            per_place.append(
                random_directions(inputs.shape[2], count, generator=generator, without=without)
            )
        drawn.append(torch.bmm(inputs, torch.stack(per_place).to(inputs)))
    return torch.stack(drawn, dim=1).flatten(0, 1)
