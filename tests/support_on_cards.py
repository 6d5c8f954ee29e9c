"""The engine on pretend cards: models loaded on one or spread over two, and records compared.

For the `on_cards_*.py` files alone, which run in a process of their own (see `support_cards`).
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from support_cards import CARD, CARDS, Moves, pretend_cards
from support_models import LAYERS, tiny_folder

from emotui.core import corpus
from emotui.core.corpus import Situation
from emotui.core.emotions import LABEL_SETS
from emotui.core.engine import feature_labels, statistics
from emotui.core.engine import model as models
from emotui.core.engine.capture import QuietJob
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.sites import SITE_TABLES
from emotui.core.protocol import ModelSpec

ON: dict[str, dict[str, str]] = {
    "one card": {"device": CARD},
    "two cards": {"device": CARDS[0], "device_map": "auto"},
}
"""How a model is asked for: on `card`, or spread over both."""
TOLERANCE = 1e-5
_TOPICS = {"train": 5, "dev": 2, "test": 2}


def spec_on(where: str, folder: Path) -> ModelSpec:
    """Return a spec of `ON`, or of the CPU."""
    return msgspec.structs.replace(ModelSpec(str(folder), device="cpu"), **ON.get(where, {}))


@functools.cache
def loaded(where: str, family: str) -> LoadedModel:
    """Return a tiny model of a family on cards, loaded once in this process."""
    return load_model(spec_on(where, tiny_folder(family)), QuietJob())


def halves(folder: Path) -> dict[str, str]:
    """Return the device map of a tiny checkpoint: its lower blocks on one card, the rest above.

    As accelerate's own: what is not in blocks is where it is first needed, a tied unembedding
    where the embedding is.
    """
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(str(folder))
    table = SITE_TABLES[plain.config.model_type]
    found: dict[str, str] = {}
    path: list[str] = []
    for step in table.blocks.split("."):
        for name, _ in plain.get_submodule(".".join(path)).named_children():
            found[".".join([*path, name])] = CARDS[0]
        path.append(step)
        del found[".".join(path)]
    found |= {f"{table.blocks}.{n}": CARDS[n >= LAYERS // 2] for n in range(LAYERS)}
    found[table.final_norm] = CARDS[1]
    tied = plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
    del found[table.unembed]
    found[table.unembed] = CARDS[0] if tied else CARDS[1]
    return found


@pytest.fixture(scope="session", autouse=True)
def cards() -> Iterator[Moves]:
    """The cards, for everything in this process, and what is copied between devices.

    `load_model` takes `card` for a device, and `--device-map auto` spreads over both.
    """
    from transformers import AutoModelForCausalLM

    known, load = models.resolve_device, AutoModelForCausalLM.from_pretrained

    def resolve(requested: str) -> torch.device:
        return torch.device(requested) if requested.startswith(CARD) else known(requested)

    def read(folder: str, **named: Any) -> Any:
        if named.get("device_map") == "auto":
            named["device_map"] = halves(Path(folder))
        return load(folder, **named)

    torch.set_num_threads(1)  # as `load_model` does for small models, on the CPU alone
    with pretend_cards() as moves, pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "resolve_device", resolve)
        patch.setattr(AutoModelForCausalLM, "from_pretrained", read)
        yield moves


@pytest.fixture(scope="session", autouse=True)
def few_texts() -> Iterator[None]:
    """A few topics of the corpus and its seven usual emotions; six texts for its statistics.

    Whoever asks for the corpus gets those.
    """
    everything = corpus.load_situations
    topics: dict[str, list[str]] = {split: [] for split in _TOPICS}
    for one in everything():
        if one.topic not in topics[one.split] and len(topics[one.split]) < _TOPICS[one.split]:
            topics[one.split].append(one.topic)
    kept = tuple(
        one
        for one in everything()
        if one.topic in topics[one.split] and one.emotion in LABEL_SETS["ekman7"]
    )

    def few() -> tuple[Situation, ...]:
        return kept

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "STATISTICS_TEXTS", 6)
        patch.setattr(feature_labels, "_LEAST_UNITS", 2)
        for module in list(sys.modules.values()):
            if getattr(module, "load_situations", None) is everything:
                patch.setattr(module, "load_situations", few)
        yield


def differences(mine: Any, theirs: Any, *, within: float = TOLERANCE, at: str = "") -> list[str]:
    """Return where two records differ: numbers by more than `within` (absolute and relative)."""
    if isinstance(mine, msgspec.Struct):
        if type(mine) is not type(theirs):
            return [f"{at}: {type(mine).__name__} and {type(theirs).__name__}"]
        names = mine.__struct_fields__
        parts = [(f"{at}.{name}", getattr(mine, name), getattr(theirs, name)) for name in names]
    elif isinstance(mine, dict):
        if mine.keys() != theirs.keys():
            return [f"{at}: {sorted(mine.keys() ^ theirs.keys())}"]
        parts = [(f"{at}.{name}", value, theirs[name]) for name, value in mine.items()]
    elif isinstance(mine, tuple | list):
        if len(mine) != len(theirs):
            return [f"{at}: {len(mine)} and {len(theirs)}"]
        rows = enumerate(zip(mine, theirs, strict=True))
        parts = [(f"{at}[{number}]", one, other) for number, (one, other) in rows]
    elif isinstance(mine, float) and isinstance(theirs, float):
        near = math.isclose(mine, theirs, rel_tol=within, abs_tol=within)
        same = near or (math.isnan(mine) and math.isnan(theirs))
        return [] if same else [f"{at}: {mine!r} and {theirs!r}"]
    else:
        return [] if mine == theirs else [f"{at}: {mine!r} and {theirs!r}"]
    return [
        line
        for name, one, other in parts
        for line in differences(one, other, within=within, at=name)
    ]
