"""One tensor a layer, each on its layer's device: the vectors of a model on several devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

_Index = int | slice | tuple[int | slice | list[int], ...]


@dataclass(frozen=True, eq=False)
class Layered:
    """Tensors of equal shape and dtype by row, a row a layer; one stack for rows on one device.

    It is indexed as their stack [rows, ...] would be.
    """

    parts: tuple[Tensor, ...]
    """[rows, ...] each, in the order of the rows."""

    @classmethod
    def of(cls, rows: Sequence[Tensor]) -> Layered:
        """Stack tensors where they are."""
        alike = groupby(rows, key=lambda row: row.device)
        return cls(tuple(torch.stack(list(several)) for _, several in alike))

    @classmethod
    def placed(cls, stack: Tensor, devices: Sequence[torch.device]) -> Layered:
        """Put each row of `stack` [rows, ...] on its device."""
        parts, first = [], 0
        for device, several in groupby(devices):
            count = len(list(several))
            parts.append(stack[first : first + count].to(device))
            first += count
        return cls(tuple(parts))

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __iter__(self) -> Iterator[Tensor]:
        return (row for part in self.parts for row in part)

    def __getitem__(self, index: _Index) -> Tensor:
        row, rest = (index[0], index[1:]) if isinstance(index, tuple) else (index, ())
        if isinstance(row, int):
            found = self._row(row)
            return found[rest] if rest else found
        assert isinstance(row, slice)
        found = self._rows(*row.indices(len(self)))
        return found[(slice(None), *rest)] if rest else found

    def _row(self, row: int) -> Tensor:
        left = row + len(self) if row < 0 else row
        for part in self.parts:
            if 0 <= left < len(part):
                return part[left]
            left -= len(part)
        raise IndexError(f"there is no row {row} among {len(self)}")

    def _rows(self, start: int, stop: int, step: int) -> Tensor:
        """Return rows that are on one device there, others on the CPU."""
        found: list[Tensor] = []
        begin = 0
        for part in self.parts:
            inside = slice(max(start - begin, 0), max(stop - begin, 0))
            if len(part[inside]):
                found.append(part[inside])
            begin += len(part)
        one = found[0] if len(found) == 1 else torch.cat([rows.cpu() for rows in found])
        return one if step == 1 else one[::step]

    def since(self, row: int) -> Layered:
        """Return the rows from one on."""
        left = [part[max(0, row - rows.start) :] for rows, part in self.groups()]
        return Layered(tuple(part for part in left if len(part)))

    def each(self, function: Callable[[Tensor], Tensor]) -> Layered:
        """Apply a function that keeps the rows to the stack of each device."""
        return Layered(tuple(function(part) for part in self.parts))

    def groups(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the rows of each stack, and the stack."""
        first = 0
        for part in self.parts:
            yield slice(first, first + len(part)), part
            first += len(part)

    def whole(self) -> Tensor:
        """Return the stack [rows, ...]: of one device there, of several a copy on the CPU."""
        return self._rows(0, len(self), 1)

    def cpu(self) -> Tensor:
        """Return the stack [rows, ...] on the CPU."""
        return self.whole().cpu()


Stack = Tensor | Layered
"""Rows by layer: one tensor where all are on one device."""


def placed(stack: Tensor, devices: Sequence[torch.device]) -> Stack:
    """Put each row on its device: one tensor where that is the same for all."""
    if len(set(devices)) == 1:
        return stack.to(devices[0])
    return Layered.placed(stack, devices)
