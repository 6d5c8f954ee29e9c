"""Searching cached traces: words, filters, families, and what is refused."""

from __future__ import annotations

import datetime
from pathlib import Path

import msgspec
import pytest
from support_cache import key_of, make_trace, put

from emotui.cache.index import TraceRow
from emotui.cache.search import as_tree, found_by, parse_search
from emotui.cache.store import Store
from emotui.core.errors import UsageError


def test_words_and_filters_are_told_apart() -> None:
    found = parse_search("went  out: model:Gemma edits:ablate is:pinned is:edited http://x")
    assert found.text == "went out: http://x"
    assert (found.model, found.edits) == ("Gemma", "ablate")
    assert found.kinds == {"pinned", "edited"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("since:yesterday", "since:yesterday names no day"),
        ("until:2026-13-01", "until:2026-13-01 names no day"),
        ("is:red", "is:red is not known"),
    ],
)
def test_a_filter_that_is_none_is_named(line: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_search(line)
    assert said in raised.value.what
    assert raised.value.todo


def edited(store: Store, name: str, parent: str, *edits: str) -> str:
    trace = msgspec.structs.replace(make_trace(key_of(name), parent=parent), edits=edits)
    store.put_trace(trace, key_of(name))
    return trace.id


def test_a_search_finds_what_its_words_say(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        root = put(store, "one", text="Lily was SAD today.", model="org/Gemma-2-2b")
        other = put(store, "two", text="A toy was lost.")
        what_if = edited(store, "three", root, "ablate L1/5 at here")
        store.pin(other, True)

        def ids(line: str) -> set[str]:
            return {row.id for row in found_by(parse_search(line), store)}

        assert ids("") == {root, other, what_if}
        assert ids("sad") == {root, what_if}
        assert ids("sad model:gemma") == {root}
        assert ids("edits:l1/5") == ids("is:edited") == {what_if}
        assert ids("is:root toy") == ids("is:pinned") == {other}
        today = datetime.date.today()  # days are local, as they are shown
        tomorrow = today + datetime.timedelta(days=1)
        assert ids(f"since:{today} until:{today}") == {root, other, what_if}
        assert ids(f"since:{tomorrow}") == set()
        assert len(found_by(parse_search("is:root"), store, limit=1)) == 1


def row_of(name: str, created: float, parent: str | None = None) -> TraceRow:
    return TraceRow(
        id=name, request_key="", parent=parent, model="m", revision=None, fingerprint="",
        template="ask", text="", tokens=1, edits=(), created=created,
    )  # fmt: skip


def test_what_ifs_stand_under_their_parent_and_families_by_their_newest() -> None:
    rows = [
        row_of("late child", 9, "old"),
        row_of("new", 5),
        row_of("grandchild", 4, "child"),
        row_of("child", 3, "old"),
        row_of("stray", 2, "not here"),
        row_of("old", 1),
    ]
    tree = [(row.id, depth) for row, depth in as_tree(rows)]
    assert tree == [
        ("old", 0), ("child", 1), ("grandchild", 2), ("late child", 1), ("new", 0), ("stray", 0),
    ]  # fmt: skip
