"""Which texts are patched into which: pairs spread over the answers and over the texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec
import torch
from torch import Tensor


class Pair(msgspec.Struct, frozen=True):
    """Rows of the readings."""

    source: int
    target: int
    same: int
    """Another text that is answered as the target is; -1 where none was asked for."""


def draw_pairs(
    answers: Tensor, usable: Sequence[int], count: int, generator: torch.Generator
) -> list[Pair]:
    """Return at most `count` different pairs of usable rows with different answers.

    Ordered pairs of answers take turns, and so do the rows of an answer, so that texts repeat as
    little as the turns allow. Only answers that two usable rows have take part. [] where fewer
    than two do.
    """
    members: dict[int, list[int]] = {}
    for row in usable:
        members.setdefault(int(answers[row]), []).append(row)
    known = sorted(answer for answer, rows in members.items() if len(rows) > 1)
    turns = [(source, target) for source in known for target in known if source != target]
    possible = sum(len(members[one]) * len(members[other]) for one, other in turns)
    pairs: list[Pair] = []
    seen: set[tuple[int, int]] = set()
    used, same_used = Counter[int](), Counter[int]()

    def in_turn(rows: list[int], counts: Counter[int]) -> list[int]:
        """Return rows by how often they were drawn, in a random order where as often."""
        shuffled = [rows[n] for n in torch.randperm(len(rows), generator=generator).tolist()]
        return sorted(shuffled, key=counts.__getitem__)

    while len(pairs) < min(count, possible):
        order = torch.randperm(len(turns), generator=generator).tolist()
        for source, target in (turns[number] for number in order):
            rows = _least_used(
                in_turn(members[source], used), in_turn(members[target], used), used, seen
            )
            if rows is None or len(pairs) == count:
                continue
            seen.add(rows)
            used.update(rows)
            same = next(row for row in in_turn(members[target], same_used) if row != rows[1])
            same_used[same] += 1
            pairs.append(Pair(*rows, same))
    return pairs


def _least_used(
    sources: list[int], targets: list[int], used: Counter[int], seen: set[tuple[int, int]]
) -> tuple[int, int] | None:
    """Return the pair not seen whose texts were used least; both lists are in that order."""
    best: tuple[int, int] | None = None
    for source in sources:
        if best is not None and used[source] + used[targets[0]] >= used[best[0]] + used[best[1]]:
            return best
        target = next((one for one in targets if (source, one) not in seen), None)
        if target is not None and (
            best is None or used[source] + used[target] < used[best[0]] + used[best[1]]
        ):
            best = (source, target)
    return best
