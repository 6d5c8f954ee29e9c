"""One text asked in every form: what is answered, and what the probe and the lens read there."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emotui.cache.asked import keep_consistency, known_consistency
from emotui.core.emotions import LABEL_SETS
from emotui.core.engine.answer import label_tokens
from emotui.core.engine.forms import (
    Asking,
    LabelReading,
    read_labels,
    read_statements,
    trusted_probe,
)
from emotui.core.errors import UsageError
from emotui.core.forms import NEGATIONS, STATEMENT_FORMS, FormAnswer, TextConsistency
from emotui.core.protocol import AskedInForms, ConsistencyRequest
from emotui.core.text import clean, template_named

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.engine.capture import Job
    from emotui.core.engine.instruments import Instruments
    from emotui.core.engine.model import LoadedModel


def ask_in_forms(
    request: ConsistencyRequest,
    model: LoadedModel,
    instruments: Instruments,
    store: Store,
    job: Job,
) -> AskedInForms:
    """Ask for the emotion of a text in every form, from the store where it was asked before.

    UsageError for an unknown label set, TextError where the text is too long in one of the forms.
    """
    started, before = time.monotonic(), model.forwards
    known = known_consistency(request, store, fingerprint=model.fingerprint)
    found = known
    if found is None:
        found = _asked(request, model, instruments, job)
        keep_consistency(request, store, model.fingerprint, found)
    return AskedInForms(
        found, known is not None, model.forwards - before, time.monotonic() - started
    )


def _asked(
    request: ConsistencyRequest, model: LoadedModel, instruments: Instruments, job: Job
) -> TextConsistency:
    wanted = request.inspect
    if wanted.label_set not in LABEL_SETS:
        raise UsageError(
            f"There is no label set called {clean(wanted.label_set)!r}.",
            todo=f"Use one of: {', '.join(LABEL_SETS)}.",
        )
    template = template_named(wanted.template)
    tokens = label_tokens(model.reader, wanted.label_set, template)
    asking = Asking(
        model=model,
        template=template,
        label_set=wanted.label_set,
        tokens=tokens,
        seed=wanted.seed,
        probe=trusted_probe(instruments.probes(wanted.probes)),
    )
    job.progress("asking in each form")
    read = read_labels(asking, [wanted.text], job=job)
    answers = read.scores[0].argmax(dim=-1).tolist()
    rows = _label_rows(asking, read)
    other = Counter(answers).most_common(2)[-1][0]
    if other == answers[0]:
        other = (other + 1) % len(tokens.labels)
    turned: list[bool] = []
    for number in (answers[0], other):
        emotion = tokens.labels[number]
        agrees, valid = read_statements(asking, [wanted.text], [emotion], job=job)
        rows += _statement_rows(emotion, agrees[0], valid[0])
        turned += [
            bool((agrees[0, 0] > 0.5) != (agrees[0, -1 - step] > 0.5))
            for step in range(len(NEGATIONS))
        ]
    n, last = len(asking.templates), len(asking.templates) + asking.n_orders
    probed = read.probe[0, :last].argmax(dim=-1).tolist() if asking.probe else []
    averaged = read.scores[0, n:last].softmax(dim=-1).mean(dim=0)
    templates, ordered = _agree(answers[:n]), _agree(answers[n:last])
    return TextConsistency(
        label_set=tokens.set,
        template=template.name,
        rule=asking.labels_after(template).rule,
        answers=tuple(rows),
        templates_agree=templates,
        orders_agree=ordered,
        probe_agrees=_agree(probed),
        probe=asking.probe.probe.id if asking.probe else "",
        probe_layer=asking.probe.layer if asking.probe else None,
        negated=sum(turned) / len(turned),
        averaged=tokens.labels[int(averaged.argmax())],
        badge=_badge(answers[:n], answers[n:last], turned),
    )


def _label_rows(asking: Asking, read: LabelReading) -> list[FormAnswer]:
    labels = asking.tokens.labels
    shares = read.scores[0].softmax(dim=-1)
    rows = []
    for number, (group, name) in enumerate(zip(asking.groups, asking.names, strict=True)):
        best = int(shares[number].argmax())
        lens = [labels[one] for one in read.lens[0, number].tolist() if one >= 0]
        probe = ""
        if asking.probe is not None:
            probe = asking.probe.probe.emotions[int(read.probe[0, number].argmax())]
        rows.append(
            FormAnswer(
                group=next(one for one in ("template", "order", "denied") if one == group),
                form=name,
                answer=labels[best],
                probability=float(shares[number, best]),
                valid=bool(read.valid[0, number]),
                probe=probe,
                lens=tuple(lens),
            )
        )
    return rows


def _statement_rows(emotion: str, agrees: Tensor, valid: Tensor) -> list[FormAnswer]:
    return [
        FormAnswer(
            group="negation" if name in NEGATIONS else "binary",
            form=name,
            answer="agrees" if share > 0.5 else "disagrees",
            probability=max(share, 1 - share),
            valid=sound,
            about=emotion,
        )
        for (name, _, _), share, sound in zip(
            STATEMENT_FORMS, agrees.tolist(), valid.tolist(), strict=True
        )
    ]


def _agree(answers: list[int]) -> float | None:
    """Return the share of pairs that are equal; None with fewer than two."""
    if len(answers) < 2:
        return None
    counts = torch.tensor(list(Counter(answers).values())).double()
    pairs = len(answers) * (len(answers) - 1)
    return float((counts * (counts - 1)).sum() / pairs)


def _badge(templates: list[int], ordered: list[int], turned: list[bool]) -> str:
    """One text has no kappa, so what is said is where its answer changed."""
    depends = [
        name
        for name, changes in (
            ("prompts", len(set(templates)) > 1),
            ("orders", len(set(ordered)) > 1),
            ("negations", not all(turned)),
        )
        if changes
    ]
    return f"depends on the {', '.join(depends)}" if depends else "the same in every form"
