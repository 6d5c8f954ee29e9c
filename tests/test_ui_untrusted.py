"""On the bytes that reach a terminal: no control that the screen did not write, whatever it shows.

Every hostile character stands between `<` and `>`: an escape that got through would be followed by
`>`, which begins nothing that a screen writes. What is written is held against a grammar of the
few sequences that the screen needs; anything else is a control that came from a text.
"""

from __future__ import annotations

import random
import re
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from support_screen import TEXT, Scene
from support_terminal import PseudoTerminal, explorer, painted

from emotui.core.records import Trace
from emotui.ui.paint import visible

COLUMNS, LINES = 400, 350
BELOW = 0x2100
TOKEN = 60
ALL_BELOW = tuple(chr(code) for code in range(BELOW))
INVISIBLE = tuple(
    character
    for character in map(chr, (*range(BELOW, 0xD800), *range(0xE000, 0x110000)))
    if unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f"
)
SEQUENCES = ("\x1b[5;31m", "\x1b[999;999H", "\x1b]0;owned\x07", "\x1b]52;c;b3duZWQ=\x07", "\x1bc",
             "\x1b[2J", "\x1b[6n", "\x1bP+q544e\x1b\\", "\x9b2J", "\x9d0;owned\x9c", "\x1b#8",
             "\x1b[?1049l", "\x0e", "\x0f", "\x05", "\x1b[21t", "\x1b_G\x1b\\", "\x1b%@", "\r\n",
             "[@click=app.exit]x[/]", "[/nope]", "[bold]", "\ud7ff")  # fmt: skip
_DICE = random.Random(7)
RANDOM = tuple(
    _DICE.randbytes(24).decode(encoding, errors="replace")
    for _ in range(300)
    for encoding in ("utf-8", "latin-1", "utf-16-le")
)

MODES = "(?:25|1000|1002|1003|1004|1006|1015|1049|2004|2026|2048|7)"
ALLOWED = re.compile(
    r"\x1b\[(?P<style>[0-9;]*)m"
    r"|\x1b\[(?P<line>\d{1,3});(?P<column>\d{1,3})H"
    rf"|\x1b\[\?{MODES}[hl]"
    r"|\x1b\[\?(?:2026|2048)\$p"  # asks whether frames and sizes are told
    r"|\x1b\[(?:>25u|<u|>4;[012]m|>0q|c|>q|H)"  # asks for keys and the terminal's name
    r"|\x1b\]22;[a-z-]*\x07"  # the pointer's shape
    r"|\r?\n"
)
NEVER_A_STYLE = {"5", "6", "8"}


def smuggled(output: bytes, *, lines: int = LINES, columns: int = COLUMNS) -> list[str]:
    """Return every control in what reached a terminal that a screen does not write."""
    text = output.decode("utf-8", errors="strict")
    found: list[str] = []
    place = 0
    while place < len(text):
        character = text[place]
        if character.isascii() and character.isprintable():
            place += 1
            continue
        sequence = ALLOWED.match(text, place)
        if sequence is not None:
            if sequence["line"] and not (
                1 <= int(sequence["line"]) <= lines and 1 <= int(sequence["column"]) <= columns
            ):
                found.append(sequence[0])
            style = re.sub(r"[34]8;(?:5;\d+|2;\d+;\d+;\d+)", "", sequence["style"] or "")
            if NEVER_A_STYLE & set(style.split(";")):
                found.append(sequence[0])
            place = sequence.end()
            continue
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            found.append(text[place : place + 12])
        place += 1
    return found


def boxed(strings: Sequence[str]) -> str:
    return "".join(f"<{string}>" for string in strings)


def chunks(strings: Sequence[str], size: int) -> list[str]:
    return [boxed(strings[at : at + size]) for at in range(0, len(strings), size)]


def hostile(strings: Sequence[str], name: str) -> object:
    """Return what puts the strings into every place of a trace that may hold a foreign one."""
    tokens, labels = chunks(strings, TOKEN), chunks(strings, 48)

    def change(trace: Trace) -> Trace:
        records = list(trace.text.tokens)
        for index in range(1, len(records) - 3):
            string = tokens[(index - 1) % len(tokens)]
            records[index] = msgspec.structs.replace(records[index], string=string)
        shown = [labels[row % len(labels)] for row in range(len(trace.features.label))]
        answer, lens = trace.answer, trace.lens
        assert answer is not None
        assert lens is not None
        return msgspec.structs.replace(
            trace,
            text=msgspec.structs.replace(trace.text, tokens=tuple(records)),
            features=msgspec.structs.replace(trace.features, label=tuple(shown)),
            answer=msgspec.structs.replace(
                answer,
                labels={f"{label}{boxed(strings[:20])}": p for label, p in answer.labels.items()},
            ),
            lens=msgspec.structs.replace(
                lens,
                token=tuple(f"{n}<{strings[n % len(strings)]}>" for n in range(len(lens.token))),
            ),
            run=msgspec.structs.replace(
                trace.run, device=f"cpu{name}", model=f"/models/{name}", dtype=f"float32{name}"
            ),
        )

    return change


def wait_for_bytes(screen: PseudoTerminal, before: int, wanted: str) -> None:
    """Wait for a string in what was written since: nothing is drawn, which would take minutes."""
    limit = time.monotonic() + 20
    while wanted.encode() not in screen.output[before:]:
        assert time.monotonic() < limit, wanted
        screen.read(0.2, draw=False)


def rest(screen: PseudoTerminal, quiet: float) -> None:
    """Read until nothing comes for a while."""
    while screen.read(quiet, draw=False):
        pass


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """Hostile traces, and a plain one to begin on."""
    scene = Scene(tmp_path)
    probes = scene.put_probes()
    controls = boxed([*ALL_BELOW[:32], *ALL_BELOW[127:160], *INVISIBLE[:20]])
    for number, strings in enumerate((ALL_BELOW, INVISIBLE, SEQUENCES, RANDOM)):
        scene.put_trace(
            f"hostile{number} {boxed(strings)}",
            probes=probes,
            change=hostile(strings, f"m{number}{controls}"),
            tokens=len(strings) // TOKEN + 6,
            layers=2,
            features_at_readout=240,
        )
    scene.put_trace(TEXT, probes=probes, layers=2)
    return scene


def test_nothing_is_smuggled_onto_the_terminal(scene: Scene) -> None:
    size = {"columns": COLUMNS, "lines": LINES}
    with explorer(TEXT, model=str(scene.model), cache=str(scene.cache), **size) as screen:
        wait_for_bytes(screen, 0, "the cache")
        for number in range(4):
            rest(screen, 0.2)
            before = len(screen.output)
            screen.send("t")
            wait_for_bytes(screen, before, "Traces · 5")
            screen.send("/")
            for letter in f"hostile{number}":
                rest(screen, 0.1)
                screen.send(letter)
            wait_for_bytes(screen, before, "1 found")
            rest(screen, 0.3)
            screen.send("\r")
            rest(screen, 0.5)
            before = len(screen.output)
            screen.send("\r")
            wait_for_bytes(screen, before, f"m{number}<")
            rest(screen, 0.5)
            # The panes of the trace, each token's line, heads of tokens, its text in the editor.
            for keys in ("P", "P", "h", "h", "h", "0", "h", "h", "0", "3", "j", "a", "1", "i"):
                screen.send(keys)
                rest(screen, 0.15)
            screen.send("\x1b")
            rest(screen, 0.2)
            if number == 0:
                shown = screen.output[before:].decode()
                missing = [c for c in ALL_BELOW if visible(f"<{c}>") not in shown]
                assert missing == []
        screen.send("q")
        while not screen.ended:
            rest(screen, 0.1)
        assert screen.code == 0
        assert smuggled(bytes(screen.output)) == []


@pytest.mark.parametrize("key", [":", "t/", "i"])
def test_what_is_pasted_is_harmless_too(scene: Scene, key: str) -> None:
    size = {"columns": 200, "lines": 50}
    with explorer(TEXT, model=str(scene.model), cache=str(scene.cache), **size) as screen:
        screen.wait_for(lambda text: painted(text) and "cache" in text)
        for letter in key:
            screen.settle(0.2)
            screen.send(letter)
        screen.settle(0.3)
        pasted = boxed([*(c for c in ALL_BELOW[:160] if c not in "\r\n"), *SEQUENCES[:10]])
        screen.send(f"\x1b[200~{pasted}\x1b[201~")
        screen.settle(0.5)
        screen.send("\r")
        screen.settle(0.5)
        screen.send("\x03")
        screen.settle(0.2)
        assert not screen.ended
        assert smuggled(bytes(screen.output)) == []


@pytest.mark.parametrize(
    "bad",
    ["a\x1b>b", "\x07", "\x9b", "\x1b[5m", "\x1b[1;5;31m", "\x1b[351;1H", "\x1b[2J", "\u202e",
     "\u200b", "\x1b]0;x\x07", "\x7f", "\t", "\u2028", "\x1b[?1h", "\x1b"],
)  # fmt: skip
def test_the_grammar_finds_what_is_smuggled(bad: str) -> None:
    plain = "\x1b[1;38;5;5;48;2;5;6;8ma\x1b[m\x1b[150;400Hb\x1b[?25l\r\n"
    assert smuggled(plain.encode()) == []
    assert smuggled(f"{plain}{bad}{plain}".encode()) != []


def test_no_line_to_type_in_shows_what_it_holds_uncleaned() -> None:
    root = Path(__file__).resolve().parent.parent / "emotui"
    bare = [
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if path.name != "entry.py" and re.search(r"\b(Input\(|\(Input\))", path.read_text())
    ]
    assert bare == []
