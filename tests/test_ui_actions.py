"""The table of actions: one meaning a key, a handler for each, and what shows them."""

from __future__ import annotations

from typing import Any

import pytest
from textual.binding import Binding

from emotui.ui.actions import ACTIONS, PANES, Action, PaneName, actions_of, clashes
from emotui.ui.handlers import Handlers
from emotui.ui.paint import GLYPH_EDGES, GLYPHS
from emotui.ui.panes.features import FeaturesPane
from emotui.ui.panes.layers import LayersPane
from emotui.ui.panes.lines import LinePane
from emotui.ui.panes.text import TokenStrip
from emotui.ui.screens.help import help_lines

NO_SCREEN: Any = None
HANDLERS = Handlers(NO_SCREEN)  # only asked what there is


def test_no_key_has_two_meanings_in_one_pane() -> None:
    assert clashes() == []


def test_a_clash_is_found() -> None:
    one = Action(id="a.b", keys=("i",), label="", help="", panes=("text",))
    other = Action(id="c.d", keys=("x", "i"), label="", help="", panes=("text",))
    assert clashes((one, other)) == ["i in text: a.b and c.d"]


def test_ids_are_unique_and_area_verb() -> None:
    ids = [action.id for action in ACTIONS]
    assert len(ids) == len(set(ids))
    assert all(len(name.split(".")) == 2 and name.islower() for name in ids)


@pytest.mark.parametrize("action", ACTIONS, ids=lambda a: a.id)
def test_actions_have_a_handler(action: Action) -> None:
    assert callable(HANDLERS.of(action.id))


@pytest.mark.parametrize("pane", PANES)
def test_help_says_every_key_of_the_pane(pane: PaneName) -> None:
    shown = " ".join(" ".join(help_lines(pane)).split())
    for action in actions_of(pane):
        assert action.help in shown


def test_panes_bind_what_the_table_says() -> None:
    panes: tuple[tuple[type[LinePane], PaneName], ...] = (
        *((TokenStrip, "text"), (LayersPane, "layers"), (FeaturesPane, "features")),
    )
    for widget, pane in panes:
        bound = {
            (key, binding.action)
            for binding in widget.BINDINGS
            if isinstance(binding, Binding)
            for key in binding.key.split(",")
        }
        table = {
            (key, f"screen.do('{action.id}')") for action in actions_of(pane) for key in action.keys
        }
        assert bound == table


@pytest.mark.parametrize(
    ("pane", "words"),
    [
        ("interventions", ["matched a/b", "random a/b", "other:", "▲", "best-of-N", "by constr"]),
        ("layers", ["trusted", "lexical", "untrusted", "░ from 1", "hollow", "z: how many"]),
        ("features", ["Attribution", "area under the curve", "star", "share of variance"]),
        ("text", ["░ from 1", "labels hold", "logit lens"]),
    ],
)
def test_the_help_says_first_how_to_read_the_pane_in_whole_lines(
    pane: PaneName, words: list[str]
) -> None:
    lines = help_lines(pane)
    reading = lines[: lines.index("Keys") - 1]
    assert all(word in " ".join(reading) for word in words)
    assert all(len(line) <= 70 for line in lines)
    assert not any(line.startswith("?") for line in reading)


def test_the_ramp_in_the_help_is_the_ramp_that_is_drawn() -> None:
    said = " ".join(help_lines("layers"))
    for edge, glyph in zip(GLYPH_EDGES, GLYPHS[1:], strict=True):
        assert f"{glyph} from {edge:g}" in said
