"""Scaling features at the readout, many settings of one prompt at once (METHODS 2.5).

    h' = h + sum_j (s_j - 1) f_j(h) D_j

which needs no label: what is not active stays as it was, and a scale of 1 is no edit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emotui.core.engine.capture import Activations, Hook, HookFunction, hooked
from emotui.core.studies.decided import scores_of, variants

if TYPE_CHECKING:
    from emotui.core.engine.saes import Sae
    from emotui.core.studies.common.running import Running

Feature = tuple[int, int]
"""Number of the SAE among those of the study, and of the feature in it."""
Scales = Mapping[Feature, float]
"""The factor of each feature; those without one stay."""


class Scaler:
    """Hooks for a fixed list of settings; the features of each SAE are looked up once."""

    def __init__(self, saes: Sequence[Sae], settings: Sequence[Scales]) -> None:
        self.rows = len(settings)
        self._parts = []
        for number in sorted({n for one in settings for n, _ in one}):
            used = sorted({j for one in settings for n, j in one if n == number})
            factors = torch.tensor(
                [[one.get((number, j), 1.0) - 1.0 for j in used] for one in settings]
            )
            self._parts.append((saes[number], used, factors))

    @property
    def start(self) -> int | None:
        """The lowest layer that is edited; None where nothing is."""
        return min((sae.layer for sae, _, _ in self._parts), default=None)

    def hooks(self, rows: range, *, everywhere: bool = False) -> list[Hook]:
        """Return hooks that edit the first token they get, or every token but the first."""
        return [
            Hook(
                sae.site,
                sae.layer,
                _scaling(sae, used, factors[rows.start : rows.stop], everywhere),
            )
            for sae, used, factors in self._parts
        ]


def _scaling(sae: Sae, used: list[int], factors: Tensor, everywhere: bool) -> HookFunction:
    chosen = slice(1, None) if everywhere else slice(0, 1)

    def function(tensor: Tensor) -> Tensor:
        h = tensor[:, chosen]
        f = sae.encode(h)[..., used] * factors.to(tensor)[:, None]
        changed = tensor.clone()
        changed[:, chosen] += f @ sae.directions(used).to(tensor)
        return changed

    return function


@dataclass(frozen=True)
class Begun:
    """What is kept of a run that is scaled again and again."""

    resid: Mapping[int, Tensor]
    """Layer to what enters its block, [tokens, d_model]."""
    logits: Tensor


def scaled_scores(
    study: Running, run: Activations | Begun, scaler: Scaler, *, position: int
) -> Tensor:
    """Return the labels' scores [settings, labels] of a prompt under each setting."""
    if scaler.start is None:
        return scores_of(study, run.logits).expand(scaler.rows, -1)
    start = scaler.start
    return variants(
        study,
        run.resid[start] if isinstance(run, Begun) else run.at("resid", start - 1),
        scaler.hooks,
        n_rows=scaler.rows,
        start=start,
        position=position,
    )


@torch.no_grad()
def language_cost(
    study: Running, passages: Sequence[Sequence[int]], saes: Sequence[Sae], scales: Scales
) -> tuple[float, float]:
    """Return the ratio of perplexities and the mean KL of the next token, scaled at every token.

    `passages` are token ids; the first token (BOS) is not edited, and all others are predicted.
    """
    scaler = Scaler(saes, [scales])
    if all(scale == 1 for scale in scales.values()):
        return 1.0, 0.0
    worse = divergence = count = 0.0
    for ids in passages:
        study.job.check()
        before = study.model.forward([ids], keep=0)[0, :-1].float().log_softmax(dim=-1)
        with hooked(study.model, scaler.hooks(range(1), everywhere=True)):
            after = study.model.forward([ids], keep=0)[0, :-1].float().log_softmax(dim=-1)
        target = torch.tensor(list(ids[1:]), device=before.device)[:, None]
        worse += float((before - after).gather(1, target).sum())
        divergence += float((before.exp() * (before - after)).sum())
        count += len(target)
    if not count:
        return 1.0, 0.0
    ratio = float(torch.tensor(worse / count, dtype=torch.float64).exp())
    return ratio, max(0.0, divergence / count)
