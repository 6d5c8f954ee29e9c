"""`emotui where`: at which layers an emotion of a text is readable, used and written."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from emotui.cache.demo import is_demo
from emotui.commands.common import cache_for, say, wait_for
from emotui.commands.texts import text_of_argument
from emotui.core.errors import UsageError
from emotui.core.protocol import InspectRequest, Loaded, LoadRequest, Located, WhereRequest
from emotui.core.records import Where
from emotui.core.text import clean


class WhereDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `emotui where --json` prints."""

    schema: str = "emotui-where"
    schema_version: int = 1
    model: str
    fingerprint: str
    where: Where


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
        document = WhereDocument(model=request.spec.model, fingerprint=fingerprint, where=where)
        sys.stdout.buffer.write(msgspec.json.encode(document, order="sorted") + b"\n")
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
        done = wait_for(
            client.submit(
                WhereRequest(
                    spec=request.spec,
                    text=request.text,
                    cache_dir=request.cache_dir,
                    emotion=emotion,
                    neutral=neutral,
                    template=request.template,
                    label_set=request.label_set,
                    probes=prepared.probes,
                )
            )
        )
        assert isinstance(done, Located)
        return loaded.fingerprint, done.where


def page_of(where: Where) -> str:
    """Return the sentence, and the columns it was made from; no colour."""
    tokens = where.text.tokens
    lines = [
        clean(where.text.raw),
        f"{where.emotion}: {where.sentence}",
        "",
        f"margin {where.margin:+.3f}; after {where.neutral_texts} neutral texts "
        f"{where.neutral_margin:+.3f}; {where.same_texts} other texts of {where.emotion}",
        "",
        "layer       z   moved  control     attn      mlp   attention mainly from",
    ]
    columns = where.layers
    for layer in columns.layer:
        z, control = columns.z[layer], columns.control[layer]
        lines.append(
            f"{layer:>5}  {_or_dash(z, '6.2f')}  {columns.moved[layer]:6.0%}  "
            f"{_or_dash(control, '7.0%')}  {columns.attn[layer]:+7.3f}  {columns.mlp[layer]:+7.3f}"
            f"   {_main_sources(where, layer, [clean(token.string) for token in tokens])}"
        )
    lines += ["", "replaced by the neutral mean: fall of the margin (by texts of the emotion)"]
    for writer in where.writers:
        lines.append(
            f"  {writer.site}.{writer.layer:<3} estimate {writer.write:+.3f}  exact "
            f"{writer.exact:+.3f}  ({_or_dash(writer.control, '+.3f').strip()})"
        )
    return "\n".join(lines) + "\n"


def _or_dash(value: float | None, form: str) -> str:
    return "-".rjust(6) if value is None else format(value, form)


def _main_sources(where: Where, layer: int, strings: list[str]) -> str:
    rows = [
        (value, position)
        for at, position, value in zip(
            where.sources.layer, where.sources.position, where.sources.value, strict=True
        )
        if at == layer and value > 0
    ]
    best = sorted(rows, reverse=True)[:2]
    return ", ".join(f"{strings[position]!r} {value:+.2f}" for value, position in best)
