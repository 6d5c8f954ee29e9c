"""The colours: the project's themes, and the nine steps of the diverging ramp."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from textual.theme import BUILTIN_THEMES, Theme

STEPS = 4
"""Steps of the ramp on each side of zero."""

DARK = "emotui-dark"
LIGHT = "emotui-light"
CONTRAST = "emotui-contrast"
"""Black ground, white text, contrast of 7 and more."""
SIXTEEN = "emotui-16"
"""The terminal's own sixteen colours."""
MONO = "emotui-mono"


def ramp_variable(step: int) -> str:
    """Return the theme variable of a step from -4 (blue) over 0 to 4 (orange)."""
    if step == 0:
        return "ramp-zero"
    return f"ramp-{'less' if step < 0 else 'more'}-{abs(step)}"


_SCROLLBAR = (
    *("scrollbar", "scrollbar-hover", "scrollbar-active", "scrollbar-corner-color"),
    *("scrollbar-background", "scrollbar-background-hover", "scrollbar-background-active"),
)


def _scrollbar(ground: str, *states: str) -> dict[str, str]:
    """Return a scrollbar's variables; `states` are at rest, under the pointer, dragged."""
    return dict(zip(_SCROLLBAR, (*states, ground, ground, ground, ground), strict=True))


def _ramp(less: tuple[str, ...], zero: str, more: tuple[str, ...]) -> dict[str, str]:
    """Return the ramp as variables; `less` and `more` run outwards from zero."""
    steps = {ramp_variable(0): zero}
    for distance, (blue, orange) in enumerate(zip(less, more, strict=True), start=1):
        steps[ramp_variable(-distance)] = blue
        steps[ramp_variable(distance)] = orange
    return steps


# Blue and orange stay apart for every common kind of colour blindness; the steps differ in
# lightness first, so that they stay apart in 256 colours too (a test holds them to it).
_DARK_RAMP = _ramp(
    ("#1c3048", "#1f4f7d", "#2f7fbf", "#6fb9f2"),
    "#16191f",
    ("#48331a", "#7a4a12", "#c0731a", "#f5ad4e"),
)
_LIGHT_RAMP = _ramp(
    ("#d5e4f2", "#9fc5e8", "#5595cf", "#1d5f9f"),
    "#fafaf7",
    ("#fae3c6", "#f3bd7c", "#d98324", "#985200"),
)
_CONTRAST_RAMP = _ramp(
    ("#0a2a52", "#0e56a8", "#4fa8ff", "#b5dcff"),
    "#000000",
    ("#472a00", "#8a5200", "#ff9d1f", "#ffdc9e"),
)
_MONO_RAMP = _ramp(("ansi_default",) * STEPS, "ansi_default", ("ansi_default",) * STEPS)

_DARK_VARIABLES = {
    **_DARK_RAMP,
    "quiet": "#858e9c",
    "warm": "#f5ad4e",
    "cool": "#6fb9f2",
    **_scrollbar("#16191f", "#2c323d", "#3b4452", "#556070"),
}

THEMES = (
    Theme(
        name=DARK,
        primary="#8fb8de",
        secondary="#5f7f9f",
        accent="#f5ad4e",
        warning="#e8b45a",
        error="#ef7a6d",
        success="#86c98e",
        foreground="#d9dde4",
        background="#101318",
        surface="#16191f",
        panel="#1e232b",
        dark=True,
        variables=_DARK_VARIABLES,
    ),
    Theme(
        name=LIGHT,
        primary="#1d5f9f",
        secondary="#4b6a88",
        accent="#985200",
        warning="#8a5a00",
        error="#b3261e",
        success="#2c7a3a",
        foreground="#22262c",
        background="#f1f1ec",
        surface="#fafaf7",
        panel="#e6e6df",
        dark=False,
        variables={
            **_LIGHT_RAMP,
            "quiet": "#5f646c",
            "warm": "#985200",
            "cool": "#1d5f9f",
            **_scrollbar("#fafaf7", "#cfcfc6", "#b4b4a9", "#97978b"),
        },
    ),
    Theme(
        name=CONTRAST,
        primary="#9fd0ff",
        secondary="#c0c0c0",
        accent="#ffb347",
        warning="#ffd75f",
        error="#ff9a8f",
        success="#8fe89a",
        foreground="#ffffff",
        background="#000000",
        surface="#000000",
        panel="#1c1c1c",
        dark=True,
        variables={
            **_CONTRAST_RAMP,
            "quiet": "#c8c8c8",
            "warm": "#ffb347",
            "cool": "#8cc8ff",
            **_scrollbar("#000000", "#808080", "#b0b0b0", "#ffffff"),
        },
    ),
    Theme(
        name=SIXTEEN,
        ansi=True,
        primary="ansi_blue",
        secondary="ansi_default",
        accent="ansi_yellow",
        warning="ansi_yellow",
        error="ansi_red",
        success="ansi_green",
        foreground="ansi_default",
        background="ansi_default",
        surface="ansi_default",
        panel="ansi_default",
        boost="ansi_default",
        variables={
            **dict.fromkeys(BUILTIN_THEMES["ansi-dark"].variables, "ansi_default"),
            **_MONO_RAMP,
            "quiet": "ansi_default",
            "warm": "ansi_yellow",
            "cool": "ansi_cyan",
            **dict.fromkeys(_SCROLLBAR, "ansi_default"),
            "input-cursor-text-style": "reverse",
        },
    ),
    Theme(
        name=MONO,
        ansi=True,
        primary="ansi_default",
        secondary="ansi_default",
        accent="ansi_default",
        warning="ansi_default",
        error="ansi_default",
        success="ansi_default",
        foreground="ansi_default",
        background="ansi_default",
        surface="ansi_default",
        panel="ansi_default",
        boost="ansi_default",
        variables={
            **dict.fromkeys(BUILTIN_THEMES["ansi-dark"].variables, "ansi_default"),
            **_MONO_RAMP,
            "quiet": "ansi_default",
            "warm": "ansi_default",
            "cool": "ansi_default",
            **dict.fromkeys(_SCROLLBAR, "ansi_default"),
            "input-cursor-text-style": "reverse",
        },
    ),
)
"""Registered with the app; `emotui-mono` is taken where NO_COLOR is set, `emotui-16` where the
terminal has no more colours."""

VARIABLE_DEFAULTS: Mapping[str, str] = MappingProxyType(
    {**_DARK_RAMP, "quiet": "#858e9c", "warm": "#f5ad4e", "cool": "#6fb9f2"}
)
"""The project's own variables, for themes that do not define them."""
