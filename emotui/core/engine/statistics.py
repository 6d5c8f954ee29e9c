"""What activations are like on the corpus: their norms, and samples to draw directions from.

Computed once for a model, template and dtype, then kept in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from emotui.cache.keys import derived_key
from emotui.core.corpus import Situation, load_situations
from emotui.core.engine.capture import Job, capture
from emotui.core.records import EMBEDDING_LAYER, Site
from emotui.core.text import Template

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.engine.model import LoadedModel

TEXTS = 96
"""Situations of training topics read for the statistics, spread over topics and emotions."""
SITES: tuple[Site, ...] = ("resid", "attn", "mlp")

Kind = Literal["text", "readout"]


@dataclass(frozen=True)
class Statistics:
    """Norms and samples by site, layer and kind of position."""

    norms: dict[str, Tensor]
    """`site.kind` to [layers (+1 for resid)]: mean of ||h|| over texts, BOS never among them."""
    samples: dict[str, Tensor]
    """`site.kind` to [layers (+1), texts, d_model], in the run's dtype."""

    def mean_norm(self, site: Site, layer: int, kind: Kind = "text") -> float:
        """Return the corpus mean of the norm of the activation: the unit of strength."""
        return float(self.norms[f"{site}.{kind}"][_row(site, layer)])

    def directions(self, site: Site, layer: int, kind: Kind, *, count: int, seed: int) -> Tensor:
        """Return `count` random unit directions with the activations' covariance, float32.

        Each is a random combination of centred corpus activations, so its expected outer product
        is their covariance. [count, d_model]; the same seed gives the same directions.
        """
        samples = self.samples[f"{site}.{kind}"][_row(site, layer)].float()
        generator = torch.Generator(device="cpu").manual_seed(seed)
        weights = torch.randn(count, samples.shape[0], generator=generator).to(samples.device)
        drawn = weights @ (samples - samples.mean(dim=0))
        unit: Tensor = drawn / drawn.norm(dim=-1, keepdim=True).clamp_min(
            torch.finfo(drawn.dtype).tiny
        )
        return unit


def _row(site: Site, layer: int) -> int:
    return layer - EMBEDDING_LAYER if site == "resid" else layer


def statistics_texts() -> tuple[Situation, ...]:
    """Return the texts the statistics are read from: every n-th of the training topics."""
    train = [one for one in load_situations() if one.split == "train"]
    step = len(train) / TEXTS
    return tuple(train[int(number * step)] for number in range(TEXTS))


def corpus_statistics(model: LoadedModel, template: Template, store: Store, job: Job) -> Statistics:
    """Return the statistics for a model and template, from the cache where they are."""
    identity = f"{model.fingerprint}:{model.dtype_name}:{model.device.type}:{model.attention}"
    key = derived_key(identity, f"statistics:{template.name}:{TEXTS}")
    stored = store.get_entry("statistics", key)
    if stored is None:
        tensors = _measured(model, template, statistics_texts(), job)
        store.put_entry(
            "statistics", key, tensors_to_bytes({n: t.contiguous() for n, t in tensors.items()})
        )
    else:
        tensors = {n: t.to(model.device) for n, t in tensors_from_bytes(stored).items()}
    return Statistics(
        norms={n.removeprefix("norm:"): t for n, t in tensors.items() if n.startswith("norm:")},
        samples={n.removeprefix("h:"): t for n, t in tensors.items() if n.startswith("h:")},
    )


def _measured(
    model: LoadedModel, template: Template, texts: Sequence[Situation], job: Job
) -> dict[str, Tensor]:
    samples: dict[str, list[Tensor]] = {}
    norms: dict[str, list[Tensor]] = {}
    for number, situation in enumerate(texts):
        job.progress("reading the corpus for controls", number, len(texts))
        text = model.reader.read(situation.text, template, context_length=model.context_length)
        rows = [i for i, token in enumerate(text.tokens) if token.part == "text"]
        kept = capture(model, [token.id for token in text.tokens], all_sites=True, job=job)
        for site in SITES:
            h = {"resid": kept.resid, "attn": kept.attn, "mlp": kept.mlp}[site]
            # A different token of each text, so that all places in a sentence are drawn from.
            picked = {"text": h[:, rows[number % len(rows)]], "readout": h[:, text.readout]}
            seen = {"text": h[:, rows], "readout": h[:, [text.readout]]}
            for kind, tensor in picked.items():
                samples.setdefault(f"h:{site}.{kind}", []).append(tensor.cpu())
                norms.setdefault(f"norm:{site}.{kind}", []).append(
                    seen[kind].float().norm(dim=-1).mean(dim=-1).cpu()
                )
    return {
        **{name: torch.stack(parts, dim=1).to(model.device) for name, parts in samples.items()},
        **{name: torch.stack(parts).mean(dim=0).to(model.device) for name, parts in norms.items()},
    }
