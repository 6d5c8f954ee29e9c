"""`emotui consistency` and `emotui terms`: one text asked in other ways, and described in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from emotui.cache.demo import is_demo
from emotui.commands.asking import answered, tell
from emotui.commands.common import cache_for
from emotui.commands.options import (
    NO_SAES,
    AsJson,
    KeepOptions,
    ModelOptions,
    PromptOptions,
    ReadOptions,
    SaeOptions,
    Text,
    in_groups,
    request_of,
)
from emotui.commands.texts import text_of_argument
from emotui.core.emotion_terms import TextTerms, terms_for
from emotui.core.errors import UsageError
from emotui.core.forms import TextConsistency
from emotui.core.model_names import recorded_name
from emotui.core.protocol import (
    AskedInForms,
    InspectRequest,
    Outcome,
    TermsScored,
)
from emotui.core.text import DEFAULT_TEMPLATE, clean, template_named

if TYPE_CHECKING:
    from emotui.core.export.asked import ConsistencyDocument, TermsDocument

TemplateName = Annotated[str, typer.Option("--template", help="The prompt around the text.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn.")]


@in_groups
def consistency(
    model: ModelOptions,
    prompt: ReadOptions,
    keep: KeepOptions,
    text: Text = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Ask for a text's emotion in other prompts, orders of the labels, and as a statement."""
    from emotui.cache.asked import consistency_request, known_consistency
    from emotui.core.export.asked import ConsistencyDocument, consistency_lines

    request = _request(text, model, NO_SAES, prompt, keep, seed=seed)

    def found(outcome: Outcome) -> TextConsistency:
        assert isinstance(outcome, AskedInForms)
        return outcome.consistency

    with cache_for(keep.cache_dir, private=keep.private, demo=is_demo(request.spec)) as root:
        fingerprint, answer = answered(
            msgspec.structs.replace(request, cache_dir=str(root)),
            root,
            consistency_request,
            found,
            known=lambda ready, store, weights: known_consistency(
                consistency_request(ready), store, fingerprint=weights
            ),
        )
    document = ConsistencyDocument(
        model=recorded_name(request.spec.model),
        fingerprint=fingerprint,
        text=request.text,
        consistency=answer,
    )
    _tell(document, consistency_lines(answer), as_json=as_json)


@in_groups
def terms(
    model: ModelOptions,
    saes: SaeOptions,
    keep: KeepOptions,
    text: Text = None,
    do: Annotated[
        list[str] | None,
        typer.Option("--do", help="An edit in force, such as 'promote joy L5 +0.1'."),
    ] = None,
    table: Annotated[
        Path | None, typer.Option("--terms", help="A table of words, or NRC EmoLex.")
    ] = None,
    template: TemplateName = DEFAULT_TEMPLATE,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Score 387 emotion words after a text, and say which of the eight basic ones they make."""
    from emotui.cache.asked import known_terms, terms_request
    from emotui.core.export.asked import TermsDocument, terms_lines

    if table is not None:
        terms_for(str(table.expanduser()))  # what is wrong with it is said before a model is loaded
    edits = tuple(do or ())
    prompt = PromptOptions(template=template)
    used = saes if edits else NO_SAES
    request = _request(text, model, used, prompt, keep, seed=seed, edits=edits)

    def found(outcome: Outcome) -> TextTerms:
        assert isinstance(outcome, TermsScored)
        return outcome.terms

    with cache_for(keep.cache_dir, private=keep.private, demo=is_demo(request.spec)) as root:
        fingerprint, answer = answered(
            msgspec.structs.replace(request, cache_dir=str(root)),
            root,
            lambda ready: terms_request(ready, table),
            found,
            known=lambda ready, store, weights: known_terms(
                terms_request(ready, table), store, fingerprint=weights
            ),
        )
    document = TermsDocument(
        model=recorded_name(request.spec.model),
        fingerprint=fingerprint,
        text=request.text,
        terms=answer,
    )
    _tell(document, terms_lines(answer), as_json=as_json)


def _request(
    text: str | None,
    model: ModelOptions,
    saes: SaeOptions,
    prompt: PromptOptions,
    keep: KeepOptions,
    *,
    seed: int,
    edits: tuple[str, ...] = (),
) -> InspectRequest:
    if text is None:
        raise UsageError("There is no text to read.", todo="Give one, or - for standard input.")
    template_named(prompt.template)
    request = request_of(text_of_argument(text), model, saes, prompt, cache_dir=keep.cache_dir)
    return msgspec.structs.replace(request, seed=seed, edits=edits)


def _tell(
    document: ConsistencyDocument | TermsDocument, lines: Sequence[str], *, as_json: bool
) -> None:
    from emotui.core.export.asked import document_bytes

    page = "\n".join([clean(document.text), *lines]) + "\n"
    tell(page, document_bytes(document), as_json=as_json)
