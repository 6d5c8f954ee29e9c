"""The datasets of other origin that `steer` judges on, untouched by any choice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch

from emotui.core.errors import UsageError
from emotui.core.studies.common.dataset import DatasetSummary, Item, open_dataset

if TYPE_CHECKING:
    from emotui.core.studies.common.running import Running


def other_sets(study: Running) -> list[tuple[str, list[Item], DatasetSummary | None]]:
    """Open the datasets of --eval; label maps and columns stand in the same order.

    Returns name, texts (their label an index of the label set) and summary of each. UsageError
    where one cannot be read, or has changed since the run began.
    """
    names = [name for name in study.text("eval").split(",") if name]
    limit = study.number("eval_limit")
    found: list[tuple[str, list[Item], DatasetSummary | None]] = []
    for number, name in enumerate(names):

        def part(option: str, at: int = number) -> str | None:
            values = study.text(option).split(",")
            return (values[at] if at < len(values) else "") or None

        maps = tuple(part for part in (part("eval_maps") or "").split("+") if part)
        dataset, summary = open_dataset(
            name,
            label_set=study.request.label_set,
            needs_labels=True,
            text_column=part("eval_text"),
            label_column=part("eval_label"),
            label_maps=maps,
            limit=limit,
            seed=study.run.seed,
        )
        _check_unchanged(study, number, summary)
        items = [
            msgspec.structs.replace(
                item, label=study.tokens.labels.index(dataset.labels[item.label])
            )
            for item in dataset
        ]
        found.append((Path(name).name, items, summary))
    return found


def _check_unchanged(study: Running, number: int, summary: DatasetSummary) -> None:
    digest = torch.tensor(list(summary.digest.encode()), dtype=torch.uint8)
    kept = study.stage(f"eval {number} digest", 1, lambda _n: {"digest": digest}).get(0)["digest"]
    if not torch.equal(kept, digest):
        raise UsageError(
            f"The dataset {summary.name} has changed since this run began.",
            todo="Begin again in another folder.",
        )
