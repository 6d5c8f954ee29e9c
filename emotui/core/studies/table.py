"""The table of studies: what each answers and what it needs; torch-free.

Study NAME is implemented by `emotui.core.studies.NAME`, whose `STUDY` the runner takes.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from emotui.core.errors import UsageError
from emotui.core.text import clean

OptionKind = Literal["text", "number", "numbers", "column", "columns", "file", "files"]


@dataclass(frozen=True)
class Option:
    """One option of a study, given as `--set NAME=VALUE`."""

    name: str
    kind: OptionKind
    """`column` is a column of the dataset, read along with the texts; `file` an absolute path.
    Several are separated by commas, those for one of several by plus signs."""
    default: str
    """As it would be given; "" for none."""
    help: str
    least: int = 1
    """Of a `number`, which is always a whole one; no part of the other kinds."""


@dataclass(frozen=True)
class Study:
    """One line of the table."""

    name: str
    question: str
    paper: str
    """Short name of the paper it follows; "" for none."""
    needs_labels: bool
    options: tuple[Option, ...] = ()
    most_texts: int | None = None
    """How many texts are taken where no --limit is given: what the fits need, and no more than
    fits into memory. None for all, one after the other."""
    saes: Literal["unused", "used", "needed"] = "unused"
    least_of_a_label: int = 0
    """Texts that at least two labels must have, or nothing can be fitted, whatever the model; 0
    where there is no such bound."""
    intervals: str = ""
    """Of what low, high and brackets are: level, method, draws; "" where the report says it."""
    half_option: str = ""
    """The option that says how many texts of a label each half must have; "" for none."""


STUDIES: tuple[Study, ...] = (
    Study(
        name="readout",
        question="What does the model answer, and what do its probes and features read, text by "
        "text?",
        paper="",
        needs_labels=False,
        intervals="95 %, percentiles of 1,000 bootstrap draws of texts within their label",
        options=(
            Option(
                "features", "number", "10", "how many features of each text are listed", least=0
            ),
            Option("texts", "text", "no", "`yes` writes the texts themselves into the rows"),
        ),
        saes="used",
    ),
    Study(
        name="probes",
        question="At which layers and sites can the emotion, and each appraisal, be read?",
        paper="Tak et al.",
        needs_labels=True,
        intervals="95 %, percentiles of 1,000 bootstrap draws of the judged texts within their "
        "label",
        options=(
            Option("raters", "columns", "", "columns with the label each reader gave"),
            Option("random", "text", "yes", "`no` leaves out the model with random weights"),
        ),
        most_texts=2000,
        least_of_a_label=34,  # below, 15 % held out are fewer than five
    ),
    Study(
        name="patch",
        question="Where does the readout carry the answer, so that putting another text's there "
        "carries its answer over?",
        paper="Tak et al.",
        needs_labels=True,
        intervals="95 %, percentiles of 1,000 pigeonhole bootstrap draws: texts are drawn, and a "
        "pair counts as often as the product of its two",
        options=(
            Option("span", "numbers", "1,3", "how many layers are patched together; odd"),
            Option("sites", "text", "resid,attn,mlp", "where"),
            Option("pairs", "number", "100", "pairs of texts, the same at every layer"),
            Option("correct", "text", "yes", "`no` also pairs texts that are answered wrongly"),
            Option("control", "text", "yes", "`no` leaves out the first-word task"),
        ),
        most_texts=2000,
    ),
    Study(
        name="knockout",
        question="Which layers and sites does the answer not survive without?",
        paper="Tak et al.",
        needs_labels=True,
        intervals="95 %, percentiles of 1,000 bootstrap draws of texts (lost: within their "
        "label); lowest and highest are of the draws of random directions",
        options=(
            Option("span", "numbers", "1,3", "how many layers are knocked out together; odd"),
            Option("sites", "text", "attn,mlp", "where; also resid"),
            Option("kinds", "text", "zero,mean,random,resample", "what is put there instead"),
            Option("draws", "number", "5", "random directions for each text"),
            Option("control", "text", "yes", "`no` leaves out the first-word task"),
        ),
        most_texts=300,
    ),
    Study(
        name="promote",
        question="From which layer on, and how strongly, does adding an emotion's direction make "
        "it the answer?",
        paper="Tak et al.",
        needs_labels=True,
        intervals="along means and row 95 %, percentiles of 1,000 bootstrap draws of texts; of "
        "random directions low and high are the lowest and the highest draw",
        options=(
            Option("strengths", "numbers", "0.1,0.2,0.5,1", "of the residual's mean norm"),
            Option("along", "text", "means,row", "difference of means, or the probe's row"),
            Option("span", "number", "1", "layers it is added at; odd"),
            Option("draws", "number", "10", "random directions of each kind"),
            Option("generations", "number", "0", "texts continued under each direction", least=0),
            Option("layer", "text", "", "where; the layer whose probe is best on dev if not given"),
        ),
        most_texts=200,
    ),
    Study(
        name="appraise",
        question="Do the answers follow when one appraisal is moved and the others are held?",
        paper="Tak et al.",
        needs_labels=True,
        options=(
            Option(
                "appraisals",
                "text",
                "pleasantness,other_responsblt,predict_event,chance_control",
                "each is changed while the others are kept",
            ),
            Option("joint", "text", "pleasantness:other_responsblt", "changed together; or none"),
            Option("strengths", "numbers", "0.2,0.5,1", "of the residual's mean norm"),
            Option("projection", "text", "yes", "`yes,no` also without it, as released"),
            Option("span", "number", "1", "layers it is added at; odd"),
            Option("draws", "number", "5", "random directions of each kind"),
            Option("generations", "number", "0", "texts continued under each change", least=0),
            Option("layer", "text", "", "where, and of the matrices; the one with the best R²"),
        ),
        most_texts=400,
    ),
    Study(
        name="phases",
        question="Does the model go from tokens over meaning to emotion in phases, or gradually?",
        paper="SAE paper",
        needs_labels=True,
        options=(
            Option("semantic", "column", "", "a column that is no emotion; bundled: the topic"),
            Option("pairs", "number", "100", "pairs of texts that are patched"),
        ),
        most_texts=600,
        saes="needed",
    ),
    Study(
        name="features",
        question="Which features are specific to an emotion, which are shared, and which follow "
        "valence?",
        paper="SAE paper",
        needs_labels=True,
        options=(
            Option("position", "text", "text", "`text`: anywhere in the text; or `readout`"),
            Option("least", "number", "10", "fewest texts of a label in each half"),
            Option("shuffles", "number", "500", "shufflings of the labels"),
        ),
        most_texts=1000,
        saes="needed",
        half_option="least",
    ),
    Study(
        name="trace",
        question="Which features cause the answer, in which phase, and how many carry it?",
        paper="SAE paper",
        needs_labels=True,
        options=(
            Option("examples", "number", "20", "texts of each emotion that are ablated in"),
            Option("boundaries", "text", "", "first layers of the later phases; else thirds"),
        ),
        most_texts=2000,
        saes="needed",
    ),
    Study(
        name="steer",
        question="Does scaling causal features improve recognition beyond logit bias, few-shot "
        "and matched features?",
        paper="SAE paper",
        needs_labels=True,
        intervals="95 %, percentiles of 2,000 bootstrap draws of texts; of gains the same over "
        "paired draws, corrected (Bonferroni) for all settings and datasets",
        options=(
            Option("shots", "numbers", "1,2,5,10", "examples of each label to choose and fit on"),
            Option("features", "number", "8", "most features of a label"),
            Option("eval", "files", "", "datasets of other origin to judge on"),
            Option("eval_limit", "number", "300", "most texts of each of these"),
            Option("eval_text", "text", "", "text column of each of these, with commas between"),
            Option("eval_label", "text", "", "label column of each of these"),
            Option("eval_maps", "files", "", "label maps of each; + joins several of one"),
            Option("save", "text", "", "name of a recipe for the explorer"),
        ),
        most_texts=1000,
        saes="needed",
    ),
    Study(
        name="terms",
        question="Which emotion words does the model expect after a text, and what are they made "
        "of?",
        paper="EXPRESS",
        needs_labels=False,
        intervals="95 %, percentiles of 1,000 bootstrap draws of texts",
        options=(
            Option("mode", "text", "score", "score, generate, or both with a comma"),
            Option("shots", "numbers", "0", "examples shown before a text, as 0,1,3,6"),
            Option("pick", "text", "random,nearest", "which examples: random, nearest, or both"),
            Option("thinking", "text", "no", "`yes` also has a chain of thought written first"),
            Option("terms", "file", "", "a table of words, or NRC EmoLex; else the bundled one"),
            Option("term", "column", "", "the column of true words; else the label"),
            Option("edit", "text", "", "edits in force, with ; between them"),
            Option("layers", "number", "50", "texts that are also read at every layer", least=0),
        ),
        most_texts=1000,
        saes="used",
    ),
    Study(
        name="consistency",
        question="Does the answer stay when only the way of asking changes, and is what stands "
        "inside steadier?",
        paper="Shu et al., questionnaire reliability",
        needs_labels=False,
        intervals="95 %, percentiles of 1,000 bootstrap draws of texts; draws without a kappa "
        "are left out",
        options=(
            Option(
                "items",
                "file",
                "",
                "statements of a questionnaire: columns statement, negation, axis, key",
            ),
        ),
        most_texts=2000,
        saes="used",
    ),
)


def study_named(name: str) -> Study:
    """Return the study called `name`; UsageError names those there are."""
    for study in STUDIES:
        if study.name == name:
            return study
    raise UsageError(
        f"There is no study called {clean(name)!r}.",
        todo=f"Use one of: {', '.join(study.name for study in STUDIES)}.",
    )


def without_labels() -> str:
    """Return the names of the studies that need no labels, for a message."""
    return ", ".join(study.name for study in STUDIES if not study.needs_labels)


def settings_of(study: Study, given: dict[str, str]) -> dict[str, str]:
    """Return the value of every option of a study; UsageError for one it does not have."""
    known = {option.name: option for option in study.options}
    for name, value in given.items():
        if name not in known:
            raise UsageError(
                f"The study {study.name} has no option {clean(name)!r}.",
                todo=f"It has: {', '.join(known) or 'none'}.",
            )
        if known[name].kind == "numbers":
            numbers(name, value)
        elif known[name].kind == "number":
            _count(name, value, least=known[name].least)
    return {name: given.get(name, option.default) for name, option in known.items()}


def recorded_settings(study: Study, given: dict[str, str]) -> dict[str, str]:
    """Return the value of every option as a result names it: of files no path, but a hash.

    UsageError as `settings_of`.
    """
    recorded = settings_of(study, given)
    for option in study.options:
        if option.kind in ("file", "files") and recorded[option.name]:
            one = r".+" if option.kind == "file" else r"[^,+]+"
            recorded[option.name] = re.sub(
                one, lambda path: _recorded_file(path[0]), recorded[option.name]
            )
    return recorded


def _recorded_file(path: str) -> str:
    """Return a file's name and the beginning of its SHA-256; the name alone where it is no file."""
    file = Path(path.strip()).expanduser()
    try:
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError:
        return file.name
    return f"{file.name} ({digest[:12]})"


def least_of_a_label(study: Study, settings: dict[str, str]) -> int:
    """Return how many texts at least two labels must have; `settings` are those of every option."""
    in_halves = 2 * int(numbers("", settings[study.half_option])[0]) if study.half_option else 0
    return max(study.least_of_a_label, in_halves)


def _count(name: str, value: str, *, least: int) -> None:
    """Refuse what is not one whole number from `least` on."""
    found = numbers(name, value)
    if len(found) != 1 or found[0] != int(found[0]) or found[0] < least:
        raise UsageError(
            f"{clean(name)} cannot be {clean(value)!r}.",
            todo=f"Give a whole number from {least}.",
        )


def numbers(name: str, value: str) -> tuple[float, ...]:
    """Return the numbers of a comma-separated value; UsageError where one is none."""
    try:
        found = tuple(float(part) for part in value.split(",") if part.strip())
    except ValueError:
        found = ()
    if not found or not all(math.isfinite(number) for number in found):
        raise UsageError(
            f"{clean(name)} cannot be {clean(value)!r}.", todo="Give numbers, as in 1,3,5."
        )
    return found


def columns_of(study: Study, settings: dict[str, str]) -> tuple[str, ...]:
    """Return the columns of the dataset that the settings name."""
    return tuple(
        column.strip()
        for option in study.options
        if option.kind in ("column", "columns")
        for column in settings[option.name].split(",")
        if column.strip()
    )
