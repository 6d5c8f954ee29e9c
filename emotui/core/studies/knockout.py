"""Knockouts (Tak et al.; METHODS 1.5, 4): what the answer no longer survives.

What one site adds at the readout, over a window of layers, is replaced: by zero, by its mean over
the texts (the default reading: zero is nothing the model ever sees), by a random direction of the
norm it has (several draws), or by what another text has there. How the traps of the method are
met:

- every kind stands beside the random direction of the same norm, draw by draw, and beside the
  first-word task where the model does it: what breaks both breaks everything, not emotion;
- the vector is the tensor added to the residual, after Gemma's post-norms. Tak et al. replace it
  before them, where "same norm" does not mean the same effect;
- all texts count, not only those answered rightly; agreement is with the model's own answer,
  accuracy with the label, and both are given;
- a window without a drop shows redundancy, not irrelevance; the residual itself knocked out leaves
  nothing to answer from, at any layer, and is a check of the method, not a finding;
- windows are cut at the ends of the model, and say so, not left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import torch
from safetensors import safe_open
from torch import Tensor

from emotui.core.engine.collect import Place
from emotui.core.records import Site
from emotui.core.studies.common.chunks import Chunks
from emotui.core.studies.common.dataset import Item
from emotui.core.studies.common.readings import Readings, readings, readings_bytes
from emotui.core.studies.common.report import Cell, Line, Plot, Report, Table
from emotui.core.studies.common.resampling import balanced_interval, mean_interval
from emotui.core.studies.common.running import Cost, Implementation, Running
from emotui.core.studies.common.statistics import balanced
from emotui.core.studies.first_words import FirstWordsSummary, first_words, said
from emotui.core.studies.variants import (
    Change,
    Variant,
    Window,
    choice,
    run_variants,
    sites_of,
    windows_of,
)

Kind = Literal["zero", "mean", "random", "resample"]
KINDS: tuple[Kind, ...] = ("zero", "mean", "random", "resample")
_BLOCK = 8  # texts of a chunk


class KnockoutCurve(msgspec.Struct, frozen=True, kw_only=True):
    """What one kind of knockout of one site does, by the middle layer of its window."""

    task: Literal["emotion", "first word"]
    kind: Kind
    site: Site
    span: int
    layer: tuple[int, ...]
    layers: tuple[int, ...]
    """How many layers each window has: fewer than the span at the ends of the model."""
    texts: int
    draws: int
    """Runs of each text: more than one for `random`, whose numbers are their means."""
    agreement: tuple[float, ...]
    """Share of texts whose answer stays."""
    low: tuple[float, ...]
    """95 % bootstrap interval of it over texts."""
    high: tuple[float, ...]
    lowest: tuple[float, ...]
    """Agreement of the draw in which fewest answers stay."""
    highest: tuple[float, ...]
    accuracy: tuple[float, ...]
    """Balanced accuracy that is left."""
    accuracy_lost: tuple[float, ...]
    """Of the model as it is, less that."""
    lost_low: tuple[float, ...]
    lost_high: tuple[float, ...]
    margin: tuple[float, ...]
    """Mean change of the score of the clean answer less the mean of the others'."""
    kl: tuple[float, ...]
    """Mean divergence of the next token's distribution from the clean one, nats."""


class KnockoutResult(msgspec.Struct, frozen=True, kw_only=True):
    """All curves."""

    texts: int
    unreadable: int
    labels: dict[str, int]
    """Label to texts."""
    answers: dict[str, int]
    """Clean answer to texts."""
    accuracy: float
    """Balanced, of the model as it is, over the labels of the dataset."""
    curves: tuple[KnockoutCurve, ...]
    first_words: FirstWordsSummary | None


@dataclass(frozen=True)
class Plan:
    """The variants of every text, in their order: kinds by draws by windows."""

    kinds: tuple[tuple[Kind, int], ...]
    """Kind and number of the draw."""
    windows: tuple[Window, ...]

    @property
    def places(self) -> tuple[Place, ...]:
        """Every place that is replaced somewhere."""
        return tuple(dict.fromkeys(place for window in self.windows for place in window.places))


def run(study: Running) -> KnockoutResult:
    """Read every text, then knock out every window in every text, in every way."""
    kinds = choice("kinds", study.text("kinds"), KINDS)
    draws = study.number("draws")
    plan = Plan(
        tuple((k, d) for k in kinds for d in range(draws if k == "random" else 1)),
        windows_of(study.model.n_layers, study.numbers("span"), sites_of(study.text("sites"))),
    )
    found = readings(study, plan.places)
    labels = study.tokens.labels
    named = torch.tensor([labels.index(label) for label in study.dataset.labels])
    gold = named[found.gold]
    rows = list(range(len(gold)))
    stage = _knocked(study, found, rows, plan, "knockouts")
    curves = measure(stage, gold, plan, study.generator("intervals"), task="emotion")
    control = first_words(study, plan.places) if study.text("control") != "no" else None
    if control is not None and control.summary.used:
        asked = (control.gold >= 0).nonzero().flatten().tolist()
        told = _knocked(control.study, control.found, asked, plan, "first-word-knockouts")
        curves += measure(
            told, control.gold[asked], plan, study.generator("intervals"), task="first word"
        )
    clean = found.scores.argmax(dim=1)
    counts = Counter(labels[number] for number in clean.tolist())
    truth = Counter(labels[number] for number in gold.tolist())
    return KnockoutResult(
        texts=len(rows),
        unreadable=study.run.dataset.texts - len(rows),
        labels={label: truth[label] for label in labels if truth[label]},
        answers={label: counts[label] for label in labels if counts[label]},
        accuracy=_accuracy(clean, gold),
        curves=curves,
        first_words=control.summary if control else None,
    )


def _accuracy(answers: Tensor, gold: Tensor) -> float:
    return float(_balanced(answers == gold, gold))


def _balanced(right: Tensor, gold: Tensor) -> Tensor:
    """Return the balanced accuracy of `right` [..., n]; only classes that occur count."""
    return balanced(right, gold, classes=int(gold.max()) + 1)


def _knocked(
    study: Running, found: Readings, rows: Sequence[int], plan: Plan, stage: str
) -> Chunks:
    """Knock out every window of every row of the readings; chunks of texts.

    `answer` [texts, variants] int16, `clean` [texts] int16, `margin` and `kl` [texts, variants].
    """
    means = _means(found, plan.places)
    partners = torch.randint(
        max(len(rows) - 1, 1), (len(rows),), generator=study.generator(f"partners {stage}")
    ).tolist()
    at_index = {int(found.index[row]): at for at, row in enumerate(rows)}

    def work(items: Sequence[Item]) -> dict[str, Tensor]:
        members = [(at_index[item.index], item) for item in items if item.index in at_index]
        # Any other text: those behind the row itself are one further on.
        others = [(partners[at] + (partners[at] >= at)) % len(rows) for at, _ in members]
        sampled = at_rows(found, [rows[other] for other in others])
        width = len(plan.kinds) * len(plan.windows)
        answer = torch.zeros(len(members), width, dtype=torch.short)
        clean = torch.zeros(len(members), dtype=torch.short)
        margin, kl = torch.zeros(len(members), width), torch.zeros(len(members), width)
        for one, (at, item) in enumerate(members):
            ids = [token.id for token in study.read(item.text).tokens]
            drawn = _directions(study, plan, f"random {stage} {at}")
            variants = [
                _knock(window, kind, draw, plan.places, means, sampled[:, one], drawn)
                for kind, draw in plan.kinds
                for window in plan.windows
            ]
            outcome = run_variants(study.model, ids, study.tokens, variants, job=study.job)
            label = int(outcome.clean.argmax())
            clean[one] = label
            answer[one] = outcome.scores.argmax(dim=1).short()
            margin[one] = margins(outcome.scores, label) - margins(outcome.clean[None], label)
            kl[one] = outcome.kl
        return {"answer": answer, "clean": clean, "margin": margin, "kl": kl}

    return study.text_stage(stage, work, size=_BLOCK, phase=stage.replace("-", " "))


def margins(scores: Tensor, label: int) -> Tensor:
    """Return the score of a label less the mean of the others', [rows] of [rows, labels]."""
    others = (scores.sum(dim=1) - scores[:, label]) / (scores.shape[1] - 1)
    return scores[:, label] - others


def _means(found: Readings, places: Sequence[Place]) -> Tensor:
    """Return the mean over all texts, [places, d_model], float32; one chunk in memory."""
    total, count = torch.zeros(()), 0
    for chunk in found.chunks:
        total = total + chunk["h"].double().sum(dim=1)
        count += chunk["h"].shape[1]
    assert len(total) == len(places)
    return (total / count).float()


def at_rows(found: Readings, rows: Sequence[int]) -> Tensor:
    """Return what stands at the readout of some rows, [places, len(rows), d_model], from disk."""
    starts, sizes = [0], []
    for number in range(found.chunks.count):
        with safe_open(found.chunks.path(number), framework="pt") as file:
            sizes.append(file.get_slice("index").get_shape()[0])
        starts.append(starts[-1] + sizes[-1])
    parts = []
    for row in rows:
        number = max(n for n in range(len(sizes)) if starts[n] <= row and sizes[n])
        with safe_open(found.chunks.path(number), framework="pt") as file:
            parts.append(file.get_slice("h")[:, row - starts[number]])
    return torch.stack(parts, dim=1) if parts else torch.empty(len(found.places), 0, 0)


def _directions(study: Running, plan: Plan, purpose: str) -> Tensor:
    """Return random unit directions, [draws, places, d_model]."""
    draws = sum(kind == "random" for kind, _ in plan.kinds)
    shape = (draws, len(plan.places), study.model.d_model)
    drawn = torch.randn(shape, generator=study.generator(purpose))
    unit: Tensor = drawn / drawn.norm(dim=-1, keepdim=True)
    return unit


def _knock(
    window: Window,
    kind: Kind,
    draw: int,
    places: Sequence[Place],
    means: Tensor,
    sampled: Tensor,
    drawn: Tensor,
) -> Variant:
    rows = [places.index(place) for place in window.places]
    if kind == "random":
        return [
            Change(place, "turn", drawn[draw, row])
            for place, row in zip(window.places, rows, strict=True)
        ]
    values = {"zero": torch.zeros_like(means), "mean": means, "resample": sampled.float()}[kind]
    return [
        Change(place, "set", values[row]) for place, row in zip(window.places, rows, strict=True)
    ]


def measure(
    chunks: Chunks,
    gold: Tensor,
    plan: Plan,
    generator: torch.Generator,
    *,
    task: Literal["emotion", "first word"],
) -> tuple[KnockoutCurve, ...]:
    """Return the curves of all knockouts, from what `_knocked` keeps; `gold` [texts]."""
    clean = chunks.joined("clean").long()
    n, windows = len(clean), len(plan.windows)
    shape = (n, len(plan.kinds), windows)
    answer = chunks.joined("answer").long().view(shape)
    margin, kl = (chunks.joined(name).double().view(shape) for name in ("margin", "kl"))
    found = []
    for kind in dict.fromkeys(kind for kind, _ in plan.kinds):
        draws = [number for number, (one, _) in enumerate(plan.kinds) if one == kind]
        stays = (answer[:, draws] == clean[:, None, None]).double()  # [texts, draws, windows]
        right = (answer[:, draws] == gold[:, None, None]).double().mean(dim=1)
        lost = (clean == gold).double()[:, None] - right
        agreement = stays.mean(dim=1)
        low, high = mean_interval(agreement, generator)
        lost_low, lost_high = balanced_interval(lost, gold, generator)
        columns = {
            "agreement": agreement.mean(dim=0),
            "low": low,
            "high": high,
            "lowest": stays.mean(dim=0).amin(dim=0),
            "highest": stays.mean(dim=0).amax(dim=0),
            "accuracy": _balanced(right.T, gold),
            "accuracy_lost": _balanced(lost.T, gold),
            "lost_low": lost_low,
            "lost_high": lost_high,
            "margin": margin[:, draws].mean(dim=(0, 1)),
            "kl": kl[:, draws].mean(dim=(0, 1)),
        }
        for site, span in dict.fromkeys((window.site, window.span) for window in plan.windows):
            rows = [k for k, w in enumerate(plan.windows) if (w.site, w.span) == (site, span)]
            found.append(
                KnockoutCurve(
                    task=task,
                    kind=kind,
                    site=site,
                    span=span,
                    layer=tuple(plan.windows[row].center for row in rows),
                    layers=tuple(len(plan.windows[row].layers) for row in rows),
                    texts=n,
                    draws=len(draws),
                    **{name: tuple(values[rows].tolist()) for name, values in columns.items()},
                )
            )
    return tuple(found)


def report(result: KnockoutResult) -> Report:
    """Say what the answer needs, and lay every curve beside the random direction."""
    columns = (
        *("task", "kind", "site", "span", "layer", "layers", "texts", "draws", "agreement"),
        *("low", "high", "lowest", "highest", "accuracy", "accuracy_lost", "lost_low"),
        *("lost_high", "margin", "kl"),
    )
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            *(c.task, c.kind, c.site, c.span, c.layer[n], c.layers[n], c.texts, c.draws),
            *(c.agreement[n], c.low[n], c.high[n], c.lowest[n], c.highest[n], c.accuracy[n]),
            *(c.accuracy_lost[n], c.lost_low[n], c.lost_high[n], c.margin[n], c.kl[n]),
        )
        for c in result.curves
        for n in range(len(c.layer))
    )
    plots = []
    for site, span in dict.fromkeys((c.site, c.span) for c in result.curves):
        those = [c for c in result.curves if (c.site, c.span) == (site, span)]
        plots.append(
            Plot(
                f"Answers that stay, {site}, span {span}",
                "layer",
                "share of texts",
                tuple(_line(c) for c in those),
            )
        )
        plots.append(
            Plot(
                f"Accuracy lost, {site}, span {span}",
                "layer",
                "balanced accuracy lost",
                tuple(
                    Line(
                        name=_name(c),
                        x=tuple(map(float, c.layer)),
                        y=c.accuracy_lost,
                        low=c.lost_low if _is_main(c) else (),
                        high=c.lost_high if _is_main(c) else (),
                        control=not _is_main(c),
                    )
                    for c in those
                ),
            )
        )
    return Report(
        tuple(_sentences(result)),
        (Table("Knockouts by site, span and layer", columns, rows),),
        tuple(plots),
    )


def _is_main(c: KnockoutCurve) -> bool:
    return c.task == "emotion" and c.kind != "random"


def _name(c: KnockoutCurve) -> str:
    return c.kind if c.task == "emotion" else f"first word, {c.kind}"


def _line(c: KnockoutCurve) -> Line:
    # The band of the random direction is its draws; of the others, the texts.
    main = _is_main(c)
    random = c.kind == "random" and c.task == "emotion"
    low, high = (c.low, c.high) if main else (c.lowest, c.highest) if random else ((), ())
    return Line(
        name=_name(c),
        x=tuple(map(float, c.layer)),
        y=c.agreement,
        low=low,
        high=high,
        control=not main,
    )


def _sentences(result: KnockoutResult) -> list[str]:
    counts = ", ".join(f"{label} {n}" for label, n in result.labels.items())
    answers = ", ".join(f"{label} {n}" for label, n in result.answers.items())
    found = [
        f"{result.texts:,} texts ({counts}); the model answers {answers}, with a balanced accuracy "
        f"of {result.accuracy:.2f}."
    ]
    emotion = {(c.kind, c.site, c.span): c for c in result.curves if c.task == "emotion"}
    words = {(c.kind, c.site, c.span): c for c in result.curves if c.task == "first word"}
    for (kind, site, span), c in emotion.items():
        random = emotion.get(("random", site, span))
        if kind == "random" or (kind != "mean" and ("mean", site, span) in emotion):
            continue
        if site == "resid":
            continue
        n = min(range(len(c.layer)), key=lambda at: c.agreement[at])
        line = (
            f"{site}, span {span}, {kind}: fewest answers stay around layer {c.layer[n]}, "
            f"{c.agreement[n]:.2f} [{c.low[n]:.2f}, {c.high[n]:.2f}]; accuracy lost "
            f"{c.accuracy_lost[n]:.2f}"
        )
        if random is not None:
            line += (
                f". A random direction of the same norm leaves {random.agreement[n]:.2f} there "
                f"({random.draws} draws, {random.lowest[n]:.2f} to {random.highest[n]:.2f})"
            )
        if (kind, site, span) in words:
            line += f"; of the first-word answers {words[kind, site, span].agreement[n]:.2f} stay"
        found.append(line + ". The layer was chosen on these texts.")
    found.append(said(result.first_words))
    found.append("Where nothing drops, other layers can do the same work: that is redundancy.")
    if result.unreadable:
        found.append(f"Texts too long for the model with the prompt: {result.unreadable:,}.")
    return found


def cost(study: Running) -> Cost:
    """Return two forwards a text, and a last token for each variant."""
    model, texts = study.model, study.run.dataset.texts
    kinds = choice("kinds", study.text("kinds"), KINDS)
    draws = study.number("draws") if "random" in kinds else 0
    sites = len(sites_of(study.text("sites")))
    windows = len(study.numbers("span")) * sites * model.n_layers
    variants = windows * (len(kinds) - bool(draws) + draws)
    tasks = 2 if study.text("control") != "no" else 1
    places = sites * model.n_layers
    return Cost(
        forwards=tasks * texts * (3 + variants / 20),
        disk_bytes=tasks * (readings_bytes(study, places) + texts * variants * 10),
        memory_bytes=texts * variants * 40 + 2**27 + places * model.d_model * (draws + 8) * 4,
    )


STUDY = Implementation(run=run, report=report, cost=cost)
