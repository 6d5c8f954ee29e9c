"""How likely each word of a list is as the next word of a prompt, without generation (METHODS 5).

A word is scored by the summed log-probability of the tokens of " word". The prompt is run once; its
keys and values are shared by the words of several tokens, whose beginnings are the rows of further
forwards. `p` is the softmax over the list; corrected for how frequent words are, the scores after
a neutral text are subtracted first (pointwise mutual information).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emotui.core.emotion_terms import Term
from emotui.core.engine.capture import Hook, hooked
from emotui.core.engine.runs import check_finite
from emotui.core.errors import UsageError

if TYPE_CHECKING:
    from emotui.core.engine.capture import Job
    from emotui.core.engine.model import LoadedModel
    from emotui.core.engine.tokens import TokenReader

NEUTRAL_TEXT = "Something happened."
"""What stands in the text's place for the scores that are subtracted."""
_ROWS_AT_ONCE = 256
_LOGITS_AT_ONCE = 64_000_000


@dataclass(frozen=True)
class TermTokens:
    """Words, and the tokens of each."""

    terms: tuple[Term, ...]
    sequences: tuple[tuple[int, ...], ...]

    @cached_property
    def beginnings(self) -> tuple[tuple[int, ...], ...]:
        """All but the last token of words of several; one that begins another is left out."""
        found = sorted({sequence[:-1] for sequence in self.sequences if len(sequence) > 1})
        # Sorted, what begins another stands right before one that it begins.
        return tuple(
            one
            for one, following in zip(found, [*found[1:], ()], strict=True)
            if following[: len(one)] != one
        )

    @cached_property
    def later(self) -> tuple[int, ...]:
        """The tokens that some word has behind its first."""
        return tuple(sorted({token for sequence in self.sequences for token in sequence[1:]}))

    @cached_property
    def weights(self) -> Tensor:
        """[terms, 8], float32."""
        return torch.tensor([term.weights for term in self.terms])

    @cached_property
    def room(self) -> int:
        """How many tokens beyond the prompt must fit into the context."""
        return max(len(sequence) for sequence in self.sequences) - 1


def term_tokens(reader: TokenReader, terms: Sequence[Term], *, chat: bool) -> TermTokens:
    """Return the tokens of words as they stand after a prompt.

    UsageError where two words have the same tokens, as unknown characters may give.
    """
    lead = "" if chat else " "
    sequences = tuple(reader.continuation_ids(lead + term.term) for term in terms)
    if len(set(sequences)) < len(sequences) or not all(sequences):
        raise UsageError(
            "Some of the words cannot be told apart by this model.",
            why="Its tokenizer writes two of them with the same tokens, or one with none.",
            todo="Leave them out of the table (--terms).",
        )
    return TermTokens(tuple(terms), sequences)


@torch.no_grad()
def score_terms(
    model: LoadedModel,
    prompt: Sequence[int],
    tokens: TermTokens,
    *,
    hooks: Sequence[Hook] = (),
    layers: bool = False,
    job: Job | None = None,
) -> Tensor:
    """Return the log-probability of each word after a prompt, float32 [layers or 1, terms].

    `hooks` are in force while the prompt runs and count tokens from its start. With `layers`, a
    row for each layer of the logit lens, the last being the model's own.
    """
    from transformers import DynamicCache

    past = DynamicCache(config=model.hf.config)
    after_prompt = _log_probabilities(model, [list(prompt)], past, hooks, layers, job)
    first = after_prompt([-1])[:, 0, 0]
    later = _later(model, tokens, past, layers, job) if tokens.beginnings else {}
    column = {token: number for number, token in enumerate(tokens.later)}
    columns = []
    for sequence in tokens.sequences:
        total = first[:, sequence[0]]
        for length in range(1, len(sequence)):
            total = total + later[sequence[:length]][:, column[sequence[length]]]
        columns.append(total)
    return torch.stack(columns, dim=1).cpu()


def _later(
    model: LoadedModel, tokens: TermTokens, past: Any, layers: bool, job: Job | None
) -> dict[tuple[int, ...], Tensor]:
    """Return what follows every beginning of a word: [layers or 1, `tokens.later`]."""
    found: dict[tuple[int, ...], Tensor] = {}
    longest = max(len(one) for one in tokens.beginnings)
    at_once = max(1, min(_ROWS_AT_ONCE, _LOGITS_AT_ONCE // (longest * model.vocabulary)))
    for start in range(0, len(tokens.beginnings), at_once):
        some = tokens.beginnings[start : start + at_once]
        own = copy.deepcopy(past)
        own.batch_repeat_interleave(len(some))
        rows = [[*one, *[one[-1]] * (longest - len(one))] for one in some]
        read = _log_probabilities(model, rows, own, (), layers, job)
        values = read(range(longest))[..., list(tokens.later)]
        for row, one in enumerate(some):
            for length in range(1, len(one) + 1):
                found[one[:length]] = values[:, row, length - 1]
    return found


def _log_probabilities(
    model: LoadedModel,
    rows: Sequence[Sequence[int]],
    past: Any,
    hooks: Sequence[Hook],
    layers: bool,
    job: Job | None,
) -> Callable[[Sequence[int]], Tensor]:
    """Run rows; return a function of positions that gives [layers or 1, rows, positions, vocab].

    Float32. The logit lens takes the residual of each layer as if it were the last.
    """
    kept: dict[int, Tensor] = {}

    def keep(layer: int) -> Hook:
        def function(tensor: Tensor) -> None:
            kept[layer] = tensor.detach().clone()

        return Hook("resid", layer, function)

    top = model.n_layers - 1
    below = range(top) if layers else range(0)
    # Only the last position of a prompt is read: its logits need not be made at every token.
    whole = 0 if len(rows) > 1 or past.get_seq_length() else 1
    with hooked(model, (*hooks, *(keep(layer) for layer in (*below, top))), job=job):
        logits = model.forward(rows, keep=whole, past=past)
    if hooks:
        check_finite(kept[top], logits=logits)

    def read(positions: Sequence[int]) -> Tensor:
        where = list(positions)
        found = [model.sites.logits_of(kept[layer][:, where]) for layer in below]
        found.append(logits[:, where])
        return torch.stack([one.float().log_softmax(dim=-1).to(logits.device) for one in found])

    return read


@dataclass(frozen=True)
class Profile:
    """What a distribution over words is made of."""

    weights: Tensor
    """[..., 8]: sum over words of p times the word's weights (METHODS 5)."""
    undecomposed: Tensor
    """[...]: the share of words that are made of none of the eight."""
    entropy: Tensor
    """[...], nats, over the list."""


def profile_of(p: Tensor, weights: Tensor) -> Profile:
    """Return the profile of distributions [..., terms] over words with weights [terms, 8]."""
    p, weights = p.double(), weights.double()
    empty = (weights == 0).all(dim=-1).double()
    entropy = -torch.special.xlogy(p, p).sum(dim=-1)
    return Profile(p @ weights, p @ empty, entropy)
