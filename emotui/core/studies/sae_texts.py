"""Features over texts: what the studies of SAEs read, kept sparse on disk.

For each text and SAE: the largest activation of every feature over the tokens of the text itself
(no template, no special tokens), whether that token is part of an emotion word, the activations
at the readout, and which features fired on which token. No residual of a content token is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import torch
from torch import Tensor

from emotui.core.engine.capture import Hook
from emotui.core.engine.collect import batches
from emotui.core.engine.labelled import draw
from emotui.core.records import TextRecord
from emotui.core.studies.common.chunks import Chunks
from emotui.core.studies.common.dataset import Item
from emotui.core.studies.common.readings import run_batch
from emotui.core.wording import emotion_words

if TYPE_CHECKING:
    from emotui.core.engine.saes import Sae
    from emotui.core.studies.common.running import Running

POSITIVE = frozenset(
    (
        *("admiration", "amusement", "approval", "caring", "desire", "excitement", "gratitude"),
        *("joy", "love", "optimism", "pride", "relief", "trust"),
    )
)
NEGATIVE = frozenset(
    (
        *("anger", "annoyance", "boredom", "disappointment", "disapproval", "disgust"),
        *("embarrassment", "fear", "grief", "guilt", "nervousness", "remorse", "sadness", "shame"),
    )
)
"""The labels of known valence; surprise, anticipation and the like have none."""
NEUTRAL = "neutral"
LEAST_EXPLAINED = 0.7
"""Share of variance explained below which an SAE is marked (METHODS 2.1)."""
_TEXTS_AT_ONCE = 32


class SaeFit(msgspec.Struct, frozen=True, kw_only=True):
    """How well an SAE rebuilds these texts; without BOS, special and template tokens."""

    sae: str
    layer: int
    explained: float | None
    """Share of variance; None where the texts have no spread."""
    active: float
    """Mean number of active features on a token."""


@dataclass(frozen=True)
class FeatureTexts:
    """The features of n texts, read from disk one SAE at a time."""

    chunks: Chunks
    saes: tuple[Sae, ...]
    index: Tensor
    """[n], long: `Item.index` of each, ascending."""
    gold: Tensor
    """[n], long: its label as an index of `Dataset.labels`; -1 without one."""

    def largest(self, number: int) -> Tensor:
        """Return the largest activation over the text's own tokens, [n, width], float32."""
        return self._dense(number, "largest")

    def on_words(self, number: int) -> Tensor:
        """Return whether that largest activation is on an emotion word, [n, width], bool."""
        return self._dense(number, "largest", "word").bool()

    def at_readout(self, number: int) -> Tensor:
        """Return the activations at the readout, [n, width], float32."""
        return self._dense(number, "readout")

    def events(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return text (a row), feature and token id of each activation on a content token."""
        rows = self.chunks.joined(f"{number} events row")
        feature = self.chunks.joined(f"{number} events feature")
        token = self.chunks.joined(f"{number} events token")
        return torch.searchsorted(self.index, rows.long()), feature.long(), token.long()

    def fits(self) -> tuple[SaeFit, ...]:
        """Return how well each SAE rebuilds the texts."""
        found = []
        for number, sae in enumerate(self.saes):
            error, spread, active, tokens = (
                float(column) for column in self.chunks.joined(f"{number} fit").sum(dim=0)
            )
            found.append(
                SaeFit(
                    sae=sae.id,
                    layer=sae.layer,
                    explained=1 - error / spread if spread > 0 else None,
                    active=active / max(tokens, 1),
                )
            )
        return tuple(found)

    def _dense(self, number: int, kind: str, value: str = "value") -> Tensor:
        rows = self.chunks.joined(f"{number} {kind} row").long()
        feature = self.chunks.joined(f"{number} {kind} feature").long()
        found = torch.zeros(len(self.index), self.saes[number].width)
        found[torch.searchsorted(self.index, rows), feature] = self.chunks.joined(
            f"{number} {kind} {value}"
        ).float()
        return found


def feature_texts(study: Running, *, events: bool = False) -> FeatureTexts:
    """Encode every text of the dataset with every SAE that reads the width of the model."""
    saes = residual_saes(study)
    chunks = study.text_stage(
        "features",
        lambda items: _encoded(study, saes, items, events=events),
        size=_TEXTS_AT_ONCE,
        phase="encoding the texts",
    )
    return FeatureTexts(chunks, saes, chunks.joined("index"), chunks.joined("gold"))


def residual_saes(study: Running) -> tuple[Sae, ...]:
    """Return the SAEs of the residual stream and of what attention and MLP add, by layer."""
    found = [sae for sae in study.saes if sae.site in ("resid", "attn", "mlp")]
    return tuple(sorted(found, key=lambda sae: (sae.layer, sae.site, sae.id)))


def feature_bytes(study: Running, *, events: bool) -> int:
    """Return how much disk `feature_texts` takes, about: 100 features at 40 tokens."""
    per_text = 100 * (40 * (12 if events else 0) + 20 * 13 + 12)
    return study.run.dataset.texts * len(residual_saes(study)) * per_text


def _encoded(
    study: Running, saes: Sequence[Sae], items: Sequence[Item], *, events: bool
) -> dict[str, Tensor]:
    found = study.readable(items)
    columns: dict[str, list[Tensor]] = {}

    def put(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
        columns.setdefault(name, []).append(tensor.to("cpu", dtype).flatten())

    sums = torch.zeros(len(saes), len(found), 4, dtype=torch.float64)
    for members in batches([len(text.tokens) for _, text in found]):
        prompts = [[token.id for token in found[one][1].tokens] for one in members]
        watching = [
            Hook(sae.site, sae.layer, _watch(sae, number, members, found, put, sums, events=events))
            for number, sae in enumerate(saes)
        ]
        run_batch(study.model, prompts, study.tokens, watching=watching, job=study.job)
    names = [
        f"{number} {kind} {column}"
        for number in range(len(saes))
        for kind, fields in _COLUMNS.items()
        for column in fields
        if events or kind != "events"
    ]
    none = torch.zeros(0, dtype=torch.int32)
    tensors = {name: torch.cat(columns[name]) if name in columns else none for name in names}
    tensors |= {f"{number} fit": sums[number] for number in range(len(saes))}
    tensors["index"] = torch.tensor([item.index for item, _ in found], dtype=torch.long)
    tensors["gold"] = torch.tensor([item.label for item, _ in found], dtype=torch.long)
    return tensors


_COLUMNS = {
    "largest": ("row", "feature", "value", "word"),
    "readout": ("row", "feature", "value"),
    "events": ("row", "feature", "token"),
}


def _watch(
    sae: Sae,
    number: int,
    members: Sequence[int],
    found: Sequence[tuple[Item, TextRecord]],
    put: Callable[[str, Tensor, torch.dtype], None],
    sums: Tensor,
    *,
    events: bool,
) -> Callable[[Tensor], None]:
    def function(tensor: Tensor) -> None:
        for row, member in enumerate(members):
            item, text = found[member]
            inside = _content(text)
            h = tensor[row].detach()
            f = sae.encode(h[[*inside, text.readout]]).float()
            own, last = f[:-1], f[-1]
            if inside:
                best, token = own.max(dim=0)
                fired = (best > 0).nonzero().flatten()
                words = _emotion_tokens(text, inside).to(token.device)
                _put_rows(put, f"{number} largest", item.index, fired, best[fired])
                put(f"{number} largest word", words[token[fired]], torch.uint8)
                sums[number, member] = _fit(sae, h[inside], own)
            fired = (last > 0).nonzero().flatten()
            _put_rows(put, f"{number} readout", item.index, fired, last[fired])
            if events and inside:
                ids = torch.tensor([text.tokens[position].id for position in inside])
                at, feature = (own > 0).nonzero(as_tuple=True)
                put(f"{number} events row", torch.full_like(at, item.index), torch.int32)
                put(f"{number} events feature", feature, torch.int32)
                put(f"{number} events token", ids.to(at.device)[at], torch.int32)

    return function


def _put_rows(
    put: Callable[[str, Tensor, torch.dtype], None],
    name: str,
    index: int,
    feature: Tensor,
    value: Tensor,
) -> None:
    put(f"{name} row", torch.full_like(feature, index), torch.int32)
    put(f"{name} feature", feature, torch.int32)
    put(f"{name} value", value, torch.float32)


def _fit(sae: Sae, h: Tensor, f: Tensor) -> Tensor:
    """Return squared error, spread, active features and tokens, summed over the tokens of `h`."""
    read = sae.read(h).float()
    mean = sae.weights.mean
    centre = read.mean(dim=0) if mean is None else mean
    rebuilt = sae.decode(f.to(h.dtype)).float()
    return torch.tensor(
        [
            float((read - rebuilt).square().sum()),
            float((read - centre).square().sum()),
            float((f > 0).sum()),
            float(len(h)),
        ],
        dtype=torch.float64,
    )


def _content(text: TextRecord) -> list[int]:
    return [n for n, token in enumerate(text.tokens) if token.part == "text" and not token.special]


def _emotion_tokens(text: TextRecord, inside: Sequence[int]) -> Tensor:
    """Return whether each of some tokens lies in a word that names an emotion, bool."""
    spans = [(word.start, word.end) for word in emotion_words(text.raw)]
    found = []
    for position in inside:
        token = text.tokens[position]
        begin, end = token.start or 0, token.end or 0
        found.append(any(begin < last and first < end for first, last in spans))
    return torch.tensor(found, dtype=torch.bool)


def halves(items: Sequence[Item], seed: int) -> Tensor:
    """Deal texts into two halves, [n] bool: True is the one that choices are made on.

    Texts of one group are in one half; each label is dealt as evenly as that allows.
    """
    groups: dict[str, list[int]] = {}
    for row, item in enumerate(items):
        groups.setdefault(item.group, []).append(row)
    first = torch.zeros(len(items), dtype=torch.bool)
    balance: dict[int, int] = {}
    for group in sorted(groups, key=lambda group: draw(group, seed)):
        rows = groups[group]
        lean = sum(balance.get(items[row].label, 0) for row in rows)
        side = lean <= 0
        first[rows] = side
        for row in rows:
            balance[items[row].label] = balance.get(items[row].label, 0) + (1 if side else -1)
    return first
