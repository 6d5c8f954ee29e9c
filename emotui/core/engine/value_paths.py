"""What an attention output writes, by source token: its values weighted by attention.

For fixed attention patterns the output of an attention layer is linear in its values, so

    <output[readout], g> = sum_s <v[s], d<output[readout], g> / dv[s]>  (+ the bias's part)

and one small backward pass from the output projection to the values gives every source's part,
whatever the attention implementation and however heads share values. A norm after the projection
(Gemma) is taken with its scale held fixed, so that the parts still add up to the write.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from emotui.core.engine.capture import Hook, Job, hooked
from emotui.core.records import EMBEDDING_LAYER

if TYPE_CHECKING:
    from emotui.core.engine.model import LoadedModel


def _value_path(block: nn.Module, width: int) -> tuple[nn.Module, nn.Module, slice] | None:
    """Return the modules that make values and mix heads, and the columns of the values."""
    for values, mixed, columns in (
        ("self_attn.v_proj", "self_attn.o_proj", slice(None)),
        ("attn.c_attn", "attn.c_proj", slice(2 * width, None)),
    ):
        try:
            return block.get_submodule(values), block.get_submodule(mixed), columns
        except AttributeError:
            continue
    return None


def attention_sources(
    model: LoadedModel, token_ids: Sequence[int], slopes: Tensor, *, job: Job | None = None
) -> Tensor | None:
    """Return what each attention output at the last token writes along `slopes`, by source.

    `slopes` [layers, d_model] are those of the metric at `attn.L` of the last token; the result is
    float32 [layers, tokens] on the CPU. None where it is not known which module makes the values.
    One forward and a small backward pass a layer.
    """
    paths = [_value_path(block, model.d_model) for block in model.sites.blocks]
    known = [path for path in paths if path is not None]
    if len(known) < len(paths):
        return None
    kept: dict[tuple[str, int], Tensor] = {}

    def keep(name: str, layer: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            kept[name, layer] = output

        return hook

    def keep_site(layer: int) -> Hook:
        def function(tensor: Tensor) -> None:
            kept["attn", layer] = tensor

        return Hook("attn", layer, function)

    def begin(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_().clone()

    model.hf.requires_grad_(False)
    model.forwards += 1
    layers = range(model.n_layers)
    hooks = [Hook("resid", EMBEDDING_LAYER, begin), *(keep_site(layer) for layer in layers)]
    with torch.enable_grad(), ExitStack() as stack:
        for layer, (values, mixed, _) in enumerate(known):
            for name, module in (("values", values), ("mixed", mixed)):
                handle = module.register_forward_hook(keep(name, layer))
                stack.callback(handle.remove)
        stack.enter_context(hooked(model, hooks, job=job))
        model.hf(input_ids=model.tensor_of([token_ids]), use_cache=False, logits_to_keep=1)
        parts = []
        for layer, (_, _, columns) in enumerate(known):
            mixed_out, values_out = kept["mixed", layer], kept["values", layer]
            (back,) = torch.autograd.grad(
                mixed_out,
                values_out,
                grad_outputs=_at_last(mixed_out, kept["attn", layer], slopes[layer]),
                retain_graph=True,
            )
            by_token = (values_out[0] * back[0]).detach()[:, columns].float().sum(dim=-1)
            parts.append(by_token.cpu())
    return torch.stack(parts)


def _at_last(mixed: Tensor, output: Tensor, slope: Tensor) -> Tensor:
    """Return the slope at the mixed heads, at the last token; later norms keep their scale."""
    raw, after = mixed.detach()[:, -1], output.detach()[:, -1]
    # What a norm does to each coordinate is one factor; without a norm it is 1.
    factor = torch.where(raw == 0, torch.ones_like(raw), after / raw)
    spread = torch.zeros_like(mixed)
    spread[:, -1] = slope.to(mixed) * factor
    return spread
