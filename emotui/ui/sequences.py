"""What the screen sends, in fewer bytes: each change of style says only what changes.

Textual writes every run of text as style, text, reset. Between two runs most of a style stays the
same, and of a blank only the ground is seen. Over SSH the difference is a half of all bytes.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

_CONTROL = re.compile(r"\x1b\[([0-9;]*)m|(?:\r?\n)?(\x1b\[[0-9;]*H)")
_OFF = {"1": "22", "2": "22", "3": "23", "4": "24", "5": "25", "7": "27", "8": "28", "9": "29"}
"""Attribute to what takes it back; bold and dim are taken back together."""
_SEEN_ON_BLANKS = frozenset({"4", "5", "7", "9"})


class Pen(NamedTuple):
    """What characters are written with: attributes, ink and ground as SGR parameters."""

    attributes: frozenset[str] = frozenset()
    ink: str = ""
    """"" is the terminal's own, as for `ground`."""
    ground: str = ""


PLAIN = Pen()


def squeezed(data: str) -> str:
    """Return what paints the same as `data` with fewer bytes.

    `data` begins with the terminal's plain style in force and ends with it, as everything that
    Textual writes does. What is no style and no move of the cursor is passed on as it is.
    """
    if "\x1b[" not in data:
        return data
    written: list[str] = []
    now = wanted = PLAIN
    place, moved = 0, False
    for found in _CONTROL.finditer(data):
        text = data[place : found.start()]
        if text:
            now, moved = _write(written, text, now, wanted), False
        place = found.end()
        move = found[2]
        if move is not None:
            if moved:  # of two moves at once only the second matters
                written.pop()
            written.append(move)
            moved = True
            continue
        pen = _pen_after(wanted, found[1])
        if pen is None:  # not known: as it stands, from the plain style on
            written.append(_between(now, PLAIN) + found[0])
            now, wanted, moved = PLAIN, PLAIN, False
        else:
            wanted = pen
    if place < len(data):
        now = _write(written, data[place:], now, wanted)
    written.append(_between(now, PLAIN))
    return "".join(written)


def _write(written: list[str], text: str, now: Pen, wanted: Pen) -> Pen:
    """Append a text with what must change before it; return the pen that is then in force."""
    if not text.strip(" ") and not (now.attributes | wanted.attributes) & _SEEN_ON_BLANKS:
        wanted = Pen(now.attributes, now.ink, wanted.ground)
    written.append(_between(now, wanted))
    written.append(text)
    return wanted


@lru_cache(maxsize=4096)
def _pen_after(pen: Pen, parameters: str) -> Pen | None:
    """Return the pen after a style sequence; None for one that has something unknown in it."""
    attributes, ink, ground = set(pen.attributes), pen.ink, pen.ground
    rest = parameters.split(";")
    while rest:
        code = rest.pop(0)
        if code in ("", "0"):
            attributes, ink, ground = set(), "", ""
        elif code in _OFF:
            attributes.add(code)
        elif code in ("38", "48"):
            count = {"5": 1, "2": 3}.get(rest[0], 0) if rest else 0
            if not count or len(rest) <= count:
                return None
            colour = ";".join([code, *rest[: count + 1]])
            del rest[: count + 1]
            ink, ground = (colour, ground) if code == "38" else (ink, colour)
        elif len(code) == 2 and code[0] in "39" and code[1] in "01234567":
            ink = code
        elif (len(code) == 2 and code[0] == "4" and code[1] in "01234567") or (
            len(code) == 3 and code[:2] == "10" and code[2] in "01234567"
        ):
            ground = code
        elif code == "39":
            ink = ""
        elif code == "49":
            ground = ""
        else:
            return None
    return Pen(frozenset(attributes), ink, ground)


@lru_cache(maxsize=4096)
def _between(now: Pen, wanted: Pen) -> str:
    """Return the shortest sequence from one pen to another; "" where they are the same."""
    if now == wanted:
        return ""
    if wanted == PLAIN:
        return "\x1b[m"
    afresh = ["", *sorted(wanted.attributes), wanted.ink, wanted.ground]
    gone = now.attributes - wanted.attributes
    off = sorted({_OFF[attribute] for attribute in gone})
    kept = now.attributes - gone
    if "22" in off:
        kept -= {"1", "2"}
    changes = [*off, *sorted(wanted.attributes - kept)]
    if now.ink != wanted.ink:
        changes.append(wanted.ink or "39")
    if now.ground != wanted.ground:
        changes.append(wanted.ground or "49")
    whole = ";".join(["", *(part for part in afresh if part)])
    return f"\x1b[{min(';'.join(changes), whole, key=len)}m"
