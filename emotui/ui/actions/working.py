"""What is asked of the model, what is kept, and the program."""

from __future__ import annotations

from emotui.ui.actions.action import LOOKING, PANES, Action

WORKING_ACTIONS: tuple[Action, ...] = (
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
        id="trace.compare",
        keys=("c",),
        label="compare",
        help="The edited trace beside its parent; without an edit, beside one of the list.",
        careful=True,
    ),
    Action(
        id="trace.copy",
        keys=("y",),
        label="copy",
        help="Copy the text, the feature's name or the trace's id (OSC 52, also in tmux).",
        footer=False,
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
        id="app.help",
        keys=("question_mark",),
        label="keys",
        help="The keys of this pane.",
        panes=(*LOOKING, "traces"),
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
    Action(
        id="study.consistency",
        keys=("b",),
        label="consistency",
        help="Ask for the emotion in other prompts, orders of the labels, and as a statement.",
        careful=True,
        footer=False,
    ),
    Action(
        id="study.terms",
        keys=("B",),
        label="words",
        help="Score emotion words after the text, and say which basic emotions they make.",
        careful=True,
        footer=False,
    ),
    Action(
        id="study.list",
        keys=("r",),
        label="studies",
        help="Results of studies; enter on a line goes to the layer, feature or text it names.",
        footer=False,
    ),
)
