"""`emotui without`: what of an emotion's reading goes with the words that name emotions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from emotui.cache.demo import is_demo
from emotui.commands.common import cache_for, say, wait_for
from emotui.commands.options import KeepOptions, ModelOptions, PromptOptions, in_groups
from emotui.commands.texts import text_of_argument
from emotui.core.errors import UsageError
from emotui.core.findings import WithoutWords
from emotui.core.model_names import recorded_name
from emotui.core.protocol import (
    InspectRequest,
    Loaded,
    LoadRequest,
    MaskedWords,
    WithoutRequest,
)
from emotui.core.text import clean, template_named
from emotui.core.wording import DEFAULT_PLACEHOLDER


@in_groups
def without(
    model: ModelOptions,
    prompt: PromptOptions,
    keep: KeepOptions,
    text: Annotated[str | None, typer.Argument(help="The text; - reads standard input.")] = None,
    emotion: Annotated[
        str, typer.Option("--emotion", help="One of the labels; else the likeliest answer.")
    ] = "",
    placeholder: Annotated[
        str, typer.Option("--placeholder", help="What stands in a masked word's place.")
    ] = DEFAULT_PLACEHOLDER,
    seed: Annotated[int, typer.Option(help="Of the draws of other words.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Read a text again with its emotion words masked, beside other words masked."""
    from emotui.core.export.without import document_bytes, lines_of

    if text is None:
        raise UsageError("There is no text to read.", todo="Give one, or - for standard input.")
    template_named(prompt.template)
    spec = model.spec()
    with cache_for(keep.cache_dir, private=keep.private, demo=is_demo(spec)) as root:
        request = InspectRequest(
            spec=spec,
            text=text_of_argument(text),
            cache_dir=str(root),
            template=prompt.template,
            label_set=prompt.labels,
            seed=seed,
        )
        fingerprint, found = _found(WithoutRequest(request, emotion, placeholder), root)
    if as_json:
        data = document_bytes(found, model=recorded_name(spec.model), fingerprint=fingerprint)
        sys.stdout.buffer.write(data)
    else:
        lines = [clean(found.text), *lines_of(found)]
        sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def _found(request: WithoutRequest, root: Path) -> tuple[str, WithoutWords]:
    """Return the model's fingerprint and the answer; no engine where the cache has it."""
    import msgspec

    from emotui.cache.prepare import prepare
    from emotui.cache.store import Store
    from emotui.cache.without import known_without
    from emotui.core.client import EngineClient

    with Store.open(root) as store:
        prepared = prepare(request.inspect, store)
        asked = msgspec.structs.replace(request, inspect=prepared.request)
        if prepared.fingerprint is not None:
            known = known_without(asked, store, fingerprint=prepared.fingerprint)
            if known is not None:
                return prepared.fingerprint, known
        with EngineClient(root, offline=request.inspect.spec.offline) as client:
            loaded = wait_for(
                client.submit(LoadRequest(request.inspect.spec, request.inspect.cache_dir))
            )
            assert isinstance(loaded, Loaded)
            ready = prepare(request.inspect, store, fingerprint=loaded.fingerprint).request
            if not ready.probes:
                say(
                    "No probes are fitted for this model and template, so only the answer is "
                    "read; `emotui probe fit` fits them."
                )
            asked = msgspec.structs.replace(request, inspect=ready)
            done = wait_for(client.submit(asked))
        assert isinstance(done, MaskedWords)
        return loaded.fingerprint, done.without
