"""One forward pass of prompts of equal length, under edits: what stands at places, and the answer.

Nothing is padded. Attention and MLP outputs are the tensors added to the residual (METHODS 1.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emotui.core.engine.answer import LabelTokens, whole_label_scores
from emotui.core.engine.capture import Hook, hooked
from emotui.core.engine.collect import Place
from emotui.core.engine.rerun import RowHooks

if TYPE_CHECKING:
    from emotui.core.engine.capture import Job
    from emotui.core.engine.model import LoadedModel


@dataclass(frozen=True)
class Batch:
    """One forward pass of prompts of equal length."""

    h: Tensor
    """[places, rows, d_model], at the readout, in the run's dtype, on the CPU."""
    scores: Tensor
    """[rows, labels], float32 on the CPU: logits, or log-probabilities of whole labels."""
    logits: Tensor
    """[rows, vocabulary], at the readout, on the model's device."""


def _no_hooks(_rows: range) -> Sequence[Hook]:
    return ()


@torch.no_grad()
def run_batch(
    model: LoadedModel,
    prompts: Sequence[Sequence[int]],
    tokens: LabelTokens,
    *,
    places: Sequence[Place] = (),
    edits: RowHooks = _no_hooks,
    watching: Sequence[Hook] = (),
    job: Job | None = None,
) -> Batch:
    """Run prompts of equal length under edits, and read `places` and the answer.

    `edits(rows)` gives the hooks of some of the prompts; each gets [len(rows), tokens, width] and
    must count tokens from the start: where labels share their first tokens or need all of them,
    they act in one or more further forwards of longer prompts (of one prompt at a time, repeated
    for each label). What is kept, and what `watching` hooks see in the first forward, is what the
    edits left.
    """
    kept: dict[int, Tensor] = {}

    def keeping(number: int) -> Callable[[Tensor], None]:
        def function(tensor: Tensor) -> None:
            kept[number] = tensor[:, -1].detach().cpu().clone()

        return function

    own = [Hook(site, layer, keeping(n)) for n, (site, layer) in enumerate(places)]
    everyone = edits(range(len(prompts)))
    with hooked(model, (*everyone, *watching, *own), job=job):
        logits = model.forward(prompts)[:, -1]
    if tokens.rule == "first_token":
        scores = logits[:, list(tokens.deciding)]
    elif tokens.rule == "after_shared_prefix":
        with hooked(model, everyone, job=job):
            after = model.forward([[*prompt, *tokens.prefix] for prompt in prompts])
        scores = after[:, -1, list(tokens.deciding)]
    else:
        rows = []
        for number, prompt in enumerate(prompts):
            with hooked(model, edits(range(number, number + 1)), job=job):
                rows.append(whole_label_scores(model, prompt, tokens.sequences))
        scores = torch.stack(rows)
    none = torch.zeros(0, len(prompts), model.d_model, dtype=model.dtype)
    h = torch.stack([kept[number] for number in range(len(places))]) if places else none
    return Batch(h, scores.float().cpu(), logits)
