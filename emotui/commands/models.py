"""`emotui models`: which names of models are known, and which SAEs there are for them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from emotui.commands.common import say
from emotui.core import sae_directory
from emotui.core.model_list import ModelList, matching_rows, model_lines, summary_of
from emotui.core.sae_directory import NONE
from emotui.core.text import clean


def list_models(query: str, *, as_json: bool) -> None:
    """Print the models that match, or the SAEs of a release that is named whole.

    ModelError, with what is near, where nothing matches.
    """
    if as_json:
        release = sae_directory.directory().get(query)
        found = release or ModelList(tuple(matching_rows(query)))
        _write(msgspec.json.encode(found).decode())
        return
    lines, rows = model_lines(query)
    _write("\n".join(lines))
    if rows:
        say(f"{summary_of(rows)} `emotui models RELEASE` lists the SAEs of one.")


def _write(text: str) -> None:
    sys.stdout.write(clean(text, keep_newlines=True) + "\n")


def sae_sources(
    model: str, named: Sequence[str], *, offline: bool, cache_dir: Path | None
) -> tuple[str, ...]:
    """Return the SAEs in force: those named, else the model's default, else none.

    `none` stands for no SAEs. Offline, a default that is not on this machine is left out, and a
    line says so.
    """
    if named:
        return tuple(source for source in named if source != NONE)
    default = sae_directory.default_source(model)
    if default is None or Path(model).expanduser().exists():
        return ()
    release = default.partition(":")[0]
    if offline and not _is_here(release, cache_dir):
        say(f"The SAEs {release} are not on this machine, so there are no features.")
        return ()
    return (default,)


def _is_here(release: str, cache_dir: Path | None) -> bool:
    from emotui.cache.fingerprints import hub_commit
    from emotui.cache.store import default_root

    if ((cache_dir or default_root()).expanduser() / "saes" / release).is_dir():
        return True
    known = sae_directory.directory().get(release)
    return known is not None and hub_commit(known.repository) is not None
