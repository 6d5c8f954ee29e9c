"""Two traces side by side: tokens, the map of what changed, features, answers, written texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Static

from emotui.core.difference import ComparedTrace, Difference
from emotui.core.export.compare import (
    answer_lines,
    changed_features,
    feature_lines,
    layer_name,
)
from emotui.ui.paint import safe, visible
from emotui.ui.panes.difference import DifferenceIndex, DifferenceMap, DifferenceView
from emotui.ui.readings import Readings

NARROWEST_SIDE_BY_SIDE = 100
FEATURES = 8
"""Features that are shown of each kind."""
_KEYS = "hjkl · e emotion · 0 view · S site · P readout · x JSON · [ ] scroll · esc"


class Told(Message, bubble=False):
    """A file was written, or why it was not."""

    def __init__(self, line: str) -> None:
        super().__init__()
        self.line = line


class CompareScreen(Screen[None]):
    """What the second trace has that the first has not, and the other way round."""

    CSS = """
    CompareScreen { layout: vertical; }
    CompareScreen #compare-heads { height: auto; max-height: 12; layout: horizontal; }
    CompareScreen.-stacked #compare-heads { layout: vertical; }
    CompareScreen .head { width: 1fr; height: auto; max-height: 6; padding: 0 1;
        border: round $secondary; background: $surface; }
    CompareScreen.-stacked .head { max-height: 3; }
    CompareScreen #compare-body { height: 1fr; layout: horizontal; }
    CompareScreen.-stacked #compare-body { layout: vertical; }
    CompareScreen #difference-map { width: 1fr; height: 1fr; border: heavy $primary;
        background: $surface; scrollbar-size: 1 1; }
    CompareScreen #compare-side { width: 62; height: 1fr; border: round $secondary;
        background: $surface; padding: 0 1; scrollbar-size: 1 1; }
    CompareScreen.-stacked #compare-side { width: 1fr; }
    CompareScreen #compare-side Static { width: 1fr; height: auto; }
    CompareScreen #compare-said { height: auto; max-height: 2; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss", show=False),
        Binding("left,h", "sideways(-1)", show=False),
        Binding("right,l", "sideways(1)", show=False),
        Binding("up,k", "layer(-1)", show=False),
        Binding("down,j", "layer(1)", show=False),
        Binding("e", "emotion(1)", show=False),
        Binding("E", "emotion(-1)", show=False),
        Binding("0", "view", show=False),
        Binding("S", "site", show=False),
        Binding("P", "readout", show=False),
        Binding("x", "export", show=False),
        Binding("right_square_bracket,pagedown", "side(5)", show=False),
        Binding("left_square_bracket,pageup", "side(-5)", show=False),
    ]
    AUTO_FOCUS = "DifferenceMap"

    def __init__(
        self,
        difference: Difference,
        *,
        start: DifferenceView | None = None,
        export: Callable[[], None],
    ) -> None:
        """Hold the difference; `start` is where to look first, as far as it is there."""
        super().__init__()
        self.difference = difference
        self.index = DifferenceIndex(difference)
        self.view = self._first(start)
        self._export = export
        self._heads = (Static(classes="head"), Static(classes="head"))
        self._map = DifferenceMap(self.index, self.view)
        self._side = Static()
        self._said = Static(_KEYS, id="compare-said")

    def _first(self, start: DifferenceView | None) -> DifferenceView:
        index = self.index
        readout = self.difference.pairs.index(
            (self.difference.first.readout, self.difference.second.readout)
        )
        largest = sorted(
            index.layers,
            key=lambda layer: (
                -max(
                    (
                        abs(cell.change)
                        for emotion in index.emotions
                        if (cell := index.cell(index.sites[0], layer, readout, emotion)) is not None
                    ),
                    default=0.0,
                )
            ),
        )
        view = DifferenceView(
            site=index.sites[0],
            layer=largest[0] if largest else 0,
            pair=readout,
            emotion=index.emotions[0] if index.emotions else "",
        )
        if start is None:
            return view
        return replace(
            view,
            emotion=start.emotion if start.emotion in index.emotions else view.emotion,
            site=start.site if start.site in index.sites else view.site,
            pair=start.pair if start.pair < len(self.difference.pairs) else view.pair,
        )

    def compose(self) -> ComposeResult:
        """Compose both texts, the map and what is said of the cursor's place."""
        with Container(id="compare-heads"):
            yield from self._heads
        with Container(id="compare-body"):
            yield self._map
            yield VerticalScroll(self._side, id="compare-side", can_focus=False)
        yield self._said

    def on_mount(self) -> None:
        """Draw."""
        self._lay_out(self.app.size.width)
        self.look(self.view)

    def on_resize(self, event: events.Resize) -> None:
        """Put the parts beside or over each other."""
        self._lay_out(event.size.width)

    def _lay_out(self, width: int) -> None:
        self.set_class(width < NARROWEST_SIDE_BY_SIDE, "-stacked")
        self.call_after_refresh(self._draw_heads)

    def look(self, view: DifferenceView) -> None:
        """Look at another place."""
        self.view = view
        self._map.show(view)
        place = f"at {self._token()}" if view.view == "emotions" else f"{visible(view.emotion)}"
        largest = self.index.largest.get(view.site, 0.0)
        self._map.border_title = safe(f"B - A · {view.site} · {place}")
        self._map.border_subtitle = f"{self.index.unit} · largest change of the site {largest:.2f}"
        if not self.difference.readouts.layer:
            self._map.border_subtitle = "They share no readout."
        self._draw_heads()
        self._side.update(Content("\n").join(self._place_lines()))

    def _token(self) -> str:
        second = self.difference.pairs[self.view.pair][1]
        return repr(visible(self.difference.second.tokens[second]))

    def _draw_heads(self) -> None:
        pair = self.difference.pairs[self.view.pair]
        sides = (("A", self.difference.first), ("B", self.difference.second))
        for head, (name, side), place in zip(self._heads, sides, pair, strict=True):
            head.border_title = safe(f"{name} · {'; '.join(side.edits) or 'no edit'}")
            head.border_subtitle = safe(side.id)
            size = head.content_size if head.is_attached else None
            cells = (size.width or 70) * (size.height or 2) if size is not None else 140
            head.update(tokens_around(side, place, cells))

    def _place_lines(self) -> list[Content]:
        view, difference = self.view, self.difference
        lines: list[str | Content] = [
            Content.styled(visible(note), "$quiet") for note in difference.notes
        ]
        cell = self.index.cell(view.site, view.layer, view.pair, view.emotion)
        name = f"{view.site} {layer_name(view.layer)}"
        if cell is not None:
            said = (
                f"{view.emotion} at {name}, {self._token()}: {cell.first:+.3f} → "
                f"{cell.second:+.3f} ({cell.change:+.3f} {self.index.unit}, {cell.trust})"
            )
            lines.append(Content.styled(visible(said), "bold"))
        features = difference.features
        for change, word in (("vanished", "Vanished"), ("appeared", "Appeared")):
            rows = changed_features(
                features, pair=view.pair, change=change, site=view.site, layer=view.layer
            )
            lines += ["", Content.styled(f"{word} at {name} ({len(rows)})", "bold")]
            lines += [safe(line) for line in feature_lines(features, rows[:FEATURES])]
        if difference.answer.labels:
            lines += ["", Content.styled("Answers: A, B, change", "bold")]
            lines += [safe(line) for line in answer_lines(difference)]
        for name, side in (("A", difference.first), ("B", difference.second)):
            for text in side.written:
                lines += ["", Content.styled(f"Written by {name}", "bold"), safe(text)]
        return [line if isinstance(line, Content) else Content(line) for line in lines]

    # Keys.

    def action_sideways(self, by: int) -> None:
        """Go to the emotion or token beside."""
        if self.view.view == "emotions":
            self._emotion_by(by, around=False)
            return
        last = len(self.difference.pairs) - 1
        self.look(replace(self.view, pair=max(0, min(last, self.view.pair + by))))

    def action_emotion(self, by: int) -> None:
        """Choose the next emotion, or the one before."""
        self._emotion_by(by, around=True)

    def _emotion_by(self, by: int, *, around: bool) -> None:
        emotions = self.index.emotions
        if not emotions:
            return
        place = emotions.index(self.view.emotion) + by
        place = place % len(emotions) if around else max(0, min(len(emotions) - 1, place))
        self.look(replace(self.view, emotion=emotions[place]))

    def action_layer(self, by: int) -> None:
        """Go to the layer below or above."""
        layers = self.index.layers
        if layers:
            place = layers.index(self.view.layer) if self.view.layer in layers else 0
            place = max(0, min(len(layers) - 1, place + by))
            self.look(replace(self.view, layer=layers[place]))

    def action_view(self) -> None:
        """Change between emotions at a token and tokens for an emotion."""
        emotions = self.view.view == "emotions"
        self.look(replace(self.view, view="tokens" if emotions else "emotions"))

    def action_site(self) -> None:
        """Look at the next site."""
        sites = self.index.sites
        place = (sites.index(self.view.site) + 1) % len(sites)
        self.look(replace(self.view, site=sites[place]))

    def action_readout(self) -> None:
        """Go to the readout."""
        readout = (self.difference.first.readout, self.difference.second.readout)
        self.look(replace(self.view, pair=self.difference.pairs.index(readout)))

    def action_side(self, by: int) -> None:
        """Scroll what is said of the place."""
        self.query_one("#compare-side").scroll_relative(y=by, animate=False)

    def action_export(self) -> None:
        """Write the document."""
        self._export()

    def on_told(self, message: Told) -> None:
        """Say where the file is."""
        self._said.update(safe(message.line))


def start_at(
    readings: Readings | None, *, position: int, emotion: str, site: str
) -> DifferenceView:
    """Return where the explorer looks, as a view of a comparison of the same tokens."""
    sites = () if readings is None else readings.sites
    return DifferenceView(
        site=next((known for known in sites if known == site), "resid"),
        layer=0,
        pair=position,
        emotion=emotion,
    )


def tokens_around(side: ComparedTrace, place: int, cells: int) -> Content:
    """Return as many tokens around one as `cells` hold, that one reversed."""
    shown = [visible(token) for token in side.tokens]
    first = last = place
    used = len(shown[place])
    while used < cells - 2:
        left = len(shown[first - 1]) if first else None
        right = len(shown[last + 1]) if last + 1 < len(shown) else None
        if left is None and right is None:
            break
        before = left is not None and (right is None or place - first <= last - place)
        size = left if before else right
        assert size is not None
        if used + size > cells - 2:
            break
        used += size
        first, last = (first - 1, last) if before else (first, last + 1)
    return Content("").join(
        [
            Content("…" if first else ""),
            Content("".join(shown[first:place])),
            Content.styled(shown[place], "reverse bold"),
            Content("".join(shown[place + 1 : last + 1])),
            Content("…" if last + 1 < len(shown) else ""),
        ]
    )
