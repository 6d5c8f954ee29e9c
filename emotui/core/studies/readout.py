"""One row a text: what the model answers, what its trusted probe reads, its strongest features.

Needs no labels; where the dataset has some, answers are also counted against them. Nothing of a
text is kept but its row, so memory does not grow with their number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec
import torch
from torch import Tensor

from emotui.core.engine.collect import Place, batches, places_of
from emotui.core.engine.forms import TrustedProbe, trusted_probe
from emotui.core.studies.common.chunks import Chunks, packed, unpacked
from emotui.core.studies.common.dataset import Item
from emotui.core.studies.common.readings import Batch, run_batch
from emotui.core.studies.common.report import Cell, Heat, Report, Table
from emotui.core.studies.common.resampling import balanced_interval
from emotui.core.studies.common.running import Cost, Implementation, Running

_STAGE = "texts"
_SIZE = 64
_BYTES_PER_TEXT = 600  # of a chunk, about
_FEW = 20  # texts of a label; below, its recall is hardly known


class _Reading(msgspec.Struct, frozen=True):
    """One text."""

    row: int
    id: str
    label: str
    answer: tuple[float, ...]
    """Probability of each label of the set."""
    z: tuple[float | None, ...]
    """Of each emotion of the probe; () without a trusted one."""
    features: tuple[tuple[str, float], ...]
    """Name and activation, the strongest first."""
    text: str
    """"" unless it was asked for."""


class ReadoutResult(msgspec.Struct, frozen=True, kw_only=True):
    """Counts over all texts; the texts themselves are the rows of result.csv."""

    texts: int
    unreadable: int
    """Texts that are too long for the model with this template."""
    labels: tuple[str, ...]
    answers: dict[str, int]
    """Label to number of texts whose likeliest answer it is."""
    mean_probability: float | None
    """Of the likeliest answer, mean over texts; None without any text."""
    gold: tuple[str, ...]
    """Labels of the dataset; () without any."""
    confusion: tuple[tuple[int, ...], ...]
    """[gold, labels]: texts of each label by their answer."""
    balanced_accuracy: float | None
    """Mean recall over the labels of the dataset; None without labels."""
    accuracy_low: float | None = None
    """95 % bootstrap interval of it, texts drawn within their label."""
    accuracy_high: float | None = None
    probe: str
    """Id of the readout probe; "" where none is trusted anywhere in the residual stream."""
    probe_layer: int | None
    """The trusted layer that was best on dev."""


def run(study: Running) -> ReadoutResult:
    """Read every text and count."""
    trusted = trusted_probe(study.probes)
    chunks = study.text_stage(
        _STAGE, lambda items: _chunk(study, items, trusted), size=_SIZE, phase="reading the texts"
    )
    labels, gold = study.tokens.labels, study.dataset.labels
    answers: Counter[str] = Counter()
    confusion: Counter[tuple[str, str]] = Counter()
    total = 0.0
    for reading in _readings(chunks):
        best = max(range(len(labels)), key=lambda n: reading.answer[n])
        answers[labels[best]] += 1
        confusion[reading.label, labels[best]] += 1
        total += reading.answer[best]
    texts = answers.total()
    matrix = tuple(tuple(confusion[one, other] for other in labels) for one in gold)
    recalls = [
        confusion[label, label] / sum(row)
        for label, row in zip(gold, matrix, strict=True)
        if sum(row)
    ]
    low, high = _interval(matrix, gold, labels, study) if recalls else (None, None)
    return ReadoutResult(
        texts=texts,
        unreadable=study.run.dataset.texts - texts,
        labels=labels,
        answers={label: answers[label] for label in labels},
        mean_probability=total / texts if texts else None,
        gold=gold,
        confusion=matrix,
        balanced_accuracy=sum(recalls) / len(recalls) if recalls else None,
        accuracy_low=low,
        accuracy_high=high,
        probe=trusted.probe.id if trusted else "",
        probe_layer=trusted.layer if trusted else None,
    )


def _interval(
    matrix: Sequence[Sequence[int]], gold: Sequence[str], labels: Sequence[str], study: Running
) -> tuple[float, float]:
    """Return the bounds of the balanced accuracy, from how often each label was answered so."""
    right, of = [], []
    for number, (label, row) in enumerate(zip(gold, matrix, strict=True)):
        hits = row[labels.index(label)]
        right += [1.0] * hits + [0.0] * (sum(row) - hits)
        of += [number] * sum(row)
    low, high = balanced_interval(
        torch.tensor(right, dtype=torch.float64), torch.tensor(of), study.generator("intervals")
    )
    return float(low), float(high)


def _chunk(
    study: Running, items: Sequence[Item], trusted: TrustedProbe | None
) -> dict[str, Tensor]:
    found = study.readable(items)
    places = _places(study, trusted)
    readings: dict[int, _Reading] = {}
    for members in batches([len(text.tokens) for _, text in found]):
        prompts = [[token.id for token in found[one][1].tokens] for one in members]
        batch = run_batch(study.model, prompts, study.tokens, places=places, job=study.job)
        answers = batch.scores.softmax(dim=1)
        z = trusted.z(batch.h[places.index(("resid", trusted.layer))]) if trusted else None
        features = _features(study, batch, places)
        for number, member in enumerate(members):
            item = found[member][0]
            readings[member] = _Reading(
                row=item.row,
                id=item.id,
                label=study.dataset.labels[item.label] if item.label >= 0 else "",
                answer=tuple(answers[number].tolist()),
                z=() if z is None else tuple(v if v == v else None for v in z[number].tolist()),
                features=features[number],
                text=item.text if study.text("texts") == "yes" else "",
            )
    return {"readings": packed([readings[number] for number in range(len(found))])}


def _places(study: Running, trusted: TrustedProbe | None) -> tuple[Place, ...]:
    wanted = {(sae.site, sae.layer) for sae in study.saes}
    wanted |= {("resid", trusted.layer)} if trusted else set()
    return tuple(place for place in places_of(study.model.n_layers) if place in wanted)


def _features(
    study: Running, batch: Batch, places: tuple[Place, ...]
) -> list[tuple[tuple[str, float], ...]]:
    """Return the strongest features of each row, by activation times norm of the decoder row."""
    count = study.number("features")
    found: list[list[tuple[float, str, float]]] = [[] for _ in range(batch.h.shape[1])]
    for sae in study.saes:
        f = sae.encode(batch.h[places.index((sae.site, sae.layer))]).float()
        sizes, indices = (f * sae.weights.decoder_norm).topk(min(count, sae.width), dim=1)
        prefix = "" if sae.site == "resid" else f"{sae.site}:"
        for row, (size, index) in enumerate(zip(sizes.tolist(), indices.tolist(), strict=True)):
            found[row] += [
                (-one, f"{prefix}L{sae.layer}/{feature}", float(f[row, feature]))
                for one, feature in zip(size, index, strict=True)
                if one > 0
            ]
    return [tuple((name, value) for _, name, value in sorted(row)[:count]) for row in found]


def _readings(chunks: Chunks) -> Iterator[_Reading]:
    for chunk in chunks:
        yield from unpacked(chunk["readings"], list[_Reading])


def rows(study: Running) -> tuple[Sequence[str], Iterator[Sequence[Cell]]]:
    """Return the columns and rows of the CSV, one row a text."""
    trusted = trusted_probe(study.probes)
    emotions = trusted.probe.emotions if trusted else ()
    labels = study.tokens.labels
    with_texts = study.text("texts") == "yes"
    columns = [
        *("row", "id", "label", "answer", *(f"p_{label}" for label in labels)),
        *(f"z_{emotion}" for emotion in emotions),
        *("features", *(["text"] if with_texts else [])),
    ]
    chunks = study.chunks(_STAGE, size=_SIZE)

    def row(reading: _Reading) -> Sequence[Cell]:
        best = max(range(len(labels)), key=lambda n: reading.answer[n])
        features = "; ".join(f"{name} {value:.4g}" for name, value in reading.features)
        texts = [reading.text] if with_texts else []
        return (
            *(reading.row, reading.id, reading.label, labels[best]),
            *(float(f"{value:.6g}") for value in reading.answer),
            *(None if value is None else float(f"{value:.6g}") for value in reading.z),
            *(features, *texts),
        )

    return columns, (row(reading) for reading in _readings(chunks))


def report(result: ReadoutResult) -> Report:
    """Say how often each answer was given, and how often it was the label."""
    most = max(result.answers, key=lambda label: result.answers[label])
    sentences = [
        f"{result.texts:,} texts were read; the commonest answer is {most} "
        f"({result.answers[most] / max(result.texts, 1):.0%})."
    ]
    if result.unreadable:
        sentences.append(f"{result.unreadable:,} texts are too long for the model with the prompt.")
    if result.balanced_accuracy is not None:
        interval = ""
        if result.accuracy_low is not None and result.accuracy_high is not None:
            interval = f" [{result.accuracy_low:.2f}, {result.accuracy_high:.2f}]"
        few = ", ".join(
            f"{label} {sum(row)}"
            for label, row in zip(result.gold, result.confusion, strict=True)
            if sum(row) < _FEW
        )
        sentences.append(
            "Against the labels of the dataset the answers have a balanced accuracy of "
            f"{result.balanced_accuracy:.2f}{interval}; guessing has {1 / len(result.gold):.2f}."
            + (f" Of some labels there are few texts: {few}." if few else "")
        )
    sentences.append(
        f"z is that of the probe {result.probe} at layer {result.probe_layer}, the best of those "
        "layers where it is trusted."
        if result.probe
        else "No probe is trusted at any layer for this model, template and label set, so none is "
        "listed; `emotui probe fit` fits them."
    )
    table = Table(
        "Answers",
        ("answer", "texts", "share"),
        tuple((a, n, n / max(result.texts, 1)) for a, n in result.answers.items()),
    )
    confusion = tuple(tuple(float(n) for n in row) for row in result.confusion)
    heats = (
        (Heat("Texts of each label (rows) by their answer", result.gold, result.labels, confusion),)
        if result.gold
        else ()
    )
    return Report(tuple(sentences), (table,), heats=heats)


def cost(study: Running) -> Cost:
    """Return one forward a text, and the rows."""
    texts = study.run.dataset.texts
    width = max((sae.width for sae in study.saes), default=0)
    memory = _SIZE * 4 * (width + study.model.d_model * (len(study.saes) + 1))
    return Cost(forwards=texts, disk_bytes=2 * texts * _BYTES_PER_TEXT, memory_bytes=memory)


STUDY = Implementation(run=run, report=report, cost=cost, rows=rows)
