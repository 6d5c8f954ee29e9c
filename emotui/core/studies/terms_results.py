"""What the study of emotion words finds; None stands where a number is not defined."""

from __future__ import annotations

import msgspec


class TermsRow(msgspec.Struct, frozen=True, kw_only=True):
    """Predicted words against the true ones, in one condition."""

    condition: str
    readout: str
    """`likeliest`, `corrected` (for how frequent a word is), or `written`."""
    control: bool
    """Whether it is what the others must be held against."""
    examples: int
    invalid: float | None
    """Share of written answers that are no word of the table; they count as wrong."""
    acc_l: float
    """Share with the very word."""
    acc_v: float
    """Share with the same set of basic emotions; a word outside the table has none."""
    f1_v: float
    """Mean over examples of F1 of the two sets; 0 where both are empty."""
    f1_low: float | None
    """95 % bootstrap interval over texts."""
    f1_high: float | None
    js: float | None
    """Mean Jensen-Shannon divergence in nats of the two compositions, where both are defined."""
    js_low: float | None = None
    """95 % bootstrap interval of it over texts, as that of F1."""
    js_high: float | None = None
    js_examples: int
    p_true: float | None
    """Mean probability of the true word over the list; None where words are written."""
    d: float | None
    """Cohen's d of F1 against the first condition, paired; None for the first."""
    p: float | None
    """Wilcoxon signed-rank of the same, Holm over conditions."""


class ProfileRow(msgspec.Struct, frozen=True, kw_only=True):
    """What the words after texts of one kind are made of, mean over texts."""

    condition: str
    readout: str
    term: str
    """The true word; "all" for all texts."""
    texts: int
    weights: tuple[float, ...]
    """Of Plutchik's eight."""
    undecomposed: float | None
    """Share of words made of none; None where words are written."""
    entropy: float | None


class LayerRow(msgspec.Struct, frozen=True, kw_only=True):
    """What the logit lens says at one layer."""

    layer: int
    weights: tuple[float, ...]
    js_final: float
    """Mean Jensen-Shannon divergence to the composition of the last layer."""
    f1_v: float | None
    """Of the likeliest word there against the true one."""


class Confusion(msgspec.Struct, frozen=True, kw_only=True):
    """A true word and another that was predicted."""

    condition: str
    readout: str
    term: str
    predicted: str
    texts: int
    share: float
    """Of the texts with this true word."""


class Worst(msgspec.Struct, frozen=True, kw_only=True):
    """One text that was predicted badly; its id, never its words."""

    id: str
    row: int
    term: str
    predicted: str
    f1_v: float
    js: float | None


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """What an edit did to the composition, over texts."""

    edit: str
    texts: int
    js: float
    """Mean divergence of the composition with it from that without."""
    weights: tuple[float, ...]
    """Mean change of each of the eight, of the normalised composition."""
    changed: float
    """Share of texts with another likeliest word."""


class TermsResult(msgspec.Struct, frozen=True, kw_only=True):
    """Emotion words predicted after texts."""

    texts: int
    examples: int
    """Masks, or texts without one."""
    unreadable: dict[str, int]
    """Condition to number of examples too long for the model in it."""
    table: str
    table_digest: str
    words: int
    """That are scored."""
    unknown: int
    """Examples whose true word is not in the table: it is made of nothing known."""
    empty: int = 0
    """Examples whose true word is in the table and stands for none of the eight."""
    without_term: int
    """Examples without a true word, which count in no accuracy."""
    rule: str
    """How words are told apart."""
    rows: tuple[TermsRow, ...]
    profiles: tuple[ProfileRow, ...]
    layers: tuple[LayerRow, ...]
    layer_texts: int
    confusions: tuple[Confusion, ...]
    worst: tuple[Worst, ...]
    moved: Moved | None
    prompts: dict[str, str]
    """Condition to what stands around a text, without the examples."""
