"""From numbers and strings to what is painted: steps, glyphs, cell texts, styles.

Colour is never the only carrier: a cell has a glyph for its size, a sign and digits.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.content import Content
from textual.strip import Strip

from emotui.core.text import clean
from emotui.themes import STEPS, ramp_variable

GLYPHS = " ·░▒▓█"
STEP_EDGES = (0.5, 1.0, 2.0, 3.0)
"""|z| from which the colour is that of step 1, 2, 3, 4."""
GLYPH_EDGES = (0.5, 1.0, 2.0, 3.0, 4.0)
"""|z| from which the glyph is the next of `GLYPHS`."""
_GLYPH_SHARE = 0.45
"""How much of the digits' colour is in the glyph of a filled cell."""


def safe(text: str) -> Content:
    """Return a string from a model, a file or a user as content: cleaned, never markup."""
    return Content(visible(text))


def visible(text: str) -> str:
    """Return `text` cleaned, without what terminals disagree on the width of.

    Variation selectors go, the letters of flags are written as letters, and a mark that would
    combine with the character before the string stands on a dotted circle.
    """
    if text.isascii() and text.isprintable():
        return text
    cleaned = "".join(_plain(character) for character in clean(text))
    if cleaned and unicodedata.category(cleaned[0]).startswith("M"):
        return "\N{DOTTED CIRCLE}" + cleaned
    return cleaned


def _plain(character: str) -> str:
    code = ord(character)
    if 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF or 0x1F3FB <= code <= 0x1F3FF:
        return ""
    if 0x1F1E6 <= code <= 0x1F1FF:
        return chr(ord("A") + code - 0x1F1E6)
    return character


def step_of(z: float) -> int:
    """Return the step of the ramp, -4 to 4, of a z score; not a number is 0."""
    distance = sum(abs(z) >= edge for edge in STEP_EDGES)
    return int(math.copysign(distance, z)) if distance else 0


def glyph_of(z: float) -> str:
    """Return the glyph of the size of a z score."""
    return GLYPHS[sum(abs(z) >= edge for edge in GLYPH_EDGES)]


def number(value: float, width: int = 4) -> str:
    """Return a signed number in `width` cells, with as many digits as fit: `+1.2`, ` +12`."""
    if not math.isfinite(value):
        return "?".rjust(width)
    for digits in (1, 0):
        # Half is rounded up, so that what has a glyph (|z| from 0.5) has a sign too.
        rounded = math.copysign(math.floor(abs(value) + 0.5), value) if digits == 0 else value
        shown = f"{rounded:+.{digits}f}"
        if not shown.strip("+-0."):
            shown = shown[1:]  # zero has no sign
        if len(shown) <= width:
            return shown.rjust(width)
    return ("+" if value > 0 else "-") + "9" * (width - 1)


def fit(text: str, width: int) -> str:
    """Return `text`, already clean, in exactly `width` cells: cut with an ellipsis, or padded."""
    if width <= 0:
        return ""
    if cell_len(text) <= width:
        return text + " " * (width - cell_len(text))
    kept, used = "", 0
    for character in text:
        size = cell_len(character)
        if used + size > width - 1:
            break
        kept, used = kept + character, used + size
    return kept + "…" + " " * (width - 1 - used)


def bar(share: float, width: int) -> str:
    """Return a bar of `width` cells filled to `share` (0 to 1), in eighths of a cell."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    if share > 0:
        eighths = max(eighths, 1)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (" ▏▎▍▌▋▊▉"[rest] if rest else "")).ljust(width)


def strip_of(parts: Iterable[tuple[str, Style]], width: int, base: Style) -> Strip:
    """Return a line of exactly `width` cells, neighbours of one style merged into one run."""
    segments: list[Segment] = []
    for text, style in parts:
        if segments and segments[-1].style == style:
            segments[-1] = Segment(segments[-1].text + text, style)
        elif text:
            segments.append(Segment(text, style))
    return Strip(segments).adjust_cell_length(width, base)


@dataclass(frozen=True)
class Palette:
    """The styles of a theme; `coloured` is False under NO_COLOR or a theme without colours."""

    coloured: bool
    base: Style
    quiet: Style
    strong: Style
    cursor: Style
    fills: Mapping[int, Style] = field(default_factory=dict)
    """Step to a style whose background is the step's colour."""
    inks: Mapping[int, Style] = field(default_factory=dict)
    """Step to a style that writes large steps in blue or orange: for what is not trusted."""

    glyphs: Mapping[int, Style] = field(default_factory=dict)
    """Step to the style of the glyph in a filled cell: quieter than the digits beside it."""

    def shade(self, z: float, *, filled: bool) -> Style:
        """Return the style of a cell with this z score."""
        return (self.fills if filled else self.inks)[step_of(z)]


def _ink(fill: Color) -> Color:
    """Return black or white, whichever reads better on `fill`."""
    black, white = Color(0, 0, 0), Color(255, 255, 255)
    return max((black, white), key=lambda ink: contrast(ink, fill))


def luminance(colour: Color) -> float:
    """Return the relative luminance of an opaque colour (WCAG 2.1), 0 to 1."""
    channels = (
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4
        for part in colour.normalized
    )
    return sum(
        weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), channels, strict=True)
    )


def contrast(one: Color, other: Color) -> float:
    """Return the contrast ratio of two opaque colours (WCAG 2.1), 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def palette_of(variables: Mapping[str, str], *, coloured: bool) -> Palette:
    """Return the styles for a theme's variables."""
    steps = range(-STEPS, STEPS + 1)
    if not coloured:
        plain = {step: Style(bold=abs(step) >= STEPS - 1 or None) for step in steps}
        return _on_any_ground(plain, coloured=False)
    surface = Color.parse(variables["surface"])
    if Color.parse(variables["background"]).ansi is not None:
        return _palette_of_the_terminal(variables)
    text, quiet = Color.parse(variables["foreground"]), Color.parse(variables["quiet"])
    background = surface.rich_color
    fills, inks, glyphs = {}, {}, {}
    for step in steps:
        colour = Color.parse(variables[ramp_variable(step)])
        digits = _ink(colour)
        fills[step] = Style(color=digits.rich_color, bgcolor=colour.rich_color)
        shade = colour.blend(digits, _GLYPH_SHARE)
        glyphs[step] = Style(color=shade.rich_color, bgcolor=colour.rich_color)
        ink = quiet
        if abs(step) >= STEPS - 1:
            ink = Color.parse(variables["warm" if step > 0 else "cool"])
        inks[step] = Style(color=ink.rich_color, bgcolor=background)
    fills[0] = Style(color=quiet.rich_color, bgcolor=background)
    base = Style(color=text.rich_color, bgcolor=background)
    return Palette(
        coloured=True,
        base=base,
        quiet=Style(color=quiet.rich_color, bgcolor=background),
        strong=base + Style(bold=True),
        cursor=base + Style(reverse=True, bold=True),
        fills=fills,
        inks=inks,
        glyphs=glyphs,
    )


def _palette_of_the_terminal(variables: Mapping[str, str]) -> Palette:
    """Return styles on the terminal's own ground, whose colours are not known.

    Only what is written is coloured, and the largest steps are reversed: the ground is then what
    is written with, and what could be read before can be read so too.
    """

    def style(step: int) -> Style:
        ink = Color.parse(variables["warm" if step > 0 else "cool"]).rich_color
        distance = abs(step)
        return Style(
            color=ink if distance >= STEPS - 2 else None,
            bold=distance >= STEPS - 1 or None,
            reverse=distance == STEPS or None,
        )

    styles = {step: style(step) for step in range(-STEPS, STEPS + 1)}
    return _on_any_ground(styles, coloured=True)


def _on_any_ground(steps: Mapping[int, Style], *, coloured: bool) -> Palette:
    """Return a palette that takes the terminal's own ground and ink; a style for each step."""
    return Palette(
        coloured=coloured,
        base=Style(),
        quiet=Style(dim=True),
        strong=Style(bold=True),
        cursor=Style(reverse=True, bold=True),
        fills=steps,
        inks=steps,
        glyphs=steps,
    )
