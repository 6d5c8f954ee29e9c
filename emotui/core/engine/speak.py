"""Continuing a text: one token at a time through the hooked model, with its key-value cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from emotui.core.engine.capture import Hook, Job, hooked
from emotui.core.engine.model import LoadedModel
from emotui.core.errors import TextError, UsageError
from emotui.core.protocol import Generated, GenerateRequest


def next_tokens(
    model: LoadedModel,
    prompt_ids: Sequence[int],
    *,
    temperature: float = 0.0,
    seed: int = 0,
    hooks: Sequence[Hook] = (),
    step_hooks: Sequence[Hook] | None = None,
    job: Job | None = None,
) -> Iterator[int]:
    """Yield the tokens that follow a prompt, without end.

    Greedy at temperature 0, else drawn from the softmax of logits / temperature by a generator of
    its own on the CPU, so the same seed draws the same on every device. `hooks` see the whole
    prompt [1, tokens, width] first, then one token [1, 1, width] per step, unless `step_hooks`
    are given, which then see that one; hooks are off between steps.
    """
    from transformers import DynamicCache

    past = DynamicCache(config=model.hf.config)
    generator = torch.Generator().manual_seed(seed)
    ids, in_force = list(prompt_ids), hooks
    while True:
        with hooked(model, in_force, job=job):
            logits = model.forward([ids], past=past)[0, -1]
        token = _choose(logits, temperature, generator)
        yield token
        ids, in_force = [token], hooks if step_hooks is None else step_hooks


def _choose(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    probabilities = (logits.float() / temperature).softmax(dim=-1).cpu()
    return int(torch.multinomial(probabilities, 1, generator=generator))


def generate(
    model: LoadedModel,
    prompt_ids: Sequence[int],
    *,
    new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    hooks: Sequence[Hook] = (),
    step_hooks: Sequence[Hook] | None = None,
    job: Job | None = None,
    tell: Callable[[Sequence[int]], None] | None = None,
) -> tuple[int, ...]:
    """Return up to `new_tokens` tokens after a prompt; the end-of-text token ends them.

    Hooks as in `next_tokens`. After each token the job's progress is reported, or, where it is
    given, `tell` is called with the tokens so far.
    TextError where prompt and new tokens together are longer than the context.
    """
    if temperature < 0:
        raise UsageError(f"A temperature of {temperature} cannot be meant.", todo="Use 0 or more.")
    needed, limit = len(prompt_ids) + new_tokens, model.context_length
    if limit and needed > limit + 1:
        raise TextError(
            f"The text is too long to be continued by {new_tokens:,} tokens.",
            why=f"It has {len(prompt_ids):,} tokens; this model reads at most {limit:,}.",
            todo=f"Ask for at most {max(limit + 1 - len(prompt_ids), 0):,}.",
        )
    written: list[int] = []
    steps = next_tokens(
        model,
        prompt_ids,
        temperature=temperature,
        seed=seed,
        hooks=hooks,
        step_hooks=step_hooks,
        job=job,
    )
    while len(written) < new_tokens:
        token = next(steps)
        if token == model.reader.eos_id:
            break
        written.append(token)
        if tell is not None:
            tell(written)
        elif job is not None:
            job.progress("writing", len(written), new_tokens)
    return tuple(written)


def speak(request: GenerateRequest, model: LoadedModel, job: Job) -> Generated:
    """Continue the text of a request; an empty text continues BOS alone where there is one."""
    prompt_ids = model.reader.prompt_ids(request.text)
    if not prompt_ids:
        raise TextError("The text is empty.", todo="Give a text with at least one word.")
    tokens = generate(
        model,
        prompt_ids,
        new_tokens=request.new_tokens,
        temperature=request.temperature,
        seed=request.seed,
        job=job,
    )
    return Generated(text=model.reader.decode(tokens, after=prompt_ids), tokens=tokens)
