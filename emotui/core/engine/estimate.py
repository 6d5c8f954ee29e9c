"""What inspecting one text will take at its peak, told before it is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from emotui.core.edits import FeatureEdit, JointEdit, parse_edit
from emotui.core.engine import memory
from emotui.core.engine.collect import TOKENS_PER_BATCH
from emotui.core.engine.lens_words import words_at_once
from emotui.core.engine.memory import Estimate, Shape
from emotui.core.engine.rerun import KEYS_AT_ONCE, TOKENS_AT_ONCE
from emotui.core.engine.text_features import READOUT_FEATURES, encoded_at_once
from emotui.core.engine.variants import MATCHED_FEATURES, RANDOM_DIRECTIONS
from emotui.core.errors import OutOfMemory
from emotui.core.sizes import in_bytes

if TYPE_CHECKING:
    import torch

    from emotui.core.engine.capture import Job
    from emotui.core.engine.model import LoadedModel
    from emotui.core.engine.saes import SaeSet


_CORPUS_TOKENS = 24
"""About what a text of the corpus and its template have."""
_CORPUS_ROWS = 96
"""How many there are: no more than these are ever run at once."""


def estimate_run(
    model: LoadedModel,
    sets: Sequence[SaeSet],
    n_tokens: int,
    *,
    all_sites: bool,
    attributes: bool,
    edits: Sequence[str] = (),
) -> Estimate:
    """Return what a text of `n_tokens` takes: its activations, a backward pass, and the SAEs.

    The SAEs are those that are not in memory yet and will be at the same time; the run is the
    most of forward, backward, encoding and what edits need, as they do not overlap.
    """
    held = model.over_devices(memory.held_bytes)
    parts: list[tuple[str, int]] = []
    if sets:
        parts.append(_of_saes(model, sets))
    steps = [_encoding(sets, n_tokens, model.dtype.itemsize)]
    if sets:
        steps.append(_naming(model))
    kept = 0
    if model.shape is not None:
        kept = model.shape.kept_bytes(n_tokens, all_sites=all_sites)
        steps.append(model.shape.forward_bytes(n_tokens, all_sites=all_sites))
        if attributes:
            steps.append(model.shape.backward_bytes(n_tokens, all_sites=all_sites))
        if edits:
            steps += _editing(model.shape, n_tokens, edits)
    run = kept + max(steps)
    if model.device.type == "cpu":
        run += max(0, memory.later_bytes() - _ran_before(model))
    parts.append((f"to run {n_tokens} tokens", run))
    return Estimate(held, tuple(parts), model.over_devices(memory.free_bytes))


def announce(estimate: Estimate, sets: Sequence[SaeSet], n_tokens: int, job: Job) -> None:
    """Say what a run will take where that is much and SAEs are still to be read."""
    reads = any(saes.missing() for saes in sets)
    if (reads and estimate.is_large) or 2 * estimate.added > estimate.free:
        job.notice(f"Reading {n_tokens} tokens: {estimate}.")


def too_much(model: LoadedModel, n_tokens: int, estimate: Estimate) -> OutOfMemory:
    """Return the error for a text that does not fit, with how many tokens would."""
    free = model.over_devices(memory.free_bytes)
    hint = ""
    if model.shape is not None:
        fitting = n_tokens
        while fitting > 1 and model.shape.forward_bytes(fitting, all_sites=False) > free:
            fitting //= 2
        hint = f"About {fitting:,} tokens would fit; or use "
    dtype = "--dtype bfloat16, " if model.dtype.itemsize > 2 else ""
    return OutOfMemory(
        f"There was not enough memory to read these {n_tokens:,} tokens.",
        why=f"It was estimated to take {in_bytes(estimate.added)}; "
        + memory.what_was_free(estimate.added, free, model.device),
        todo=f"{hint or 'Use '}{dtype}--metric none (no backward pass), a smaller --sae-memory or "
        "another --device. What was computed before is kept.",
    )


def _ran_before(model: LoadedModel) -> int:
    return memory.later_bytes() if model.forwards else 0


def _of_saes(model: LoadedModel, sets: Sequence[SaeSet]) -> tuple[str, int]:
    missing = [(sae, saes) for saes in sets for sae in saes.missing()]
    if not missing:
        return "of SAEs", 0
    sizes: dict[torch.device, list[int]] = {}
    for sae, saes in missing:
        sizes.setdefault(model.device_at(sae.layer), []).append(saes.size_of(sae))
    every = sum(size for several in sizes.values() for size in several)
    name = f"of SAEs ({len(missing)} to read, {in_bytes(every)} in all)"
    converted = max(saes.conversion_bytes() for _, saes in missing)
    return name, sets[0].held.will_hold(sizes) + converted


def _editing(shape: Shape, n_tokens: int, edits: Sequence[str]) -> list[int]:
    """Return what an edit's controls take, and the corpus that they are drawn from."""
    features = isinstance(parse_edit(edits[-1]), FeatureEdit | JointEdit)
    rows = RANDOM_DIRECTIONS + 3 + (MATCHED_FEATURES if features else 0)
    controls = shape.editing_bytes(
        n_tokens, rows=rows, at_once=TOKENS_AT_ONCE, keys_at_once=KEYS_AT_ONCE
    )
    corpus = shape.editing_bytes(
        _CORPUS_TOKENS,
        rows=_CORPUS_ROWS,
        at_once=TOKENS_PER_BATCH,
        keys_at_once=TOKENS_PER_BATCH,
    )
    return [controls, corpus]


def _naming(model: LoadedModel) -> int:
    """Return what the words that features promote take: logits of the features at the readout."""
    values = min(words_at_once(model.vocabulary), READOUT_FEATURES) * model.vocabulary
    itemsize = model.dtype.itemsize
    return values * (itemsize if itemsize == memory.FLOAT else itemsize + memory.FLOAT)


def _encoding(sets: Sequence[SaeSet], n_tokens: int, itemsize: int) -> int:
    widths = [sae.width for saes in sets for sae in saes]
    return max(
        (
            memory.encoding_bytes(min(n_tokens, encoded_at_once(width)), width, itemsize)
            for width in set(widths)
        ),
        default=0,
    )
