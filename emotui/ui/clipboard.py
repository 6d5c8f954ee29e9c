"""Copying by way of the terminal: OSC 52, also from inside tmux and GNU screen.

tmux takes the plain sequence where its `set-clipboard` is on, and hands the wrapped one to the
terminal where its `allow-passthrough` is on: both are sent. screen hands on what is wrapped, in
pieces of at most 768 bytes. Nothing can be read back, so nobody knows whether it arrived.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping

LIMIT = 8192
"""Most bytes that are sent to the terminal for one copy."""
_SCREEN_PIECE = 760
_ESCAPE, _BELL, _END = "\x1b", "\x07", "\x1b\\"


def copying(text: str, environ: Mapping[str, str] | None = None) -> tuple[str, ...] | None:
    """Return what to write to the terminal so that it copies `text`; None where that is too long.

    The text itself goes as base64, so nothing in it is a control sequence.
    """
    environ = os.environ if environ is None else environ
    encoded = base64.b64encode(text.encode("utf-8", errors="replace")).decode("ascii")
    plain = f"{_ESCAPE}]52;c;{encoded}{_BELL}"
    sequences: tuple[str, ...] = (plain,)
    if environ.get("TMUX"):
        wrapped = plain.replace(_ESCAPE, _ESCAPE * 2)
        sequences = (plain, f"{_ESCAPE}Ptmux;{wrapped}{_END}")
    elif environ.get("STY") or environ.get("TERM", "").startswith("screen"):
        pieces = (plain[at : at + _SCREEN_PIECE] for at in range(0, len(plain), _SCREEN_PIECE))
        sequences = tuple(f"{_ESCAPE}P{piece}{_END}" for piece in pieces)
    return sequences if sum(map(len, sequences)) <= LIMIT else None
