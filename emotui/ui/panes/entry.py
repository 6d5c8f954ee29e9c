"""A line to type in, which shows what was pasted into it cleaned."""

from __future__ import annotations

from rich.text import Text
from textual.widgets import Input

from emotui.core.text import clean


class Entry(Input):
    """Textual's line with its value as it is, and every character shown cleaned.

    Textual writes the value to the terminal as it stands: a pasted escape would act there.
    """

    @property
    def _value(self) -> Text:
        return Text(clean(self.value), no_wrap=True, overflow="ignore", end="")
