"""Many texts through the model in batches, ahead of the requests for their traces.

Prompts of equal length share a forward, so nothing is padded, and what is stored is what the
request for one text stores: it then finds the activations, and the gradients of its metric, and
makes no pass of its own. The numbers are those of single runs up to the rounding of batched
kernels.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence

import torch

from emotui.cache.store import Store
from emotui.core.emotions import LABEL_SETS
from emotui.core.engine.answer import label_tokens, read_answer
from emotui.core.engine.attribute import Metric, gradients_of_rows
from emotui.core.engine.attributor import NONE, Attributor, metric_of
from emotui.core.engine.capture import Activations, Job, capture_rows
from emotui.core.engine.collect import batches
from emotui.core.engine.instruments import Instruments
from emotui.core.engine.model import LoadedModel
from emotui.core.engine.runs import kept_activations, stored_activations
from emotui.core.errors import TextError, UsageError
from emotui.core.protocol import InspectRequest, Prefetched, PrefetchRequest
from emotui.core.text import clean, template_named

TOKENS_PER_BATCH = 1024
"""Tokens in a batch: its activations are held at once, and the graph of its backward pass."""


def prefetch(
    request: PrefetchRequest, model: LoadedModel, instruments: Instruments, store: Store, job: Job
) -> Prefetched:
    """Store the activations and gradients that requests like `request.like` need.

    What is stored already is left alone, and so is a text that the model cannot read: the request
    for it says why. Raises what that request would raise for all texts alike, such as a metric
    or an SAE that does not exist. What was stored before an error or a cancel stays.
    """
    started, before = time.monotonic(), model.forwards
    work = _Prefetch(request.like, model, instruments, store, job)
    prompts = work.prompts(request.texts)
    done = 0
    for members in batches([len(ids) for ids in prompts], most_tokens=TOKENS_PER_BATCH):
        job.check()
        job.progress("running the model on many texts", done, len(prompts))
        work.batch([prompts[member] for member in members])
        done += len(members)
    return Prefetched(
        texts=len(work.ran),
        forwards=model.forwards - before,
        seconds=time.monotonic() - started,
    )


class _Prefetch:
    """What the batches of one request share."""

    def __init__(
        self,
        like: InspectRequest,
        model: LoadedModel,
        instruments: Instruments,
        store: Store,
        job: Job,
    ) -> None:
        self._like, self._model, self._store, self._job = like, model, store, job
        self._template = template_named(like.template)
        if like.label_set not in LABEL_SETS:
            raise UsageError(
                f"There is no label set called {clean(like.label_set)!r}.",
                todo=f"Use one of: {', '.join(LABEL_SETS)}.",
            )
        self._labels = label_tokens(model.reader, like.label_set, self._template)
        self._all_sites = like.all_sites or any(
            site != "resid"
            for source in instruments.saes(like.saes, job)
            for site, _ in source.places
        )
        self._probes = instruments.probes(like.probes)
        self._out_of_memory = False
        self.ran: set[tuple[int, ...]] = set()
        """The prompts that went through the model."""

    def prompts(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the token ids of the texts that can be read, each prompt once."""
        longest = self._model.context_length - self._labels.room
        found: dict[tuple[int, ...], None] = {}
        for text in texts:
            self._job.check()
            try:
                record = self._model.reader.read(text, self._template, context_length=longest)
            except TextError:
                continue
            found[tuple(token.id for token in record.tokens)] = None
        return list(found)

    def batch(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Run prompts of equal length and store what is not stored."""
        held = {
            prompt: stored_activations(self._model, self._store, prompt, all_sites=self._all_sites)
            for prompt in prompts
        }
        missing = [prompt for prompt, activations in held.items() if activations is None]
        if missing:
            for computed in capture_rows(
                self._model, missing, all_sites=self._all_sites, job=self._job
            ):
                held[computed.token_ids] = kept_activations(
                    self._model, self._store, computed, all_sites=self._all_sites
                )
            self.ran.update(missing)
        self._attribute([activations for activations in held.values() if activations is not None])

    def _attribute(self, runs: Sequence[Activations]) -> None:
        # Where the answer takes a forward of its own, the request for each text makes it first.
        if self._like.metric == NONE or self._labels.rule != "first_token":
            return
        wanted: dict[tuple[int, ...], list[tuple[Attributor, Metric, Activations]]]
        wanted = defaultdict(list)
        for activations in runs:
            attributor = self._attributor(activations)
            if attributor.metric is not None and not attributor.stands():
                metric = attributor.metric
                wanted[metric.suffix].append((attributor, metric, activations))
        for rows in wanted.values():
            self._differentiate(rows)

    def _attributor(self, activations: Activations) -> Attributor:
        metric = metric_of(
            self._like.metric,
            labels=self._labels,
            answer=read_answer(self._model, activations, self._labels).answer,
            probes=self._probes,
            n_layers=self._model.n_layers,
            readout=activations.readout,
        )
        return Attributor(
            self._model,
            self._store,
            activations,
            metric,
            hooks=(),
            all_sites=self._all_sites,
            job=self._job,
        )

    def _differentiate(self, rows: Sequence[tuple[Attributor, Metric, Activations]]) -> None:
        if self._out_of_memory:
            return
        try:
            found = gradients_of_rows(
                self._model,
                [activations.token_ids for _, _, activations in rows],
                [metric for _, metric, _ in rows],
                all_sites=self._all_sites,
                job=self._job,
            )
        except (torch.OutOfMemoryError, MemoryError):
            self._out_of_memory = True  # one by one, as each request does it, may still fit
            return
        for (attributor, _, activations), gradients in zip(rows, found, strict=True):
            attributor.keep(gradients)
            self.ran.add(activations.token_ids)
