"""The bundled corpus: balance, leaks, near-duplicates, and what a bag of words can do with it."""

from __future__ import annotations

import re
import sys
from collections import Counter
from statistics import mean

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline

from emotui.core.corpus import APPRAISALS, Situation, load_situations
from emotui.core.emotions import LEXICON, emotion_words_in, words_of

SITUATIONS = load_situations()
EMOTIONS = tuple(LEXICON)
# Stems, as an independent check of the lexicon's word forms.
LEAKING_STEMS = re.compile(
    r"\b(angr|furious|irritat|annoy|outrag|resent|disgust|revolt|repuls|afraid|scar(ed|y)|terrif|"
    r"fright|anxi|nervous|joy(?!ce)|happ(y|i)|delight|glad|thrill|sad(ly|ness|der)?\b|sorrow|grie(f|v)|"
    r"miserab|surpris|astonish|amaz|stunn|shock|anticipat|eager|guilt|remors|regret|asham|shame|"
    r"embarrass|humiliat|proud|pride\b|reliev|relief|trust|confiden|indifferen|emotion)",
    re.IGNORECASE,
)


def half(*, named: bool) -> list[Situation]:
    return [situation for situation in SITUATIONS if situation.named is named]


def test_size_and_cells() -> None:
    assert len(SITUATIONS) >= 1200
    assert len({situation.topic for situation in SITUATIONS}) >= 30
    cells = Counter((situation.topic, situation.emotion) for situation in SITUATIONS)
    assert set(cells.values()) == {4}, "two matched pairs in every topic and emotion"
    assert len({situation.id for situation in SITUATIONS}) == len(SITUATIONS)


def test_half_names_no_emotion_and_pairs_match() -> None:
    named, unnamed = half(named=True), half(named=False)
    assert len(named) == len(unnamed)
    for left, right in zip(named, unnamed, strict=True):
        assert left.pair == right.pair
        assert (left.emotion, left.topic, left.appraisals) == (
            *(right.emotion, right.topic),
            right.appraisals,
        )


def test_no_leaked_emotion_word() -> None:
    leaks = {
        situation.id: found
        for situation in half(named=False)
        if (found := emotion_words_in(situation.text) or LEAKING_STEMS.findall(situation.text))
    }
    assert not leaks


def test_named_half_names_its_emotion() -> None:
    for situation in half(named=True):
        words = {
            part for word in emotion_words_in(situation.text) for part in (word, *word.split("-"))
        }
        assert words & LEXICON[situation.emotion], situation.id


@pytest.mark.parametrize("named", [True, False])
def test_length_is_balanced(named: bool) -> None:
    lengths = {
        emotion: mean(
            len(words_of(situation.text))
            for situation in half(named=named)
            if situation.emotion == emotion
        )
        for emotion in EMOTIONS
    }
    assert max(lengths.values()) / min(lengths.values()) < 1.12, lengths
    assert all(8 <= len(words_of(situation.text)) <= 40 for situation in SITUATIONS)


def test_halves_are_of_like_length() -> None:
    named, unnamed = (
        mean(len(words_of(situation.text)) for situation in half(named=named))
        for named in (True, False)
    )
    assert 0.85 < named / unnamed < 1.15


def test_person_is_balanced_over_emotions() -> None:
    for emotion in EMOTIONS:
        persons = Counter(
            situation.person for situation in SITUATIONS if situation.emotion == emotion
        )
        share = persons[1] / persons.total()
        assert 0.6 <= share <= 0.9, (emotion, persons)
        assert persons[2] and persons[3], (emotion, persons)


def test_splits_hold_topics_out() -> None:
    by_split: dict[str, set[str]] = {"train": set(), "dev": set(), "test": set()}
    for situation in SITUATIONS:
        by_split[situation.split].add(situation.topic)
    assert {name: len(topics) for name, topics in by_split.items()} == {
        "train": 28,
        "dev": 6,
        "test": 6,
    }


def test_appraisals_are_within_scale_and_follow_the_emotion() -> None:
    assert len(APPRAISALS) >= 10
    for situation in SITUATIONS:
        assert len(situation.appraisals) == len(APPRAISALS)
        assert all(1 <= value <= 5 for value in situation.appraisals)

    def average(emotion: str, appraisal: str) -> float:
        column = APPRAISALS.index(appraisal)
        return mean(
            situation.appraisals[column] for situation in SITUATIONS if situation.emotion == emotion
        )

    # What appraisal theory predicts (METHODS section 4).
    assert average("joy", "pleasantness") > average("sadness", "pleasantness") + 2
    assert average("anger", "other_responsblt") > average("guilt", "other_responsblt") + 2
    assert average("guilt", "self_responsblt") > average("anger", "self_responsblt") + 2
    assert average("surprise", "suddenness") > average("anticipation", "suddenness") + 1


def test_no_near_duplicates() -> None:
    def shingles(text: str) -> set[tuple[str, ...]]:
        words = words_of(text)
        return {tuple(words[start : start + 3]) for start in range(len(words) - 2)}

    sets = [(situation, shingles(situation.text)) for situation in SITUATIONS]
    holders: dict[tuple[str, ...], list[int]] = {}
    for row, (_, shingle_set) in enumerate(sets):
        for shingle in shingle_set:
            holders.setdefault(shingle, []).append(row)
    shared: Counter[tuple[int, int]] = Counter()
    for rows in holders.values():
        for i, first in enumerate(rows):
            for second in rows[i + 1 :]:
                shared[first, second] += 1
    for (first, second), count in shared.items():
        left, right = sets[first], sets[second]
        if left[0].pair == right[0].pair:
            continue
        overlap = count / min(len(left[1]), len(right[1]))
        assert overlap < 0.4, (left[0].id, right[0].id, overlap)


def bag_of_words_scores(train: list[Situation]) -> dict[bool, float]:
    """Return balanced accuracy on held-out topics: of the named (True) and the unnamed half."""
    model = make_pipeline(
        CountVectorizer(ngram_range=(1, 2), min_df=2), LogisticRegression(C=1.0, max_iter=2000)
    )
    model.fit([one.text for one in train], [one.emotion for one in train])
    scores = {}
    for named in (True, False):
        test = [one for one in half(named=named) if one.split == "test"]
        predicted = model.predict([one.text for one in test])
        scores[named] = balanced_accuracy_score([one.emotion for one in test], predicted)
    return scores


@pytest.mark.parametrize(("trained_on", "gap"), [("both halves", 0.15), ("named half", 0.35)])
def test_bag_of_words_does_clearly_worse_on_the_unnamed_half(
    trained_on: str, gap: float, capsys: pytest.CaptureFixture[str]
) -> None:
    train = [
        one
        for one in SITUATIONS
        if one.split != "test" and (trained_on == "both halves" or one.named)
    ]
    scores = bag_of_words_scores(train)
    with capsys.disabled():
        sys.stdout.write(
            f"\nbag of words trained on {trained_on}, held-out topics, 13 classes, balanced "
            f"accuracy: named {scores[True]:.3f}, unnamed {scores[False]:.3f}, "
            f"chance {1 / 13:.3f}\n"
        )
    assert scores[True] > scores[False] + gap
