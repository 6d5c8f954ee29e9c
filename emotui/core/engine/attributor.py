"""The metric of a trace, and its attributions: from the store, else by one backward pass."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from emotui.cache.keys import derived_key
from emotui.core.engine.attribute import (
    Gradients,
    Metric,
    answer_metric,
    attributions,
    gradients,
    readout_metric,
    writes_of,
)
from emotui.core.engine.memory import free_bytes, is_out_of_memory
from emotui.core.errors import CacheError, UsageError
from emotui.core.records import Answer, Attribution, Features
from emotui.core.text import clean

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.engine.answer import LabelTokens
    from emotui.core.engine.capture import Activations, Hook, Job
    from emotui.core.engine.model import LoadedModel
    from emotui.core.engine.probes import Probe
    from emotui.core.engine.saes import Sae

TOP, NONE = "top", "none"

_WHOLE_LABEL = (
    "The labels share their first tokens, so no single token decides the answer: there is no "
    "attribution to it. A readout probe's logit can be the metric."
)
_NO_MEMORY = "There was not enough memory for the backward pass."
_METRIC = re.compile(r"(answer|readout)\.([\w-]+)(?:@L(\d{1,4}))?")


def metric_of(
    wanted: str,
    *,
    labels: LabelTokens,
    answer: Answer,
    probes: Sequence[Probe],
    n_layers: int,
    readout: int,
) -> Metric | str:
    """Return the metric that `wanted` names (see InspectRequest.metric), or why there is none.

    `top` is the likeliest label of `answer`. Raises UsageError for a metric, an emotion, a probe
    or a layer that does not exist.
    """
    if wanted == TOP:
        wanted = f"answer.{max(answer.labels, key=lambda label: answer.labels[label])}"
    match = _METRIC.fullmatch(wanted)
    kind, emotion, layer = match.groups() if match is not None else ("", "", None)
    if not kind or (kind == "answer" and layer is not None):
        raise UsageError(
            f"There is no metric called {clean(wanted)!r}.",
            todo="Use top, none, answer.EMOTION, readout.EMOTION or readout.EMOTION@L5.",
        )
    if kind == "answer":
        _check_emotion(emotion, labels.labels, f"the label set {labels.set}")
        return answer_metric(labels, emotion) or _WHOLE_LABEL
    probe = next((probe for probe in probes if probe.kind == "readout"), None)
    if probe is None:
        raise UsageError(
            f"{clean(wanted)} cannot be the metric: no readout probe is in force.",
            todo="Fit probes with `emotui probe fit`, or use answer.EMOTION.",
        )
    _check_emotion(emotion, probe.emotions, f"the probe {probe.id}")
    if layer is not None and int(layer) >= n_layers:
        raise UsageError(
            f"There is no layer {int(layer)} to read the metric at.",
            todo=f"The model has layers 0 to {n_layers - 1}.",
        )
    at = best_layer(probe) if layer is None else int(layer)
    return readout_metric(probe, emotion, at, readout)


def _check_emotion(emotion: str, known: Sequence[str], where: str) -> None:
    if emotion not in known:
        raise UsageError(
            f"{clean(emotion)!r} is no emotion of {where}.", todo=f"It has: {', '.join(known)}."
        )


def best_layer(probe: Probe) -> int:
    """Return the layer of the residual stream at which a probe is best: trusted, then by dev."""
    scores = [s for s in probe.file.card.scores if s.site == "resid" and s.layer >= 0]
    best = max(
        scores,
        key=lambda s: (s.trust == "trusted", s.dev_accuracy or s.balanced_accuracy, -s.layer),
    )
    return best.layer


class Attributor:
    """Attributions of one run to one metric; the backward pass is made when first needed."""

    def __init__(
        self,
        model: LoadedModel,
        store: Store,
        activations: Activations,
        metric: Metric | str,
        *,
        hooks: Sequence[Hook],
        all_sites: bool,
        job: Job,
    ) -> None:
        self._model = model
        self._store = store
        self._activations = activations
        self._metric = metric if isinstance(metric, Metric) else None
        self._note = metric if isinstance(metric, str) else ""
        self._hooks = hooks
        self._all_sites = all_sites
        self._job = job
        self._found: Gradients | None = None

    def key(self, part: str) -> str:
        """Return the key of a reading that depends on this run and this metric."""
        identity = "" if self._metric is None else self._metric.identity
        return derived_key(self._activations.key, f"attribution:{identity}:{part}")

    @property
    def metric(self) -> Metric | None:
        """What is differentiated; None where nothing can be."""
        return None if self._note else self._metric

    def stands(self) -> bool:
        """Return whether the gradients are in the store."""
        return self._stored() is not None

    def keep(self, found: Gradients) -> None:
        """Put the gradients of this run to this metric into the store."""
        self._store.put_entry("activations", self._gradient_key(self._all_sites), found.to_bytes())

    def values(self, sae: Sae, features: Features) -> tuple[float, ...] | None:
        """Return the estimate of each row of the features of one SAE; None without gradients."""
        found = self._gradients()
        return None if found is None else attributions(sae, features, found)

    def attribution(self) -> Attribution:
        """Return the record of the metric, with its writes or why there are none."""
        found = self._gradients()
        if found is None or self._metric is None:
            return Attribution("", None, self._note)
        return Attribution(self._metric.name, found.value, "", writes_of(found))

    def _gradients(self) -> Gradients | None:
        if self._metric is None or self._note:
            return None
        if self._found is None:
            self._found = self._stored() or self._computed(self._metric)
        return self._found

    def _stored(self) -> Gradients | None:
        for all_sites in dict.fromkeys([self._all_sites, True]):
            payload = self._store.get_entry("activations", self._gradient_key(all_sites))
            if payload is None:
                continue
            try:
                return Gradients.from_bytes(payload, devices=self._model.devices)
            except CacheError:
                continue  # whole, but not what this version writes: computed again
        return None

    def _computed(self, metric: Metric) -> Gradients | None:
        self._job.progress("attributing")
        if not self._fits():
            self._note = _NO_MEMORY
            return None
        try:
            found = gradients(
                self._model,
                self._activations.token_ids,
                metric,
                all_sites=self._all_sites,
                hooks=self._hooks,
                job=self._job,
            )
        except (RuntimeError, MemoryError) as problem:
            if not is_out_of_memory(problem):
                raise
            # The trace is worth having without it; freed before anything else is computed.
            self._note = _NO_MEMORY
            return None
        self.keep(found)
        return found

    def _fits(self) -> bool:
        """Whether there is room for the graph: on the CPU nothing tells before it is too late."""
        shape = self._model.shape
        if shape is None:
            return True
        tokens = len(self._activations.token_ids)
        needed = shape.backward_bytes(tokens, all_sites=self._all_sites)
        return needed <= self._model.over_devices(free_bytes)

    def _gradient_key(self, all_sites: bool) -> str:
        return self.key(f"gradients:{'all and z' if all_sites else 'resid'}")
