"""SAELens's directory of pretrained SAEs, read from its YAML without importing sae_lens.

A source is `RELEASE` or `RELEASE:ID`; ID is an SAE's id in the release, or a pattern of ids
(`layer_*/width_16k/canonical`).
"""

from __future__ import annotations

import fnmatch
import functools
import math
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from emotui.core.errors import SaeError
from emotui.core.model_names import base_name, near_names, same_family
from emotui.core.text import clean

DEFAULTS: Mapping[str, str] = MappingProxyType(
    {
        "gemma-2-2b": "gemma-scope-2b-pt-res-canonical:layer_*/width_16k/canonical",
        "gemma-2-9b": "gemma-scope-9b-pt-res-canonical:layer_*/width_16k/canonical",
        "gemma-3-1b-pt": "gemma-scope-2-1b-pt-res-all:layer_*_width_16k_l0_small",
        "gemma-3-1b-it": "gemma-scope-2-1b-it-res-all:layer_*_width_16k_l0_small",
        "gpt2": "gpt2-small-res-jb:*.hook_resid_pre",
        "llama-3.1-8b": "llama_scope_lxr_8x",
    }
)
"""SAEs that are used where none are named, by the base name of the model."""

NONE = "none"
"""The source that stands for no SAEs, also where a model has a default."""

FORMATS: Mapping[str, str] = MappingProxyType(
    {
        "": "SAELens folders",
        "gemma_2": "Gemma Scope params.npz",
        "gemma_3": "Gemma Scope 2 params.safetensors",
        "llama_scope": "Llama Scope safetensors",
    }
)
"""Formats of releases that emotui reads, by SAELens's name of the conversion ("" is its own)."""

_WIDTH = re.compile(r"width[_-](\d+)(k|m)")
_LAYER = re.compile(r"(?:layer|blocks|^l|[/_-]l)[._-]?(\d+)", re.IGNORECASE)


class PretrainedSae(msgspec.Struct, frozen=True):
    """One SAE of a release."""

    id: str
    path: str
    """Folder (or file) in the repository."""
    neuronpedia: str | None = None
    l0: float | None = None
    norm_scaling_factor: float | None = None
    """What inputs are multiplied by before the SAE reads them; None for nothing."""


class Release(msgspec.Struct, frozen=True):
    """SAEs that were published together for one model."""

    name: str
    model: str
    """As SAELens writes it: with or without its owner."""
    repository: str
    """A hub id."""
    conversion: str
    """SAELens's name of the format; "" where the files are SAELens's own."""
    overrides: dict[str, Any]
    """What SAELens puts over the configuration that the files hold."""
    saes: tuple[PretrainedSae, ...]

    @property
    def readable(self) -> bool:
        """Whether emotui reads it."""
        return not self.unreadable

    @property
    def unreadable(self) -> str:
        """Why emotui does not read it; "" where it does."""
        if "transcoder" in self.name or "transcoder" in self.conversion or "clt" in self.name:
            return "they read one site and write another"
        if self.conversion not in FORMATS:
            return "emotui does not read files of this format"
        if self.conversion not in ("", "gemma_2") and re.search(r"-att(-|$)", self.name):
            return "their files do not say how they read the heads' outputs"
        return ""


def directory_file() -> Path:
    """Return the path of SAELens's directory; SaeError where sae-lens is not installed."""
    spec = find_spec("sae_lens")
    places = (spec.submodule_search_locations or []) if spec is not None else []
    for place in places:
        file = Path(place) / "pretrained_saes.yaml"
        if file.is_file():
            return file
    raise SaeError(
        "The directory of pretrained SAEs is missing.",
        why="The package sae-lens is not installed, or its pretrained_saes.yaml is gone.",
        todo="Install it: pip install 'sae-lens>=6.54,<7'; or give a local SAE folder.",
    )


@functools.cache
def directory() -> Mapping[str, Release]:
    """Return every release by name, in the order of the file (most of a second to read)."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    path = directory_file()
    try:
        with path.open(encoding="utf-8") as file:
            content = yaml.load(file, loader)  # a safe loader: plain data only
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SaeError(
            f"The directory of pretrained SAEs could not be read: {clean(str(path))}.",
            why=f"{type(error).__name__}.",
            todo="Install sae-lens again.",
        ) from error
    return MappingProxyType(dict(_releases(content)))


def _releases(content: Any) -> Iterator[tuple[str, Release]]:
    for name, entry in (content if isinstance(content, dict) else {}).items():
        if not isinstance(entry, dict) or not isinstance(entry.get("saes"), list):
            continue
        saes = tuple(
            PretrainedSae(
                id=str(one["id"]),
                path=str(one["path"]),
                neuronpedia=one.get("neuronpedia"),
                l0=one.get("l0"),
                norm_scaling_factor=one.get("norm_scaling_factor"),
            )
            for one in entry["saes"]
        )
        yield (
            str(name),
            Release(
                name=str(name),
                model=str(entry.get("model", "")),
                repository=str(entry.get("repo_id", "")),
                conversion=str(entry.get("conversion_func") or ""),
                overrides=dict(entry.get("config_overrides") or {}),
                saes=saes,
            ),
        )


def known_models() -> list[str]:
    """Return the models that have SAEs, as SAELens writes them; none without the directory."""
    try:
        return list(dict.fromkeys(release.model for release in directory().values()))
    except SaeError:
        return []


def releases_for(model: str) -> list[Release]:
    """Return the releases of a model (id, alias or name), those that emotui reads first."""
    wanted = base_name(model)
    found = [one for one in directory().values() if base_name(one.model) == wanted]
    return sorted(found, key=lambda one: (not one.readable, one.name))


def related_releases(model: str) -> list[Release]:
    """Return the releases that emotui reads of what a model was tuned from, or of what was tuned
    from it: they may be used with it."""
    own = base_name(model)
    found = [
        one
        for one in directory().values()
        if one.readable and base_name(one.model) != own and same_family(one.model, model)
    ]
    return sorted(found, key=lambda one: (base_name(one.model), one.name))


def default_source(model: str) -> str | None:
    """Return the SAEs that are used for a model (id or alias) where none are named."""
    return DEFAULTS.get(base_name(model))


def is_path(source: str) -> bool:
    """Whether a source is a folder or file here, or can only be meant as one."""
    if source.startswith((".", "/", "~")) or "\\" in source or source.endswith(".npz"):
        return True
    return Path(source).exists()


def chosen(source: str) -> tuple[Release, tuple[PretrainedSae, ...]]:
    """Return the release that a source names, and those of its SAEs that are meant.

    Where an id is not given and a layer has SAEs of several widths, the narrowest are meant.
    SaeError names what is near where there is no such release or id.
    """
    name, _, wanted = source.partition(":")
    release = directory().get(name)
    if release is None:
        raise _unknown_release(name)
    if not release.readable:
        kind = FORMATS.get(release.conversion, release.conversion)
        raise SaeError(
            f"The SAEs of {clean(name)} are of a kind that emotui does not read ({clean(kind)}).",
            why=f"That is because {release.unreadable}.",
            todo=f"Use a release that `emotui models {clean(base_name(release.model))}` marks "
            "as readable.",
        )
    if not wanted:
        return release, _narrowest(release.saes)
    found = tuple(one for one in release.saes if one.id == wanted) or tuple(
        one for one in release.saes if fnmatch.fnmatchcase(one.id, wanted)
    )
    if not found:
        ids = [one.id for one in release.saes]
        near = near_names(wanted, ids) or ids[:5]
        raise SaeError(
            f"The release {clean(name)} has no SAE called {clean(wanted)!r}.",
            why=f"It has {len(ids):,}, such as {clean(', '.join(near))}.",
            todo=f"Give one of its ids, or a pattern such as {clean(name)}:*.",
        ).of_input()
    return release, found


def _narrowest(saes: tuple[PretrainedSae, ...]) -> tuple[PretrainedSae, ...]:
    layered = [one for one in saes if "embedding" not in one.id]
    widths = {width_of(one.id) for one in layered} - {None}
    if len(widths) < 2:
        return tuple(layered) or saes
    least: dict[int | None, int] = {}
    for one in layered:
        width, layer = width_of(one.id), layer_of(one.id)
        if width is not None:
            least[layer] = min(width, least.get(layer, width))
    return tuple(one for one in layered if width_of(one.id) == least.get(layer_of(one.id)))


def width_of(sae_id: str) -> int | None:
    """Return the width that an id or path tells (`width_16k` is 16384); None where it does not."""
    found = _WIDTH.search(sae_id)
    if found is None:
        return None
    thousands = int(found.group(1)) * (1000 if found.group(2) == "m" else 1)
    return 1 << round(math.log2(1000 * thousands))  # 16k is 2**14, 65k is 2**16, 1m is 2**20


def layer_of(sae_id: str) -> int | None:
    """Return the layer that an id or path tells; None where it does not."""
    found = _LAYER.search(sae_id)
    return int(found.group(1)) if found else None


def _unknown_release(name: str) -> SaeError:
    near = near_names(name, directory())
    if not near:
        near = [one.name for one in directory().values() if same_family(one.model, name)][:5]
    return SaeError(
        f"There are no SAEs called {clean(name)!r}.",
        why="It is neither a folder here nor a release in SAELens's directory.",
        todo=(f"Did you mean {', '.join(near)}? " if near else "")
        + "`emotui models QUERY` lists the releases of a model.",
    ).of_input()
