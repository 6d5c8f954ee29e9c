"""Facts about this installation and, with a model, whether hooking it changes its numbers."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

import emotui
from emotui.core.engine.capture import Job, capture
from emotui.core.engine.memory import peak_bytes
from emotui.core.engine.model import LoadedModel
from emotui.core.errors import ModelError
from emotui.core.sizes import in_bytes

Fact = tuple[str, str, bool]
"""Name, value, and whether it is as it should be."""

_PACKAGES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "torch": ((2, 6), (3,)),
    "transformers": ((5, 9), (6,)),
    "transformer-lens": ((3, 9), (4,)),
    "sae-lens": ((6, 54), (7,)),
    "textual": ((8, 2), (9,)),
    "safetensors": ((0, 4), (1,)),
}
"""For each package the lowest version that works, and the first that does not."""

_PROBE_TEXT = "My dog died last week, and the house is very quiet now."
_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.25}
"""Largest difference of logits between a hooked and a plain forward that counts as agreement."""


def diagnose(model: LoadedModel | None, job: Job) -> Iterator[Fact]:
    """Yield the facts in the order to show them; those of a model only where one is given."""
    yield "emotui", emotui.__version__, True
    yield "Python", platform.python_version(), True
    yield "system", f"{platform.system()} {platform.release()} {platform.machine()}", True
    for name, (lowest, beyond) in _PACKAGES.items():
        yield _package(name, lowest, beyond)
    yield _optional("bitsandbytes", "--dtype int8 and nf4")
    yield from _devices()
    if model is not None:
        yield from _of_model(model, job)


def _package(name: str, lowest: tuple[int, ...], beyond: tuple[int, ...]) -> Fact:
    wanted = f">={_dotted(lowest)},<{_dotted(beyond)}"
    try:
        found = version(name)
    except PackageNotFoundError:
        return name, f"not installed (needs {wanted})", False
    numbers = tuple(int(part) for part in found.split("+")[0].split(".")[:2] if part.isdigit())
    good = lowest <= numbers < beyond
    return name, found if good else f"{found} (needs {wanted})", good


def _optional(name: str, wanted_by: str) -> Fact:
    try:
        return name, version(name), True
    except PackageNotFoundError:
        return name, f"not installed ({wanted_by} need it)", True


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def _devices() -> Iterator[Fact]:
    yield "CPU", f"{torch.get_num_threads()} threads", True
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield f"cuda:{index}", f"{name}, {in_bytes(free)} free of {in_bytes(total)}", True
    if not torch.cuda.is_available():
        yield "CUDA", "none seen by PyTorch", True


def _of_model(model: LoadedModel, job: Job) -> Iterator[Fact]:
    yield "model", f"{model.architecture}, {model.n_layers} layers, d_model {model.d_model}", True
    yield "fingerprint", model.fingerprint[:16], True
    yield "runs in", f"{model.dtype_name} on {model.device_name}, {model.attention} attention", True
    yield "weights", f"{model.memory_bytes / 2**20:,.0f} MiB", True
    if model.estimate is not None:
        estimated, peak = in_bytes(model.estimate.total), in_bytes(model.over_devices(peak_bytes))
        yield "memory", f"{peak} at the peak so far; {estimated} were estimated for loading", True
    yield "context", f"{model.context_length:,} tokens", model.context_length > 0
    ids = model.reader.prompt_ids(_PROBE_TEXT)
    if model.reader.bos_id is None:
        yield "BOS", "none", True
    else:
        count = ids.count(model.reader.bos_id)
        yield "BOS", f"{count} at the front", count == 1 and ids[0] == model.reader.bos_id
    job.check()
    plain = model.forward([ids])[0, -1].float()
    kept = capture(model, ids, all_sites=True, job=job)
    tolerance = _TOLERANCE["float32" if model.dtype == torch.float32 else "bfloat16"]
    difference = float((kept.logits.float() - plain).abs().max())
    yield "hooked against plain logits", f"{difference:.1e}", difference <= tolerance
    resid = kept.resid.float()
    rebuilt = resid[:-1] + kept.attn.float() + kept.mlp.float()
    scale = float(resid.abs().max())
    gap = float((rebuilt - resid[1:]).abs().max()) / scale
    yield "residual = input + attn + mlp", f"{gap:.1e} of the largest", gap <= tolerance / 10
    yield from _against_transformer_lens(model, ids, job)
    finite = bool(torch.isfinite(resid).all() and torch.isfinite(plain).all())
    yield "numbers", "finite" if finite else "not finite", finite


def _against_transformer_lens(model: LoadedModel, ids: list[int], job: Job) -> Iterator[Fact]:
    """Compare with the second backend; the model is the bridge's afterwards."""
    from emotui.core.engine import bridge

    if isinstance(model.sites, bridge.BridgeSites):
        yield "sites", "TransformerLens's bridge: the site table lacks this architecture", True
        return
    if model.spread or model.quantised:
        how = "spread over devices" if model.spread else "quantised"
        yield "against TransformerLens", f"not compared: the model is {how}", True
        return
    job.progress("comparing with TransformerLens")
    try:
        gaps = bridge.compare(model, ids, model.folder, job)
    except ModelError as error:
        yield "against TransformerLens", f"not compared: {error.what} {error.why}", True
        return
    site, gap = max(gaps.items(), key=lambda one: one[1])
    good = gap <= bridge.TOLERANCES[model.dtype]
    yield "against TransformerLens", f"{gap:.1e} of the largest, at {site}", good
