"""What the user set in files: themes and keys, and which theme is in force at the start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from textual.theme import BUILTIN_THEMES, Theme

from emotui.core.errors import UsageError
from emotui.core.text import clean
from emotui.themes import DARK, MONO, SIXTEEN, THEMES
from emotui.ui.actions import ACTIONS, Action
from emotui.ui.keymap import load_keymap

FOLDER_VARIABLE = "EMOTUI_CONFIG_DIR"


@dataclass(frozen=True)
class Appearance:
    """Themes of the user, and the table of actions with the user's keys."""

    themes: tuple[Theme, ...] = ()
    actions: tuple[Action, ...] = ACTIONS


def settings_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Return where `keymap.toml` and `themes/*.toml` are looked for."""
    named = (os.environ if environ is None else environ).get(FOLDER_VARIABLE)
    return Path(named) if named else Path(platformdirs.user_config_dir("emotui"))


def load_appearance(folder: Path | None = None) -> Appearance:
    """Return what the user's files say; UsageError that names the file that is wrong."""
    folder = folder or settings_folder()
    themes: list[Theme] = []
    if (folder / "themes").is_dir():
        from emotui.themes.user import user_themes

        themes = user_themes(folder / "themes")
    return Appearance(tuple(themes), load_keymap(folder / "keymap.toml"))


def own_names(themes: tuple[Theme, ...]) -> list[str]:
    """Return the names of the project's themes and of the user's, in the order of the key."""
    return [theme.name for theme in (*THEMES, *themes)]


def theme_at_start(
    wanted: str | None, *, themes: tuple[Theme, ...], coloured: bool, few_colours: bool
) -> str:
    """Return the theme to start with: `wanted` where colours are, else what the terminal can show.

    Raises UsageError for a theme that does not exist.
    """
    known = {*own_names(themes), *BUILTIN_THEMES}
    if wanted is not None and wanted not in known:
        raise UsageError(
            f"There is no theme called {clean(wanted)!r}.",
            todo=f"Use one of: {', '.join(sorted(known))}.",
        )
    if not coloured:
        return MONO
    return wanted or (SIXTEEN if few_colours else DARK)
