"""Questions about one text: answered from the cache where it has the answer, else by an engine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from emotui.commands.common import say, wait_for
from emotui.core.protocol import InspectRequest, Loaded, LoadRequest, Operation, Outcome

if TYPE_CHECKING:
    from emotui.cache.store import Store

WITHOUT_PROBES = (
    "No probes are fitted for this model and template, so only the answer is read; "
    "`emotui probe fit` fits them."
)
"""Said where a text is read without probes."""
_Found = TypeVar("_Found")


def answered(
    request: InspectRequest,
    root: Path,
    question: Callable[[InspectRequest], Operation],
    found: Callable[[Outcome], _Found],
    *,
    known: Callable[[InspectRequest, Store, str], _Found | None] | None = None,
    without_probes: str = "",
) -> tuple[str, _Found]:
    """Ask about the text of `request`, the probes in force; return model fingerprint and answer.

    `question` makes of that request what is asked, and `found` takes the answer out of the outcome.
    `known` looks in the cache `root` first, for the weights with a fingerprint: where it finds the
    answer no engine is started. `without_probes` is said where an engine is asked without any.
    """
    from emotui.cache.prepare import prepare
    from emotui.cache.store import Store
    from emotui.core.client import EngineClient

    with Store.open(root) as store:
        if known is not None:
            prepared = prepare(request, store)
            if prepared.fingerprint is not None:
                kept = known(prepared.request, store, prepared.fingerprint)
                if kept is not None:
                    return prepared.fingerprint, kept
        with EngineClient(root, offline=request.spec.offline) as client:
            loaded = wait_for(client.submit(LoadRequest(request.spec, request.cache_dir)))
            assert isinstance(loaded, Loaded)
            ready = prepare(request, store, fingerprint=loaded.fingerprint).request
            if without_probes and not ready.probes:
                say(without_probes)
            return loaded.fingerprint, found(wait_for(client.submit(question(ready))))


def tell(page: str, document: bytes, *, as_json: bool) -> None:
    """Print an answer on stdout: the page, or the JSON document."""
    if as_json:
        sys.stdout.buffer.write(document)
    else:
        sys.stdout.write(page)
    sys.stdout.flush()
