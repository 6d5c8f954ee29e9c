"""Progress on stderr: a changing line on a terminal, a few lines that stay without one."""

from __future__ import annotations

import sys

import pytest

from emotui.commands.common import ProgressLine
from emotui.core.protocol import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_without_a_terminal_lines_are_sparse(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    line = ProgressLine()
    for tenth in range(310):
        clock[0] = 100 + tenth / 10
        line(Progress(1, "fitting", tenth, 310))
    line.clear()
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == ["fitting 20/310", "fitting 120/310", "fitting 220/310"]


def test_short_work_says_nothing_and_many_short_pieces_do(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    line = ProgressLine()
    for number in range(1, 30):
        line.within = f"text {number} of 29"
        clock[0] += 0.5
        line(Progress(number, "running \x1b[31mthe model"))
        if number == 3:
            assert capsys.readouterr().err == ""
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 2
    assert said.startswith("text 5 of 29: running") and "\x1b" not in said


def test_a_terminal_gets_one_line_that_changes(
    clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ProgressLine()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    line(Progress(1, "fitting", 1, 9))
    clock[0] += 0.05
    line(Progress(1, "fitting", 2, 9))
    clock[0] += 0.1
    line(Progress(1, "done"))
    line.clear()
    said = capsys.readouterr().err
    assert "\n" not in said and "2/9" not in said
    assert said == "\rfitting 1/9\rdone       \r" + " " * 4 + "\r"
