"""From what a user asked to a request the cache and the engine agree on, without torch."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from emotui.cache.keys import known_fingerprint, known_request_key
from emotui.cache.probes import DEFINED, ProbeCard, card_named
from emotui.core.emotions import DEFAULT_LABEL_SET, LABEL_SETS
from emotui.core.errors import ProbeError
from emotui.core.protocol import InspectRequest
from emotui.core.text import clean

if TYPE_CHECKING:
    from emotui.cache.store import Store


class Prepared(msgspec.Struct, frozen=True):
    """A request with the probes in force, and what is known of it before any engine starts."""

    request: InspectRequest
    fingerprint: str | None
    """None where only the engine can tell which weights these are."""
    trace_id: str | None
    """A readable trace that answers the request already."""


def probes_in_force(
    store: Store,
    fingerprint: str,
    *,
    template: str,
    label_set: str,
    chosen: Sequence[str] = (),
) -> tuple[str, ...]:
    """Return the ids of the probes that read, one of each kind for this model, template and set.

    Of several: a full fit before a preview, then the one of the most emotions, then the newest;
    before all of them those `chosen` (ids or their beginnings), of any label set, each with the
    other kind of the same fit. Readout probe first, then those of emotions that the user defined,
    by name; () where none was fitted. ProbeError where a chosen one is not there, or is of another
    model or template, and where two take one place.
    """
    cards = store.probes(fingerprint)
    named = _chosen(store, cards, fingerprint, template, chosen)
    found: dict[tuple[str, str], str] = {}
    for card in named:
        if found.setdefault(_place(card), card.id) != card.id:
            raise ProbeError(
                f"Two {card.kind} probes were chosen.",
                why=f"{found[_place(card)]} and {card.id} read the same places.",
                todo="Name one of them with --probe.",
            ).of_input()
    for card in named:
        other = next((one for one in cards if one.kind != card.kind and _one_fit(one, card)), None)
        if other is not None:
            found.setdefault(_place(other), other.id)
    # The sort keeps the newest first among equals.
    for card in sorted(cards, key=lambda card: (card.preview, -len(card.emotions))):
        name = card.label_set.removeprefix(DEFINED)
        own = card.label_set.startswith(DEFINED) and name not in LABEL_SETS.get(label_set, ())
        if card.template == template and (own or card.label_set == label_set):
            found.setdefault(_place(card), card.id)
    return tuple(found[place] for place in sorted(found))


def ids_in_force(store: Store) -> frozenset[str]:
    """Return the ids of all probes that read where none is chosen, of any model and template."""
    asked = {(card.fingerprint, card.template, _set_of(card)) for card in store.probes()}
    return frozenset(
        name
        for fingerprint, template, label_set in asked
        for name in probes_in_force(store, fingerprint, template=template, label_set=label_set)
    )


def _set_of(card: ProbeCard) -> str:
    return DEFAULT_LABEL_SET if card.label_set.startswith(DEFINED) else card.label_set


def _place(card: ProbeCard) -> tuple[str, str]:
    """Return what only one probe is in force for: a kind, and an emotion that the user defined."""
    own = card.label_set.startswith(DEFINED)
    return card.label_set.removeprefix(DEFINED) if own else "", card.kind


def _one_fit(first: ProbeCard, second: ProbeCard) -> bool:
    same = ("label_set", "emotions", "template", "data", "judged_on", "n_texts")
    return all(getattr(first, name) == getattr(second, name) for name in same)


def _chosen(
    store: Store,
    cards: Sequence[ProbeCard],
    fingerprint: str,
    template: str,
    chosen: Sequence[str],
) -> list[ProbeCard]:
    named = []
    for name in dict.fromkeys(chosen):
        own = [card for card in cards if name and card.id.startswith(name)]
        card = card_named(own or store.probes(), name)
        if card.fingerprint != fingerprint:
            raise ProbeError(
                f"The probe {card.id} is of another model.",
                why=f"It was fitted on {clean(card.model)}.",
                todo="`emotui probe list` shows which probes there are; --model names the model.",
            ).of_input()
        if card.template != template:
            raise ProbeError(
                f"The probe {card.id} reads another prompt.",
                why=f"It was fitted with the template {clean(card.template)}, and this is "
                f"{clean(template)}.",
                todo=f"Add --template {clean(card.template)}, or choose another probe.",
            ).of_input()
        named.append(card)
    return named


def prepare(request: InspectRequest, store: Store, *, fingerprint: str | None = None) -> Prepared:
    """Fill in the probes in force and look the request up.

    `fingerprint` is the engine's, where it has loaded the model; None asks what can be told at
    once. Raises what `known_fingerprint` and `request_key` raise.
    """
    known = fingerprint or known_fingerprint(request.spec, store)
    if known is None:
        return Prepared(request, None, None)
    probes = request.probes or probes_in_force(
        store,
        known,
        template=request.template,
        label_set=request.label_set,
        chosen=request.chosen,
    )
    request = msgspec.structs.replace(request, probes=probes)
    key = known_request_key(request, store)
    return Prepared(request, known, store.find_trace(key) if key else None)


@contextmanager
def private_cache(cache_dir: Path) -> Iterator[Path]:
    """Yield a folder for this session's texts that is removed at the end.

    It shares the fitted probes, converted SAEs and feature labels of `cache_dir`, which hold no
    text, and reads its recipes.
    """
    folder = Path(tempfile.mkdtemp(prefix="emotui-private-"))
    try:
        for name in ("probes", "saes", "labels", "recipes"):
            shared = cache_dir / name
            shared.mkdir(mode=0o700, parents=True, exist_ok=True)
            (folder / shared.name).symlink_to(shared.absolute(), target_is_directory=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
