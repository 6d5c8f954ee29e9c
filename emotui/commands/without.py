"""`emotui without`: what of an emotion's reading goes with the words that name emotions."""

from __future__ import annotations

from typing import Annotated

import typer

from emotui.cache.demo import is_demo
from emotui.commands.asking import WITHOUT_PROBES, answered, tell
from emotui.commands.common import cache_for
from emotui.commands.options import KeepOptions, ModelOptions, ReadOptions, chosen_of, in_groups
from emotui.commands.texts import text_of_argument
from emotui.core.errors import UsageError
from emotui.core.findings import WithoutWords
from emotui.core.model_names import recorded_name
from emotui.core.protocol import (
    InspectRequest,
    MaskedWords,
    Outcome,
    WithoutRequest,
)
from emotui.core.text import clean, template_named
from emotui.core.wording import DEFAULT_PLACEHOLDER


@in_groups
def without(
    model: ModelOptions,
    prompt: ReadOptions,
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
    from emotui.cache.without import known_without
    from emotui.core.export.without import document_bytes, lines_of

    if text is None:
        raise UsageError("There is no text to read.", todo="Give one, or - for standard input.")
    template_named(prompt.template)
    spec = model.spec()

    def question(ready: InspectRequest) -> WithoutRequest:
        return WithoutRequest(ready, emotion, placeholder)

    with cache_for(keep.cache_dir, private=keep.private, demo=is_demo(spec)) as root:
        request = InspectRequest(
            spec=spec,
            text=text_of_argument(text),
            cache_dir=str(root),
            template=prompt.template,
            label_set=prompt.labels,
            chosen=chosen_of(prompt),
            seed=seed,
        )
        fingerprint, found = answered(
            request,
            root,
            question,
            _masked,
            known=lambda ready, store, weights: known_without(
                question(ready), store, fingerprint=weights
            ),
            without_probes=WITHOUT_PROBES,
        )
    document = document_bytes(found, model=recorded_name(spec.model), fingerprint=fingerprint)
    page = "\n".join([clean(found.text), *lines_of(found)]) + "\n"
    tell(page, document, as_json=as_json)


def _masked(outcome: Outcome) -> WithoutWords:
    assert isinstance(outcome, MaskedWords)
    return outcome.without
