"""The last edit of a trace on other texts, for `emotui inspect --verify`."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from emotui.commands.common import say, wait_for
from emotui.core.errors import EmotuiError, UsageError
from emotui.core.protocol import InspectRequest, Verified, VerifyRequest

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.client import EngineClient
    from emotui.core.findings import Verification
    from emotui.core.records import Trace

_SECONDS_TO_KEEP = 2.0


def check_edits(edits: tuple[str, ...]) -> None:
    """Raise UsageError where there is no edit to verify."""
    if not edits:
        raise UsageError(
            "There is no edit to verify.", todo="Name one with --do, or leave --verify out."
        )


def verified(
    request: InspectRequest, trace: Trace, texts: int, store: Store, client: EngineClient
) -> Verification:
    """Return what the last edit of a trace does on other texts; no engine where it is kept."""
    from emotui.cache.findings import kept_verification

    asked = VerifyRequest(request, texts=texts)
    kept = kept_verification(store, trace.id, asked)
    if kept is not None:
        return kept
    say(f"Repeating the edit on {texts} other texts; ctrl+c keeps those that are done.")
    pending = client.submit(asked)
    try:
        done = wait_for(pending)
    except KeyboardInterrupt:
        # The engine keeps what is done before it says that it has stopped.
        with suppress(EmotuiError, TimeoutError):
            pending.result(_SECONDS_TO_KEEP)
        raise
    assert isinstance(done, Verified)
    return done.verification
