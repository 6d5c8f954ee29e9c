"""The few-shot baseline: the training examples, with their labels, before the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import torch
from torch import Tensor

from emotui.core.errors import TextError
from emotui.core.studies.common.readings import run_batch
from emotui.core.text import Template

if TYPE_CHECKING:
    from emotui.core.studies.common.running import Running

Example = tuple[int, str]
"""Label, as an index of the label set, and text."""
_CONTEXT = "Context: "


def with_examples(template: Template, examples: Sequence[tuple[str, str]]) -> Template:
    """Return a template in which texts with their labels stand before the text, asked alike."""
    opening = template.before.removesuffix(_CONTEXT)
    joint = _CONTEXT if template.before.endswith(_CONTEXT) else ""
    between = " " if joint else "\n"
    shots = "".join(f"{joint}{text}{template.after} {label}{between}" for text, label in examples)
    return msgspec.structs.replace(template, before=f"{opening}{shots}{joint}")


def few_shot_scores(
    study: Running, text: str, examples: Sequence[Example], counts: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the labels' scores [counts, labels] after the first `counts` examples, and how many
    of these fitted into the context [counts]: examples go shot by shot, a label after the other.
    """
    scores, used = [], []
    done: dict[int, Tensor] = {}
    most = len(examples)
    for count in counts:
        fitted = min(count, most)
        while fitted not in done:
            prompt = _prompt(study, text, examples[:fitted])
            if prompt is not None:
                batch = run_batch(study.model, [prompt], study.tokens, job=study.job)
                done[fitted] = batch.scores[0]
            else:
                most = fitted = fitted - max(1, fitted // 8)
        scores.append(done[fitted])
        used.append(fitted)
    return torch.stack(scores), torch.tensor(used)


def _prompt(study: Running, text: str, examples: Sequence[Example]) -> list[int] | None:
    labels = study.tokens.labels
    template = with_examples(study.template, [(shot, labels[k]) for k, shot in examples])
    room = study.model.context_length - study.tokens.room
    try:
        record = study.model.reader.read(text, template, context_length=room)
    except TextError:
        if not examples:
            raise
        return None
    return [token.id for token in record.tokens]
