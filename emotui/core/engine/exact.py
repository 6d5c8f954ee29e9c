"""Exact ablation of many features, one at a time: each a row of one batch.

The prompt up to the edited token is run once; each row runs the tokens from there on, from the
lowest of the features' layers up (METHODS 2.4, step B).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emotui.core.engine.capture import Activations, Hook, Job
from emotui.core.engine.rerun import Rows, rerun

if TYPE_CHECKING:
    from emotui.core.engine.intervene import Place
    from emotui.core.engine.model import LoadedModel
    from emotui.core.engine.saes import Sae


def ablations(
    model: LoadedModel,
    run: Activations,
    features: Sequence[tuple[Sae, int]],
    *,
    position: int,
    job: Job | None = None,
) -> Rows:
    """Return what stands at the readout when each feature alone is ablated at `position`.

    `run` are the activations of the prompt without edits, with the features' sites kept at the
    position (KeyError where they are not). Row r is `features[r]`; rows of features that are not
    active there are as the run was, up to rounding. `resid` of the result begins at the lowest of
    the features' layers.
    """
    if not features:
        raise ValueError("there is no feature to ablate")
    return added(
        model,
        run,
        ablation_deltas(run, features, position),
        n_rows=len(features),
        position=position,
        job=job,
    )


Added = Mapping["Place", tuple[Sequence[int], Tensor]]
"""Place to rows, and what is added there at the position for each of them, [rows, d]."""


def added(
    model: LoadedModel,
    run: Activations,
    deltas: Added,
    *,
    n_rows: int,
    position: int,
    job: Job | None = None,
) -> Rows:
    """Return what stands at the readout when something is added at `position`, row by row.

    As `ablations`; a row that is named at no place is as the run was, up to rounding.
    """
    start = min(layer + (site == "resid") for site, layer in deltas)

    def hooks(rows: range) -> list[Hook]:
        def hook(place: Place) -> Hook:
            at, values = deltas[place]
            here = [n for n, row in enumerate(at) if row in rows]
            inside = [at[n] - rows.start for n in here]

            def function(tensor: Tensor) -> Tensor | None:
                if not here:
                    return None
                changed = tensor.clone()
                changed[inside, 0] += values[here]
                return changed

            return Hook(place[0], place[1], function)

        return [hook(place) for place in deltas]

    return rerun(
        model,
        run.at("resid", start - 1),
        start=start,
        n_rows=n_rows,
        hooks=hooks,
        first=position,
        job=job,
    )


def ablation_deltas(
    run: Activations, features: Sequence[tuple[Sae, int]], position: int
) -> dict[Place, tuple[Sequence[int], Tensor]]:
    """Return, for each place, the rows of its features and what ablating each adds, [rows, d].

    KeyError where a site was not kept at the position.
    """
    by_sae: dict[Place, tuple[Sae, list[int]]] = {}
    for row, (sae, _) in enumerate(features):
        by_sae.setdefault((sae.site, sae.layer), (sae, []))[1].append(row)
    found: dict[Place, tuple[Sequence[int], Tensor]] = {}
    for place, (sae, rows) in by_sae.items():
        kept = run.positions(sae.site)
        if position not in kept:
            raise KeyError(f"{sae.site}.{sae.layer} was not kept at token {position}")
        indices = [features[row][1] for row in rows]
        h = run.at(sae.site, sae.layer)[kept.index(position)]
        with torch.no_grad():
            f = sae.encode(h)[indices]
            found[place] = (rows, (-f[:, None] * sae.directions(indices)).to(h.dtype))
    return found
