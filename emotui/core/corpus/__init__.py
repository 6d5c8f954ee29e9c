"""The bundled corpus: situations written for emotui, in matched pairs, split by topic.

Each pair tells one event twice: once naming the emotion, once without any emotion word. The
appraisal values are `author-assigned`: written by the authors of the texts, not rated by readers.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Literal

import msgspec

from emotui.core.errors import EmotuiError

Split = Literal["train", "dev", "test"]

APPRAISALS = (
    *("suddenness", "familiarity", "predict_event", "pleasantness", "unpleasantness"),
    *("goal_relevance", "self_responsblt", "other_responsblt", "chance_responsblt"),
    *("self_control", "chance_control", "urgency", "standards", "effort"),
)
"""The appraisals each situation carries, under crowd-enVENT's names (METHODS 1.1), 1 to 5."""

APPRAISAL_SOURCE = "author-assigned"

DEV_TOPICS = frozenset({"trains", "cooking", "football", "library", "job-search", "photography"})
TEST_TOPICS = frozenset({"driving", "pets", "clinic", "theatre", "neighbours", "birthdays"})

_FILE = "situations.tsv"
_COLUMNS = ("topic", "emotion", "person", "appraisals", "named", "unnamed")


class Situation(msgspec.Struct, frozen=True):
    """One text of the corpus."""

    id: str
    """`pair` and the half, as in `trains-fear-1-named`."""
    pair: str
    topic: str
    emotion: str
    person: int
    """Grammatical person of the one who feels: 1, 2 or 3."""
    named: bool
    """Whether the text names its emotion."""
    text: str
    appraisals: tuple[int, ...]
    """One value of 1 to 5 for each of `APPRAISALS`, author-assigned, shared by the pair."""

    @property
    def split(self) -> Split:
        """The part of the corpus its topic belongs to; a pair never straddles two."""
        return split_of(self.topic)


def split_of(topic: str) -> Split:
    """Return the split of a topic; topics are held out whole."""
    if topic in TEST_TOPICS:
        return "test"
    return "dev" if topic in DEV_TOPICS else "train"


@cache
def load_situations() -> tuple[Situation, ...]:
    """Return all situations, the two halves of a pair side by side.

    Raises EmotuiError if the bundled file was altered so that it no longer parses.
    """
    text = resources.files(__package__).joinpath(_FILE).read_text(encoding="utf-8")
    header, *lines = text.splitlines()
    if tuple(header.split("\t")) != _COLUMNS:
        raise EmotuiError(
            "The bundled corpus could not be read.",
            why=f"The header of {_FILE} is not {', '.join(_COLUMNS)}.",
            todo="Reinstall emotui.",
        )
    seen: dict[tuple[str, str], int] = {}
    situations: list[Situation] = []
    for line in lines:
        topic, emotion, person, digits, named, unnamed = line.split("\t")
        number = seen[topic, emotion] = seen.get((topic, emotion), 0) + 1
        pair = f"{topic}-{emotion}-{number}"
        appraisals = tuple(int(digit) for digit in digits)
        for is_named, words in ((True, named), (False, unnamed)):
            situations.append(
                Situation(
                    id=f"{pair}-{'named' if is_named else 'unnamed'}",
                    pair=pair,
                    topic=topic,
                    emotion=emotion,
                    person=int(person),
                    named=is_named,
                    text=words,
                    appraisals=appraisals,
                )
            )
    return tuple(situations)
