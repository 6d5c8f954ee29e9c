"""The list of traces."""

from __future__ import annotations

from emotui.ui.actions.action import Action

LISTING_ACTIONS: tuple[Action, ...] = (
    Action(
        id="list.open",
        keys=("enter",),
        label="open",
        help="Open this trace; its model need not be there.",
        panes=("traces",),
    ),
    Action(
        id="list.search",
        keys=("slash",),
        label="search",
        help="Search: words of the text, model:NAME since:DAY until:DAY edits:WORD is:pinned, "
        "is:edited, is:root.",
        panes=("traces",),
    ),
    Action(
        id="list.pin",
        keys=("p",),
        label="pin",
        help="Keep this trace whatever the cache's budget, or no longer (* is pinned).",
        panes=("traces",),
    ),
    Action(
        id="list.delete",
        keys=("d",),
        label="delete",
        help="Delete this trace; asks first.",
        panes=("traces",),
    ),
    Action(
        id="list.export",
        keys=("x",),
        label="export",
        help="Write this trace as JSON into the current folder.",
        panes=("traces",),
    ),
    Action(
        id="list.compare",
        keys=("c",),
        label="compare",
        help="Mark this trace (c); on another one, compare the two.",
        panes=("traces",),
    ),
    Action(
        id="list.copy",
        keys=("y",),
        label="copy",
        help="Copy the id of this trace (OSC 52).",
        panes=("traces",),
        footer=False,
    ),
    Action(
        id="list.up",
        keys=("up", "k"),
        label="up",
        help="Trace above.",
        panes=("traces",),
        footer=False,
    ),
    Action(
        id="list.down",
        keys=("down", "j"),
        label="down",
        help="Trace below.",
        panes=("traces",),
        footer=False,
    ),
    Action(
        id="list.page_up",
        keys=("pageup",),
        label="page up",
        help="A page up.",
        panes=("traces",),
        footer=False,
    ),
    Action(
        id="list.page_down",
        keys=("pagedown",),
        label="page down",
        help="A page down.",
        panes=("traces",),
        footer=False,
    ),
    Action(
        id="list.first",
        keys=("home",),
        label="first",
        help="The first trace.",
        panes=("traces",),
        footer=False,
    ),
    Action(
        id="list.last",
        keys=("end",),
        label="last",
        help="The last trace.",
        panes=("traces",),
        footer=False,
    ),
    Action(
        id="list.leave",
        keys=("escape", "q"),
        label="back",
        help="Take the search back; without one, back to the trace.",
        panes=("traces",),
    ),
)
