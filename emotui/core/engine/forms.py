"""Texts read in many forms: what is answered in each, and what stands inside at the readout.

An answer is chosen among the words by the rule that tells them apart (`engine/answer.py`), but
whole words are compared where a first token is a fragment: white space or one letter, which begins
other words just as well. It is valid where the likeliest next token of the whole vocabulary begins
one of the words, in any case, with a space or without (METHODS 6, which takes the larger of two
words among the 50 likeliest); where that token is a fragment, what the model would write is read on
until it is a word or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emotui.core.engine.answer import LabelTokens, tokens_of_words
from emotui.core.engine.batch import run_batch
from emotui.core.engine.capture import hooked
from emotui.core.engine.collect import Place, batches
from emotui.core.errors import ModelError, TextError
from emotui.core.forms import (
    ANSWER_LAST,
    STATEMENT_FORMS,
    WORDINGS,
    Form,
    about,
    answer_last,
    denied,
    orders,
    paraphrases,
)
from emotui.core.text import Template, template_named

if TYPE_CHECKING:
    from emotui.core.engine.capture import Job
    from emotui.core.engine.model import LoadedModel
    from emotui.core.engine.probes import Probe
    from emotui.core.engine.saes import Sae
    from emotui.core.engine.tokens import TokenReader


_ROOM = 8
"""Tokens left for the words of an answer where it takes more than one."""


@dataclass(frozen=True)
class TrustedProbe:
    """A readout probe at the trusted layer of the residual stream that was best on dev."""

    probe: Probe
    layer: int

    @property
    def _place(self) -> slice:
        at = self.probe.places.index(("resid", self.layer))
        return slice(at, at + 1)

    def logits(self, h: Tensor) -> Tensor:
        """Return logits [rows, emotions] of `h` [rows, d_model]."""
        return self.probe.logits(h[None], self._place)[0]

    def z(self, h: Tensor) -> Tensor:
        """Return z [rows, emotions] of `h` [rows, d_model]; NaN where it was not fitted."""
        return self.probe.z_of(self.probe.logits(h[None], self._place), self._place)[0]


def trusted_probe(probes: Sequence[Probe]) -> TrustedProbe | None:
    """Return the first readout probe that is trusted behind any block, there where it is best.

    None where there is none.
    """
    for probe in probes:
        scores = [
            score
            for score in probe.file.card.scores
            if probe.kind == "readout"
            and (score.site, score.trust) == ("resid", "trusted")
            and score.layer >= 0
        ]
        if scores:
            best = max(scores, key=lambda score: (score.dev_accuracy or 0.0, -score.layer))
            return TrustedProbe(probe, best.layer)
    return None


@dataclass(frozen=True)
class FormReading:
    """n texts in one form."""

    scores: Tensor
    """[n, words], float32: log-probabilities among the words."""
    valid: Tensor
    """[n], bool."""
    h: Tensor
    """[places, n, d_model], at the readout, in the run's dtype."""
    tokens: LabelTokens


@dataclass(frozen=True)
class LabelReading:
    """n texts in every form that asks for a label; forms F: templates, orders, denied."""

    scores: Tensor
    """[n, F, labels], float32: log-probabilities among the labels."""
    valid: Tensor
    """[n, F], bool."""
    slots: Tensor
    """[n, orders, labels], long: where each label stands in the list."""
    lens: Tensor
    """[n, F, layers], long: the likeliest label of the logit lens, that of the last layer being
    the answer; -1 where the labels are not told apart by one token of the prompt."""
    probe: Tensor
    """[n, F, emotions], float32; no emotions without a trusted probe."""
    features: Tensor
    """[n, 2], float32: cosine of the SAEs' activations, mean over pairs of templates and of
    orders and over SAEs; NaN without SAEs."""


@dataclass(frozen=True, eq=False)
class Asking:
    """The forms of one model, template and label set."""

    model: LoadedModel
    template: Template
    label_set: str
    tokens: LabelTokens
    """In the template that was asked for."""
    seed: int
    probe: TrustedProbe | None = None
    saes: tuple[Sae, ...] = ()

    @cached_property
    def templates(self) -> tuple[Form, ...]:
        """The prompts; in the chat template too where the tokenizer has one."""
        try:
            self.model.reader.read("a", template_named("chat"))
            chat = True
        except ModelError:
            chat = False
        return paraphrases(self.template, chat=chat)

    @cached_property
    def orders(self) -> tuple[Form, ...]:
        """The orders that are the same for every text; `answer last` stands behind them."""
        return orders(self.tokens.labels, self.template, seed=self.seed)

    @property
    def groups(self) -> tuple[str, ...]:
        """The group of each form of `LabelReading`."""
        return ("template",) * len(self.templates) + ("order",) * self.n_orders + ("denied",)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each form of `LabelReading`."""
        named = [form.name for form in (*self.templates, *self.orders)]
        return (*named, ANSWER_LAST, "denied")

    @property
    def n_orders(self) -> int:
        """How many orders a text is asked in."""
        return len(self.orders) + 1

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """What is kept at the readout."""
        return tuple(("resid", layer) for layer in range(self.model.n_layers))

    def words(self, labels: tuple[str, ...], template: Template) -> LabelTokens:
        """Return how words are told apart after a prompt: whole ones where some are fragments."""
        found = tokens_of_words(self.model.reader, self.label_set, labels, template)
        if found.rule == "first_token" and fragments(self.model.reader, found):
            return replace(found, rule="whole_label")
        return found

    def labels_after(self, template: Template) -> LabelTokens:
        """Return how the labels are told apart after a prompt."""
        return self.words(self.tokens.labels, template)

    def fits(self, text: str) -> bool:
        """Whether a text can be read in every form."""
        some_order = answer_last(0, self.tokens.labels, self.template)
        longest = max(self.tokens.labels, key=len)
        prompts = [form.template for form in (*self.templates, some_order, denied(self.template))]
        prompts += [self.statement(row, longest) for row in STATEMENT_FORMS]
        try:
            for template in prompts:
                self.prompt(text, template)
        except TextError:
            return False
        return True

    def statement(self, form: tuple[str, str, str], emotion: str) -> Template:
        """Return the prompt of one row of `STATEMENT_FORMS` about an emotion."""
        _, statement, wording = form
        words = next(one for one in WORDINGS if one == wording)
        return about(statement.format(emotion), words, chat=self.template.chat)

    def prompt(self, text: str, template: Template) -> list[int]:
        """Return the tokens of a text in a prompt; TextError where they are too many."""
        room = max(self.model.context_length - _ROOM, 1) if self.model.context_length else 0
        record = self.model.reader.read(text, template, context_length=room)
        return [token.id for token in record.tokens]


def fragments(reader: TokenReader, tokens: LabelTokens) -> tuple[str, ...]:
    """Return the words whose first token says too little to stand for them."""
    return tuple(
        label
        for label, sequence in zip(tokens.labels, tokens.sequences, strict=True)
        if _is_fragment(reader, sequence)
    )


def _is_fragment(reader: TokenReader, sequence: Sequence[int]) -> bool:
    return len(sequence) > 1 and len(reader.string(sequence[0]).strip()) < 2


def spellings(reader: TokenReader, words: Sequence[str]) -> tuple[frozenset[int], frozenset[int]]:
    """Return the first tokens of words in every case, with a space before them or without.

    Those that stand for a word, and the fragments, with which a word may begin.
    """
    written = {
        lead + spelled
        for word in words
        for spelled in (word, word.lower(), word.title(), word.upper())
        for lead in ("", " ")
    }
    found = [reader.continuation_ids(one) for one in written]
    sure = frozenset(one[0] for one in found if not _is_fragment(reader, one))
    return sure, frozenset(one[0] for one in found) - sure


@torch.no_grad()
def read_form(
    asking: Asking,
    prompts: Sequence[Sequence[int]],
    tokens: LabelTokens,
    *,
    places: Sequence[Place] = (),
    job: Job | None = None,
) -> FormReading:
    """Run one prompt of each text and read the answer, texts of equal length at a time."""
    model = asking.model
    scores = torch.zeros(len(prompts), len(tokens.labels))
    valid = torch.zeros(len(prompts), dtype=torch.bool)
    h = torch.zeros(len(places), len(prompts), model.d_model, dtype=model.dtype)
    sure, unsure = spellings(model.reader, tokens.labels)
    beginnings = torch.tensor(sorted(sure))
    for rows in batches([len(prompt) for prompt in prompts]):
        batch = run_batch(model, [prompts[row] for row in rows], tokens, places=places, job=job)
        scores[rows] = batch.scores.log_softmax(dim=-1)
        likeliest = batch.logits.argmax(dim=-1).cpu()
        valid[rows] = torch.isin(likeliest, beginnings)
        for row, token in zip(rows, likeliest.tolist(), strict=True):
            if token in unsure:
                valid[row] = _writes(model, prompts[row], token, tokens.labels, job)
        h[:, rows] = batch.h.cpu()
    return FormReading(scores, valid, h, tokens)


def _writes(
    model: LoadedModel, prompt: Sequence[int], first: int, words: Sequence[str], job: Job | None
) -> bool:
    """Whether what the model would write after `first`, token by token, begins with a word."""
    written = [first]
    while True:
        text = model.reader.decode(written, after=prompt).strip().lower()
        if any(text.startswith(word.lower()) for word in words):
            return True
        if len(written) == _ROOM or not any(word.lower().startswith(text) for word in words):
            return False
        with hooked(model, (), job=job):
            logits = model.forward([[*prompt, *written]])[0, -1]
        written.append(int(logits.argmax()))


def read_labels(asking: Asking, texts: Sequence[str], *, job: Job | None = None) -> LabelReading:
    """Ask for a label in every form; the texts must fit."""
    readings = [_read(asking, texts, form.template, job) for form in asking.templates]
    ordered = [_read(asking, texts, form.template, job) for form in asking.orders]
    answers = ordered[0].scores.argmax(dim=-1).tolist()
    last = [answer_last(answer, asking.tokens.labels, asking.template) for answer in answers]
    ordered.append(_read_each(asking, texts, [form.template for form in last], job))
    readings += [*ordered, _read(asking, texts, denied(asking.template).template, job)]
    listed = [[*(form.order for form in asking.orders), one.order] for one in last]
    n_templates = len(asking.templates)
    features = [
        _cosine(asking, readings[group])
        for group in (slice(0, n_templates), slice(n_templates, -1))
    ]
    return LabelReading(
        scores=torch.stack([reading.scores for reading in readings], dim=1),
        valid=torch.stack([reading.valid for reading in readings], dim=1),
        # Where a label stands is the inverse of which label stands there.
        slots=torch.tensor(listed, dtype=torch.long).argsort(dim=-1),
        lens=torch.stack([_lens(asking, reading) for reading in readings], dim=1),
        probe=torch.stack([_probe(asking, reading) for reading in readings], dim=1),
        features=torch.stack(features, dim=1),
    )


def _read(asking: Asking, texts: Sequence[str], template: Template, job: Job | None) -> FormReading:
    return _read_each(asking, texts, [template] * len(texts), job)


def _read_each(
    asking: Asking, texts: Sequence[str], templates: Sequence[Template], job: Job | None
) -> FormReading:
    prompts = [asking.prompt(*asked) for asked in zip(texts, templates, strict=True)]
    tokens = asking.labels_after(templates[0])
    return read_form(asking, prompts, tokens, places=asking.places, job=job)


def _lens(asking: Asking, reading: FormReading) -> Tensor:
    """Return the likeliest label at each layer, [n, layers]."""
    n = reading.h.shape[1]
    if reading.tokens.rule != "first_token":
        return torch.full((n, asking.model.n_layers), -1)
    deciding = list(reading.tokens.deciding)
    rows = [
        asking.model.sites.token_logits(h.to(asking.model.device), deciding).argmax(dim=-1).cpu()
        for h in reading.h
    ]
    return torch.stack(rows, dim=1)


def _probe(asking: Asking, reading: FormReading) -> Tensor:
    if asking.probe is None:
        return torch.zeros(reading.h.shape[1], 0)
    h = reading.h[asking.places.index(("resid", asking.probe.layer))]
    return asking.probe.logits(h.to(asking.model.device)).float().cpu()


def _cosine(asking: Asking, readings: Sequence[FormReading]) -> Tensor:
    """Return the mean cosine of SAE activations over pairs of forms and over SAEs, [n]."""
    found = []
    for sae in asking.saes:
        if sae.site != "resid":
            continue
        at = asking.places.index(("resid", sae.layer))
        f = torch.stack(
            [sae.encode(reading.h[at].to(asking.model.device)).float() for reading in readings]
        )
        found.append(pair_cosine(f.transpose(0, 1)).cpu())
    if not found:
        return torch.full((readings[0].h.shape[1],), torch.nan)
    return torch.stack(found).mean(dim=0)


def pair_cosine(vectors: Tensor) -> Tensor:
    """Return the mean cosine over pairs of forms of [n, forms, width]: [n]; 0 with zero vectors."""
    forms = vectors.shape[1]
    units = torch.nn.functional.normalize(vectors.float(), dim=-1)
    total = units.sum(dim=1).square().sum(dim=-1) - units.square().sum(dim=(1, 2))
    return total / (forms * (forms - 1))


def read_statements(
    asking: Asking,
    texts: Sequence[str],
    emotions: Sequence[str],
    *,
    job: Job | None = None,
) -> tuple[Tensor, Tensor]:
    """Ask of each text whether its writer feels an emotion, in the six forms.

    Returns the probability that it agrees, [n, 6] float32, and whether the answer is valid, bool.
    """
    agrees, valid = [], []
    for row in STATEMENT_FORMS:
        templates = [asking.statement(row, emotion) for emotion in emotions]
        reading = _read_words(asking, texts, templates, row[2], job)
        agrees.append(reading.scores[:, 0].exp())
        valid.append(reading.valid)
    return torch.stack(agrees, dim=1), torch.stack(valid, dim=1)


def _read_words(
    asking: Asking,
    texts: Sequence[str],
    templates: Sequence[Template],
    wording: str,
    job: Job | None,
) -> FormReading:
    prompts = [asking.prompt(*asked) for asked in zip(texts, templates, strict=True)]
    words = next(words for name, words in WORDINGS.items() if name == wording)
    return read_form(asking, prompts, asking.words(words, templates[0]), job=job)


def read_items(
    asking: Asking, statements: Sequence[str], template: Template, wording: str, *, job: Job
) -> FormReading:
    """Ask statements of a questionnaire, each by itself; TextError where one is too long."""
    return _read_words(asking, statements, [template] * len(statements), wording, job)
