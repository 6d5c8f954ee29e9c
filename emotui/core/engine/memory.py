"""Memory: what there is, what a model or a run will take, and what to say when it was too little.

An estimate is what is held already, measured, plus what will be added, counted from shapes: on
the CPU of the whole process (libraries included, files mapped into memory too), on an accelerator
of what PyTorch holds there. Nothing here imports torch before it is used.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from typing import TYPE_CHECKING, Any

from emotui.core.errors import EmotuiError, OutOfMemory
from emotui.core.sizes import in_bytes

if TYPE_CHECKING:
    import torch

UNKNOWN_FREE = 8 * 2**30
"""What is taken to be free where the system does not tell."""

_WORTH_A_LINE = 100 * 2**20
_LATER_BYTES = 48 * 2**20
"""Of modules that are imported and buffers that are made while the first text is run."""
FLOAT = 4
"""Bytes of a float32."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_CGROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free on a device, 8 GiB where the system does not tell.

    On the CPU the least of what the system, the control group (containers, Slurm) and the limit
    on this process leave.
    """
    if device.type == "cuda":
        import torch

        # What PyTorch keeps of blocks that hold nothing now is given out again.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    left = [_system_free(), _cgroup_free(), _limit_free()]
    known = [count for count in left if count is not None]
    return max(0, min(known)) if known else UNKNOWN_FREE


def _system_free() -> int | None:
    told = _status("/proc/meminfo")
    free = told.get("MemAvailable")
    return None if free is None else free + told.get("SwapFree", 0)


def _cgroup_free() -> int | None:
    try:
        lines = _lines("/proc/self/cgroup")
    except OSError:
        return None
    left: list[int] = []
    for line in lines:
        _, controllers, inside = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        kind = "/memory" if controllers else ""
        folder = f"/sys/fs/cgroup{kind}/{inside.lstrip('/')}"
        left += [count for names in _CGROUP_FILES for count in _left_in(folder, *names)]
    return min(left) if left else None


def _left_in(folder: str, limit: str, used: str) -> list[int]:
    """Return what a control group leaves, where it sets a limit; files it caches can be let go."""
    try:
        told = [_lines(f"{folder}/{name}")[0].strip() for name in (limit, used)]
        stat = dict(line.split(" ", 1) for line in _lines(f"{folder}/memory.stat"))
    except (OSError, ValueError, IndexError):
        return []
    if not all(one.isdigit() for one in told):  # `max` is no limit
        return []
    cached = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
    return [int(told[0]) - max(0, int(told[1]) - cached)]


def _limit() -> int | None:
    """Return the bytes of address space that this process may use; None for no limit."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _limit_free() -> int | None:
    limit = _limit()
    return None if limit is None else limit - _status("/proc/self/status").get("VmSize", 0)


def what_was_free(needed: int, free: int, device: torch.device) -> str:
    """Return what was free, in words, and why it was too little where it was more than needed."""
    limit = _limit() if device.type == "cpu" else None
    if limit is None:
        later = "; it took more than was counted, or something else did" if needed <= free else ""
        return f"{in_bytes(free)} were free{later}."
    return (
        f"{in_bytes(free)} were free of the {in_bytes(limit)} of address space that this process "
        "may use (`ulimit -v`). Threads, libraries and mapped files take from that too, whether "
        "they are in memory or not: raise it, or limit memory by a control group instead."
    )


def _lines(place: str) -> list[str]:
    # Not by a Path: every text asks, and would have the parts interned anew.
    with FileIO(place) as file:
        return file.readall().decode("ascii", errors="replace").splitlines()


def _status(place: str) -> dict[str, int]:
    """Return the lines `NAME: N kB` of a file of /proc, in bytes; nothing where there is none."""
    try:
        lines = _lines(place)
    except OSError:
        return {}
    words = (line.replace(":", " ").split() for line in lines)
    return {w[0]: 1024 * int(w[1]) for w in words if len(w) == 3 and w[2] == "kB"}


def held_bytes(device: torch.device) -> int:
    """Return what is in memory now: of the process, or of PyTorch on an accelerator."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.memory_allocated(device))
    return _status("/proc/self/status").get("VmRSS", peak_bytes(device))


def peak_bytes(device: torch.device) -> int:
    """Return the most that was ever in memory: of the process, or of PyTorch on an accelerator."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    told = _status("/proc/self/status").get("VmHWM")
    if told is not None:
        return told
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


@dataclass(frozen=True)
class Estimate:
    """What something will take at its peak, all in bytes."""

    held: int
    """In memory before."""
    parts: tuple[tuple[str, int], ...]
    """What is added, by name."""
    free: int

    @property
    def added(self) -> int:
        """What is added to what is held."""
        return sum(count for _, count in self.parts)

    @property
    def total(self) -> int:
        """The peak."""
        return self.held + self.added

    @property
    def is_large(self) -> bool:
        """Whether what is added is worth a line to the user."""
        return self.added >= _WORTH_A_LINE or 2 * self.added > self.free

    @property
    def fits(self) -> bool:
        """Whether what is added is free."""
        return self.added <= self.free

    def __str__(self) -> str:
        parts = ", ".join(f"{in_bytes(count)} {name}" for name, count in self.parts)
        return (
            f"about {in_bytes(self.total)} at the peak ({in_bytes(self.held)} held now, {parts}; "
            f"{in_bytes(self.free)} free)"
        )


@dataclass(frozen=True)
class Weights:
    """What the files of a model hold, from their headers."""

    in_file: int
    """Bytes as they are stored."""
    values: int
    """Numbers in floating-point tensors."""
    other: int
    """Bytes of tensors of whole numbers."""
    stored: frozenset[str]
    """The dtypes of the files, as safetensors writes them."""
    linear: int = 0
    """Of the numbers those in matrices that are no embedding: what is quantised."""
    largest_linear: int = 0
    """Numbers of the largest such matrix."""
    file_of_embedding: int = 0
    """Bytes of the file that holds the embedding: all of them where there is one file."""

    def in_memory(self, itemsize: float) -> int:
        """Return the bytes with floating-point numbers of `itemsize` bytes."""
        return int(self.values * itemsize) + self.other


_SIZES: Mapping[str, int] = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}


def weights_of(headers: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> Weights:
    """Count the tensors of safetensors headers; an unembedding tied to the embedding not twice."""
    in_file = values = other = of_embedding = 0
    linear = [0]
    stored: set[str] = set()
    tied = bool(config.get("tie_word_embeddings"))
    vocabulary = _vocabulary(config)
    for header in headers:
        before, embeds = in_file, False
        for name, tensor in header.items():
            if tied and name.endswith("lm_head.weight"):
                continue
            start, end = tensor["data_offsets"]
            size = _SIZES.get(str(tensor.get("dtype")))
            in_file += end - start
            if size is None:
                other += end - start
            else:
                values += (end - start) // size
                shape = tensor.get("shape") or ()
                # Rows of a vocabulary are embeddings or unembeddings.
                if vocabulary in shape:
                    embeds = True
                elif len(shape) == 2:
                    linear.append((end - start) // size)
                stored.add(str(tensor["dtype"]))
        if embeds:
            of_embedding = max(of_embedding, in_file - before)
    kinds = frozenset(stored)
    return Weights(in_file, values, other, kinds, sum(linear), max(linear), of_embedding)


def _vocabulary(config: Mapping[str, Any]) -> int:
    text = config.get("text_config")
    inner = text.get("vocab_size") if isinstance(text, dict) else None
    return int(config.get("vocab_size") or inner or 0)


@dataclass(frozen=True)
class Shape:
    """What of a model sets the memory of a run."""

    layers: int
    d_model: int
    d_mlp: int
    heads: int
    key_heads: int
    d_head: int
    vocabulary: int
    itemsize: int
    """Bytes of a number of the run."""

    @classmethod
    def of(cls, config: Any, *, itemsize: int) -> Shape:
        """Read a transformers configuration of text."""
        d_model, heads = int(config.hidden_size), int(config.num_attention_heads)
        inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
        return cls(
            layers=int(config.num_hidden_layers),
            d_model=d_model,
            d_mlp=int(inner or 4 * d_model),
            heads=heads,
            key_heads=int(getattr(config, "num_key_value_heads", None) or heads),
            d_head=int(getattr(config, "head_dim", None) or d_model // heads),
            vocabulary=int(config.vocab_size),
            itemsize=itemsize,
        )

    def layer_bytes(self, tokens: int) -> int:
        """Return what one block computes for a prompt and autograd would keep of it."""
        wide = 3 * self.d_mlp + (4 * self.heads + 2 * self.key_heads) * self.d_head
        wide += 6 * self.d_model
        of_norms = 8 * self.d_model * FLOAT
        scores = self.heads * tokens * (3 * self.itemsize + FLOAT)
        return tokens * (wide * self.itemsize + of_norms + scores)

    def kept_bytes(self, tokens: int, *, all_sites: bool) -> int:
        """Return what is kept of one forward: residuals, attention and MLP outputs."""
        rows = (self.layers + 1) * tokens + 2 * self.layers * (tokens if all_sites else 1)
        heads = self.layers * tokens * self.heads * self.d_head if all_sites else 0
        return (rows * self.d_model + heads) * self.itemsize

    def forward_bytes(self, tokens: int, *, all_sites: bool) -> int:
        """Return what a forward and the lens of each layer add: kept twice while it is stacked."""
        lens = self.vocabulary * (2 * self.itemsize + 3 * FLOAT)
        kept = 4 * self.kept_bytes(tokens, all_sites=all_sites)
        return self.layer_bytes(tokens) + kept + lens

    def backward_bytes(self, tokens: int, *, all_sites: bool) -> int:
        """Return what a forward and backward pass for attribution add."""
        kept = self.kept_bytes(tokens, all_sites=True) + 3 * self.kept_bytes(
            tokens, all_sites=all_sites
        )
        logits = self.vocabulary * (self.itemsize + 2 * FLOAT)
        return self.layers * self.layer_bytes(tokens) + kept + logits

    def editing_bytes(self, tokens: int, *, rows: int, at_once: int, keys_at_once: int) -> int:
        """Return what `rows` variants of a prompt add, run as many at once as `rerun` does."""
        fitting = max(1, min(rows, at_once // tokens, keys_at_once // tokens))
        keys = 2 * self.layers * self.key_heads * self.d_head * self.itemsize
        logits = self.vocabulary * (self.itemsize + 2 * FLOAT)
        return fitting * (tokens * keys + self.layer_bytes(tokens) + logits)


def encoding_bytes(rows: int, width: int, itemsize: int) -> int:
    """Return what encoding `rows` tokens at a time adds: about five tensors [rows, width]."""
    return 5 * rows * width * itemsize + rows * width * FLOAT


def later_bytes() -> int:
    """Return what a process that has run no text yet still takes for itself."""
    return _LATER_BYTES


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an exception says that memory was not to be had, whoever raised it."""
    if isinstance(problem, MemoryError | OutOfMemory):
        return True
    loaded = sys.modules.get("torch")
    if loaded is not None and isinstance(problem, loaded.OutOfMemoryError):
        return True
    # PyTorch's CPU allocator and mmap raise a plain RuntimeError, the system an OSError.
    words = str(problem).lower()
    return isinstance(problem, RuntimeError | OSError) and any(
        said in words
        for said in ("out of memory", "can't allocate memory", "cannot allocate memory")
    )


def free_memory() -> None:
    """Give back what is no longer referred to."""
    gc.collect()
    loaded = sys.modules.get("torch")
    if loaded is not None and loaded.cuda.is_initialized():
        loaded.cuda.empty_cache()


@contextmanager
def copies_given_back() -> Iterator[None]:
    """Have what is freed inside given back to the system at once, where malloc is glibc's.

    Else copies of matrices leave gaps between what is kept, on several threads: hundreds of MiB,
    another number each time, held until the process ends.
    """
    try:
        adjust: Callable[[int, int], int] = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another system
        yield
        return
    adjust(_M_MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        # What glibc itself comes to after a while.
        adjust(_M_MMAP_THRESHOLD, 2**25)
        adjust(_M_TRIM_THRESHOLD, 2**26)


@contextmanager
def told_what_fits(error: Callable[[], OutOfMemory]) -> Iterator[None]:
    """Turn any kind of out-of-memory inside into the error that `error` makes, after freeing.

    Other exceptions pass; so does an OutOfMemory that was raised further in.
    """
    try:
        yield
        return
    except EmotuiError:
        raise
    except BaseException as problem:
        if not is_out_of_memory(problem):
            raise
    # Outside: the exception held the frames, and they the tensors.
    free_memory()
    raise error()
