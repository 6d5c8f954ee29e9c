"""The tour of the README, in tmux with its own defaults, typed by a client."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

from support_terminal import painted
from support_tmux import Tmux, needs_tmux

pytestmark = needs_tmux

SECOND = "My dog died last week."


def command(folder: Path, *arguments: str) -> str:
    words = [sys.executable, "-m", "emotui", "--cache-dir", str(folder / "cache"), *arguments]
    return " ".join([*words, '; echo "ended with $?"\r'])


def lines_of_the_terminal(tmux: Tmux) -> str:
    tmux.send("clear; stty -a\r")
    shown = tmux.wait_for(lambda text: "echo" in text and text.rstrip().endswith("ready$"))
    return shown.partition("speed")[2]


def test_the_tour(tmp_path: Path) -> None:
    with Tmux(tmp_path) as tmux:
        before = lines_of_the_terminal(tmux)
        tmux.send(command(tmp_path))
        tmux.wait_for(lambda text: painted(text) and "EDITED" in text)

        # The example's edit is taken back.
        tmux.send("u")
        tmux.wait_for(lambda text: painted(text) and "EDITED" not in text)

        # A text that is pasted with brackets, then run; then one that comes as keys.
        tmux.paste(SECOND, bracketed=True)
        tmux.wait_for(lambda text: "enter run" in text and SECOND in text)
        tmux.send("\r")
        tmux.wait_for(lambda text: "computed in" in text or " s ·" in text)
        tmux.paste("q x: a paste\nwithout brackets", bracketed=False)
        shown = tmux.wait_for(lambda text: "enter run" in text and "without brackets" in text)
        assert "q x: a paste" in shown
        tmux.send("\r")
        tmux.wait_for(lambda text: "enter run" not in text and "without" in text)
        tmux.wait_for(lambda text: "esc cancels" not in text)

        # Moves: a layer up, the other view, a site, a token back.
        tmux.send("2")
        tmux.send("k")
        tmux.send("0")
        tmux.wait_for(lambda text: "at every token" in text)
        tmux.send("0")
        tmux.wait_for(lambda text: "emotions at" in text)

        # Escape and a letter at once: tmux holds the escape and sends both together.
        tmux.send("i")
        tmux.wait_for(lambda text: "enter run" in text)
        tmux.send("\x1b")
        tmux.send("3")
        tmux.wait_for(lambda text: "enter run" not in text and "a ablate" in text)

        # An edit with its controls, undone and done again; an export.
        tmux.send("a")
        tmux.wait_for(lambda text: "EDITED" in text and "random" in text, 90)
        tmux.send("u")
        tmux.wait_for(lambda text: "EDITED" not in text)
        tmux.send("U")
        tmux.wait_for(lambda text: "EDITED" in text)
        tmux.send("x")
        tmux.wait_for(lambda text: "Wrote:" in text)

        # The list of traces, and back.
        tmux.send("t")
        tmux.wait_for(lambda text: "Traces ·" in text and SECOND in text)
        tmux.send("\x1b")
        tmux.wait_for(painted)

        tmux.send("q")
        tmux.wait_for(lambda text: "ended with 0" in text)
        assert tmux.ask("display", "-p", "#{alternate_on} #{cursor_flag}").split() == ["0", "1"]
        assert tmux.ask("display", "-p", "#{mouse_any_flag}#{mouse_all_flag}").strip() == "00"
        assert lines_of_the_terminal(tmux) == before
    (document,) = tmp_path.glob("emotui-*.json")
    assert json.loads(document.read_text())["schema"] == "emotui-trace"


def test_escape_and_a_letter_within_the_time_tmux_waits(tmp_path: Path) -> None:
    with Tmux(tmp_path) as tmux:
        tmux.send(command(tmp_path))
        tmux.wait_for(painted)
        tmux.send("i")
        tmux.wait_for(lambda text: "enter run" in text)
        assert tmux.ask("show", "-s", "-v", "escape-time").strip() == "500"
        tmux.send("\x1b?")
        tmux.wait_for(lambda text: "Keys: Text" in text)
        tmux.send("\x1b")
        tmux.wait_for(lambda text: "Keys: Text" not in text)
        tmux.send("q")
        tmux.wait_for(lambda text: "ended with 0" in text)


def _left_for(pane: str, text: str) -> bool:
    """Whether the editor was left, and a pane is there."""
    return "enter run" not in text and pane in text


def test_escape_and_a_number_or_a_letter_that_textual_knows_otherwise(tmp_path: Path) -> None:
    with Tmux(tmp_path) as tmux:
        tmux.send(command(tmp_path))
        tmux.wait_for(painted)
        for key, pane in (("2", "┏━ 2 Layers"), ("3", "┏━ 3 Features")):
            tmux.send("i")
            tmux.wait_for(lambda text: "enter run" in text)
            tmux.send(f"\x1b{key}")
            shown = tmux.wait_for(partial(_left_for, pane))
            assert "£" not in shown
            assert "edited, not run" not in shown
        tmux.send("1")
        tmux.send("i")
        tmux.wait_for(lambda text: "enter run" in text)
        tmux.send("\x1bf")  # f opens the console with the line that defines an emotion
        tmux.wait_for(lambda text: "define" in text.splitlines()[-3] or "emotion" in text)
        tmux.send("\x1b")
        tmux.send("q")
        tmux.wait_for(lambda text: "ended with 0" in text)


def test_over_ssh_with_few_colours_and_a_plain_locale(tmp_path: Path) -> None:
    environment = {
        "SSH_CONNECTION": "10.0.0.1 5 10.0.0.2 22",
        "LANG": "C",
        "LC_ALL": "C",
        "NO_COLOR": "1",
    }
    with Tmux(tmp_path, columns=80, lines=25, terminal="screen", environment=environment) as tmux:
        tmux.send(command(tmp_path))
        shown = tmux.wait_for(lambda text: painted(text) and "demo" in text)
        assert "━" in shown  # drawn in UTF-8 whatever the locale says
        assert tmux.ask("display", "-p", "#{mouse_any_flag}").strip() == "0"
        tmux.send("j")
        tmux.send("?")
        tmux.wait_for(lambda text: "Keys: Text" in text)
        coloured = tmux.ask("capture-pane", "-p", "-e")
        assert "\x1b[3" not in coloured.replace("\x1b[39m", "")
        assert "\x1b[4" not in coloured.replace("\x1b[49m", "").replace("\x1b[4m", "")
        tmux.send("\x1b")
        tmux.wait_for(painted)
        tmux.send("q")
        tmux.wait_for(lambda text: "ended with 0" in text)
