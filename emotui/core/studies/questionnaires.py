"""Statements of a questionnaire, read from the user's file: statement, negation, axis, key."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import msgspec

from emotui.core.errors import UsageError
from emotui.core.text import clean

_COLUMNS = ("statement", "negation", "axis", "key")
_KEYS = {"1": 1, "+1": 1, "+": 1, "-1": -1, "-": -1, "\N{MINUS SIGN}1": -1}
MOST = 5000


class StatementItem(msgspec.Struct, frozen=True):
    """One statement."""

    statement: str
    negation: str
    """Says the opposite."""
    axis: str
    key: int
    """1 where to affirm it is to be high on the axis, else -1."""


def read_items(path: Path) -> tuple[tuple[StatementItem, ...], str]:
    """Return the items of a TSV or CSV file, and the hash of the file.

    UsageError names the line that is not as expected.
    """
    name = clean(path.name)
    try:
        data = path.read_bytes()
        lines = data.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"The items {name} could not be read.",
            why=getattr(error, "strerror", None) or "It is not UTF-8 text.",
        ) from error
    separator = "\t" if lines and "\t" in lines[0] else ","
    rows = csv.reader(lines, delimiter=separator)
    header = [cell.strip().lower() for cell in next(rows, [])]
    missing = [column for column in _COLUMNS if column not in header]
    if missing:
        raise _unusable(name, f"Its first line does not name {', '.join(missing)}.")
    items = []
    try:
        for row in rows:
            if any(cell.strip() for cell in row):
                items.append(_item(dict(zip(header, row, strict=False)), name, rows.line_num))
    except csv.Error as error:
        raise _unusable(name, f"Line {rows.line_num}: {clean(str(error))}.") from error
    if not 2 <= len(items) <= MOST:
        raise _unusable(name, f"It has {len(items):,} items; 2 to {MOST:,} are taken.")
    return tuple(items), hashlib.sha256(data).hexdigest()[:16]


def _item(cells: dict[str, str], name: str, line: int) -> StatementItem:
    given = {column: cells.get(column, "").strip() for column in _COLUMNS}
    empty = [column for column in _COLUMNS if not given[column]]
    if empty:
        raise _unusable(name, f"Line {line} has no {empty[0]}.")
    if given["key"] not in _KEYS:
        raise _unusable(name, f"The key in line {line} is {clean(given['key'])!r}.")
    return StatementItem(given["statement"], given["negation"], given["axis"], _KEYS[given["key"]])


def _unusable(name: str, why: str) -> UsageError:
    return UsageError(
        f"The items {name} cannot be used.",
        why=why,
        todo="Give columns statement, negation, axis, key; a key is 1 or -1.",
    )
