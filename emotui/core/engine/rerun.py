"""Resume: the blocks from one layer on, for many variants of one prompt at once.

Blocks below `start` are skipped: their output is the residual of an earlier run. Everything from
`start` on is the model's own code, so the numbers are those of a full run up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emotui.core.engine.capture import Hook, Job, hooked
from emotui.core.engine.sites import HookSite

if TYPE_CHECKING:
    from emotui.core.engine.model import LoadedModel

TOKENS_AT_ONCE = 8192
"""Most tokens (rows times prompt length) of one forward pass."""


@dataclass(frozen=True)
class Rows:
    """What the variants of a prompt gave at its last position."""

    resid: dict[int, Tensor]
    """Layer (from `start` on) to [rows, d_model], in the run's dtype."""
    logits: Tensor
    """[rows, vocabulary], in the run's dtype."""


def _skip(hidden_states: Tensor, *_arguments: Any, **_named: Any) -> Tensor:
    return hidden_states


@contextmanager
def resumed(model: LoadedModel, start: int, resid: Tensor) -> Iterator[None]:
    """Let every forward inside begin at block `start` with `resid` [rows, tokens, d_model].

    The blocks are restored and the hook removed on every path.
    """

    def swap(_module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if inputs:
            return (resid, *inputs[1:]), named
        return inputs, {**named, "hidden_states": resid}

    blocks = model.sites.blocks
    with ExitStack() as stack:
        for block in blocks[:start]:
            # Past nn.Module.__setattr__: an instance attribute that hides the class's method.
            object.__setattr__(block, "forward", _skip)
            stack.callback(block.__dict__.pop, "forward", None)
        handle = blocks[start].register_forward_pre_hook(swap, with_kwargs=True)
        stack.callback(handle.remove)
        yield


@torch.no_grad()
def arriving(
    model: LoadedModel,
    resid: Tensor,
    *,
    start: int,
    site: HookSite,
    layer: int,
    hooks: Sequence[Hook] = (),
    job: Job | None = None,
) -> Tensor:
    """Return the tensor at `site.layer` of every token, [tokens, d], as `hooks` leave it.

    `resid` is `resid.(start - 1)`, [tokens, d_model]; one resumed forward.
    """
    kept: list[Tensor] = []
    keeping = Hook(site, layer, lambda tensor: kept.append(tensor[0].detach().clone()))
    rows = resid.unsqueeze(0)
    model.forwards += 1
    with hooked(model, (*hooks, keeping), job=job), resumed(model, start, rows):
        model.hf(inputs_embeds=rows, use_cache=False, logits_to_keep=1)
    return kept[0]


RowHooks = Callable[[range], Sequence[Hook]]
"""The hooks of some rows: each gets the tensor [len(rows), tokens, width] of a site."""


@torch.no_grad()
def rerun(
    model: LoadedModel,
    resid: Tensor,
    *,
    start: int,
    n_rows: int,
    hooks: RowHooks,
    job: Job | None = None,
) -> Rows:
    """Run variants of one prompt from block `start` on and return what stands at the readout.

    `resid` is `resid.(start - 1)`, [tokens, d_model], the same for every row; what sets the rows
    apart are the hooks. Rows run in order, as many at once as `TOKENS_AT_ONCE` lets.
    """
    at_once = max(1, TOKENS_AT_ONCE // len(resid))
    parts = [
        _rerun_part(
            model,
            resid,
            start=start,
            n_rows=len(rows),
            hooks=hooks(rows),
            job=job,
        )
        for first in range(0, n_rows, at_once)
        for rows in [range(first, min(first + at_once, n_rows))]
    ]
    return Rows(
        resid={kept: torch.cat([part.resid[kept] for part in parts]) for kept in parts[0].resid},
        logits=torch.cat([part.logits for part in parts]),
    )


def adding(deltas: Tensor, site: HookSite, layer: int) -> RowHooks:
    """Return hooks by which row r adds `deltas[r]` ([rows, tokens, width]) at one place."""

    def hooks(rows: range) -> tuple[Hook, ...]:
        chosen = deltas[rows.start : rows.stop]
        return (Hook(site, layer, lambda tensor: tensor + chosen),)

    return hooks


def _rerun_part(
    model: LoadedModel,
    resid: Tensor,
    *,
    start: int,
    n_rows: int,
    hooks: Sequence[Hook],
    job: Job | None,
) -> Rows:
    kept: dict[int, Tensor] = {}

    def keep(at: int) -> Hook:
        def function(tensor: Tensor) -> None:
            kept[at] = tensor[:, -1].detach().clone()

        return Hook("resid", at, function)

    keeping = [keep(at) for at in range(start, model.n_layers)]
    rows = resid.expand(n_rows, -1, -1)
    model.forwards += 1
    with hooked(model, (*hooks, *keeping), job=job), resumed(model, start, rows):
        output = model.hf(inputs_embeds=rows, use_cache=False, logits_to_keep=1)
    return Rows(kept, output.logits[:, -1])
