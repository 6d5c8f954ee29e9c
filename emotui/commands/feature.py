"""`emotui feature`: everything known of one SAE feature, and of it on a text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from emotui.cache.demo import demo_saes, demo_spec, is_demo
from emotui.commands.common import cache_for, say, wait_for
from emotui.commands.models import sae_sources
from emotui.commands.texts import text_of_argument
from emotui.core.details import FeatureDetail
from emotui.core.emotions import DEFAULT_LABEL_SET
from emotui.core.protocol import (
    Featured,
    FeatureRequest,
    InspectRequest,
    Loaded,
    LoadRequest,
    ModelSpec,
)
from emotui.core.text import DEFAULT_TEMPLATE, template_named


def feature(
    name: Annotated[str, typer.Argument(help="The feature, such as L6/222 or mlp:L3/9.")],
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
    model: Annotated[
        str | None, typer.Option("--model", help="A local folder, a hub id or an alias.")
    ] = None,
    sae: Annotated[
        list[str] | None, typer.Option("--sae", help="A folder, a params.npz, or RELEASE[:ID].")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or auto.")] = "auto",
    template: Annotated[
        str, typer.Option("--template", help="The prompt around the text.")
    ] = DEFAULT_TEMPLATE,
    labels: Annotated[
        str, typer.Option("--labels", help="The set of emotion labels.")
    ] = DEFAULT_LABEL_SET,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Make no connection.")] = False,
    private: Annotated[
        bool, typer.Option("--private", help="Keep nothing of this session on the disk.")
    ] = False,
    cache_dir: Annotated[
        Path | None,
        typer.Option("--cache-dir", help="Where traces are kept.", envvar="EMOTUI_CACHE_DIR"),
    ] = None,
) -> None:
    """Tell what an SAE feature writes, what it fires on, and what removing it here changes."""
    from emotui.core.export.feature import document_bytes, lines_of

    template_named(template)
    if model is None:
        spec = demo_spec(dtype=dtype, device=device)
        sae = sae or list(demo_saes())
    else:
        spec = ModelSpec(
            model=model, revision=revision, dtype=dtype, device=device, offline=offline
        )
    sources = sae_sources(spec.model, sae or (), offline=offline, cache_dir=cache_dir)
    with cache_for(cache_dir, private=private, demo=is_demo(spec)) as root:
        request = InspectRequest(
            spec=spec,
            text="" if text is None else text_of_argument(text),
            cache_dir=str(root),
            template=template,
            label_set=labels,
            saes=sources,
            edits=tuple(do or ()),
        )
        fingerprint, detail = _detail(
            FeatureRequest(request, feature=name, position=at, corpus=corpus), root
        )
    if as_json:
        folder = Path(spec.model).expanduser()
        known_as = folder.resolve().name if folder.is_dir() else spec.model
        data = document_bytes(detail, model=known_as, fingerprint=fingerprint)
        sys.stdout.buffer.write(data)
    else:
        sys.stdout.write("\n".join(lines_of(detail, emotion=emotion)) + "\n")
    sys.stdout.flush()


def _detail(request: FeatureRequest, root: Path) -> tuple[str, FeatureDetail]:
    from emotui.cache.prepare import prepare
    from emotui.cache.store import Store
    from emotui.core.client import EngineClient

    asked = request.inspect
    with Store.open(root) as store, EngineClient(root, offline=asked.spec.offline) as client:
        loaded = wait_for(client.submit(LoadRequest(asked.spec, asked.cache_dir)))
        assert isinstance(loaded, Loaded)
        ready = prepare(asked, store, fingerprint=loaded.fingerprint).request
        if asked.text and not ready.probes:
            say(
                "No probes are fitted for this model and template, so only the answer is read; "
                "`emotui probe fit` fits them."
            )
        done = wait_for(client.submit(msgspec.structs.replace(request, inspect=ready)))
    assert isinstance(done, Featured)
    return loaded.fingerprint, done.detail
