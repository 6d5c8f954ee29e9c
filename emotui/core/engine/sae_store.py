"""SAEs that are not SAELens folders yet: fetched, converted once to one, and kept in the cache.

`CACHE/saes/RELEASE/ID/DTYPE/` holds `cfg.json` and `sae_weights.safetensors` in the run's dtype,
as `sae_formats` reads them. What stands there is used without the hub and without a connection.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from emotui.core.engine import sae_formats
from emotui.core.engine.hub import SAES, Copies, check_room, fetch, snapshot_here
from emotui.core.engine.memory import FLOAT
from emotui.core.engine.sae_formats import SaeConfig, refuse
from emotui.core.engine.sae_published import (
    FILES,
    GEMMA_SCOPE_SITES,
    NPZ,
    READERS,
    STORED_BYTES,
    Content,
    jumprelu_config,
    read_npz,
)
from emotui.core.errors import SaeError
from emotui.core.model_names import base_name, same_family
from emotui.core.sae_directory import PretrainedSae, Release, chosen, is_path, layer_of

if TYPE_CHECKING:
    from emotui.core.engine.capture import Job
    from emotui.core.engine.model import LoadedModel

FOLDER = "saes"
_SITE_IN_NAME = re.compile(r"(?:^|[-_])(res|mlp|att|transcoders?)(?:$|[-_])")


@dataclass(frozen=True)
class FoundSaes:
    """Folders of SAEs on this machine, and the name that their features go by."""

    name: str
    folders: tuple[Path, ...]


Check = Callable[[SaeConfig], None]
"""Raises SaeError where an SAE does not fit the model."""


def find_saes(
    source: str, model: LoadedModel, *, root: Path | None, job: Job, check: Check
) -> FoundSaes:
    """Return the SAE folders of a source: a folder or npz file here, or RELEASE[:ID].

    `root` is the cache's folder, where what is converted goes; None keeps it for this process
    only. Of a release, one SAE is fetched and checked before the others where the model has no
    name to compare. SaeError where there are none, they cannot be fetched, or they are another
    model's.
    """
    if not is_path(source):
        release, saes = chosen(source)
        return _from_release(release, saes, model, _place(root), job, check)
    path = Path(source).expanduser()
    files = [path] if path.is_file() and path.suffix == ".npz" else _npz_files(path)
    if not files:
        return FoundSaes(path.resolve().name, tuple(sae_formats.sae_folders(path)))
    folders = []
    for number, file in enumerate(files):
        job.check()
        job.progress("converting the SAEs", number, len(files))
        folders.append(_from_local_npz(file, model, _place(root)))
    return FoundSaes(path.resolve().stem if path.is_file() else path.resolve().name, tuple(folders))


def _place(root: Path | None) -> Path:
    if root is not None:
        return root / FOLDER
    return _temporary() / FOLDER


@cache
def _temporary() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="emotui-saes-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _npz_files(path: Path) -> list[Path]:
    if not path.is_dir() or (path / sae_formats.CONFIG).is_file():
        return []
    if any(path.glob(f"*/{sae_formats.CONFIG}")):
        return []
    return sorted(path.rglob(NPZ))


def _from_local_npz(file: Path, model: LoadedModel, root: Path) -> Path:
    place = file.resolve()
    site = next(
        (found.group(1) for part in reversed(place.parts) if (found := _SITE_IN_NAME.search(part))),
        None,
    )
    layer = re.search(r"layer_(\d+)", str(place))
    if site is None or site not in GEMMA_SCOPE_SITES or layer is None:
        raise refuse(
            f"{file} does not say which site and layer it reads.",
            "The layer is read from a folder layer_N in its path, the site from one whose name "
            f"ends in -res or -mlp; found {site or 'no site'} and "
            f"{layer.group(0) if layer else 'no layer'}.",
            "Keep the layout of the hub: gemma-scope-2b-pt-res/layer_12/width_16k/....",
        )
    status = place.stat()
    mark = hashlib.sha256(f"{place}\0{status.st_size}\0{status.st_mtime_ns}".encode()).hexdigest()
    hook = f"blocks.{layer.group(1)}.{GEMMA_SCOPE_SITES[site]}"
    return _converted(
        root / "local" / mark[:16] / model.dtype_name,
        lambda: (read_npz(file), jumprelu_config(hook)),
        dtype=model.dtype,
    )


def _from_release(
    release: Release,
    saes: Sequence[PretrainedSae],
    model: LoadedModel,
    root: Path,
    job: Job,
    check: Check,
) -> FoundSaes:
    _check_model(release, model)
    places = {
        one.id: root / release.name / _as_file_name(one.id) / model.dtype_name for one in saes
    }
    missing = [one for one in saes if not (places[one.id] / sae_formats.CONFIG).is_file()]
    # The last layer first: a model with fewer has no place for it.
    first = max(saes, key=lambda one: layer_of(one.id) or 0)
    steps = [missing]
    if model.hub_id is None and first in missing:
        steps = [[first], [one for one in missing if one is not first]]
    for step in steps:
        if step:
            _prepare(release, step, places, model, root, job)
        folder = places[first.id]
        if (folder / sae_formats.CONFIG).is_file():
            _check_release(release, sae_formats.read_config(folder), check)
    return FoundSaes(release.name, tuple(places[one.id] for one in saes))


def _prepare(
    release: Release,
    saes: Sequence[PretrainedSae],
    places: Mapping[str, Path],
    model: LoadedModel,
    root: Path,
    job: Job,
) -> None:
    """Fetch these SAEs where they are not here, and convert them."""
    share = model.dtype.itemsize / STORED_BYTES.get(release.conversion, FLOAT)
    snapshot = _fetched(
        release, saes, copies=Copies(root, share), offline=model.spec.offline, job=job
    )
    for number, one in enumerate(saes):
        job.check()
        job.progress("converting the SAEs", number, len(saes))
        read = READERS[release.conversion]
        _converted(places[one.id], partial(read, snapshot, one, release), dtype=model.dtype)


def _check_release(release: Release, config: SaeConfig, check: Check) -> None:
    try:
        check(config)
    except SaeError as error:
        raise refuse(
            f"The SAEs of {release.name} do not fit the model.",
            f"They were trained on {release.model}. {error.why}",
            error.todo,
        ).of_input(error.is_of_input) from error


def _check_model(release: Release, model: LoadedModel) -> None:
    """Refuse SAEs of another model; a local folder has no name to compare."""
    if model.hub_id is not None and not same_family(release.model, model.hub_id):
        raise refuse(
            f"The SAEs of {release.name} do not fit the model.",
            f"They were trained on {release.model}; the model is {model.hub_id}.",
            f"`emotui models {base_name(model.hub_id)}` lists the SAEs of this model.",
        )


def _as_file_name(sae_id: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", sae_id).lstrip(".") or "sae"


def _fetched(
    release: Release, saes: Sequence[PretrainedSae], *, copies: Copies, offline: bool, job: Job
) -> Path:
    """Return a snapshot folder that holds the files of these SAEs; there is room for copies."""
    wanted = [f"{one.path}/{name}" for one in saes for name in FILES[release.conversion]]
    here = snapshot_here(release.repository)
    if here is not None and all((here / name).is_file() for name in wanted):
        size = sum((here / name).stat().st_size for name in wanted)
        check_room(release.repository, {copies.folder: int(copies.share * size)}, SAES)
        return here
    if offline:
        raise refuse(
            f"The SAEs of {release.name} are not on this machine.",
            f"{len(saes)} are missing, and --offline forbids fetching them.",
            "Run once without --offline, or use --sae none.",
        )

    def choose(names: Sequence[str]) -> list[str]:
        absent = sorted(set(wanted) - set(names))
        if absent:
            raise refuse(
                f"The repository {release.repository} has no {absent[0]}.",
                f"SAELens's directory names it; {len(absent)} of {len(wanted)} files are missing.",
                "Name other SAEs with --sae RELEASE:ID.",
            )
        return wanted

    return fetch(
        release.repository, revision=None, choose=choose, job=job, kind=SAES, copies=copies
    )


def converted_place(weights: Path, *, dtype: torch.dtype, root: Path) -> Path:
    """Return where the weights of a local SAE folder are kept in another dtype; `root`: the cache.

    The name holds the file's path, size and time: another file there has another place.
    """
    place, status = weights.resolve(), weights.stat()
    mark = hashlib.sha256(f"{place}\0{status.st_size}\0{status.st_mtime_ns}".encode()).hexdigest()
    name = str(dtype).removeprefix("torch.")
    return root / FOLDER / "local" / mark[:16] / name / sae_formats.WEIGHTS


def read_converted(
    weights: Path, *, dtype: torch.dtype, device: torch.device, root: Path
) -> dict[str, torch.Tensor]:
    """Return the tensors of a local SAE folder in `dtype`, converted once and kept in the cache.

    Where the cache cannot be written they are converted for this process alone; a damaged copy is
    made anew. SaeError where the folder's own file cannot be read.
    """
    target = converted_place(weights, dtype=dtype, root=root)
    if target.is_file():
        try:
            return sae_formats.read_tensors(target, device=device)
        except SaeError:
            target.unlink(missing_ok=True)
    tensors = sae_formats.read_tensors(weights, device=torch.device("cpu"), dtype=dtype)
    unfinished: Path | None = None
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(whole, unfinished / target.name)
        (unfinished / target.name).replace(target)
    except (OSError, SafetensorError):
        return {name: tensor.to(device) for name, tensor in tensors.items()}
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
    # Read again: mapped from the file, they need no memory of their own.
    return sae_formats.read_tensors(target, device=device)


def _converted(target: Path, read: Callable[[], Content], *, dtype: torch.dtype) -> Path:
    """Write an SAE folder in one piece, or find it there."""
    if (target / sae_formats.CONFIG).is_file():
        return target
    tensors, config = read()
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
    try:
        whole = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
        d_in, width = whole["W_enc"].shape
        config = {"d_in": d_in, "d_sae": width, **config, "dtype": str(dtype)[len("torch.") :]}
        save_file(whole, unfinished / sae_formats.WEIGHTS)
        (unfinished / sae_formats.CONFIG).write_text(json.dumps(config, indent=1))
        if target.exists():  # without a configuration: left by hand
            shutil.rmtree(target)
        unfinished.rename(target)
    except OSError as error:
        if (target / sae_formats.CONFIG).is_file():
            return target  # another process was quicker
        raise refuse(
            f"The SAE could not be kept in {target}.",
            f"{error.strerror or error}.",
            "Make room, or choose another folder with --cache-dir.",
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target
