"""The records: everything emotui shows, stores and exports, frozen and typed.

Column records (`Readouts`, `Features`, `Lens`) hold tuples of equal length, one row per index.
Layers count from 0; `resid.L` is the output of block L; layer -1 is the embedding.
Positions index `TextRecord.tokens`. Activations and readouts are float32 values held as floats.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from emotui.core.findings import Verification

SCHEMA: Literal["emotui-trace"] = "emotui-trace"
SCHEMA_VERSION: Literal[1] = 1

Site = Literal["resid", "attn", "mlp", "z"]
"""`z`, the heads' outputs before the output projection, is read by SAEs alone, not by probes."""
ProbeKind = Literal["readout", "token"]
Trust = Literal["trusted", "lexical", "untrusted"]
Mark = Literal["", "outside", "by_construction"]
TokenPart = Literal["special", "before", "text", "after"]
AnswerRule = Literal["first_token", "after_shared_prefix", "whole_label"]

EMBEDDING_LAYER = -1
"""The layer number of the row below layer 0: the (scaled) token embeddings."""


class Token(msgspec.Struct, frozen=True):
    """One token of a run, template and special tokens included."""

    id: int
    string: str
    """The token as decoded text, uncleaned: clean it before it reaches a terminal."""
    start: int | None
    """First character in `TextRecord.raw`; None outside the user's text."""
    end: int | None
    """One past the last character in `TextRecord.raw`; None outside the user's text."""
    special: bool
    part: TokenPart


class TextRecord(msgspec.Struct, frozen=True):
    """The user's text and the tokens of the whole prompt around it."""

    raw: str
    tokens: tuple[Token, ...]
    readout: int
    """Position whose next-token logits are the answer: the last token of the prompt."""
    last: int
    """Position of the last token of the user's text."""


class Run(msgspec.Struct, frozen=True):
    """What computed the trace."""

    model: str
    revision: str | None
    fingerprint: str
    architecture: str
    layers: int
    d_model: int
    dtype: str
    device: str
    attention: str
    template: str
    bos: bool
    layer_base: int
    packages: dict[str, str]
    seed: int
    note: str = ""
    """What whoever made the model says that every reader of its numbers must know."""


class ProbeSummary(msgspec.Struct, frozen=True):
    """What the screen and a reader must know of a probe in force."""

    id: str
    kind: ProbeKind
    label_set: str
    emotions: tuple[str, ...]
    template: str
    data: str
    sites: tuple[Site, ...]
    held_out_accuracy: float | None
    """Best-layer (chosen on dev) balanced accuracy on held-out texts, residual stream; None where
    it was not measured, as of an imported direction."""
    bag_accuracy: float | None
    """Balanced accuracy of the bag-of-embeddings probe on the same held-out texts."""
    marked_above: dict[Site, float]
    """By site, z above which a cell is marked for a text of this length; empty where no neutral
    text was as long."""
    judged_on: str = ""
    """Which texts the accuracies and the trust are about; "" in traces from before it was kept."""


class Readouts(msgspec.Struct, frozen=True):
    """Probe readouts as columns of equal length; layer -1 is the embedding row."""

    probe: tuple[str, ...] = ()
    site: tuple[Site, ...] = ()
    layer: tuple[int, ...] = ()
    position: tuple[int, ...] = ()
    emotion: tuple[str, ...] = ()
    value: tuple[float, ...] = ()
    """The probe's logit for this emotion (dimensionless)."""
    z: tuple[float | None, ...] = ()
    """(value - mean) / sd of the out-of-fold scores of neutral texts; None without them."""
    trust: tuple[Trust, ...] = ()
    mark: tuple[Mark, ...] = ()
    """`outside`: not the kind of position the probe was fitted on, drawn hollow."""


class Features(msgspec.Struct, frozen=True):
    """Active SAE features as columns of equal length."""

    sae: tuple[str, ...] = ()
    site: tuple[Site, ...] = ()
    layer: tuple[int, ...] = ()
    index: tuple[int, ...] = ()
    position: tuple[int, ...] = ()
    activation: tuple[float, ...] = ()
    attribution: tuple[float | None, ...] = ()
    """Estimated change of `Trace.attribution.metric` if this feature alone were ablated here
    (after minus before, in logits); None where it was not computed."""
    label: tuple[str, ...] = ()


class SaeReading(msgspec.Struct, frozen=True):
    """How well one SAE rebuilds this text."""

    sae: str
    site: Site
    layer: int
    width: int
    architecture: str
    variance_explained: float | None
    """Over text tokens (no BOS, special or template tokens); None with fewer than two."""
    mean_active: float
    """Mean number of active features per text token (L0)."""
    source: str


class Answer(msgspec.Struct, frozen=True):
    """The model's own answer among the labels of a set, read at the readout position."""

    labels: dict[str, float]
    """Label to probability; softmax over the labels only, sums to 1."""
    set: str
    rule: AnswerRule
    prompts: int
    """Number of prompts the answer was read from: 1, or one per label."""
    mass: float | None = None
    """Share of the whole next-token distribution that the labels' first tokens hold together;
    None where the rule reads more than the first token."""
    fragments: dict[str, str] = {}
    """Labels of more tokens than the one they are compared by, and that token: it may as well begin
    another word. Empty under `whole_label`, which reads all tokens, and in older traces."""


class LensWords(msgspec.Struct, frozen=True):
    """How the logit lens ranks the labels' words after each token, at each layer.

    Rows go by position, then layer from 0, then label. Empty where the labels are not told apart
    by one token; the readout alone where that token is not their first.
    """

    labels: tuple[str, ...] = ()
    position: tuple[int, ...] = ()
    """Each once, ascending."""
    probability: tuple[float, ...] = ()
    """[positions, layers, labels]: among the labels alone, they add up to 1."""
    rank: tuple[int, ...] = ()
    """[layers, labels] at the readout: how many tokens of the whole vocabulary are likelier."""


class Lens(msgspec.Struct, frozen=True):
    """Logit lens at the readout: final norm recomputed at each layer, soft-capping included.

    Rows are sorted by layer, then rank (0 is the likeliest token). The top layer equals the logits.
    """

    layer: tuple[int, ...] = ()
    rank: tuple[int, ...] = ()
    token: tuple[str, ...] = ()
    probability: tuple[float, ...] = ()
    answers: dict[str, tuple[float, ...]] = {}
    """Label to its probability among the labels, one value per layer from 0; empty where the
    label rule needs more than one prompt."""
    words: LensWords = LensWords()


class Agreement(msgspec.Struct, frozen=True):
    """What is read, what the lens ranks first and what the model answers, layer by layer.

    At the readout, residual stream, layers from 0, as columns.
    """

    layer: tuple[int, ...] = ()
    read: tuple[str | None, ...] = ()
    """The emotion of the readout probe's largest logit; None without one."""
    trust: tuple[Trust | None, ...] = ()
    """That of the probe at the layer."""
    lens: tuple[str | None, ...] = ()
    """The label whose word the logit lens ranks first; None where it is not read."""
    answer: tuple[str | None, ...] = ()
    """The label the model answers: the same at every layer."""
    verdict: tuple[str, ...] = ()
    """`agree`, `disagree` (of those that can be compared, two differ; a probe counts where it is
    trusted) or `` where fewer than two can be compared."""


class WrittenReadings(msgspec.Struct, frozen=True):
    """What the probes read in a text the model wrote, as columns, of the residual stream.

    Each probe is read at the layer it is best at: the token kind as the mean over tokens, the
    readout kind at the readout.
    """

    how: tuple[Literal["while_written", "read_again"], ...] = ()
    """`while_written`: the tokens as the model wrote them, edits in force, all but the last, which
    it never read; `read_again`: the written text alone, in the template, without any edit."""
    probe: tuple[str, ...] = ()
    kind: tuple[ProbeKind, ...] = ()
    layer: tuple[int, ...] = ()
    emotion: tuple[str, ...] = ()
    value: tuple[float, ...] = ()
    """The probe's logit (dimensionless)."""
    z: tuple[float | None, ...] = ()
    """(value - mean) / sd of neutral texts; None where that was not fitted."""


class Written(msgspec.Struct, frozen=True):
    """One text the model wrote after the user's."""

    text: str
    tokens: tuple[int, ...]
    seed: int
    fired: int
    """How many (site, layer, position) places the edits acted on while it was written."""
    answer: Answer | None
    """The model's answer to the written text alone, without edits; None where it has no word."""
    readings: WrittenReadings = WrittenReadings()
    fired_in_prompt: int | None = None
    """How many of `fired` were in the prompt, the others at written tokens; None where it was not
    counted."""


class Generation(msgspec.Struct, frozen=True):
    """What the model wrote after the user's text, the edits in force."""

    new_tokens: int
    """Most tokens asked for; an end-of-text token ends a text earlier."""
    temperature: float
    samples: tuple[Written, ...]
    """One for each seed, counted on from the run's."""


class Writes(msgspec.Struct, frozen=True):
    """What each output wrote towards a metric, as columns: site by site, by layer and position.

    `resid` at layer -1 is the embedding; the other rows are attention and MLP outputs.
    """

    site: tuple[Site, ...] = ()
    layer: tuple[int, ...] = ()
    position: tuple[int, ...] = ()
    value: tuple[float, ...] = ()
    """<output, gradient of the metric>, in logits; positive writes towards the metric."""


class Attribution(msgspec.Struct, frozen=True):
    """The metric that features and outputs were attributed to, by one backward pass."""

    metric: str
    """`answer.EMOTION`: the label's logit minus the mean of the others; `readout.EMOTION@L5`: the
    logit of the readout probe at that layer; "" where there is none."""
    value: float | None
    """The metric on this run; None where there is none."""
    note: str
    """Why there is none, or ""."""
    writes: Writes = Writes()


class Estimate(msgspec.Struct, frozen=True):
    """What attribution estimated of the last edit, an ablation, beside what it did."""

    metric: str
    """`Attribution.metric` of the trace before the edit."""
    estimated: float
    """In logits, like `exact`: the sum over the ablated features and tokens."""
    exact: float
    disagrees: bool
    """Whether they are further apart than half of the larger one."""


class WhereLayers(msgspec.Struct, frozen=True):
    """One emotion of one text, layer by layer from 0, as columns."""

    layer: tuple[int, ...] = ()
    z: tuple[float | None, ...] = ()
    """z of the readout probe at the readout, residual stream; None without one."""
    trust: tuple[Trust | None, ...] = ()
    """That of the probe at the layer; None without one."""
    moved: tuple[float, ...] = ()
    """Median over neutral texts of the share of the answer's margin that goes when the residual
    of this layer at the readout is theirs: 0 none of it, 1 down to the neutral texts' own."""
    control: tuple[float | None, ...] = ()
    """The same where it is taken from other texts of this emotion: median of its size; None
    where the corpus has none."""
    attn: tuple[float, ...] = ()
    """What the attention output at the readout writes towards the margin beyond the neutral texts'
    mean: <output - mean, gradient>, in logits."""
    mlp: tuple[float, ...] = ()
    """The same of the MLP output."""


class WhereSources(msgspec.Struct, frozen=True):
    """What each attention output at the readout writes towards the margin, by source token."""

    layer: tuple[int, ...] = ()
    position: tuple[int, ...] = ()
    value: tuple[float, ...] = ()
    """In logits; over all tokens before the answer they add up to <output, gradient>, less the
    part of a bias."""


class WhereWriter(msgspec.Struct, frozen=True):
    """One attention or MLP output, replaced at the readout and the model run again."""

    site: Site
    layer: int
    write: float
    """As in `WhereLayers`: what was estimated."""
    exact: float
    """How far the margin falls, in logits, with the neutral texts' mean in its place."""
    control: float | None
    """The same with the mean of other texts of this emotion; None where the corpus has none."""
    source: int | None
    """The token of the text that an attention output is mainly written from; None for an MLP."""


class Where(msgspec.Struct, frozen=True):
    """Where in the model an emotion of a text is readable, used and written."""

    emotion: str
    label_set: str
    template: str
    text: TextRecord
    margin: float
    """The emotion's logit minus the mean of the other labels', after this text."""
    neutral_margin: float
    """The same, mean over the neutral texts."""
    neutral_texts: int
    same_texts: int
    """Other texts of this emotion; 0 where the corpus has none."""
    null: float | None
    """z that a neutral text of this length exceeds anywhere one time in twenty; None without."""
    readable_from: int | None
    """First layer of the longest run of layers whose z is above the null; None where none is."""
    used_from: int | None
    """First layer of the longest run in which half the margin moves, and twice the control."""
    layers: WhereLayers
    sources: WhereSources
    """Empty for an architecture whose attention values are not known."""
    writers: tuple[WhereWriter, ...]
    """The outputs with the largest writes, by exact effect."""
    sentence: str


class Control(msgspec.Struct, frozen=True):
    """The same metric under a control edit."""

    name: Literal["matched_features", "random_directions", "other_emotion", "selection"]
    """`selection`, where what was edited was picked from a ranking: the largest effect of as many
    random directions as there were features to pick from, drawn so many times."""
    deltas: tuple[float, ...]
    """For `selection` sizes, without sign: the largest change of any label or any emotion."""
    rank: int | None
    """1 + how many control deltas are at least as large in size; None where it cannot be said."""
    targets: tuple[str, ...]
    note: str
    """Why the control does not apply, or ""."""
    candidates: int | None = None
    """Of `selection`: how many features were active where the edit is, and so the random
    directions that each maximum is the best of."""


class Effect(msgspec.Struct, frozen=True):
    """One number before and after the edits, with its controls.

    `before` is the parent trace, `clean` the root, `delta` is after - before.
    """

    metric: str
    clean: float
    before: float
    after: float
    delta: float
    controls: tuple[Control, ...]
    noise: float
    """Size of what a zero delta changes on the same path."""
    verdict: str


class Intervention(msgspec.Struct, frozen=True):
    """What the edits did to the run as a whole."""

    fired: int
    """How many (site, position) places the hooks changed or were asked to change."""
    kl: float
    """KL(before || after) of the next-token distribution at the readout, in nats."""
    delta_norm: float
    """Largest norm of the delta over positions, divided by the norm of the residual there."""
    selected: bool
    """Whether the feature was picked from a ranking on this same text."""
    readout_layer: int | None
    """The layer whose residual the `readout.*` effects read; None without a readout probe."""
    notes: tuple[str, ...] = ()
    """What else must be known of the last edit, in words."""


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """Everything known of one run of one text."""

    schema: Literal["emotui-trace"] = SCHEMA
    schema_version: Literal[1] = SCHEMA_VERSION
    id: str
    parent: str | None = None
    run: Run
    text: TextRecord
    probes: tuple[ProbeSummary, ...] = ()
    saes: tuple[SaeReading, ...] = ()
    readouts: Readouts = Readouts()
    features: Features = Features()
    answer: Answer | None = None
    lens: Lens | None = None
    agreement: Agreement | None = None
    """None in traces written before it was kept."""
    generation: Generation | None = None
    attribution: Attribution | None = None
    """None where it was not asked for."""
    edits: tuple[str, ...] = ()
    """The edits in force, in the printed form of the edit language."""
    intervention: Intervention | None = None
    effects: tuple[Effect, ...] = ()


class Note(msgspec.Struct, frozen=True):
    """What a user wrote beside a trace."""

    trace: str
    """The id of the trace it is about."""
    time: str
    """When it was written: UTC, ISO 8601."""
    text: str


class TraceDocument(Trace, frozen=True, kw_only=True):
    """What an export holds: a trace, its ancestors, nearest first, and the notes on them."""

    ancestors: tuple[Trace, ...] = ()
    notes: tuple[Note, ...] = ()
    verification: Verification | None = None
    """The last edit repeated on other texts; None where that was not asked for."""
    estimate: Estimate | None = None
    """Of the last edit; None where attribution estimated nothing of it."""
