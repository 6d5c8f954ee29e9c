"""The application's keys and pastes on their way in: what acts, what is text, and in what turn."""

from __future__ import annotations

import time
from abc import abstractmethod

from textual import events
from textual.app import App
from textual.widgets import Input

from emotui.ui.actions import PaneName
from emotui.ui.driver import without_alt
from emotui.ui.keys import EditorGate, KeyGate, Release, Stroke
from emotui.ui.panes.lines import taken

_TIMER_SLACK = 0.002
_TYPED_IN: tuple[PaneName, ...] = ("editor", "console")


class GatedApp(App[int]):
    """An application that tells pasted texts from keys."""

    gate_keys = False
    """Whether to look for pastes among keys; off unless there is a terminal."""

    _gate: KeyGate | None = None
    _editor_gate: EditorGate | None = None

    @abstractmethod
    def pane_in_focus(self) -> PaneName | None:
        """Return the pane that keys go to; None on another screen."""

    @abstractmethod
    async def paste_outside(self, text: str) -> None:
        """Make a text that was pasted anywhere else the editor's."""

    @abstractmethod
    def is_careful(self, key: str) -> bool:
        """Whether a key does more than move or show."""

    async def on_event(self, event: events.Event) -> None:
        """Look at keys and pastes before they act."""
        if isinstance(event, events.Paste) and not event.is_forwarded:
            await self._take_paste(event)
        elif isinstance(event, events.Key) and not event.is_forwarded:
            for key in without_alt(event):
                await self._take_key(key)
        else:
            await super().on_event(event)

    @property
    def _gates(self) -> tuple[KeyGate, EditorGate]:
        if self._gate is None or self._editor_gate is None:
            self._gate, self._editor_gate = KeyGate(self.is_careful), EditorGate()
        return self._gate, self._editor_gate

    async def _take_key(self, event: events.Key) -> None:
        if not self.gate_keys or isinstance(self.focused, Input):
            await self._act(event)
            return
        gates: tuple[KeyGate | EditorGate, ...] = self._gates
        gate, other = reversed(gates) if self.pane_in_focus() == "editor" else gates
        stroke = Stroke(event.key, event.character, event.time)
        for release in (*other.release(), *gate.take(stroke)):
            await self._let_through(release)
        if gate.holding:
            self.set_timer(max(0.001, gate.due - time.monotonic()), self._release_due)

    async def _release_due(self) -> None:
        for gate in self._gates:
            if gate.holding and gate.due <= time.monotonic() + _TIMER_SLACK:
                for release in gate.release():
                    await self._let_through(release)

    async def _let_through(self, release: Release) -> None:
        if release.kind == "paste":
            await self.paste_outside(release.text)
            return
        for stroke in release.strokes:
            await self._act(events.Key(stroke.key, stroke.character))

    async def _act(self, key: events.Key) -> None:
        if self.focused is not None and self.pane_in_focus() in _TYPED_IN and not key.is_printable:
            await taken(self.focused)
        await super().on_event(key)

    async def _take_paste(self, event: events.Paste) -> None:
        if self.pane_in_focus() == "editor" or isinstance(self.focused, Input):
            await super().on_event(event)
        else:
            await self.paste_outside(event.text)
