"""Progress on stderr: a changing line on a terminal, a few lines that stay without one."""

from __future__ import annotations

import sys

import pytest

from emotui.commands.common import ProgressLine
from emotui.core.engine.serve import Job
from emotui.core.pace import Pace
from emotui.core.protocol import (
    PER_CENT,
    DoctorRequest,
    Event,
    Progress,
    Request,
)
from emotui.ui.panes.status import Notice
from emotui.ui.state import ScreenState, Work


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


# --- time left ---------------------------------------------------------------------------------


def test_the_time_left_follows_from_the_pace_of_the_phase() -> None:
    now = [50.0]
    pace = Pace(lambda: now[0])
    assert pace.seconds_left("reading", 0, 100) is None
    now[0] += 1.5
    assert pace.seconds_left("reading", 10, 100) is None  # too early to tell
    now[0] += 1.5
    assert pace.seconds_left("reading", 20, 100) == pytest.approx(12.0)  # 20 in 3 s, 80 to go
    now[0] += 7.0
    assert pace.seconds_left("reading", 90, 100) == pytest.approx(10 / 9)
    now[0] += 1.0
    assert pace.seconds_left("reading", 100, 100) == 0.0
    # Another phase, another total or a count that starts anew: nothing of the former pace stays.
    for phase, total in (("fitting", 100), ("fitting", 50), ("fitting", 50)):
        assert pace.seconds_left(phase, 5, total) is None
        now[0] += 4.0
        assert pace.seconds_left(phase, 5, total) is None  # nothing was done meanwhile
        assert pace.seconds_left(phase, 10, total) == pytest.approx(4.0 / 5 * (total - 10))
    assert pace.seconds_left("opening", 0, 0) is None


def test_the_engine_sends_the_time_left_of_every_count(clock: list[float]) -> None:
    sent: list[Event] = []
    job = Job(Request(7, DoctorRequest()), sent.append)
    for done in range(0, 41, 10):
        job.progress("fitting the token probes", done, 40)
        clock[0] += 3.0
    left = [event.seconds_left for event in sent if isinstance(event, Progress)]
    assert left == [None, pytest.approx(9.0), pytest.approx(6.0), pytest.approx(3.0), 0.0]
    sent.clear()
    for done in (0, 50):
        job.progress("12 MiB of 24 MiB, 4 s left", done, PER_CENT)
        clock[0] += 9.0
    assert [event.seconds_left for event in sent if isinstance(event, Progress)] == [None, None]


def test_the_line_and_the_screen_say_the_time_left(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    line = ProgressLine()
    for seconds, event in (
        (0, Progress(1, "running the model", 0, 1120)),
        (3, Progress(1, "running the model", 116, 1120, seconds_left=700.0)),
        (13, Progress(1, "running the model", 900, 1120, seconds_left=44.0)),
        (26, Progress(1, "running the model")),
    ):
        clock[0] = 100.0 + seconds
        line(event)
    assert capsys.readouterr().err.splitlines() == [
        "running the model 116/1120, 12 min left",
        "running the model 900/1120, 44 s left",
        "running the model",
    ]
    notice = Notice()
    work = Work("fitting probes", "running the model", 900, 1120, seconds_left=44.0)
    notice.show(ScreenState(text="", work=work))
    assert "900/1120" in notice.render().plain and "44 s left" in notice.render().plain
    notice.show(ScreenState(text="", work=Work("fitting probes", "running the model", 3, 1120)))
    assert "left" not in notice.render().plain
