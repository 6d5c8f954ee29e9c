"""Where texts come from: the command line, standard input, or a file of many."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import Any

import msgspec

from emotui.core.columns import columns_in_words
from emotui.core.errors import TextError, UsageError
from emotui.core.text import clean

_COLUMNS = ("text", "sentence", "content", "situation", "body")
"""Names looked for where no column was named."""


def text_of_argument(text: str) -> str:
    """Return the text of an argument; `-` reads standard input and drops one final newline."""
    if text != "-":
        return text
    return _decoded(sys.stdin.buffer.read(), "standard input").removesuffix("\n")


def texts_of_file(path: Path, *, column: str | None) -> list[str]:
    """Return the texts of a file: .jsonl, .csv or .tsv by column, else one text a line.

    JSON lines may be strings or objects. Raises TextError or UsageError that names the line, or
    the columns there are.
    """
    try:
        content = _decoded(path.expanduser().read_bytes(), path.name)
    except OSError as error:
        raise UsageError(
            f"{clean(str(path))} could not be read.",
            why=error.strerror or str(error),
            todo="Check the path.",
        ) from error
    if path.suffix == ".jsonl":
        return _texts_of_json_lines(content, path.name, column)
    if path.suffix in (".csv", ".tsv"):
        return _texts_of_table(content, path, column)
    return [line for line in content.splitlines() if line.strip()]


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(
            f"{clean(name)} is not UTF-8 text.",
            why=f"Byte {error.start} does not decode.",
            todo="Convert it, for example with `iconv -t utf-8`.",
        ) from error


def _column(names: list[str], wanted: str | None, name: str) -> str:
    if wanted is not None:
        if wanted in names:
            return wanted
        raise UsageError(
            f"{clean(name)} has no column {clean(wanted)!r}.",
            why=columns_in_words(names),
            todo="Name one of them; a table needs a line of column names first.",
        )
    found = [column for column in _COLUMNS if column in names]
    if found or len(names) == 1:
        return (found or names)[0]
    raise UsageError(
        f"Which column of {clean(name)} holds the texts is not clear.",
        why=columns_in_words(names),
        todo="Name one with --text-column; a table needs a line of column names first.",
    )


def _texts_of_json_lines(content: str, name: str, column: str | None) -> list[str]:
    texts: list[str] = []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value: Any = msgspec.json.decode(line)
        except msgspec.DecodeError as error:
            raise UsageError(
                f"Line {number} of {clean(name)} is not JSON.",
                why=str(error),
                todo="Write one JSON string or object a line.",
            ) from error
        if isinstance(value, dict):
            value = value.get(_column([str(key) for key in value], column, name))
        if not isinstance(value, str):
            raise UsageError(
                f"Line {number} of {clean(name)} holds no text.",
                todo="Write one JSON string, or an object with a text, a line.",
            )
        texts.append(value)
    return texts


def _texts_of_table(content: str, path: Path, column: str | None) -> list[str]:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    rows = csv.DictReader(io.StringIO(content, newline=""), delimiter=delimiter)
    chosen = _column(list(rows.fieldnames or []), column, path.name)
    return [row[chosen] or "" for row in rows]
