"""What the cache holds besides traces, in lines: probes, and labels of features."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from emotui.cache.labels import LabelFile
from emotui.cache.probes import ProbeCard
from emotui.core.text import clean


def probe_lines(cards: Sequence[ProbeCard], in_force: Collection[str]) -> list[str]:
    """Return what must be known of each probe, the newest first; those in force are marked."""
    lines: list[str] = []
    for card in cards:
        model = clean(card.model.rstrip("/").rsplit("/", 1)[-1])
        force = ", in force" if card.id in in_force else ""
        lines += [
            f"{clean(card.id)}  {card.kind} probe of {model}, template {clean(card.template)}"
            + force,
            f"  reads {', '.join(map(clean, card.emotions))}",
            f"  fitted on {clean(card.data)} ({card.n_texts:,} texts)"
            + (f"; judged on {clean(card.judged_on)}" if card.judged_on else ""),
            f"  {_scores(card)}",
            "",
        ]
    return lines[:-1] or ["No probe is fitted yet."]


def _scores(card: ProbeCard) -> str:
    resid = [score for score in card.scores if score.site == "resid"]
    best = max(resid, key=lambda one: (one.dev_accuracy or 0.0, -one.layer), default=None)
    if not card.judged or best is None:
        return "not measured"
    layer = "the embedding" if best.layer < 0 else f"layer {best.layer}"
    controls = [
        f"bag of embeddings {best.bag_accuracy:.2f}",
        f"shuffled labels {best.shuffled_95:.2f}",
    ]
    if best.control_accuracy is not None:
        controls.append(f"control task {best.control_accuracy:.2f}")
    if best.random_accuracy is not None:
        controls.append(f"random directions {best.random_accuracy:.2f}")
    trusted = sum(score.trust == "trusted" for score in resid)
    return (
        f"{layer} ({best.trust}): {best.balanced_accuracy:.2f} held out; {', '.join(controls)}; "
        f"trusted at {trusted} of {len(resid)} residual rows"
    )


def label_lines(found: Sequence[LabelFile]) -> list[str]:
    """Return each file of labels and where it comes from, two lines each."""
    lines: list[str] = []
    for one in found:
        told = " · ".join(
            clean(one.meta[name])
            for name in ("kind", "source", "data", "label_set", "template", "created")
            if name in one.meta
        )
        lines += [clean(one.path), f"  {one.rows:,} features · {told}"]
    return lines
