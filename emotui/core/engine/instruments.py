"""What reads activations: the probes and SAEs in force, kept loaded, their readings cached.

A reading is stored under the activations' key and the instrument's own, so that a new probe or
SAE costs no forward pass and a known one no arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

import msgspec

from emotui.cache.keys import derived_key, sae_identity
from emotui.cache.store import Store
from emotui.core.engine.capture import Activations, Job
from emotui.core.engine.feature_labels import FeatureLabels
from emotui.core.engine.kept import keep_record, kept_record
from emotui.core.engine.model import LoadedModel
from emotui.core.errors import SaeError
from emotui.core.records import (
    Attribution,
    Features,
    ProbeSummary,
    Readouts,
    SaeReading,
    TextRecord,
)
from emotui.core.sae_directory import default_source
from emotui.core.text import clean

if TYPE_CHECKING:
    from emotui.core.engine.attributor import Attributor
    from emotui.core.engine.probes import Probe
    from emotui.core.engine.sae_memory import SaeMemory
    from emotui.core.engine.saes import Sae, SaeSet, SaeWeights

_Columns = TypeVar("_Columns", Readouts, Features)


class _FeatureReading(msgspec.Struct, frozen=True):
    features: Features
    reading: SaeReading


class _AttributionReading(msgspec.Struct, frozen=True):
    values: tuple[float, ...]


class Instruments:
    """The probes and SAEs that were asked for so far, for one model and one store."""

    def __init__(self, model: LoadedModel, store: Store) -> None:
        self._model = model
        self._store = store
        self._saes: dict[tuple[str, str], SaeSet] = {}
        self._probes: dict[str, Probe] = {}
        self._held: SaeMemory[SaeWeights] | None = None
        self._absent: set[str] = set()
        """Default SAEs that could not be had; they are not asked for again."""
        self._labels = FeatureLabels(model, store)

    def saes(self, sources: Sequence[str], job: Job, *, needed: bool = False) -> tuple[SaeSet, ...]:
        """Return the SAEs of each source, weights read when needed; SaeError where none fit.

        A source whose files have changed is opened anew. Unless they are `needed`, the model's
        default SAEs are left out where they cannot be had, and that is told once: nobody asked
        for them, so they are no reason to read nothing.
        """
        sets: list[SaeSet] = []
        for source in sources:
            if source in self._absent and not needed:
                continue
            try:
                sets.append(self._opened(source, job))
            except SaeError as error:
                if needed or source != default_source(self._model.spec.model):
                    raise
                self._leave_out(source, error, job)
        return tuple(sets)

    def present(self, sources: Sequence[str], job: Job) -> tuple[str, ...]:
        """Return the sources without a default that cannot be had; raises as `saes` does."""
        if default_source(self._model.spec.model) in sources:
            self.saes(sources, job)
        return tuple(source for source in sources if source not in self._absent)

    def _leave_out(self, source: str, error: SaeError, job: Job) -> None:
        self._absent.add(source)
        model = self._model.spec.model
        why = " ".join(part for part in (error.what, error.why) if part)
        job.notice(
            clean(
                f"The default SAEs of {model} could not be had, so there are no features: {why} "
                "--sae none leaves them out."
            )
        )

    def _opened(self, source: str, job: Job) -> SaeSet:
        place = (source, sae_identity(source, self._store) or source)
        if place not in self._saes:
            from emotui.core.engine.saes import load_saes

            job.progress("opening the SAEs")
            self._saes[place] = load_saes(
                source, self._model, root=self._store.root, job=job, held=self._held_weights()
            )
        return self._saes[place]

    def _held_weights(self) -> SaeMemory[SaeWeights]:
        """Return where the weights of all sources are held, under one budget."""
        if self._held is None:
            from emotui.core.engine.sae_memory import SaeMemory

            self._held = SaeMemory(self._model.spec.sae_memory)
        return self._held

    def probes(self, ids: Sequence[str]) -> tuple[Probe, ...]:
        """Return the probes with these ids; ProbeError where one is missing or of another model."""
        for probe_id in ids:
            if probe_id not in self._probes:
                from emotui.core.engine.probes import load_probe

                payload = self._store.get_probe(probe_id)
                self._probes[probe_id] = load_probe(payload, self._model)
        return tuple(self._probes[probe_id] for probe_id in ids)

    def readouts(
        self, probes: Sequence[Probe], activations: Activations, text: TextRecord
    ) -> tuple[tuple[ProbeSummary, ...], Readouts]:
        """Apply each probe to the activations; the columns of all of them, one after the other."""
        columns: list[Readouts] = []
        for probe in probes:
            key = derived_key(activations.key, f"probe:{probe.id}:{_extent(text)}")
            stored = kept_record(self._store, key, Readouts)
            if stored is None:
                from emotui.core.engine.probes import apply

                stored = apply(probe, activations, text)
                keep_record(self._store, key, stored)
            columns.append(stored)
        summaries = tuple(probe.summary(len(text.tokens)) for probe in probes)
        return summaries, joined(columns, Readouts)

    def features(
        self,
        sets: Sequence[SaeSet],
        activations: Activations,
        text: TextRecord,
        job: Job,
        *,
        attributor: Attributor | None = None,
    ) -> tuple[Features, tuple[SaeReading, ...]]:
        """Encode the activations with every SAE: the columns of all, and how well each rebuilds.

        The weights of an SAE whose features are stored are not read. With an attributor, the
        features carry their attribution.
        """
        readings: list[_FeatureReading] = []
        total = sum(len(saes) for saes in sets)
        for saes in sets:
            for sae in saes:
                job.check()
                job.progress("encoding with the SAEs", len(readings), total)
                # The source is in the names of the features, so it is in the key.
                part = f"sae:{sae.key}:{saes.source}:{_extent(text)}"
                key = derived_key(activations.key, part)
                stored = kept_record(self._store, key, _FeatureReading, kind="features")
                if stored is None:
                    from emotui.core.engine.text_features import features_of

                    stored = _FeatureReading(*features_of(sae, activations, text))
                    keep_record(self._store, key, stored, kind="features")
                if attributor is not None:
                    features = self._attributed(stored.features, sae, part, attributor)
                    stored = _FeatureReading(features, stored.reading)
                named = self._labels.named(stored.features, sae, readout=text.readout, saes=total)
                readings.append(_FeatureReading(named, stored.reading))
        columns = joined([reading.features for reading in readings], Features)
        return columns, tuple(reading.reading for reading in readings)

    def attribution(self, attributor: Attributor) -> Attribution:
        """Return the metric in force and what each output writes towards it."""
        key = attributor.key("writes")
        stored = kept_record(self._store, key, Attribution)
        if stored is None:
            stored = attributor.attribution()
            if not stored.note:
                keep_record(self._store, key, stored)
        return stored

    def _attributed(
        self, features: Features, sae: Sae, part: str, attributor: Attributor
    ) -> Features:
        key = attributor.key(part)
        stored = kept_record(self._store, key, _AttributionReading, kind="features")
        if stored is None or len(stored.values) != len(features.index):
            values = attributor.values(sae, features)
            if values is None:
                return features
            stored = _AttributionReading(values)
            keep_record(self._store, key, stored, kind="features")
        return msgspec.structs.replace(features, attribution=stored.values)


def _extent(text: TextRecord) -> str:
    """Return where the user's text lies: the same tokens may be a text or a template."""
    first = next(i for i, token in enumerate(text.tokens) if token.part == "text")
    return f"{first}-{text.last}"


def joined(parts: Sequence[_Columns], record: type[_Columns]) -> _Columns:
    """Return column records put one under the other."""
    return record(
        **{
            name: tuple(chain.from_iterable(getattr(part, name) for part in parts))
            for name in record.__struct_fields__
        }
    )
