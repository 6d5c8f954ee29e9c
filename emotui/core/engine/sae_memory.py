"""The SAE weights in memory, of all sources together: least recently used let go under a budget."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from emotui.core.engine import memory
from emotui.core.errors import OutOfMemory

if TYPE_CHECKING:
    import torch

_RESERVED_SHARE = 0.1
"""Of what is free, left for everything else where no budget was set."""

_Weights = TypeVar("_Weights")


class SaeMemory(Generic[_Weights]):
    """Weights by name, loaded when asked for.

    `budget_bytes` None is nine tenths of what is free, with what is held, when one is asked for.
    Room is made before weights are read, so that the budget is never passed, but by one SAE that
    is larger than all of it.
    """

    def __init__(self, device: torch.device, budget_bytes: int | None = None) -> None:
        self._device = device
        self._budget = budget_bytes
        self._loaded: OrderedDict[str, tuple[_Weights, int]] = OrderedDict()

    @property
    def loaded_bytes(self) -> int:
        """Bytes of the weights in memory now."""
        return sum(size for _, size in self._loaded.values())

    @property
    def budget_bytes(self) -> int:
        """Bytes that weights may take now."""
        if self._budget is not None:
            return self._budget
        free = memory.free_bytes(self._device) + self.loaded_bytes
        return int((1 - _RESERVED_SHARE) * free)

    def holds(self, name: str) -> bool:
        """Whether weights are in memory now."""
        return name in self._loaded

    def get(
        self,
        name: str,
        size: int,
        load: Callable[[], _Weights],
        too_large: Callable[[], OutOfMemory],
    ) -> _Weights:
        """Return weights of `size` bytes, loading them where needed.

        Where memory runs out while they are read, all others are let go and they are read again;
        `too_large` makes the error where that does not help either.
        """
        if name not in self._loaded:
            self._make_room(size)
            self._loaded[name] = (self._read(load, too_large), size)
        self._loaded.move_to_end(name)
        return self._loaded[name][0]

    def _make_room(self, size: int) -> None:
        budget = self.budget_bytes
        while self._loaded and self.loaded_bytes + size > budget:
            self._loaded.popitem(last=False)

    def _read(self, load: Callable[[], _Weights], too_large: Callable[[], OutOfMemory]) -> _Weights:
        try:
            with memory.told_what_fits(too_large):
                return load()
        except OutOfMemory:
            if not self._loaded:
                raise
        self._loaded.clear()
        memory.free_memory()
        with memory.told_what_fits(too_large):
            return load()
