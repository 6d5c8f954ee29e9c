"""The Interventions pane: the edits in force and what the last of them did, beside its controls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from rich.cells import cell_len
from rich.style import Style
from textual.binding import BindingType
from textual.content import Content
from textual.geometry import Size
from textual.strip import Strip

from emotui.core.edits import FeatureEdit, parse_edit
from emotui.core.estimates import estimate_of_last_edit, sentence_of
from emotui.core.export.verification import summary_of
from emotui.core.records import Trace
from emotui.ui.effect_rows import EffectRow, effect_rows, facts_of, remarks_of
from emotui.ui.paint import fit, strip_of, visible
from emotui.ui.panes.lines import LinePane, bindings_of
from emotui.ui.state import ScreenState

_METRIC = 17
_HANGING = 2
"""Cells by which the second line of a sentence stands further right."""
_WIDE = 72
"""Cells that a row takes with all its columns."""
_ARROWS = (
    (0.2, "▲▲▲", "▼▼▼"),
    (0.05, "▲▲", "▼▼"),
    (0.01, "▲", "▼"),
)
"""Size of a change from which so many arrows are drawn; of z, a tenth of it counts."""
_HINTS = (
    "No edit is in force.",
    "In Features: a ablates the feature under the cursor at the cursor's token,",
    "A at every token of the text. u takes the last edit back.",
    "space marks features; a ablates the marked together: controls then are sets",
    "of as many.",
)
_TOGETHER = "Features that share work hide each other: space marks some, a ablates them together."

Line = tuple[str, str]
"""A kind (`edit`, `fact`, `head`, `row`, `chosen`, `remark`) and its text, cleaned."""


class InterventionsPane(LinePane):
    """Edits, facts, effects and remarks, one under the other; it scrolls."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_of("interventions")

    def __init__(self) -> None:
        super().__init__(name="interventions", title="4 Interventions")
        self._lines: tuple[Line, ...] = ()

    def frame(self, state: ScreenState) -> object:
        """The trace, what is known of its edit on other texts, the chosen emotion, the notes."""
        return (id(state.readings), id(state.verification), state.emotion, state.notes)

    def cursor(self, _state: ScreenState) -> object:
        """There is no cursor: lines scroll."""
        return None

    def cursor_rows(self, _state: ScreenState) -> Iterable[int]:
        """There is no cursor: lines scroll."""
        return ()

    def prepare(self, state: ScreenState) -> None:
        """Write the lines."""
        trace = state.readings.trace if state.readings is not None else None
        self.border_subtitle, self.border_title = "", "4 Interventions"
        if trace is None:
            self._lines = ()
        elif not trace.edits:
            self._lines = (*(("remark", hint) for hint in _HINTS), *_noted(state))
        else:
            count = len(trace.edits)
            wide = self.scrollable_content_region.width > _WIDE
            rows = effect_rows(trace, state.emotion)
            edits = "1 edit" if count == 1 else f"{count} edits"
            self.border_title = f"4 Interventions · {edits}"
            self._lines = (
                *(("edit", f"{n} {visible(edit)}") for n, edit in enumerate(trace.edits, start=1)),
                *(("fact", f"  {visible(fact)}") for fact in facts_of(trace)),
                *(("fact", f"  {visible(line)}") for line in _estimated(state)),
                *_noted(state),
                ("head", _heading(wide=wide)),
                *(("chosen", _row_text(row, wide=wide)) for row in rows if row.chosen),
                *(("fact", f"  {visible(line)}") for line in _elsewhere(state)),
                *(("row", _row_text(row, wide=wide)) for row in rows if not row.chosen),
                *(
                    ("remark", visible(part))
                    for remark in remarks_of(trace, state.emotion)
                    for part in remark.split("; ")
                ),
                *_together(trace),
            )
        room = self.scrollable_content_region
        lines = self._lines
        for width in (room.width - 1, room.width - 2):
            self._lines = tuple(part for line in lines for part in _wrapped(line, width))
            if len(self._lines) <= room.height or self.show_vertical_scrollbar:
                break  # otherwise a scroll bar comes and takes a cell

    def extent(self) -> Size:
        """All lines, as wide as the pane."""
        return Size(self.scrollable_content_region.width, max(1, len(self._lines)))

    def header_line(self) -> Strip | None:
        """There is none."""
        return None

    def body_line(self, row: int) -> Strip | None:
        """Return one line."""
        if row >= len(self._lines):
            return None
        kind, text = self._lines[row]
        width = max(1, self.scrollable_content_region.width)
        style = self._style(kind)
        return strip_of([(" " + fit(text, width - 1), style)], width, self.palette.base)

    def _style(self, kind: str) -> Style:
        if kind in ("edit", "chosen"):
            return self.palette.strong
        return self.palette.quiet if kind in ("fact", "head", "remark") else self.palette.base


def _wrapped(line: Line, width: int) -> list[Line]:
    """Return a line of words as lines that fit; rows of numbers stay one line."""
    kind, text = line
    if kind in ("head", "row", "chosen") or cell_len(text) <= width:
        return [line]
    words = text.lstrip()
    indent = len(text) - len(words)
    parts = [part.plain.rstrip() for part in Content(words).wrap(max(1, width - indent - _HANGING))]
    return [
        (kind, " " * (indent + (_HANGING if row else 0)) + part) for row, part in enumerate(parts)
    ]


def _noted(state: ScreenState) -> tuple[Line, ...]:
    """Return the last note on the trace, and how many there are."""
    if not state.notes:
        return ()
    last, count = state.notes[-1], len(state.notes)
    which = "note" if count == 1 else f"note {count} of {count}"
    return (("fact", f"  {which}, {visible(last.time)}: {visible(last.text)}"),)


def _together(trace: Trace) -> tuple[Line, ...]:
    """Return what to try where removing one feature alone did nothing that can be measured."""
    alone = any(effect.verdict.endswith("removing this alone.") for effect in trace.effects)
    one_feature = isinstance(parse_edit(trace.edits[-1]), FeatureEdit)
    return (("remark", _TOGETHER),) if alone and one_feature else ()


def _estimated(state: ScreenState) -> tuple[str, ...]:
    """Return what attribution estimated of the last edit beside what it did."""
    readings = state.readings
    if readings is None or readings.parent is None:
        return ()
    found = estimate_of_last_edit(readings.trace, readings.parent.trace)
    return () if found is None else (sentence_of(found),)


def _elsewhere(state: ScreenState) -> tuple[str, ...]:
    """Return what the last edit did on other texts, where that was asked for."""
    found = state.verification
    if found is None:
        return ()
    going_on = () if found.complete else ("cancelled before all texts were done; v goes on",)
    return (*summary_of(found), *going_on)


def _heading(*, wide: bool) -> str:
    if not wide:
        return f"{'':{_METRIC}} {'change':>7}     {'matched':>7} random"
    return f"{'':{_METRIC}} {'before':>7} {'after':>8} {'change':>8}     matched random  other"


def _row_text(row: EffectRow, *, wide: bool) -> str:
    scale = 10 if row.metric.startswith("readout") else 1
    arrows = next(
        (
            up if row.delta > 0 else down
            for edge, up, down in _ARROWS
            if row.measurable and abs(row.delta) >= edge * scale
        ),
        "",
    )
    numbers = f"{row.before:>7.3f} → {row.after:>6.3f} {row.delta:>+8.3f} {arrows:<3}"
    controls = f"{row.matched:>7} {row.random:>6}"
    if wide:
        controls += f" {row.other:>7}"
    else:
        numbers = f"{row.delta:>+7.3f} {arrows:<3}"
    if not row.measurable:
        controls = "not measurable".rjust(len(controls))
    return f"{row.metric:<{_METRIC}} {numbers} {controls}"
