"""How a text is asked for emotion words: conditions, examples shown, masks, and prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from emotui.core.engine.collect import text_mask
from emotui.core.errors import UsageError
from emotui.core.studies.common.dataset import Item
from emotui.core.studies.terms_measures import MASK, true_words
from emotui.core.text import Template, clean

if TYPE_CHECKING:
    from emotui.core.studies.common.running import Running

Mode = Literal["score", "generate"]
Pick = Literal["", "random", "nearest"]

_CUT = Template("cut", "", "")
"""Where a text is cut at its mask, nothing stands around it."""
_FORM = "word"
_THINK = " Think step by step, then write 'Answer:' and the answer."
_PLAIN = " Only include words describing emotions, and provide no extra text or reasoning."


@dataclass(frozen=True)
class Condition:
    """One way to ask."""

    mode: Mode
    shots: int = 0
    pick: Pick = ""
    thinking: bool = False
    edited: bool = False

    @property
    def name(self) -> str:
        """As it is reported."""
        shots = f"{self.shots} {self.pick} shots" if self.shots else "zero-shot"
        parts = [self.mode, shots, *(["chain of thought"] if self.thinking else [])]
        return ", ".join([*parts, *(["edited"] if self.edited else [])])

    @property
    def stage(self) -> str:
        """As its chunks are named."""
        return self.name.replace(", ", "-").replace(" ", "-")


@dataclass(frozen=True)
class Example:
    """One mask of a text, or the text where it has none."""

    item: Item
    mask: int
    true: str
    """"" where no true word is known."""

    @property
    def key(self) -> int:
        """Tells examples apart: at most 1,000 masks in a text."""
        return self.item.index * 1000 + self.mask


def conditions_of(study: Running) -> tuple[Condition, ...]:
    """Return the conditions of a run, zero-shot first; UsageError where an option is unknown."""
    modes = _chosen("mode", study.text("mode"), ("score", "generate"))
    picks = _chosen("pick", study.text("pick"), ("random", "nearest"))
    numbers = sorted({int(number) for number in study.numbers("shots")} | {0})
    if numbers[0] < 0:
        raise UsageError("Fewer than no shots were asked for.", todo="Use --shots 0,1,3.")
    edited = bool(study.text("edit").strip())
    found: list[Condition] = []
    for mode in ("score", "generate"):
        if mode not in modes:
            continue
        one: Mode = "score" if mode == "score" else "generate"
        found.append(Condition(one))
        if edited:
            found.append(Condition(one, edited=True))
        if one == "generate" and study.text("thinking") == "yes":
            found.append(Condition(one, thinking=True))
        for number in numbers[1:]:
            for pick in picks:
                how: Pick = "random" if pick == "random" else "nearest"
                found.append(Condition(one, number, how))
    return tuple(found)


def _chosen(option: str, value: str, known: tuple[str, ...]) -> tuple[str, ...]:
    given = tuple(part.strip() for part in value.split(",") if part.strip())
    if not given or set(given) - set(known):
        raise UsageError(
            f"{option} cannot be {clean(value)!r}.", todo=f"Use {' or '.join(known)}, or both."
        )
    return given


def examples_of(study: Running, item: Item, known: frozenset[str]) -> list[Example]:
    """Return a text's masks with their true words, or the text with its one.

    True words are those of the column `term`; without one the label, where the table has it.
    """
    if study.text("term"):
        words = true_words(item.extra[0])
    else:
        label = study.dataset.labels[item.label] if item.label >= 0 else ""
        words = [label] if label in known else []
    count = max(1, item.text.count(MASK))
    return [Example(item, mask, words[mask] if mask < len(words) else "") for mask in range(count)]


class Pool:
    """The texts that examples are shown from: those of the dataset with a true word."""

    def __init__(self, study: Running, known: frozenset[str]) -> None:
        self._study = study
        self._known = known
        self.examples = [
            found[0]
            for item in study.dataset
            if (found := examples_of(study, item, known)) and found[0].true
        ]
        self._means: Tensor | None = None

    def shots(self, item: Item, condition: Condition) -> list[Example]:
        """Return the examples shown before a text, never of the text itself.

        Nearest by the cosine of mean input embeddings, centred over the dataset; the nearest last.
        UsageError where there are too few.
        """
        usable = [n for n, one in enumerate(self.examples) if one.item.id != item.id]
        if len(usable) < condition.shots:
            raise UsageError(
                f"There are too few texts with a true word for {condition.shots} shots.",
                why=f"{len(usable)} others have one.",
                todo="Lower --shots, or give more texts.",
            )
        if condition.pick == "random":
            drawn = torch.randperm(len(usable), generator=self._study.generator(f"shots:{item.id}"))
            return [self.examples[usable[n]] for n in drawn[: condition.shots].tolist()]
        means = self._embedded()
        near = means[usable] @ self._centred(item.text)
        order = near.argsort(descending=True, stable=True)[: condition.shots].tolist()
        return [self.examples[usable[n]] for n in reversed(order)]

    def _embedded(self) -> Tensor:
        if self._means is None:
            raw = torch.stack([self._mean(one.item.text) for one in self.examples])
            self._middle = raw.mean(dim=0)
            self._means = torch.nn.functional.normalize(raw - self._middle, dim=-1)
        return self._means

    def _centred(self, text: str) -> Tensor:
        return torch.nn.functional.normalize(self._mean(text) - self._middle, dim=-1)

    @torch.no_grad()
    def _mean(self, text: str) -> Tensor:
        model = self._study.model
        record = model.reader.read(text, Template("raw", "", ""))
        inside = [t.id for t, own in zip(record.tokens, text_mask(record), strict=True) if own]
        rows: Tensor = model.hf.get_input_embeddings()(model.tensor_of([inside]))
        return rows[0].float().mean(dim=0).cpu()


def scoring_prompt(example: Example, template: Template, shots: Sequence[Example]) -> Template:
    """Return what stands around a text whose next word is scored.

    Around a text with masks only the shots: it is cut at the mask, which ends it.
    """
    around = _CUT if MASK in example.item.text else template
    shown = "".join(
        f"{around.before}{cut(one, around)}{around.after} {one.true}\n" for one in shots
    )
    return Template(around.name, shown + around.before, around.after, template.chat)


def cut(example: Example, around: Template) -> str:
    """Return the text of an example up to its mask; one without ends as those do, or is whole."""
    text = example.item.text
    if MASK in text:
        return MASK.join(text.split(MASK)[: example.mask + 1]).rstrip()
    return f"{text} I feel" if around.name == _CUT.name else text


def writing_prompt(
    item: Item, shots: Sequence[Example], *, thinking: bool, chat: bool
) -> tuple[str, Template]:
    """Return the text and the prompt of EXPRESS (METHODS 5) in which masked words are written."""
    count = max(1, item.text.count(MASK))
    form = ", ".join([_FORM] * count)
    instruction = (
        "You are an assistant tasked with predicting emotion words masked as <mask> in a given "
        f"self-disclosure text from social media. Predict the {count} <mask> tokens based on the "
        f"context. Provide your answer in the format {form}. The length of the list must be "
        f"{count}.{_THINK if thinking else _PLAIN} "
    )
    shown = "".join(f"Text: {masked(one.item)} Answer: {one.true}\n" for one in shots)
    before = f"{instruction}{shown}Text: "
    return masked(item), Template("express", before, " Answer:", chat)


def masked(item: Item) -> str:
    """Return a text with a mask at its end where it has none."""
    return item.text if MASK in item.text else f"{item.text} I feel {MASK}."


def digest_of(words: Sequence[str]) -> str:
    """Return a short hash of words."""
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]
