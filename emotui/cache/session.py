"""Where the explorer was when it was left: a small file for each model, beside the traces."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import msgspec

from emotui.cache import files, layout
from emotui.core.protocol import ModelSpec
from emotui.core.records import Site


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A trace and a place in it. It holds no text: the trace does."""

    trace: str
    position: int
    layer: int
    site: Site
    emotion: str
    view: str
    sorting: str


def _path(root: Path, spec: ModelSpec) -> Path:
    name = f"{spec.model}\n{spec.revision or ''}"
    return root / "sessions" / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"


def save_session(root: Path, spec: ModelSpec, session: Session) -> None:
    """Keep a session in place of the one before, mode 0600; nothing where it cannot be written."""
    path = _path(root, spec)
    with contextlib.suppress(OSError):
        files.make_folder(path.parent)
        files.write_whole(path, msgspec.json.encode(session))


def saved_session(root: Path, spec: ModelSpec) -> Session | None:
    """Return where a model's explorer was left; None where that is not known or its trace gone."""
    try:
        session = msgspec.json.decode(_path(root, spec).read_bytes(), type=Session)
        if not layout.is_hex(session.trace):
            return None
        known = layout.file_of(root, "traces", session.trace).is_file()
    except (OSError, msgspec.MsgspecError, ValueError):
        return None
    return session if known else None
