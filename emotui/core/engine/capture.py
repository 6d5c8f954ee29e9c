"""Hooks that come off on every path, and one forward that keeps the sites of all layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors.torch import load as tensors_from_bytes
from torch import Tensor, nn

from emotui.core.engine.layered import Layered
from emotui.core.engine.packed import tensors_to_bytes
from emotui.core.engine.sites import HookSite
from emotui.core.errors import CacheError
from emotui.core.records import EMBEDDING_LAYER, Site, Written

if TYPE_CHECKING:
    from emotui.core.engine.model import LoadedModel


class Job(Protocol):
    """What long work is given: somewhere to report to, and whether to go on."""

    def progress(self, phase: str, done: int = 0, total: int = 0, /) -> None:
        """Say how far the work is."""

    def writing(self, phase: str, done: int, total: int, text: str, /) -> None:
        """Say how far a text is that is being written, and show what stands there."""

    def wrote(self, written: Written, done: int, total: int, /) -> None:
        """Show a text that is finished."""

    def notice(self, line: str, /) -> None:
        """Tell the user a fact that stays in sight."""

    def check(self) -> None:
        """Raise Cancelled where the user cancelled."""


class QuietJob:
    """A job that reports nowhere and is never cancelled: for scripts and tests."""

    def progress(self, phase: str, done: int = 0, total: int = 0, /) -> None:
        """Do nothing."""

    def writing(self, phase: str, done: int, total: int, _text: str, /) -> None:
        """Report the count alone."""
        self.progress(phase, done, total)

    def wrote(self, _written: Written, _done: int, _total: int, /) -> None:
        """Do nothing."""

    def notice(self, line: str, /) -> None:
        """Do nothing."""

    def check(self) -> None:
        """Do nothing."""


HookFunction = Callable[[Tensor], Tensor | None]
"""Gets the tensor [batch, tokens, width] of a site; returns its replacement, or None."""


@dataclass(frozen=True)
class Hook:
    """A function to run on the tensor that passes `site.layer`."""

    site: HookSite
    layer: int
    function: HookFunction


@dataclass(frozen=True)
class Activations:
    """What one forward of one prompt kept, in the run's dtype, each layer's on its device."""

    token_ids: tuple[int, ...]
    kept: Mapping[HookSite, Layered]
    """By site, a row a layer: `resid` [layers + 1, tokens, d_model], row 0 is layer -1; `attn`,
    `mlp` and `z` (heads * d_head wide; where asked for, or with all sites) [layers,
    len(site_positions), width]."""
    site_positions: tuple[int, ...]
    """The token positions that `attn`, `mlp` and `z` were kept at."""
    logits: Tensor
    """[vocabulary], at the readout, on the model's device."""
    key: str = ""
    """The content key it is stored under; "" before that is known."""

    @property
    def readout(self) -> int:
        """The last position of the prompt."""
        return len(self.token_ids) - 1

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.kept["attn"])

    @property
    def resid(self) -> Tensor:
        """The residuals of all layers in one; of a model on several devices a copy on the CPU."""
        return self.kept["resid"].whole()

    @property
    def attn(self) -> Tensor:
        """The attention outputs of all layers in one, as `resid`."""
        return self.kept["attn"].whole()

    @property
    def mlp(self) -> Tensor:
        """The MLP outputs of all layers in one, as `resid`."""
        return self.kept["mlp"].whole()

    @property
    def z(self) -> Tensor | None:
        """The mixed heads of all layers in one, as `resid`; None where they were not kept."""
        return self.kept["z"].whole() if "z" in self.kept else None

    def positions(self, site: HookSite) -> tuple[int, ...]:
        """Return the positions at which `site` was kept, ascending."""
        return tuple(range(len(self.token_ids))) if site == "resid" else self.site_positions

    def at(self, site: Site, layer: int) -> Tensor:
        """Return one site and layer as [len(positions(site)), d_model], on the layer's device.

        Layer -1 is the embedding for `resid` and a KeyError for the others.
        """
        if site == "resid":
            return self.kept["resid"][layer - EMBEDDING_LAYER]
        if layer == EMBEDDING_LAYER or site not in self.kept:
            raise KeyError(f"{site}.{layer}")
        return self.kept[site][layer]

    def narrowed(self, *, all_sites: bool) -> Activations:
        """Return the same; without `all_sites`, attention and MLP outputs at the readout alone."""
        if all_sites or len(self.site_positions) == 1:
            return self
        return replace(
            self,
            kept={
                site: rows if site == "resid" else rows.each(lambda part: part[:, -1:])
                for site, rows in self.kept.items()
            },
            site_positions=(self.readout,),
        )

    def to_bytes(self) -> bytes:
        """Return the tensors as one safetensors document."""
        tensors = {
            "token_ids": torch.tensor(self.token_ids, dtype=torch.int32),
            "site_positions": torch.tensor(self.site_positions, dtype=torch.int32),
            "logits": self.logits,
        }
        for site, rows in self.kept.items():
            tensors[site] = rows.whole()
        payload: bytes = tensors_to_bytes(
            {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        )
        return payload

    @classmethod
    def from_bytes(
        cls, payload: bytes, *, key: str, devices: Sequence[torch.device]
    ) -> Activations:
        """Rebuild what `to_bytes` gave; CacheError where the document is another one.

        `devices` are those of the layers from -1 on; the first of them is the model's own.
        """
        try:
            tensors = tensors_from_bytes(payload)
            kept: dict[HookSite, Layered] = {"resid": Layered.placed(tensors["resid"], devices)}
            sites: tuple[HookSite, ...] = ("attn", "mlp", *(("z",) if "z" in tensors else ()))
            kept |= {site: Layered.placed(tensors[site], devices[1:]) for site in sites}
            return cls(
                token_ids=tuple(tensors["token_ids"].tolist()),
                kept=kept,
                site_positions=tuple(tensors["site_positions"].tolist()),
                logits=tensors["logits"].to(devices[0]),
                key=key,
            )
        # safetensors raises its own type, which derives from Exception alone.
        except Exception as error:
            raise CacheError(
                "A cache entry is not a safetensors document.",
                why=f"{type(error).__name__} while reading entry {key[:16]}.",
                todo="Run `emotui cache verify`.",
            ) from error


def _first(output: Any) -> Tensor:
    tensor = output[0] if isinstance(output, tuple) else output
    assert isinstance(tensor, Tensor)
    return tensor


def _output_hook(function: HookFunction) -> Callable[[nn.Module, Any, Any], Any]:
    def run(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        changed = function(_first(output))
        if changed is None:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return run


def _input_hook(function: HookFunction) -> Callable[[nn.Module, Any, dict[str, Any]], Any]:
    def run(_module: nn.Module, inputs: Any, named: dict[str, Any]) -> Any:
        changed = function(inputs[0] if inputs else named["hidden_states"])
        if changed is None:
            return None
        if inputs:
            return (changed, *inputs[1:]), named
        return inputs, {**named, "hidden_states": changed}

    return run


@contextmanager
def hooked(model: LoadedModel, hooks: Sequence[Hook], *, job: Job | None = None) -> Iterator[None]:
    """Run `hooks` in every forward inside, in the order given at each point.

    With a job, each block checks first whether the work was cancelled. Every hook is handed the
    tensor where it is: on the device of its layer. It is removed again, also where one of them or
    the forward raises.
    """
    with ExitStack() as stack:
        if job is not None:
            for block in model.sites.blocks:
                handle = block.register_forward_pre_hook(lambda _module, _inputs: job.check())
                stack.callback(handle.remove)
        for hook in hooks:
            point = model.sites.point(hook.site, hook.layer)
            if point.side == "output":
                handle = point.module.register_forward_hook(_output_hook(hook.function))
            else:
                handle = point.module.register_forward_pre_hook(
                    _input_hook(hook.function), with_kwargs=True
                )
            stack.callback(handle.remove)
        yield


def _keep(
    kept: dict[tuple[HookSite, int], Tensor], site: HookSite, layer: int, positions: slice
) -> Hook:
    def function(tensor: Tensor) -> None:
        # A copy: the block may go on to write into the same memory, and a view would keep all.
        kept[site, layer] = tensor[:, positions].detach().clone()

    return Hook(site, layer, function)


def capture(
    model: LoadedModel,
    token_ids: Sequence[int],
    *,
    all_sites: bool = False,
    z: bool = False,
    hooks: Sequence[Hook] = (),
    job: Job | None = None,
) -> Activations:
    """Run one forward and return residuals of all tokens, and attention and MLP outputs.

    The last two (and `z` where asked for) are kept at the readout; with `all_sites` all three are
    kept at every token. `hooks` run before the keeping ones, so that an edit is seen by what is
    kept.
    """
    return capture_rows(model, [token_ids], all_sites=all_sites, z=z, hooks=hooks, job=job)[0]


def capture_rows(
    model: LoadedModel,
    rows: Sequence[Sequence[int]],
    *,
    all_sites: bool = False,
    z: bool = False,
    hooks: Sequence[Hook] = (),
    job: Job | None = None,
) -> list[Activations]:
    """Do `capture` for prompts of equal length in one forward; one Activations for each.

    Nothing is padded, so the numbers are those of single runs up to the rounding of batched
    kernels. The tensors are views of those of the whole batch.
    """
    z = z or all_sites
    layers = range(model.sites.n_layers)
    everything, last = slice(None), slice(-1, None)
    elsewhere = everything if all_sites else last
    kept: dict[tuple[HookSite, int], Tensor] = {}
    keeping = [_keep(kept, "resid", layer, everything) for layer in (EMBEDDING_LAYER, *layers)]
    sites: tuple[HookSite, ...] = ("attn", "mlp", "z") if z else ("attn", "mlp")
    keeping += [_keep(kept, site, layer, elsewhere) for site in sites for layer in layers]
    with hooked(model, (*hooks, *keeping), job=job):
        logits = model.forward(rows)[:, -1]
    n_tokens = len(rows[0])
    by_site: dict[HookSite, Layered] = {
        "resid": Layered.of([kept["resid", layer] for layer in (EMBEDDING_LAYER, *layers)])
    }
    for site in sites:
        by_site[site] = Layered.of([kept[site, layer] for layer in layers])

    def of_row(row: int) -> Activations:
        return Activations(
            token_ids=tuple(rows[row]),
            kept={site: all_.each(lambda part: part[:, row]) for site, all_ in by_site.items()},
            site_positions=tuple(range(n_tokens)) if all_sites else (n_tokens - 1,),
            logits=logits[row],
        )

    return [of_row(row) for row in range(len(rows))]


def with_key(activations: Activations, key: str) -> Activations:
    """Return the same activations under their content key."""
    return replace(activations, key=key)
