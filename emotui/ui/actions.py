"""The actions: one table that bindings, footer and help read.

An action that is not built yet keeps its key here, so that no other takes it, and is shown nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

PaneName = Literal["text", "editor", "layers", "features", "interventions", "console", "traces"]

PANES: tuple[PaneName, ...] = (
    *("text", "editor", "layers", "features", "interventions"),
    *("console", "traces"),
)
_LOOKING: tuple[PaneName, ...] = ("text", "layers", "features", "interventions")
_CELLS: tuple[PaneName, ...] = ("text", "layers", "features")


@dataclass(frozen=True, kw_only=True)
class Action:
    """What a key does."""

    id: str
    """`area.verb`."""
    keys: tuple[str, ...]
    """Names as Textual spells them; the first is the one shown."""
    label: str
    """One or two words for the footer."""
    help: str
    """One line for the help screen."""
    panes: tuple[PaneName, ...] = _LOOKING
    """Where its keys are heard."""
    built: bool = True
    careful: bool = False
    """Whether it does more than move or show, so that it waits until a key is no paste."""
    footer: bool = True


ACTIONS: tuple[Action, ...] = (
    Action(id="text.edit", keys=("i",), label="edit", help="Edit the text, or paste another one."),
    Action(
        id="text.run",
        keys=("enter",),
        label="run",
        help="Read this text with the model.",
        panes=("editor",),
    ),
    Action(
        id="text.newline",
        keys=("ctrl+j",),
        label="newline",
        help="Begin a new line.",
        panes=("editor",),
    ),
    Action(
        id="text.leave",
        keys=("escape",),
        label="leave",
        help="Leave the editor; what you typed stays there.",
        panes=("editor",),
    ),
    Action(
        id="look.open",
        keys=("enter",),
        label="open",
        help="Open what is under the cursor: a token its layers, a cell its features.",
        panes=("text", "layers"),
    ),
    Action(
        id="move.left",
        keys=("left", "h"),
        label="left",
        help="Token or emotion to the left.",
        panes=_CELLS,
        footer=False,
    ),
    Action(
        id="move.right",
        keys=("right", "l"),
        label="right",
        help="Token or emotion to the right.",
        panes=_CELLS,
        footer=False,
    ),
    Action(
        id="move.up",
        keys=("up", "k"),
        label="up",
        help="Line, layer or feature above.",
        panes=_LOOKING,
        footer=False,
    ),
    Action(
        id="move.down",
        keys=("down", "j"),
        label="down",
        help="Line, layer or feature below.",
        panes=_LOOKING,
        footer=False,
    ),
    Action(
        id="move.first",
        keys=("home",),
        label="first",
        help="First token, column or feature.",
        panes=_CELLS,
        footer=False,
    ),
    Action(
        id="move.last",
        keys=("end",),
        label="last",
        help="Last token, column or feature.",
        panes=_CELLS,
        footer=False,
    ),
    Action(id="look.emotion", keys=("e",), label="emotion", help="Next emotion."),
    Action(
        id="look.emotion_back",
        keys=("E",),
        label="emotion back",
        help="Emotion before.",
        footer=False,
    ),
    Action(
        id="look.view",
        keys=("0",),
        label="view",
        help="Layers: emotions at the cursor's token, or tokens for the chosen emotion.",
    ),
    Action(id="look.site", keys=("S",), label="site", help="Site: resid, attn or mlp."),
    Action(
        id="look.position",
        keys=("P",),
        label="position",
        help="Cursor to the readout, then to the text's last token, then back.",
    ),
    Action(
        id="look.sort",
        keys=("o",),
        label="sort",
        help="Sort the features by activation, attribution or number.",
        panes=("features",),
    ),
    Action(
        id="look.mark",
        keys=("space",),
        label="mark",
        help="Mark this feature, or no longer: marked ones are edited together. Esc unmarks all.",
        panes=("features",),
    ),
    Action(
        id="edit.ablate_here",
        keys=("a",),
        label="ablate",
        help="Ablate the marked features, or the one under the cursor, at the cursor's token.",
        panes=("features",),
        careful=True,
    ),
    Action(
        id="edit.ablate_all",
        keys=("A",),
        label="ablate all",
        help="Ablate the marked features, or the one under the cursor, at every token of the text.",
        panes=("features",),
        careful=True,
        footer=False,
    ),
    Action(
        id="edit.steer",
        keys=("s",),
        label="steer",
        help="Console: steer along the marked features, or the one under the cursor, +0.1 of the "
        "mean norm.",
        panes=("features",),
        careful=True,
    ),
    Action(
        id="edit.knock",
        keys=("z",),
        label="knock out",
        help="Console: knock out the attention output (or the site shown) of this layer.",
        careful=True,
        footer=False,
    ),
    Action(
        id="edit.patch",
        keys=("p",),
        label="patch",
        help="Console: put this layer's activation of another text or trace in place.",
        careful=True,
        footer=False,
    ),
    Action(
        id="edit.promote",
        keys=("m",),
        label="promote",
        help="Console: promote the chosen emotion at this layer.",
        careful=True,
        footer=False,
    ),
    Action(
        id="edit.undo",
        keys=("u",),
        label="undo",
        help="Take the last edit back.",
        careful=True,
    ),
    Action(
        id="edit.redo",
        keys=("U",),
        label="redo",
        help="Make the edit again that was taken back.",
        careful=True,
        footer=False,
    ),
    Action(
        id="app.console",
        keys=("colon",),
        label="console",
        help="Type an edit, such as: steer L5/12 +0.1 at all, a recipe (@name), or a command: "
        "note, save, emotion, layer, goto, metric, template, export, or an action by its name.",
        careful=True,
    ),
    Action(
        id="app.palette",
        keys=("ctrl+p",),
        label="palette",
        help="Choose from what this pane can do; : palette opens it too.",
        careful=True,
        footer=False,
    ),
    Action(
        id="console.leave",
        keys=("escape",),
        label="leave",
        help="Leave the console.",
        panes=("console",),
    ),
    Action(
        id="console.run",
        keys=("enter",),
        label="run",
        help="Make this edit, use this recipe (@name), or run this command.",
        panes=("console",),
    ),
    Action(
        id="console.complete",
        keys=("tab",),
        label="complete",
        help="Take the first word that may stand here; again: the next one.",
        panes=("console",),
    ),
    Action(
        id="console.complete_back",
        keys=("shift+tab",),
        label="complete back",
        help="Take the word before it.",
        panes=("console",),
        footer=False,
    ),
    Action(
        id="console.older",
        keys=("up",),
        label="line before",
        help="The line that was run before.",
        panes=("console",),
    ),
    Action(
        id="console.newer",
        keys=("down",),
        label="line after",
        help="The line that was run after.",
        panes=("console",),
        footer=False,
    ),
    Action(id="pane.text", keys=("1",), label="text", help="To the text.", footer=False),
    Action(id="pane.layers", keys=("2",), label="layers", help="To the layers.", footer=False),
    Action(
        id="pane.features", keys=("3",), label="features", help="To the features.", footer=False
    ),
    Action(
        id="pane.interventions",
        keys=("4",),
        label="interventions",
        help="To the interventions.",
        footer=False,
    ),
    Action(id="pane.next", keys=("tab",), label="pane", help="Next pane.", footer=False),
    Action(
        id="pane.previous",
        keys=("shift+tab",),
        label="pane back",
        help="Pane before.",
        footer=False,
    ),
    Action(
        id="probe.fit",
        keys=("F",),
        label="fit",
        help="Fit probes for this model, where there are none.",
        careful=True,
        footer=False,
    ),
    Action(
        id="trace.list",
        keys=("t",),
        label="traces",
        help="All traces in the cache: search, open, pin, delete.",
        footer=False,
    ),
    Action(
        id="trace.export",
        keys=("x",),
        label="export",
        help="Write this trace as JSON into the current folder.",
        careful=True,
    ),
    Action(
        id="work.cancel",
        keys=("escape",),
        label="cancel",
        help="Cancel the work that runs; what is finished is kept. Without any: take the message "
        "away, then the marks.",
        footer=False,
    ),
    Action(
        id="work.interrupt",
        keys=("ctrl+c",),
        label="cancel",
        help="Cancel the work that runs, from anywhere.",
        panes=PANES,
        footer=False,
    ),
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
    Action(
        id="app.help",
        keys=("question_mark",),
        label="keys",
        help="The keys of this pane.",
        panes=(*_LOOKING, "traces"),
    ),
    Action(
        id="app.theme",
        keys=("ctrl+t",),
        label="theme",
        help="Next theme: dark, light, high contrast, the terminal's 16 colours, none, your own.",
        footer=False,
    ),
    Action(
        id="app.close",
        keys=("q",),
        label="close",
        help="Close emotui; asks first while work runs.",
        careful=True,
    ),
    Action(
        id="generate.open",
        keys=("g",),
        label="generate",
        help="Write on from the text, without edits and with them, side by side.",
        careful=True,
    ),
    Action(
        id="emotion.define",
        keys=("f",),
        label="define",
        help="Console: define an emotion from a word, a file of texts, or texts in quotes.",
    ),
    Action(
        id="check.verify",
        keys=("v",),
        label="verify",
        help="Repeat the last edit on 50 other texts, beside random directions.",
        careful=True,
    ),
    Action(
        id="check.without",
        keys=("d",),
        label="without words",
        help="Read the text without its emotion words, beside other words masked.",
        careful=True,
        footer=False,
    ),
    Action(
        id="where.open",
        keys=("w",),
        label="where",
        help="Say at which layers the chosen emotion is readable, used and written.",
        careful=True,
    ),
    # Kept for what comes next (DESIGN 7).
    Action(id="search.open", keys=("slash",), label="search", help="Search.", built=False),
    Action(id="look.template", keys=("T",), label="template", help="Template.", built=False),
    Action(id="study.consistency", keys=("b",), label="consistency", help="...", built=False),
    Action(id="trace.compare", keys=("c",), label="compare", help="Compare.", built=False),
    Action(id="study.list", keys=("r",), label="studies", help="Studies.", built=False),
    Action(id="trace.copy", keys=("y",), label="copy", help="Copy.", built=False),
)
"""Every action, in the order footer and help show them."""

_SHOWN_KEYS = {
    "colon": ":",
    "question_mark": "?",
    "slash": "/",
    "enter": "enter",
    "escape": "esc",
    "left": "←",
    "right": "→",
    "up": "↑",
    "down": "↓",
    "ctrl+j": "^j",
    "ctrl+t": "^t",
    "ctrl+c": "^c",
    "ctrl+p": "^p",
    "shift+tab": "shift+tab",
    "pageup": "pgup",
    "pagedown": "pgdn",
}


def shown_key(key: str) -> str:
    """Return a key as footer and help write it."""
    return _SHOWN_KEYS.get(key, key)


def named_key(shown: str) -> str:
    """Return a key as Textual names it, from how footer and help write it."""
    return next((name for name, written in _SHOWN_KEYS.items() if written == shown), shown)


def actions_of(pane: PaneName, *, actions: Iterable[Action] = ACTIONS) -> list[Action]:
    """Return the built actions whose keys a pane hears, in the table's order."""
    return [action for action in actions if action.built and pane in action.panes]


def action_for(pane: PaneName, key: str, *, actions: Iterable[Action] = ACTIONS) -> Action | None:
    """Return the built action a key means in a pane; None where it means nothing."""
    found = (action for action in actions_of(pane, actions=actions) if key in action.keys)
    return next(found, None)


def clashes(actions: Iterable[Action] = ACTIONS) -> list[str]:
    """Name every key with two meanings in one pane, built or not; [] is as it must be."""
    owner: dict[tuple[PaneName, str], str] = {}
    found = []
    for action in actions:
        for place in ((pane, key) for pane in action.panes for key in action.keys):
            first = owner.setdefault(place, action.id)
            if first != action.id:
                found.append(f"{place[1]} in {place[0]}: {first} and {action.id}")
    return found
