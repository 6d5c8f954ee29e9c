"""Materials of edits made by hand: a corpus, a probe and appraisals of random numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from emotui.cache.probes import ProbeCard, ProbeScore
from emotui.core.corpus import APPRAISALS
from emotui.core.edits import Source, parse_edit
from emotui.core.engine.appraisals import Appraisals
from emotui.core.engine.capture import QuietJob
from emotui.core.engine.collect import places_of
from emotui.core.engine.emotion_means import EmotionMeans
from emotui.core.engine.intervene import EditGroup, check_layers, group_edits, place_edits
from emotui.core.engine.materials import Materials, Other, head_count, head_size
from emotui.core.engine.model import LoadedModel
from emotui.core.engine.probes import Probe, ProbeFile
from emotui.core.engine.saes import Sae
from emotui.core.engine.sites import HookSite
from emotui.core.engine.statistics import Statistics
from emotui.core.records import TextRecord
from emotui.core.text import template_named

TEXT = "He shouted at me for no reason and I could not answer. The house is very quiet now."
EMOTIONS = ("anger", "joy", "neutral")
TEXTS = 6


def read(model: LoadedModel, text: str = TEXT) -> TextRecord:
    """Return a text in the default template."""
    return model.reader.read(text, template_named("ask"), context_length=model.context_length)


def ids_of(model: LoadedModel, text: str = TEXT) -> list[int]:
    """Return the tokens of a text in the default template."""
    return [token.id for token in read(model, text).tokens]


def random_statistics(model: LoadedModel, seed: int = 5) -> Statistics:
    """Return a corpus of random numbers at every site."""
    generator = torch.Generator().manual_seed(seed)
    norms, means, samples = {}, {}, {}
    sites: tuple[HookSite, ...] = ("resid", "attn", "mlp", "z")
    for site in sites:
        width = head_size(model) * head_count(model) if site == "z" else model.d_model
        rows = model.n_layers + (site == "resid")
        for kind in ("text", "readout"):
            name = f"{site}.{kind}"
            norms[name] = 1 + torch.rand(rows, generator=generator)
            means[name] = torch.randn(rows, width, generator=generator)
            drawn = torch.randn(rows, TEXTS, width, generator=generator)
            samples[name] = drawn.to(model.dtype)
    return Statistics(norms, means, samples)


def random_probe(model: LoadedModel, seed: int = 6) -> Probe:
    """Return a readout probe of random directions at every place."""
    generator = torch.Generator().manual_seed(seed)
    places = places_of(model.n_layers)
    count = len(EMOTIONS)
    scores = tuple(
        ProbeScore(site, layer, 0.5, 0.3, 0.4, "trusted", dev_accuracy=0.5)
        for site, layer in places
    )
    card = ProbeCard(
        id="random",
        fingerprint=model.fingerprint,
        model="tiny",
        kind="readout",
        label_set="ekman7",
        emotions=EMOTIONS,
        template="ask",
        data="random numbers",
        created="2026-01-01T00:00:00Z",
        sites=("resid", "attn", "mlp"),
        layers=tuple(range(-1, model.n_layers)),
        n_texts=0,
        scores=scores,
    )
    return Probe(
        ProbeFile(card, (1.0,) * len(places), ()),
        weight=torch.randn(len(places), model.d_model, count, generator=generator),
        center=torch.zeros(len(places), model.d_model),
        bias=torch.zeros(len(places), count),
        neutral_mean=torch.zeros(len(places), count),
        neutral_sd=torch.ones(len(places), count),
    )


def random_appraisals(model: LoadedModel, seed: int = 7) -> Appraisals:
    """Return appraisal directions that have a part in common, as real ones do."""
    generator = torch.Generator().manual_seed(seed)
    shape = (model.n_layers, len(APPRAISALS), model.d_model)
    shared = torch.randn(model.n_layers, 1, model.d_model, generator=generator)
    rows = torch.randn(shape, generator=generator) + shared
    return Appraisals(rows, torch.full(shape[:2], 0.5))


def random_means(model: LoadedModel, seed: int = 8) -> EmotionMeans:
    """Return means of texts of the probe's emotions, and of one that it does not know."""
    generator = torch.Generator().manual_seed(seed)
    emotions = (*EMOTIONS, "pride")
    return EmotionMeans(
        emotions, torch.randn(model.n_layers, 4, model.d_model, generator=generator)
    )


def materials_of(
    model: LoadedModel,
    *,
    saes: Sequence[Sae] = (),
    probes: Sequence[Probe] = (),
    other: Callable[[Source], Other] | None = None,
    seed: int = 0,
) -> Materials:
    """Return materials that read no corpus and no cache."""

    def none(_source: Source) -> Other:
        raise AssertionError("nothing is patched here")

    no_store: Any = None
    materials = Materials(
        model,
        store=no_store,
        text=read(model),
        template=template_named("ask"),
        saes=saes,
        probes=probes,
        other=other or none,
        seed=seed,
        job=QuietJob(),
    )
    statistics = random_statistics(model)
    materials.statistics = materials.head_statistics = statistics
    materials.appraisals = random_appraisals(model)
    materials.emotion_means = random_means(model)
    return materials


def groups_under(materials: Materials, *lines: str) -> tuple[EditGroup, ...]:
    """Return the groups of edits of the default text."""
    edits = [parse_edit(line) for line in lines]
    check_layers(edits, materials.model)
    return group_edits(place_edits(edits, materials.text), materials)
