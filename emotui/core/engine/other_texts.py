"""Texts of the corpus that an edit is repeated on."""

from __future__ import annotations

import random
from collections.abc import Sequence

from emotui.core.corpus import Situation, load_situations


def other_texts(count: int, *, but: str, seed: int, emotion: str = "") -> list[Situation]:
    """Return at most `count` situations of topics held out of training, drawn by seed.

    One of each pair, named or not; the text `but` is not among them. Every second one is of
    `emotion` while there are any; the other emotions take turns ("": all of them do). A longer
    list begins with the shorter one.
    """
    generator = random.Random(seed)
    by_emotion: dict[str, list[Situation]] = {}
    pairs: dict[str, list[Situation]] = {}
    for one in load_situations():
        if one.split != "train":
            pairs.setdefault(one.pair, []).append(one)
    for pair in sorted(pairs):
        one = generator.choice(pairs[pair])
        if one.text != but:
            by_emotion.setdefault(one.emotion, []).append(one)
    for texts in by_emotion.values():
        generator.shuffle(texts)
    chosen = by_emotion.pop(emotion, [])
    most = max(len(texts) for texts in by_emotion.values())
    others = [
        by_emotion[name][turn]
        for turn in range(most)
        for name in sorted(by_emotion)
        if turn < len(by_emotion[name])
    ]
    both = [one for pair in zip(chosen, others, strict=False) for one in pair]
    rest = max(chosen, others, key=len)[len(both) // 2 :]
    return [*both, *rest][:count]


def emotion_of(metric: str) -> str:
    """Return the emotion a metric is about, where the corpus has texts of it; else ""."""
    name = metric.partition(".")[2]
    return name if any(one.emotion == name for one in load_situations()) else ""


def source_of(texts: Sequence[Situation], emotion: str) -> str:
    """Return in words which texts these are; `emotion` is the one they were drawn for, or ""."""
    own = sum(one.emotion == emotion for one in texts)
    which = f"{own} of {emotion}, {len(texts) - own} of other emotions" if own else "all emotions"
    return f"situations of topics held out of training, one of each pair ({which})"
