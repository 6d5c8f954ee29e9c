"""Many texts: each chunk of them goes through the model in batches before its traces are asked for.

A chunk is as large as what was done in a few seconds before, so that lines keep coming.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from emotui.commands.common import progress_line, wait_for
from emotui.core.errors import Cancelled, EmotuiError
from emotui.core.protocol import InspectRequest, Prefetched, PrefetchRequest

if TYPE_CHECKING:
    from emotui.cache.prepare import Prepared
    from emotui.core.client import EngineClient

_FIRST_CHUNK = 4
_LARGEST_CHUNK = 256
_SECONDS = 5.0
"""A chunk whose batches took longer is followed by a smaller one."""


class Batches:
    """The texts of a file and their requests, in order, batched ahead of their turn.

    What goes wrong in a batch is left to the requests of its texts, which meet it again and say
    so; after it nothing more is batched: what ended an engine once may do so again.
    """

    def __init__(self, client: EngineClient, prepare: Callable[[str], Prepared]) -> None:
        self._client = client
        self._prepare = prepare
        self._failed = False
        self.texts = 0
        """How many texts went through the model in batches."""
        self.forwards = 0
        """How many forwards that took; a batch counts once."""

    def of(self, texts: Sequence[str]) -> Iterator[tuple[str, Prepared | None]]:
        """Yield each text with its prepared request; None where preparing it failed.

        Raises Cancelled and KeyboardInterrupt.
        """
        start, size = 0, _FIRST_CHUNK
        while start < len(texts):
            chunk = texts[start : start + size]
            prepared = [self._prepared(text) for text in chunk]
            began = time.monotonic()
            if len(texts) > 1:
                progress_line.within = f"texts {start + 1}-{start + len(chunk)} of {len(texts)}"
            self._run([one.request for one in prepared if one is not None and not one.trace_id])
            quick = time.monotonic() - began < _SECONDS
            size = min(size * 2, _LARGEST_CHUNK) if quick else max(size // 2, _FIRST_CHUNK)
            for number, pair in enumerate(zip(chunk, prepared, strict=True), start + 1):
                if len(texts) > 1:
                    progress_line.within = f"text {number} of {len(texts)}"
                yield pair
            start += len(chunk)

    def _prepared(self, text: str) -> Prepared | None:
        try:
            return self._prepare(text)
        except EmotuiError:
            return None

    def _run(self, requests: Sequence[InspectRequest]) -> None:
        if len(requests) < 2 or self._failed:
            return
        like = msgspec.structs.replace(requests[0], text="")
        texts = tuple(request.text for request in requests)
        try:
            pending = self._client.submit(PrefetchRequest(like, texts))
        except EmotuiError:
            return  # too large together, or not Unicode: only this chunk
        try:
            done = wait_for(pending)
        except Cancelled:
            raise
        except EmotuiError:
            self._failed = True
            return
        assert isinstance(done, Prefetched)
        self.texts += done.texts
        self.forwards += done.forwards
