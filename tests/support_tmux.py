"""A tmux of a test's own: a client on a pseudo-terminal types, and the pane says what it shows."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import pytest
from support_terminal import PseudoTerminal

needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


class Tmux:
    """One server, one session, one pane with a plain shell; tmux's own defaults."""

    def __init__(
        self,
        folder: Path,
        *,
        columns: int = 160,
        lines: int = 46,
        terminal: str = "tmux-256color",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._socket = folder / "tmux.socket"
        settings = folder / "tmux.conf"
        settings.write_text(f"set -g default-terminal {terminal}\nset -g status off\n")
        command = ["tmux", "-u", "-S", str(self._socket), "-f", str(settings)]
        command += ["new-session", "-c", str(folder), "env", "PS1=ready$ ", "sh"]
        self.client = PseudoTerminal(
            command, columns=columns, lines=lines, environment=environment, folder=str(folder)
        )
        self.wait_for(lambda text: "ready$" in text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        with contextlib.suppress(subprocess.SubprocessError):
            self.ask("kill-server")
        self.client.end()

    def ask(self, *command: str) -> str:
        """Ask the server something."""
        done = subprocess.run(
            ["tmux", "-S", str(self._socket), *command],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            env={name: value for name, value in os.environ.items() if name != "TMUX"},
        )
        return done.stdout

    @property
    def text(self) -> str:
        """What the pane shows."""
        return self.ask("capture-pane", "-p")

    def send(self, keys: str) -> None:
        """Type on the client's terminal, all at once."""
        self.client.send(keys)
        self.client.settle(0.1, 1.0)

    def paste(self, text: str, *, bracketed: bool) -> None:
        """Paste, as tmux does it on prefix and `]`: with or without brackets."""
        self.ask("set-buffer", text)
        self.ask("paste-buffer", *(["-p"] if bracketed else []))

    def wait_for(self, condition: Callable[[str], object], seconds: float = 40.0) -> str:
        """Wait until the pane meets a condition and return what it shows."""
        limit = time.monotonic() + seconds
        while True:
            with contextlib.suppress(subprocess.SubprocessError):
                shown = self.text
                if condition(shown):
                    return shown
            if time.monotonic() > limit:
                raise AssertionError(f"it did not come about on\n{self.text}")
            self.client.read(0.1, draw=False)
