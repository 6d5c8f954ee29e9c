"""Text: cleaning at the border, templates, and the positions of a prompt."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from emotui.core.errors import UsageError

_PICTURES = 0x2400
_DELETE = 0x7F
_REPLACED = "\N{REPLACEMENT CHARACTER}"
_INVISIBLE = "\N{MIDDLE DOT}"
_LINE_SEPARATORS = "\u2028\u2029"


def _clean_character(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(_PICTURES + code)
    if code == _DELETE:
        return "\N{SYMBOL FOR DELETE}"
    if 0x80 <= code < 0xA0 or 0xD800 <= code <= 0xDFFF:
        return _REPLACED
    if character in _LINE_SEPARATORS:
        return "\N{SYMBOL FOR NEWLINE}"
    if unicodedata.category(character) == "Cf" or code == 0x034F or 0xE0000 <= code < 0xE1000:
        return _INVISIBLE
    return character


def clean(text: str, *, keep_newlines: bool = False) -> str:
    """Return `text` made safe for a terminal, one visible character for each dangerous one.

    C0 controls and DEL become control pictures, C1 controls and surrogates U+FFFD, bidi,
    zero-width and other format characters a middle dot. The length in code points is kept.
    With `keep_newlines`, line feeds stay (for editors and many-line messages).
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character if keep_newlines and character == "\n" else _clean_character(character)
        for character in text
    )


class Template(msgspec.Struct, frozen=True):
    """What stands before and after the user's text in the prompt."""

    name: str
    before: str
    after: str
    chat: bool = False
    """Whether the tokenizer's chat template is put around `before + text + after`."""


_TAK_SHOTS = (
    "Context: My first child was born. Answer: joy Context: My dog died last week. Answer: sadness "
)
_TAK_LIST = (
    "Consider this list of emotions: anger, boredom, disgust, fear, guilt, joy, pride, relief, "
    "sadness, shame, surprise, trust, neutral. "
)
_TAK_ASK = "What are the inferred emotions in the following contexts? "

TEMPLATES: Mapping[str, Template] = MappingProxyType(
    {
        template.name: template
        for template in (
            Template("ask", "", " The emotion is"),
            Template("raw", "", ""),
            Template("tak1", _TAK_ASK + _TAK_SHOTS + "Context: ", " Answer:"),
            Template("tak2", _TAK_LIST + _TAK_ASK + _TAK_SHOTS + "Context: ", " Answer:"),
            Template("tak3", _TAK_SHOTS + "Context: ", " Answer:"),
            Template("tak4", "Guess the emotion. " + _TAK_SHOTS + "Context: ", " Answer:"),
            Template("chat", "", "\nName the emotion of this text in one word.", chat=True),
        )
    }
)
"""Templates by name. `ask` is the explorer's default; `tak1` to `tak4` are METHODS 1.1."""

DEFAULT_TEMPLATE = "ask"


def template_named(name: str) -> Template:
    """Return the template called `name`; UsageError names the ones that exist."""
    try:
        return TEMPLATES[name]
    except KeyError:
        raise UsageError(
            f"There is no template called {clean(name)!r}.",
            todo=f"Use one of: {', '.join(TEMPLATES)}.",
        ) from None
