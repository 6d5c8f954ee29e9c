"""Where what was measured on the corpus stands in the cache: one rule for engine and exports."""

from __future__ import annotations

from collections.abc import Sequence

from emotui.cache.keys import derived_key
from emotui.core.corpus import Situation, load_situations

STATISTICS_TEXTS = 96
"""Situations of training topics read for norms, means and samples of activations."""
EMOTION_TEXTS = 32
"""Situations of each emotion read for its mean, spread over the training topics."""
STATISTICS_VERSION = 2
"""Raised whenever the same corpus would give other statistics."""


def statistics_key(
    *, fingerprint: str, dtype: str, device_type: str, attention: str, part: str
) -> str:
    """Return the key of what is measured on the corpus with a model; `part` says what.

    `dtype`, `device_type` (`cpu`, `cuda`) and `attention` are the resolved ones.
    """
    identity = f"{fingerprint}:{dtype}:{device_type}:{attention}"
    return derived_key(identity, f"statistics:{STATISTICS_VERSION}:{part}")


def activations_part(template: str, sites: Sequence[str]) -> str:
    """Return the part that holds norms, means and samples of activations at some sites."""
    return f"{template}:{STATISTICS_TEXTS}:{'+'.join(sites)}"


def emotions_part(template: str) -> str:
    """Return the part that holds `means`, [layers, emotions, d_model], by `emotion_texts`."""
    return f"emotions:{template}:{EMOTION_TEXTS}"


def emotion_texts() -> tuple[Situation, ...]:
    """Return the situations that the means of emotions are taken of, emotion by emotion."""
    by_emotion: dict[str, list[Situation]] = {}
    for one in load_situations():
        if one.split == "train":
            by_emotion.setdefault(one.emotion, []).append(one)
    chosen: list[Situation] = []
    for those in by_emotion.values():
        # The halves of a pair stand side by side: of each pair drawn, one half, in turn.
        pairs = len(those) // 2
        count = min(EMOTION_TEXTS, pairs)
        drawn = [number * pairs // count for number in range(count)]
        chosen += [those[2 * pair + number % 2] for number, pair in enumerate(drawn)]
    return tuple(chosen)
