"""One feature in detail, over the panes; edits of it begin here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from textual.binding import Binding, BindingType
from textual.content import Content

from emotui.core.details import FeatureDetail
from emotui.core.export.feature import sections_of
from emotui.ui.paint import safe, visible
from emotui.ui.screens.report import Report, ReportScreen

_WIDEST = 110
_AROUND = 7
"""Cells of a line that border, padding, scroll bar and indent take."""
_KEYS = "a ablate  A everywhere  s steer  y page  j k scroll  esc closes"


class Keeper(Protocol):
    """What the screen asks to be done."""

    def ablate(self, position: int | None) -> None:
        """Close the detail and ablate its feature at a token, None for all of the text."""

    def steer(self) -> None:
        """Close the detail and suggest a steering."""

    def copy_page(self) -> None:
        """Copy the address of the feature's page, else its name."""

    def leave(self) -> None:
        """Cancel what runs; without any, close the detail."""

    def working(self) -> str:
        """Return how far the work is, in a line; "" where none runs."""


class FeatureScreen(ReportScreen):
    """The detail; what is still being read is added when it comes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "leave", show=False),
        Binding("a", "ablate('here')", show=False),
        Binding("A", "ablate('all')", show=False),
        Binding("s", "steer", show=False),
        Binding("y", "copy", show=False),
    ]

    def __init__(self, detail: FeatureDetail, keeper: Keeper, *, emotion: str, width: int) -> None:
        """Hold what is known; `emotion` is the one whose readouts are shown."""
        self.detail = detail
        self._keeper = keeper
        self._emotion = emotion
        self._width = min(width, _WIDEST) - _AROUND
        self._said = ""
        super().__init__(f"Feature {visible(detail.name)}", self._content())

    def on_mount(self) -> None:
        """Name the keys, and keep an eye on the work."""
        self._subtitle()
        self.set_interval(0.25, self._subtitle)

    def show(self, detail: FeatureDetail) -> None:
        """Show what is known by now; what was scrolled to stays."""
        self.detail = detail
        self.query_one(Report).show(self._content())

    def tell(self, line: str) -> None:
        """Say something until the next key."""
        self._said = line
        self._subtitle()

    def _subtitle(self) -> None:
        said = self._said or self._keeper.working() or _KEYS
        body = self.query_one("#report")
        if body.border_subtitle != visible(said):
            body.border_subtitle = safe(said)

    def on_key(self) -> None:
        """Take what was said away."""
        self._said = ""

    def _content(self) -> Sequence[Content | str]:
        lines: list[Content | str] = []
        for heading, rows in sections_of(self.detail, emotion=self._emotion, width=self._width):
            if heading:
                lines += ["", Content.styled(visible(heading), "bold")]
            lines += [f"{'  ' if heading else ''}{visible(row)}" for row in rows]
        if self.detail.corpus is None:
            lines += ["", Content.styled("The corpus is read next, once for each SAE.", "$quiet")]
        return lines

    def action_ablate(self, where: str) -> None:
        """Ablate the feature at the token looked at, or everywhere."""
        here = self.detail.here
        self._keeper.ablate(here.position if where == "here" and here is not None else None)

    def action_steer(self) -> None:
        """Suggest a steering in the console."""
        self._keeper.steer()

    def action_copy(self) -> None:
        """Copy the address of its page."""
        self._keeper.copy_page()

    def action_leave(self) -> None:
        """Cancel what is being read; without any, close."""
        self._keeper.leave()
