"""What the console's `emotion NAME from ...` says: texts in quotes, a file, or a word."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from emotui.core.errors import UsageError
from emotui.core.text import clean

_LINE = re.compile(r":?\s*emotion\s+(\S+)\s+from\b\s*(.*)", re.DOTALL)
_QUOTED = re.compile(r'"([^"]*)"')
_MOST_BYTES = 4_000_000
PLACEHOLDER = "NAME"
PREFILLED = f"emotion {PLACEHOLDER} from "


@dataclass(frozen=True)
class Definition:
    """An emotion to be defined: from texts, or from a word."""

    name: str
    texts: tuple[str, ...] = ()
    word: str | None = None


def definition_in(line: str) -> Definition | None:
    """Return what a line of the console defines; None where it is no definition.

    `from "a text" "another" ...` are texts; otherwise what follows is a file of texts, one a line,
    where there is one, else a word. UsageError where nothing follows or the file cannot be read.
    """
    found = _LINE.fullmatch(_without_frame(line.strip()))
    if found is None:
        return None
    name, source = found[1], found[2].strip()
    if name == PLACEHOLDER:
        raise UsageError(
            f"{PLACEHOLDER} is no name.",
            todo="Write what the emotion is to be called in its place.",
        )
    if not source:
        raise UsageError(
            "Nothing was said to define the emotion from.",
            todo='Write from "a text" "another" (five at least), from FILE, or from a word.',
        )
    if source.startswith('"'):
        texts = tuple(_QUOTED.findall(source))
        if _QUOTED.sub("", source).strip(" ,|"):
            raise UsageError(
                "A quotation mark is not closed.", todo='Write from "a text" "another".'
            )
        return Definition(name, texts=texts)
    path = Path(source).expanduser()
    try:
        if path.is_file():
            return Definition(name, texts=_lines(path))
    except OSError:  # no path at all, too long for one
        pass
    if "/" in source or source.endswith((".txt", ".csv", ".tsv")):
        raise UsageError(
            f"There is no file {clean(source)}.", todo="Give a file with one text on each line."
        )
    return Definition(name, word=source)


def _without_frame(line: str) -> str:
    """Return a line that was typed whole over the name in `PREFILLED`, without the rest of that."""
    before, _, after = PREFILLED.rstrip().partition(PLACEHOLDER)
    inner = line.removeprefix(":").strip()
    if _LINE.fullmatch(inner.removeprefix(before)) and inner.startswith(before + before.lstrip()):
        return inner.removeprefix(before).removesuffix(after).rstrip()
    return line


def _lines(path: Path) -> tuple[str, ...]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UsageError(f"{clean(path.name)} is larger than 4 MB.", todo="Give fewer texts.")
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{clean(path.name)} could not be read.", todo="Give a UTF-8 file, one text a line."
        ) from error
    return tuple(line.strip() for line in content.splitlines() if line.strip())
