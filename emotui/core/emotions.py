"""Emotions: named label sets and the lexicon of words that name an emotion outright."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

EKMAN = ("anger", "disgust", "fear", "joy", "sadness", "surprise")
PLUTCHIK = ("anger", "anticipation", "disgust", "fear", "joy", "sadness", "surprise", "trust")

LABEL_SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "ekman7": (*EKMAN, "neutral"),
        "plutchik9": (*PLUTCHIK, "neutral"),
        "goemotions28": (
            *("admiration", "amusement", "anger", "annoyance", "approval", "caring", "confusion"),
            *("curiosity", "desire", "disappointment", "disapproval", "disgust", "embarrassment"),
            *("excitement", "fear", "gratitude", "grief", "joy", "love", "nervousness"),
            *("optimism", "pride", "realization", "relief", "remorse", "sadness", "surprise"),
            "neutral",
        ),
        "envent13": (
            *("anger", "boredom", "disgust", "fear", "guilt", "joy", "pride", "relief"),
            *("sadness", "shame", "surprise", "trust", "neutral"),
        ),
    }
)
"""Label sets by name. `ekman7` is the default; `envent13` is crowd-enVENT's (METHODS 1.1)."""

DEFAULT_LABEL_SET = "ekman7"

_LEXICON_SOURCE = {
    "anger": (
        "anger angered angering angers angry angrier angrily angriest furious furiously fury "
        "rage raged raging enraged irate livid mad madder outraged outrage outrageous annoyed "
        "annoying annoyance irritated irritating irritation infuriated infuriating resent "
        "resented resentful resentment frustrated frustrating frustration indignant indignation "
        "hostile hostility incensed seething fuming bitter bitterness exasperated exasperating "
        "exasperation aggravated hate hated hates hatred hateful wrath"
    ),
    "disgust": (
        "disgust disgusted disgusting disgustingly disgusts revolted revolting revulsion "
        "repulsed repulsive repulsion repelled sickened sickening nauseated nauseating nausea "
        "nauseous gross grossed loathe loathed loathing loathsome abhor abhorred abhorrent "
        "abhorrence distaste distasteful contempt contemptuous yuck yucky ick icky vile "
        "repugnant aversion queasy"
    ),
    "fear": (
        "fear feared fearful fearing fears afraid scared scary scare scares scaring terrified "
        "terrifying terror frightened frightening fright frighten dread dreaded dreading "
        "dreadful panic panicked panicking panicky anxious anxiously anxiety nervous nervously "
        "nervousness worried worry worrying worries alarmed alarming horror horrified "
        "horrifying petrified apprehensive apprehension uneasy unease phobia spooked fright "
        "timid"
    ),
    "joy": (
        "joy joyful joyfully joyous enjoy enjoyed enjoying enjoyable enjoyment enjoys happy "
        "happier happiest happily happiness glad gladly delighted delight delightful delighting "
        "elated elation overjoyed thrilled thrilling cheerful cheerfully cheery ecstatic "
        "ecstasy blissful bliss merry jubilant pleased pleasure joyfulness excited excitement "
        "exciting euphoric euphoria content contented contentment gleeful glee love loved "
        "loving loves adored adore amused amusement"
    ),
    "sadness": (
        "sad sadder saddest sadly sadness saddened saddening sorrow sorrowful grief grieve "
        "grieved grieving mournful mourned mourning heartbroken heartbreak heartbreaking "
        "depressed depressing depression miserable misery unhappy unhappily unhappiness gloomy "
        "gloom despair despairing despondent dejected melancholy downcast disheartened "
        "disappointed disappointing disappointment devastated devastating lonely loneliness "
        "hopeless hopelessness blue crushed"
    ),
    "surprise": (
        "surprise surprised surprising surprisingly surprises astonished astonishing "
        "astonishment amazed amazing amazement stunned stunning shocked shocking shock startled "
        "startling astounded astounding flabbergasted dumbfounded speechless bewildered "
        "bewilderment unexpected unexpectedly"
    ),
    "anticipation": (
        "anticipation anticipate anticipated anticipating anticipates eager eagerly eagerness "
        "expectant expectantly expectation impatient impatiently impatience keen keenly hopeful "
        "hopefully excitedly looking-forward"
    ),
    "trust": (
        "trust trusted trusting trusts trusty trustworthy trustful trustingly confident "
        "confidence confidently faith faithful reliance relied rely reliable assured secure "
        "believe believed believing"
    ),
    "guilt": (
        "guilt guilty guiltily guiltless remorse remorseful regret regretful regretfully "
        "regrets regretted regretting contrite contrition repentant sorry apologetic culpable"
    ),
    "shame": (
        "shame shamed shameful shamefully shames ashamed humiliated humiliating humiliation "
        "embarrassed embarrassing embarrassment mortified mortifying mortification disgrace "
        "disgraced disgraceful sheepish sheepishly"
    ),
    "pride": "pride proud prouder proudest proudly prideful triumphant triumphantly triumph",
    "relief": (
        "relief relieved relieving relieve reassured reassuring reassurance reassure thankful "
        "thankfully grateful gratefully gratitude"
    ),
    "neutral": (
        "neutral indifferent indifference unmoved unemotional dispassionate impassive unfazed "
        "unbothered apathetic apathy"
    ),
}

LEXICON: Mapping[str, frozenset[str]] = MappingProxyType(
    {emotion: frozenset(words.split()) for emotion, words in _LEXICON_SOURCE.items()}
)
"""For each emotion of the corpus, the lower-case word forms that name it or a near synonym."""

GENERAL_WORDS = frozenset(
    (
        *("emotion", "emotions", "emotional", "emotionally"),
        *("feeling", "feelings", "mood", "moods", "upset"),
    )
)
"""Words that announce an emotion without saying which."""

EMOTION_WORDS = frozenset().union(*LEXICON.values()) | GENERAL_WORDS

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


def words_of(text: str) -> list[str]:
    """Return the lower-case words of a text, hyphens and inner apostrophes kept."""
    return WORD.findall(text.lower())


def emotion_words_in(text: str) -> list[str]:
    """Return the words of `text`, in order, of the lexicon (whole-word, lower-case match).

    The corpus was written by it; which texts of data name an emotion is asked of `core.wording`.
    """
    return [word for word in words_of(text) if names_emotion(word)]


def names_emotion(word: str) -> bool:
    """Return whether a word, or a part of it between hyphens, is of the lexicon, in any case."""
    lower = word.lower()
    return any(part in EMOTION_WORDS for part in (lower, *lower.split("-")))
