"""Labels of SAE features: measured over the corpus by a fit, and put on the features of a text.

A feature's label is what was measured (`fear .91*: words`), what was imported, or, without either,
the words it promotes. The selectivity of a feature is measured at the readout of the texts.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch
from torch import Tensor

from emotui.cache import files
from emotui.cache import labels as shelf
from emotui.cache.keys import derived_key, sae_identity
from emotui.cache.label_rows import NEURONPEDIA_IDS
from emotui.cache.labels import Explanation, Measured, label_of
from emotui.core.corpus import load_situations
from emotui.core.engine.capture import Hook, Job, hooked
from emotui.core.engine.collect import batches
from emotui.core.engine.kept import keep_record, kept_record
from emotui.core.engine.labelled import BUNDLED, NEUTRAL, labelled_texts, labels_of
from emotui.core.engine.lens_words import promoted_words, written_by
from emotui.core.engine.selectivity import Halves, Selectivity, SelectivityMeter
from emotui.core.errors import TextError, UsageError
from emotui.core.protocol import LabelsFitRequest, LabelsFitted, LabelsOfSource
from emotui.core.records import Features, Site, TextRecord
from emotui.core.text import template_named

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.engine.instruments import Instruments
    from emotui.core.engine.model import LoadedModel
    from emotui.core.engine.saes import Sae, SaeSet

_LEAST_UNITS = 10  # units of a label in each half below which its areas say little
_ENCODED = 2**24  # feature values encoded at a time: 64 MB in float32
_DENSE = 2**24  # feature values ranked at a time, of the features that were active
_WORD_WORK = {"cpu": 2e10}
_WORD_WORK_ELSEWHERE = 1e13
"""Multiplications spent on the words of one text's features: a second or less."""
_FIT_WORDS = 100  # as many times that in a fit


class _Words(msgspec.Struct, frozen=True):
    words: dict[int, str]


class FeatureLabels:
    """The labels in force for the SAEs of one model, read when first asked for."""

    def __init__(self, model: LoadedModel, store: Store) -> None:
        self._model = model
        self._store = store
        self._read: dict[tuple[str, str], tuple[dict[int, Measured], dict[int, Explanation]]] = {}
        self._words: dict[str, dict[int, str]] = {}

    def named(self, features: Features, sae: Sae, *, readout: int, saes: int) -> Features:
        """Return the features of one SAE with their labels; `saes` are read for this text.

        What an SAE's own folder calls a feature stays, unless something was measured here. The
        words of features without any label are computed once, largest at the readout first, as
        many as a second allows.
        """
        measured, explained = self._labels_of(sae)
        wanted = [
            row
            for row, index in enumerate(features.index)
            if not features.label[row] and not (index in measured and measured[index].words)
        ]
        wanted.sort(key=lambda row: features.position[row] != readout)
        limit = max(1, int(self._affordable() / max(saes, 1)))
        chosen = list(dict.fromkeys(features.index[row] for row in wanted))[:limit]
        words = self._words_of(sae, chosen)
        if not (measured or explained or words):
            return features

        def label(row: int, index: int) -> str:
            known = measured.get(index)
            own = features.label[row] if known is None else ""
            return label_of(known, explained.get(index), words=own or words.get(index, ""))

        labels = tuple(label(row, index) for row, index in enumerate(features.index))
        return msgspec.structs.replace(features, label=labels)

    def of(self, sae: Sae, index: int) -> tuple[Measured | None, Explanation | None]:
        """Return what was measured of a feature, and what somebody else calls it."""
        measured, explained = self._labels_of(sae)
        return measured.get(index), explained.get(index)

    def _affordable(self) -> float:
        work = _WORD_WORK.get(self._model.device.type, _WORD_WORK_ELSEWHERE)
        return work / (2 * self._model.d_model * self._model.vocabulary)

    def _labels_of(self, sae: Sae) -> tuple[dict[int, Measured], dict[int, Explanation]]:
        identity = sae_identity(sae.source, self._store) or sae.source
        state = self._store.labels_state(sae.source, identity, self._model.fingerprint)
        if not state:
            return {}, {}
        place = (sae.id, state)
        if place not in self._read:
            root, own = self._store.root, sae.config.own_name
            path = shelf.measured_path(root, identity, self._model.fingerprint)
            explained = shelf.read_explanations(shelf.explained_path(root, identity=identity), own)
            if sae.config.neuronpedia and identity == sae.source:
                bulk = shelf.explained_path(root, neuronpedia=sae.config.neuronpedia)
                explained = shelf.read_explanations(bulk, "") | explained
            self._read[place] = (shelf.read_measured(path, own), explained)
        return self._read[place]

    def _words_of(self, sae: Sae, indices: Sequence[int]) -> dict[int, str]:
        key = derived_key(self._model.fingerprint, f"lens words:{sae.key}")
        if key not in self._words:
            kept = kept_record(self._store, key, _Words, kind="features")
            self._words[key] = {} if kept is None else dict(kept.words)
        known = self._words[key]
        missing = [index for index in indices if index not in known]
        if missing:
            found = promoted_words(self._model, written_by(self._model, sae, missing))
            known.update(zip(missing, found, strict=True))
            keep_record(self._store, key, _Words(known), kind="features")
        return {index: known[index] for index in indices}


# Measuring


@dataclass(frozen=True)
class _Texts:
    records: list[TextRecord]
    halves: Halves
    emotions: tuple[str, ...]
    name: str


def fit_labels(
    request: LabelsFitRequest,
    model: LoadedModel,
    store: Store,
    instruments: Instruments,
    job: Job,
) -> LabelsFitted:
    """Measure the emotion selectivity of every feature of the SAEs and keep it as their labels.

    The family of p is all features of one source. UsageError where no SAEs are named or the texts
    are too few; SaeError where SAEs do not fit; Cancelled with nothing kept.
    """
    started, before = time.monotonic(), model.forwards
    if not request.saes:
        raise UsageError("No SAEs were named.", todo="Name them: --sae FOLDER or RELEASE[:ID].")
    texts = _texts(request, model, job)
    sets = instruments.saes(request.saes, job, needed=True)
    places = sorted({(sae.site, sae.layer) for saes in sets for sae in saes})
    arrived = _at_readout(model, texts.records, places, job)
    done = []
    for saes in sets:
        identity = sae_identity(saes.source, store) or saes.source
        found, indices = _measure(saes, arrived, texts.halves, model, job, seed=request.seed)
        rows = _rows(saes, found, indices, texts.emotions, model, job)
        job.check()
        path = shelf.measured_path(store.root, identity, model.fingerprint)
        meta = {
            "kind": "measured",
            "source": saes.source,
            "model": model.fingerprint,
            "template": request.template,
            "label_set": request.label_set,
            "data": texts.name,
            "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        if identity == saes.source:  # a release: explanations go by the ids of its SAEs
            ids = {one.config.own_name: one.config.neuronpedia for one in saes}
            known = {place: own for place, own in ids.items() if own}
            meta[NEURONPEDIA_IDS] = msgspec.json.encode(known).decode()
        try:
            shelf.write(path, rows, meta=meta)
        except OSError as error:
            files.write_failed(store.root, error)
        done.append(_summary(saes, found, texts.emotions))
    return LabelsFitted(
        sources=tuple(done),
        texts=len(texts.records),
        data=texts.name,
        forwards=model.forwards - before,
        seconds=time.monotonic() - started,
    )


def _texts(request: LabelsFitRequest, model: LoadedModel, job: Job) -> _Texts:
    """Read the texts in their template, halved by topic (by text, for a file without topics)."""
    rows: list[tuple[str, str, str, str]] = []  # text, emotion, group, unit
    if request.data is None:
        known = labels_of(request.label_set)
        rows = [
            (item.text, item.emotion, item.topic, item.pair)
            for item in load_situations()
            if item.emotion in known
        ]
        name = BUNDLED
    else:
        data = labelled_texts(
            label_set=request.label_set,
            data=request.data,
            text_column=request.text_column,
            label_column=request.label_column,
            seed=request.seed,
            job=job,
        )
        own = [text for text in data.texts if text.split != "other"]
        rows = [(t.text, data.emotions[t.label], t.group, str(n)) for n, t in enumerate(own)]
        name = data.name
    template = template_named(request.template)
    records, kept = [], []
    for row in rows:
        try:
            records.append(model.reader.read(row[0], template, context_length=model.context_length))
        except TextError:
            continue
        kept.append(row)
    emotions = tuple(dict.fromkeys(emotion for _, emotion, _, _ in kept))
    names = {unit: number for number, unit in enumerate(dict.fromkeys(row[3] for row in kept))}
    halves = Halves(
        labels=torch.tensor([emotions.index(row[1]) for row in kept], dtype=torch.long),
        classes=len(emotions),
        neutral=emotions.index(NEUTRAL) if NEUTRAL in emotions else None,
        select=torch.tensor([_is_first(row[2], request.seed) for row in kept], dtype=torch.bool),
        units=torch.tensor([names[row[3]] for row in kept], dtype=torch.long),
    )
    _check_enough(halves, emotions)
    return _Texts(records, halves, emotions, name)


def _is_first(group: str, seed: int) -> bool:
    digest = hashlib.sha256(f"half:{seed}:{group}".encode(errors="surrogatepass")).digest()
    return digest[0] < 128


def _check_enough(halves: Halves, emotions: tuple[str, ...]) -> None:
    for half in (halves.select, ~halves.select):
        for number, emotion in enumerate(emotions):
            chosen = half & (halves.labels == number)
            if len(set(halves.units[chosen].tolist())) < _LEAST_UNITS:
                raise UsageError(
                    "There are too few texts to measure selectivity on.",
                    why=f"Each label needs {_LEAST_UNITS} texts in each half; {emotion} has fewer.",
                    todo="Give more texts, or leave --data out to use the bundled situations.",
                )


def _at_readout(
    model: LoadedModel, texts: Sequence[TextRecord], places: Sequence[tuple[Site, int]], job: Job
) -> dict[tuple[Site, int], Tensor]:
    """Run the texts; for each place their vectors [n, d_model] at the readout, on the CPU."""
    found = {place: torch.empty(len(texts), model.d_model, dtype=model.dtype) for place in places}
    done = 0
    for members in batches([len(text.tokens) for text in texts]):
        job.check()
        job.progress("running the model", done, len(texts))

        def keep(place: tuple[Site, int], members: list[int] = members) -> Hook:
            def function(tensor: Tensor) -> None:
                found[place][members] = tensor[:, -1].detach().to("cpu", model.dtype)

            return Hook(*place, function)

        with hooked(model, [keep(place) for place in places], job=job):
            model.forward([[token.id for token in texts[text].tokens] for text in members])
        done += len(members)
    return found


def _measure(
    saes: SaeSet,
    arrived: dict[tuple[Site, int], Tensor],
    halves: Halves,
    model: LoadedModel,
    job: Job,
    *,
    seed: int,
) -> tuple[Selectivity, list[Tensor]]:
    """Measure all SAEs of a source as one family; the indices of the active features of each."""
    meter = SelectivityMeter(halves, device=model.device, seed=seed)
    indices = []
    for number, sae in enumerate(saes):
        job.progress("measuring the features", number, len(saes))
        h = arrived[sae.site, sae.layer].to(model.device_at(sae.layer))
        indices.append(_add_features(sae, h, meter, job))
    job.progress("measuring the features", len(saes), len(saes))
    return meter.result(), indices


@torch.no_grad()
def _add_features(sae: Sae, h: Tensor, meter: SelectivityMeter, job: Job) -> Tensor:
    """Give the features that are active on any text to the meter; return their indices.

    Never all activations at once: what is not zero is kept, and made dense for some features at
    a time. A feature that is never active has an area of 0.5 and plays no part in a maximum.
    """
    texts, parts = len(h), []
    size = max(1, _ENCODED // sae.width)
    for start in range(0, texts, size):
        job.check()
        features = sae.encode(h[start : start + size])
        row, column = features.nonzero(as_tuple=True)
        parts.append((row + start, column, features[row, column].float()))
    row, column, value = (torch.cat(part) for part in zip(*parts, strict=True))
    order = column.argsort(stable=True)
    row, column, value = row[order], column[order], value[order]
    counts_of_all = torch.bincount(column, minlength=sae.width)
    active = counts_of_all.nonzero().flatten()
    counts = counts_of_all[active]
    begins = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    together = max(1, _DENSE // texts)
    for start in range(0, len(active), together):
        job.check()
        end = min(start + together, len(active))
        inside = slice(int(begins[start]), int(begins[end]))
        dense = torch.zeros(texts, end - start, device=h.device)
        numbers = torch.repeat_interleave(
            torch.arange(end - start, device=h.device), counts[start:end]
        )
        dense[row[inside], numbers] = value[inside]
        meter.add(dense)
    return active.cpu()


def _rows(
    saes: SaeSet,
    found: Selectivity,
    indices: Sequence[Tensor],
    emotions: tuple[str, ...],
    model: LoadedModel,
    job: Job,
) -> list[tuple[str, int, Measured]]:
    """Return a row for every active feature; with words where these are affordable, or named."""
    work = _WORD_WORK.get(model.device.type, _WORD_WORK_ELSEWHERE) * _FIT_WORDS
    every = 2 * model.d_model * model.vocabulary * len(found.area) <= work
    rows: list[tuple[str, int, Measured]] = []
    start = 0
    for number, (sae, active) in enumerate(zip(saes, indices, strict=True)):
        job.check()
        job.progress("reading what the features promote", number, len(saes))
        here = range(start, start + len(active))
        start = here.stop
        index = active.tolist()
        wanted = [at for at, row in enumerate(here) if every or found.named[row]]
        words = promoted_words(model, written_by(model, sae, [index[at] for at in wanted]))
        word_of = dict(zip(wanted, words, strict=True))
        for at, row in enumerate(here):
            measured = Measured(
                emotion=emotions[int(found.emotion[row])],
                area=round(float(found.area[row]), 4),
                confirmed=round(float(found.confirmed[row]), 4),
                p=round(float(found.p[row]), 4),
                breadth=round(float(found.breadth[row]), 4),
                named=bool(found.named[row]),
                specific=bool(found.specific[row]),
                words=word_of.get(at, ""),
            )
            rows.append((sae.config.own_name, index[at], measured))
    return rows


def _summary(saes: SaeSet, found: Selectivity, emotions: tuple[str, ...]) -> LabelsOfSource:
    def counted(which: Tensor) -> dict[str, int]:
        numbers = torch.bincount(found.emotion[which], minlength=len(emotions)).tolist()
        return dict(zip(emotions, numbers, strict=True))

    folder = Path(saes.source).expanduser()
    return LabelsOfSource(
        source=folder.resolve().name if folder.exists() else saes.source,
        saes=len(saes),
        features=sum(sae.width for sae in saes),
        active=len(found.area),
        named=counted(found.named),
        specific=counted(found.specific),
    )
