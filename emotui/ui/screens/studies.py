"""Results of studies: the list, and one read line by line; enter goes to what a line names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from emotui.core.errors import EmotuiError
from emotui.core.studies.common.folder import StudyDocument, read_result
from emotui.core.studies.common.pages import facts_of
from emotui.core.studies.common.report import Cell, Table
from emotui.core.studies.common.saved import FOLDER, Place, SavedRun, place_of, saved_runs
from emotui.ui.paint import safe, visible

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.ui.work import Workbench

_ROWS = 400
"""Rows of a table that are shown; the CSV has all."""
_WIDEST_CELL = 24
_GOES = "→ "


@dataclass(frozen=True)
class Line:
    """One line of a result."""

    content: Content
    place: Place | None = None
    """Where enter goes."""


class Found(Message, bubble=False):
    """The runs in the cache."""

    def __init__(self, runs: list[SavedRun]) -> None:
        super().__init__()
        self.runs = runs


class Opened(Message, bubble=False):
    """A result, or why there is none."""

    def __init__(self, document: StudyDocument | None, line: str = "") -> None:
        super().__init__()
        self.document = document
        self.line = line


class _Lines(ModalScreen[Place | None]):
    """Lines to choose from; escape closes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "leave", show=False),
        Binding("j", "step(1)", show=False),
        Binding("k", "step(-1)", show=False),
    ]
    DEFAULT_CSS = """
    _Lines { align: center middle; background: $background 60%; }
    _Lines > OptionList {
        width: 120; max-width: 100%; height: auto; max-height: 96%;
        border: heavy $primary; background: $surface; padding: 0 1; scrollbar-size: 1 1;
    }
    _Lines > OptionList:focus { border: heavy $primary; }
    """

    def __init__(self, title: str, keys: str) -> None:
        super().__init__()
        self.list = OptionList(markup=False)
        self.list.border_title = Content(title)
        self.list.border_subtitle = Content(keys)

    def compose(self) -> ComposeResult:
        """Compose the lines."""
        yield self.list

    def show(self, lines: Sequence[Content]) -> None:
        """Show lines, the cursor on the first."""
        self.list.clear_options()
        self.list.add_options([Option(line) for line in lines])
        if lines:
            self.list.highlighted = 0

    def tell(self, line: str) -> None:
        """Show a message below the lines."""
        self.list.border_subtitle = safe(line)

    def action_step(self, by: int) -> None:
        """Go a line down or up."""
        if by > 0:
            self.list.action_cursor_down()
        else:
            self.list.action_cursor_up()

    def action_leave(self) -> None:
        """Close without going anywhere."""
        self.dismiss(None)


class StudiesScreen(_Lines):
    """The runs in the cache; closes with the place to go to, or None."""

    def __init__(self, workbench: Workbench) -> None:
        super().__init__("Studies", "enter opens   esc closes")
        self._workbench = workbench
        self.runs: list[SavedRun] = []

    def on_mount(self) -> None:
        """Read the list."""
        self._do(lambda store: self.post_message(Found(saved_runs(store.root / FOLDER))))

    def _do(self, work: Callable[[Store], object]) -> None:
        def failed(error: EmotuiError) -> None:
            self.post_message(Opened(None, error.what))

        self._workbench.with_store(work, failed)

    def on_found(self, message: Found) -> None:
        """Show the runs."""
        self.runs = message.runs
        if not self.runs:
            self.show([safe("No results yet. `emotui study list` says which studies there are.")])
            return
        self.show([_run_line(run) for run in self.runs])

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Read the result under the cursor."""
        if event.option_index >= len(self.runs):
            return
        run = self.runs[event.option_index]

        def work(_store: Store) -> None:
            document = read_result(Path(run.folder))
            line = "" if document else f"Not finished: emotui study resume {run.folder}"
            self.post_message(Opened(document, line))

        self._do(work)

    def on_opened(self, message: Opened) -> None:
        """Show a result, or say why there is none."""
        if message.document is None:
            self.tell(message.line)
            return

        def chosen(place: Place | None) -> None:
            if place is not None:
                self.dismiss(place)

        self.app.push_screen(StudyScreen(message.document), chosen)


class StudyScreen(_Lines):
    """One result, line by line; closes with the place that the chosen line names, or None."""

    def __init__(self, document: StudyDocument) -> None:
        super().__init__(
            visible(f"{document.run.study} · {document.run.model} · {document.run.dataset.name}"),
            f"enter on {_GOES.strip()} goes there   esc closes",
        )
        self.lines = lines_of(document)

    def on_mount(self) -> None:
        """Show the lines."""
        self.show([line.content for line in self.lines])

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Go to what the line names."""
        place = self.lines[event.option_index].place
        if place is None:
            self.tell("This line names no layer, feature or text.")
        else:
            self.dismiss(place)


def _run_line(run: SavedRun) -> Content:
    date = run.created[:16].replace("T", " ")
    state = "" if run.finished else "  not finished"
    return Content.assemble(
        (f"{visible(run.study):<12} ", "bold"),
        visible(f"{run.model}  {run.template}  {run.data}  "),
        (date + state, "$quiet"),
    )


def lines_of(document: StudyDocument) -> list[Line]:
    """Return a result as lines: sentences, what it is of, and the rows of its tables."""
    lines = [Line(safe(sentence)) for sentence in document.report.sentences]
    lines.append(Line(Content("")))
    lines += [
        Line(Content.styled(visible(f"{name}: {value}"), "$quiet"))
        for name, value in facts_of(document.run)
    ]
    for table in document.report.tables:
        lines += [Line(Content("")), Line(Content.styled(visible(table.title), "bold"))]
        lines += _table_lines(table)
    return lines


def _table_lines(table: Table) -> list[Line]:
    shown = table.rows[:_ROWS]
    cells = [[visible(name) for name in table.columns], *([_cell(c) for c in row] for row in shown)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    padded = ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) for row in cells]
    places = [None, *(place_of(table, row) for row in shown)]
    lines = [
        Line(Content(f"{_GOES if place else '  '}{line}".rstrip()), place)
        for line, place in zip(padded, places, strict=True)
    ]
    left = len(table.rows) - len(shown)
    if left > 0:
        lines.append(Line(Content.styled(f"  {left:,} more rows are in result.csv", "$quiet")))
    return lines


def _cell(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{cell:.3f}"
    words = "" if cell is None else visible(str(cell))
    return words if len(words) <= _WIDEST_CELL else words[: _WIDEST_CELL - 1] + "…"
