"""Two halves of a dataset: directions are fitted on one, and tried on the other.

Groups (topics) are never cut. Of the fitting half a fifth is kept apart to choose a penalty on, and
a layer, so that nothing is chosen on the texts it is tried on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emotui.core.engine.design import FOLDS, Design
from emotui.core.engine.labelled import draw
from emotui.core.errors import UsageError
from emotui.core.studies.common.dataset import Item

_LEAST = {"train": 2, "dev": 1, "held": 2}
_DEV, _DEV_AT = 5, 2  # every fifth group of the fitting half, from the third on


@dataclass(frozen=True)
class Halves:
    """Rows of the readings, all of labels that each part has enough texts of."""

    labels: tuple[int, ...]
    """Those labels, as indices of the dataset's."""
    left_out: tuple[int, ...]
    train: Tensor
    dev: Tensor
    held: Tensor

    def design(self, gold: Tensor) -> tuple[Tensor, Design]:
        """Return the rows that take part, [n], and who is who among them; `gold` is of all rows."""
        rows = torch.cat([self.train, self.dev, self.held])
        number = {label: n for n, label in enumerate(self.labels)}
        labels = torch.tensor([number[label] for label in gold[rows].tolist()])
        parts, start = [], 0
        for part in (self.train, self.dev, self.held):
            parts.append(torch.arange(start, start + len(part)))
            start += len(part)
        folds = torch.full((len(rows),), -1)
        folds[parts[0]] = parts[0] % FOLDS
        return rows, Design(
            labels=labels,
            classes=len(self.labels),
            train=parts[0],
            dev=parts[1],
            judged=parts[2],
            subsets={},
            judged_on="the other half",
            folds=folds,
            neutral=torch.zeros(0, dtype=torch.long),
        )


def halves_of(
    items: Sequence[Item], gold: Sequence[int], names: Sequence[str], seed: int
) -> Halves:
    """Cut the texts in two halves, groups by hash, each label as evenly as its groups allow.

    `gold` [n] are indices of `names`. UsageError where fewer than two labels have two texts to
    fit on, one to choose on and two to try on.
    """
    by_label: dict[int, list[str]] = defaultdict(list)
    placed: set[str] = set()
    for item, label in zip(items, gold, strict=True):
        if item.group not in placed:
            placed.add(item.group)
            by_label[label].append(item.group)
    part_of: dict[str, str] = {}
    for groups in by_label.values():
        drawn = sorted(groups, key=lambda one: draw(one, seed))
        part_of.update(dict.fromkeys(drawn[1::2], "held"))
        for number, group in enumerate(drawn[::2]):
            part_of[group] = "dev" if number % _DEV == _DEV_AT else "train"
    rows: dict[str, list[int]] = {"train": [], "dev": [], "held": []}
    counts: dict[int, dict[str, int]] = {n: dict.fromkeys(rows, 0) for n in range(len(names))}
    for row, (item, label) in enumerate(zip(items, gold, strict=True)):
        rows[part_of[item.group]].append(row)
        counts[label][part_of[item.group]] += 1
    known = [n for n in counts if all(counts[n][part] >= _LEAST[part] for part in rows)]
    if len(known) < 2:
        said = ", ".join(f"{name} {sum(counts[n].values())}" for n, name in enumerate(names))
        raise UsageError(
            "There are too few texts to cut in two halves.",
            why="Fewer than two labels have two texts to fit on, one to choose on and two to try "
            f"on: {said}.",
            todo="Give more texts, or raise --limit.",
        )
    kept = {
        part: torch.tensor([row for row in members if gold[row] in known], dtype=torch.long)
        for part, members in rows.items()
    }
    present = [n for n in counts if any(counts[n].values())]
    return Halves(tuple(known), tuple(n for n in present if n not in known), **kept)
