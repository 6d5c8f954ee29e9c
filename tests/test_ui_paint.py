"""Numbers and strings as they are painted, against independent expectations."""

from __future__ import annotations

import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.color import ColorSystem
from textual.color import Color

from emotui.themes import CONTRAST, DARK, LIGHT, SIXTEEN, STEPS, THEMES, ramp_variable
from emotui.ui.paint import bar, contrast, fit, glyph_of, number, palette_of, safe, step_of, visible
from emotui.ui.panes.layers import cell_text
from emotui.ui.readings import Cell

HOSTILE = [chr(code) for code in range(0x100)] + [
    *"\u200b\u200d\u202a\u202e\u2066\u2069\u061c\ufeff\u2028\ufe0f\U000e0041\ud800",
]


@pytest.mark.parametrize(
    ("z", "step", "glyph"),
    [
        (0.0, 0, " "), (0.49, 0, " "), (-0.5, -1, "·"), (1.0, 2, "░"), (-2.2, -3, "▒"),
        (3.0, 4, "▓"), (-4.0, -4, "█"), (99.0, 4, "█"), (float("nan"), 0, " "),
    ],
)  # fmt: skip
def test_steps_and_glyphs(z: float, step: int, glyph: str) -> None:
    assert (step_of(z), glyph_of(z)) == (step, glyph)


@pytest.mark.parametrize(
    ("value", "width", "shown"),
    [
        (1.24, 4, "+1.2"), (-0.96, 4, "-1.0"), (12.3, 4, " +12"), (-123.4, 4, "-123"),
        (12345.0, 4, "+999"), (0.01, 4, " 0.0"), (-0.01, 4, " 0.0"), (2.6, 2, "+3"),
        (0.2, 2, " 0"), (-17.0, 2, "-9"), (math.nan, 4, "   ?"), (math.inf, 2, " ?"),
    ],
)  # fmt: skip
def test_numbers_fit_and_keep_their_sign(value: float, width: int, shown: str) -> None:
    assert number(value, width) == shown


@given(st.floats(allow_nan=True, allow_infinity=True), st.integers(3, 9), st.booleans())
def test_a_cell_is_as_wide_as_its_column(z: float, width: int, cursor: bool) -> None:
    for hollow in (False, True):
        cell = Cell(z, True, "trusted", hollow, False, not hollow)
        text = cell_text(cell, width, cursor=cursor)
        assert cell_len(text) == width
        if math.isfinite(z) and abs(z) >= 0.5:
            assert ("+" in text) == (z > 0)
            assert ("-" in text) == (z < 0)


def test_cells_say_without_colour_what_they_are() -> None:
    cell = Cell(2.34, True, "trusted", False, False, True)
    assert cell_text(cell, 6, cursor=False) == "▒+2.3*"
    assert cell_text(cell, 6, cursor=True) == "[+2.3]"
    outside = Cell(-2.34, True, "trusted", True, False, False)
    assert cell_text(outside, 6, cursor=False) == "(-2.3)"
    made = Cell(0.7, True, "trusted", False, True, False)
    assert cell_text(made, 6, cursor=False) == "·+0.7c"
    assert cell_text(None, 6, cursor=False) == " " * 6
    assert cell_text(None, 6, cursor=True) == "[    ]"


@given(st.text(), st.integers(0, 40))
def test_fit_is_exact(text: str, width: int) -> None:
    assert cell_len(fit(visible(text), width)) == width


@given(st.text(alphabet=st.sampled_from(HOSTILE + list("ab[/]")), max_size=30))
def test_nothing_dangerous_is_left(text: str) -> None:
    for shown in (visible(text), safe(text).plain):
        for character in shown:
            assert unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


@pytest.mark.parametrize(
    "text", ["[bold]x[/bold]", "[/nope]", "[INST] a [/INST]", "[@click=q]a[/]"]
)
def test_markup_is_text(text: str) -> None:
    content = safe(text)
    assert content.plain == text
    assert content.spans == []


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.0, "    "), (1.0, "████"), (0.5, "██  "), (0.001, "▏   "), (7.0, "████")],
)
def test_bars(share: float, shown: str) -> None:
    assert bar(share, 4) == shown


def _variables(name: str) -> dict[str, str]:
    theme = next(theme for theme in THEMES if theme.name == name)
    return {**theme.to_color_system().generate(), **theme.variables}


@pytest.mark.parametrize("name", [DARK, LIGHT, CONTRAST])
def test_what_is_written_can_be_read(name: str) -> None:
    palette = palette_of(_variables(name), coloured=True)
    for style in (palette.base, palette.quiet, *palette.fills.values(), *palette.inks.values()):
        assert style.color is not None
        assert style.bgcolor is not None
        ink, paper = (Color.from_rich_color(part) for part in (style.color, style.bgcolor))
        assert contrast(ink, paper) >= 4.5, style


@pytest.mark.parametrize("name", [DARK, LIGHT, CONTRAST])
def test_names_of_the_screen_can_be_read(name: str) -> None:
    variables = _variables(name)
    inks = ("foreground", "primary", "error", "quiet", "warm", "cool")
    for ink in inks:
        for paper in ("background", "surface", "panel"):
            ratio = contrast(Color.parse(variables[ink]), Color.parse(variables[paper]))
            assert ratio >= (7 if name == CONTRAST else 4.5), (ink, paper, ratio)


def test_the_terminals_own_colours_are_not_painted_over() -> None:
    palette = palette_of(_variables(SIXTEEN), coloured=True)
    styles = (palette.base, palette.quiet, palette.cursor, *palette.fills.values())
    assert all(style.bgcolor is None for style in styles)
    colours = {style.color.number for style in palette.fills.values() if style.color is not None}
    assert colours == {3, 6}  # yellow and cyan, whatever the terminal makes of them
    assert len({str(palette.fills[step]) for step in range(-4, 5)}) == 7
    assert palette.fills[4] != palette.fills[-4]


@pytest.mark.parametrize("name", [DARK, LIGHT, CONTRAST])
def test_nine_steps_stay_apart_in_256_colours(name: str) -> None:
    variables = _variables(name)
    seen = {
        Color.parse(variables[ramp_variable(step)]).rich_color.downgrade(ColorSystem.EIGHT_BIT)
        for step in range(-STEPS, STEPS + 1)
    }
    assert len(seen) == 9


def test_without_colours_no_style_has_one() -> None:
    palette = palette_of(_variables(DARK), coloured=False)
    for style in (palette.base, palette.cursor, *palette.fills.values(), *palette.inks.values()):
        assert style.color is None
        assert style.bgcolor is None
    assert palette.cursor.reverse


def test_a_cell_says_its_own_trust_where_it_is_not_the_rows() -> None:
    """A defined emotion that is lexical stands in a row whose first emotion is trusted."""
    lexical = Cell(4.0, True, "lexical", False, False, True)
    assert cell_text(lexical, 6, cursor=False, row_trust="trusted") == "█+4.0l"
    assert cell_text(lexical, 6, cursor=False, row_trust="lexical") == "█+4.0*"
    untrusted = Cell(-4.0, True, "untrusted", False, False, False)
    assert cell_text(untrusted, 4, cursor=False, row_trust="trusted") == "█-4u"
