"""The same question asked in other ways (METHODS 6): prompts, orders, binary forms, negations.

A statement is put as in the questionnaires of Shu et al. (`Statement: ... Question: ... Reply with
only 'True' or 'False' ...`), behind the text it is about. Torch-free.
"""

from __future__ import annotations

import random
from typing import Literal

import msgspec

from emotui.core.text import TEMPLATES, Template

FormGroup = Literal["template", "order", "binary", "negation", "denied"]
Wording = Literal["True/False", "False/True", "Yes/No", "No/Yes"]

PARAPHRASES = ("ask", "tak1", "tak2", "tak3", "tak4", "words")
RANDOM_ORDERS = 4
ANSWER_LAST = "answer last"
"""The order that puts what was answered in the first order at its end."""
DENIED = "None of this happened: "

STATEMENT = "The writer feels {}."
NEGATIONS = {
    "not": "The writer does not feel {}.",
    "free of": "The writer is free of {}.",
}
WORDINGS: dict[Wording, tuple[str, str]] = {
    "True/False": ("True", "False"),
    "False/True": ("True", "False"),
    "Yes/No": ("Yes", "No"),
    "No/Yes": ("Yes", "No"),
}
"""Form to what agrees and what disagrees."""

ROBUST_KAPPA = 0.8
"""What templates and orders must reach for the badge, METHODS 6f."""
ROBUST_NEGATION = 0.6
LEAST_VALID = 0.1
"""Share of valid answers below which answers are chosen among words the model does not write."""

_WORDS = Template("words", "Name the emotion. Text: ", " One word:")


class Form(msgspec.Struct, frozen=True):
    """One way to ask."""

    group: FormGroup
    name: str
    template: Template
    order: tuple[int, ...] = ()
    """For an order: the labels' indices as they are listed."""


def paraphrases(template: Template, *, chat: bool) -> tuple[Form, ...]:
    """Return the prompts that ask for a label, the given one first.

    With `chat` also the one in the tokenizer's chat template, which it must have.
    """
    known = {**TEMPLATES, _WORDS.name: _WORDS}
    names = (*PARAPHRASES, *(["chat"] if chat else []))
    others = [known[name] for name in names if name != template.name]
    return tuple(Form("template", one.name, one) for one in (template, *others))


def orders(labels: tuple[str, ...], template: Template, *, seed: int) -> tuple[Form, ...]:
    """Return the orders that do not depend on the answer: forward, reverse, and four drawn."""
    forward = tuple(range(len(labels)))
    draw = random.Random(f"{seed}:orders:{','.join(labels)}")
    named = {"forward": forward, "reverse": forward[::-1]}
    for number in range(RANDOM_ORDERS):
        named[f"drawn {number + 1}"] = tuple(draw.sample(forward, len(forward)))
    return tuple(listed(name, order, labels, template) for name, order in named.items())


def answer_last(answer: int, labels: tuple[str, ...], template: Template) -> Form:
    """Return the forward order with one label moved to its end."""
    order = (*(n for n in range(len(labels)) if n != answer), answer)
    return listed(ANSWER_LAST, order, labels, template)


def listed(name: str, order: tuple[int, ...], labels: tuple[str, ...], template: Template) -> Form:
    """Return a prompt that lists the labels in an order before it asks."""
    options = ", ".join(labels[number] for number in order)
    before = f"Options: {options}. {template.before}"
    return Form("order", name, msgspec.structs.replace(template, before=before), order)


def denied(template: Template) -> Form:
    """Return the prompt that says first that nothing of the text happened."""
    before = template.before + DENIED
    return Form("denied", "denied", msgspec.structs.replace(template, before=before))


def question(wording: Wording) -> str:
    """Return what is asked of a statement, to the word `Answer:`."""
    if wording in ("True/False", "False/True"):
        asked = "Do you think the statement is true or false?"
    else:
        asked = "Do you agree with the statement?"
    first, second = wording.split("/")
    return (
        f"\nQuestion:\n{asked} Reply with only '{first}' or '{second}' without explaining your "
        "reasoning.\nAnswer:"
    )


def about(statement: str, wording: Wording, *, chat: bool) -> Template:
    """Return the prompt that asks whether a statement about the text holds."""
    after = f"\nStatement:\n{statement}{question(wording)}"
    return Template(f"statement, {wording}", "Text:\n", after, chat)


def item(wording: Wording, *, chat: bool) -> Template:
    """Return the prompt of a questionnaire: the text is the statement."""
    return Template(f"item, {wording}", "Statement:\n", question(wording), chat)


STATEMENT_FORMS: tuple[tuple[str, str, Wording], ...] = (
    *((wording, STATEMENT, wording) for wording in WORDINGS),
    *((name, statement, "True/False") for name, statement in NEGATIONS.items()),
)
"""Name, statement and wording of the six ways an emotion is asked for as a statement."""


class FormAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One form of one text."""

    group: FormGroup
    form: str
    answer: str
    """The likeliest label; for a statement `agrees` or `disagrees`."""
    probability: float
    """Of the answer among those it was chosen from."""
    valid: bool
    """Whether the likeliest next token of all begins an answer."""
    about: str = ""
    """The emotion of a statement."""
    probe: str = ""
    """What the trusted probe reads there; "" without one."""
    lens: tuple[str, ...] = ()
    """What the logit lens says at each layer; () for a statement."""


class TextConsistency(msgspec.Struct, frozen=True, kw_only=True):
    """What a text is answered in every form."""

    label_set: str
    template: str
    rule: str
    """How the labels are told apart."""
    answers: tuple[FormAnswer, ...]
    templates_agree: float | None
    """Share of pairs of templates with the same answer; None with fewer than two."""
    orders_agree: float | None
    probe_agrees: float | None
    """The same of the probe, over templates and orders; None without one."""
    probe: str
    probe_layer: int | None
    negated: float | None
    """Share of statements whose answer turned with their negation."""
    averaged: str
    """The likeliest label where probabilities are averaged over the orders."""
    badge: str
    """`same answer in every form`, or what it depends on."""
