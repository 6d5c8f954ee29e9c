"""The user's own keys: a TOML file that gives actions of the table other keys."""

from __future__ import annotations

import difflib
import tomllib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from emotui.core.errors import UsageError
from emotui.core.text import clean
from emotui.ui.actions import ACTIONS, Action, clashes, named_key

_NOT_IN_TMUX = ("enter", "tab", "escape", "space", "backspace")
"""Keys that reach no program in tmux together with shift or ctrl."""


def load_keymap(path: Path) -> tuple[Action, ...]:
    """Return the table of actions with the keys that a file gives them.

    The file holds a table `keys`: an action's id, and a key or a list of keys. Where there is no
    file, the table is the project's own. Raises UsageError that names the file and what is wrong.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ACTIONS
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            f"The keymap {clean(str(path))} could not be read.",
            why=clean(str(error)),
            todo="Mend it, or move it away.",
        ) from error
    wanted = document.get("keys", {})
    if set(document) - {"keys"} or not isinstance(wanted, dict):
        raise UsageError(
            f"The keymap {clean(str(path))} is not understood.",
            todo='Write a table [keys] with lines such as: "edit.undo" = "b"',
        )
    try:
        return remapped({name: _keys_of(name, value) for name, value in wanted.items()})
    except UsageError as error:
        raise UsageError(f"{clean(path.name)}: {error.what}", todo=error.todo) from error


def _keys_of(name: str, value: object) -> tuple[str, ...]:
    keys = [value] if isinstance(value, str) else value
    if not isinstance(keys, list) or not keys or not all(isinstance(k, str) and k for k in keys):
        raise UsageError(
            f"The keys of {clean(name)} are not understood.",
            todo='Write a key such as "b", or a list such as ["b", "f5"].',
        )
    return tuple(_key_of(key) for key in keys)


def _key_of(key: str) -> str:
    """Return a key as Textual names it."""
    modifier, _, base = key.rpartition("+")
    if modifier and base in _NOT_IN_TMUX:
        raise UsageError(f"{clean(key)} does not reach emotui in tmux.", todo="Choose another key.")
    named = named_key(key)
    if len(named) == 1 and not named.isalnum():
        name = unicodedata.name(named, "")
        if not name:
            raise UsageError(f"{clean(key)!r} is no key.", todo="Choose a letter or a sign.")
        return name.lower().replace("-", "_").replace(" ", "_")
    return named


def remapped(
    keymap: Mapping[str, tuple[str, ...]], *, actions: Iterable[Action] = ACTIONS
) -> tuple[Action, ...]:
    """Return the table with other keys; UsageError for no such action, or a key with two."""
    table = tuple(actions)
    ids = [action.id for action in table]
    for name in keymap:
        if name not in ids:
            near = difflib.get_close_matches(name, ids, n=3, cutoff=0.5)
            raise UsageError(
                f"There is no action called {clean(name)}.",
                todo=f"Did you mean {', '.join(near)}?" if near else "The help (?) lists them.",
            )
    changed = tuple(
        replace(action, keys=keymap[action.id]) if action.id in keymap else action
        for action in table
    )
    if found := clashes(changed):
        raise UsageError(
            f"A key would have two meanings: {found[0]}.",
            todo="Give one of the two actions another key.",
        )
    return changed


def as_textual(actions: Iterable[Action]) -> dict[str, str]:
    """Return what differs from the project's own keys, by the ids of the panes' bindings."""
    own = {action.id: action.keys for action in ACTIONS}
    return {
        f"{pane}.{action.id}": ",".join(action.keys)
        for action in actions
        if action.keys != own[action.id]
        for pane in action.panes
    }
