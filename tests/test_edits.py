"""The edit language: printing and parsing are inverses; wrong words are named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emotui.core.edits import (
    ALL,
    Edit,
    Positions,
    at_position,
    parse_edit,
    parse_positions,
    positions_in,
)
from emotui.core.errors import EditError
from emotui.core.records import TextRecord, Token

finite = st.floats(allow_nan=False, allow_infinity=False, width=64)
positions = st.one_of(
    st.sampled_from([ALL, Positions("readout"), Positions("last")]),
    st.tuples(st.integers(0, 999), st.integers(0, 999)).map(
        lambda ends: Positions("range", min(ends), max(ends))
    ),
    st.text(min_size=1, max_size=12).map(lambda word: Positions("word", word=word)),
)
edits = st.one_of(
    st.builds(
        Edit,
        operation=st.just("ablate"),
        site=st.sampled_from(["resid", "attn", "mlp"]),
        layer=st.integers(0, 99),
        index=st.integers(0, 999_999),
        value=st.none(),
        positions=positions,
    ),
    st.builds(
        Edit,
        operation=st.sampled_from(["scale", "clamp", "steer"]),
        site=st.sampled_from(["resid", "attn", "mlp"]),
        layer=st.integers(0, 99),
        index=st.integers(0, 999_999),
        value=finite,
        positions=positions,
    ),
)


@given(edits)
def test_printing_and_parsing_are_inverses(edit: Edit) -> None:
    assert parse_edit(str(edit), default=None) == edit


@pytest.mark.parametrize(
    ("line", "printed"),
    [
        ("ablate L5/12", "ablate L5/12 at all"),
        ("ABLATE  mlp:L0/3   at last", "ablate mlp:L0/3 at last"),
        ("scale L5/12 x2.50 at 3-7", "scale L5/12 x2.5 at 3-7"),
        ("clamp L5/12 = 30 at all", "clamp L5/12 = 30 at all"),
        ("clamp L5/12 =30 at all", "clamp L5/12 = 30 at all"),
        ("steer L5/12 -0.1 at readout", "steer L5/12 -0.1 at readout"),
        ('ablate L5/12 at "lost toy"', 'ablate L5/12 at "lost toy"'),
        ("ablate L5/12 at here", "ablate L5/12 at 4"),
    ],
)
def test_canonical_form(line: str, printed: str) -> None:
    assert str(parse_edit(line, here=4)) == printed


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("", "nothing"),
        ("remove L5/12", "'remove'"),
        ("ablate", "nothing"),
        ("ablate 5/12", "'5/12'"),
        ("ablate head:L5/12", "'head:L5/12'"),
        ("scale L5/12", "nothing"),
        ("scale L5/12 2.5", "'2.5'"),
        ("scale L5/12 xinf", "'xinf'"),
        ("scale L5/12 xnan", "'xnan'"),
        ("clamp L5/12 30", "'30'"),
        ("clamp L5/12 =", "nothing"),
        ("steer L5/12 0.1", "'0.1'"),
        ("ablate L5/12 at", "nothing"),
        ("ablate L5/12 on all", "'on'"),
        ("ablate L5/12 at everywhere", "'everywhere'"),
        ("ablate L5/12 at 7-3", "'7-3'"),
        ("ablate L5/12 at 3 please", "'please'"),
        ("ablate L5/12 at here", "'here'"),
        ("ablate \x1b[31mL5/12", "\N{SYMBOL FOR ESCAPE}[31mL5/12"),
    ],
)
def test_wrong_words_are_named(line: str, word: str) -> None:
    with pytest.raises(EditError) as caught:
        parse_edit(line)
    assert word in caught.value.what
    assert caught.value.why.startswith("Expected ")
    assert "\x1b" not in str(caught.value)


@given(st.text(max_size=60))
def test_any_line_parses_or_is_refused(line: str) -> None:
    try:
        edit = parse_edit(line)
    except EditError:
        return
    assert parse_edit(str(edit)) == edit


def record() -> TextRecord:
    def token(string: str, start: int | None, part: str) -> Token:
        end = None if start is None else start + len(string)
        return Token(0, string, start, end, part == "special", part)  # type: ignore[arg-type]

    tokens = (
        token("<s>", None, "special"),
        token("The", 0, "text"),
        token(" lost", 3, "text"),
        token(" toy", 8, "text"),
        token(" The", None, "after"),
        token(" emotion", None, "after"),
    )
    return TextRecord("The lost toy", tokens, readout=5, last=3)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("all", (1, 2, 3)),
        ("last", (3,)),
        ("readout", (5,)),
        ("0", (0,)),
        ("2-4", (2, 3, 4)),
        ('"toy"', (3,)),
        ('"st t"', (2, 3)),
        ('"The"', (1,)),
    ],
)
def test_positions(word: str, expected: tuple[int, ...]) -> None:
    assert positions_in(parse_positions(word), record()) == expected


def test_positions_outside_the_prompt_are_refused() -> None:
    with pytest.raises(EditError, match="the last is 5"):
        positions_in(at_position(6), record())
    with pytest.raises(EditError, match="does not occur"):
        positions_in(Positions("word", word="emotion"), record())
