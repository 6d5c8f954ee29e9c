"""The actions: one table that bindings, footer and help read.

An action that is not built yet keeps its key here, so that no other takes it, and is shown nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable

from emotui.ui.actions.action import PANES, Action, PaneName
from emotui.ui.actions.editing import EDITING_ACTIONS
from emotui.ui.actions.listing import LISTING_ACTIONS
from emotui.ui.actions.looking import LOOKING_ACTIONS
from emotui.ui.actions.working import WORKING_ACTIONS

__all__ = [
    "ACTIONS",
    "PANES",
    "Action",
    "PaneName",
    "action_for",
    "actions_of",
    "clashes",
    "named_key",
    "shown_key",
]

ACTIONS: tuple[Action, ...] = (
    *LOOKING_ACTIONS,
    *EDITING_ACTIONS,
    *WORKING_ACTIONS,
    *LISTING_ACTIONS,
)
"""Every action, in the order footer and help show them."""

_SHOWN_KEYS = {
    "colon": ":",
    "question_mark": "?",
    "slash": "/",
    "enter": "enter",
    "escape": "esc",
    "left": "←",
    "right": "→",
    "up": "↑",
    "down": "↓",
    "ctrl+j": "^j",
    "ctrl+t": "^t",
    "ctrl+c": "^c",
    "ctrl+p": "^p",
    "shift+tab": "shift+tab",
    "pageup": "pgup",
    "pagedown": "pgdn",
}


def shown_key(key: str) -> str:
    """Return a key as footer and help write it."""
    return _SHOWN_KEYS.get(key, key)


def named_key(shown: str) -> str:
    """Return a key as Textual names it, from how footer and help write it."""
    return next((name for name, written in _SHOWN_KEYS.items() if written == shown), shown)


def actions_of(pane: PaneName, *, actions: Iterable[Action] = ACTIONS) -> list[Action]:
    """Return the built actions whose keys a pane hears, in the table's order."""
    return [action for action in actions if action.built and pane in action.panes]


def action_for(pane: PaneName, key: str, *, actions: Iterable[Action] = ACTIONS) -> Action | None:
    """Return the built action a key means in a pane; None where it means nothing."""
    found = (action for action in actions_of(pane, actions=actions) if key in action.keys)
    return next(found, None)


def clashes(actions: Iterable[Action] = ACTIONS) -> list[str]:
    """Name every key with two meanings in one pane, built or not; [] is as it must be."""
    owner: dict[tuple[PaneName, str], str] = {}
    found = []
    for action in actions:
        for place in ((pane, key) for pane in action.panes for key in action.keys):
            first = owner.setdefault(place, action.id)
            if first != action.id:
                found.append(f"{place[1]} in {place[0]}: {first} and {action.id}")
    return found
