"""Does the model go from tokens over meaning to emotion in phases (SAE paper; METHODS 2.2)?

Three curves over the layers: `token`, how surely a firing feature gives its token away, less what
the commonest token scores; `semantic`, how well a non-affective column named by the user (the
topic, for the bundled situations) is read from the readout, less values shuffled as the folds
leave them exchangeable; `emotion`, how
often another text's readout put in place carries its answer over. Traps avoided: what can be read
only ramps while what is used steps, so the emotion curve of the segmentation is the causal one,
and the decodable one (share of activation on selective features) stands beside it; the number of
phases is S and G of `phase_segments`, never BIC, and steps that are no better than smooth curves
are none; features and tokens are chosen on one half of the texts and judged on the other; a curve
that is noise, which scaling to 0..1 would blow up to steps, has no part in the segmentation;
boundaries come with an interval; a verdict of "gradual" is a result. Valence runs beside category,
since affect may be there before its kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from emotui.core.engine.capture import Hook
from emotui.core.engine.collect import Place
from emotui.core.engine.layered import Layered
from emotui.core.engine.rerun import rerun
from emotui.core.errors import UsageError
from emotui.core.records import EMBEDDING_LAYER
from emotui.core.studies.common.dataset import BUNDLED, Item
from emotui.core.studies.common.readings import Readings, readings, readings_bytes, run_batch
from emotui.core.studies.common.running import Cost, Implementation, Running
from emotui.core.studies.decided import captured, putting, scores_of
from emotui.core.studies.phase_curves import (
    FOLDS,
    Ranked,
    fold_of,
    ranked,
    read_correctly,
    shuffled_within,
    token_hits,
)
from emotui.core.studies.phase_report import report
from emotui.core.studies.phase_results import Measured, PhasesResult, measure
from emotui.core.studies.sae_texts import (
    NEGATIVE,
    POSITIVE,
    FeatureTexts,
    feature_bytes,
    feature_texts,
    halves,
    residual_saes,
)

_SHUFFLES = 100
_SEMANTIC_SHUFFLES = 199
_PAIRS_AT_ONCE = 8
_LEAST = 10
_MOST_VALUES = 20
"""Different numbers in a column above which they are cut into thirds."""


def run(study: Running) -> PhasesResult:
    """Read all texts, patch pairs of them, and segment the curves."""
    saes = [n for n, sae in enumerate(residual_saes(study)) if sae.site == "resid"]
    if len(saes) < 4:
        raise UsageError(
            "There are too few SAEs of the residual stream to speak of phases.",
            why=f"There are {len(saes)}; a phase is at least two layers.",
            todo="Name SAEs of more layers with --sae.",
        )
    found = feature_texts(study, events=True)
    layers = [found.saes[n].layer for n in saes]
    places: tuple[Place, ...] = tuple(("resid", layer) for layer in layers)
    read = readings(study, places)
    items = study.dataset.items(found.index.tolist())
    first = halves(items, study.run.seed)
    target, name = _semantic(study, items)

    def work(number: int) -> dict[str, Tensor]:
        h = read.at(places[number])
        return _layer(study, found, saes[number], h, first, items, target)

    chunks = study.stage("layers", len(saes), work, phase="measuring the layers")
    columns = {key: torch.stack([chunk[key] for chunk in chunks], dim=-1) for key in chunks.get(0)}
    pairs, source, swapped = _patched(study, read, items, layers)
    measured = Measured(
        layers=tuple(layers),
        semantic=name,
        first=first,
        columns=columns,
        units=_units(items),
        read_units=None if target is None else target.units,
        pairs=pairs,
        source=source,
        patched=swapped,
        valence=_valence(study.tokens.labels),
    )
    counts = Counter(study.dataset.labels[item.label] for item in items)
    return measure(
        measured,
        generator=study.generator("draws"),
        texts=len(items),
        unreadable=study.run.dataset.texts - len(items),
        labels={label: counts[label] for label in study.dataset.labels},
        fits=tuple(fit for n, fit in enumerate(found.fits()) if n in saes),
    )


@dataclass(frozen=True)
class _Target:
    """A content of the texts that is no emotion."""

    rows: Tensor
    """[m], long: texts that have a value shared by enough others."""
    values: Tensor
    """[m], long."""
    classes: int
    units: Tensor
    """[m], long: texts of one unit share value, label and group, and are on one side of a split."""
    labels: Tensor
    """[m], long."""
    folds: Tensor
    """[m], long."""


def _semantic(study: Running, items: Sequence[Item]) -> tuple[_Target | None, str]:
    name = study.text("semantic")
    if name:
        given = [item.extra[0] for item in items]
    elif study.request.data == BUNDLED:
        name, given = "topic", [item.group for item in items]
    else:
        return None, ""
    given = _in_thirds(given)
    counts = Counter(value for value in given if value)
    kept = sorted(value for value, n in counts.items() if n >= FOLDS)
    if len(kept) < 2 and not study.text("semantic"):
        return None, ""
    if len(kept) < 2:
        raise UsageError(
            f"The column {name} cannot be read from the texts.",
            why=f"Fewer than two of its {len(counts):,} values stand with {FOLDS} texts.",
            todo="Name a column with few values with --set semantic=COLUMN.",
        )
    rows = torch.tensor([n for n, value in enumerate(given) if value in set(kept)])
    values = torch.tensor([kept.index(given[row]) for row in rows.tolist()])
    # Pairs of situations share value and label: they are not to be on two sides of a split.
    units: dict[tuple[str, int, str], int] = {}
    keys = [(given[r], items[r].label, items[r].group) for r in rows.tolist()]
    unit = torch.tensor([units.setdefault(key, len(units)) for key in keys])
    folds = fold_of(unit, study.generator("folds"))
    labels = torch.tensor([items[r].label for r in rows.tolist()])
    return _Target(rows, values, len(kept), unit, labels, folds), name


def _in_thirds(given: list[str]) -> list[str]:
    """Return the values; many different numbers as the third they lie in."""
    if len(set(given)) <= _MOST_VALUES:
        return given
    try:
        values = [float(value) for value in given]
    except ValueError:
        return given
    cuts = torch.tensor(values).quantile(torch.tensor([1 / 3, 2 / 3])).tolist()
    return [str(sum(value > cut for cut in cuts)) for value in values]


def _valence(labels: Sequence[str]) -> Tensor:
    return torch.tensor([(label in POSITIVE) - (label in NEGATIVE) for label in labels])


def _layer(
    study: Running,
    found: FeatureTexts,
    number: int,
    h: Tensor,
    first: Tensor,
    items: Sequence[Item],
    target: _Target | None,
) -> dict[str, Tensor]:
    """Return what one layer gives, text by text."""
    hits, base, events = token_hits(*found.events(number), first)
    f, sizes = found.at_readout(number), found.saes[number].weights.decoder_norm.cpu()
    mass = f * sizes
    labels = found.gold
    kept = _frequent(labels, first, len(study.dataset.labels))
    kinds = ranked(f, mass, first)
    sign = _valence(study.dataset.labels)[labels]
    affective = sign != 0
    feelings = ranked(f[affective], mass[affective], first[affective])
    feelings = replace(feelings, share=kinds.share)  # of the mass of all texts, as the curve is
    units, generator = _units(items), "shuffled labels"  # the same shufflings at every layer
    felt = [sign[affective] == one for one in (1, -1)]
    tensors = {
        "hits": hits,
        "base": base,
        "events": events,
        "mass": (mass * kinds.selective(torch.stack([labels == k for k in kept]))).sum(dim=1),
        "valence_mass": (mass * feelings.selective(torch.stack(felt))).sum(dim=1),
        "whole": mass.sum(dim=1),
        "null": _null(study, kinds, labels, units, kept, generator),
        "valence_null": _null(
            study, feelings, sign[affective], units[affective], (1, -1), generator
        ),
    }
    tensors = {name: tensor.double() for name, tensor in tensors.items()}
    if target is not None:
        dealer = study.generator("shuffled semantic")
        shuffled = [
            shuffled_within(target.values, target.units, target.labels, dealer)
            for _ in range(_SEMANTIC_SHUFFLES)
        ]
        study.job.check()
        right = read_correctly(
            h[target.rows].double(),
            torch.stack([target.values, *shuffled]),
            target.folds,
            classes=target.classes,
        ).double()
        tensors |= {"right": right[0], "semantic_null": right[1:].mean(dim=1)}
    return tensors


def _units(items: Sequence[Item]) -> Tensor:
    """Return the unit [n] of each text: those of one group and label are not independent."""
    units: dict[tuple[str, int], int] = {}
    return torch.tensor([units.setdefault((item.group, item.label), len(units)) for item in items])


def _frequent(labels: Tensor, first: Tensor, classes: int) -> list[int]:
    """Return the labels with ten texts in each half, or all where fewer than two have.

    By a few texts any feature may be selective, shuffled labels or not.
    """
    halves_of = [(first & (labels == k), ~first & (labels == k)) for k in range(classes)]
    kept = [k for k, sides in enumerate(halves_of) if min(int(s.sum()) for s in sides) >= _LEAST]
    return kept if len(kept) > 1 else list(range(classes))


def _null(
    study: Running,
    found: Ranked,
    labels: Tensor,
    units: Tensor,
    kept: Sequence[int],
    purpose: str,
) -> Tensor:
    """Return the share of mass [shuffles] on features selective for shuffled labels of units."""
    names, of_text = torch.unique(units, return_inverse=True)
    of_unit = torch.zeros(len(names), dtype=torch.long)
    of_unit[of_text] = labels
    generator = study.generator(purpose)
    shares = []
    for _ in range(_SHUFFLES):
        study.job.check()
        drawn = of_unit[torch.randperm(len(of_unit), generator=generator)][of_text]
        shares.append(found.mass_on(torch.stack([drawn == k for k in kept])))
    return torch.stack(shares)


def _patched(
    study: Running, read: Readings, items: Sequence[Item], layers: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return source and target [pairs, 2] as rows of the texts, their answers [pairs, 2], and the
    answer [pairs, layers] of each target with the source's readout put at a layer.

    Without two different answers, no pairs.
    """
    answers = read.scores.argmax(dim=1)
    pairs = _pairs(study, answers)
    count = -(-len(pairs) // _PAIRS_AT_ONCE)

    def work(number: int) -> dict[str, Tensor]:
        mine = pairs[number * _PAIRS_AT_ONCE : (number + 1) * _PAIRS_AT_ONCE]
        return {
            "texts": mine,
            "answers": answers[mine],
            "patched": torch.stack([_patch(study, items, pair, layers) for pair in mine.tolist()]),
        }

    chunks = study.stage("patched", count, work, phase="patching")
    if not count:
        none = torch.zeros(0, 2, dtype=torch.long)
        return none, none, torch.zeros(0, len(layers), dtype=torch.long)
    return chunks.joined("texts"), chunks.joined("answers"), chunks.joined("patched")


def _pairs(study: Running, answers: Tensor) -> Tensor:
    """Draw pairs of texts that are answered differently, each pair of answers as often."""
    generator = study.generator("pairs")
    by_answer = {a: (answers == a).nonzero().flatten() for a in sorted(set(answers.tolist()))}
    kinds = [(a, b) for a in by_answer for b in by_answer if a != b]
    if not kinds:
        return torch.zeros(0, 2, dtype=torch.long)
    order = torch.randperm(len(kinds), generator=generator).tolist()
    drawn = []
    for number in range(study.number("pairs")):
        kind = kinds[order[number % len(kinds)]]
        drawn.append(
            [
                int(by_answer[a][torch.randint(len(by_answer[a]), (1,), generator=generator)])
                for a in kind
            ]
        )
    return torch.tensor(drawn)


@torch.no_grad()
def _patch(
    study: Running, items: Sequence[Item], pair: Sequence[int], layers: Sequence[int]
) -> Tensor:
    """Return the answer [layers] of a target with the readout of a source put at each layer."""
    texts = [study.read(items[row].text) for row in pair]
    source, target = (captured(study, text) for text in texts)
    h = source.kept["resid"].since(1).each(lambda part: part[:, texts[0].readout])
    model, at = study.model, texts[1].readout
    if study.tokens.rule == "whole_label":
        prompt = [token.id for token in texts[1].tokens]
        return torch.stack([_whole(study, prompt, h, layer, at) for layer in layers])
    rows = rerun(
        model,
        target.at("resid", EMBEDDING_LAYER),
        start=0,
        n_rows=model.n_layers,
        hooks=putting(h),
        first=at,
        job=study.job,
    )
    return scores_of(study, rows.logits)[list(layers)].argmax(dim=1)


def _whole(study: Running, prompt: list[int], h: Layered, layer: int, at: int) -> Tensor:
    """Return one patched answer where whole labels are compared: a forward for each layer."""

    def put(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        changed[:, at] = h[layer].to(changed)
        return changed

    batch = run_batch(
        study.model,
        [prompt],
        study.tokens,
        edits=lambda _rows: [Hook("resid", layer, put)],
        job=study.job,
    )
    return batch.scores[0].argmax()


def cost(study: Running) -> Cost:
    """Return two forwards a text, a pair's three, and the arithmetic over the widest SAE."""
    texts, layers = study.run.dataset.texts, study.model.n_layers
    width = max((sae.width for sae in study.saes), default=0)
    work = layers * _SHUFFLES * texts * width * 8
    return Cost(
        forwards=2.5 * texts + 4 * study.number("pairs"),
        disk_bytes=feature_bytes(study, events=True) + readings_bytes(study, layers),
        memory_bytes=16 * texts * width,
        seconds=work / 5e8,
    )


STUDY = Implementation(run=run, report=report, cost=cost)
