"""The terminal: a marked paste is taken out of its input whole, before anything reads keys.

Textual's own parser looks for escape sequences inside a paste and turns those it does not know
into keys: a pasted text with an escape character in it could act. The loop that reads the
terminal is Textual's `LinuxDriver.run_input_thread` with the parser replaced.
"""

from __future__ import annotations

import os
import re
import selectors
import time
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable, Iterator

from textual import events
from textual._xterm_parser import XTermParser
from textual.drivers.linux_driver import LinuxDriver
from textual.message import Message

from emotui.ui.sequences import squeezed

START, END = "\x1b[200~", "\x1b[201~"
STALLED_SECONDS = 2.0
"""How long an unfinished paste may pause before it counts as finished."""
_READ_BYTES = 4096
_POLL_SECONDS = 0.1
_ESCAPE_AND_KEY = re.compile(r"\x1b(?=[^\x00-\x20\x7f\\\[\]OPNX^_])")
"""An escape at once before a key, which together begin no sequence: two keys (tmux sends them so).

Textual would take `\\x1b3` for the pound sign and `\\x1bb` for ctrl+left.
"""
_SHORTEST_HELD = 3  # escape and "[" alone may be a key


class PasteSplitter:
    """Splits what a terminal sends into pastes and the rest, over any cuts between reads."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held = ""
        self._pasting = False
        self._last = 0.0

    def split(self, data: str) -> Iterator[tuple[bool, str]]:
        """Yield pieces in order: whether it is a pasted text, and the piece."""
        self._last = self._clock()
        data, self._held = self._held + data, ""
        while data:
            mark = END if self._pasting else START
            before, found, after = data.partition(mark)
            if not found:
                break
            if before or self._pasting:
                yield self._pasting, before
            self._pasting, data = not self._pasting, after
        if self._pasting:
            self._held = data
        elif data:
            kept = next(
                (size for size in range(len(START) - 1, _SHORTEST_HELD - 1, -1)
                 if data.endswith(START[:size])), 0,
            )  # fmt: skip
            ready, self._held = data[: len(data) - kept], data[len(data) - kept :]
            if ready:
                yield False, ready

    def stalled(self) -> Iterator[tuple[bool, str]]:
        """Yield what waits for an end that does not come."""
        if self._held and self._clock() - self._last >= STALLED_SECONDS:
            pasting, held = self._pasting, self._held
            self._pasting, self._held = False, ""
            yield pasting, held


class PasteAwareDriver(LinuxDriver):
    """Textual's driver, with pastes taken out of the input first, and fewer bytes written."""

    def write(self, data: str) -> None:
        """Write to the terminal what paints the same as `data`."""
        super().write(squeezed(data))

    def run_input_thread(self) -> None:
        """Read the terminal until the end and hand on events."""
        parser, splitter = XTermParser(self._debug), PasteSplitter()
        decode = getincrementaldecoder("utf-8")("replace").decode

        def hand_on(pieces: Iterable[tuple[bool, str]]) -> None:
            for pasted, piece in pieces:
                if pasted:
                    self.process_message(events.Paste(piece.replace("\x00", "")))
                else:
                    for index, keys in enumerate(_ESCAPE_AND_KEY.split(piece)):
                        if index:
                            self.process_message(events.Key("escape", "\x1b"))
                        if keys:  # nothing would mean the end of all input
                            self._process_all(parser.feed(keys))

        with selectors.DefaultSelector() as selector:
            selector.register(self.fileno, selectors.EVENT_READ)
            while not self.exit_event.is_set():
                if selector.select(_POLL_SECONDS):
                    data = os.read(self.fileno, _READ_BYTES)
                    if not data:
                        break
                    hand_on(splitter.split(decode(data)))
                hand_on(splitter.stalled())
                self._process_all(parser.tick())
            if selector.select(_POLL_SECONDS):  # late answers must not reach the shell
                os.read(self.fileno, _READ_BYTES)

    def _process_all(self, messages: Iterable[Message]) -> None:
        for message in messages:
            self.process_message(message)


def without_alt(event: events.Key) -> tuple[events.Key, ...]:
    """Return escape and the letter for a letter that came at once after escape."""
    if event.key.startswith("alt+") and event.character and event.character.isalnum():
        escape = events.Key("escape", "\x1b")
        letter = events.Key(event.character, event.character)
        escape.time = letter.time = event.time
        return escape, letter
    return (event,)
