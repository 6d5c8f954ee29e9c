"""The effects of a trace as rows for a pane: what to say, in which order. No widgets here."""

from __future__ import annotations

from dataclasses import dataclass

from emotui.core.records import Control, Effect, Trace

NOTHING_MEASURABLE = "No measurable effect"
_KL = "kl"


@dataclass(frozen=True)
class EffectRow:
    """One metric before and after the last edit, beside its controls."""

    metric: str
    """`answer joy` or `readout joy`."""
    before: float
    after: float
    delta: float
    measurable: bool
    matched: str
    """Rank among matched features and how many rows were ranked: `3/33`; "-" without any."""
    random: str
    other: str
    """Signed delta of the other emotion's feature; "-" without one."""
    chosen: bool
    """Whether it is about the chosen emotion."""
    verdict: str


def effect_rows(trace: Trace, emotion: str) -> tuple[EffectRow, ...]:
    """Return the rows: the chosen emotion first, then by size of the delta within each metric."""
    rows = [_row(effect, emotion) for effect in trace.effects if effect.metric != _KL]
    return tuple(
        sorted(
            rows,
            key=lambda row: (not row.chosen, row.metric.split()[0], -abs(row.delta), row.metric),
        )
    )


def _row(effect: Effect, emotion: str) -> EffectRow:
    kind, _, label = effect.metric.partition(".")
    controls = {control.name: control for control in effect.controls}
    other = controls.get("other_emotion")
    return EffectRow(
        metric=f"{kind} {label}",
        before=effect.before,
        after=effect.after,
        delta=effect.delta,
        measurable=not effect.verdict.startswith(NOTHING_MEASURABLE),
        matched=_rank(controls.get("matched_features")),
        random=_rank(controls.get("random_directions")),
        other=f"{other.deltas[0]:+.3f}" if other is not None and other.deltas else "-",
        chosen=label == emotion,
        verdict=effect.verdict,
    )


def _rank(control: Control | None) -> str:
    if control is None or control.rank is None:
        return "-"
    return f"{control.rank}/{len(control.deltas) + 1}"


def effect_in_words(trace: Trace, emotion: str) -> str:
    """Return what the last edit did to the answer's chosen emotion, in a line; "" without edits."""
    if trace.intervention is None:
        return ""
    if changed_nothing(trace):
        return "; ".join(trace.intervention.notes[:1])
    row = next((one for one in effect_rows(trace, emotion) if one.chosen), None)
    if row is None:
        return (facts_of(trace) or ("",))[-1]
    change = f"{row.metric} {row.before:.3f} → {row.after:.3f}"
    if not row.measurable:
        return f"{change}, not measurable"
    return f"{change} (matched {row.matched}, random {row.random})"


def changed_nothing(trace: Trace) -> bool:
    """Whether the last edit added exactly nothing, as one of a feature that is not active does."""
    done = trace.intervention
    return done is not None and done.delta_norm == 0 and bool(done.notes)


def facts_of(trace: Trace) -> tuple[str, ...]:
    """Return what the edits did to the run, a line each."""
    done = trace.intervention
    if done is None:
        return ()
    kl = next((_row(effect, "") for effect in trace.effects if effect.metric == _KL), None)
    ranks = "" if kl is None else f" (matched {kl.matched}, random {kl.random})"
    places = "1 place" if done.fired == 1 else f"{done.fired} places"
    facts = [
        f"KL of the next token {done.kl:.3g} nats{ranks}",
        f"acted at {places} · delta {done.delta_norm:.2f} of the norm",
    ]
    if done.selected:
        facts.append(_selected(trace))
    if done.readout_layer is not None:
        facts.append(f"readout: z at the readout, resid.{done.readout_layer}")
    return (*facts, *done.notes)


def _selected(trace: Trace) -> str:
    """Return how the effects stand beside the best of as many random directions."""
    found: dict[str, Control] = {}
    for effect in trace.effects:
        kind = effect.metric.partition(".")[0]
        control = next((one for one in effect.controls if one.name == "selection"), None)
        if control is None or control.rank is None:
            continue
        if kind not in found or control.rank < (found[kind].rank or 0):
            found[kind] = control
    if not found:
        return "selected: picked from what this text showed, not tested against that"
    said = [
        f"{kind} beyond {len(control.deltas) + 1 - (control.rank or 0)}"
        for kind, control in found.items()
    ]
    one = next(iter(found.values()))
    return f"selected: of {len(one.deltas)} best-of-{one.candidates} draws, {', '.join(said)}"


def remarks_of(trace: Trace, emotion: str) -> tuple[str, ...]:
    """Return the verdicts on the chosen emotion, and why controls are missing."""
    verdicts = {
        row.verdict: f"{row.metric}: {row.verdict}"
        for row in effect_rows(trace, emotion)
        if row.chosen
    }
    notes = {
        f"{control.name.replace('_', ' ')}: {control.note}"
        for effect in trace.effects
        for control in effect.controls
        if control.note
    }
    return (*verdicts.values(), *sorted(notes))
