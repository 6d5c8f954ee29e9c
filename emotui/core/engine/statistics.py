"""What activations are like on the corpus: norms, means, and samples to draw directions from.

Computed once for a model, template and dtype, then kept in the cache; heads (`z`) apart, when one
is first edited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from safetensors.torch import load as tensors_from_bytes
from torch import Tensor

from emotui.cache import statistics as cache_statistics
from emotui.cache.statistics import STATISTICS_TEXTS
from emotui.core.corpus import Situation, load_situations
from emotui.core.engine.capture import Job, capture
from emotui.core.engine.layered import Layered, Stack, placed
from emotui.core.engine.packed import tensors_to_bytes
from emotui.core.engine.sites import HookSite
from emotui.core.records import EMBEDDING_LAYER
from emotui.core.text import Template

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.engine.model import LoadedModel

SITES: tuple[HookSite, ...] = ("resid", "attn", "mlp")

Kind = Literal["text", "readout"]


@dataclass(frozen=True)
class Statistics:
    """By site, layer and kind of position: norms on the CPU, vectors on the device of the layer."""

    norms: Mapping[str, Tensor]
    """`site.kind` to [layers (+1 for resid)]: mean of ||h|| over texts, BOS never among them."""
    means: Mapping[str, Stack]
    """`site.kind` to [layers (+1), width], float32: mean over texts, each text counting once."""
    samples: Mapping[str, Stack]
    """`site.kind` to [layers (+1), texts, width], in the run's dtype."""

    def mean_norm(self, site: HookSite, layer: int, kind: Kind = "text") -> float:
        """Return the corpus mean of the norm of the activation: the unit of strength."""
        return float(self.norms[f"{site}.{kind}"][_row(site, layer)])

    def mean(self, site: HookSite, layer: int, kind: Kind) -> Tensor:
        """Return the corpus mean of the activation, [width], float32."""
        return self.means[f"{site}.{kind}"][_row(site, layer)]

    def sample(self, site: HookSite, layer: int, kind: Kind, number: int) -> Tensor:
        """Return what one of the texts has there, [width]; any `number` from 0 names one."""
        samples = self.samples[f"{site}.{kind}"][_row(site, layer)]
        return samples[number % len(samples)]

    def directions(
        self,
        site: HookSite,
        layer: int,
        kind: Kind,
        *,
        count: int,
        seed: int,
        columns: slice | None = None,
    ) -> Tensor:
        """Return `count` random unit directions with the activations' covariance, float32.

        Each is a random combination of centred corpus activations, so its expected outer product
        is their covariance. [count, width], zero outside `columns` (None: nowhere); the same seed
        gives the same directions.
        """
        samples = self.samples[f"{site}.{kind}"][_row(site, layer)].float()
        if columns is not None:
            inside = torch.zeros_like(samples)
            inside[:, columns] = samples[:, columns]
            samples = inside
        generator = torch.Generator(device="cpu").manual_seed(seed)
        weights = torch.randn(count, samples.shape[0], generator=generator).to(samples.device)
        drawn = weights @ (samples - samples.mean(dim=0))
        unit: Tensor = drawn / drawn.norm(dim=-1, keepdim=True).clamp_min(
            torch.finfo(drawn.dtype).tiny
        )
        return unit


def kind_of(positions: Sequence[int], readout: int) -> Kind:
    """Return which positions of the corpus are like those of an edit, however it names them.

    The readout alone is like readouts; any other tokens, and several, are like tokens of texts.
    """
    return "readout" if tuple(positions) == (readout,) else "text"


def _row(site: HookSite, layer: int) -> int:
    return layer - EMBEDDING_LAYER if site == "resid" else layer


def statistics_texts() -> tuple[Situation, ...]:
    """Return the texts the statistics are read from: every n-th of the training topics."""
    train = [one for one in load_situations() if one.split == "train"]
    step = len(train) / STATISTICS_TEXTS
    return tuple(train[int(number * step)] for number in range(STATISTICS_TEXTS))


def statistics_key(model: LoadedModel, part: str) -> str:
    """Return the key of what is measured on the corpus with this model; `part` says what."""
    return cache_statistics.statistics_key(
        fingerprint=model.fingerprint,
        dtype=model.dtype_name,
        device_type=model.device.type,
        attention=model.attention,
        part=part,
    )


def corpus_statistics(
    model: LoadedModel,
    template: Template,
    store: Store,
    job: Job,
    *,
    sites: Sequence[HookSite] = SITES,
) -> Statistics:
    """Return the statistics for a model and template, from the cache where they are."""
    key = statistics_key(model, cache_statistics.activations_part(template.name, sites))
    stored = store.get_entry("statistics", key)
    if stored is None:
        tensors = _measured(model, template, statistics_texts(), sites, job)
        store.put_entry(
            "statistics", key, tensors_to_bytes({n: t.contiguous() for n, t in tensors.items()})
        )
    else:
        tensors = tensors_from_bytes(stored)

    def those(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

    def there(prefix: str) -> dict[str, Stack]:
        return {
            name: placed(stack, model.devices if name.startswith("resid.") else model.devices[1:])
            for name, stack in those(prefix).items()
        }

    return Statistics(norms=those("norm:"), means=there("mean:"), samples=there("h:"))


def _measured(
    model: LoadedModel,
    template: Template,
    texts: Sequence[Situation],
    sites: Sequence[HookSite],
    job: Job,
) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {}
    for number, situation in enumerate(texts):
        job.progress("reading the corpus for controls", number, len(texts))
        text = model.reader.read(situation.text, template, context_length=model.context_length)
        rows = [i for i, token in enumerate(text.tokens) if token.part == "text"]
        ids = [token.id for token in text.tokens]
        run = capture(model, ids, all_sites=True, z="z" in sites, job=job)
        for site in sites:
            for kind, where in (("text", rows), ("readout", [text.readout])):
                # A different token of each text, so that all places in a sentence are drawn from.
                picked = where[number % len(where)]
                for name, tensor in _read(run.kept[site], where, picked).items():
                    found.setdefault(f"{name}:{site}.{kind}", []).append(tensor)
    return {
        name: torch.stack(parts, dim=1) if name.startswith("h:") else torch.stack(parts).mean(dim=0)
        for name, parts in found.items()
    }


def _read(h: Layered, where: Sequence[int], picked: int) -> dict[str, Tensor]:
    """Return what is taken of one site of one text, by layer, on the CPU.

    `h` [width] at token `picked`; over the tokens `where`, the mean `norm` and the `mean` [width].
    """
    seen = h.each(lambda part: part[:, list(where)].float())
    return {
        "h": h.each(lambda part: part[:, picked]).cpu(),
        "norm": seen.each(lambda part: part.norm(dim=-1).mean(dim=-1)).cpu(),
        "mean": seen.each(lambda part: part.mean(dim=1)).cpu(),
    }
