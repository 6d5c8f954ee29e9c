"""The inflected forms of words that name an emotion, or its outward sign (weep, sob, laugh).

Regular forms are made by the rules of English spelling; irregular ones are listed. They are masked
by `emotui without` and play no part in the lexicon that says which texts of a corpus name their
emotion (`core.emotions`): what probes are judged on does not depend on them.
"""

from __future__ import annotations

from collections.abc import Iterator

_VOWELS = "aeiou"

_VERBS = (
    "abhor admire adore aggravate amaze amuse anger annoy anticipate appal astonish astound baffle "
    "believe bewilder confuse crave cry delight depress desire despair despise detest devastate "
    "disappoint disgrace disgust dismay distress distrust dread elate embarrass enjoy enrage envy "
    "exasperate excite fear frighten frustrate giggle grieve hate hope horrify humiliate hurt "
    "infuriate intimidate irritate laugh loathe love mistrust mortify mourn nauseate offend "
    "outrage panic perplex pity reassure regret rejoice relieve repent repulse resent "
    "revolt sadden scare shame shock sicken smile sob startle stun surprise terrify thrill "
    "torment trust unnerve upset weep whimper worry yearn"
)
_VERBS_BUT_THEIR_BASE = "alarm bore dishearten insult long please puzzle repel spook"
"""Of these the base and its -s form mostly mean something else (a bore, so long, please)."""
_PAST = {
    "cry": ("cried",),
    "hurt": ("hurt",),
    "upset": ("upset",),
    "weep": ("wept",),
}
_STRESSED_AT_THE_END = ("abhor", "appal", "regret", "repel", "upset")
"""Verbs of more than one syllable that double their last letter."""
_COMPARED = (
    "angry cheery gloomy grumpy guilty happy icky lonely merry moody nervy sad glad proud scary "
    "queasy uneasy yucky"
)
_WITH_LY = (
    "affectionate amazing angry anxious apologetic ashamed bitter blissful cheerful confident "
    "contemptuous depressing despairing desperate despondent disappointed disappointing disgusted "
    "disgusting dreadful eager embarrassing envious excited exciting expectant fearful frightening "
    "frightful furious glad gleeful gloomy grateful grumpy guilty happy hateful hopeful hopeless "
    "horrible impatient indignant infuriating irritable jealous joyful joyous keen loving merry "
    "miserable moody mournful nervous nostalgic optimistic pessimistic proud regretful "
    "remorseful resentful sad scornful shameful sheepish shocking sorrowful surprising "
    "sympathetic tearful terrifying thankful triumphant trusting uneasy unhappy worried wrathful"
)
_WITH_NESS = (
    "anxious cheerful eager fearful fond glad gloomy grateful grumpy guilty happy hateful hopeful "
    "hopeless joyful lonely mournful nervous proud sad scornful sorrowful tearful thankful uneasy "
    "unhappy"
)
_PLURALS = (
    "annoyance anxiety aversion delight disappointment embarrassment emotion fear fright "
    "frustration grief heartbreak heartache hope horror humiliation irritation jealousy joy misery "
    "panic phobia pleasure regret resentment sob sorrow tear terror thrill triumph worry"
)
_ONLY_LISTED = (
    "agony anguish anguished awe awed awestruck brokenhearted compassion compassionate "
    "curious curiously distraught downhearted fondly heartbroke heartsick heartsore homesick "
    "homesickness hysterics jubilation laughter livid lonesome nostalgia overwrought rage raging "
    "raged revulsed scorn sullen sulk sulks sulked sulking sulky sympathy tearful tears teary wrath"
)


def verb_forms(verb: str) -> tuple[str, str, tuple[str, ...]]:
    """Return the -s form, the -ing form and the past forms of a verb."""
    past = _PAST.get(verb)
    if verb.endswith("e"):
        stem = verb[:-1]
        return f"{verb}s", f"{stem}ing", past or (f"{verb}d",)
    if verb.endswith("c"):
        return f"{verb}s", f"{verb}king", past or (f"{verb}ked",)
    if verb.endswith("y") and verb[-2] not in _VOWELS:
        stem = verb[:-1]
        return f"{stem}ies", f"{verb}ing", past or (f"{stem}ied",)
    doubled = verb + verb[-1] if _doubles(verb) else verb
    plural = f"{verb}es" if verb.endswith(("s", "sh", "ch", "x", "z")) else f"{verb}s"
    return plural, f"{doubled}ing", past or (f"{doubled}ed",)


def compared(adjective: str) -> tuple[str, str]:
    """Return the comparative and the superlative of a short adjective."""
    if adjective.endswith("y"):
        stem = adjective[:-1] + "i"
    elif _doubles(adjective):
        stem = adjective + adjective[-1]
    else:
        stem = adjective.removesuffix("e")
    return f"{stem}er", f"{stem}est"


def adverb(adjective: str) -> str:
    """Return the adverb in -ly."""
    if adjective.endswith("ic"):
        return f"{adjective}ally"
    if adjective.endswith("le"):
        return f"{adjective[:-1]}y"
    return f"{adjective[:-1]}ily" if adjective.endswith("y") else f"{adjective}ly"


def quality(adjective: str) -> str:
    """Return the noun in -ness."""
    return f"{adjective[:-1]}iness" if adjective.endswith("y") else f"{adjective}ness"


def plural(noun: str) -> str:
    """Return the plural of a noun."""
    if noun.endswith("y") and noun[-2] not in _VOWELS:
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "sh", "ch", "x", "z")) else f"{noun}s"


def _doubles(word: str) -> bool:
    """Whether the last letter is doubled before a vowel: a stressed consonant, vowel, consonant."""
    if len(word) < 3 or word[-1] in _VOWELS + "wxy" or word[-2] not in _VOWELS:
        return False
    if word[-3] in _VOWELS:
        return False
    return sum(letter in _VOWELS for letter in word) == 1 or word in _STRESSED_AT_THE_END


def _forms() -> Iterator[str]:
    for verb in _VERBS.split():
        third, present, past = verb_forms(verb)
        yield from (verb, third, present, *past)
    for verb in _VERBS_BUT_THEIR_BASE.split():
        _, present, past = verb_forms(verb)
        yield from (present, *past)
    for adjective in _COMPARED.split():
        yield from (adjective, *compared(adjective))
    for adjective in _WITH_LY.split():
        yield from (adjective, adverb(adjective))
    for adjective in _WITH_NESS.split():
        yield from (adjective, quality(adjective))
    for noun in _PLURALS.split():
        # A singular that is not itself a word of emotion (tear) stands in no list.
        yield plural(noun)
    yield from _ONLY_LISTED.split()


INFLECTED = frozenset(_forms())
"""Lower-case forms."""
