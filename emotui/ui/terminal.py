"""The terminal around the screen: what it can do, and keeping everything else off it.

Imported before Textual, whose settings are read when it is imported.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from emotui.core.errors import UsageError

_HEADLESS_HINT = "`emotui inspect TEXT` prints the same trace without one."
_REMOTE = {"TEXTUAL_FPS": "15", "TEXTUAL_ANIMATIONS": "none", "TEXTUAL_SMOOTH_SCROLL": "0"}
_QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}


def check_terminal(environ: MutableMapping[str, str] | None = None) -> None:
    """Raise UsageError where no screen can be painted: no terminal, or TERM=dumb."""
    environ = os.environ if environ is None else environ
    if environ.get("TERM", "") in ("", "dumb"):
        kind = environ.get("TERM") or "not set"
        raise UsageError(f"A terminal with TERM {kind} shows no screen: {_HEADLESS_HINT}")
    if not os.isatty(0) or _screen_descriptor() is None:
        raise UsageError(f"There is no terminal to open the screen on: {_HEADLESS_HINT}")


def _screen_descriptor() -> int | None:
    """Return the descriptor to paint on: standard error where it is a terminal, else output."""
    return next((descriptor for descriptor in (2, 1) if os.isatty(descriptor)), None)


def over_ssh(environ: MutableMapping[str, str] | None = None) -> bool:
    """Return whether the terminal is at the other end of an SSH connection."""
    environ = os.environ if environ is None else environ
    return bool(environ.get("SSH_CONNECTION"))


def prepare_environment(environ: MutableMapping[str, str] | None = None) -> None:
    """Set what Textual reads when it is imported; values the user set stay.

    Over SSH: 15 frames a second and no animation.
    """
    environ = os.environ if environ is None else environ
    settings = {**_QUIET, "TEXTUAL_ANIMATIONS": "none"}
    if over_ssh(environ):
        settings |= _REMOTE
    for name, value in settings.items():
        environ.setdefault(name, value)


def wants_no_colour(environ: MutableMapping[str, str] | None = None) -> bool:
    """Return whether NO_COLOR is set, to anything. Textual takes it away: ask before."""
    environ = os.environ if environ is None else environ
    return "NO_COLOR" in environ


def has_few_colours(environ: MutableMapping[str, str] | None = None) -> bool:
    """Return whether a terminal says of itself that it has sixteen colours or fewer.

    By COLORTERM and the end of TERM's name, as Rich, which writes the colours, tells it.
    """
    environ = os.environ if environ is None else environ
    if environ.get("COLORTERM", "").strip().lower() in ("truecolor", "24bit"):
        return False
    return environ.get("TERM", "").lower().rsplit("-")[-1] not in ("256color", "kitty")


@dataclass(frozen=True)
class Terminal:
    """What was found out about the terminal before Textual was imported."""

    mouse: bool
    coloured: bool
    few_colours: bool = False
    """Whether it has sixteen colours or fewer."""


def prepare_terminal(*, mouse: bool | None = None) -> Terminal:
    """Check the terminal and set what Textual reads at its import.

    `mouse` None means yes, except over SSH. Raises UsageError where no screen can be painted.
    """
    check_terminal()
    prepare_environment()
    wanted = not over_ssh() if mouse is None else mouse
    return Terminal(mouse=wanted, coloured=not wants_no_colour(), few_colours=has_few_colours())


@contextlib.contextmanager
def shielded(log: Path | None) -> Iterator[TextIO]:
    """Keep the terminal for the screen alone, and give it back at the end.

    File descriptors 1 and 2, which libraries and children inherit, lead to `log` (made with mode
    0600; None means nowhere); `sys.__stderr__`, on which Textual paints, leads to the terminal by
    a descriptor of its own, which is also what is yielded.
    """
    saved_out, saved_err = sys.stdout, sys.stderr
    original_err, original_out = sys.__stderr__, sys.__stdout__
    for stream in (saved_out, saved_err):
        if stream is not None:
            stream.flush()
    kept = [os.dup(1), os.dup(2)]
    private = os.dup(_screen_descriptor() or 2)
    for descriptor in (*kept, private):
        os.set_inheritable(descriptor, False)
    screen = os.fdopen(private, "w", encoding="utf-8", errors="replace", newline="")
    target = _open_log(log)
    try:
        os.dup2(target, 1)
        os.dup2(target, 2)
        sys.__stderr__ = screen  # type: ignore[misc]
        sys.__stdout__ = screen  # type: ignore[misc]
        yield screen
    finally:
        with contextlib.suppress(OSError, ValueError):
            screen.flush()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        for number, descriptor in enumerate(kept, start=1):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(target)
        sys.__stderr__, sys.__stdout__ = original_err, original_out  # type: ignore[misc]
        sys.stdout, sys.stderr = saved_out, saved_err
        with contextlib.suppress(OSError, ValueError):
            screen.close()


def append_private(log: Path, text: str) -> None:
    """Append a text to a log file of mode 0600; a log that cannot be written stays as it is."""
    with contextlib.suppress(OSError):
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8", errors="replace") as file:
            file.write(text.rstrip() + "\n")


def _open_log(log: Path | None) -> int:
    if log is not None:
        with contextlib.suppress(OSError):
            log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
