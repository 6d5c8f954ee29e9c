"""`emotui where`: at which layers an emotion of a text is readable, used and written."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from emotui.cache.demo import is_demo
from emotui.cache.located import where_request
from emotui.commands.common import cache_for, say, wait_for
from emotui.commands.texts import text_of_argument
from emotui.core.errors import UsageError
from emotui.core.export.where import document_bytes, table_of
from emotui.core.protocol import InspectRequest, Loaded, LoadRequest, Located
from emotui.core.records import Where
from emotui.core.text import clean


def tell_where(
    text: str | None,
    request: InspectRequest,
    *,
    emotion: str,
    neutral: str | None,
    as_json: bool,
    cache_dir: Path | None,
    private: bool,
) -> None:
    """Print where an emotion of a text is; `request` names model, template and label set."""
    if text is None:
        raise UsageError("There is no text to read.", todo="Give one, or - for standard input.")
    if not emotion:
        raise UsageError("No emotion was named.", todo="Name a label, as in --emotion joy.")
    with cache_for(cache_dir, private=private, demo=is_demo(request.spec)) as root:
        request = msgspec.structs.replace(
            request, text=text_of_argument(text), cache_dir=str(root), saes=()
        )
        fingerprint, where = _located(request, emotion, neutral, root)
    if as_json:
        data = document_bytes(where, model=request.spec.model, fingerprint=fingerprint)
        sys.stdout.buffer.write(data)
    else:
        sys.stdout.write(page_of(where))
    sys.stdout.flush()


def _located(
    request: InspectRequest, emotion: str, neutral: str | None, root: Path
) -> tuple[str, Where]:
    from emotui.cache.prepare import prepare
    from emotui.cache.store import Store
    from emotui.core.client import EngineClient

    with Store.open(root) as store, EngineClient(root, offline=request.spec.offline) as client:
        loaded = wait_for(client.submit(LoadRequest(request.spec, request.cache_dir)))
        assert isinstance(loaded, Loaded)
        prepared = prepare(request, store, fingerprint=loaded.fingerprint).request
        if not prepared.probes:
            say(
                "No probes are fitted for this model and template, so it is not said where the "
                "emotion is readable; `emotui probe fit` fits them."
            )
        done = wait_for(client.submit(where_request(prepared, emotion, neutral)))
        assert isinstance(done, Located)
        return loaded.fingerprint, done.where


def page_of(where: Where) -> str:
    """Return the sentence, and the columns it was made from; no colour."""
    lines = [clean(where.text.raw), f"{where.emotion}: {where.sentence}", "", *table_of(where)]
    return "\n".join(lines) + "\n"
