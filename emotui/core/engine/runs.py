"""Runs of a prompt, plain or under edits: from the store where they are, else by one forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import torch
from torch import Tensor

from emotui.cache.keys import content_key, derived_key
from emotui.core.engine.capture import Activations, Job, capture, with_key
from emotui.core.engine.intervene import EditGroup, hooks_of
from emotui.core.errors import CacheError, EditError

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.engine.model import LoadedModel


def activations_of(
    model: LoadedModel,
    store: Store,
    token_ids: Sequence[int],
    *,
    all_sites: bool,
    job: Job,
) -> Activations:
    """Return the activations of a prompt, from the store where they are, else by one forward.

    An entry that kept more than is asked for serves too, and is narrowed to what was asked.
    """
    held = stored_activations(model, store, token_ids, all_sites=all_sites)
    if held is not None:
        return held
    computed = capture(model, token_ids, all_sites=all_sites, job=job)
    return kept_activations(model, store, computed, all_sites=all_sites)


def stored_activations(
    model: LoadedModel, store: Store, token_ids: Sequence[int], *, all_sites: bool
) -> Activations | None:
    """Return the activations of a prompt where the store has them, narrowed to what was asked."""
    wanted = activations_key(model, token_ids, all_sites=all_sites)
    for more_sites in dict.fromkeys([all_sites, True]):
        key = activations_key(model, token_ids, all_sites=more_sites)
        stored = store.get_entry("activations", key)
        if stored is None:
            continue
        try:
            held = Activations.from_bytes(stored, key=wanted, devices=model.devices)
        except CacheError:
            continue  # whole, but not what this version writes: computed again below
        return held.narrowed(all_sites=all_sites)
    return None


def kept_activations(
    model: LoadedModel, store: Store, computed: Activations, *, all_sites: bool
) -> Activations:
    """Put the activations of a plain run into the store and return them under their key."""
    key = activations_key(model, computed.token_ids, all_sites=all_sites)
    store.put_entry("activations", key, computed.to_bytes())
    return with_key(computed, key)


def edited_activations_of(
    model: LoadedModel,
    store: Store,
    clean: Activations,
    groups: Sequence[EditGroup],
    *,
    all_sites: bool,
    job: Job,
) -> Activations:
    """Return the activations of the prompt of `clean` under edits; `clean` itself without any.

    EditError where they grow beyond what float32 holds: nothing that is read of them is a number.
    """
    if not groups:
        return clean
    said = msgspec.json.encode([group.identity for group in groups]).decode()
    key = derived_key(clean.key, f"edits:{said}")
    stored = store.get_entry("activations", key)
    if stored is not None:
        try:
            return Activations.from_bytes(stored, key=key, devices=model.devices)
        except CacheError:
            pass  # whole, but not what this version writes: computed again below
    computed = capture(model, clean.token_ids, all_sites=all_sites, hooks=hooks_of(groups), job=job)
    check_finite(*computed.kept["resid"].parts, logits=computed.logits)
    store.put_entry("activations", key, computed.to_bytes())
    return with_key(computed, key)


def check_finite(*resid: Tensor, logits: Tensor) -> None:
    """Raise EditError for a run whose logits, or whose squared norms, are no numbers in float32.

    `resid` are [..., d_model], `logits` of any shape.
    """
    norms = [torch.linalg.vector_norm(one, dim=-1, dtype=torch.float32) for one in resid]
    # The square is what norms and effects are computed from.
    if all(bool(one.isfinite().all()) for one in (*(norm.square() for norm in norms), logits)):
        return
    raise EditError(
        "The edit made the activations too large to compute with.",
        why="Their norms are beyond what float32 holds.",
        todo="Use a smaller amount; the unit of steering is the mean norm of the residual stream.",
    )


def activations_key(model: LoadedModel, token_ids: Sequence[int], *, all_sites: bool) -> str:
    """Return the content key of a plain run of these tokens."""
    elsewhere = "all" if all_sites else "readout"
    sites = ["resid:all", f"attn:{elsewhere}", f"mlp:{elsewhere}"]
    sites += ["z:all"] if all_sites else []
    return content_key(
        fingerprint=model.fingerprint,
        token_ids=token_ids,
        dtype=model.dtype_name,
        device_type=model.device.type,
        attention=model.attention,
        sites=sites,
    )
