"""What the screen sends: the same picture in fewer bytes, and how many."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from support_terminal import PseudoTerminal, answer_to, painted

from emotui.ui.sequences import squeezed

COLOURS = ("", "31", "97", "38;5;67", "38;2;1;2;3", "44", "107", "48;5;16", "48;2;9;8;7")
ATTRIBUTES = ("1", "2", "3", "4", "7", "9")


def parameters() -> some.SearchStrategy[str]:
    attributes = some.lists(some.sampled_from(ATTRIBUTES), max_size=3, unique=True)
    colours = some.lists(some.sampled_from(COLOURS), max_size=2)
    return some.builds(lambda *parts: ";".join(p for part in parts for p in part if p),
                       attributes, colours)  # fmt: skip


def frames() -> some.SearchStrategy[str]:
    """Frames as Textual writes them: a move, runs of style, text, reset."""
    run = some.builds(
        lambda style, text: f"\x1b[{style}m{text}\x1b[0m" if style else text,
        parameters(),
        some.text(alphabet="ab  █é", min_size=1, max_size=6),
    )
    move = some.builds(lambda y, x: f"\x1b[{y};{x}H", some.integers(1, 5), some.integers(1, 20))
    line = some.builds(lambda at, runs: at + "".join(runs), move, some.lists(run, max_size=6))
    return some.lists(line, max_size=5).map("\n".join)


def seen(frame: str) -> list[list[tuple[object, ...]]]:
    """Return what a person sees of each cell: on a blank, only the ground and lines."""
    screen = pyte.Screen(60, 8)
    pyte.Stream(screen).feed(frame)
    lines = []
    for y in range(8):
        cells: list[tuple[object, ...]] = []
        for x in range(60):
            cell = screen.buffer[y][x]
            lined = (cell.underscore, cell.strikethrough, cell.reverse)
            ink = (cell.fg, cell.bold, cell.italics)
            shows_ink = cell.data != " " or any(lined)
            cells.append((cell.data, cell.bg, lined, ink if shows_ink else None))
        lines.append(cells)
    return lines


@given(frames())
@settings(max_examples=150, deadline=None)
def test_the_same_picture(frame: str) -> None:
    short = squeezed(frame)
    assert len(short) <= len(frame) + 3
    assert seen(short) == seen(frame)
    assert seen(short + "a") == seen(frame + "a")  # nothing is left in force


@pytest.mark.parametrize(
    "other",
    ["\x1b[?1049h", "\x1b]52;c;YQ==\x07", "plain", "\x1b[?25l\x1b[6n", "\x1b[58;5;1mx\x1b[0m"],
)
def test_what_is_no_style_passes(other: str) -> None:
    assert squeezed(other) == other.replace("\x1b[0m", "")


def test_a_change_says_only_what_changes() -> None:
    frame = "\x1b[1;38;5;4;48;5;16ma\x1b[0m\x1b[38;5;5;48;5;16mb\x1b[0m\x1b[38;5;6;48;5;16m \x1b[0m"
    assert squeezed(frame) == "\x1b[1;38;5;4;48;5;16ma\x1b[22;38;5;5mb \x1b[m"


def test_of_two_moves_the_second_is_written() -> None:
    assert squeezed("\x1b[1;1H\x1b[1m\x1b[2;1H\x1b[0m\x1b[3;1Ha\x1b[4;1H") == "\x1b[3;1Ha\x1b[4;1H"


def test_bytes_of_keys_on_the_demo(tmp_path: Path) -> None:
    """What a key costs at 160x45 in 256 colours; see benchmarks/wire.py."""
    command = [sys.executable, "-m", "emotui", "--cache-dir", str(tmp_path / "cache")]
    with PseudoTerminal(command, columns=160, lines=45) as screen:
        screen.wait_for(lambda text: painted(text) and "cache" in text, 60)
        screen.settle(0.5, 20.0)
        answer_to(screen, "2")
        first, features = answer_to(screen, "k")
        assert 0 < first < 2_000
        assert 0 < features < 8_000
        assert re.search(r"3 Features · resid L4 ", screen.text)
        answer_to(screen, "1")
        assert sum(answer_to(screen, "h")) < 20_000
        answer_to(screen, "0")
        assert sum(answer_to(screen, "h")) < 20_000
        assert 10_000 < sum(answer_to(screen, "\x14")) < 48_000
        assert 10_000 < sum(answer_to(screen, "?")) < 48_000
        screen.send("\x1b")
        screen.settle(0.3)
        screen.send("q")
        assert screen.wait() == 0
