"""The model's own answer: which emotion word it would write next.

Each label stands for the tokens of " label" (of "label" after a chat turn mark). The first rule
that keeps all labels apart is used:

    first_token           their first tokens differ: softmax over the readout's logits of these
    after_shared_prefix   they share their first tokens: these are appended to the prompt, and the
                          next tokens are compared there (one more forward)
    whole_label           else: softmax over the summed log-probability of each whole label (one
                          more forward, one row per label)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from safetensors.torch import load as tensors_from_bytes
from torch import Tensor

from emotui.core.emotions import LABEL_SETS
from emotui.core.engine.capture import Activations, Job, capture, hooked
from emotui.core.engine.layered import Layered
from emotui.core.engine.model import LoadedModel
from emotui.core.engine.packed import tensors_to_bytes
from emotui.core.engine.tokens import TokenReader
from emotui.core.errors import CacheError
from emotui.core.records import Answer, AnswerRule
from emotui.core.text import Template


@dataclass(frozen=True)
class LabelTokens:
    """How the labels of a set are told apart by this tokenizer."""

    set: str
    labels: tuple[str, ...]
    sequences: tuple[tuple[int, ...], ...]
    """The tokens of each label."""
    prefix: tuple[int, ...]
    """What the labels share and is appended to the prompt; () but under after_shared_prefix."""
    rule: AnswerRule

    @property
    def deciding(self) -> tuple[int, ...]:
        """The token of each label that is compared; not meant for `whole_label`."""
        return tuple(sequence[len(self.prefix)] for sequence in self.sequences)

    @property
    def room(self) -> int:
        """How many tokens beyond the prompt must fit into the context to read the answer."""
        if self.rule == "whole_label":
            return max(len(sequence) for sequence in self.sequences) - 1
        return len(self.prefix)


@dataclass(frozen=True)
class AnswerReading:
    """The scores of the labels, and where the deciding token was read."""

    answer: Answer
    label_tokens: LabelTokens
    scores: Tensor
    """[labels]: logits, or log-probabilities under `whole_label`."""
    resid: Layered | None
    """[layers, d_model]: the residuals at the deciding position; None under `whole_label`."""


def label_tokens(reader: TokenReader, label_set: str, template: Template) -> LabelTokens:
    """Return the tokens of the labels and the rule that keeps them apart."""
    return tokens_of_words(reader, label_set, LABEL_SETS[label_set], template)


def tokens_of_words(
    reader: TokenReader, name: str, labels: tuple[str, ...], template: Template
) -> LabelTokens:
    """Return the tokens of any words an answer is chosen from, as `label_tokens` does."""
    lead = "" if template.chat else " "
    sequences = tuple(reader.continuation_ids(lead + label) for label in labels)
    if _distinct([sequence[0] for sequence in sequences]):
        return LabelTokens(name, labels, sequences, (), "first_token")
    shared = _shared_start(sequences)
    shortest = min(len(sequence) for sequence in sequences)
    if (
        shared
        and len(shared) < shortest
        and _distinct([sequence[len(shared)] for sequence in sequences])
    ):
        return LabelTokens(name, labels, sequences, shared, "after_shared_prefix")
    return LabelTokens(name, labels, sequences, (), "whole_label")


def read_answer(
    model: LoadedModel,
    activations: Activations,
    tokens: LabelTokens,
    *,
    stored: bytes | None = None,
    job: Job | None = None,
) -> AnswerReading:
    """Return the probabilities of the labels after this prompt.

    `stored` is what `to_bytes` gave for the same activations and labels; with it, or under the
    first rule, no forward pass is made.
    """
    if tokens.rule == "first_token":
        scores = activations.logits[list(tokens.deciding)]
        resid: Layered | None = _deciding(activations)
    elif stored is not None:
        scores, resid = _from_bytes(stored, model.devices)
    elif tokens.rule == "after_shared_prefix":
        prompt = [*activations.token_ids, *tokens.prefix]
        after = capture(model, prompt, job=job)
        scores, resid = after.logits[list(tokens.deciding)], _deciding(after)
    else:
        with hooked(model, (), job=job):
            scores = whole_label_scores(model, activations.token_ids, tokens.sequences)
        resid = None
    probabilities = scores.float().softmax(dim=-1).tolist()
    answer = Answer(
        labels=dict(zip(tokens.labels, probabilities, strict=True)),
        set=tokens.set,
        rule=tokens.rule,
        prompts=len(tokens.labels) if tokens.rule == "whole_label" else 1,
        mass=_mass(activations, tokens),
        fragments=fragments_of(model.reader, tokens),
    )
    return AnswerReading(answer, tokens, scores, resid)


def fragments_of(reader: TokenReader, tokens: LabelTokens) -> dict[str, str]:
    """Return the labels that go on after the token they are compared by, and that token."""
    if tokens.rule == "whole_label":
        return {}
    compared = len(tokens.prefix) + 1
    return {
        label: reader.string(sequence[compared - 1])
        for label, sequence in zip(tokens.labels, tokens.sequences, strict=True)
        if len(sequence) > compared
    }


def _deciding(activations: Activations) -> Layered:
    """Return the residual after each block at the last token, [layers, d_model]."""
    return activations.kept["resid"].since(1).each(lambda part: part[:, -1])


def _mass(activations: Activations, tokens: LabelTokens) -> float | None:
    if tokens.rule != "first_token":
        return None
    shares = activations.logits.float().softmax(dim=-1)
    return float(shares[list(tokens.deciding)].sum())


def to_bytes(reading: AnswerReading) -> bytes | None:
    """Return what spares the extra forward next time; None where there was none."""
    if reading.label_tokens.rule == "first_token":
        return None
    tensors = {"scores": reading.scores.detach().contiguous()}
    if reading.resid is not None:
        tensors["resid"] = reading.resid.whole().detach().contiguous()
    payload: bytes = tensors_to_bytes(tensors)
    return payload


def _from_bytes(payload: bytes, devices: Sequence[torch.device]) -> tuple[Tensor, Layered | None]:
    # safetensors raises a type of its own that derives from Exception alone.
    try:
        tensors = tensors_from_bytes(payload)
        scores = tensors["scores"].to(devices[0])
        resid = Layered.placed(tensors["resid"], devices[1:]) if "resid" in tensors else None
    except Exception as error:
        raise CacheError(
            "A cache entry does not hold an answer.",
            why=f"{type(error).__name__} while reading it.",
            todo="Run `emotui cache verify`.",
        ) from error
    return scores, resid


def whole_label_scores(
    model: LoadedModel, prompt: Sequence[int], sequences: Sequence[Sequence[int]]
) -> Tensor:
    """Return the summed log-probability of each sequence after the prompt, float32 [labels].

    One forward, a row per sequence, padded on the right: under causal attention what stands to
    the right of a position does not reach it, so no mask is needed.
    """
    longest = max(len(sequence) for sequence in sequences)
    # The last token of a label is predicted, never read.
    rows = [[*prompt, *s[:-1], *[s[-1]] * (longest - len(s))] for s in sequences]
    logits = model.forward(rows, keep=longest)
    log_probabilities = logits.float().log_softmax(dim=-1)
    return torch.stack(
        [
            torch.stack([row[step, token] for step, token in enumerate(sequence)]).sum()
            for row, sequence in zip(log_probabilities, sequences, strict=True)
        ]
    )


def _shared_start(sequences: Sequence[Sequence[int]]) -> tuple[int, ...]:
    columns = zip(*sequences, strict=False)
    return tuple(column[0] for column in takewhile(lambda c: len(set(c)) == 1, columns))


def _distinct(ids: Sequence[int]) -> bool:
    return len(set(ids)) == len(ids)
