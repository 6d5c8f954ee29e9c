"""Searching in the explorer: a feature by number or label, a token by a word."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from emotui.core.text import clean
from emotui.ui import state as states
from emotui.ui.commands import refusal
from emotui.ui.handlers.area import Area
from emotui.ui.readings import FeatureRow

if TYPE_CHECKING:
    from emotui.ui.screens.explore import ExploreScreen


class SearchHandlers(Area):
    """The last search, and going on with it. In the Features pane it is for features."""

    def __init__(self, screen: ExploreScreen) -> None:
        super().__init__(screen)
        self._words = ""
        self._features = False
        """Whether the last search was for features."""

    def do_open(self) -> None:
        """Open the console with a search to be typed."""
        self._features = self._screen.pane == "features"
        self._screen.open_console("find ")

    def do_next(self) -> None:
        """Go to the next place of the last search."""
        self._go_on(1)

    def do_back(self) -> None:
        """Go to the place before of the last search."""
        self._go_on(-1)

    def _go_on(self, by: int) -> None:
        self._features = self._screen.pane == "features"
        if not self._words:
            self.say("hint", "Nothing was searched for yet: / begins.")
        elif not self._move(by):
            self.say("hint", f"{clean(self._words)!r} is not found {self._where()}.")

    def find(self, words: str) -> None:
        """Go to the first place after the cursor; EditError where there is none."""
        self._words = words
        if not self._move(1):
            raise refusal(words, f"{clean(words)!r} is not found {self._where()}.")

    def _where(self) -> str:
        return "among the features here" if self._features else "in the text"

    def _move(self, by: int) -> bool:
        state = self._state
        if state.readings is None:
            return False
        if self._features:
            places = features_found(state.features, self._words)
            if places:
                place = next_of(places, state.feature, by)
                self._update(replace(state, feature=place, notice=None))
            return bool(places)
        places = tokens_found(state.readings.token_texts, self._words)
        if places:
            place = next_of(places, state.position, by)
            self._update(replace(states.at_token(state, place), notice=None))
        return bool(places)


def next_of(places: Sequence[int], now: int, by: int) -> int:
    """Return the next of ascending places after `now`, or the one before; around the end."""
    if by > 0:
        return next((place for place in places if place > now), places[0])
    return next((place for place in reversed(places) if place < now), places[-1])


def features_found(rows: Sequence[FeatureRow], words: str) -> list[int]:
    """Return the rows of features with a number or name, or with all words in their label."""
    wanted = words.casefold().split()
    number = words.strip().casefold()
    return [
        place
        for place, row in enumerate(rows)
        if number in (str(row.index), row.name.casefold())
        or all(word in row.label.casefold() for word in wanted)
    ]


def tokens_found(tokens: Sequence[str], words: str) -> list[int]:
    """Return the tokens at which an occurrence of the words begins, in any case."""
    joined, starts = "", []
    for token in tokens:
        starts.append(len(joined))
        joined += token.casefold()
    wanted = words.casefold()
    found: list[int] = []
    at = joined.find(wanted)
    while at >= 0 and wanted:
        place = bisect_right(starts, at) - 1  # an occurrence may begin inside a token
        if place not in found:
            found.append(place)
        at = joined.find(wanted, at + 1)
    return found
