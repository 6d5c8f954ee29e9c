"""The features of a text: what an SAE finds at each token, and how well it rebuilds the text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emotui.core.records import Features, SaeReading, TextRecord

if TYPE_CHECKING:
    from emotui.core.engine.capture import Activations
    from emotui.core.engine.saes import Sae

READOUT_FEATURES = 512
"""Most active features kept at the readout."""
TOKEN_FEATURES = 32
"""Most active features kept at every other token."""
_CHUNK_VALUES = 2**24  # feature values encoded at a time: 64 MB in float32


def encoded_at_once(width: int) -> int:
    """Return how many tokens an SAE of that width encodes at a time."""
    return max(1, _CHUNK_VALUES // width)


@torch.no_grad()
def features_of(
    sae: Sae, activations: Activations, text: TextRecord
) -> tuple[Features, SaeReading]:
    """Encode one text and return its active features and how well the SAE rebuilds it.

    Kept are the largest by activation times decoder norm: 512 at the readout, 32 at every other
    token; rows by position, then by that size. Special tokens (BOS) have none, unless one is the
    readout. Where the site was kept at the readout alone, so are the features.

    Variance explained is 1 - sum ||h - h'||^2 / sum ||h - m||^2 over the tokens of the user's
    text, no BOS, special or template tokens; m is the SAE's stored corpus mean, or without one
    the mean of these tokens. None below two such tokens. The mean number of active features is
    over the same tokens, or over the kept positions where none of them was kept.
    """
    h = activations.at(sae.site, sae.layer)
    positions = activations.positions(sae.site)
    tokens = text.tokens
    counted = [row for row, p in enumerate(positions) if tokens[p].part == "text"]
    chunk = encoded_at_once(sae.width)
    centre = sae.weights.mean
    if centre is None and counted:
        centre = sae.read(h[counted]).float().mean(dim=0)
    columns: list[tuple[int, int, float]] = []
    error = spread = 0.0
    active = torch.zeros(len(positions))
    for start in range(0, len(positions), chunk):
        rows = range(start, min(start + chunk, len(positions)))
        arrived = h[rows.start : rows.stop]
        features = sae.encode(arrived)
        active[rows.start : rows.stop] = (features > 0).sum(dim=-1).float().cpu()
        inside = [row - start for row in counted if row in rows]
        if inside and centre is not None:
            kept = sae.read(arrived[inside]).float()
            rebuilt = sae.decode(features[inside]).float()
            # Summed on the CPU: some accelerators have no float64.
            error += float((kept - rebuilt).square().cpu().sum(dtype=torch.float64))
            spread += float((kept - centre).square().cpu().sum(dtype=torch.float64))
        shown = [
            row
            for row in rows
            if not tokens[positions[row]].special or positions[row] == text.readout
        ]
        for row in shown:
            limit = READOUT_FEATURES if positions[row] == text.readout else TOKEN_FEATURES
            columns += _largest(sae, features[row - start], positions[row], limit)
    explained = 1 - error / spread if len(counted) > 1 and spread > 0 else None
    reading = SaeReading(
        sae=sae.id,
        site=sae.site,
        layer=sae.layer,
        width=sae.width,
        architecture=sae.config.architecture,
        variance_explained=explained,
        mean_active=float(active[counted or slice(None)].mean()),
        source=_name_of(sae.source),
    )
    return _as_columns(sae, columns), reading


def _largest(sae: Sae, features: Tensor, position: int, limit: int) -> list[tuple[int, int, float]]:
    sizes = features.float() * sae.weights.decoder_norm
    order = sizes.topk(min(limit, sae.width)).indices
    values = features[order].float()
    keep = values > 0
    return [
        (position, index, value)
        for index, value in zip(order[keep].tolist(), values[keep].tolist(), strict=True)
    ]


def _as_columns(sae: Sae, rows: Sequence[tuple[int, int, float]]) -> Features:
    count, labels = len(rows), sae.weights.labels
    return Features(
        sae=(sae.id,) * count,
        site=(sae.site,) * count,
        layer=(sae.layer,) * count,
        index=tuple(index for _, index, _ in rows),
        position=tuple(position for position, _, _ in rows),
        activation=tuple(value for _, _, value in rows),
        attribution=(None,) * count,
        label=tuple(labels.get(index, "") for _, index, _ in rows),
    )


def _name_of(source: str) -> str:
    """Return a source as a record names it: of a local folder its name, without the path."""
    folder = Path(source).expanduser()
    return folder.resolve().name if folder.exists() else source
