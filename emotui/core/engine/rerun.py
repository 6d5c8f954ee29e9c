"""Resume: the blocks from one layer on, at the tokens from one on, for many variants at once.

Blocks below `start` are skipped: the residual of an earlier run stands in for the output of the
last of them, where hooks act on it as on any other. So an edit of `resid.L` alone begins at block
L + 1, and one of `attn.L` or `mlp.L` at block L. Tokens before `first` are run once for all
variants. Everything else is the model's own code, so the numbers are
those of a full run up to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emotui.core.engine.capture import Hook, Job, hooked
from emotui.core.engine.sites import HookSite
from emotui.core.records import Site

if TYPE_CHECKING:
    from emotui.core.engine.model import LoadedModel

TOKENS_AT_ONCE = 8192
"""Most tokens of one forward pass: rows times the tokens that are run."""
KEYS_AT_ONCE = 16384
"""Most tokens whose keys and values are held at once: rows times the length of the prompt."""
_SLOPES_AT_ONCE = 2048
"""Most tokens of one backward pass: rows times the tokens that are run."""


@dataclass(frozen=True)
class Rows:
    """What the variants of a prompt gave at its last position."""

    resid: dict[int, Tensor]
    """Layer (from `start - 1` on) to [rows, d_model], in the run's dtype, each on its device."""
    logits: Tensor
    """[rows, vocabulary], in the run's dtype, on the model's device."""


def _skip(hidden_states: Tensor, *_arguments: Any, **_named: Any) -> Tensor:
    return hidden_states


def _restore(block: Any, forward: Any) -> None:
    if forward is None:
        block.__dict__.pop("forward", None)
    else:
        object.__setattr__(block, "forward", forward)


def _in_place_of(rows: Tensor, model: LoadedModel) -> Tensor:
    """Return what goes in below the block that `resumed` begins at: only its shape is read.

    Zeros that take no memory, where the model takes its inputs.
    """
    return torch.zeros((), dtype=rows.dtype, device=model.device).expand(rows.shape)


@contextmanager
def resumed(model: LoadedModel, start: int, resid: Tensor) -> Iterator[None]:
    """Let every forward inside begin at block `start` with `resid` [rows, tokens, d_model].

    Hooks at `resid.(start - 1)` fire, on `resid`; `start` may be the number of blocks. The blocks
    are restored and the hook removed on every path.
    """

    def give(*_arguments: Any, **_named: Any) -> Tensor:
        return resid

    def swap(_module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if inputs:
            return (resid, *inputs[1:]), named
        return inputs, {**named, "hidden_states": resid}

    blocks = model.sites.blocks
    with ExitStack() as stack:
        for number, block in enumerate(blocks[:start]):
            # Past nn.Module.__setattr__: an instance attribute that hides the class's method, or
            # another one: accelerate's, where the model is spread over devices.
            stack.callback(_restore, block, block.__dict__.get("forward"))
            object.__setattr__(block, "forward", give if number == start - 1 else _skip)
        if start == 0:
            # First of all: what acts on `resid.-1` gets these rows, and none of it is undone.
            handle = blocks[0].register_forward_pre_hook(swap, with_kwargs=True, prepend=True)
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
    rows = resid.to(model.device_at(start - 1)).unsqueeze(0)
    model.forwards += 1
    with hooked(model, (*hooks, keeping), job=job), resumed(model, start, rows):
        model.hf(inputs_embeds=_in_place_of(rows, model), use_cache=False, logits_to_keep=1)
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

    `resid` is `resid.(start - 1)`, [tokens, d_model], the same for every row and without what the
    hooks do there; what sets the rows apart are the hooks. With `first`, the rows begin at that
    token, and so do the tensors that the hooks get: the tokens before it, which no hook may act on,
    are run once, and their keys and values shared (METHODS 2.4). Rows run in order, as many at once
    as fit.
    """
    n_tokens = len(resid)
    resid = resid.to(model.device_at(start - 1))
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


Values = Callable[[Tensor, Mapping[int, Tensor]], Tensor]
"""Gets the logits [rows, vocabulary] and `resid` by layer, [rows, d_model], at the readout, both in
the run's dtype; returns numbers of each row, float32 or wider [rows, numbers]."""


def slopes(
    model: LoadedModel,
    resid: Tensor,
    *,
    start: int,
    places: Sequence[tuple[Site, int]],
    value: Values,
    hooks: Sequence[Hook] = (),
    first: int = 0,
    job: Job | None = None,
) -> dict[tuple[Site, int], Tensor]:
    """Return how numbers at the readout depend on what stands at places: d value / d h.

    [numbers, tokens from `first` on, width] of each place, float32 or wider, on the device of its
    layer; zero where nothing depends on it. As `rerun`: from block `start` on, whose input is
    `resid`; the places must lie there, or be `resid.(start - 1)`. `hooks` (edits) are in force and
    differentiated through. As many copies of the prompt as there are numbers are run, and one
    backward pass is made of all. Raises torch.OutOfMemoryError where the graph does not fit.
    """
    model.hf.requires_grad_(False)
    resid = resid.to(model.device_at(start - 1))
    past = _prefix(model, resid[:first], start=start, job=job) if first else None
    parts: list[dict[tuple[Site, int], Tensor]] = []
    done, total = 0, 1
    while done < total:
        n_rows = max(1, min(_SLOPES_AT_ONCE // (len(resid) - first), total - done))
        total, part = _slopes_part(
            model,
            resid[first:],
            done,
            n_rows,
            start=start,
            places=places,
            value=value,
            hooks=hooks,
            past=past,
            job=job,
        )
        parts.append(part)
        done += n_rows
    return {place: torch.cat([part[place] for part in parts]) for place in places}


def _slopes_part(
    model: LoadedModel,
    resid: Tensor,
    begin: int,
    n_rows: int,
    *,
    start: int,
    places: Sequence[tuple[Site, int]],
    value: Values,
    hooks: Sequence[Hook],
    past: Any,
    job: Job | None,
) -> tuple[int, dict[tuple[Site, int], Tensor]]:
    """Return how many numbers there are, and the slopes of those from `begin` on."""
    kept: dict[tuple[Site, int], Tensor] = {}

    def keep(place: tuple[Site, int]) -> Hook:
        def function(tensor: Tensor) -> None:
            kept[place] = tensor

        return Hook(place[0], place[1], function)

    stream: list[tuple[Site, int]] = [
        ("resid", layer) for layer in range(max(start - 1, 0), model.n_layers)
    ]
    rows = resid.detach().expand(n_rows, -1, -1).clone().requires_grad_()
    keeping = [keep(place) for place in dict.fromkeys((*stream, *places))]
    with torch.enable_grad():
        # A copy goes on: a leaf must not be written to, and a block may do that.
        logits = _last_logits(
            model, rows.clone(), start=start, hooks=(*hooks, *keeping), past=past, job=job
        )
        last = {layer: kept["resid", layer][:, -1] for _, layer in stream}
        values = value(logits, last)
        mine = range(begin, min(begin + n_rows, values.shape[1]))
        wanted = torch.stack([values[row - begin, row] for row in mine]).sum()
        found = torch.autograd.grad(wanted, [kept[place] for place in places], allow_unused=True)
    return values.shape[1], {
        place: (torch.zeros_like(kept[place]) if slope is None else slope)[: len(mine)].to(
            values.dtype
        )
        for place, slope in zip(places, found, strict=True)
    }


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
        model.hf(
            inputs_embeds=_in_place_of(rows, model),
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
        )
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

    keeping = [keep(at) for at in range(max(start - 1, 0), model.n_layers)]
    logits = _last_logits(
        model,
        resid.expand(n_rows, -1, -1),
        start=start,
        hooks=(*hooks, *keeping),
        past=past,
        job=job,
    )
    return Rows(kept, logits)


def _last_logits(
    model: LoadedModel,
    entering: Tensor,
    *,
    start: int,
    hooks: Sequence[Hook],
    past: Any,
    job: Job | None,
) -> Tensor:
    """Run the blocks from `start` on and return the last token's logits [rows, vocabulary].

    `entering` [rows, tokens, d_model]; `past` is the cache of one row, None without one, and is
    left as it is: each row goes on from a copy.
    """
    own = None if past is None else copy.deepcopy(past)
    if own is not None:
        own.batch_repeat_interleave(len(entering))
    model.forwards += 1
    with hooked(model, hooks, job=job), resumed(model, start, entering):
        output = model.hf(
            inputs_embeds=_in_place_of(entering, model),
            past_key_values=own,
            use_cache=own is not None,
            logits_to_keep=1,
        )
    logits: Tensor = output.logits
    return logits[:, -1]
