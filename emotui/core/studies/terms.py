"""Which emotion words does the model expect after a text, and what are they made of (EXPRESS;
METHODS 5)?

`score` reads the log-probability of every word of a table after the prompt, without generation;
`generate` has the masked words written, so that published figures can be compared. A text with
`<mask>` is asked for each mask (when scored, from what stands before it: these are causal models),
any other for one word. Written words that are no word of the table count as wrong, as published.
The table's eight dimensions are not EmoLex's ten: positive and negative are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emotui.core.emotion_terms import Term, terms_for
from emotui.core.emotions import PLUTCHIK
from emotui.core.engine.capture import Hook, Job, QuietJob
from emotui.core.engine.speak import generate
from emotui.core.engine.terms import (
    NEUTRAL_TEXT,
    TermTokens,
    profile_of,
    score_terms,
    term_tokens,
)
from emotui.core.engine.text_terms import edit_hooks
from emotui.core.errors import TextError, UsageError
from emotui.core.records import TextRecord
from emotui.core.studies.common.chunks import Chunks, packed, unpacked
from emotui.core.studies.common.dataset import Item
from emotui.core.studies.common.running import Cost, Implementation, Running
from emotui.core.studies.terms_asking import (
    Condition,
    Example,
    Pool,
    conditions_of,
    cut,
    digest_of,
    examples_of,
    scoring_prompt,
    writing_prompt,
)
from emotui.core.studies.terms_measures import MASK, Vectors, words_in
from emotui.core.studies.terms_report import report
from emotui.core.studies.terms_results import TermsResult
from emotui.core.studies.terms_summary import Predicted, summary
from emotui.core.text import Template

_SIZE = 32
_TOKENS_A_WORD = 8
_TOKENS_OF_THOUGHT = 96


@dataclass(frozen=True, eq=False)
class _Asking:
    study: Running
    tokens: TermTokens
    vectors: Vectors
    known: frozenset[str]
    table: str
    digest: str
    pool: Pool | None

    def edits(self, text: TextRecord, template: Template) -> tuple[Hook, ...]:
        """Return the hooks of the edits on one prompt."""
        study = self.study
        lines = [line.strip() for line in study.text("edit").split(";") if line.strip()]
        return edit_hooks(
            lines,
            text,
            template,
            model=study.model,
            store=study.store,
            saes=study.saes,
            probes=study.probes,
            seed=study.run.seed,
            job=study.job,
        )

    def examples(self, item: Item) -> list[Example]:
        """Return the masks of a text."""
        return examples_of(self.study, item, self.known)

    def shots(self, item: Item, condition: Condition) -> list[Example]:
        """Return what is shown before a text."""
        return self.pool.shots(item, condition) if self.pool and condition.shots else []


def run(study: Running) -> TermsResult:
    """Ask every text in every condition, then compare with the true words."""
    asking = _asking(study)
    conditions = conditions_of(study)
    predictions = []
    unreadable = {}
    examples = {one.key: one for item in study.dataset for one in asking.examples(item)}
    for condition in conditions:
        found = _predicted(asking, condition)
        predictions.append(found)
        unreadable[condition.name] = len(examples) - len(found.keys)
    if not any(found.keys for found in predictions):
        raise UsageError(
            "None of the texts can be read by this model.",
            why="With the prompt they are longer than its context.",
            todo="Give shorter texts or another --template.",
        )
    scores = any(condition.mode == "score" for condition in conditions)
    prompts = {one.name: _shown(study, one) for one in conditions}
    if scores and any(MASK in one.item.text for one in examples.values()):
        prompts["score, a text with masks"] = f"the text as it stands before each {MASK}"
    layers = _layers(asking, examples) if scores and study.number("layers") else None
    return summary(
        predictions,
        examples,
        asking.vectors,
        layers,
        generator=study.generator("intervals"),
        edit=study.text("edit").strip(),
        texts=study.run.dataset.texts,
        unreadable=unreadable,
        table=asking.table,
        table_digest=asking.digest,
        words=len(asking.tokens.terms),
        prompts=prompts,
    )


def _asking(study: Running) -> _Asking:
    terms, known, table = terms_for(study.text("terms"))
    words = frozenset(term.term for term in known)
    shown = any(number > 0 for number in study.numbers("shots"))
    return _Asking(
        study=study,
        tokens=term_tokens(study.model.reader, terms, chat=study.template.chat),
        vectors=Vectors.of(known),
        known=words,
        table=table,
        digest=digest_of([f"{term.term} {term.weights}" for term in known]),
        pool=Pool(study, words) if shown else None,
    )


def _shown(study: Running, condition: Condition) -> str:
    """Return what stands around a text without a mask, shots left out."""
    if condition.mode == "score":
        return f"{study.template.before}TEXT{study.template.after}"
    item = Item(0, 0, "TEXT", "", -1, "", False, "", (), ())
    text, template = writing_prompt(item, (), thinking=condition.thinking, chat=study.template.chat)
    return f"{template.before}{text}{template.after}"


def _predicted(asking: _Asking, condition: Condition) -> Predicted:
    score = condition.mode == "score"
    chunks = asking.study.text_stage(
        condition.stage,
        lambda items: (_scores if score else _written)(asking, condition, items),
        size=_SIZE,
        phase=condition.name,
    )
    keys = [int(key) for key in chunks.joined("key").tolist()]
    if not score:
        words = [word for chunk in chunks for word in unpacked(chunk["words"], list[str])]
        return Predicted(condition.name, "written", keys, words, asking.known)
    terms: Sequence[Term] = asking.tokens.terms
    raw, usual = chunks.joined("scores"), chunks.joined("usual")
    return Predicted(
        condition.name,
        "score",
        keys,
        [],
        asking.known,
        terms=tuple(term.term for term in terms),
        weights=asking.tokens.weights,
        raw=raw,
        usual=usual,
        edited=condition.edited,
    )


def _scores(asking: _Asking, condition: Condition, items: Sequence[Item]) -> dict[str, Tensor]:
    study, model, tokens = asking.study, asking.study.model, asking.tokens
    keys, scores, usual = [], [], []
    before: dict[tuple[str, str], Tensor] = {}
    for item in items:
        shots = asking.shots(item, condition)
        for example in asking.examples(item):
            study.job.check()
            template = scoring_prompt(example, study.template, shots)
            try:
                record, nothing = _records(asking, example, template)
            except TextError:
                continue
            hooks = asking.edits(record, template) if condition.edited else ()
            where = (template.before, template.after)
            if where not in before:
                before = {where: score_terms(model, _ids(nothing), tokens, job=study.job)[0]}
            keys.append(example.key)
            scores.append(score_terms(model, _ids(record), tokens, hooks=hooks, job=study.job)[0])
            usual.append(before[where])
    empty = torch.zeros(0, len(tokens.terms))
    return {
        "key": torch.tensor(keys, dtype=torch.long),
        "scores": torch.stack(scores) if scores else empty,
        "usual": torch.stack(usual) if usual else empty,
    }


def _records(
    asking: _Asking, example: Example, template: Template
) -> tuple[TextRecord, TextRecord]:
    """Return the prompt of an example and of a neutral text; TextError where one is too long."""
    model = asking.study.model
    room = max(1, model.context_length - asking.tokens.room)
    neutral = NEUTRAL_TEXT if template.after else f"{NEUTRAL_TEXT} I feel"
    return (
        model.reader.read(cut(example, template), template, context_length=room),
        model.reader.read(neutral, template, context_length=room),
    )


def _ids(record: TextRecord) -> list[int]:
    return [token.id for token in record.tokens]


def _written(asking: _Asking, condition: Condition, items: Sequence[Item]) -> dict[str, Tensor]:
    study, model = asking.study, asking.study.model
    keys, words = [], []
    for item in items:
        study.job.check()
        examples = asking.examples(item)
        text, template = writing_prompt(
            item,
            asking.shots(item, condition),
            thinking=condition.thinking,
            chat=study.template.chat,
        )
        new = _TOKENS_A_WORD * len(examples) + (_TOKENS_OF_THOUGHT if condition.thinking else 0)
        try:
            room = max(1, model.context_length - new)
            record = model.reader.read(text, template, context_length=room)
        except TextError:
            continue
        hooks = asking.edits(record, template) if condition.edited else ()
        ids = _ids(record)
        # The edits act on the prompt; what is written is written by the model as it is.
        tokens = generate(
            model, ids, new_tokens=new, hooks=hooks, step_hooks=(), job=_Quiet(study.job)
        )
        answer = model.reader.decode(tokens, after=ids)
        keys += [example.key for example in examples]
        words += words_in(answer, len(examples), thought=condition.thinking)
    return {"key": torch.tensor(keys, dtype=torch.long), "words": packed(words)}


class _Quiet(QuietJob):
    """A job that can be cancelled but does not tell of every token."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def check(self) -> None:
        """Raise Cancelled where the run was cancelled."""
        self._job.check()


def _layers(
    asking: _Asking, examples: Mapping[int, Example]
) -> tuple[list[int], Tensor, list[list[str]]]:
    """Return keys, compositions [n, layers, 8] and the likeliest word at each layer of some."""
    study = asking.study
    chosen = list(examples.values())[: study.number("layers")]
    blocks = -(-len(chosen) // _SIZE)

    def work(number: int) -> dict[str, Tensor]:
        keys, made, best = [], [], []
        for example in chosen[number * _SIZE : (number + 1) * _SIZE]:
            study.job.check()
            template = scoring_prompt(example, study.template, ())
            try:
                record, _ = _records(asking, example, template)
            except TextError:
                continue
            scores = score_terms(
                study.model, _ids(record), asking.tokens, layers=True, job=study.job
            )
            keys.append(example.key)
            made.append(profile_of(scores.softmax(dim=-1), asking.tokens.weights).weights)
            best.append(scores.argmax(dim=-1))
        shape = (0, study.model.n_layers)
        return {
            "key": torch.tensor(keys, dtype=torch.long),
            "made": torch.stack(made) if made else torch.zeros(*shape, len(PLUTCHIK)).double(),
            "best": torch.stack(best) if best else torch.zeros(shape, dtype=torch.long),
        }

    chunks: Chunks = study.stage("layers", blocks, work, phase="reading each layer")
    names = [term.term for term in asking.tokens.terms]
    best = [[names[one] for one in row] for row in chunks.joined("best").tolist()]
    return [int(key) for key in chunks.joined("key").tolist()], chunks.joined("made"), best


def cost(study: Running) -> Cost:
    """Return the forwards of every condition, those of many tokens by what they are worth."""
    asking = _asking(study)
    texts = study.run.dataset.texts
    beginnings = len(asking.tokens.beginnings)
    # Beginnings of words are short rows over a shared prompt: about a tenth of a prompt each.
    each = 1 + beginnings / 10
    forwards = 0.0
    modes: Counter[str] = Counter()
    for condition in conditions_of(study):
        modes[condition.mode] += 1
        length = 1 + condition.shots
        if condition.mode == "score":
            forwards += texts * each * (2 if condition.shots else 1) * length**0.5
        else:
            written = _TOKENS_A_WORD + (_TOKENS_OF_THOUGHT if condition.thinking else 0)
            forwards += texts * (length + 2 + written)
    if modes["score"]:
        forwards += 2 * each * min(texts, study.number("layers"))
    words = len(asking.tokens.terms)
    return Cost(
        forwards=forwards,
        disk_bytes=texts * (modes["score"] * 8 * words + modes["generate"] * 40),
        memory_bytes=modes["score"] * texts * 8 * words,
    )


STUDY = Implementation(run=run, report=report, cost=cost)
