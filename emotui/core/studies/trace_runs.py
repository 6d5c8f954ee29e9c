"""Ablations at the readout for the study `trace`: attribution, one feature alone, sets of them.

The prompt before the readout is run once a text and its keys and values are shared (METHODS 2.4);
only the readout is edited, so that is the whole effect of an edit there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emotui.core.engine.attribute import answer_metric, gradients, margin
from emotui.core.engine.capture import Activations, Hook
from emotui.core.engine.exact import ablation_deltas, added
from emotui.core.engine.rerun import rerun
from emotui.core.records import TextRecord
from emotui.core.studies.decided import captured, scores_of

if TYPE_CHECKING:
    from emotui.core.engine.saes import Sae
    from emotui.core.studies.common.running import Running

Feature = tuple[int, int]
"""Number of the SAE among those of the study, and of the feature in it."""
DIRECTIONS = 8
"""Random directions for each SAE and text."""


@dataclass(frozen=True)
class Attributed:
    """One text at its readout."""

    f: list[Tensor]
    """[width] of each SAE, float32."""
    estimate: list[Tensor]
    """[width] of each SAE: what ablation would take off the margin, to first order."""
    scores: Tensor
    """[labels]."""


def attributed(
    study: Running, saes: Sequence[Sae], text: TextRecord, emotion: str
) -> tuple[Activations, Attributed]:
    """Run one text forward and backward: f <D, d margin / d h> of every feature of every SAE."""
    run = captured(study, text)
    metric = answer_metric(study.tokens, emotion)
    assert metric is not None  # check_decides was asked
    sites = any(sae.site != "resid" for sae in saes)
    ids = [token.id for token in text.tokens]
    found = gradients(study.model, ids, metric, all_sites=sites, job=study.job)
    fs, estimates = [], []
    with torch.no_grad():
        for sae in saes:
            kept = run.positions(sae.site)
            h = run.at(sae.site, sae.layer)[kept.index(text.readout)]
            f = sae.encode(h).float()
            slope = found.at(sae.site, sae.layer)[text.readout].float()
            active = f.nonzero().flatten()
            estimate = torch.zeros_like(f)
            directions = sae.directions(active.tolist()).float()
            estimate[active] = f[active] * (directions @ slope)
            fs.append(f.cpu())
            estimates.append(estimate.cpu())
    return run, Attributed(fs, estimates, scores_of(study, run.logits))


@dataclass(frozen=True)
class Ablated:
    """Each of some features ablated alone in one text."""

    effect: Tensor
    """[features]: margin before less margin after."""
    flipped: Tensor
    """[features], bool: the answer changed."""
    random: Tensor
    """[SAEs]: mean absolute effect of a random direction of `size` at each SAE; NaN for none."""
    size: Tensor
    """[SAEs]: mean norm of what the active ones of the features write."""


def ablated(
    study: Running,
    saes: Sequence[Sae],
    run: Activations,
    features: Sequence[Feature],
    *,
    own: int,
    position: int,
    generator: torch.Generator,
) -> Ablated:
    """Ablate features one by one, and beside them subtract random directions of like norm."""
    named = [(saes[number], index) for number, index in features]
    deltas = ablation_deltas(run, named, position)
    n_rows = len(features)
    places = {(saes[n].site, saes[n].layer): n for n, _ in features}
    random_rows: dict[int, range] = {}
    size = torch.full((len(saes),), float("nan"))
    for place, (rows, values) in list(deltas.items()):
        norms = values.float().norm(dim=-1)
        if not bool((norms > 0).any()):
            continue
        number = places[place]
        size[number] = float(norms[norms > 0].mean())
        drawn = torch.randn(DIRECTIONS, values.shape[-1], generator=generator)
        drawn = drawn / drawn.norm(dim=-1, keepdim=True) * size[number]
        random_rows[number] = range(n_rows, n_rows + DIRECTIONS)
        deltas[place] = (
            [*rows, *random_rows[number]],
            torch.cat([values, drawn.to(values)]),
        )
        n_rows += DIRECTIONS
    after = scores_of(
        study,
        added(study.model, run, deltas, n_rows=n_rows, position=position, job=study.job).logits,
    )
    before = scores_of(study, run.logits)
    effect = margin(before, own) - margin(after, own)
    random = torch.full((len(saes),), float("nan"))
    for number, inside in random_rows.items():
        random[number] = effect[list(inside)].abs().mean()
    count = len(features)
    return Ablated(
        effect=effect[:count],
        flipped=after[:count].argmax(dim=-1) != before.argmax(),
        random=random,
        size=size,
    )


@torch.no_grad()
def sets_ablated(
    study: Running,
    saes: Sequence[Sae],
    run: Activations,
    sets: Sequence[Sequence[Feature]],
    *,
    position: int,
) -> tuple[Tensor, Tensor]:
    """Ablate sets of features, each set in one row; return scores [sets, labels] and KL [sets].

    At each SAE the features are encoded from what arrives there, the edits below included. KL is
    that of the next token, from the run without edits.
    """
    chosen = sorted({number for one in sets for number, _ in one})
    if not chosen:
        scores = scores_of(study, run.logits)
        return scores.expand(len(sets), -1), torch.zeros(len(sets))

    def hooks(rows: range) -> list[Hook]:
        return [_removing(saes[n], n, [sets[row] for row in rows]) for n in chosen]

    start = min(saes[number].layer for number in chosen)
    logits = rerun(
        study.model,
        run.at("resid", start - 1),
        start=start,
        n_rows=len(sets),
        hooks=hooks,
        first=position,
        job=study.job,
    ).logits
    before = run.logits.float().log_softmax(dim=-1)
    after = logits.float().log_softmax(dim=-1)
    divergence = (before.exp() * (before - after)).sum(dim=-1).clamp(min=0)
    return scores_of(study, logits), divergence.cpu()


def _removing(sae: Sae, number: int, sets: Sequence[Sequence[Feature]]) -> Hook:
    used = sorted({index for one in sets for at, index in one if at == number})
    mask = torch.tensor([[(number, index) in set(one) for index in used] for one in sets])

    def function(tensor: Tensor) -> Tensor | None:
        if not used:
            return None
        f = sae.encode(tensor[:, 0])[:, used] * mask.to(tensor)
        changed = tensor.clone()
        changed[:, 0] -= f @ sae.directions(used).to(tensor)
        return changed

    return Hook(sae.site, sae.layer, function)
