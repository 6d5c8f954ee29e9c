"""A text without its emotion words: as a JSON document, and as lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from emotui.core.findings import Masked, WithoutWords
from emotui.core.text import clean
from emotui.core.wording import counted

_NAME = 34


class WithoutDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `emotui without --json` prints."""

    schema: Literal["emotui-without"] = "emotui-without"
    schema_version: Literal[1] = 1
    model: str
    fingerprint: str
    without: WithoutWords


def document_bytes(found: WithoutWords, *, model: str, fingerprint: str) -> bytes:
    """Return the document as JSON: sorted keys, a newline at the end."""
    document = WithoutDocument(model=model, fingerprint=fingerprint, without=found)
    return msgspec.json.encode(document, order="sorted") + b"\n"


def lines_of(found: WithoutWords) -> list[str]:
    """Return what goes with the emotion words: the sentence, the texts, each control."""
    words = ", ".join(clean(word) for word in found.after.words)
    lines = [
        found.sentence,
        "",
        f"emotion words: {words}; each replaced by {clean(found.placeholder)!r}",
        f"read without them: {clean(found.masked_text)}",
        "",
        f"{'':{_NAME}} readout ({found.unit})   answer {found.emotion}",
        _reading("the text", found.before),
        _reading(f"without {words}", found.after),
    ]
    if found.controls:
        lines += [
            "",
            f"other words masked: {len(found.controls)} of "
            f"{counted(found.choices, 'set')} of {len(found.after.words)} among "
            f"{counted(found.content_words, 'content word')}",
            *(_reading(f"without {_joined(one.words)}", one) for one in found.controls),
        ]
    for lost in found.lost:
        if lost.share is not None and lost.percentile is not None:
            lines += [
                "",
                f"{lost.metric}: share lost {lost.share:.3f}, rank {lost.rank} of "
                f"{len(lost.controls) + 1}, above {lost.percentile:.0f} % of the controls",
            ]
    return lines


def _joined(words: Sequence[str]) -> str:
    return ", ".join(clean(word) for word in words)


def _reading(name: str, one: Masked) -> str:
    short = name if len(name) <= _NAME else name[: _NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"
    readout = "-".rjust(9) if one.readout is None else f"{one.readout:>9.3f}"
    return f"{short:<{_NAME}} {readout}    {one.answer:>9.3f}"
