"""The labels' scores at the token that decides, for many variants of one prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emotui.core.engine.capture import Activations, Hook, capture
from emotui.core.engine.layered import Stack
from emotui.core.engine.rerun import RowHooks, rerun
from emotui.core.errors import UsageError
from emotui.core.records import TextRecord

if TYPE_CHECKING:
    from emotui.core.studies.common.running import Running


def check_decides(study: Running) -> None:
    """Raise UsageError where no single token tells the labels apart."""
    if study.tokens.rule == "whole_label":
        raise UsageError(
            f"The study {study.run.study} cannot be done with {study.run.dataset.label_set} here.",
            why="This tokenizer tells these labels apart by whole labels only, so there is no "
            "token at which the answer is decided.",
            todo="Use another --labels set.",
        )


def captured(study: Running, text: TextRecord) -> Activations:
    """Run a prompt, with what the labels share behind it, and keep what variants begin from."""
    ids = [token.id for token in text.tokens]
    prefix = study.tokens.prefix
    # What attention and MLP add is kept at the last token, which is the readout without a prefix.
    return capture(study.model, [*ids, *prefix], all_sites=bool(prefix), job=study.job)


def scores_of(study: Running, logits: Tensor) -> Tensor:
    """Return the labels' logits [..., labels] of logits [..., vocabulary], float32 on the CPU."""
    return logits[..., list(study.tokens.deciding)].float().cpu()


@torch.no_grad()
def variants(
    study: Running,
    resid: Tensor,
    hooks: RowHooks,
    *,
    n_rows: int,
    start: int,
    position: int,
) -> Tensor:
    """Return the labels' scores [n_rows, labels] of variants that differ from `position` on.

    `resid` [tokens, d_model] is what enters block `start`; `hooks` act on tensors [rows, tokens
    from `position` on, width] at blocks from `start` on.
    """
    rows = rerun(
        study.model,
        resid,
        start=start,
        n_rows=n_rows,
        hooks=hooks,
        first=position,
        job=study.job,
    )
    return scores_of(study, rows.logits)


def putting(h: Stack) -> Callable[[range], list[Hook]]:
    """Return hooks by which row L puts `h[L]` [layers, d_model] at `resid.L`, first token."""

    def hooks(rows: range) -> list[Hook]:
        def hook(layer: int) -> Hook:
            def function(tensor: Tensor) -> Tensor:
                changed = tensor.clone()
                changed[layer - rows.start, 0] = h[layer].to(changed)
                return changed

            return Hook("resid", layer, function)

        return [hook(layer) for layer in rows]

    return hooks
