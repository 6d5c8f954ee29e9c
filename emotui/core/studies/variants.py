"""Many changes of one prompt at its readout: what patching, knockouts and promotion run.

A change acts on the tensor added to the residual (attention and MLP, after Gemma's post-norms) or
on the residual itself, at the readout alone. So the tokens before it are run once, their keys and
values shared, and the last token is run once for each variant (METHODS 2.4). An unchanged row runs
beside the variants, on the same path: effects are held against it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch import Tensor

from emotui.core.engine.answer import LabelTokens
from emotui.core.engine.capture import Hook, HookFunction, Job, hooked
from emotui.core.engine.collect import TOKENS_PER_BATCH, Place
from emotui.core.engine.rerun import RowHooks, rerun
from emotui.core.errors import UsageError
from emotui.core.records import EMBEDDING_LAYER, Site
from emotui.core.studies.common.readings import run_batch

if TYPE_CHECKING:
    from emotui.core.engine.model import LoadedModel

Operation = Literal["set", "add", "turn"]
"""`set` puts the vector there, `add` adds it, `turn` gives what is there the vector's direction."""

_Word = TypeVar("_Word", bound=str)
_LOGITS_AT_ONCE = 2**25
"""Most logits held in float32 at a time: 128 MB."""
SITES: tuple[Site, ...] = ("resid", "attn", "mlp")


@dataclass(frozen=True, eq=False)
class Change:
    """What happens to one site and layer at the readout."""

    place: Place
    operation: Operation
    vector: Tensor
    """[d_model]; a unit vector for `turn`."""


Variant = Sequence[Change]
"""All that is changed in one run; () for nothing."""


@dataclass(frozen=True)
class Outcomes:
    """What n variants of one prompt gave, on the CPU."""

    clean: Tensor
    """[labels], float32: scores of the prompt as it is."""
    scores: Tensor
    """[n, labels], float32."""
    kl: Tensor
    """[n], nats: of the next token's distribution, from the clean one to the variant's."""
    resid: Tensor
    """[n, d_model], float32: the residual at the layer asked for; [n, 0] where none was."""
    clean_resid: Tensor
    """[layers, d_model], float32, of the prompt as it is."""


@torch.no_grad()
def run_variants(
    model: LoadedModel,
    ids: Sequence[int],
    tokens: LabelTokens,
    variants: Sequence[Variant],
    *,
    reading: Sequence[int] | None = None,
    job: Job | None = None,
) -> Outcomes:
    """Run variants of one prompt, and the prompt as it is, and read the answer of each.

    `reading` names a layer for each variant whose residual at the readout is kept. Where labels
    are told apart by more than one token, whole prompts are run instead of last tokens.
    """
    readout = len(ids) - 1
    fast = tokens.rule == "first_token"
    embedded = _embedded(model, ids, job) if fast else None
    size = max(1, _LOGITS_AT_ONCE // model.hf.config.get_text_config().vocab_size)
    if not fast:
        size = max(1, min(size, TOKENS_PER_BATCH // len(ids)))
    layers = range(model.n_layers)
    scores, kl, resid = [], [], []
    clean, clean_resid = torch.empty(0), torch.empty(0)
    for begin in range(0, max(len(variants), 1), size):
        rows: list[Variant] = [(), *variants[begin : begin + size]]
        if embedded is not None:
            found = rerun(
                model,
                embedded,
                start=0,
                n_rows=len(rows),
                hooks=_hooks_for(rows, 0),
                first=readout,
                job=job,
            )
            logits, kept = found.logits.float(), found.resid
            answers = logits[:, list(tokens.deciding)].cpu()
        else:
            batch = run_batch(
                model,
                [ids] * len(rows),
                tokens,
                places=[("resid", layer) for layer in layers],
                edits=_hooks_for(rows, readout),
                job=job,
            )
            logits, answers = batch.logits.float(), batch.scores
            kept = {layer: batch.h[layer] for layer in layers}
        distribution = logits.log_softmax(dim=-1)
        apart = (distribution[0].exp() * (distribution[0] - distribution[1:])).sum(dim=-1)
        scores.append(answers[1:])
        kl.append(apart.clamp_min(0).cpu())
        if reading is not None:
            wanted = reading[begin : begin + size]
            some = torch.empty(len(wanted), model.d_model)
            for layer in set(wanted):
                those = [row for row, one in enumerate(wanted) if one == layer]
                some[those] = kept[layer][[row + 1 for row in those]].float().cpu()
            resid.append(some)
        if not begin:
            clean = answers[0]
            clean_resid = torch.stack([kept[layer][0].float().cpu() for layer in layers])
    return Outcomes(
        clean=clean,
        scores=torch.cat(scores),
        kl=torch.cat(kl),
        resid=torch.cat(resid) if resid else torch.empty(len(variants), 0),
        clean_resid=clean_resid,
    )


def _embedded(model: LoadedModel, ids: Sequence[int], job: Job | None) -> Tensor:
    """Return what enters block 0, [tokens, d_model]."""
    kept: list[Tensor] = []
    keeping = Hook("resid", EMBEDDING_LAYER, lambda h: kept.append(h[0].detach().clone()))
    with hooked(model, (keeping,), job=job):
        model.forward([list(ids)])
    return kept[0]


def _hooks_for(variants: Sequence[Variant], at: int) -> RowHooks:
    return lambda rows: _hooks(variants[rows.start : rows.stop], at)


def _hooks(rows: Sequence[Variant], at: int) -> list[Hook]:
    """Return the hooks of some variants; each row's readout is token `at` of the tensors."""
    grouped: dict[tuple[Place, Operation], list[tuple[int, Tensor]]] = defaultdict(list)
    for row, variant in enumerate(rows):
        for change in variant:
            grouped[change.place, change.operation].append((row, change.vector))
    hooks = []
    for ((site, layer), operation), changes in grouped.items():
        # One variant acts on all there is: its prompt may be repeated, for each label.
        numbers = [row for row, _ in changes] if len(rows) > 1 else slice(None)
        vectors = torch.stack([vector.float() for _, vector in changes])
        hooks.append(Hook(site, layer, _acting(operation, numbers, vectors, at)))
    return hooks


def _acting(
    operation: Operation, rows: list[int] | slice, vectors: Tensor, at: int
) -> HookFunction:
    def function(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        here = tensor[rows, at]
        given = vectors.to(tensor.device)
        if operation == "add":
            given = here.float() + given
        elif operation == "turn":
            given = given * here.float().norm(dim=-1, keepdim=True)
        changed[rows, at] = given.to(tensor.dtype)
        return changed

    return function


@dataclass(frozen=True)
class Window:
    """Layers that are changed together."""

    site: Site
    span: int
    center: int
    layers: tuple[int, ...]
    """Fewer than `span` at the ends of the model, where Tak et al. leave windows out."""

    @property
    def places(self) -> tuple[Place, ...]:
        """Its places, in the order the model passes them."""
        return tuple((self.site, layer) for layer in self.layers)


def windows_of(
    n_layers: int, spans: Sequence[float], sites: Sequence[Site] = SITES
) -> tuple[Window, ...]:
    """Return the windows of each site and span around each layer, cut at the ends of the model.

    UsageError for a span that has no middle layer.
    """
    wrong = [span for span in spans if span != int(span) or span < 1 or not int(span) % 2]
    if wrong:
        raise UsageError(
            f"A window cannot span {wrong[0]:g} layers.",
            why="It has a layer in its middle, so it spans an odd number.",
            todo="Use --span 1,3,5.",
        )
    return tuple(
        Window(
            site,
            int(span),
            center,
            tuple(
                layer
                for layer in range(center - int(span) // 2, center + int(span) // 2 + 1)
                if 0 <= layer < n_layers
            ),
        )
        for site in sites
        for span in spans
        for center in range(n_layers)
    )


def adding(window: Window, directions: Tensor, sizes: Sequence[float]) -> Variant:
    """Return the variant that adds a direction at every place of a window.

    `directions` [layers, d_model] and `sizes` have one of each layer.
    """
    return [Change(place, "add", sizes[place[1]] * directions[place[1]]) for place in window.places]


def sites_of(given: str) -> tuple[Site, ...]:
    """Return the sites named in an option; UsageError for another word."""
    words = [word.strip() for word in given.split(",") if word.strip()]
    unknown = [word for word in words if word not in SITES]
    if unknown or not words:
        raise UsageError(
            f"There is no site called {unknown[0]!r}." if unknown else "No site was named.",
            todo=f"Use some of: {', '.join(SITES)}.",
        )
    return tuple(site for site in SITES if site in words)


def choice(name: str, given: str, known: Sequence[_Word]) -> tuple[_Word, ...]:
    """Return the words of an option in the order of `known`; UsageError for another one."""
    words = [word.strip() for word in given.split(",") if word.strip()]
    unknown = [word for word in words if word not in known]
    if unknown or not words:
        raise UsageError(
            f"{name} cannot be {given!r}.",
            todo=f"Use some of: {', '.join(known)}.",
        )
    return tuple(word for word in known if word in words)
