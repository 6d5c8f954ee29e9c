"""`emotui feature`: everything known of one SAE feature, and of it on a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from emotui.cache.demo import is_demo
from emotui.commands.asking import WITHOUT_PROBES, tell
from emotui.commands.common import cache_for, say, wait_for
from emotui.commands.options import (
    KeepOptions,
    ModelOptions,
    ReadOptions,
    SaeOptions,
    in_groups,
    request_of,
)
from emotui.commands.texts import text_of_argument
from emotui.core.details import FeatureDetail
from emotui.core.emotions import LABEL_SETS
from emotui.core.errors import UsageError
from emotui.core.model_names import recorded_name
from emotui.core.protocol import (
    Featured,
    FeatureRequest,
    InspectRequest,
    Loaded,
    LoadRequest,
)
from emotui.core.text import clean, template_named

if TYPE_CHECKING:
    from emotui.cache.probes import ProbeCard


@in_groups
def feature(
    name: Annotated[str, typer.Argument(help="The feature, such as L6/222 or mlp:L3/9.")],
    model: ModelOptions,
    saes: SaeOptions,
    prompt: ReadOptions,
    keep: KeepOptions,
    text: Annotated[str | None, typer.Argument(help="A text; - reads standard input.")] = None,
    at: Annotated[
        str, typer.Option("--at", help="Where it is removed: a position; where it is strongest.")
    ] = "",
    emotion: Annotated[
        str, typer.Option("--emotion", help="Whose readouts are shown; the most changed one.")
    ] = "",
    corpus: Annotated[
        bool, typer.Option("--corpus/--no-corpus", help="Also what it does on the corpus.")
    ] = True,
    do: Annotated[
        list[str] | None, typer.Option("--do", help="An edit that is in force, or @name.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Tell what an SAE feature writes, what it fires on, and what removing it here changes."""
    from emotui.core.export.feature import document_bytes, lines_of

    template_named(prompt.template)
    given = "" if text is None else text_of_argument(text)
    request = request_of(given, model, saes, prompt, cache_dir=keep.cache_dir)
    spec = request.spec
    with cache_for(keep.cache_dir, private=keep.private, demo=is_demo(spec)) as root:
        request = msgspec.structs.replace(request, cache_dir=str(root), edits=tuple(do or ()))
        fingerprint, detail = _detail(
            FeatureRequest(request, feature=name, position=at, corpus=corpus), root, emotion
        )
    document = document_bytes(detail, model=recorded_name(spec.model), fingerprint=fingerprint)
    page = "\n".join(lines_of(detail, emotion=emotion)) + "\n"
    tell(page, document, as_json=as_json)


def _detail(request: FeatureRequest, root: Path, emotion: str) -> tuple[str, FeatureDetail]:
    """Return the model's fingerprint and the detail; UsageError for an emotion no row is of."""
    from emotui.cache.prepare import prepare
    from emotui.cache.store import Store
    from emotui.core.client import EngineClient

    asked = request.inspect
    with Store.open(root) as store, EngineClient(root, offline=asked.spec.offline) as client:
        loaded = wait_for(client.submit(LoadRequest(asked.spec, asked.cache_dir)))
        assert isinstance(loaded, Loaded)
        ready = prepare(asked, store, fingerprint=loaded.fingerprint).request
        if emotion:
            _check_emotion(emotion, ready, store.probes(loaded.fingerprint))
        if asked.text and not ready.probes:
            say(WITHOUT_PROBES)
        done = wait_for(client.submit(msgspec.structs.replace(request, inspect=ready)))
    assert isinstance(done, Featured)
    return loaded.fingerprint, done.detail


def _check_emotion(emotion: str, request: InspectRequest, cards: Sequence[ProbeCard]) -> None:
    """Raise UsageError unless it is a label, or an emotion of a probe that is in force."""
    known = dict.fromkeys(LABEL_SETS.get(request.label_set, ()))
    for card in cards:
        if card.id in request.probes:
            known |= dict.fromkeys(card.emotions)
    if emotion not in known:
        raise UsageError(
            f"{clean(emotion)!r} is no emotion that is read here.",
            todo=f"Use one of: {', '.join(map(clean, known))}.",
        )
