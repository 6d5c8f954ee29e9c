"""What the terminal process and the engine say to each other.

Frames are a 4-byte big-endian length and a MessagePack body of at most 16 MB. The engine's first
frame is `Hello`. Requests carry an id; every event of the engine names the request it answers.
Arrays never travel: results name traces and entries in the cache.
"""

from __future__ import annotations

from typing import BinaryIO

import msgspec

from emotui.core.emotions import DEFAULT_LABEL_SET
from emotui.core.errors import EngineError
from emotui.core.findings import Verification, WithoutWords
from emotui.core.records import Where, Written
from emotui.core.text import DEFAULT_TEMPLATE
from emotui.core.wording import DEFAULT_PLACEHOLDER

PROTOCOL = "emotui-engine"
PROTOCOL_VERSION = 1
MAX_FRAME_BYTES = 16 * 1024 * 1024
_LENGTH_BYTES = 4


class ModelSpec(msgspec.Struct, frozen=True):
    """Which model, and how it is to be run."""

    model: str
    """A local folder, a hub id, or an alias."""
    revision: str | None = None
    dtype: str = "auto"
    """`auto`: the checkpoint's own, but float32 on CPU and never float16. `int8` and `nf4`: weights
    of that kind, everything else in bfloat16."""
    device: str = "auto"
    offline: bool = False
    device_map: str | None = None
    """`auto`: the layers spread over all GPUs; None: all on `device`."""
    sae_memory: int | None = None
    """Bytes of SAE weights held at a time, at least one SAE; None: what is free."""


class LoadRequest(msgspec.Struct, frozen=True, tag="load"):
    """Load a model; a second load of the same spec does nothing."""

    spec: ModelSpec
    cache_dir: str
    template: str | None = None
    """Also read the corpus statistics that edits under this template need, so that the first
    edit is as quick as the others; None leaves them to the first edit."""


class GenerationSpec(msgspec.Struct, frozen=True):
    """How a text is to be continued; greedy at temperature 0."""

    new_tokens: int
    temperature: float = 0.0
    samples: int = 1
    """How many continuations, with seeds counted on from the request's."""


class InspectRequest(msgspec.Struct, frozen=True, tag="inspect"):
    """Compute the trace of one text, or find it in the cache."""

    spec: ModelSpec
    text: str
    cache_dir: str
    template: str = DEFAULT_TEMPLATE
    label_set: str = DEFAULT_LABEL_SET
    saes: tuple[str, ...] = ()
    """SAE sources: local folders, or SAELens RELEASE[:ID]."""
    probes: tuple[str, ...] = ()
    """Probe ids in force, as stored in the cache of probes; () means no readouts."""
    edits: tuple[str, ...] = ()
    """In force, in the order they were made, as the edit language prints them."""
    selected: bool = False
    """Whether what is edited was picked from a ranking on this text, as on the screen."""
    all_sites: bool = False
    """Keep attention and MLP outputs of every token, not of the readout alone."""
    metric: str = "top"
    """What features are attributed to: `top` (the model's likeliest answer), `answer.EMOTION`,
    `readout.EMOTION` (the readout probe, at its best layer), `readout.EMOTION@L5`, or `none`."""
    generation: GenerationSpec | None = None
    """Continue the text too, the edits in force; None for not."""
    seed: int = 0


class PrefetchRequest(msgspec.Struct, frozen=True, tag="prefetch"):
    """Run many texts in batches, so that the requests for their traces find what they need."""

    like: InspectRequest
    """Those requests, but for their texts."""
    texts: tuple[str, ...]


class FitRequest(msgspec.Struct, frozen=True, tag="fit"):
    """Fit probes of both kinds at every layer and site."""

    spec: ModelSpec
    cache_dir: str
    template: str = DEFAULT_TEMPLATE
    label_set: str = DEFAULT_LABEL_SET
    data: str | None = None
    """A labelled file (TSV, CSV or JSONL); None means the bundled corpus."""
    other: str | None = None
    """A labelled file of another source, to judge the probes on; None for none."""
    text_column: str | None = None
    label_column: str | None = None
    """Columns of `data` (of `other` where it is None); None finds them by name or content."""
    seed: int = 0


class GenerateRequest(msgspec.Struct, frozen=True, tag="generate"):
    """Continue a text; greedy at temperature 0."""

    spec: ModelSpec
    text: str
    new_tokens: int
    temperature: float = 0.0
    seed: int = 0


class WhereRequest(msgspec.Struct, frozen=True, tag="where"):
    """Tell where an emotion of a text is readable, used and written."""

    spec: ModelSpec
    text: str
    cache_dir: str
    emotion: str
    neutral: str | None = None
    """A neutral rewrite of the text to compare with; None takes neutral texts of the corpus."""
    template: str = DEFAULT_TEMPLATE
    label_set: str = DEFAULT_LABEL_SET
    probes: tuple[str, ...] = ()


class StudyRequest(msgspec.Struct, frozen=True, tag="study"):
    """Run one study of a dataset, or go on with it; only the engine of studies answers it."""

    spec: ModelSpec
    cache_dir: str
    study: str
    """A name of the table of studies."""
    out: str
    """The folder of this run; what is finished there is not done again."""
    data: str
    """An absolute path (TSV, CSV or JSONL), or `bundled`."""
    template: str = DEFAULT_TEMPLATE
    label_set: str = DEFAULT_LABEL_SET
    text_column: str | None = None
    label_column: str | None = None
    label_maps: tuple[str, ...] = ()
    """Files that turn what stands in the label column into labels, one after the other."""
    saes: tuple[str, ...] = ()
    limit: int | None = None
    """Most texts; None is the study's own limit."""
    settings: dict[str, str] = {}
    """The study's own options that differ from their defaults."""
    seed: int = 0
    html: bool = False
    """Also write a page with plots."""
    plan: bool = False
    """Only tell what it would take."""


class LabelsFitRequest(msgspec.Struct, frozen=True, tag="fit_labels"):
    """Measure which emotion each feature of SAEs singles out, and keep that as their labels."""

    spec: ModelSpec
    cache_dir: str
    saes: tuple[str, ...]
    template: str = DEFAULT_TEMPLATE
    label_set: str = DEFAULT_LABEL_SET
    data: str | None = None
    """A labelled file; None means the bundled corpus."""
    text_column: str | None = None
    label_column: str | None = None
    seed: int = 0


class VerifyRequest(msgspec.Struct, frozen=True, tag="verify"):
    """Repeat the last edit of a trace on other texts, beside controls."""

    inspect: InspectRequest
    """What gives the trace; its edits are in force."""
    texts: int = 50
    metric: str = ""
    """What the edit is judged by, such as `answer.joy`; "" is its largest measurable change."""


class WithoutRequest(msgspec.Struct, frozen=True, tag="without"):
    """Read a text again with its emotion words masked, beside other words masked."""

    inspect: InspectRequest
    """What reads the text; its edits and SAEs play no part."""
    emotion: str = ""
    """One of the labels; "" is the likeliest answer but neutral."""
    placeholder: str = DEFAULT_PLACEHOLDER


class DefineRequest(msgspec.Struct, frozen=True, tag="define"):
    """Define an emotion from texts, or from a word: a direction that is read as any probe."""

    spec: ModelSpec
    cache_dir: str
    name: str
    texts: tuple[str, ...] = ()
    """At least five that show it; () with `word`."""
    other: tuple[str, ...] = ()
    """Texts of another source that show it, to judge it on: without any it is never trusted, unless
    the corpus has situations of its name."""
    word: str | None = None
    template: str = DEFAULT_TEMPLATE
    label_set: str = DEFAULT_LABEL_SET
    """The set in force, whose labels it may not share."""
    seed: int = 0


class ActivationsRequest(msgspec.Struct, frozen=True, tag="activations"):
    """Put the activations of a run into the cache, all sites of every token, its edits in force."""

    inspect: InspectRequest
    """Of which run."""


class ImportDirectionRequest(msgspec.Struct, frozen=True, tag="import_direction"):
    """Read a llama.cpp control vector as the directions of an emotion."""

    spec: ModelSpec
    cache_dir: str
    name: str
    path: str
    """The GGUF file."""
    template: str = DEFAULT_TEMPLATE
    label_set: str = DEFAULT_LABEL_SET


class DoctorRequest(msgspec.Struct, frozen=True, tag="doctor"):
    """Report versions, devices and, with a model, how hooked and plain runs agree."""

    spec: ModelSpec | None = None


class ShutdownRequest(msgspec.Struct, frozen=True, tag="shutdown"):
    """End the engine after what runs now."""


Operation = (
    LoadRequest
    | InspectRequest
    | PrefetchRequest
    | FitRequest
    | GenerateRequest
    | WhereRequest
    | StudyRequest
    | LabelsFitRequest
    | DefineRequest
    | ImportDirectionRequest
    | VerifyRequest
    | WithoutRequest
    | ActivationsRequest
    | DoctorRequest
    | ShutdownRequest
)


class Request(msgspec.Struct, frozen=True, tag="request"):
    """One thing asked of the engine."""

    id: int
    op: Operation


class CancelRequest(msgspec.Struct, frozen=True, tag="cancel"):
    """Stop request `id`, whether it runs or waits."""

    id: int


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The engine's first frame."""

    protocol: str
    version: int
    pid: int


PER_CENT = 100


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """How far request `id` is; at most ten a second."""

    id: int
    phase: str
    done: int = 0
    total: int = 0
    """0 where the total is not known; `PER_CENT` where it is bytes, which the phase tells."""
    text: str = ""
    """What was written of the text that is being written, uncleaned; "" where none is."""
    written: Written | None = None
    """A text that was just finished; such an event is always sent, at once."""
    notice: bool = False
    """Whether `phase` is a fact to be kept in sight, such as an estimate, not a step."""


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The model is in memory."""

    model: str
    fingerprint: str
    architecture: str
    layers: int
    d_model: int
    dtype: str
    device: str
    seconds: float
    memory_bytes: int
    estimate_bytes: int = 0
    """The peak of memory that was estimated before the weights were read."""
    peak_bytes: int = 0
    """The most the engine ever held: the process, or PyTorch on an accelerator."""


class Inspected(msgspec.Struct, frozen=True, tag="inspected"):
    """The trace is in the cache under `trace_id`."""

    trace_id: str
    cached: bool
    """Whether it already stood there; then `forwards` is 0."""
    forwards: int
    seconds: float
    estimate_bytes: int = 0
    """The peak of memory that was estimated; 0 where nothing was computed."""
    peak_bytes: int = 0
    """The most the engine ever held: the process, or PyTorch on an accelerator."""


class Prefetched(msgspec.Struct, frozen=True, tag="prefetched"):
    """Activations and gradients of texts are in the cache."""

    texts: int
    """How many went through the model now: not those that cannot be read or stood there."""
    forwards: int
    """A batch counts once."""
    seconds: float


class Fitted(msgspec.Struct, frozen=True, tag="fitted"):
    """Probes were fitted and stored; ids of the readout and the token probe."""

    probe_ids: tuple[str, ...]
    forwards: int
    seconds: float


class LabelsOfSource(msgspec.Struct, frozen=True):
    """What was measured of the features of one source of SAEs."""

    source: str
    saes: int
    features: int
    active: int
    """Features that were active at the readout of any text: those that were measured."""
    named: dict[str, int]
    """By emotion, the features whose area has a family-wise p < 0.05 and was confirmed."""
    specific: dict[str, int]
    """Those of them that are specific to it."""


class LabelsFitted(msgspec.Struct, frozen=True, tag="labels_fitted"):
    """Selectivity was measured and kept; one entry for each source."""

    sources: tuple[LabelsOfSource, ...]
    texts: int
    data: str
    forwards: int
    seconds: float


class Defined(msgspec.Struct, frozen=True, tag="defined"):
    """An emotion was defined and stored as a readout and a token probe."""

    name: str
    probe_ids: tuple[str, ...]
    best: tuple[tuple[int, float, str], ...]
    """By kind: the layer of the residual stream with the best balanced accuracy on texts left out
    in turn, that accuracy, and the trust there."""
    texts: int
    data: str
    """What it was defined from, and for a word how the tokenizer reads it."""
    judged_on: str
    forwards: int
    seconds: float


class Generated(msgspec.Struct, frozen=True, tag="generated"):
    """What the model wrote after the prompt."""

    text: str
    tokens: tuple[int, ...]


class Located(msgspec.Struct, frozen=True, tag="located"):
    """Where an emotion of a text is."""

    where: Where
    forwards: int


class StudyPlanned(msgspec.Struct, frozen=True, tag="study_planned"):
    """What a study would take, from a first batch that was timed."""

    texts: int
    seconds: float
    disk_bytes: int
    memory_bytes: int
    """Beside the model's."""
    notes: tuple[str, ...]
    """What must be known before it starts: the prompt, the labels, what is left out."""


class StudyDone(msgspec.Struct, frozen=True, tag="study_done"):
    """The files of a study are in its folder."""

    out: str
    sentences: tuple[str, ...]
    """The results in words."""
    seconds: float


class Verified(msgspec.Struct, frozen=True, tag="verified"):
    """The last edit of a trace was repeated on other texts; it is kept beside the trace."""

    trace_id: str
    verification: Verification
    cached: bool
    forwards: int
    seconds: float


class MaskedWords(msgspec.Struct, frozen=True, tag="masked_words"):
    """A text was read again without its emotion words; it is kept beside its trace."""

    without: WithoutWords
    cached: bool
    forwards: int
    seconds: float


class Activated(msgspec.Struct, frozen=True, tag="activated"):
    """The activations are in the cache, a safetensors entry: `resid` [layers + 1, tokens, width]
    from layer -1 on, `attn` and `mlp` [layers, tokens, width]."""

    key: str
    forwards: int


class Diagnosed(msgspec.Struct, frozen=True, tag="diagnosed"):
    """Facts for `emotui doctor`, in the order to show them: name, value, good or not."""

    facts: tuple[tuple[str, str, bool], ...]


class Done(msgspec.Struct, frozen=True, tag="done"):
    """Nothing to report beyond that it is done."""


Outcome = (
    Loaded
    | Inspected
    | Prefetched
    | Fitted
    | LabelsFitted
    | Defined
    | Generated
    | Located
    | Verified
    | MaskedWords
    | StudyPlanned
    | StudyDone
    | Activated
    | Diagnosed
    | Done
)


class Result(msgspec.Struct, frozen=True, tag="result"):
    """Request `id` is done."""

    id: int
    value: Outcome


class Failure(msgspec.Struct, frozen=True, tag="error"):
    """Request `id` failed; `error` is `EmotuiError.to_wire`."""

    id: int
    error: dict[str, str]


Event = Hello | Progress | Result | Failure
Incoming = Request | CancelRequest

_ENCODER = msgspec.msgpack.Encoder()
_EVENTS = msgspec.msgpack.Decoder(Event)
_INCOMING = msgspec.msgpack.Decoder(Incoming)


def as_frame(message: Event | Incoming) -> bytes:
    """Return the bytes of one message. Raises as `write_frame`, but for OSError."""
    body = _ENCODER.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise EngineError(
            f"A message of {len(body):,} bytes is too large for the engine.",
            why=f"Messages may hold {MAX_FRAME_BYTES:,} bytes.",
            todo="Use a shorter text.",
        )
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def write_frame(stream: BinaryIO, message: Event | Incoming) -> None:
    """Write one message, whole, to a blocking stream, buffered or raw, and flush it.

    Raises EngineError for a message over `MAX_FRAME_BYTES`, UnicodeEncodeError for one with a
    lone surrogate (in both cases nothing was written), OSError where the stream is broken.
    """
    left = memoryview(as_frame(message))
    while left:
        left = left[stream.write(left) or 0 :]
    stream.flush()


def _read_exactly(stream: BinaryIO, count: int) -> bytes:
    parts = []
    while count:
        part = stream.read(count)
        if not part:
            break
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _read_body(stream: BinaryIO) -> bytes | None:
    head = _read_exactly(stream, _LENGTH_BYTES)
    if not head:
        return None
    length = int.from_bytes(head, "big")
    if len(head) == _LENGTH_BYTES and length > MAX_FRAME_BYTES:
        raise EngineError(
            f"A message claimed {length:,} bytes.",
            why=f"Messages may hold {MAX_FRAME_BYTES:,} bytes: this is not the engine's protocol.",
        )
    body = _read_exactly(stream, length) if len(head) == _LENGTH_BYTES else b""
    if len(head) < _LENGTH_BYTES or len(body) < length:
        raise EngineError("A message ended before its announced length.")
    return body


def read_event(stream: BinaryIO) -> Event | None:
    """Read what the engine says next; None at the end of the stream, between two messages.

    Raises EngineError for a message that is cut short, too large or not of this protocol.
    """
    body = _read_body(stream)
    try:
        return None if body is None else _EVENTS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise EngineError("The engine sent a message that cannot be read.") from problem


def read_incoming(stream: BinaryIO) -> Incoming | None:
    """Read what the terminal process asks next; otherwise as `read_event`."""
    body = _read_body(stream)
    try:
        return None if body is None else _INCOMING.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise EngineError("The engine was sent a message that cannot be read.") from problem
