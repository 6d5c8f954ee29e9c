"""Loading a model: which folder, which numbers, on which device; and one forward of it."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import emotui
from emotui.cache.keys import Memo, fingerprint_of_commit, model_fingerprint_of_folder
from emotui.core.engine import bridge, memory
from emotui.core.engine.capture import Job
from emotui.core.engine.memory import Estimate, Shape
from emotui.core.engine.model_files import FoundModel, check_folder, find_model, weight_headers
from emotui.core.engine.quantised import QUANTISED, stored_kind
from emotui.core.engine.sites import SITE_TABLES, Sites, runs_on
from emotui.core.engine.tokens import TokenReader
from emotui.core.engine.weights import (
    Placement,
    check_packages,
    estimated,
    parameters_of,
    read_weights,
    too_large,
)
from emotui.core.errors import ModelError, UsageError
from emotui.core.protocol import PER_CENT, ModelSpec
from emotui.core.records import EMBEDDING_LAYER
from emotui.core.sizes import in_bytes
from emotui.core.text import clean

_SMALL_PARAMETERS = 30_000_000
_THREADS = torch.get_num_threads()
_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    **dict.fromkeys(QUANTISED, torch.bfloat16),
}
_PACKAGES = ("torch", "transformers", "safetensors", "tokenizers")


@dataclass(eq=False)
class LoadedModel:
    """A model in memory, in eval mode, with what must be known of it to read it.

    Only `forwards`, the number of forward passes so far, changes, and `sites` where a comparison
    wraps the model.
    """

    spec: ModelSpec
    hf: Any
    """The transformers model."""
    reader: TokenReader
    sites: Sites
    fingerprint: str
    folder: Path
    """Where its files lie."""
    hub_id: str | None
    """None for a local folder."""
    revision: str | None
    architecture: str
    attention: str
    dtype: torch.dtype
    device: torch.device
    d_model: int
    vocabulary: int
    context_length: int
    quantised: str | None = None
    """`int8`, `nf4` or `fp4` where its weights are of that kind; it computes in `dtype`."""
    shape: Shape | None = None
    """What sets the memory of a run; None where its configuration does not tell."""
    estimate: Estimate | None = None
    """What loading was estimated to take."""
    forwards: int = field(default=0)

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.sites.n_layers

    @property
    def dtype_name(self) -> str:
        """The dtype as it is written in records, such as `float32`; or the kind of its weights."""
        return self.quantised or str(self.dtype).removeprefix("torch.")

    @property
    def loading_bytes(self) -> int:
        """The peak that loading was estimated to take; 0 where it was not."""
        return 0 if self.estimate is None else self.estimate.total

    @property
    def spread(self) -> bool:
        """Whether its layers are on several devices, and moved to by accelerate's hooks."""
        places = getattr(self.hf, "hf_device_map", None) or {}
        return len(set(map(str, places.values()))) > 1

    @functools.cached_property
    def devices(self) -> tuple[torch.device, ...]:
        """Where the vectors of each layer live, from layer -1 (the embedding) on."""
        if not self.spread:
            return (self.device,) * (self.n_layers + 1)
        return (self.device, *(runs_on(block, self.device) for block in self.sites.blocks))

    def device_at(self, layer: int) -> torch.device:
        """Return where what stands at the sites of a layer lives: the device of its block.

        Activations, SAE weights, rows of probes and vectors of edits are put there. Texts and
        logits are on `device`; numbers that are read off go to the CPU.
        """
        return self.devices[layer - EMBEDDING_LAYER]

    def over_devices(self, told: Callable[[torch.device], int]) -> int:
        """Return the sum of what is told of each of the devices, such as its free bytes."""
        return sum(told(device) for device in dict.fromkeys(self.devices))

    @property
    def device_name(self) -> str:
        """The device as it is written in records; several with a plus between."""
        if not self.spread:
            return str(self.device)
        places = dict.fromkeys(map(str, self.hf.hf_device_map.values()))
        return "+".join(f"cuda:{one}" if one.isdigit() else one for one in places)

    @property
    def memory_bytes(self) -> int:
        """Bytes of parameters and buffers; tied weights count once."""
        tensors = [*self.hf.parameters(), *self.hf.buffers()]
        unique = {tensor.data_ptr(): tensor.nbytes for tensor in tensors}
        return sum(unique.values())

    def tensor_of(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return token ids of equal length as a [rows, tokens] tensor on the device."""
        return torch.tensor([list(row) for row in rows], dtype=torch.long, device=self.device)

    @torch.no_grad()
    def forward(self, rows: Sequence[Sequence[int]], *, keep: int = 1, past: Any = None) -> Tensor:
        """Run one counted forward pass and return the logits of the last `keep` positions.

        `rows` are token ids of equal length (0 for `keep` means every position); the result is
        [rows, keep, vocabulary] in the run's dtype. `past` is a transformers Cache to read and
        extend; without one nothing is cached. No gradients.
        """
        self.forwards += 1
        output = self.hf(
            input_ids=self.tensor_of(rows),
            use_cache=past is not None,
            past_key_values=past,
            logits_to_keep=keep,
        )
        logits: Tensor = output.logits
        return logits


def package_versions() -> dict[str, str]:
    """Return the versions of what computes a trace, for its record."""
    return dict(_package_versions())


@functools.cache  # reading their metadata took a third of a small model's inspect
def _package_versions() -> Mapping[str, str]:
    versions = {"emotui": emotui.__version__}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # an incomplete installation
            continue
    return versions


def resolve_device(requested: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; ModelError if absent."""
    if requested == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(requested)
    except RuntimeError:
        raise UsageError(
            f"There is no device called {clean(requested)!r}.",
            todo="Use auto, cpu, cuda, cuda:N or mps.",
        ) from None
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    absent = {
        "cpu": False,
        "cuda": (device.index or 0) >= count,
        "mps": not torch.backends.mps.is_available(),
    }.get(device.type, True)
    if absent:
        raise ModelError(
            f"The device {clean(requested)} is not available.",
            why=f"PyTorch {torch.__version__} sees {count} CUDA devices here.",
            todo="Use --device cpu, or see `emotui doctor`.",
        ).of_input()
    return device


def resolve_dtype(requested: str, device: torch.device, *, half_checkpoint: bool) -> torch.dtype:
    """Return the dtype of a run.

    `auto` is float32, except bfloat16 for a half-precision checkpoint on CUDA; quantised weights
    are computed with in bfloat16. float16 is refused: residuals of late layers overflow it.
    """
    if requested == "auto":
        on_gpu = device.type == "cuda"
        return torch.bfloat16 if on_gpu and half_checkpoint else torch.float32
    if requested in ("float16", "fp16", "half"):
        raise UsageError(
            "float16 is not used.",
            why="Residuals of late layers overflow it.",
            todo="Use --dtype bfloat16, float32 or auto.",
        )
    try:
        return _DTYPES[requested]
    except KeyError:
        raise UsageError(
            f"There is no dtype called {clean(requested)!r}.",
            todo=f"Use one of: auto, {', '.join(_DTYPES)}.",
        ) from None


def _quantised(spec: ModelSpec, config: dict[str, Any]) -> str | None:
    """Return the kind of the weights: what is asked for, or what the checkpoint is stored as.

    UsageError where they differ: a quantised checkpoint is only computed with as it is stored.
    """
    asked = spec.dtype if spec.dtype in QUANTISED else None
    stored = stored_kind(config)
    if stored is None:
        return asked
    if spec.dtype not in ("auto", stored):
        raise UsageError(
            f"The weights are stored as {stored}; --dtype {clean(spec.dtype)} does not apply.",
            todo=f"Use --dtype auto or {stored}, or the checkpoint before it was quantised.",
        )
    return stored


def _quiet_transformers() -> None:
    # What loading imports is held before anything is estimated.
    importlib.import_module("transformers.modeling_utils")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _fingerprint(found: FoundModel, memo: Memo | None, job: Job) -> str:
    if found.hub_id is not None and found.commit is not None:
        return fingerprint_of_commit(found.hub_id, found.commit)

    def report(done: int, total: int) -> None:
        job.check()
        so_far = f"{in_bytes(done)} of {in_bytes(total)}"
        job.progress(
            f"reading the fingerprint: {so_far}", PER_CENT * done // max(1, total), PER_CENT
        )

    return model_fingerprint_of_folder(found.folder, memo, progress=report)


def _choose_threads(hf_model: Any, device: torch.device) -> None:
    """Run small models on one CPU thread: more would spend their time waiting for each other.

    That matters most on shared machines, where a thread that waits for one that is not scheduled
    spins, and a small model's run takes many times as long.
    """
    if device.type == "cpu":
        small = parameters_of(hf_model) < _SMALL_PARAMETERS
        torch.set_num_threads(1 if small else _THREADS)


def load_model(spec: ModelSpec, job: Job, *, memo: Memo | None = None) -> LoadedModel:
    """Load a model from a folder, an alias or a hub id, ready to be hooked.

    The folder is checked before transformers reads it. `memo` (a Store) remembers hashes of files
    and the model's fingerprint. ModelError, or UsageError for a dtype or device that does not
    exist, says what is wrong.
    """
    job.progress("finding the model")
    found = find_model(spec, job)
    config = check_folder(found.folder)
    architecture = str(config["model_type"])
    table = SITE_TABLES.get(architecture)
    if table is None:
        if spec.device_map is not None:
            raise ModelError(
                f"The architecture {clean(architecture)!r} cannot be spread over devices.",
                why="It is hooked through TransformerLens's bridge, which wraps a whole model.",
                todo=f"Leave --device-map out, or use one of: {', '.join(SITE_TABLES)}.",
            )
        job.progress("asking TransformerLens for the architecture")
        bridge.check_known(config)
    attention = bridge.ATTENTION if table is None else table.attention
    prepends_bos = None if table is None else table.prepends_bos
    device = resolve_device(spec.device)
    quantised = _quantised(spec, config)
    half = bool(config["half_precision"])
    dtype = resolve_dtype(spec.dtype, device, half_checkpoint=half)
    if quantised is not None:
        dtype = torch.bfloat16
    fingerprint = _fingerprint(found, memo, job)
    job.progress("reading the tokenizer")
    _quiet_transformers()
    reader = TokenReader.from_folder(found.folder, prepends_bos=prepends_bos)
    job.check()
    placement = Placement(
        dtype=dtype,
        device=device,
        quantised=quantised,
        stored=stored_kind(config) is not None,
        device_map=spec.device_map,
    )
    hf_model, estimate = _loaded(found, config, placement, attention, job)
    if placement.device_map is not None:
        device = runs_on(hf_model.get_input_embeddings(), device)
    _choose_threads(hf_model, device)
    job.check()
    sites = (
        bridge.bridged_sites(hf_model, found.folder) if table is None else Sites(hf_model, table)
    )
    text_config = hf_model.config.get_text_config()
    if memo is not None:
        memo.remember_fingerprint(spec.model, fingerprint, revision=spec.revision)
    return LoadedModel(
        spec=spec,
        hf=hf_model,
        reader=reader,
        sites=sites,
        fingerprint=fingerprint,
        folder=found.folder,
        hub_id=found.hub_id,
        revision=found.commit,
        architecture=architecture,
        attention=attention,
        dtype=dtype,
        device=device,
        d_model=int(text_config.hidden_size),
        vocabulary=int(text_config.vocab_size),
        context_length=int(getattr(text_config, "max_position_embeddings", 0) or 0),
        quantised=placement.quantised,
        shape=_shape(text_config, dtype),
        estimate=estimate,
    )


def _loaded(
    found: FoundModel, config: dict[str, Any], placement: Placement, attention: str, job: Job
) -> tuple[Any, Estimate]:
    """Read the weights, having said what they will take; OutOfMemory where they do not fit."""
    check_packages(placement)
    weights = memory.weights_of(weight_headers(found.folder), config)
    estimate = estimated(weights, placement, device=placement.device)
    name = found.hub_id or found.folder.resolve().name
    if estimate.is_large:
        job.notice(f"Loading {clean(name)}: {estimate}.")
    if not estimate.fits and placement.device_map is None:
        raise too_large(name, weights, placement, estimate)
    job.progress(f"reading the weights: {in_bytes(weights.in_file)}")
    with memory.told_what_fits(lambda: too_large(name, weights, placement, estimate)):
        return read_weights(found.folder, placement=placement, attention=attention), estimate


def _shape(text_config: Any, dtype: torch.dtype) -> Shape | None:
    try:
        return Shape.of(text_config, itemsize=dtype.itemsize)
    except (AttributeError, TypeError):
        return None
