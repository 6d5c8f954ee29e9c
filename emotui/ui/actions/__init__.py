"""The actions: one table that bindings, footer, help, palette and console read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from emotui.ui.actions.action import LOOKING, PANES, Action, PaneName
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
    "heard_elsewhere",
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
    """Return the actions whose keys a pane hears, in the table's order."""
    return [action for action in actions if pane in action.panes]


def action_for(pane: PaneName, key: str, *, actions: Iterable[Action] = ACTIONS) -> Action | None:
    """Return the action a key means in a pane; None where it means nothing."""
    found = (action for action in actions_of(pane, actions=actions) if key in action.keys)
    return next(found, None)


def heard_elsewhere(pane: PaneName, key: str, *, actions: Sequence[Action] = ACTIONS) -> str | None:
    """Return where a key without a meaning in this pane has one, in words; None where it has one.

    Only panes of the explorer are named, and the keys that lead there.
    """
    if action_for(pane, key, actions=actions) is not None:
        return None
    for action in actions:
        panes = [one for one in action.panes if one in LOOKING]
        if key in action.keys and panes:
            there = ", ".join(one.capitalize() for one in panes)
            leads = [other for one in panes for other in actions if other.id == f"pane.{one}"]
            keys = ", ".join(shown_key(other.keys[0]) for other in leads)
            go = "goes" if len(leads) == 1 else "go"
            return f"{shown_key(key)} ({action.label}) works in {there}: {keys} {go} there."
    return f"{shown_key(key)} is no key here; ? lists the keys of this pane."


def clashes(actions: Iterable[Action] = ACTIONS) -> list[str]:
    """Name every key with two meanings in one pane; [] is as it must be."""
    owner: dict[tuple[PaneName, str], str] = {}
    found = []
    for action in actions:
        for place in ((pane, key) for pane in action.panes for key in action.keys):
            first = owner.setdefault(place, action.id)
            if first != action.id:
                found.append(f"{place[1]} in {place[0]}: {first} and {action.id}")
    return found
