"""Where in each architecture the residual stream is written and read: one table.

`resid.L` is the output of block L, `resid.-1` the input of block 0 (the scaled embeddings).
`attn.L` and `mlp.L` are the tensors added to the residual, so after Gemma's post-norms, and
`resid.L-1 + attn.L + mlp.L == resid.L` up to rounding. `z.L` is the input of the output
projection of the attention (heads concatenated).

The sum holds for parallel blocks too (GPT-NeoX, so Pythia): there the MLP reads `resid.L-1`, not
`resid.L-1 + attn.L`, so an edit of `attn.L` leaves `mlp.L` as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from emotui.core.records import EMBEDDING_LAYER, Site

HookSite = Site
HOOK_SITES: tuple[HookSite, ...] = ("resid", "attn", "mlp", "z")


@dataclass(frozen=True)
class SiteTable:
    """Module names of one architecture; those of a block are relative to the block."""

    blocks: str
    attn: str
    mlp: str
    mixed_heads: str
    """The output projection of the attention; its input is `z`."""
    final_norm: str
    unembed: str = "lm_head"
    attention: str = "sdpa"
    """The attention implementation asked of transformers."""
    prepends_bos: bool | None = None
    """Whether a prompt begins with BOS; None leaves it to the tokenizer."""


_LLAMA = SiteTable(
    blocks="model.layers",
    attn="self_attn",
    mlp="mlp",
    mixed_heads="self_attn.o_proj",
    final_norm="model.norm",
)

_POST_NORMED = replace(_LLAMA, attn="post_attention_layernorm", mlp="post_feedforward_layernorm")
"""A norm behind attention and MLP each; what it gives is what is added."""

SITE_TABLES: Mapping[str, SiteTable] = MappingProxyType(
    {
        "llama": _LLAMA,
        "mistral": _LLAMA,
        "qwen2": _LLAMA,
        "qwen3": _LLAMA,
        "phi3": _LLAMA,
        "olmo2": _POST_NORMED,
        # transformers refuses sdpa for Gemma-2: it would drop the attention soft-cap.
        "gemma2": replace(_POST_NORMED, attention="eager", prepends_bos=True),
        "gemma3_text": replace(_POST_NORMED, prepends_bos=True),
        # With eyes, from 4B on; emotui gives it text alone.
        "gemma3": replace(
            _POST_NORMED,
            blocks="model.language_model.layers",
            final_norm="model.language_model.norm",
            prepends_bos=True,
        ),
        "gpt_neox": SiteTable(
            blocks="gpt_neox.layers",
            attn="attention",
            mlp="mlp",
            mixed_heads="attention.dense",
            final_norm="gpt_neox.final_layer_norm",
        ),
        "gpt2": SiteTable(
            blocks="transformer.h",
            attn="attn",
            mlp="mlp",
            mixed_heads="attn.c_proj",
            final_norm="transformer.ln_f",
            # GPT-2's tokenizer adds none, but its SAEs and TransformerLens prepend it.
            prepends_bos=True,
        ),
    }
)
"""Site tables by `model_type` of the configuration."""


@dataclass(frozen=True)
class HookPoint:
    """A module and the side of it where a site's tensor passes."""

    module: nn.Module
    side: Literal["input", "output"]


def runs_on(module: nn.Module, otherwise: torch.device) -> torch.device:
    """Return the device that accelerate runs a module on; `otherwise` where it has no such hook.

    That of its weights is not asked: those of a part that is offloaded are nowhere meanwhile.
    """
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    if isinstance(device, int):  # as accelerate numbers GPUs
        return torch.device("cuda", device)
    return otherwise if device is None else torch.device(device)


class Sites:
    """The hook points, the final norm and the unembedding of one loaded model."""

    def __init__(self, hf_model: nn.Module, table: SiteTable) -> None:
        self._table = table
        self._blocks = list(hf_model.get_submodule(table.blocks).children())
        self.final_norm = hf_model.get_submodule(table.final_norm)
        self._unembed = hf_model.get_submodule(table.unembed)
        config: Any = getattr(hf_model, "config", None)
        text_config = config.get_text_config() if config is not None else None
        soft_cap = getattr(text_config, "final_logit_softcapping", None)
        self.soft_cap: float | None = float(soft_cap) if soft_cap else None

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self._blocks)

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks, from layer 0 on."""
        return list(self._blocks)

    def point(self, site: HookSite, layer: int) -> HookPoint:
        """Return where `site.layer` passes; the layer is trusted to exist.

        `resid.-1` is the input of block 0.
        """
        if layer == EMBEDDING_LAYER:
            if site != "resid":
                raise ValueError(f"there is no {site} below layer 0")
            return HookPoint(self._blocks[0], "input")
        block = self._blocks[layer]
        if site == "resid":
            return HookPoint(block, "output")
        if site == "z":
            return HookPoint(block.get_submodule(self._table.mixed_heads), "input")
        name = self._table.attn if site == "attn" else self._table.mlp
        return HookPoint(block.get_submodule(name), "output")

    def logits_of(self, resid: Tensor) -> Tensor:
        """Return the next-token logits of residuals as if they came from the last block.

        `resid` is [..., d_model] in the run's dtype; the result is [..., vocabulary], soft-capped
        where the model soft-caps, on the device of the unembedding. The final norm is recomputed
        for these residuals.
        """
        logits: Tensor = self._unembed(self.final_norm(resid))
        if self.soft_cap is not None:
            logits = torch.tanh(logits / self.soft_cap) * self.soft_cap
        return logits

    def token_logits(self, resid: Tensor, tokens: Sequence[int]) -> Tensor:
        """Return `logits_of` for some tokens alone, [..., len(tokens)].

        Where the unembedding is one matrix in memory, only their rows of it are used.
        """
        unembed = self._unembed
        if type(unembed) is not nn.Linear or unembed.weight.is_meta:
            return self.logits_of(resid)[..., list(tokens)]
        rows, bias = unembed.weight[list(tokens)], unembed.bias
        logits = nn.functional.linear(
            self.final_norm(resid).to(rows.device),
            rows,
            None if bias is None else bias[list(tokens)],
        )
        if self.soft_cap is not None:
            logits = torch.tanh(logits / self.soft_cap) * self.soft_cap
        return logits

    def written_by_heads(self, layer: int, z: Tensor) -> Tensor:
        """Return what directions of `z.layer`, [..., heads * d_head], write to the residual stream.

        [..., d_model], up to a factor for each where a norm stands behind the attention.
        """
        block = self._blocks[layer]
        project = block.get_submodule(self._table.mixed_heads)
        written: Tensor = project(z) - project(torch.zeros_like(z))
        after = block.get_submodule(self._table.attn)
        # Where what is added is a norm's output, that norm lies on the way.
        return after(written) if project not in set(after.modules()) else written

    def promotion(self, directions: Tensor) -> Tensor:
        """Return what directions add to the logits, up to a factor and a constant for each.

        `directions` is [..., d_model] in the run's dtype; the result is [..., vocabulary], on the
        device of the unembedding. The bias of the final norm and the soft-cap, which change no
        ranking, are left out.
        """
        through: Tensor = self.final_norm(directions) - self.final_norm(
            torch.zeros_like(directions)
        )
        logits: Tensor = self._unembed(through)
        return logits
