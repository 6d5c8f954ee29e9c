"""Does the answer stay when only the way of asking changes (questionnaire reliability; METHODS 6)?

Every text is asked for its emotion in several prompts, with the labels listed in several orders,
and as a statement (`The writer feels joy.`) in four wordings and two negations. The same is asked
of what stands inside at the readout: the probe, the logit lens at every layer, the SAEs. The probe
was fitted in one prompt and is applied in others: that is what is tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from emotui.core.engine.forms import (
    Asking,
    fragments,
    pair_cosine,
    read_items,
    read_labels,
    read_statements,
    trusted_probe,
)
from emotui.core.errors import TextError, UsageError
from emotui.core.forms import STATEMENT_FORMS, WORDINGS, Wording, item
from emotui.core.studies.common.chunks import Chunks
from emotui.core.studies.common.dataset import Item
from emotui.core.studies.common.running import Cost, Implementation, Running
from emotui.core.studies.consistency_measures import (
    agreement_row,
    badge_of,
    form_rows,
    negation_kappas,
    pair_row,
    position_of,
)
from emotui.core.studies.consistency_report import report
from emotui.core.studies.consistency_results import (
    AgreementRow,
    Axis,
    ConsistencyResult,
    PairRow,
    Questionnaire,
)
from emotui.core.studies.questionnaires import StatementItem
from emotui.core.studies.questionnaires import read_items as read_items_file

_SIZE = 16
_STATEMENTS = 2
"""Of each text: one emotion it was answered with, one it was not."""
_ITEMS_AT_ONCE = 32


@dataclass(frozen=True)
class FormsRead:
    """n texts in every form, as `engine.forms.LabelReading`, joined; and their statements."""

    gold: Tensor
    """[n], long: index of a label of the set, -1 without one."""
    scores: Tensor
    valid: Tensor
    slots: Tensor
    lens: Tensor
    probe: Tensor
    features: Tensor
    agrees: Tensor
    """[n, statements, 6]: probability of the word that agrees."""
    statements_valid: Tensor


def run(study: Running) -> ConsistencyResult:
    """Read every text in every form, then compare."""
    asking = _asking(study)
    items = read_items_file(Path(study.text("items"))) if study.text("items") else None
    chunks = study.text_stage(
        "forms", lambda items: _read(study, asking, items), size=_SIZE, phase="asking in each form"
    )
    read = FormsRead(**{name: chunks.joined(name) for name in FormsRead.__annotations__})
    questionnaire = None if items is None else _questionnaire(study, asking, *items)
    return measure(study, asking, read, questionnaire)


def _asking(study: Running) -> Asking:
    return Asking(
        model=study.model,
        template=study.template,
        label_set=study.tokens.set,
        tokens=study.tokens,
        seed=study.run.seed,
        probe=trusted_probe(study.probes),
        saes=study.saes,
    )


def _read(study: Running, asking: Asking, items: Sequence[Item]) -> dict[str, Tensor]:
    fitting = [item for item in items if asking.fits(item.text)]
    labels = study.tokens.labels
    if not fitting:
        return _nothing(study, asking)
    texts = [item.text for item in fitting]
    read = read_labels(asking, texts, job=study.job)
    agrees, valid = [], []
    for emotions in _emotions(read.scores[:, 0].argmax(dim=-1), fitting, len(labels)).T.tolist():
        study.job.check()
        one, sound = read_statements(asking, texts, [labels[e] for e in emotions], job=study.job)
        agrees.append(one)
        valid.append(sound)
    names = study.dataset.labels
    gold = [labels.index(names[item.label]) if item.label >= 0 else -1 for item in fitting]
    return {
        "gold": torch.tensor(gold, dtype=torch.long),
        "scores": read.scores,
        "valid": read.valid,
        "slots": read.slots,
        "lens": read.lens,
        "probe": read.probe,
        "features": read.features,
        "agrees": torch.stack(agrees, dim=1),
        "statements_valid": torch.stack(valid, dim=1),
    }


def _emotions(answers: Tensor, items: Sequence[Item], labels: int) -> Tensor:
    """Return the labels a text is asked about: its answer, and another, in turn over the texts."""
    steps = torch.tensor([1 + item.index % (labels - 1) for item in items])
    return torch.stack([answers, (answers + steps) % labels], dim=1)


def _nothing(study: Running, asking: Asking) -> dict[str, Tensor]:
    forms, labels = len(asking.names), len(study.tokens.labels)
    emotions = len(asking.probe.probe.emotions) if asking.probe else 0
    return {
        "gold": torch.zeros(0, dtype=torch.long),
        "scores": torch.zeros(0, forms, labels),
        "valid": torch.zeros(0, forms, dtype=torch.bool),
        "slots": torch.zeros(0, asking.n_orders, labels, dtype=torch.long),
        "lens": torch.zeros(0, forms, study.model.n_layers, dtype=torch.long),
        "probe": torch.zeros(0, forms, emotions),
        "features": torch.zeros(0, 2),
        "agrees": torch.zeros(0, _STATEMENTS, len(STATEMENT_FORMS)),
        "statements_valid": torch.zeros(0, _STATEMENTS, len(STATEMENT_FORMS), dtype=torch.bool),
    }


def measure(
    study: Running, asking: Asking, read: FormsRead, questionnaire: Questionnaire | None
) -> ConsistencyResult:
    """Compare the forms of `read`; UsageError where no text could be read."""
    n, labels = len(read.gold), study.tokens.labels
    if not n:
        raise UsageError(
            "None of the texts can be read in every form.",
            why="With the longest prompt they are longer than the model's context.",
            todo="Give shorter texts.",
        )
    draw = study.generator("intervals")
    first = len(asking.templates)
    groups = {"template": slice(0, first), "order": slice(first, first + asking.n_orders)}
    agreements = []
    for group, those in groups.items():
        agreements += _agreements(asking, read, group, those, draw)
    kappas = {row.group: row.kappa for row in agreements if row.readout == "answer"}
    flat, sound = read.agrees.flatten(0, 1), read.statements_valid.flatten(0, 1)
    names = [name for name, _, _ in STATEMENT_FORMS]
    texts = torch.arange(n).repeat_interleave(_STATEMENTS)
    pairs = statement_pairs(flat, sound, names, texts, draw)
    answers = read.scores.argmax(dim=-1)
    fixed = slice(first, first + asking.n_orders - 1)
    orders = read.scores[:, groups["order"]].softmax(dim=-1)
    forms = form_rows(read.scores, read.valid, read.gold, asking.groups, asking.names, labels)
    averaged = orders.mean(dim=1, keepdim=True).log()
    smoothed = form_rows(averaged, read.valid[:, :1], read.gold, ("order",), ("mean",), labels)
    named = [labels[one] for one in read.gold.tolist() if one >= 0]
    probe = asking.probe
    return ConsistencyResult(
        texts=n,
        unreadable=study.run.dataset.texts - n,
        labels=labels,
        rule=asking.labels_after(asking.template).rule,
        statement_rule=asking.words(WORDINGS["True/False"], asking.template).rule,
        fragments=_fragments(asking),
        gold=study.dataset.labels,
        counts={label: named.count(label) for label in study.dataset.labels},
        forms=forms,
        agreements=tuple(agreements),
        statements=len(flat),
        pairs=pairs,
        position=position_of(answers[:, fixed], read.slots[:, :-1]),
        averaged_accuracy=smoothed[0].accuracy,
        forward_accuracy=forms[first].accuracy,
        denied_unchanged=float((answers[:, -1] == answers[:, 0]).double().mean()),
        probe=probe.probe.id if probe else "",
        probe_layer=probe.layer if probe else None,
        probe_template=probe.probe.file.card.template if probe else "",
        probe_cosine=_probe_cosine(read, groups) if probe else (None, None),
        feature_cosine=(_defined(read.features[:, 0]), _defined(read.features[:, 1])),
        badge=badge_of(kappas["template"], kappas["order"], negation_kappas(pairs)),
        questionnaire=questionnaire,
    )


def _agreements(
    asking: Asking, read: FormsRead, group: str, forms: slice, draw: torch.Generator
) -> list[AgreementRow]:
    labels = len(asking.tokens.labels)
    scores = read.scores[:, forms]
    rows = [
        agreement_row(
            scores.argmax(dim=-1),
            classes=labels,
            group=group,
            readout="answer",
            generator=draw,
            probabilities=scores.softmax(dim=-1),
        )
    ]
    if asking.probe is not None:
        rows.append(
            agreement_row(
                read.probe[:, forms].argmax(dim=-1),
                classes=read.probe.shape[-1],
                group=group,
                readout="probe",
                layer=asking.probe.layer,
                generator=draw,
            )
        )
    lens = read.lens[:, forms]
    if bool((lens >= 0).all()):
        rows += [
            agreement_row(
                lens[..., layer],
                classes=labels,
                group=group,
                readout="lens",
                layer=layer,
                generator=draw,
            )
            for layer in range(lens.shape[-1])
        ]
    return rows


def statement_pairs(
    agrees: Tensor, valid: Tensor, names: Sequence[str], texts: Tensor, draw: torch.Generator
) -> tuple[PairRow, ...]:
    """Compare the wordings and the negations of statements, [m, forms], with the first form.

    `texts` [m] says which text a statement is about: intervals resample texts.
    """
    kinds = {"False/True": "order", "Yes/No": "wording", "No/Yes": "wording"}
    return tuple(
        pair_row(
            agrees[:, 0],
            agrees[:, number],
            valid[:, 0] & valid[:, number],
            kind=kinds.get(name, "negation"),
            names=(names[0], name),
            texts=texts,
            generator=draw,
        )
        for number, name in enumerate(names)
        if number
    )


def _fragments(asking: Asking) -> tuple[str, ...]:
    """Return the words of which the first token says too little, in the first form."""
    words = (asking.tokens.labels, *dict.fromkeys(WORDINGS.values()))
    found = [asking.words(one, asking.template) for one in words]
    return tuple(
        word
        for tokens in found
        if tokens.rule == "whole_label"
        for word in fragments(asking.model.reader, tokens)
    )


def _probe_cosine(read: FormsRead, groups: dict[str, slice]) -> tuple[float | None, float | None]:
    found = [_defined(pair_cosine(read.probe[:, forms])) for forms in groups.values()]
    return found[0], found[1]


def _defined(values: Tensor) -> float | None:
    mean = float(values.double().mean())
    return mean if mean == mean else None


def _questionnaire(
    study: Running, asking: Asking, items: tuple[StatementItem, ...], digest: str
) -> Questionnaire:
    """Ask every item in the four wordings, and its negation in the first."""
    blocks = -(-len(items) // _ITEMS_AT_ONCE)

    def work(number: int) -> dict[str, Tensor]:
        some = list(islice(items, number * _ITEMS_AT_ONCE, (number + 1) * _ITEMS_AT_ONCE))
        return _asked(study, asking, some)

    chunks: Chunks = study.stage("items", blocks, work, phase="asking the items")
    agrees, valid = chunks.joined("agrees"), chunks.joined("valid")
    names = [*WORDINGS, "negation"]
    affirmed, negated = agrees[:, 0] > 0.5, agrees[:, -1] > 0.5
    keys = torch.tensor([one.key for one in items]).double()
    axes = []
    for axis in dict.fromkeys(one.axis for one in items):
        mine = torch.tensor([one.axis == axis for one in items])
        axes.append(
            Axis(
                axis=axis,
                items=int(mine.sum()),
                score=float((keys * (2 * affirmed.double() - 1))[mine].mean()),
                negated_score=float((keys * (1 - 2 * negated.double()))[mine].mean()),
            )
        )
    return Questionnaire(
        file=Path(study.text("items")).name,
        digest=digest,
        items=len(items),
        valid=float(valid.double().mean()),
        pairs=statement_pairs(
            agrees, valid, names, torch.arange(len(items)), study.generator("items")
        ),
        axes=tuple(axes),
    )


def _asked(study: Running, asking: Asking, items: Sequence[StatementItem]) -> dict[str, Tensor]:
    asked: list[tuple[Wording, list[str]]] = [
        (wording, [one.statement for one in items]) for wording in WORDINGS
    ]
    asked.append(("True/False", [one.negation for one in items]))
    try:
        found = [
            read_items(
                asking, texts, item(wording, chat=asking.template.chat), wording, job=study.job
            )
            for wording, texts in asked
        ]
    except TextError as error:
        raise UsageError(
            "An item of the questionnaire cannot be read by this model.", why=error.what
        ) from error
    return {
        "agrees": torch.stack([one.scores[:, 0].exp() for one in found], dim=1),
        "valid": torch.stack([one.valid for one in found], dim=1),
    }


def cost(study: Running) -> Cost:
    """Return a forward a text and form."""
    asking = _asking(study)
    forms = len(asking.names) + _STATEMENTS * len(STATEMENT_FORMS)
    texts = study.run.dataset.texts
    each = len(asking.names) * (4 * len(study.tokens.labels) + 8 * study.model.n_layers + 40)
    width = max((sae.width for sae in study.saes), default=0)
    held = len(asking.names) * _SIZE * study.model.d_model * study.model.n_layers
    return Cost(
        forwards=texts * forms * 1.5,  # the prompts are longer than the one that is timed
        disk_bytes=texts * each,
        memory_bytes=held * study.model.dtype.itemsize + 4 * width * _SIZE * len(asking.names),
    )


STUDY = Implementation(run=run, report=report, cost=cost)
