"""What the engine can be asked to do: one table from request to function, and what they share."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from emotui.cache.store import Store, default_root
from emotui.core.engine.capture import Job
from emotui.core.engine.doctor import diagnose
from emotui.core.engine.inspect import inspect
from emotui.core.engine.instruments import Instruments
from emotui.core.engine.memory import free_memory, peak_bytes
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.prefetch import prefetch
from emotui.core.engine.speak import speak
from emotui.core.engine.statistics import corpus_statistics
from emotui.core.protocol import (
    Activated,
    ActivationsRequest,
    AskedInForms,
    ConsistencyRequest,
    Defined,
    DefineRequest,
    Diagnosed,
    DoctorRequest,
    Done,
    Featured,
    FeatureRequest,
    FitRequest,
    Fitted,
    Generated,
    GenerateRequest,
    ImportDirectionRequest,
    Inspected,
    InspectRequest,
    LabelsFitRequest,
    LabelsFitted,
    Loaded,
    LoadRequest,
    Located,
    MaskedWords,
    ModelSpec,
    Operation,
    Outcome,
    Prefetched,
    PrefetchRequest,
    ShutdownRequest,
    TermsRequest,
    TermsScored,
    Verified,
    VerifyRequest,
    WhereRequest,
    WithoutRequest,
)
from emotui.core.text import template_named


class _OfModel(Protocol):
    """A request that names a model and a cache."""

    @property
    def spec(self) -> ModelSpec:
        """The model."""

    @property
    def cache_dir(self) -> str:
        """The cache's folder; "" means the default place."""


class Session:
    """What stays between requests: one model, one store, the instruments loaded so far."""

    def __init__(self) -> None:
        self._model: LoadedModel | None = None
        self._store: Store | None = None
        self._instruments: Instruments | None = None

    def store(self, cache_dir: str) -> Store:
        """Return the open store of a folder ("" means the default place)."""
        root = (Path(cache_dir) if cache_dir else default_root()).expanduser().absolute()
        if self._store is None or self._store.root != root:
            self.close_store()
            self._store = Store.open(root)
        return self._store

    def model(self, spec: ModelSpec, job: Job, *, store: Store | None = None) -> LoadedModel:
        """Return the loaded model of a spec; another one that is loaded is let go first."""
        if self._model is None or self._model.spec != spec:
            if self._model is not None:
                self._model = self._instruments = None
                free_memory()
            self._model = load_model(spec, job, memo=store or self._store)
        return self._model

    def loaded(self, asked: _OfModel, job: Job) -> tuple[LoadedModel, Store]:
        """Return the model and the store that a request names."""
        store = self.store(asked.cache_dir)
        return self.model(asked.spec, job, store=store), store

    def ready(self, asked: _OfModel, job: Job) -> tuple[LoadedModel, Instruments, Store]:
        """Return the model, instruments and store that a request names."""
        model, store = self.loaded(asked, job)
        return model, self.instruments(model, store), store

    def forget_model(self) -> None:
        """Let the model go: the next request loads it anew."""
        self._model = self._instruments = None

    def instruments(self, model: LoadedModel, store: Store) -> Instruments:
        """Return the probes and SAEs loaded for this model and store."""
        if self._instruments is None:
            self._instruments = Instruments(model, store)
        return self._instruments

    def close_store(self) -> None:
        """Close the store and forget what was loaded through it."""
        if self._store is not None:
            self._store.close()
        self._store = self._instruments = None


def _load(request: LoadRequest, job: Job, session: Session) -> Loaded:
    started = time.monotonic()
    model, store = session.loaded(request, job)
    if request.template is not None:
        corpus_statistics(model, template_named(request.template), store, job)
    return Loaded(
        model=request.spec.model,
        fingerprint=model.fingerprint,
        architecture=model.architecture,
        layers=model.n_layers,
        d_model=model.d_model,
        dtype=model.dtype_name,
        device=model.device_name,
        seconds=time.monotonic() - started,
        memory_bytes=model.memory_bytes,
        estimate_bytes=model.loading_bytes,
        peak_bytes=model.over_devices(peak_bytes),
    )


def _inspect(request: InspectRequest, job: Job, session: Session) -> Inspected:
    return inspect(request, *session.ready(request, job), job)


def _prefetch(request: PrefetchRequest, job: Job, session: Session) -> Prefetched:
    return prefetch(request, *session.ready(request.like, job), job)


def _fit(request: FitRequest, job: Job, session: Session) -> Fitted:
    from emotui.core.engine.fit import fit_probes

    return fit_probes(request, *session.loaded(request, job), job)


def _fit_labels(request: LabelsFitRequest, job: Job, session: Session) -> LabelsFitted:
    from emotui.core.engine.feature_labels import fit_labels

    model, instruments, store = session.ready(request, job)
    return fit_labels(request, model, store, instruments, job)


def _define(request: DefineRequest, job: Job, session: Session) -> Defined:
    from emotui.core.engine.define import define_emotion

    return define_emotion(request, *session.loaded(request, job), job)


def _import_direction(request: ImportDirectionRequest, job: Job, session: Session) -> Defined:
    from emotui.core.engine.directions import import_direction

    return import_direction(request, *session.loaded(request, job), job)


def _generate(request: GenerateRequest, job: Job, session: Session) -> Generated:
    return speak(request, session.model(request.spec, job), job)


def _where(request: WhereRequest, job: Job, session: Session) -> Located:
    from emotui.core.engine.where import locate

    return locate(request, *session.ready(request, job), job)


def _verify(request: VerifyRequest, job: Job, session: Session) -> Verified:
    from emotui.core.engine.verify import verify

    return verify(request, *session.ready(request.inspect, job), job)


def _consistency(request: ConsistencyRequest, job: Job, session: Session) -> AskedInForms:
    from emotui.core.engine.consistency import ask_in_forms

    return ask_in_forms(request, *session.ready(request.inspect, job), job)


def _terms(request: TermsRequest, job: Job, session: Session) -> TermsScored:
    from emotui.core.engine.text_terms import score_text

    return score_text(request, *session.ready(request.inspect, job), job)


def _without(request: WithoutRequest, job: Job, session: Session) -> MaskedWords:
    from emotui.core.engine.without import without_words

    return without_words(request, *session.ready(request.inspect, job), job)


def _feature(request: FeatureRequest, job: Job, session: Session) -> Featured:
    from emotui.core.engine.feature_detail import detail_feature

    return detail_feature(request, *session.ready(request.inspect, job), job)


def _activate(request: ActivationsRequest, job: Job, session: Session) -> Activated:
    from emotui.core.engine.activate import activate

    return activate(request.inspect, *session.ready(request.inspect, job), job)


def _diagnose(request: DoctorRequest, job: Job, session: Session) -> Diagnosed:
    model = session.model(request.spec, job) if request.spec is not None else None
    try:
        return Diagnosed(facts=tuple(diagnose(model, job)))
    finally:
        session.forget_model()  # its second backend has wrapped it


def _shut_down(_request: ShutdownRequest, _job: Job, session: Session) -> Done:
    session.close_store()
    return Done()


OPERATIONS: dict[type[Operation], Callable[[Any, Job, Session], Outcome]] = {
    LoadRequest: _load,
    InspectRequest: _inspect,
    PrefetchRequest: _prefetch,
    FitRequest: _fit,
    LabelsFitRequest: _fit_labels,
    DefineRequest: _define,
    ImportDirectionRequest: _import_direction,
    GenerateRequest: _generate,
    WhereRequest: _where,
    VerifyRequest: _verify,
    WithoutRequest: _without,
    ConsistencyRequest: _consistency,
    TermsRequest: _terms,
    FeatureRequest: _feature,
    ActivationsRequest: _activate,
    DoctorRequest: _diagnose,
    ShutdownRequest: _shut_down,
}


def handle(operation: Operation, job: Job, session: Session) -> Outcome:
    """Do what is asked; any EmotuiError may be raised."""
    return OPERATIONS[type(operation)](operation, job, session)
