"""Loading a model: which folder, which numbers, on which device; and one forward of it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import emotui
from emotui.cache.keys import Memo, fingerprint_of_commit, model_fingerprint_of_folder
from emotui.core.engine import bridge
from emotui.core.engine.capture import Job
from emotui.core.engine.model_files import FoundModel, check_folder, find_model
from emotui.core.engine.sites import SITE_TABLES, Sites
from emotui.core.engine.tokens import TokenReader
from emotui.core.errors import ModelError, UsageError
from emotui.core.protocol import ModelSpec
from emotui.core.text import clean

_SMALL_PARAMETERS = 30_000_000
_THREADS = torch.get_num_threads()
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
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
    forwards: int = field(default=0)

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.sites.n_layers

    @property
    def dtype_name(self) -> str:
        """The dtype as it is written in records, such as `float32`."""
        return str(self.dtype).removeprefix("torch.")

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


def name_of(spec: ModelSpec) -> str:
    """Return the model's name for a record: a hub id, or the folder's name without its path."""
    folder = Path(spec.model).expanduser()
    return folder.resolve().name if folder.is_dir() else spec.model


def package_versions() -> dict[str, str]:
    """Return the versions of what computes a trace, for its record."""
    return dict(_package_versions())


@functools.cache  # reading their metadata took a third of a small model's inspect
def _package_versions() -> Mapping[str, str]:
    versions = {"emotui": emotui.__version__}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # pragma: no cover - an incomplete installation
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
        )
    return device


def resolve_dtype(requested: str, device: torch.device, *, half_checkpoint: bool) -> torch.dtype:
    """Return the dtype of a run.

    `auto` is float32, except bfloat16 for a half-precision checkpoint on CUDA. float16 is
    refused: residuals of late layers overflow it.
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


def _quiet_transformers() -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _read_weights(folder: Path, *, dtype: torch.dtype, device: torch.device, attention: str) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            str(folder),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
        )
    except ImportError as error:
        raise ModelError(
            f"The model in {clean(str(folder))} needs a package that is not installed.",
            why=clean(_first_line(error)),
            todo="Install what it names (quantised weights need one of their own), or use the "
            "model in bfloat16.",
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise ModelError(
            f"The model in {clean(str(folder))} could not be loaded.",
            why=clean(f"{type(error).__name__}: {_first_line(error)}"),
            todo="Check that the folder holds one complete model that this transformers reads.",
        ) from error
    # transformers fills what it does not find with random numbers and only warns.
    wrong = sorted(report["missing_keys"]) or sorted(map(str, report["mismatched_keys"]))
    if wrong:
        raise ModelError(
            f"The weights in {clean(str(folder))} do not fit its configuration.",
            why=clean(f"{len(wrong)} tensors are missing or of another shape, such as {wrong[0]}."),
            todo="Copy or download the folder again.",
        )
    for name, parameter in model.named_parameters():
        # One sum tells: it is not finite where any of them is not.
        if not bool(torch.isfinite(parameter.sum(dtype=torch.float32))):
            raise ModelError(
                f"The weights in {clean(str(folder))} were refused.",
                why=clean(f"{name} holds numbers that are not finite."),
                todo="Copy or download the folder again.",
            )
    return model.to(device).eval()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def _fingerprint(found: FoundModel, memo: Memo | None, job: Job) -> str:
    if found.hub_id is not None and found.commit is not None:
        return fingerprint_of_commit(found.hub_id, found.commit)

    def report(done: int, total: int) -> None:
        job.check()
        job.progress("reading the fingerprint", done, total)

    return model_fingerprint_of_folder(found.folder, memo, progress=report)


def _choose_threads(hf_model: Any, device: torch.device) -> None:
    """Run small models on one CPU thread: more would spend their time waiting for each other.

    That matters most on shared machines, where a thread that waits for one that is not scheduled
    spins, and a small model's run takes many times as long.
    """
    if device.type == "cpu":
        parameters = sum(parameter.numel() for parameter in hf_model.parameters())
        torch.set_num_threads(1 if parameters < _SMALL_PARAMETERS else _THREADS)


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
        job.progress("asking TransformerLens for the architecture")
        bridge.check_known(config)
    attention = bridge.ATTENTION if table is None else table.attention
    prepends_bos = None if table is None else table.prepends_bos
    device = resolve_device(spec.device)
    dtype = resolve_dtype(spec.dtype, device, half_checkpoint=bool(config["half_precision"]))
    fingerprint = _fingerprint(found, memo, job)
    job.progress("reading the tokenizer")
    _quiet_transformers()
    reader = TokenReader.from_folder(found.folder, prepends_bos=prepends_bos)
    job.check()
    job.progress("reading the weights")
    hf_model = _read_weights(found.folder, dtype=dtype, device=device, attention=attention)
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
    )
