"""The command palette: what the focused pane can do now, with its keys."""

from __future__ import annotations

from functools import partial

from textual.command import CommandPalette, DiscoveryHit, Hit, Hits, Provider

from emotui.ui.actions import Action, actions_of, shown_key
from emotui.ui.screens.explore import ExploreScreen

_LEFT_OUT = ("app.palette", "move.")
"""Beginnings of the ids that are not offered: itself, and what only moves the cursor."""


class ActionProvider(Provider):
    """The actions of the pane that hears keys, found by name or by what they do."""

    async def discover(self) -> Hits:
        """Return all of them, in the order of the table."""
        for action in self._actions():
            yield DiscoveryHit(_shown(action), self._run(action), _shown(action), action.help)

    async def search(self, query: str) -> Hits:
        """Return those whose name or help is like `query`."""
        matcher = self.matcher(query)
        for action in self._actions():
            score = max(matcher.match(_shown(action)), matcher.match(action.help) / 2)
            if score > 0:
                name = _shown(action)
                yield Hit(score, matcher.highlight(name), self._run(action), name, action.help)

    def _actions(self) -> list[Action]:
        screen = self.screen
        if not isinstance(screen, ExploreScreen):
            return []
        found = actions_of(screen.pane, actions=screen.options.actions)
        return [action for action in found if not action.id.startswith(_LEFT_OUT)]

    def _run(self, action: Action) -> partial[bool]:
        screen = self.screen
        assert isinstance(screen, ExploreScreen)
        return partial(screen.call_later, screen.action_do, action.id)


def _shown(action: Action) -> str:
    return f"{action.label}  ({' '.join(shown_key(key) for key in action.keys)})"


def palette() -> CommandPalette:
    """Return the palette over the screen that is shown."""
    return CommandPalette(providers=[ActionProvider], placeholder="what this pane can do")
