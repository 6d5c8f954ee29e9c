"""From what a user asked to a request the cache and the engine agree on, without torch."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from emotui.cache.keys import known_fingerprint, known_request_key
from emotui.cache.probes import DEFINED
from emotui.core.emotions import LABEL_SETS
from emotui.core.protocol import InspectRequest

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
    store: Store, fingerprint: str, *, template: str, label_set: str
) -> tuple[str, ...]:
    """Return the ids of the newest probe of each kind fitted for this model, template and set.

    Readout probe first, then those of emotions that the user defined, by name; () where none was
    fitted.
    """
    newest: dict[tuple[str, str], str] = {}
    for card in store.probes(fingerprint):
        name = card.label_set.removeprefix(DEFINED)
        own = card.label_set.startswith(DEFINED) and name not in LABEL_SETS.get(label_set, ())
        if card.template == template and (own or card.label_set == label_set):
            newest.setdefault(("" if card.label_set == label_set else name, card.kind), card.id)
    return tuple(newest[place] for place in sorted(newest))


def prepare(request: InspectRequest, store: Store, *, fingerprint: str | None = None) -> Prepared:
    """Fill in the probes in force and look the request up.

    `fingerprint` is the engine's, where it has loaded the model; None asks what can be told at
    once. Raises what `known_fingerprint` and `request_key` raise.
    """
    known = fingerprint or known_fingerprint(request.spec, store)
    if known is None:
        return Prepared(request, None, None)
    probes = request.probes or probes_in_force(
        store, known, template=request.template, label_set=request.label_set
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
