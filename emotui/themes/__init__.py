"""Palettes, ramps and style sheets of the screen."""

from __future__ import annotations

from pathlib import Path

from emotui.themes.palettes import (
    CONTRAST,
    DARK,
    LIGHT,
    MONO,
    SIXTEEN,
    STEPS,
    THEMES,
    VARIABLE_DEFAULTS,
    ramp_variable,
)

__all__ = [
    "CONTRAST",
    "DARK",
    "LIGHT",
    "MONO",
    "SIXTEEN",
    "STEPS",
    "STYLE_SHEET",
    "THEMES",
    "VARIABLE_DEFAULTS",
    "ramp_variable",
]

STYLE_SHEET = Path(__file__).with_name("explorer.tcss")
