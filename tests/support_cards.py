"""Two pretend accelerators, `card:0` and `card:1`, on a machine that has none.

A tensor on a card is a wrapper around a CPU tensor: its numbers are real, its device is not. Every
operation is checked as CUDA checks it and then run on the CPU, so a run over the cards gives the
numbers of the CPU, and raises where CUDA would:

- tensors of two devices in one operation; only a CPU scalar may join, and CPU indices in `x[i]`
  and `x[i] = y`; a copy (`to`, `copy_`) goes anywhere;
- a CPU tensor written to from a card by anything but a copy; a CPU tensor indexed by a card's;
- `numpy()` and `__array__` of a tensor on a card; a random generator of another device.

One thing is refused that CUDA allows: drawing random numbers on a card. There they would be other
numbers than on the CPU, and what emotui draws must not depend on the device.

What it does not tell: kernels that CUDA lacks or that round otherwise, memory, streams, time.

PyTorch takes one such backend for a process, renames it for good, and from then on names it as
the accelerator of the process (`torch.accelerator`). So tests that use it run in a process of
their own: `tests/test_cards.py` starts pytest on the `on_cards_*.py` files.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

CARD = "card"
CARDS = (f"{CARD}:0", f"{CARD}:1")
_aten = torch.ops.aten
_MAY_INDEX_FROM_CPU = frozenset(
    {
        _aten.index.Tensor,
        _aten._unsafe_index.Tensor,
        _aten.index_put.default,
        _aten.index_put_.default,
        _aten._index_put_impl_.default,
    }
)
_NO_SCALARS = frozenset({_aten.cat.default, _aten.stack.default})
"""Of these CUDA does not take a CPU scalar either."""


@dataclass(frozen=True)
class Move:
    """A tensor that was copied from one device to another."""

    source: str
    target: str
    shape: tuple[int, ...]

    @property
    def between_cards(self) -> bool:
        """Whether it went from one card to the other."""
        return self.source.startswith(CARD) and self.target.startswith(CARD)


@dataclass
class Moves:
    """What was copied between devices, in order."""

    made: list[Move] = field(default_factory=list)

    def between_cards(self) -> list[Move]:
        """Return the copies from one card to the other."""
        return [move for move in self.made if move.between_cards]


_moves = Moves()


class CardTensor(torch.Tensor):
    """A tensor on a card: `on_cpu` holds its numbers."""

    on_cpu: Tensor

    @staticmethod
    def __new__(
        cls, inner: Tensor, device: torch.device | None = None, *, requires_grad: bool = False
    ) -> CardTensor:
        """Wrap `inner`, which must not be used elsewhere, as a tensor on `device`.

        Without a device, `inner` is on a card already: accelerate makes parameters by their class.
        """
        if device is None:
            given = inner.detach().requires_grad_(requires_grad)
            assert isinstance(given, CardTensor)
            return given
        made: CardTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device,
        )
        made.on_cpu = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Check an operation and run it."""
        return _run(func, args, kwargs or {})

    def data_ptr(self) -> int:
        """Return where its numbers are: two tensors that share them have one address."""
        return self.on_cpu.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        """Return the memory of its numbers: safetensors asks which tensors share theirs."""
        return self.on_cpu.untyped_storage()

    def numpy(self, *, force: bool = False) -> NoReturn:
        """Refuse, as CUDA does."""
        raise TypeError(f"can't convert {self.device} device type tensor to numpy")

    def __array__(self, *_arguments: Any, **_named: Any) -> NoReturn:
        """Refuse, as CUDA does."""
        self.numpy()

    def tolist(self) -> Any:
        """Return its numbers, as from CUDA."""
        return self.on_cpu.tolist()

    def __repr__(self, **_named: Any) -> str:  # type: ignore[override]
        return f"{self.on_cpu!r} on {self.device}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Return a copy on the same card."""
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        memo[id(self)] = copied
        return copied


class _Watching(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what makes a tensor on a card of tensors that are not there."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Check an operation and run it."""
        return _run(func, args, kwargs or {})


def _numbered(device: Any) -> torch.device:
    """Return a device with its number: a card alone is the first."""
    found = torch.device(device)
    return torch.device(CARD, found.index or 0) if found.type == CARD else found


class _Operation:
    """What must be known of an operation, looked up once."""

    def __init__(self, func: Any) -> None:
        arguments = func._schema.arguments
        self.may_index_from_cpu = func in _MAY_INDEX_FROM_CPU
        self.takes_scalars = func not in _NO_SCALARS
        self.written = [
            n for n, one in enumerate(arguments) if one.alias_info and one.alias_info.is_write
        ]
        self.reshapes = torch.Tag.inplace_view in func.tags
        # Attention has the tag for its dropout, which is none where a model is only read.
        seeded = torch.Tag.nondeterministic_seeded in func.tags
        self.draws = seeded and not re.search("dropout|attention", str(func))


_operation = functools.cache(_Operation)


class _Inside:
    """The arguments of an operation with their numbers on the CPU, and where they were."""

    def __init__(self, operation: _Operation) -> None:
        self._operation = operation
        self.devices: set[torch.device] = set()
        self.cards: list[CardTensor] = []

    def of(self, value: Any, *, index: bool = False) -> Any:
        """Take one argument, or a list of them; `index` those that say where in another."""
        if isinstance(value, CardTensor):
            self.devices.add(value.device)
            self.cards.append(value)
            return value.on_cpu
        if isinstance(value, Tensor):
            scalar = value.dim() == 0 and self._operation.takes_scalars
            if not scalar and not index:
                self.devices.add(value.device)
        elif isinstance(value, tuple | list):
            return type(value)([self.of(one, index=index) for one in value])
        return value


def _on(device: torch.device, out: Any, same: dict[int, CardTensor]) -> Any:
    """Put what an operation gave on a card; what is inside one of `same` is that."""
    if isinstance(out, Tensor):
        known = same.get(id(out))
        return CardTensor(out, device) if known is None else known
    if isinstance(out, tuple | list):
        return type(out)(_on(device, one, same) for one in out)
    return out


def _moved(tensor: Tensor, target: torch.device) -> None:
    if tensor.device != target:
        _moves.made.append(Move(str(tensor.device), str(target), tuple(tensor.shape)))


def _copied(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Copy a tensor to any device, in another dtype or not."""
    tensor = args[0]
    target = _numbered(kwargs.get("device") or tensor.device)
    _moved(tensor, target)
    inner = tensor.on_cpu if isinstance(tensor, CardTensor) else tensor
    out = func(inner, **{**kwargs, "device": torch.device("cpu")})
    return CardTensor(out, target) if target.type == CARD else out


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run one operation where it belongs, as CUDA would or not at all."""
    if func is _aten._to_copy.default:
        return _copied(func, args, kwargs)
    operation = _operation(func)
    inside = _Inside(operation)
    plain = [
        inside.of(one, index=number == 1 and operation.may_index_from_cpu)
        for number, one in enumerate(args)
    ]
    named = {name: inside.of(one) for name, one in kwargs.items()}
    if func is _aten.copy_.default:
        _moved(args[1], args[0].device)
        func(*plain, **named)
        return args[0]
    device = next(iter(inside.devices), torch.device("cpu"))
    if len(inside.devices) > 1:
        raise RuntimeError(f"tensors on {', '.join(map(str, inside.devices))} in {func}")
    if kwargs.get("device") is not None:
        device = _numbered(kwargs["device"])
        named["device"] = torch.device("cpu") if device.type == CARD else device
    if device.type != CARD:
        return func(*plain, **named)
    for number in operation.written:
        if number < len(args) and args[number].device != device:
            raise RuntimeError(f"{func} writes to {args[number].device} from {device}")
    if operation.draws or kwargs.get("generator") is not None:
        raise RuntimeError(f"{func} draws random numbers on {device}")
    out = func(*plain, **named)
    if operation.reshapes:
        _reshape(func, args)
    same = {id(one.on_cpu): one for one in inside.cards} if operation.written else {}
    return _on(device, out, same)


def _reshape(func: Any, args: tuple[Any, ...]) -> None:
    """Give a wrapper the shape that `squeeze_` and the like gave what is inside it."""
    included = torch._C._meta_in_tls_dispatch_include()
    with no_dispatch():
        torch._C._set_meta_in_tls_dispatch_include(True)
        try:
            func(*args)
        finally:
            torch._C._set_meta_in_tls_dispatch_include(included)


@functools.cache
def _registered() -> torch.library.Library:
    """Give PyTorch the backend, once and for good in this process."""
    _setup_privateuseone_for_python_backend(rename=CARD)
    # `torch.tensor(list, device=...)` and `x[[1, 2]]` move to the card out of sight of `_Watching`.
    kernels = torch.library.Library(  # type: ignore[no-untyped-call]
        "aten", "IMPL", "PrivateUse1"
    )
    for func in (_aten.empty_strided.default, _aten.copy_.default):
        kernels.impl(  # type: ignore[no-untyped-call]
            func, functools.partial(_called, func)
        )
    return kernels


def _called(func: Any, *args: Any, **kwargs: Any) -> Any:
    return _run(func, args, kwargs)


@contextmanager
def pretend_cards() -> Iterator[Moves]:
    """Make `card:0` and `card:1` work inside; yields what is copied between devices there.

    Not for a process that runs other tests: see above.
    """
    _registered()
    _moves.made.clear()
    # On the way back PyTorch would look for a thread of the second card: it counts one card. Of the
    # ways to compute attention the cards have the plain one, so the CPU takes that here too.
    with (
        torch.autograd.set_multithreading_enabled(False),
        sdpa_kernel(SDPBackend.MATH),
        _Watching(),  # type: ignore[no-untyped-call]
    ):
        yield _moves
