"""`emotui where`: at which layers an emotion of a text is readable, used and written."""

from __future__ import annotations

from pathlib import Path

import msgspec

from emotui.cache.demo import is_demo
from emotui.cache.located import where_request
from emotui.commands.asking import answered, tell
from emotui.commands.common import cache_for
from emotui.commands.texts import text_of_argument
from emotui.core.errors import UsageError
from emotui.core.export.where import document_bytes, table_of
from emotui.core.model_names import recorded_name
from emotui.core.protocol import InspectRequest, Located, Outcome
from emotui.core.records import Where
from emotui.core.text import clean

_WITHOUT_PROBES = (
    "No probes are fitted for this model and template, so it is not said where the emotion is "
    "readable; `emotui probe fit` fits them."
)


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
    if neutral is not None and not neutral.strip():
        raise UsageError(
            "The neutral rewrite is empty.",
            todo="Give one, or leave --neutral out: texts of the corpus stand for it then.",
        )

    def found(outcome: Outcome) -> Where:
        assert isinstance(outcome, Located)
        return outcome.where

    with cache_for(cache_dir, private=private, demo=is_demo(request.spec)) as root:
        request = msgspec.structs.replace(
            request, text=text_of_argument(text), cache_dir=str(root), saes=()
        )
        fingerprint, where = answered(
            request,
            root,
            lambda ready: where_request(ready, emotion, neutral),
            found,
            without_probes=_WITHOUT_PROBES,
        )
    name = recorded_name(request.spec.model)
    document = document_bytes(where, model=name, fingerprint=fingerprint)
    tell(page_of(where), document, as_json=as_json)


def page_of(where: Where) -> str:
    """Return the sentence, and the columns it was made from; no colour."""
    lines = [clean(where.text.raw), f"{where.emotion}: {where.sentence}", "", *table_of(where)]
    return "\n".join(lines) + "\n"
