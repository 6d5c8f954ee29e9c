"""emotui from Python: sessions that ask an engine, and traces with their arrays.

    import emotui

    with emotui.open() as session:
        trace = session.inspect("My dog died last week.", edits=["ablate L6/222 at readout"])
        trace.activations("resid", 5)

As everywhere, the model runs in a process of its own and everything goes through the cache; this
process imports no torch. Records are those of `emotui.core.records`; arrays are numpy's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from os import PathLike, fspath
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from emotui.cache.demo import demo_saes, demo_spec, is_demo
from emotui.cache.lineage import ancestors_of
from emotui.cache.located import where_request
from emotui.cache.prepare import prepare
from emotui.cache.probes import ProbeCard
from emotui.cache.recipes import with_recipes
from emotui.cache.store import Store
from emotui.commands.common import cache_for
from emotui.commands.models import sae_sources
from emotui.core.arguments import require, require_lines
from emotui.core.client import EngineClient
from emotui.core.edits import parse_edit, recipe_named
from emotui.core.emotions import DEFAULT_LABEL_SET
from emotui.core.errors import CacheError, EngineError, UsageError
from emotui.core.export.json import document_bytes
from emotui.core.protocol import (
    Activated,
    ActivationsRequest,
    FitRequest,
    Fitted,
    GenerationSpec,
    Inspected,
    InspectRequest,
    Loaded,
    LoadRequest,
    Located,
    ModelSpec,
    Operation,
    Outcome,
    Progress,
)
from emotui.core.records import EMBEDDING_LAYER, Effect, Site, Trace, Where
from emotui.core.text import DEFAULT_TEMPLATE, clean

Columns = dict[str, NDArray[Any]]
Told = Callable[[str, int, int], None]
"""Gets what is being done, how far it is, and of how many (0 where that is not known)."""

_SITES: tuple[Site, ...] = ("resid", "attn", "mlp")
_LENGTH_BYTES = 8


def open_session(
    model: str | Path | None = None,
    *,
    sae: str | Sequence[str] = (),
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    template: str = DEFAULT_TEMPLATE,
    label_set: str = DEFAULT_LABEL_SET,
    offline: bool = False,
    private: bool = False,
    cache_dir: str | Path | None = None,
    on_progress: Told | None = None,
) -> Session:
    """Return a session with a model; the engine starts with the first question.

    `model` is a folder, a hub id or an alias; None is the bundled demo. `sae` names SAE sources
    (folders, or SAELens RELEASE[:ID]; "none" for none); () is the model's default. `private`
    keeps nothing on the disk. Raises UsageError where no demo is bundled, and for an argument of
    the wrong type.
    """
    require("model", model, str, PathLike, type(None))
    if not isinstance(sae, str):
        require_lines("sae", sae)
    for name, value in {"device": device, "dtype": dtype}.items():
        require(name, value, str)
    require("template", template, str)
    require("label_set", label_set, str)
    require("revision", revision, str, type(None))
    require("offline", offline, bool)
    require("private", private, bool)
    require("cache_dir", cache_dir, str, PathLike, type(None))
    named = (sae,) if isinstance(sae, str) else tuple(sae)
    if model is None:
        spec = demo_spec(dtype=dtype, device=device)
        named = named or demo_saes()
    else:
        spec = ModelSpec(fspath(model), revision, dtype, device, offline)
    folder = None if cache_dir is None else Path(cache_dir)
    sources = sae_sources(spec.model, named, offline=offline, cache_dir=folder)
    request = InspectRequest(
        spec=spec, text="", cache_dir="", template=template, label_set=label_set, saes=sources
    )
    return Session(request, cache_dir=folder, private=private, on_progress=on_progress)


class Session:
    """A model, its cache and an engine; to be closed, or used as a context manager."""

    def __init__(
        self,
        request: InspectRequest,
        *,
        cache_dir: Path | None,
        private: bool,
        on_progress: Told | None = None,
    ) -> None:
        self._stack = ExitStack()
        root = self._stack.enter_context(
            cache_for(cache_dir, private=private, demo=is_demo(request.spec))
        )
        self._store = self._stack.enter_context(Store.open(root))
        self._client = self._stack.enter_context(EngineClient(root, offline=request.spec.offline))
        self._request = msgspec.structs.replace(request, cache_dir=str(root))
        self._fingerprint: str | None = None
        self._on_progress = on_progress
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the engine; what was computed stays in the cache."""
        self._closed = True
        self._stack.close()

    @property
    def cache_dir(self) -> Path:
        """Where traces are kept."""
        return self._store.root

    def inspect(
        self,
        text: str,
        *,
        edits: Sequence[str] = (),
        selected: bool = False,
        metric: str = "top",
        seed: int = 0,
    ) -> SessionTrace:
        """Return the trace of a text, from the cache where it is.

        `edits` are lines of the edit language, in order; features without `at` at all tokens.
        `selected` says that what is edited was picked from a ranking on this text. `metric` is
        what features are attributed to: `top`, `answer.EMOTION`, `readout.EMOTION[@L5]`, `none`.
        Raises UsageError for an argument of the wrong type, TextError, EditError, and what the
        model or its SAEs raise.
        """
        require("text", text, str)
        require("selected", selected, bool)
        require("metric", metric, str)
        require("seed", seed, int)
        return self._trace(
            msgspec.structs.replace(
                self._request,
                text=text,
                edits=self._lines(edits),
                selected=selected and bool(edits),
                metric=metric,
                seed=seed,
            )
        )

    def generate(
        self,
        text: str,
        *,
        new_tokens: int = 40,
        temperature: float = 0.0,
        samples: int = 1,
        edits: Sequence[str] = (),
        seed: int = 0,
    ) -> SessionTrace:
        """Return the trace with what the model writes after a text, `record.generation`.

        The edits are in force at every token that is written. Greedy at temperature 0.
        Raises as `inspect` does.
        """
        require("text", text, str)
        require("new_tokens", new_tokens, int)
        require("temperature", temperature, float)
        require("samples", samples, int)
        require("seed", seed, int)
        return self._trace(
            msgspec.structs.replace(
                self._request,
                text=text,
                edits=self._lines(edits),
                metric="none",
                generation=GenerationSpec(new_tokens, temperature, samples),
                seed=seed,
            )
        )

    def where(self, text: str, emotion: str, *, neutral: str | None = None) -> Where:
        """Return at which layers an emotion of a text is readable, used and written.

        `neutral` is a rewrite of the text without the emotion; None takes neutral texts of the
        bundled corpus. Raises UsageError for an emotion that no probe reads.
        """
        require("text", text, str)
        require("emotion", emotion, str)
        require("neutral", neutral, str, type(None))
        request = self._prepared(msgspec.structs.replace(self._request, text=text))
        done = self._ask(where_request(request, emotion, neutral))
        assert isinstance(done, Located)
        return done.where

    def fit_probes(
        self,
        data: str | Path | None = None,
        *,
        text_column: str | None = None,
        label_column: str | None = None,
        seed: int = 0,
    ) -> tuple[ProbeCard, ...]:
        """Fit probes at every layer and site; later traces of this model are read with them.

        `data` is a labelled TSV, CSV or JSONL file; None is the bundled corpus. Returns the cards
        of the readout and the token probe.
        """
        require("data", data, str, PathLike, type(None))
        require("text_column", text_column, str, type(None))
        require("label_column", label_column, str, type(None))
        require("seed", seed, int)
        done = self._ask(
            FitRequest(
                spec=self._request.spec,
                cache_dir=self._request.cache_dir,
                template=self._request.template,
                label_set=self._request.label_set,
                data=None if data is None else str(Path(data).expanduser().absolute()),
                text_column=text_column,
                label_column=label_column,
                seed=seed,
            )
        )
        assert isinstance(done, Fitted)
        cards = {card.id: card for card in self._store.probes(self.fingerprint)}
        return tuple(cards[probe] for probe in done.probe_ids)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the model; the first look may load it."""
        if self._closed:
            raise EngineError("The session was closed.", todo="Open another: emotui.open.")
        if self._fingerprint is None:
            known = prepare(self._request, self._store).fingerprint
            if known is None:
                loaded = self._ask(LoadRequest(self._request.spec, self._request.cache_dir))
                assert isinstance(loaded, Loaded)
                known = loaded.fingerprint
            self._fingerprint = known
        return self._fingerprint

    def _lines(self, edits: Sequence[str]) -> tuple[str, ...]:
        require_lines("edits", edits)
        lines = tuple(
            line.strip() if recipe_named(line) else str(parse_edit(line)) for line in edits
        )
        if not any(line.startswith("@") for line in lines):
            return lines
        return with_recipes(lines, self._store.root, self.fingerprint)

    def _prepared(self, request: InspectRequest) -> InspectRequest:
        return prepare(request, self._store, fingerprint=self.fingerprint).request

    def _trace(self, request: InspectRequest) -> SessionTrace:
        prepared = prepare(request, self._store, fingerprint=self.fingerprint)
        found = prepared.trace_id
        if found is None:
            done = self._ask(prepared.request)
            assert isinstance(done, Inspected)
            found = done.trace_id
        return SessionTrace(self._store.get_trace(found), prepared.request, self)

    def _ask(self, operation: Operation) -> Outcome:
        """Wait for the engine's answer; ctrl+c cancels the request."""
        if self._closed:
            raise EngineError("The session was closed.", todo="Open another: emotui.open.")
        pending = self._client.submit(operation)
        told = self._on_progress
        if told is not None:
            pending.on_progress(lambda event: _tell(told, event))
        try:
            return pending.result()
        except KeyboardInterrupt:
            pending.cancel()
            raise

    def _activations(self, request: InspectRequest) -> bytes:
        done = self._ask(ActivationsRequest(request))
        assert isinstance(done, Activated)
        payload = self._store.get_entry("activations", done.key)
        if payload is None:
            raise CacheError(
                "The activations were no longer in the cache.",
                why="The engine had just put them there.",
                todo="Look at its size: emotui cache show.",
            )
        return payload


class SessionTrace:
    """A trace, its columns as arrays, and the activations of its run while the session is open."""

    def __init__(self, record: Trace, request: InspectRequest, session: Session) -> None:
        self.record = record
        """The trace as it is kept: see `emotui.core.records.Trace`."""
        self._request = request
        self._session = session
        self._arrays: Mapping[str, NDArray[np.float32]] | None = None

    def __repr__(self) -> str:
        # Without the text, which is private.
        return f"<emotui trace {self.record.id}, {len(self.record.edits)} edits>"

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens of the whole prompt as text; positions index them."""
        return tuple(token.string for token in self.record.text.tokens)

    @property
    def answer(self) -> dict[str, float]:
        """Label to probability; {} where the trace has no answer."""
        return {} if self.record.answer is None else dict(self.record.answer.labels)

    @property
    def effects(self) -> tuple[Effect, ...]:
        """What the last edit did, each metric beside its controls."""
        return self.record.effects

    @property
    def readouts(self) -> Columns:
        """The columns of `record.readouts` as arrays of equal length; NaN for a z there is not."""
        return _columns(self.record.readouts)

    @property
    def features(self) -> Columns:
        """The columns of `record.features`; NaN where nothing was attributed."""
        return _columns(self.record.features)

    def activations(self, site: Site, layer: int) -> NDArray[np.float32]:
        """Return the activations of a site and layer, [tokens, d_model], float32.

        `resid` is the output of a block, from layer -1 (the embedding) on; `attn` and `mlp` are
        what is added to the residual. The trace's edits are in force. The first look may run the
        model once. Raises UsageError for a site or layer that is not there, and EngineError where
        the session was closed.
        """
        require("layer", layer, int)
        lowest = EMBEDDING_LAYER if site == "resid" else 0
        highest = self.record.run.layers - 1
        if site not in _SITES or not lowest <= layer <= highest:
            raise UsageError(
                f"There are no activations {clean(str(site))}.{layer}.",
                why=f"The sites are {', '.join(_SITES)}; layers {lowest} to {highest}.",
            )
        if self._arrays is None:
            self._arrays = _float_arrays(self._session._activations(self._request))
        found: NDArray[np.float32] = self._arrays[site][layer - lowest]
        return found

    def ancestors(self) -> tuple[Trace, ...]:
        """Return the traces before the last edit, nearest first."""
        return tuple(ancestors_of(self.record, self._session._store))

    def to_json(self, *, all_tokens: bool = False) -> bytes:
        """Return the document that `emotui inspect --json` prints."""
        return document_bytes(self.record, ancestors=self.ancestors(), all_tokens=all_tokens)


def _tell(told: Told, event: Progress) -> None:
    told(event.phase, event.done, event.total)


def _columns(record: msgspec.Struct) -> Columns:
    return {name: _array(getattr(record, name)) for name in record.__struct_fields__}


def _array(values: tuple[Any, ...]) -> NDArray[Any]:
    if None in values:
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return np.array(values)


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def _float_arrays(payload: bytes) -> dict[str, NDArray[np.float32]]:
    """Return the tensors of the sites in a safetensors document, bfloat16 too."""
    length = int.from_bytes(payload[:_LENGTH_BYTES], "little")
    start = _LENGTH_BYTES + length
    header = msgspec.json.decode(payload[_LENGTH_BYTES:start], type=dict[str, msgspec.Raw])
    arrays: dict[str, NDArray[np.float32]] = {}
    for site in _SITES:
        entry = msgspec.json.decode(header[site], type=_Entry)
        begin, end = entry.data_offsets
        data = payload[start + begin : start + end]
        if entry.dtype == "BF16":
            # Which numpy lacks: the upper half of a float32.
            values = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
        else:
            values = np.frombuffer(data, {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[entry.dtype])
        arrays[site] = values.astype(np.float32).reshape(entry.shape)
    return arrays
