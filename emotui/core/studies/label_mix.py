"""What a model writes while its residual is moved, and what it answers about that, unmoved.

A text is continued with a vector added to the residual of one or more layers, at its last token
and at every token that is written. What was written is then read alone, in the prompt of the
study, by the model as it is: an edited reading of an edited text would confirm itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import torch
from torch import Tensor

from emotui.core.engine.capture import Hook, HookFunction, Job
from emotui.core.engine.speak import generate
from emotui.core.errors import TextError
from emotui.core.studies.common.readings import run_batch
from emotui.core.studies.common.report import Table
from emotui.core.studies.common.within import Within

if TYPE_CHECKING:
    from emotui.core.engine.model import LoadedModel
    from emotui.core.studies.common.running import Running

NEW_TOKENS = 24


class LabelMix(msgspec.Struct, frozen=True, kw_only=True):
    """Answers about what was written under one condition."""

    condition: str
    strength: float
    """In units of the mean norm; 0 for the model as it is."""
    texts: int
    answers: dict[str, int]
    """Label to texts."""
    empty: int
    """Where nothing was written, or the text was too long to be continued."""


@dataclass(frozen=True)
class Condition:
    """What is added while texts are written."""

    name: str
    strength: float
    vectors: Sequence[Mapping[int, Tensor]]
    """Layer to vector [d_model]; texts take these in turn. A single empty one for nothing."""


def label_mixes(
    study: Running, texts: Sequence[str], conditions: Sequence[Condition], stage: str
) -> tuple[LabelMix, ...]:
    """Continue every text under every condition, greedily, and read what was written."""

    def work(number: int) -> dict[str, Tensor]:
        condition = conditions[number]
        return {
            "answers": torch.tensor(
                [
                    _answer(study, text, condition.vectors[n % len(condition.vectors)])
                    for n, text in enumerate(texts)
                ],
                dtype=torch.long,
            )
        }

    chunks = study.stage(stage, len(conditions), work, phase="writing and reading again")
    labels, mixes = study.tokens.labels, []
    for condition, chunk in zip(conditions, chunks, strict=True):
        counts = Counter(chunk["answers"].tolist())
        mixes.append(
            LabelMix(
                condition=condition.name,
                strength=condition.strength,
                texts=len(texts),
                answers={label: counts[n] for n, label in enumerate(labels) if counts[n]},
                empty=counts[-1],
            )
        )
    return tuple(mixes)


def _answer(study: Running, text: str, vectors: Mapping[int, Tensor]) -> int:
    """Return the answer about what follows the text, as an index; -1 where nothing does."""
    model = study.model
    prompt = model.reader.prompt_ids(text)
    try:
        tokens = written_under(model, prompt, vectors, job=Within(study.job))
        written = model.reader.decode(tokens, after=prompt).strip()
        if not written:
            return -1
        ids = [token.id for token in study.read(written).tokens]
    except TextError:
        return -1
    return int(run_batch(model, [ids], study.tokens, job=study.job).scores[0].argmax())


def written_under(
    model: LoadedModel,
    prompt: Sequence[int],
    vectors: Mapping[int, Tensor],
    *,
    new_tokens: int = NEW_TOKENS,
    job: Job | None = None,
) -> tuple[int, ...]:
    """Return what follows a prompt, greedily, with a vector [d_model] added to some layers'
    residual at its last token and at every new one.

    TextError where it would be longer than the context.
    """
    hooks = [Hook("resid", layer, _adding(vector)) for layer, vector in vectors.items()]
    return generate(model, prompt, new_tokens=new_tokens, hooks=hooks, job=job)


def _adding(vector: Tensor) -> HookFunction:
    def function(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        moved = tensor[:, -1].float() + vector.to(tensor.device)
        changed[:, -1] = moved.to(tensor.dtype)
        return changed

    return function


def table_of(mixes: Sequence[LabelMix], labels: Sequence[str]) -> Table:
    """Return the shares of answers by condition."""
    return Table(
        "Answers about what was written, read again unmoved (share of texts)",
        ("condition", "strength", "texts", *labels, "empty"),
        tuple(
            (
                *(mix.condition, mix.strength, mix.texts),
                *(mix.answers.get(label, 0) / mix.texts for label in labels),
                mix.empty / mix.texts,
            )
            for mix in mixes
        ),
    )
