"""Words of a text that can be masked: those that name an emotion, and other content words."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from math import comb

import msgspec

from emotui.core.emotion_terms import load_terms
from emotui.core.emotions import EMOTION_WORDS, LABEL_SETS, WORD
from emotui.core.inflections import INFLECTED

DEFAULT_PLACEHOLDER = "something"
"""An ordinary word that says nothing: it keeps the sentence a sentence, most tokenizers have it
as one token, and it fits where a noun, and nearly where an adjective or a verb, stood. A blank
(`___`) reads as a cloze test, which asks the model to fill in the very word."""

_FURTHER_SOURCE = (
    "annoyingly irritability horrific pleasant pleasantly affection grievous heartbreakingly "
    "devastatingly jealousy"
)


@cache
def listed_words() -> frozenset[str]:
    """Return every lower-case word of emotui's lists of emotion words, the one list there is.

    The lexicon of the corpus, the table of fine-grained words (tired, numb, overwhelmed), the
    labels of every set, and inflected forms and outward signs (cried, laughing, tears).
    """
    return (
        EMOTION_WORDS
        | INFLECTED
        | frozenset(_FURTHER_SOURCE.split())
        | frozenset(term.term for term in load_terms())
        | frozenset(label for labels in LABEL_SETS.values() for label in labels)
    )


def none_listed() -> str:
    """Return what was checked of a text without emotion words, in words."""
    return f"none of the {len(listed_words())} words of emotui's lists of emotion words"


def counted(count: int, noun: str) -> str:
    """Return a number of things in words: 1 set, 20 sets."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


_FUNCTION_SOURCE = (
    "a an the this that these those some any each every either neither no none all both half "
    "such what which who whom whose whatever whichever whoever "
    "i me my mine myself we us our ours ourselves you your yours yourself yourselves he him "
    "his himself she her hers herself it its itself they them their theirs themselves one "
    "ones someone something somebody anyone anything anybody everyone everything everybody "
    "nobody nothing "
    "am is are was were be been being do does did doing done have has had having will would "
    "shall should can could may might must ought cannot isn't aren't wasn't weren't don't "
    "doesn't didn't haven't hasn't hadn't won't wouldn't shan't shouldn't can't couldn't "
    "mightn't mustn't i'm i've i'd i'll you're you've you'd you'll he's he'd he'll she's she'd "
    "she'll it's it'd it'll we're we've we'd we'll they're they've they'd they'll that's "
    "there's here's what's who's let's "
    "about above across after against along among around as at before behind below beneath "
    "beside besides between beyond but by despite down during except for from in inside into "
    "like near of off on onto out outside over past per since through throughout till to "
    "toward towards under until unto up upon via with within without "
    "and or nor so yet if then else than because although though while whereas unless whether "
    "when whenever where wherever why how "
    "not n't there here now again also too very just only even still ever never always often "
    "already quite rather almost once twice more most less least much many few several other "
    "another same own"
)
FUNCTION_WORDS = frozenset(_FUNCTION_SOURCE.split())
"""Lower-case words that carry no content of their own; numerals and names count as content."""


class Word(msgspec.Struct, frozen=True):
    """A word and where it stands: characters `start` to `end` (one past the last)."""

    text: str
    start: int
    end: int


def words_in(text: str) -> list[Word]:
    """Return the words of a text in order, hyphens and inner apostrophes kept."""
    return [Word(match.group(), *match.span()) for match in WORD.finditer(text)]


def emotion_words(text: str) -> list[Word]:
    """Return the words that name an emotion in a text (whole words, any case, hyphened parts)."""
    return [word for word in words_in(text) if names_emotion(word.text)]


def content_words(text: str) -> list[Word]:
    """Return the other words that carry content: no emotion's, no function words."""
    return [
        word
        for word in words_in(text)
        if not names_emotion(word.text)
        and word.text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'") not in FUNCTION_WORDS
    ]


def names_emotion(word: str) -> bool:
    """Return whether a word, or a part of it between hyphens, is listed, in any case."""
    lower = word.lower()
    listed = listed_words()
    return any(part in listed for part in (lower, lower.replace("-", ""), *lower.split("-")))


def masked(text: str, words: Sequence[Word], placeholder: str = DEFAULT_PLACEHOLDER) -> str:
    """Return the text with the placeholder in each word's place, capitalised as the word was."""
    for word in sorted(words, key=lambda word: -word.start):
        capital = word.text[:1].isupper()
        filled = placeholder[:1].upper() + placeholder[1:] if capital else placeholder
        text = text[: word.start] + filled + text[word.end :]
    return text


def drawn_sets(
    words: Sequence[Word], size: int, *, draws: int, seed: int
) -> tuple[list[tuple[Word, ...]], int]:
    """Return at most `draws` different sets of `size` words, and how many sets there are.

    All of them where there are no more; none where there are fewer words than `size`.
    """
    choices = comb(len(words), size) if size else 0
    if choices <= draws:
        return (list(combinations(words, size)) if choices else []), choices
    generator = random.Random(f"{seed}:{size}")
    chosen: dict[tuple[int, ...], None] = {}
    while len(chosen) < draws:
        chosen.setdefault(tuple(sorted(generator.sample(range(len(words)), size))))
    return [tuple(words[place] for place in places) for places in chosen], choices
