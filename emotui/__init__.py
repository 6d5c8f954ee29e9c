"""emotui: where in a language model an emotion is, what wrote it, what removing it does.

From Python: `with emotui.open() as session: session.inspect("a text")`; see docs/python.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emotui.api import Session, SessionTrace
    from emotui.api import open_session as open  # noqa: A004
    from emotui.core.errors import (
        CacheError,
        Cancelled,
        EditError,
        EmotuiError,
        EngineError,
        ExportError,
        ModelError,
        ProbeError,
        SaeError,
        TextError,
        UsageError,
    )

__version__ = "0.1.0"

__all__ = [
    "CacheError",
    "Cancelled",
    "EditError",
    "EmotuiError",
    "EngineError",
    "ExportError",
    "ModelError",
    "ProbeError",
    "SaeError",
    "Session",
    "SessionTrace",
    "TextError",
    "UsageError",
    "__version__",
    "open",
]

_PLACES = {
    "open": ("emotui.api", "open_session"),
    "Session": ("emotui.api", "Session"),
    "SessionTrace": ("emotui.api", "SessionTrace"),
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is first asked for: most of emotui needs none of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, own_name = _PLACES.get(name, ("emotui.core.errors", name))
    return getattr(import_module(module), own_name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
