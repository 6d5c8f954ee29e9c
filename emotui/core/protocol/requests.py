"""What may be asked of the engine. Every text in a request is private."""

from __future__ import annotations

import msgspec

from emotui.core.emotions import DEFAULT_LABEL_SET
from emotui.core.text import DEFAULT_TEMPLATE
from emotui.core.wording import DEFAULT_PLACEHOLDER


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
    chosen: tuple[str, ...] = ()
    """Ids of probes that the user named, or their beginnings: where `probes` is filled in, each
    takes the place of the one of its kind, or of its emotion, that would be in force."""
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
    preview: bool = False
    """Fit by ridge regression: much quicker, a little less accurate, and marked so."""
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


class ConsistencyRequest(msgspec.Struct, frozen=True, tag="consistency"):
    """Ask for the emotion of a text in other prompts, orders of the labels, and as a statement."""

    inspect: InspectRequest
    """What reads the text; its edits and SAEs play no part."""


class TermsRequest(msgspec.Struct, frozen=True, tag="terms"):
    """Score a list of emotion words after a text, and with its edits in force."""

    inspect: InspectRequest
    terms: str = ""
    """A file of words, absolute; "" is the bundled table."""
    digest: str = ""
    """Of that file, so that a changed one is read again."""


class WithoutRequest(msgspec.Struct, frozen=True, tag="without"):
    """Read a text again with its emotion words masked, beside other words masked."""

    inspect: InspectRequest
    """What reads the text; its edits and SAEs play no part."""
    emotion: str = ""
    """One of the labels; "" is the likeliest answer but neutral."""
    placeholder: str = DEFAULT_PLACEHOLDER


class FeatureRequest(msgspec.Struct, frozen=True, tag="feature"):
    """Tell everything known of one SAE feature, and of it on a text where there is one."""

    inspect: InspectRequest
    """What reads the text ("" for no text); its edits are in force."""
    feature: str
    """As the edit language writes it, such as `L12/4412`."""
    sae: str = ""
    """The id of its SAE, where several read the place."""
    position: str = ""
    """A position of the edit language; "" is the token where it is most active."""
    corpus: bool = True
    """Whether to tell what it does on the bundled corpus: once a pass over it for each SAE."""


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
    | ConsistencyRequest
    | TermsRequest
    | FeatureRequest
    | ActivationsRequest
    | DoctorRequest
    | ShutdownRequest
)
