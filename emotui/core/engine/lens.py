"""The logit lens: what each layer's residual would say if it were the last.

nostalgebraist (2020): the final norm is recomputed on the residual of each layer, then the
unembedding and the soft-cap of the model are applied, so the top layer equals the logits.
"""

from __future__ import annotations

import torch

from emotui.core.engine.answer import AnswerReading
from emotui.core.engine.capture import Activations
from emotui.core.engine.model import LoadedModel
from emotui.core.records import Lens, LensWords

TOKENS_PER_LAYER = 10


@torch.no_grad()
def read_lens(
    model: LoadedModel,
    activations: Activations,
    reading: AnswerReading,
    *,
    tokens_per_layer: int = TOKENS_PER_LAYER,
) -> Lens:
    """Return the likeliest tokens of each layer and the labels' probabilities there.

    Probabilities of tokens are over the whole vocabulary, in float32; those of labels over the
    labels alone, at the position where the answer was read, and in `words` after every token.
    """
    layers: list[int] = []
    ranks: list[int] = []
    strings: list[str] = []
    values: list[float] = []
    # Layer by layer: all at once would hold layers x vocabulary floats.
    for layer in range(activations.n_layers):
        logits = model.sites.logits_of(activations.at("resid", layer)[-1]).float()
        best = logits.softmax(dim=-1).topk(min(tokens_per_layer, logits.shape[-1]))
        ids, probabilities = best.indices.tolist(), best.values.tolist()
        layers += [layer] * len(ids)
        ranks += range(len(ids))
        strings += [model.reader.string(token) for token in ids]
        values += probabilities
    return Lens(
        layer=tuple(layers),
        rank=tuple(ranks),
        token=tuple(strings),
        probability=tuple(values),
        answers=_answers(model, reading),
        words=_words(model, activations, reading),
    )


def _words(model: LoadedModel, activations: Activations, reading: AnswerReading) -> LensWords:
    """Return the labels' words after every token, and at the readout their rank among all tokens.

    Where the labels share a prefix their deciding token means nothing without it, so only the
    readout is read, after the prefix.
    """
    if reading.resid is None:
        return LensWords()
    tokens = reading.label_tokens
    deciding = list(tokens.deciding)
    earlier = activations.readout if tokens.rule == "first_token" else 0
    parts = []
    blocks = activations.kept["resid"].since(1)
    for position in range(earlier):
        logits = torch.cat(
            [model.sites.token_logits(part[:, position], deciding) for part in blocks.parts]
        )
        parts.append(logits.float().softmax(dim=-1))
    ranks: list[int] = []
    last = []
    for resid in reading.resid:
        logits = model.sites.logits_of(resid).float()
        likelier = logits.unsqueeze(0) > logits[deciding].unsqueeze(1)
        ranks += likelier.sum(dim=1).tolist()
        last.append(logits[deciding].softmax(dim=-1))
    parts.append(torch.stack(last))
    return LensWords(
        labels=tokens.labels,
        position=(*range(earlier), activations.readout),
        probability=tuple(torch.stack(parts).flatten().tolist()),
        rank=tuple(ranks),
    )


def _answers(model: LoadedModel, reading: AnswerReading) -> dict[str, tuple[float, ...]]:
    if reading.resid is None:
        return {}
    deciding = list(reading.label_tokens.deciding)
    rows = [
        model.sites.logits_of(resid)[deciding].float().softmax(dim=-1).tolist()
        for resid in reading.resid
    ]
    columns = zip(*rows, strict=True)
    return dict(zip(reading.label_tokens.labels, map(tuple, columns), strict=True))
