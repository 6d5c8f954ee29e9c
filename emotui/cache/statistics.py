"""Where what was measured on the corpus stands in the cache: one rule for engine and exports."""

from __future__ import annotations

from collections.abc import Sequence

from emotui.cache.keys import derived_key

STATISTICS_TEXTS = 96
"""Situations of training topics read for norms, means and samples of activations."""
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
