"""The user's own themes: TOML files in a folder, one theme each, named as the file."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec
from textual.color import Color, ColorParseError
from textual.theme import Theme

from emotui.core.errors import UsageError
from emotui.core.text import clean
from emotui.themes.palettes import CONTRAST, DARK, LIGHT, STEPS, THEMES, ramp_variable


class ThemeFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a theme's file may say; what it leaves out is that of the project's theme `base`."""

    base: str = DARK
    primary: str | None = None
    secondary: str | None = None
    accent: str | None = None
    warning: str | None = None
    error: str | None = None
    success: str | None = None
    foreground: str | None = None
    background: str | None = None
    surface: str | None = None
    panel: str | None = None
    quiet: str | None = None
    warm: str | None = None
    cool: str | None = None
    ramp: tuple[str, ...] = ()
    """Nine colours, from far below neutral texts over zero to far above."""


_COLOURS = (
    *("primary", "secondary", "accent", "warning", "error", "success"),
    *("foreground", "background", "surface", "panel"),
)
_VARIABLES = ("quiet", "warm", "cool")


def user_themes(folder: Path) -> list[Theme]:
    """Return the themes of all `.toml` files of a folder, by name; [] where there is none.

    Raises UsageError that names the file and the field that is wrong.
    """
    return [_theme_of(path) for path in sorted(folder.glob("*.toml"))]


def _theme_of(path: Path) -> Theme:
    try:
        file = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), ThemeFile)
        return _built(path.stem, file)
    except (
        OSError,
        ValueError,
        ColorParseError,
    ) as error:  # msgspec's and tomllib's are ValueError
        raise UsageError(
            f"The theme {clean(str(path))} could not be read.",
            why=clean(str(error).splitlines()[0]),
            todo="Mend it, or move it away.",
        ) from error


def _built(name: str, file: ThemeFile) -> Theme:
    bases = {theme.name: theme for theme in THEMES if theme.name in (DARK, LIGHT, CONTRAST)}
    if file.base not in bases:
        raise ValueError(f"base is one of {', '.join(bases)}")
    if len(file.ramp) not in (0, 2 * STEPS + 1):
        raise ValueError(f"ramp holds {len(file.ramp)} colours; it takes {2 * STEPS + 1}")
    base = bases[file.base]
    given = {field: getattr(file, field) for field in (*_COLOURS, *_VARIABLES)}
    steps = {ramp_variable(step - STEPS): colour for step, colour in enumerate(file.ramp)}
    colours = {field: colour for field, colour in {**given, **steps}.items() if colour is not None}
    for field, colour in colours.items():
        if Color.parse(colour).a < 1:
            raise ValueError(f"{field} is not opaque")
    fields = {field: colours.get(field, getattr(base, field)) for field in _COLOURS}
    variables = {k: v for k, v in colours.items() if k not in _COLOURS}
    return Theme(name=name, dark=base.dark, variables={**base.variables, **variables}, **fields)
