"""What of an emotion's reading goes with the words that name emotions: the keyword control.

The words are masked, the text is read again, and so are copies with as many other content words
masked. A reading that rests on the words loses more with them than with any others.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec

from emotui.cache.without import keep_without, kept_without, plain
from emotui.core.engine.answer import LabelTokens, label_tokens, read_answer
from emotui.core.engine.capture import Job, capture
from emotui.core.errors import TextError, UsageError
from emotui.core.findings import Lost, Masked, WithoutWords
from emotui.core.protocol import MaskedWords, WithoutRequest
from emotui.core.text import Template, clean, template_named
from emotui.core.wording import (
    Word,
    content_words,
    counted,
    drawn_sets,
    emotion_words,
    masked,
    none_listed,
)

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.engine.instruments import Instruments
    from emotui.core.engine.model import LoadedModel
    from emotui.core.engine.probes import Probe

DRAWS = 20
"""Sets of other content words that are masked."""
NEUTRAL = "neutral"


@dataclass(frozen=True)
class _Reader:
    """Reads one emotion in a text."""

    model: LoadedModel
    template: Template
    labels: LabelTokens
    probe: Probe | None
    row: int
    """The probe's place."""
    unit: Literal["z", "logit"]
    job: Job

    def mark(self, text: str) -> float | None:
        """Return the z that neutral texts of this length reach; None where that is not known."""
        if self.probe is None or self.unit == "logit":
            return None
        tokens = len(self.model.reader.read(text, self.template).tokens)
        return self.probe.summary(tokens).marked_above.get("resid")

    def answers(self, text: str) -> tuple[dict[str, float], dict[str, float]]:
        """Return the answer's probabilities, and the probe's readings, by emotion."""
        model = self.model
        record = model.reader.read(
            text, self.template, context_length=model.context_length - self.labels.room
        )
        run = capture(model, [token.id for token in record.tokens], job=self.job)
        answer = read_answer(model, run, self.labels, job=self.job).answer
        if self.probe is None:
            return answer.labels, {}
        at = slice(self.row, self.row + 1)
        layer = self.probe.places[self.row][1]
        found = self.probe.logits(run.at("resid", layer)[-1].view(1, 1, -1), at)
        if self.unit == "z":
            found = self.probe.z_of(found, at)
        read = dict(zip(self.probe.emotions, found[0, 0].tolist(), strict=True))
        return answer.labels, read


def without_words(
    request: WithoutRequest, model: LoadedModel, instruments: Instruments, store: Store, job: Job
) -> MaskedWords:
    """Read a text without its emotion words, from the cache where that was done.

    TextError for a text without any, or that the model cannot read; UsageError for an unknown
    emotion or an empty placeholder.
    """
    started, before = time.monotonic(), model.forwards
    request = plain(request)
    kept = kept_without(request, store, model.fingerprint)
    if kept is not None:
        return MaskedWords(kept, True, 0, time.monotonic() - started)
    done = _done(request, model, instruments, job)
    keep_without(request, store, model.fingerprint, done)
    return MaskedWords(done, False, model.forwards - before, time.monotonic() - started)


def _done(
    request: WithoutRequest, model: LoadedModel, instruments: Instruments, job: Job
) -> WithoutWords:
    asked = request.inspect
    words = emotion_words(asked.text)
    if not words:
        raise TextError(
            f"The text holds {none_listed()}, so there is nothing to mask.",
            why="Whole words are looked for, in any case, and the inflected forms that are listed.",
            todo="Where it names an emotion by another word, compare it with a text without that "
            "word: emotui compare.",
        )
    template = template_named(asked.template)
    labels = label_tokens(model.reader, asked.label_set, template)
    probe = next((p for p in instruments.probes(asked.probes) if p.kind == "readout"), None)
    emotion = request.emotion
    if emotion and emotion not in labels.labels:
        raise UsageError(
            f"{clean(emotion)!r} is no label of {labels.set}.",
            todo=f"Use one of: {', '.join(labels.labels)}.",
        )
    if probe is not None and emotion and emotion not in probe.emotions:
        probe = None
    row = 0 if probe is None else best_row(probe)
    reader = _Reader(model, template, labels, probe, row, _unit(probe, row), job)
    job.progress("reading the text")
    answer, read = reader.answers(asked.text)
    emotion = emotion or max(answer, key=lambda label: (label != NEUTRAL, answer[label]))

    def reading(some: Sequence[Word]) -> Masked:
        answer, read = reader.answers(masked(asked.text, some, request.placeholder))
        return Masked(tuple(word.text for word in some), read.get(emotion), answer[emotion])

    job.progress("masking the emotion words")
    after = reading(words)
    others = content_words(asked.text)
    sets, choices = drawn_sets(others, len(words), draws=DRAWS, seed=asked.seed)
    controls = []
    for number, some in enumerate(sets):
        job.check()
        job.progress("masking other words", number, len(sets))
        controls.append(reading(some))
    whole = Masked((), read.get(emotion), answer[emotion])
    least = {"readout": reader.mark(asked.text), "answer": 1 / len(answer)}
    done = WithoutWords(
        text=asked.text,
        emotion=emotion,
        label_set=labels.set,
        template=asked.template,
        placeholder=request.placeholder,
        probe=None if probe is None else probe.id,
        layer=None if probe is None else probe.places[row][1],
        trust=None if probe is None else probe.file.card.scores[row].trust,
        unit=reader.unit,
        before=whole,
        after=after,
        masked_text=masked(asked.text, words, request.placeholder),
        content_words=len(others),
        choices=choices,
        controls=tuple(controls),
        lost=tuple(
            _lost(metric, whole, after, controls, least=least[metric])
            for metric in _METRICS
            if getattr(whole, metric) is not None
        ),
        seed=asked.seed,
        sentence="",
    )
    return msgspec.structs.replace(done, sentence=sentence_of(done))


_METRICS: tuple[Literal["readout", "answer"], ...] = ("readout", "answer")


def best_row(probe: Probe) -> int:
    """Return the place of the residual stream the probe is best at on dev, trusted ones first."""
    scores = probe.file.card.scores
    rows = [row for row, (site, layer) in enumerate(probe.places) if site == "resid" and layer >= 0]
    return max(
        rows,
        key=lambda row: (
            scores[row].trust == "trusted",
            scores[row].dev_accuracy or scores[row].balanced_accuracy,
            -row,
        ),
    )


def _unit(probe: Probe | None, row: int) -> Literal["z", "logit"]:
    if probe is None or not bool(probe.neutral_sd[row].isfinite().all()):
        return "logit"
    return "z"


def _lost(
    metric: Literal["readout", "answer"],
    whole: Masked,
    after: Masked,
    controls: Sequence[Masked],
    *,
    least: float | None,
) -> Lost:
    """Return the share of one reading that goes, and where it stands among the controls.

    A reading no larger than `least`, what is read where there is nothing, has no share: divided
    by next to nothing, any change would be a large one. None: what that is is not known.
    """
    before: float = getattr(whole, metric)
    if least is None or not before > max(least, 0.0):
        return Lost(metric, None, (), None, None, least)

    def share(other: Masked) -> float:
        return (before - float(getattr(other, metric))) / before

    own, others = share(after), tuple(share(one) for one in controls)
    if not others:
        return Lost(metric, own, (), None, None, least)
    rank = 1 + sum(other >= own for other in others)
    below = sum((other < own) + (other == own) / 2 for other in others)
    return Lost(metric, own, others, rank, 100 * below / len(others), least)


def sentence_of(done: WithoutWords) -> str:
    """Return what was found in one sentence, each share beside the controls."""
    words = ", ".join(repr(clean(word)) for word in done.after.words)
    parts = []
    for lost in done.lost:
        name = f"the answer's probability of {done.emotion}"
        if lost.metric == "readout":
            doubt = "" if done.trust == "trusted" else f", {done.trust} there"
            name = f"the readout of {done.emotion} (probe at L{done.layer}{doubt})"
        if lost.share is None:
            parts.append(f"{name} was {_nothing(done, lost)}")
            continue
        said = f"{name} {_goes(lost.share)}"
        if lost.controls:
            middle = sorted(lost.controls)[len(lost.controls) // 2]
            said += (
                f" (other words: median {_percent(middle)}, most {_percent(max(lost.controls))}; "
                f"rank {lost.rank} of {len(lost.controls) + 1})"
            )
        parts.append(said)
    if not done.controls:
        there = counted(done.content_words, "other content word")
        few = "is too few" if done.content_words == 1 else "are too few"
        parts.append(f"no control: {there} {few} to mask {len(done.after.words)}")
    elif done.choices == 1:
        parts.append("there is 1 set of as many other words, and it was masked")
    elif done.choices < DRAWS:
        parts.append(f"there are {done.choices} sets of as many other words, and all were masked")
    return f"Without {words}, " + "; ".join(parts) + "."


def _nothing(done: WithoutWords, lost: Lost) -> str:
    """Return why no share of a reading is given."""
    before: float = getattr(done.before, lost.metric)
    if lost.metric == "answer":
        return f"{before:.2f}, no more than chance ({lost.least:.2f}): nothing to lose"
    if done.unit == "logit":
        return f"a logit, {before:.2f}: without neutral texts nothing says how much of it is there"
    if lost.least is None:
        return f"z {before:.2f}: no neutral text is as long, so no share of it is given"
    return f"z {before:.2f}, not above what neutral texts reach ({lost.least:.2f}): nothing to lose"


def _goes(share: float) -> str:
    return f"rises by {_percent(-share)}" if round(100 * share) < 0 else f"loses {_percent(share)}"


def _percent(share: float) -> str:
    """Return a share in per cent, without the sign of a zero."""
    return f"{round(100 * share):d}%"
