"""The edits in force, and the console."""

from __future__ import annotations

from emotui.ui.actions.action import Action

EDITING_ACTIONS: tuple[Action, ...] = (
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
)
