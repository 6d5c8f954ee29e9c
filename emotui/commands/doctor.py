"""`emotui doctor`: is everything here, and do hooked and plain runs agree."""

from __future__ import annotations

import sys
from pathlib import Path

from emotui.commands.common import cache_for, wait_for
from emotui.core.errors import EmotuiError
from emotui.core.protocol import Diagnosed, DoctorRequest, ModelSpec
from emotui.core.text import clean


def diagnose(spec: ModelSpec | None, *, cache_dir: Path | None) -> None:
    """Print one fact a line; raise EmotuiError (exit code 1) where one of them is bad."""
    from emotui.cache.store import Store
    from emotui.core.client import EngineClient

    with cache_for(cache_dir, private=False) as root:
        with Store.open(root) as store:
            facts = [("cache", f"{root} ({store.size().evictable_bytes / 1e6:.1f} MB)", True)]
        offline = spec is not None and spec.offline
        with EngineClient(root, offline=offline) as client:
            done = wait_for(client.submit(DoctorRequest(spec)))
    assert isinstance(done, Diagnosed)
    facts.extend(done.facts)
    width = max(len(name) for name, _, _ in facts)
    for name, value, good in facts:
        sys.stdout.write(f"{'ok ' if good else 'BAD'}  {name.ljust(width)}  {clean(value)}\n")
    bad = [name for name, _, good in facts if not good]
    if bad:
        raise EmotuiError(
            f"{len(bad)} of {len(facts)} checks failed: {', '.join(bad)}.",
            todo="The lines marked BAD say what was found.",
        )
