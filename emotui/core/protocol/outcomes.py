"""What the engine answers: names of what it put into the cache, and small findings."""

from __future__ import annotations

import msgspec

from emotui.core.details import FeatureDetail
from emotui.core.emotion_terms import TextTerms
from emotui.core.findings import Verification, WithoutWords
from emotui.core.forms import TextConsistency
from emotui.core.records import Where


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


class AskedInForms(msgspec.Struct, frozen=True, tag="asked_in_forms"):
    """What a text is answered in every form."""

    consistency: TextConsistency
    cached: bool
    forwards: int
    seconds: float


class TermsScored(msgspec.Struct, frozen=True, tag="terms_scored"):
    """The words of a list after a text."""

    terms: TextTerms
    cached: bool
    forwards: int
    seconds: float


class MaskedWords(msgspec.Struct, frozen=True, tag="masked_words"):
    """A text was read again without its emotion words; it is kept beside its trace."""

    without: WithoutWords
    cached: bool
    forwards: int
    seconds: float


class Featured(msgspec.Struct, frozen=True, tag="featured"):
    """What is known of a feature."""

    detail: FeatureDetail
    forwards: int


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
    | AskedInForms
    | TermsScored
    | Featured
    | StudyPlanned
    | StudyDone
    | Activated
    | Diagnosed
    | Done
)
