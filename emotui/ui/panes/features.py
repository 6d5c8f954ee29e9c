"""The Features pane: the SAE features active at the cursor's site, layer and token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, NamedTuple

from rich.cells import cell_len
from rich.style import Style
from textual.binding import BindingType
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.timer import Timer

from emotui.cache.labels import flagged
from emotui.core.edits import FeatureEdit, JointEdit, parse_edit, positions_in
from emotui.core.records import EMBEDDING_LAYER, Trace
from emotui.ui.paint import bar, fit, safe, strip_of, visible
from emotui.ui.panes.lines import LinePane, bindings_of
from emotui.ui.state import ScreenState, place_name

REST_SECONDS = 0.08
"""How long the cursor rests at a place before its features are drawn."""
_LABEL = 24
"""Cells that a label should have at least: where there are fewer, the other columns are narrow."""
_MARK = "●"
_EDITED = "×"
"""Before a feature that an edit in force changes at the cursor's token."""
_MISMATCH = "≠ "
"""Before a label whose explanation names an emotion that was not measured."""
_POOR = 0.5
"""Variance explained below which an SAE is said to rebuild the text badly."""
_AROUND_SUMMARY = 4
"""Cells of the border that the line below the list leaves."""


class _Columns(NamedTuple):
    """Cells of what stands before the label."""

    name: int
    bar: int
    attribution: int
    """0 for none."""

    @property
    def before_label(self) -> int:
        """Cells before the label: two marks, the columns, the activation, and gaps."""
        return 2 + self.name + 1 + self.bar + 7 + self.attribution + 2

    @property
    def heading(self) -> str:
        """The names of the columns, as wide as these are."""
        attribution = ""
        if self.attribution:
            attribution = "attribution" if self.attribution > len("attribution") else "attr."
        return (
            f"  {'feature':<{self.name}} {'activation':<{self.bar + 7}}"
            f"{attribution:>{self.attribution}}  label"
        )


def _narrow(name: int, *, attributed: bool) -> _Columns:
    return _Columns(name, 4, 8 if attributed else 0)


def _columns(width: int, name: int, *, attributed: bool) -> _Columns:
    """Return the columns for a pane of `width` cells and names of at most `name`."""
    wide = _Columns(max(name, 10), 8, 12 if attributed else 0)
    return wide if width - wide.before_label >= _LABEL else _narrow(name, attributed=attributed)


class FeaturesPane(LinePane):
    """A list of features: name, bar, activation, attribution, label."""

    HEADER_LINES: ClassVar[int] = 1
    BINDINGS: ClassVar[list[BindingType]] = bindings_of("features")

    def __init__(self) -> None:
        super().__init__(name="features", title="3 Features")
        self._attributed = False
        """Whether any feature of the list has an attribution."""
        self._longest = 0
        """Cells of the longest name."""
        self._edited: frozenset[str] = frozenset()
        """Features that edits in force change at the cursor's token."""
        self._coming: ScreenState | None = None
        """Another place, to be drawn when the cursor rests there."""
        self._rest: Timer | None = None

    def show(self, state: ScreenState) -> None:
        """Draw a state; of a place that is only passed through, nothing: the list is long."""
        shown = self.state
        if shown is not None and not self.has_focus and _moved_only(shown, state):
            self._coming = state
            if self._rest is None:
                self._rest = self.set_timer(REST_SECONDS, self._show_coming)
            else:
                self._rest.reset()
            return
        self._forget_coming()
        super().show(state)

    def _show_coming(self) -> None:
        """Draw the place that the cursor rests on."""
        coming = self._coming
        self._forget_coming()
        if coming is not None:
            super().show(coming)

    def _forget_coming(self) -> None:
        if self._rest is not None:
            self._rest.stop()
        self._rest = self._coming = None

    def frame(self, state: ScreenState) -> object:
        """The rows, their order, and which are marked."""
        place = (state.site, state.layer, state.position)
        return (id(state.readings), place, state.sorting, state.marks)

    def cursor(self, state: ScreenState) -> object:
        """The feature under the cursor."""
        return state.feature

    def cursor_rows(self, state: ScreenState) -> Iterable[int]:
        """The row of the feature under the cursor."""
        return (state.feature,)

    def prepare(self, state: ScreenState) -> None:
        """Write the title and what the list is."""
        if state.readings is None:
            self.border_title, self.border_subtitle = "3 Features", ""
            return
        layer = "emb" if state.layer == EMBEDDING_LAYER else f"L{state.layer}"
        self.border_title = safe(f"3 Features · {state.site} {layer} · {place_name(state)}")
        self.border_subtitle = self._summary(state)
        self._edited = features_edited(state.readings.trace, state.position)
        self._attributed = any(row.attribution is not None for row in state.features)
        self._longest = max((len(row.name) for row in state.features), default=0)

    def _summary(self, state: ScreenState) -> str:
        if not state.features or state.readings is None:
            return ""
        marked = f"{len(state.marks)} marked · " if state.marks else ""
        summary = f"{marked}{len(state.features)} active · by {state.sorting}"
        width = self.size.width - _AROUND_SUMMARY
        rebuilt = ""
        for sae in state.readings.trace.saes:
            if (sae.site, sae.layer) == (state.site, state.layer):
                explained = sae.variance_explained
                if explained is not None:
                    poor = ": badly rebuilt" if explained < _POOR else ""
                    rebuilt += f" · {explained:.2f} of variance{poor}"
        if cell_len(visible(summary + rebuilt)) > width:
            # That it is badly rebuilt is seen at every width.
            rebuilt = rebuilt.replace(" of variance: badly rebuilt", " badly rebuilt")
            rebuilt = rebuilt.replace(" of variance", " var.")
            summary = f"{marked}{len(state.features)} by {state.sorting}"
        attribution = state.readings.trace.attribution
        if attribution is not None and attribution.metric:
            name = attribution.metric
            said = (
                f" · attribution: {name} if removed",
                f" · attribution: {name}",
                f" · on {name}",
            )
            # How well the SAE rebuilds the text is seen at every width.
            fitting = (one for one in said if cell_len(visible(summary + one + rebuilt)) <= width)
            summary += next(fitting, "")
        return summary + rebuilt

    def extent(self) -> Size:
        """Header and rows, as wide as the pane."""
        rows = len(self.state.features) if self.state is not None else 0
        return Size(self.scrollable_content_region.width, self.HEADER_LINES + max(rows, 1))

    def cursor_region(self) -> Region | None:
        """Return the cursor's row."""
        return Region(0, self.state.feature, 1, 1) if self.state is not None else None

    def header_line(self) -> Strip | None:
        """Return the names of the columns."""
        if self.state is None or not self.state.features:
            return None
        width = self.scrollable_content_region.width
        text = self._columns(width).heading
        return strip_of([(fit(text, width), self.palette.quiet)], width, self.palette.base)

    def _columns(self, width: int) -> _Columns:
        """Return the columns: the label has the room that is left."""
        name = max(self._longest, len("feature"))
        return _columns(width, name, attributed=self._attributed)

    def body_line(self, row: int) -> Strip | None:
        """Return one feature."""
        state = self.state
        if state is None:
            return None
        if not state.features or state.readings is None:
            return self.message(row, _explanation(state))
        if row >= len(state.features):
            return None
        feature = state.features[row]
        largest = state.readings.largest_activation.get((feature.sae, feature.layer), 0.0)
        share = feature.activation / largest if largest > 0 else 0.0
        here, marked = row == state.feature, feature.name in state.marks
        ink = self.palette.strong if here else self.palette.base
        warm = self.palette.inks.get(4, ink) if self.palette.coloured else ink
        width = self.scrollable_content_region.width
        columns, effect = self._columns(width), feature.attribution
        attribution = "" if effect is None else f"{effect:>+{columns.attribution}.3f}"
        attribution = attribution.rjust(columns.attribution)
        mark = _MARK if marked else _EDITED if feature.name in self._edited else " "
        label = f"{_MISMATCH if flagged(feature.label) else ''}{visible(feature.label)}"
        row_style = ink + Style(reverse=True) if here and self.has_focus else ink
        parts: list[tuple[str, Style]] = [
            (
                f"{'▸' if here else ' '}{mark}{feature.name:<{columns.name}} ",
                row_style,
            ),
            (bar(share, columns.bar), warm),
            (f" {feature.activation:>6.2f}{attribution}  {label}", row_style),
        ]
        return strip_of(parts, width, row_style).crop(0, width)

    def on_focus(self) -> None:
        """Show the cursor, on the list of the place where it is."""
        self._show_coming()
        self.refresh()

    def on_blur(self) -> None:
        """Show the cursor as one that waits."""
        self.refresh()


def features_edited(trace: Trace, position: int) -> frozenset[str]:
    """Return the features that the edits in force of a trace change at one token, by name."""
    found: set[str] = set()
    for line in trace.edits:
        edit = parse_edit(line)
        parts = edit.parts if isinstance(edit, JointEdit) else (edit,)
        names = {part.feature for part in parts if isinstance(part, FeatureEdit)}
        if names and position in positions_in(edit.positions, trace.text):
            found |= names
    return frozenset(found)


def _moved_only(former: ScreenState, state: ScreenState) -> bool:
    """Return whether only another layer or token was gone to."""
    place, before = (state.layer, state.position), (former.layer, former.position)
    same = id(former.readings) == id(state.readings) and former.site == state.site
    return same and place != before and former.marks == state.marks


def _explanation(state: ScreenState) -> list[str]:
    if state.readings is None:
        return []
    if not state.readings.trace.saes:
        return ["No SAE was given for this model.", "Open emotui with --sae FOLDER or RELEASE:ID."]
    if state.layer == EMBEDDING_LAYER:
        return ["The embedding row has no SAE."]
    layers = state.readings.feature_layers(state.site)
    if state.layer not in layers:
        there = ", ".join(str(layer) for layer in layers) or "none"
        return [f"No SAE at {state.site} layer {state.layer}.", f"SAEs at {state.site}: {there}."]
    return ["No feature is active here."]
