"""Probes of one place, fitted as a part of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from emotui.core.engine.place_fits import PlaceFits, fit_places
from emotui.core.studies.common.within import Within

if TYPE_CHECKING:
    from emotui.core.engine.design import Design
    from emotui.core.studies.common.running import Running


def fit_place(
    study: Running, inputs: Tensor, design: Design, *, phase: str | None = None
) -> PlaceFits:
    """Fit the probe of one place (P = 1) to `inputs` [n, d], with the run's seed and device.

    `phase` is told as progress; None leaves that to the stage it is a part of.
    """
    return fit_places(
        inputs[None],
        design,
        seed=study.run.seed,
        job=Within(study.job) if phase is None else study.job,
        phase=phase or "",
        device=study.model.device,
    )
