"""Attribution: one backward pass estimates the effect of ablating every feature of every layer.

For a metric m and g[l, p] = dm / dh[l, p] at the tensor of a site (attribution patching, Nanda
2023; METHODS 2.4 A), ablating feature j at position p is estimated to change the metric by

    m(ablated) - m = (0 - f_j) <D_j, g[l, p]>

so a positive attribution means that the metric would rise without the feature. It is the first
order of an effect that is not linear: exact ablation decides. The write of an attention or MLP
output is <output[l, p], g[l, p]>, positive where it writes towards the metric; that of the
embedding (`resid`, layer -1) likewise.

The metric is a label's logit minus the mean logit of the other labels at the deciding token, or
the logit of a readout probe for one emotion at one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load as tensors_from_bytes
from torch import Tensor

from emotui.core.engine.capture import Hook, Job, hooked
from emotui.core.engine.layered import Layered
from emotui.core.engine.packed import tensors_to_bytes
from emotui.core.errors import CacheError
from emotui.core.records import EMBEDDING_LAYER, Features, Site, Writes

if TYPE_CHECKING:
    from emotui.core.engine.answer import LabelTokens
    from emotui.core.engine.model import LoadedModel
    from emotui.core.engine.probes import Probe
    from emotui.core.engine.saes import Sae

_CHUNK_VALUES = 2**22
"""Values of decoder rows gathered at a time: 16 MB in float32."""

Value = Callable[[Tensor, Mapping[int, Tensor]], Tensor]
"""Gets the logits [vocabulary] of the last token and `resid` by layer, [tokens, d_model], both
float32 or wider; returns the metric, a scalar."""


@dataclass(frozen=True)
class Metric:
    """A number of a run that can be differentiated."""

    name: str
    """`answer.EMOTION`, or `readout.EMOTION@L5`."""
    identity: str
    """What it is, for cache keys: the name with the label set or the probe."""
    value: Value
    suffix: tuple[int, ...] = ()
    """Tokens appended to the prompt before the deciding token."""


def answer_metric(labels: LabelTokens, emotion: str) -> Metric | None:
    """Return the margin of a label over the mean of the others, in logits.

    None where the labels are told apart by whole labels: no single token decides there.
    """
    if labels.rule == "whole_label":
        return None
    deciding, own = list(labels.deciding), labels.labels.index(emotion)

    def value(logits: Tensor, _resid: Mapping[int, Tensor]) -> Tensor:
        return margin(logits[deciding], own)

    identity = f"answer.{emotion}:{labels.set}:{labels.prefix}:{deciding}"
    return Metric(f"answer.{emotion}", identity, value, labels.prefix)


def margin(scores: Tensor, own: int) -> Tensor:
    """Return score `own` minus the mean of the others of `scores` [..., labels]: [...]."""
    others = [column for column in range(scores.shape[-1]) if column != own]
    return scores[..., own] - scores[..., others].mean(dim=-1)


def readout_metric(probe: Probe, emotion: str, layer: int, position: int) -> Metric:
    """Return the logit of a probe for an emotion, of `resid.layer` at one position."""
    row, column = probe.places.index(("resid", layer)), probe.emotions.index(emotion)
    direction, centre = probe.weight[row, :, column], probe.center[row]
    bias = probe.bias[row, column]

    def value(_logits: Tensor, resid: Mapping[int, Tensor]) -> Tensor:
        h = resid[layer][position]
        return (h - centre.to(h)) @ direction.to(h) + bias.to(h)

    name = f"readout.{emotion}@L{layer}"
    return Metric(name, f"{name}:{probe.id}:{position}", value)


@dataclass(frozen=True)
class Gradients:
    """What one backward pass gave for the tokens of the prompt, in the run's dtype."""

    value: float
    """The metric itself."""
    kept: Mapping[Site, Layered]
    """By site, a row a layer, each on its device: `resid` [layers + 1, tokens, d_model], row 0 is
    layer -1; `attn`, `mlp` and `z` (heads * d_head wide), where they were kept, [layers, tokens,
    width]."""
    writes: Tensor
    """[2 * layers + 1, tokens], float32, on the CPU: the embedding, attention by layer, MLP by
    layer."""

    @property
    def resid(self) -> Tensor:
        """Of all layers in one, [layers + 1, tokens, d_model]; of several devices on the CPU."""
        return self.kept["resid"].whole()

    @property
    def attn(self) -> Tensor | None:
        """Of all layers in one, as `resid`; None where it was not kept."""
        return self.kept["attn"].whole() if "attn" in self.kept else None

    @property
    def mlp(self) -> Tensor | None:
        """Of all layers in one, as `resid`; None where it was not kept."""
        return self.kept["mlp"].whole() if "mlp" in self.kept else None

    @property
    def z(self) -> Tensor | None:
        """Of all layers in one, as `resid`; None where it was not kept."""
        return self.kept["z"].whole() if "z" in self.kept else None

    def at(self, site: Site, layer: int) -> Tensor:
        """Return dm / dh of one site and layer as [tokens, width]; KeyError if not kept."""
        if site not in self.kept:
            raise KeyError(f"{site}.{layer}")
        return self.kept[site][layer - EMBEDDING_LAYER if site == "resid" else layer]

    def to_bytes(self) -> bytes:
        """Return the tensors as one safetensors document."""
        tensors = {
            "value": torch.tensor(self.value, dtype=torch.float64),
            "writes": self.writes,
        }
        for site, rows in self.kept.items():
            tensors[site] = rows.whole()
        payload: bytes = tensors_to_bytes({n: t.contiguous() for n, t in tensors.items()})
        return payload

    @classmethod
    def from_bytes(cls, payload: bytes, *, devices: Sequence[torch.device]) -> Gradients:
        """Rebuild what `to_bytes` gave; CacheError where the document is another one.

        `devices` are those of the layers from -1 on.
        """
        # safetensors raises a type of its own that derives from Exception alone.
        try:
            tensors = tensors_from_bytes(payload)
            kept: dict[Site, Layered] = {"resid": Layered.placed(tensors["resid"], devices)}
            sites: tuple[Site, ...] = ("attn", "mlp", "z")
            kept |= {
                site: Layered.placed(tensors[site], devices[1:])
                for site in sites
                if site in tensors
            }
            return cls(float(tensors["value"]), kept, tensors["writes"])
        except Exception as error:
            raise CacheError(
                "A cache entry does not hold gradients.",
                why=f"{type(error).__name__} while reading it.",
                todo="Run `emotui cache verify`.",
            ) from error


def gradients(
    model: LoadedModel,
    token_ids: Sequence[int],
    metric: Metric,
    *,
    all_sites: bool = False,
    hooks: Sequence[Hook] = (),
    job: Job | None = None,
) -> Gradients:
    """Run one forward and one backward pass of a prompt and return dm / dh at every site.

    `hooks` (edits) are in force and are differentiated through. Gradients begin at the embedding:
    no parameter gets one. With `all_sites` those of attention and MLP outputs and of `z`
    are kept too. Counted as one forward. Raises torch.OutOfMemoryError where the graph does not
    fit.
    """
    return gradients_of_rows(
        model, [token_ids], [metric], all_sites=all_sites, hooks=hooks, job=job
    )[0]


def gradients_of_rows(
    model: LoadedModel,
    rows: Sequence[Sequence[int]],
    metrics: Sequence[Metric],
    *,
    all_sites: bool = False,
    hooks: Sequence[Hook] = (),
    job: Job | None = None,
) -> list[Gradients]:
    """Do `gradients` for prompts of equal length in one forward and one backward pass.

    A metric for each prompt, all with one suffix. The sum of the metrics is differentiated: no
    row of a batch reaches another, so each row's slopes are those of its own metric.
    """
    layers = range(model.n_layers)
    kept: dict[tuple[Site, int], Tensor] = {}

    def begin(tensor: Tensor) -> Tensor:
        kept["resid", EMBEDDING_LAYER] = tensor.detach().requires_grad_()
        # A copy goes on: a leaf must not be written to, and a block may do that.
        return kept["resid", EMBEDDING_LAYER].clone()

    sites: tuple[Site, ...] = ("resid", "attn", "mlp", *(("z",) if all_sites else ()))
    keeping = [
        Hook(site, layer, _keeping(kept, site, layer, job)) for site in sites for layer in layers
    ]
    model.hf.requires_grad_(False)
    model.forwards += 1
    ids = model.tensor_of([[*row, *metrics[0].suffix] for row in rows])
    first = Hook("resid", EMBEDDING_LAYER, begin)
    with torch.enable_grad(), hooked(model, (first, *hooks, *keeping), job=job):
        logits = model.hf(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1]
        resid = {layer: _wide(kept["resid", layer]) for layer in (EMBEDDING_LAYER, *layers)}
        values = [
            metric.value(_wide(logits[row]), {layer: h[row] for layer, h in resid.items()})
            for row, metric in enumerate(metrics)
        ]
        places = list(kept)
        found = torch.autograd.grad(
            torch.stack([value.to(model.device) for value in values]).sum(),
            [kept[place] for place in places],
            allow_unused=True,
        )
    n_tokens = len(rows[0])
    slopes = {
        place: (torch.zeros_like(kept[place]) if slope is None else slope)[:, :n_tokens]
        for place, slope in zip(places, found, strict=True)
    }

    written: list[tuple[Site, int]] = [("resid", EMBEDDING_LAYER)]
    written += [("attn", layer) for layer in layers] + [("mlp", layer) for layer in layers]
    writes = torch.stack(
        [
            torch.linalg.vecdot(
                _wide(kept[place].detach()[:, :n_tokens]), _wide(slopes[place])
            ).cpu()
            for place in written
        ]
    ).float()
    by_site: dict[Site, Layered] = {
        "resid": Layered.of([slopes["resid", layer] for layer in (EMBEDDING_LAYER, *layers)])
    }
    for site in sites[1:] if all_sites else ():
        by_site[site] = Layered.of([slopes[site, layer] for layer in layers])

    def of_row(row: int) -> Gradients:
        return Gradients(
            value=float(values[row].detach()),
            kept={site: every.each(lambda part: part[:, row]) for site, every in by_site.items()},
            writes=writes[:, row],
        )

    return [of_row(row) for row in range(len(rows))]


def _keeping(
    kept: dict[tuple[Site, int], Tensor], site: Site, layer: int, job: Job | None
) -> Callable[[Tensor], None]:
    def check(_slope: Tensor) -> None:
        if job is not None:
            job.check()

    def function(tensor: Tensor) -> None:
        kept[site, layer] = tensor
        if job is not None and tensor.requires_grad:
            # So that the way back can be cancelled too.
            tensor.register_hook(check)  # type: ignore[no-untyped-call]

    return function


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.dtype == torch.float64 else tensor.float()


@torch.no_grad()
def estimates(
    sae: Sae,
    slopes: Tensor,
    *,
    index: Sequence[int],
    position: Sequence[int],
    activation: Sequence[float],
) -> Tensor:
    """Return the estimated effect of ablating features, one a row: -f_j <D_j, g[p]>, [rows].

    `slopes` [tokens, d] are dm / dh at the SAE's site and layer. float32, or float64 for slopes
    of that dtype.
    """
    wide = _wide(slopes)
    parts = [torch.zeros(0, dtype=wide.dtype, device=wide.device)]
    rows = max(1, _CHUNK_VALUES // wide.shape[-1])
    for start in range(0, len(index), rows):
        end = start + rows
        directions = sae.directions(index[start:end]).to(wide.dtype)
        at = torch.from_numpy(np.asarray(position[start:end])).to(wide.device)
        size = torch.from_numpy(np.asarray(activation[start:end])).to(wide)
        parts.append(-size * torch.linalg.vecdot(directions, wide.index_select(0, at)))
    return torch.cat(parts)


def attributions(sae: Sae, features: Features, found: Gradients) -> tuple[float, ...]:
    """Return the estimate for each row of the features of one SAE."""
    values = estimates(
        sae,
        found.at(sae.site, sae.layer),
        index=features.index,
        position=features.position,
        activation=features.activation,
    )
    return tuple(values.tolist())


def writes_of(found: Gradients) -> Writes:
    """Return the writes as columns: site by site, by layer, by position."""
    rows, n_tokens = found.writes.shape
    n_layers = rows // 2
    places: list[tuple[Site, int]] = [("resid", EMBEDDING_LAYER)]
    places += [("attn", layer) for layer in range(n_layers)]
    places += [("mlp", layer) for layer in range(n_layers)]
    return Writes(
        site=tuple(site for site, _ in places for _ in range(n_tokens)),
        layer=tuple(layer for _, layer in places for _ in range(n_tokens)),
        position=tuple(range(n_tokens)) * rows,
        value=tuple(found.writes.flatten().tolist()),
    )
