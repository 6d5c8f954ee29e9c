"""TransformerLens's bridge: the second way to a model's sites, for what the site table lacks.

The bridge wraps the transformers model in place; its hook points are modules that a forward of
that model passes, so that everything else works on either. Importing it takes seconds: only here,
and only where it is needed. `emotui doctor --model M` compares the two on a model.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from emotui.core.engine.sites import SITE_TABLES, HookPoint, HookSite, Sites
from emotui.core.errors import ModelError
from emotui.core.records import EMBEDDING_LAYER
from emotui.core.text import clean

if TYPE_CHECKING:
    from emotui.core.engine.capture import Job
    from emotui.core.engine.model import LoadedModel

ATTENTION = "eager"
"""The bridge computes attention itself, in this way."""
TOLERANCES: Mapping[torch.dtype, float] = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest difference, as a share of the largest number, that counts as rounding."""

_HOOKS: Mapping[HookSite, str] = {
    "resid": "hook_out",
    "attn": "hook_attn_out",
    "mlp": "hook_mlp_out",
    "z": "attn.hook_z",
}
_PROBE_IDS = 12


def is_known(config: Mapping[str, Any]) -> bool:
    """Whether TransformerLens has an adapter for the architecture a configuration names."""
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    names = config.get("architectures")
    return bool(isinstance(names, list) and names and names[0] in SUPPORTED_ARCHITECTURES)


def check_known(config: Mapping[str, Any]) -> None:
    """Raise ModelError for an architecture that neither the site table nor the bridge knows."""
    if is_known(config):
        return
    names = config.get("architectures") or ["no architecture"]
    raise ModelError(
        f"The architecture {clean(str(config['model_type']))!r} is not supported.",
        why="emotui does not know where its blocks write to the residual stream, and "
        f"TransformerLens has no adapter for {clean(str(names[0]))}.",
        todo=f"Use a model of one of these: {', '.join(SITE_TABLES)}, or of one that "
        "TransformerLens lists.",
    )


class BridgeSites(Sites):
    """The sites of a model as TransformerLens's bridge names them."""

    def __init__(self, bridge: Any) -> None:
        self._hooks = dict(bridge.hook_dict)
        self._blocks = list(bridge.blocks)
        self.final_norm = bridge.ln_final
        self._unembed = bridge.unembed
        soft_cap = getattr(bridge.original_model.config, "final_logit_softcapping", None)
        self.soft_cap = float(soft_cap) if soft_cap else None

    def point(self, site: HookSite, layer: int) -> HookPoint:
        """Return where `site.layer` passes; as `Sites.point`."""
        if layer == EMBEDDING_LAYER:
            if site != "resid":
                raise ValueError(f"there is no {site} below layer 0")
            return HookPoint(self._hooks["blocks.0.hook_in"], "output")
        self._blocks[layer]  # IndexError as with the table
        return HookPoint(self._hooks[f"blocks.{layer}.{_HOOKS[site]}"], "output")


def bridged_sites(hf_model: nn.Module, folder: Path) -> BridgeSites:
    """Wrap a transformers model in place and return its sites.

    ModelError where the bridge does not have every site, changes the model's logits, or its parts
    do not add up to the residual stream.
    """
    ids = torch.arange(3, 3 + _PROBE_IDS, device=next(hf_model.parameters()).device)[None]
    with torch.no_grad():
        plain = hf_model(input_ids=ids, use_cache=False).logits
    sites = BridgeSites(_bridge_of(hf_model, folder))
    _check(sites, hf_model, ids, plain, folder)
    return sites


def _bridge_of(hf_model: nn.Module, folder: Path) -> Any:
    config: Any = hf_model.config
    if config.get_text_config() is not config:
        raise _unusable(folder, "TransformerLens would load what it needs for images or sound.")
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    weight = next(hf_model.parameters())
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
        with without_installing():
            return TransformerBridge.boot_transformers(
                str(folder),
                hf_model=hf_model,
                tokenizer=tokenizer,
                device=str(weight.device),
                dtype=weight.dtype,
            )
    except Exception as error:  # of many kinds, some of them bare
        raise ModelError(
            f"TransformerLens could not wrap the model in {clean(str(folder))}.",
            why=clean(f"{type(error).__name__}: {str(error)[:200]}"),
            todo=f"Use a model of one of these: {', '.join(SITE_TABLES)}.",
        ) from error


@contextmanager
def without_installing() -> Iterator[None]:
    """Keep TransformerLens from running pip: 3.9 does so for models with images."""
    before = subprocess.check_call

    def refused(*_command: Any, **_named: Any) -> int:
        raise RuntimeError("emotui installs nothing")

    subprocess.check_call = refused
    try:
        yield
    finally:
        subprocess.check_call = before


@torch.no_grad()
def _check(
    sites: BridgeSites, hf_model: nn.Module, ids: Tensor, plain: Tensor, folder: Path
) -> None:
    places: list[tuple[HookSite, int]] = [("resid", EMBEDDING_LAYER)]
    places += [(site, layer) for site in _HOOKS for layer in range(sites.n_layers)]
    try:
        points = {place: sites.point(*place) for place in places}
    except KeyError as error:
        raise _unusable(folder, f"TransformerLens names no {error.args[0]} in it.") from error
    kept: dict[tuple[HookSite, int], Tensor] = {}
    handles = [
        point.module.register_forward_hook(
            lambda _module, _inputs, output, place=place: kept.update({place: output})
        )
        for place, point in points.items()
    ]
    try:
        logits = hf_model(input_ids=ids, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    absent = [f"{site}.{layer}" for site, layer in places if (site, layer) not in kept]
    if absent:
        raise _unusable(folder, f"A run of it does not pass {absent[0]}.")
    tolerance = TOLERANCES[plain.dtype]
    if _gap(logits, plain) > tolerance:
        raise _unusable(folder, "TransformerLens's bridge changes its logits.")
    if _gap(sites.logits_of(kept["resid", sites.n_layers - 1]), plain) > tolerance:
        raise _unusable(folder, "Its logits are not the unembedded residual of the last block.")
    for layer in range(sites.n_layers):
        parts = kept["resid", layer - 1] + kept["attn", layer] + kept["mlp", layer]
        if _gap(parts, kept["resid", layer]) > tolerance:
            raise _unusable(folder, f"attn.{layer} and mlp.{layer} do not add up to resid.{layer}.")


def _gap(one: Tensor, other: Tensor) -> float:
    """Return the largest difference as a share of the largest number."""
    difference = (one.float() - other.float()).abs().max()
    return float(difference / other.float().abs().max().clamp_min(1e-12))


def _unusable(folder: Path, why: str) -> ModelError:
    return ModelError(
        f"The architecture of the model in {clean(str(folder))} cannot be read.",
        why=clean(why),
        todo=f"Use a model of one of these: {', '.join(SITE_TABLES)}.",
    )


def compare(model: LoadedModel, ids: Sequence[int], folder: Path, job: Job) -> dict[str, float]:
    """Return, by site, how far the table's captures are from the bridge's on one prompt.

    The largest difference as a share of the site's largest number, and `logits`. The model is
    wrapped in place and can be used on; what it computes from then on is the bridge's.
    """
    from emotui.core.engine.capture import capture

    ours = capture(model, ids, all_sites=True, z=True, job=job)
    bridged = replace(model, sites=BridgeSites(_bridge_of(model.hf, folder)))
    theirs = capture(bridged, ids, all_sites=True, z=True, job=job)
    model.sites = bridged.sites
    model.forwards += 1
    assert ours.z is not None and theirs.z is not None
    return {
        "resid": _gap(ours.resid, theirs.resid),
        "attn": _gap(ours.attn, theirs.attn),
        "mlp": _gap(ours.mlp, theirs.mlp),
        "z": _gap(ours.z, theirs.z),
        "logits": _gap(ours.logits, theirs.logits),
    }
