"""What the console runs beside edits: commands of its own, and every action by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from emotui.core.edits import OPERATIONS, recipe_named
from emotui.core.errors import EditError
from emotui.core.text import clean
from emotui.ui.actions import ACTIONS, Action

EXPORTS = ("json", "py", "md", "html", "csv", "neuronpedia")
_IN_PANES = frozenset({"text", "layers", "features", "interventions"})


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of the console."""

    name: str
    help: str
    argument: str = ""
    """How its argument is written in the help; "" where it takes none."""
    optional: bool = False
    """Whether it may be left out."""
    action: str = ""
    """The action that it runs where there is no argument; "" for none."""


_OWN = (
    Command(name="note", argument="TEXT", help="Write a note beside this trace."),
    Command(name="save", argument="NAME", help="Save the edits in force as the recipe @NAME."),
    Command(
        name="export",
        argument="|".join(EXPORTS),
        optional=True,
        action="trace.export",
        help="Write this trace into the current folder.",
    ),
    Command(
        name="emotion",
        argument="NAME",
        optional=True,
        action="look.emotion",
        help="Look at this emotion, or at the next.",
    ),
    Command(name="layer", argument="N", help="Cursor to this layer; emb is the embedding."),
    Command(
        name="goto", argument="N|readout|last", help="Cursor to this token; 0 is the first shown."
    ),
    Command(
        name="metric",
        argument="M",
        help="What features are attributed to: top, none, answer.EMOTION, readout.EMOTION[@L5].",
    ),
    Command(
        name="template",
        argument="NAME",
        help="Read the text in another prompt, without the edits that name a token.",
    ),
    Command(
        name="generate",
        argument="TOKENS xTEXTS tTEMPERATURE",
        optional=True,
        action="generate.open",
        help="Write on from the text, as in: generate 60 x8 t0.8.",
    ),
    Command(
        name="where",
        argument='from "NEUTRAL REWRITE"',
        optional=True,
        action="where.open",
        help="Where the chosen emotion is, beside a neutral rewrite of the text.",
    ),
    Command(
        name="find",
        argument="WORDS",
        help="Next token with these words; in Features a number or words of a label.",
    ),
    Command(name="unmark", help="Take the marks of all features away."),
    Command(
        name="models",
        argument="NAME",
        optional=True,
        help="The models whose names hold this, and their SAEs; the SAEs of a release.",
    ),
    Command(name="probes", help="The probes there are, their scores, and which are in force."),
    Command(
        name="labels",
        argument="FILE",
        optional=True,
        help="The files of labels of SAE features; or the features of one.",
    ),
    Command(
        name="sae",
        argument="NAME|none",
        help="Read the text with other SAEs: a folder, RELEASE[:ID], or none.",
    ),
    Command(name="message", help="The latest message, whole."),
    Command(name="help", action="app.help", help="The keys of this pane."),
    Command(name="quit", action="app.close", help="Close emotui."),
)


def command_table(actions: Iterable[Action] = ACTIONS) -> Mapping[str, Command]:
    """Return the commands by name: their own first, then each action by label and by id.

    An action whose label is taken, by an edit or by a command, has its id alone.
    """
    table: dict[str, Command] = {}
    usable = [a for a in actions if _IN_PANES & set(a.panes)]
    ids = {action.id for action in usable}
    for command in _OWN:
        if not command.action or command.argument or command.action in ids:
            table[command.name] = command
    for action in usable:
        label = action.label.lower().replace(" ", "-")
        for name in (label, action.id):
            if name not in table and name not in OPERATIONS:
                table[name] = Command(name=name, help=action.help, action=action.id)
    return table


def command_in(line: str, table: Mapping[str, Command]) -> tuple[Command, str] | None:
    """Return the command that a line gives and its argument; None where it is an edit or @name.

    A colon before the first word is left out. Raises EditError, which says what is like it, for
    a first word that is neither, and for an argument too much or missing.
    """
    word, _, rest = line.strip().removeprefix(":").lstrip().partition(" ")
    argument = rest.strip()
    if word.lower() in OPERATIONS or word.startswith("@"):
        return None
    command = table.get(word.lower())
    if command is None:
        raise _unknown(word, table)
    if argument and not command.argument:
        raise _misplaced(argument.split()[0], f"{command.name} takes no word after it.")
    if not argument and command.argument and not command.optional:
        raise _misplaced("", f"{command.name} wants {command.argument} after it.")
    return command, argument


def edit_in(line: str) -> str:
    """Return the edit or `@name` in a line of the console: without a colon before it."""
    return line.strip().removeprefix(":").lstrip()


def is_recipe(line: str) -> bool:
    """Return whether an edit is `@name`; EditError for a name that cannot be one."""
    return recipe_named(line) is not None


def refusal(word: str, what: str, *, why: str = "") -> EditError:
    """Return the error of a command whose argument is wrong; `word` is what it is about."""
    error = EditError(what, why=why, todo="Nothing was changed.")
    error.word = word
    return error


def _unknown(word: str, table: Mapping[str, Command]) -> EditError:
    known = [*OPERATIONS, *(name for name in table if "." not in name)]
    if "." in word:
        known += [name for name in table if "." in name]
    near = difflib.get_close_matches(word.lower(), known, n=3, cutoff=0.6)
    why = f"Like it: {', '.join(near)}." if near else f"Edits begin with {', '.join(OPERATIONS)}."
    return refusal(word, f"{clean(word)!r} is neither an edit nor a command.", why=why)


def _misplaced(word: str, why: str) -> EditError:
    found = f"{clean(word)!r} was not understood." if word else "A word is missing."
    return refusal(word, found, why=why)
