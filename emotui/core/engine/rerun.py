"""Resume: the blocks from one layer on, at the tokens from one on, for many variants at once.

Blocks below `start` are skipped: their output is the residual of an earlier run. Tokens before
`first` are run once for all variants. Everything else is the model's own code, so the numbers are
those of a full run up to rounding.
"""

from __future__ import annotations

import copy
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
"""Most tokens of one forward pass: rows times the tokens that are run."""
KEYS_AT_ONCE = 16384
"""Most tokens whose keys and values are held at once: rows times the length of the prompt."""


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
    first: int = 0,
    job: Job | None = None,
) -> Rows:
    """Run variants of one prompt from block `start` on and return what stands at the readout.

    `resid` is `resid.(start - 1)`, [tokens, d_model], the same for every row; what sets the rows
    apart are the hooks. With `first`, the rows begin at that token, and so do the tensors that the
    hooks get: the tokens before it, which no hook may act on, are run once, and their keys and
    values shared (METHODS 2.4). Rows run in order, as many at once as fit.
    """
    n_tokens = len(resid)
    at_once = min(TOKENS_AT_ONCE // (n_tokens - first), KEYS_AT_ONCE // n_tokens)
    past = _prefix(model, resid[:first], start=start, job=job) if first else None
    parts = [
        _rerun_part(
            model,
            resid[first:],
            start=start,
            n_rows=len(rows),
            hooks=hooks(rows),
            past=past,
            job=job,
        )
        for begin in range(0, n_rows, max(1, at_once))
        for rows in [range(begin, min(begin + max(1, at_once), n_rows))]
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


def _prefix(model: LoadedModel, resid: Tensor, *, start: int, job: Job | None) -> Any:
    """Return a transformers Cache of the keys and values of tokens [tokens, d_model], one row."""
    from transformers import DynamicCache

    past = DynamicCache(config=model.hf.config)
    rows = resid.unsqueeze(0)
    model.forwards += 1
    with hooked(model, (), job=job), resumed(model, start, rows):
        model.hf(inputs_embeds=rows, past_key_values=past, use_cache=True, logits_to_keep=1)
    # The skipped blocks read none of it, but the length of the past is asked of the lowest ones.
    skipped = resid.new_zeros(1, 1, len(resid), 1)
    for layer in range(start):
        past.update(skipped, skipped, layer)
    return past


def _rerun_part(
    model: LoadedModel,
    resid: Tensor,
    *,
    start: int,
    n_rows: int,
    hooks: Sequence[Hook],
    past: Any,
    job: Job | None,
) -> Rows:
    kept: dict[int, Tensor] = {}

    def keep(at: int) -> Hook:
        def function(tensor: Tensor) -> None:
            kept[at] = tensor[:, -1].detach().clone()

        return Hook("resid", at, function)

    keeping = [keep(at) for at in range(start, model.n_layers)]
    rows = resid.expand(n_rows, -1, -1)
    own = None if past is None else copy.deepcopy(past)
    if own is not None:
        own.batch_repeat_interleave(n_rows)
    model.forwards += 1
    with hooked(model, (*hooks, *keeping), job=job), resumed(model, start, rows):
        output = model.hf(
            inputs_embeds=rows,
            past_key_values=own,
            use_cache=own is not None,
            logits_to_keep=1,
        )
    return Rows(kept, output.logits[:, -1])
