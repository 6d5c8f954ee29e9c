"""Names of models: short ones for hub ids, and what may have been meant by an unknown one.

Torch-free: the command line and the cache read names too.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "gemma-2-2b": "google/gemma-2-2b",
        "gemma-2-2b-it": "google/gemma-2-2b-it",
        "gemma-2-9b": "google/gemma-2-9b",
        "gemma-2-9b-it": "google/gemma-2-9b-it",
        "gemma-2-27b": "google/gemma-2-27b",
        "gemma-3-270m": "google/gemma-3-270m",
        "gemma-3-270m-it": "google/gemma-3-270m-it",
        "gemma-3-1b": "google/gemma-3-1b-pt",
        "gemma-3-1b-it": "google/gemma-3-1b-it",
        "gpt2": "openai-community/gpt2",
        "gpt2-small": "openai-community/gpt2",
        "gpt2-medium": "openai-community/gpt2-medium",
        "gpt2-large": "openai-community/gpt2-large",
        "gpt2-xl": "openai-community/gpt2-xl",
        "llama-3.1-8b": "meta-llama/Llama-3.1-8B",
        "llama-3.1-8b-instruct": "meta-llama/Llama-3.1-8B-Instruct",
        "llama-3.2-1b": "meta-llama/Llama-3.2-1B",
        "llama-3.2-1b-instruct": "meta-llama/Llama-3.2-1B-Instruct",
        "llama-3.2-3b": "meta-llama/Llama-3.2-3B",
        "llama-3.2-3b-instruct": "meta-llama/Llama-3.2-3B-Instruct",
        "mistral-7b": "mistralai/Mistral-7B-v0.1",
        "mistral-7b-instruct": "mistralai/Mistral-7B-Instruct-v0.3",
        "olmo-2-1b": "allenai/OLMo-2-0425-1B",
        "olmo-2-7b": "allenai/OLMo-2-1124-7B",
        "phi-3-mini": "microsoft/Phi-3-mini-4k-instruct",
        "pythia-70m": "EleutherAI/pythia-70m",
        "pythia-70m-deduped": "EleutherAI/pythia-70m-deduped",
        "pythia-160m": "EleutherAI/pythia-160m",
        "pythia-160m-deduped": "EleutherAI/pythia-160m-deduped",
        "pythia-410m": "EleutherAI/pythia-410m",
        "pythia-1.4b": "EleutherAI/pythia-1.4b",
        "qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B",
        "qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B",
        "qwen2.5-7b": "Qwen/Qwen2.5-7B",
        "qwen2.5-7b-instruct": "Qwen/Qwen2.5-7B-Instruct",
        "qwen3-0.6b": "Qwen/Qwen3-0.6B",
        "qwen3-1.7b": "Qwen/Qwen3-1.7B",
        "qwen3-4b": "Qwen/Qwen3-4B",
        "qwen3-8b": "Qwen/Qwen3-8B",
    }
)
"""Short names, lower case, of models whose architecture is in the site table."""

_VARIANTS = ("-it", "-instruct", "-chat", "-pt", "-base")
_CLOSE = 0.6


def hub_id_of(name: str) -> str:
    """Return the hub id an alias stands for, or the name itself."""
    return ALIASES.get(name.lower(), name)


def base_name(name: str) -> str:
    """Return a model's name without owner, in lower case: `google/gemma-2-2b` is `gemma-2-2b`.

    Aliases count as what they stand for, so `gpt2-small` is `gpt2`.
    """
    return hub_id_of(name).rstrip("/").rsplit("/", 1)[-1].lower()


def same_family(one: str, other: str) -> bool:
    """Whether two names are of one model, or of a base model and what was tuned from it."""

    def stem(name: str) -> str:
        name = base_name(name)
        for variant in _VARIANTS:
            name = name.removesuffix(variant)
        return name

    return stem(one) == stem(other)


def near_names(name: str, known: Iterable[str], *, most: int = 5) -> list[str]:
    """Return the known names most like an unknown one, the likest first.

    Names with the same last part come before names that are merely spelt alike.
    """
    wanted = name.strip().lower()
    last = wanted.rsplit("/", 1)[-1]
    by_lower = {one.lower(): one for one in known}
    same = [low for low in by_lower if low.rsplit("/", 1)[-1] == last]
    alike = difflib.get_close_matches(wanted, by_lower, n=most, cutoff=_CLOSE)
    by_last = {low.rsplit("/", 1)[-1]: low for low in by_lower}
    alike += [by_last[one] for one in difflib.get_close_matches(last, by_last, n=most)]
    return [by_lower[low] for low in dict.fromkeys([*same, *alike])][:most]


def recorded_name(model: str) -> str:
    """Return a model's name for a record: a hub id, or the folder's name without its path."""
    folder = Path(model).expanduser()
    return folder.resolve().name if folder.is_dir() else model
