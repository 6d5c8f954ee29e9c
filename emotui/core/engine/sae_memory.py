"""The SAE weights in memory, of all sources together: least recently used let go under a budget."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from emotui.core.engine import memory
from emotui.core.errors import OutOfMemory

if TYPE_CHECKING:
    import torch

_RESERVED_SHARE = 0.1
"""Of what is free, left for everything else where no budget was set."""

_Weights = TypeVar("_Weights")


@dataclass(frozen=True)
class _Held(Generic[_Weights]):
    """Weights in memory."""

    weights: _Weights
    size: int
    """In bytes."""
    device: torch.device


class SaeMemory(Generic[_Weights]):
    """Weights by name, loaded when asked for.

    `budget_bytes` is for all devices together; None is, on each device, nine tenths of what is
    free there, with what is held there, when one is asked for. Room is made before weights are
    read, so that the budget is never passed, but by one SAE that is larger than all of it.
    """

    def __init__(self, budget_bytes: int | None = None) -> None:
        self._budget = budget_bytes
        self._loaded: OrderedDict[str, _Held[_Weights]] = OrderedDict()

    @property
    def loaded_bytes(self) -> int:
        """Bytes of the weights in memory now."""
        return sum(one.size for one in self._loaded.values())

    def will_hold(self, sizes: Mapping[torch.device, Sequence[int]]) -> int:
        """Return by how much more is held at most, once weights of these bytes were all asked for.

        `sizes` are those of weights that are not in memory now, by the device they go to.
        """
        together = [(device, list(several)) for device, several in sizes.items() if several]
        if self._budget is not None and together:
            together = [(together[0][0], [size for _, several in together for size in several])]
        added = 0
        for device, several in together:
            held = sum(one.size for one in self._counted(device).values())
            room = max(max(several), self._budget_bytes(device)) - held
            added += max(0, min(sum(several), room))
        return added

    def _budget_bytes(self, device: torch.device) -> int:
        """Return the bytes that the weights counted for a device may take now."""
        if self._budget is not None:
            return self._budget
        held = sum(one.size for one in self._counted(device).values())
        return int((1 - _RESERVED_SHARE) * (memory.free_bytes(device) + held))

    def _counted(self, device: torch.device) -> dict[str, _Held[_Weights]]:
        """Return the weights that share a budget with those on a device, longest unused first."""
        everywhere = self._budget is not None
        return {n: one for n, one in self._loaded.items() if everywhere or one.device == device}

    def holds(self, name: str) -> bool:
        """Whether weights are in memory now."""
        return name in self._loaded

    def get(
        self,
        name: str,
        size: int,
        load: Callable[[], _Weights],
        too_large: Callable[[], OutOfMemory],
        *,
        device: torch.device,
    ) -> _Weights:
        """Return weights of `size` bytes on a device, loading them where needed.

        Where memory runs out while they are read, all others there are let go and they are read
        again; `too_large` makes the error where that does not help either.
        """
        if name not in self._loaded:
            self._make_room(size, device)
            self._loaded[name] = _Held(self._read(load, too_large, device), size, device)
        self._loaded.move_to_end(name)
        return self._loaded[name].weights

    def _make_room(self, size: int, device: torch.device) -> None:
        over = size - self._budget_bytes(device)
        counted = self._counted(device)
        over += sum(one.size for one in counted.values())
        for name, one in counted.items():
            if over <= 0:
                return
            del self._loaded[name]
            over -= one.size

    def _read(
        self,
        load: Callable[[], _Weights],
        too_large: Callable[[], OutOfMemory],
        device: torch.device,
    ) -> _Weights:
        try:
            with memory.told_what_fits(too_large):
                return load()
        except OutOfMemory:
            beside = [name for name, one in self._loaded.items() if one.device == device]
            if not beside:
                raise
        for name in beside:
            del self._loaded[name]
        memory.free_memory()
        with memory.told_what_fits(too_large):
            return load()
