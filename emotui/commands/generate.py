"""`emotui generate`: the text continued without edits and with them, same seeds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from emotui.cache.demo import is_demo
from emotui.commands.common import cache_for, say, wait_for
from emotui.commands.texts import text_of_argument
from emotui.core.edits import parse_edit, recipe_named
from emotui.core.errors import UsageError
from emotui.core.export.written import document_bytes, document_of, page_of
from emotui.core.protocol import Inspected, InspectRequest, Loaded, LoadRequest
from emotui.core.records import Trace

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.client import EngineClient


def generate_text(
    text: str | None,
    request: InspectRequest,
    *,
    edits: tuple[str, ...],
    as_json: bool,
    cache_dir: Path | None,
    private: bool,
) -> None:
    """Print what the model writes after a text: without edits, and with them where there are any.

    `request.generation` says how much and how. Each is a trace of its own, kept like any other.
    """
    if text is None:
        raise UsageError("There is no text to continue.", todo="Give one, or - for standard input.")
    # A recipe stays as it is until the model it must be of is known.
    lines = tuple(line.strip() if recipe_named(line) else str(parse_edit(line)) for line in edits)
    with cache_for(cache_dir, private=private, demo=is_demo(request.spec)) as root:
        request = msgspec.structs.replace(
            request, text=text_of_argument(text), cache_dir=str(root), metric="none"
        )
        before, after = _traces(request, lines, root)
    document = document_of(before, after)
    if as_json:
        sys.stdout.buffer.write(document_bytes(document))
    else:
        sys.stdout.write(page_of(document))
    sys.stdout.flush()


def _traces(
    request: InspectRequest, lines: tuple[str, ...], root: Path
) -> tuple[Trace, Trace | None]:
    from emotui.cache.prepare import prepare
    from emotui.cache.recipes import with_recipes
    from emotui.cache.store import Store
    from emotui.core.client import EngineClient

    with Store.open(root) as store, EngineClient(root, offline=request.spec.offline) as client:
        fingerprint = prepare(request, store).fingerprint
        if fingerprint is None:
            loaded = wait_for(client.submit(LoadRequest(request.spec, request.cache_dir)))
            assert isinstance(loaded, Loaded)
            fingerprint = loaded.fingerprint
        if not prepare(request, store, fingerprint=fingerprint).request.probes:
            say(
                "No probes are fitted for this model and template, so the texts are read by the "
                "model's answer alone; `emotui probe fit` fits them."
            )
        before = _trace(request, store, client, fingerprint)
        if not lines:
            return before, None
        edited = msgspec.structs.replace(
            request, edits=with_recipes(lines, root, fingerprint, model=request.spec.model)
        )
        return before, _trace(edited, store, client, fingerprint)


def _trace(request: InspectRequest, store: Store, client: EngineClient, fingerprint: str) -> Trace:
    from emotui.cache.prepare import prepare

    prepared = prepare(request, store, fingerprint=fingerprint)
    if prepared.trace_id is not None:
        return store.get_trace(prepared.trace_id)
    done = wait_for(client.submit(prepared.request))
    assert isinstance(done, Inspected)
    return store.get_trace(done.trace_id)
