"""Activation patching (Tak et al.; METHODS 1.4, 4): where the answer is carried over.

The readout of a source text is put into the run of a target text of another emotion, at one site,
over a window of layers; the answer then is the source's (transfer), still the target's (kept), or
neither. Prompts differ in length; only the last token, the readout, stands for the same thing in
both, so it alone is patched. How the traps of the method are met:

- the same pairs at every layer, site and span (the release draws new ones for each layer), spread
  evenly over the pairs of emotions and over their texts, and drawn from the seed; where an emotion
  has few texts these repeat, so intervals resample texts, not pairs;
- beside every curve: a source of the target's own emotion, and a random vector of the source's
  norm, both scored against the same pair; and the first-word task, where the model does it. A
  vector that only erases the target's answer has a recovery of about a half, and no transfer;
- attention and MLP outputs are the tensors added to the residual, after Gemma's post-norms;
- windows are cut at the ends of the model, and say so, not left out;
- of the residual only a window's last layer matters, so only the shortest span is patched there;
  and a late residual transfers by construction: the answer is read from it. It says where the
  answer is complete, not where it is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import msgspec
import torch
from torch import Tensor

from emotui.core.engine.collect import Place
from emotui.core.errors import UsageError
from emotui.core.records import Site
from emotui.core.studies.common.chunks import Chunks
from emotui.core.studies.common.readings import Readings, readings, readings_bytes, run_batch
from emotui.core.studies.common.report import Cell, Heat, Line, Plot, Report, Table
from emotui.core.studies.common.resampling import INTERVAL_DRAWS, pair_interval
from emotui.core.studies.common.running import Cost, Implementation, Running
from emotui.core.studies.first_words import FirstWordsSummary, first_words, said
from emotui.core.studies.patch_pairs import Pair, draw_pairs
from emotui.core.studies.variants import (
    Change,
    Variant,
    Window,
    run_variants,
    sites_of,
    windows_of,
)

Source = Literal["other", "same", "random"]
SOURCES: tuple[Source, ...] = ("other", "same", "random")
"""A text of another emotion; of the target's own; a random vector of the first one's norm."""
_BLOCK = 4  # pairs of a chunk
_NAMES = {"other": "", "same": "same emotion", "random": "random vector"}


class PatchCurve(msgspec.Struct, frozen=True, kw_only=True):
    """What patching one site over windows of one span does, by the window's middle layer."""

    task: Literal["emotion", "first word"]
    source: Source
    site: Site
    span: int
    layer: tuple[int, ...]
    layers: tuple[int, ...]
    """How many layers each window has: fewer than the span at the ends of the model."""
    pairs: int
    transfer: tuple[float, ...]
    """Share of pairs that answer as their source (of another emotion) does."""
    low: tuple[float, ...]
    """95 % interval of it by the pigeonhole bootstrap over texts."""
    high: tuple[float, ...]
    kept: tuple[float, ...]
    """Share that answer as the target does."""
    neither: tuple[float, ...]
    recovery: tuple[float, ...]
    """Mean of (m - m_target) / (m_source - m_target), m the score of the source's answer less that
    of the target's: 0 nothing, 1 all."""
    recovery_low: tuple[float, ...]
    recovery_high: tuple[float, ...]


class PatchResult(msgspec.Struct, frozen=True, kw_only=True):
    """All curves, and who was paired with whom."""

    texts: int
    unreadable: int
    correct: bool
    """Whether only texts that the model answers by their label were paired."""
    usable: dict[str, int]
    """Answer to texts that could be paired."""
    pairs: int
    distinct: int | None = None
    """Texts in the pairs, as source or target; None in results of before this was counted."""
    most_used: int | None = None
    """Pairs that the text used most is in."""
    distinct_by_answer: dict[str, int] = {}
    """Answer to texts in the pairs."""
    emotions: tuple[str, ...]
    drawn: tuple[tuple[int, ...], ...]
    """[sources, targets]: pairs of each two answers."""
    curves: tuple[PatchCurve, ...]
    matrix_site: Site
    matrix_span: int
    matrix_layer: int
    """Where `other` transfers most at `matrix_site`: chosen on these very pairs."""
    matrix: tuple[tuple[float | None, ...], ...]
    """[sources, targets]: transfer there; None without a pair."""
    first_words: FirstWordsSummary | None
    first_words_pairs: int


def run(study: Running) -> PatchResult:
    """Answer every text, pair texts of different answers, patch each pair everywhere."""
    windows = _windows(study)
    count = study.number("pairs")
    only_right = study.text("correct") != "no"
    found = readings(study, ())
    answers = found.scores.argmax(dim=1)
    named = torch.tensor([study.tokens.labels.index(label) for label in study.dataset.labels])
    gold = named[found.gold]
    usable = [row for row in range(len(answers)) if answers[row] == gold[row] or not only_right]
    pairs = draw_pairs(answers, usable, count, study.generator("pairs"))
    labels = study.tokens.labels
    counts = Counter(labels[int(answers[row])] for row in usable)
    if not pairs:
        said_right = "rightly answered " if only_right else ""
        listed = ", ".join(f"{label} {n}" for label, n in counts.items()) or "none"
        raise UsageError(
            "No texts could be paired.",
            why=f"Two {said_right}texts of each of two answers are needed; there are: {listed}.",
            todo="Give more texts"
            + (", or pair wrongly answered ones too: --set correct=no." if only_right else "."),
        )
    stage = _patched(study, found, pairs, windows, "even-pairs", SOURCES)
    curves = measure(stage, windows, SOURCES, pairs, study.generator("intervals"), task="emotion")
    site, span, layer, matrix, drawn = _matrix(stage, windows, curves, len(labels))
    control, control_pairs = None, []
    if study.text("control") != "no":
        control = first_words(study, ())
        if control is not None and control.summary.used:
            words = control.found.scores.argmax(dim=1)
            right = [n for n in range(len(words)) if words[n] == control.gold[n]]
            control_pairs = draw_pairs(words, right, count, study.generator("first-word pairs"))
        if control is not None and control_pairs:
            told = _patched(
                control.study, control.found, control_pairs, windows, "even-first-words", ("other",)
            )
            draw = study.generator("intervals")
            curves += measure(told, windows, ("other",), control_pairs, draw, task="first word")
    times = Counter(row for pair in pairs for row in (pair.source, pair.target))
    of = Counter(labels[int(answers[row])] for row in times)
    return PatchResult(
        texts=len(answers),
        unreadable=study.run.dataset.texts - len(answers),
        correct=only_right,
        usable={label: counts[label] for label in labels if counts[label]},
        pairs=len(pairs),
        distinct=len(times),
        most_used=max(times.values()),
        distinct_by_answer={label: of[label] for label in labels if of[label]},
        emotions=labels,
        drawn=drawn,
        curves=curves,
        matrix_site=site,
        matrix_span=span,
        matrix_layer=layer,
        matrix=matrix,
        first_words=control.summary if control else None,
        first_words_pairs=len(control_pairs),
    )


def _windows(study: Running) -> tuple[Window, ...]:
    """Return the windows to patch; of the residual those of the shortest span alone."""
    spans, sites = study.numbers("span"), sites_of(study.text("sites"))
    found = windows_of(study.model.n_layers, spans, sites)
    return tuple(one for one in found if one.site != "resid" or one.span == min(spans))


def _patched(
    study: Running,
    found: Readings,
    pairs: Sequence[Pair],
    windows: Sequence[Window],
    stage: str,
    sources: Sequence[Source],
) -> Chunks:
    """Patch every pair at every window from every source; chunks of pairs.

    `scores` [pairs, sources, windows, labels]; `source` and `target` [pairs, labels], clean.
    """
    places = tuple(dict.fromkeys(place for window in windows for place in window.places))

    def work(number: int) -> dict[str, Tensor]:
        kept: dict[str, list[Tensor]] = {"scores": [], "source": [], "target": []}
        for at in range(number * _BLOCK, min((number + 1) * _BLOCK, len(pairs))):
            pair = pairs[at]
            rows = (pair.source, pair.target, pair.same)
            items = study.dataset.items([int(found.index[row]) for row in rows])
            prompts = [[token.id for token in study.read(item.text).tokens] for item in items]
            vectors: dict[Source, Tensor] = {}
            by_source: dict[Source, list[int]] = {"other": prompts[0], "same": prompts[2]}
            for source, prompt in by_source.items():
                if source in sources:
                    batch = run_batch(
                        study.model, [prompt], study.tokens, places=places, job=study.job
                    )
                    vectors[source] = batch.h[:, 0]
                    if source == "other":
                        kept["source"].append(batch.scores[0])
            if "random" in sources:
                drawn = torch.randn(
                    vectors["other"].shape, generator=study.generator(f"random {stage} {at}")
                ).to(vectors["other"].device)
                norms = vectors["other"].float().norm(dim=-1, keepdim=True)
                vectors["random"] = drawn / drawn.norm(dim=-1, keepdim=True) * norms
            variants = [
                _patch(window, places, vectors[source]) for source in sources for window in windows
            ]
            outcome = run_variants(study.model, prompts[1], study.tokens, variants, job=study.job)
            kept["target"].append(outcome.clean)
            kept["scores"].append(outcome.scores.view(len(sources), len(windows), -1))
        return {name: torch.stack(tensors) for name, tensors in kept.items()}

    count = -(-len(pairs) // _BLOCK)
    return study.stage(stage, count, work, phase="patching pairs")


def _patch(window: Window, places: Sequence[Place], vectors: Tensor) -> Variant:
    return [Change(place, "set", vectors[places.index(place)]) for place in window.places]


def measure(
    chunks: Chunks,
    windows: Sequence[Window],
    sources: Sequence[Source],
    pairs: Sequence[Pair],
    generator: torch.Generator,
    *,
    task: Literal["emotion", "first word"],
) -> tuple[PatchCurve, ...]:
    """Return the curves of patched `pairs`, from what `_patched` keeps of them."""
    scores, source, target = (chunks.joined(name) for name in ("scores", "source", "target"))
    found = []
    for number, name in enumerate(sources):
        moved, kept, recovery = shares(scores[:, number], source, target)
        texts = [(one.same if name == "same" else one.source, one.target) for one in pairs]
        low, high = pair_interval(moved, texts, generator)
        recovery_low, recovery_high = pair_interval(recovery, texts, generator)
        for site, span in dict.fromkeys((window.site, window.span) for window in windows):
            rows = [n for n, w in enumerate(windows) if (w.site, w.span) == (site, span)]

            def of(values: Tensor, rows: list[int] = rows) -> tuple[float, ...]:
                return tuple(values[rows].tolist())

            found.append(
                PatchCurve(
                    task=task,
                    source=name,
                    site=site,
                    span=span,
                    layer=tuple(windows[row].center for row in rows),
                    layers=tuple(len(windows[row].layers) for row in rows),
                    pairs=len(scores),
                    transfer=of(moved.mean(dim=0)),
                    low=of(low),
                    high=of(high),
                    kept=of(kept.mean(dim=0)),
                    neither=of(1 - moved.mean(dim=0) - kept.mean(dim=0)),
                    recovery=of(recovery.mean(dim=0)),
                    recovery_low=of(recovery_low),
                    recovery_high=of(recovery_high),
                )
            )
    return tuple(found)


def shares(scores: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return transfer, kept and recovery of each pair and window, each [pairs, windows], float64.

    `scores` is [pairs, windows, labels] after patching; `source` and `target` [pairs, labels] are
    the clean scores, whose largest are the answers to be carried over and to be kept.
    """
    one, other = source.argmax(dim=1), target.argmax(dim=1)
    answers = scores.argmax(dim=2)
    rows = torch.arange(len(scores))

    def margin(of: Tensor) -> Tensor:
        return of[rows, ..., one].double() - of[rows, ..., other].double()

    before, whole = margin(target), margin(source)
    recovery = (margin(scores) - before[:, None]) / (whole - before).clamp_min(1e-12)[:, None]
    moved = (answers == one[:, None]).double()
    return moved, (answers == other[:, None]).double(), recovery


def _matrix(
    chunks: Chunks, windows: Sequence[Window], curves: Sequence[PatchCurve], labels: int
) -> tuple[Site, int, int, tuple[tuple[float | None, ...], ...], tuple[tuple[int, ...], ...]]:
    """Return the transfer between every two answers at the window that transfers most."""
    site: Site = "attn" if any(w.site == "attn" for w in windows) else windows[0].site
    best = max(
        (
            (c, n)
            for c in curves
            if (c.source, c.site) == ("other", site)
            for n in range(len(c.layer))
        ),
        key=lambda one: one[0].transfer[one[1]],
    )
    span, layer = best[0].span, best[0].layer[best[1]]
    at = next(n for n, w in enumerate(windows) if (w.site, w.span, w.center) == (site, span, layer))
    source, target = chunks.joined("source"), chunks.joined("target")
    moved, _, _ = shares(chunks.joined("scores")[:, 0], source, target)
    total = torch.zeros(labels, labels)
    count = torch.zeros(labels, labels, dtype=torch.long)
    places = (source.argmax(dim=1), target.argmax(dim=1))
    total.index_put_(places, moved[:, at].float(), accumulate=True)
    count.index_put_(places, torch.ones(len(source), dtype=torch.long), accumulate=True)
    matrix = tuple(
        tuple(float(total[a, b] / count[a, b]) if count[a, b] else None for b in range(labels))
        for a in range(labels)
    )
    return site, span, layer, matrix, tuple(map(tuple, count.tolist()))


def report(result: PatchResult) -> Report:
    """Say where patching carries the answer over, and lay every curve beside its controls."""
    columns = (
        *("task", "source", "site", "span", "layer", "layers", "pairs", "transfer", "low", "high"),
        *("kept", "neither", "recovery", "recovery_low", "recovery_high"),
    )
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            *(c.task, c.source, c.site, c.span, c.layer[n], c.layers[n], c.pairs, c.transfer[n]),
            *(c.low[n], c.high[n], c.kept[n], c.neither[n], c.recovery[n]),
            *(c.recovery_low[n], c.recovery_high[n]),
        )
        for c in result.curves
        for n in range(len(c.layer))
    )
    plots = []
    for site, span in dict.fromkeys((c.site, c.span) for c in result.curves):
        those = [c for c in result.curves if (c.site, c.span) == (site, span)]
        plots.append(_plot(f"Transfer, {site}, span {span}", "share of pairs", those, "transfer"))
        plots.append(_plot(f"Recovery, {site}, span {span}", "recovery", those, "recovery"))
    heat = Heat(
        f"Transfer from (rows) to (columns), {result.matrix_site}, span {result.matrix_span}, "
        f"layer {result.matrix_layer} (chosen on these pairs)",
        result.emotions,
        result.emotions,
        result.matrix,
    )
    return Report(
        tuple(_sentences(result)),
        (Table("Patching by site, span and layer", columns, rows),),
        tuple(plots),
        (heat,),
    )


def _plot(title: str, label: str, curves: Sequence[PatchCurve], what: str) -> Plot:
    lines = []
    for c in curves:
        control = c.task == "first word" or c.source != "other"
        name = "first word" if c.task == "first word" else _NAMES[c.source] or c.site
        y = c.transfer if what == "transfer" else c.recovery
        low, high = (c.low, c.high) if what == "transfer" else (c.recovery_low, c.recovery_high)
        band = ((), ()) if control else (low, high)
        x = tuple(map(float, c.layer))
        lines.append(Line(name=name, x=x, y=y, low=band[0], high=band[1], control=control))
    return Plot(title, "layer", label, tuple(lines))


def _sentences(result: PatchResult) -> list[str]:
    usable = ", ".join(f"{label} {n}" for label, n in result.usable.items())
    which = "that the model answers by their label" if result.correct else "whatever the answer"
    found = [
        f"{result.pairs} pairs of texts of different answers, the same at every layer, from "
        f"{result.texts:,} texts; texts {which}: {usable}."
    ]
    if result.distinct is not None:
        of = ", ".join(f"{label} {n}" for label, n in result.distinct_by_answer.items())
        found.append(
            f"The pairs are of {result.distinct} different texts ({of}); the one used most is in "
            f"{result.most_used} pairs. Intervals are of 95 %, by {INTERVAL_DRAWS:,} bootstrap "
            "draws of texts, not of pairs."
        )
    spans = {c.site: c.span for c in sorted(result.curves, key=lambda c: -c.span)}
    for site, span in dict.fromkeys((c.site, c.span) for c in result.curves):
        those = {
            c.source: c
            for c in result.curves
            if (c.site, c.span, c.task) == (site, span, "emotion")
        }
        curve = those["other"]
        if site == "resid":
            half = [n for n, value in enumerate(curve.transfer) if value >= 0.5]
            where = (
                f"carries the answer of half of the pairs from layer {curve.layer[half[0]]} on"
                if half and half == list(range(half[0], len(curve.layer)))
                else "carries the answer of half of the pairs at no layer"
                if not half
                else "carries the answer of half of the pairs at layers "
                + ", ".join(str(curve.layer[n]) for n in half)
            )
            if span == spans["resid"]:  # a longer window is the same, one layer later
                found.append(
                    f"Residual, span {span}: {where}. A late residual does so by construction."
                )
            continue
        best = max(range(len(curve.layer)), key=lambda n: curve.transfer[n])
        found.append(
            f"{site}, span {span}: most transfer around layer {curve.layer[best]}, "
            f"{curve.transfer[best]:.2f} [{curve.low[best]:.2f}, {curve.high[best]:.2f}]; there "
            f"a source of the same emotion {those['same'].transfer[best]:.2f}, a random vector "
            f"{those['random'].transfer[best]:.2f}. The layer was chosen on these pairs, so this "
            "is the highest of many and its interval is that of one layer."
        )
    found.append(said(result.first_words))
    if result.first_words_pairs:
        found[-1] += f" {result.first_words_pairs} pairs."
    if result.unreadable:
        found.append(f"Texts too long for the model with the prompt: {result.unreadable:,}.")
    return found


def cost(study: Running) -> Cost:
    """Return one forward a text, and for each pair its sources and a last token a variant."""
    model, texts = study.model, study.run.dataset.texts
    pairs = study.number("pairs")
    windows = len(study.numbers("span")) * len(sites_of(study.text("sites"))) * model.n_layers
    control = study.text("control") != "no"
    each = 4 + 3 * windows / 20  # a last token is worth about a twentieth of a text
    forwards = texts + pairs * each
    if control:
        forwards += texts + pairs * (3 + windows / 20)
    variants = windows * (4 if control else 3)
    disk = pairs * variants * len(study.tokens.labels) * 4
    return Cost(
        forwards=forwards,
        disk_bytes=readings_bytes(study, 0) + disk,
        memory_bytes=disk + 2**27 + 200 * variants * 8,
    )


STUDY = Implementation(run=run, report=report, cost=cost)
