"""The table of actions: one meaning a key, a handler for all that is built, nothing else shown."""

from __future__ import annotations

import pytest

from emotui.ui.actions import ACTIONS, PANES, Action, action_for, actions_of, clashes
from emotui.ui.handlers import Handlers
from emotui.ui.panes.features import FeaturesPane
from emotui.ui.panes.layers import LayersPane
from emotui.ui.panes.lines import bindings_of
from emotui.ui.panes.text import TokenStrip
from emotui.ui.screens.help import help_lines

HANDLERS = Handlers(None)  # type: ignore[arg-type]  # only asked what there is


def test_no_key_has_two_meanings_in_one_pane() -> None:
    assert clashes() == []


def test_a_clash_is_found() -> None:
    one = Action(id="a.b", keys=("i",), label="", help="", panes=("text",))
    other = Action(id="c.d", keys=("x", "i"), label="", help="", panes=("text",), built=False)
    assert clashes((one, other)) == ["i in text: a.b and c.d"]


def test_ids_are_unique_and_area_verb() -> None:
    ids = [action.id for action in ACTIONS]
    assert len(ids) == len(set(ids))
    assert all(len(name.split(".")) == 2 and name.islower() for name in ids)


@pytest.mark.parametrize(
    "action", [action for action in ACTIONS if action.built], ids=lambda a: a.id
)
def test_built_actions_have_a_handler(action: Action) -> None:
    assert callable(HANDLERS.of(action.id))


@pytest.mark.parametrize(
    "action", [action for action in ACTIONS if not action.built], ids=lambda a: a.id
)
def test_unbuilt_actions_are_invisible(action: Action) -> None:
    with pytest.raises(AttributeError):
        HANDLERS.of(action.id)
    for pane in PANES:
        assert action not in actions_of(pane)
        assert all(action_for(pane, key) is None or action_for(pane, key).id != action.id  # type: ignore[union-attr]
                   for key in action.keys)  # fmt: skip
        assert action.help == "..." or action.help not in "\n".join(help_lines(pane))
        bound = [binding.action for binding in bindings_of(pane)]  # type: ignore[union-attr]
        assert f"screen.do('{action.id}')" not in bound


@pytest.mark.parametrize("pane", PANES)
def test_help_says_every_built_key_of_the_pane(pane: str) -> None:
    shown = " ".join(" ".join(help_lines(pane)).split())  # type: ignore[arg-type]
    for action in actions_of(pane):  # type: ignore[arg-type]
        assert action.help in shown


def test_panes_bind_what_the_table_says() -> None:
    for widget, pane in ((TokenStrip, "text"), (LayersPane, "layers"), (FeaturesPane, "features")):
        bound = {
            (key, binding.action)  # type: ignore[union-attr]
            for binding in widget.BINDINGS
            for key in binding.key.split(",")  # type: ignore[union-attr]
        }
        table = {
            (key, f"screen.do('{action.id}')")
            for action in actions_of(pane)  # type: ignore[arg-type]
            for key in action.keys
        }
        assert bound == table
