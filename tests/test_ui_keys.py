"""Pastes that come as keys, on a clock the test moves."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emotui.ui.driver import END, STALLED_SECONDS, START, PasteSplitter
from emotui.ui.keys import BURST_SECONDS, EditorGate, KeyGate, Release, Stroke

CAREFUL = frozenset("qx")


class Clocked:
    """A gate fed with keys at given times; what is due is released before each."""

    def __init__(self, gate: KeyGate | EditorGate) -> None:
        self.gate = gate
        self.passed: list[Release] = []

    def run_until(self, now: float) -> None:
        if self.gate.holding and self.gate.due <= now:
            self.passed += self.gate.release()

    def key(self, name: str, at: float) -> None:
        self.run_until(at)
        character = name if len(name) == 1 else {"enter": "\r", "tab": "\t"}.get(name)
        self.passed += self.gate.take(Stroke(name, character, at))

    def all(self) -> list[str]:
        """Let everything through; keys by name, pastes as `=text`."""
        self.run_until(1e9)
        return [
            name
            for release in self.passed
            for name in (
                [stroke.key for stroke in release.strokes]
                if release.kind == "keys"
                else [f"={release.text}"]
            )
        ]


def gate() -> Clocked:
    return Clocked(KeyGate(lambda key: key in CAREFUL))


def test_typed_keys_are_keys() -> None:
    clocked = gate()
    for index, key in enumerate("e0Sq"):
        clocked.key(key, index * 0.08)
    assert clocked.all() == ["e", "0", "S", "q"]


@pytest.mark.parametrize("gap", [0.0, 0.001, 0.007])
@pytest.mark.parametrize("text", ["quit", "ex", "q" * 5, "I was sad"])
def test_a_burst_is_text(text: str, gap: float) -> None:
    clocked = gate()
    for index, key in enumerate(text):
        clocked.key(key, index * gap)
    assert clocked.all() == [f"={text}"]


def test_a_burst_holds_its_line_ends() -> None:
    clocked = gate()
    for index, key in enumerate(["q", "enter", "x", "tab", "q", "enter"]):
        clocked.key(key, index * 0.001)
    assert clocked.all() == ["=q\nx\tq\n"]


def test_a_slow_burst_does_nothing_of_consequence() -> None:
    """At 20 ms a key: what was let through only moves or shows, and is part of the text too."""
    clocked = gate()
    for index, key in enumerate("every q and x"):
        clocked.key(key, index * 0.02)
    passed = clocked.all()
    assert passed == ["e", "=every q and x"]


def test_careful_keys_wait_for_the_whole_time() -> None:
    clocked = gate()
    clocked.key("q", 0.0)
    clocked.key("u", 0.025)
    clocked.key("i", 0.05)
    assert clocked.all() == ["=qui"]


def test_movement_that_repeats_is_movement() -> None:
    clocked = gate()
    for index in range(6):
        clocked.key("j", index * 0.001)
    assert clocked.all() == ["j"] * 6


@pytest.mark.parametrize("gap", [0.0, 0.001, 0.022])
@pytest.mark.parametrize("keys", ["eeeeee", "eS", "e0S", "jj0"])
def test_few_keys_and_one_that_repeats_are_keys_however_they_arrive(keys: str, gap: float) -> None:
    """A slow connection delivers at once what was typed apart; none of these changes anything."""
    clocked = gate()
    for index, key in enumerate(keys):
        clocked.key(key, index * gap)
    assert clocked.all() == list(keys)


@pytest.mark.parametrize("keys", ["xx", "eq", "ee e"])
def test_keys_of_consequence_and_more_than_a_few_are_text(keys: str) -> None:
    clocked = gate()
    for index, key in enumerate(keys):
        clocked.key(key, index * 0.001)
    assert clocked.all() == [f"={keys}"]


def test_keys_that_no_text_holds_pass_at_once() -> None:
    clocked = gate()
    clocked.key("down", 0.0)
    assert [release.strokes[0].key for release in clocked.passed] == ["down"]
    clocked.key("e", 0.1)
    clocked.key("escape", 0.102)
    assert clocked.all() == ["down", "e", "escape"]


def test_nothing_waits_longer_than_a_burst() -> None:
    for key in "eq":
        one = KeyGate(lambda name: name in CAREFUL)
        one.take(Stroke(key, key, 10.0))
        assert 10.0 < one.due <= 10.0 + BURST_SECONDS


def editor() -> Clocked:
    return Clocked(EditorGate())


def test_enter_runs_when_it_is_typed() -> None:
    clocked = editor()
    for index, key in enumerate(["a", "b", "enter"]):
        clocked.key(key, index * 0.1)
    assert clocked.all() == ["a", "b", "enter"]


def test_enter_inside_a_paste_is_a_line_end() -> None:
    clocked = editor()
    for index, key in enumerate(["a", "enter", "b", "enter", "enter", "c"]):
        clocked.key(key, index * 0.001)
    assert clocked.all() == ["a", "ctrl+j", "b", "ctrl+j", "ctrl+j", "c"]


def test_enter_that_begins_a_paste_is_a_line_end() -> None:
    clocked = editor()
    clocked.key("enter", 0.0)
    clocked.key("a", 0.001)
    assert clocked.all() == ["ctrl+j", "a"]


def test_enter_at_the_end_of_a_paste_does_not_run() -> None:
    clocked = editor()
    clocked.key("a", 0.0)
    clocked.key("enter", 0.001)
    assert clocked.all() == ["a", "ctrl+j"]


def pieces(reads: list[str]) -> list[tuple[bool, str]]:
    splitter = PasteSplitter(clock=lambda: 0.0)
    return [piece for read in reads for piece in splitter.split(read)]


@given(st.lists(st.integers(0, 60), max_size=6))
def test_a_paste_is_whole_however_its_reads_are_cut(cuts: list[int]) -> None:
    pasted = "q\x1b[31m x\x1bq\r\n\x1b[A"
    stream = f"ab{START}{pasted}{END}cd"
    marks = [len("ab") + size for size in (1, 2)]  # where an escape alone may be a key
    places = sorted({cut for cut in cuts if cut < len(stream)} - set(marks))
    reads = [stream[start:end] for start, end in pairwise([0, *places, len(stream)])]
    found = pieces(reads)
    assert "".join(piece for is_paste, piece in found if is_paste) == pasted
    assert "".join(piece for is_paste, piece in found if not is_paste) == "abcd"


def test_keys_are_not_held_back() -> None:
    for keys in ("\x1b", "\x1b[A", "q", "\x1bq", "\x1b[2~", "\x1b["):
        assert pieces([keys]) == [(False, keys)]


def test_two_pastes_and_an_empty_one() -> None:
    stream = f"{START}a{END}{START}{END}x{START}b{END}"
    assert pieces([stream]) == [(True, "a"), (True, ""), (False, "x"), (True, "b")]


def test_a_paste_that_never_ends_is_let_through() -> None:
    now = [0.0]
    splitter = PasteSplitter(clock=lambda: now[0])
    assert list(splitter.split(f"{START}lost")) == []
    now[0] = STALLED_SECONDS - 0.1
    assert list(splitter.stalled()) == []
    now[0] = STALLED_SECONDS
    assert list(splitter.stalled()) == [(True, "lost")]
    assert list(splitter.split("q")) == [(False, "q")]
