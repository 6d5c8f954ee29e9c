"""The index: made again from the files, safe on network disks, right and quick in search."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support_cache import Clock, key_of, make_trace, payload_of, put

from emotui.cache import codec, files, layout, sealed
from emotui.cache.index import Index, TraceRow
from emotui.cache.store import Store


def index_rows(root: Path, table: str = "items") -> list[tuple[object, ...]]:
    database = sqlite3.connect(root / "index.sqlite")
    try:
        return database.execute(f"SELECT * FROM {table}").fetchall()
    finally:
        database.close()


# Made again


def drop_index(root: Path) -> None:
    for path in root.glob("index.sqlite*"):
        path.unlink()


def scramble_index(root: Path) -> None:
    drop_index(root)
    (root / "index.sqlite").write_bytes(b"not a database at all" * 500)


def cut_index(root: Path) -> None:
    os.truncate(root / "index.sqlite", 5000)


def other_schema(root: Path) -> None:
    database = sqlite3.connect(root / "index.sqlite")
    database.execute("DROP TABLE items")
    database.execute("CREATE TABLE items (something TEXT)")
    database.execute("PRAGMA user_version = 99")
    database.commit()
    database.close()


def lost_table(root: Path) -> None:
    database = sqlite3.connect(root / "index.sqlite")
    database.execute("DROP TABLE traces")
    database.commit()
    database.close()


def fewer_rows(root: Path) -> None:
    database = sqlite3.connect(root / "index.sqlite")
    database.execute("DELETE FROM items WHERE key LIKE ?", (f"{key_of('b')[:16]}%",))
    database.commit()
    database.close()


def rows_without_files(root: Path) -> None:
    database = sqlite3.connect(root / "index.sqlite")
    database.execute("INSERT INTO items VALUES ('traces', '00000000000000aa', 5, 1.0)")
    database.execute(
        "INSERT INTO traces SELECT '00000000000000aa', model, folded, created, row"
        " FROM traces LIMIT 1"
    )
    database.commit()
    database.close()


HARMS = [drop_index, scramble_index, cut_index, other_schema, lost_table, fewer_rows]


@pytest.mark.parametrize("harm", [*HARMS, rows_without_files])
def test_the_index_is_made_again_from_the_files(
    cache_dir: Path, harm: Callable[[Path], None]
) -> None:
    with Store(cache_dir, clock=Clock()) as store:
        for name in "abc":
            put(store, name, text=f"text {name}", model=name)
        store.put_entry("features", key_of("e"), payload_of(1))
        store.pin(key_of("b")[:16], True)
        before = store.traces()
    harm(cache_dir)
    with Store.open(cache_dir) as store:
        assert store.traces() == before
        assert store.fingerprint("b") == key_of("b")
        store.prune()
        rows = index_rows(cache_dir)
        assert sorted(str(row[1])[:16] for row in rows) == sorted(
            key_of(name)[:16] for name in "abce"
        )


@pytest.mark.parametrize("harm", HARMS)
def test_an_index_harmed_while_it_is_open_does_not_matter(
    cache_dir: Path, harm: Callable[[Path], None]
) -> None:
    with Store(cache_dir, clock=Clock()) as store:
        put(store, "a")
        put(store, "b")
        harm(cache_dir)
        for name in "ab":
            assert store.find_trace(key_of(name)) == key_of(name)[:16]
        put(store, "c")
        assert store.get_trace(key_of("c")[:16]).id == key_of("c")[:16]
    with Store.open(cache_dir) as store:
        assert len(store.traces()) == 3
        assert store.verify().damaged == ()


def test_a_cache_removed_while_it_is_open_is_made_again(cache_dir: Path) -> None:
    with Store.open(cache_dir) as store:
        put(store, "a")
        shutil.rmtree(cache_dir)
        assert store.find_trace(key_of("a")) is None
        name = put(store, "b")
        assert [row.id for row in store.traces()] == [name]


def test_a_copied_cache_opens(cache_dir: Path, tmp_path: Path) -> None:
    with Store.open(cache_dir) as store:
        name = put(store, "a", model="google/gemma-2-2b")
        shutil.copytree(cache_dir, tmp_path / "copy")
    for extra in ("-wal", "-shm"):
        (tmp_path / "copy" / f"index.sqlite{extra}").unlink(missing_ok=True)
    with Store.open(tmp_path / "copy") as copy:
        assert [row.id for row in copy.traces()] == [name]
        assert copy.get_trace(name).run.model == "google/gemma-2-2b"
        assert copy.fingerprint("google/gemma-2-2b") == key_of("google/gemma-2-2b")


# File systems


def test_the_journal_suits_the_file_system(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mode(root: Path) -> str:
        database = sqlite3.connect(root / "index.sqlite")
        try:
            return str(database.execute("PRAGMA journal_mode").fetchone()[0])
        finally:
            database.close()

    with Store.open(cache_dir / "local") as store:
        put(store, "a")
    assert mode(cache_dir / "local") == "wal"
    monkeypatch.setattr(files, "on_network", lambda _: True)
    with Store.open(cache_dir / "remote") as store:
        put(store, "a")
        assert not list((cache_dir / "remote").glob("index.sqlite-*"))
    assert mode(cache_dir / "remote") == "delete"


MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sdb1 /home/local\\040disk ext4 rw 0 0
//server/share /mnt/share cifs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/me/.cache/emotui", True),
        ("/homely/emotui", False),
        ("/home/local disk/emotui", False),
        ("/mnt/share", True),
        ("/var/tmp", False),
    ],
)
def test_network_file_systems_are_recognised(path: str, expected: bool) -> None:
    assert files.on_network(Path(path), mounts=MOUNTS) is expected


# Search


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=8))
def test_search_agrees_with_python(texts: list[str]) -> None:
    index = Index.in_memory()
    for number, text in enumerate(texts):
        name = f"{number:016x}"
        row = TraceRow(
            id=name,
            request_key=name,
            parent=None,
            model="m",
            revision=None,
            fingerprint="",
            template="raw",
            text=text,
            tokens=1,
            edits=(),
            created=-number,
        )
        index.record("traces", name, size=1, used=0.0, row=row)
    for wanted in {*texts, "A", "ss"}:
        found = [row.text for row in index.trace_rows(text=wanted)]
        # SQLite ends a string at NUL in instr; the store must not care about more than that.
        if "\0" not in "".join(texts) + wanted:
            assert found == [text for text in texts if wanted.casefold() in text.casefold()]
    index.close()


@pytest.fixture(scope="module")
def ten_thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 10,000 traces, written without the store's syncs."""
    root = tmp_path_factory.mktemp("many")
    with Store.open(root) as store:
        put(store, "seed", text="x")
        base = store.traces()[0]
    payload, metadata = codec.encode_trace(make_trace(key_of("seed"), text="x", layers=1))
    for number in range(10_000):
        key = key_of(str(number))
        row = msgspec.structs.replace(
            base,
            id=key[:16],
            request_key=key,
            created=float(number),
            text=f"Number {number}: she could not believe what her brother had said. " * 3,
        )
        path = layout.file_of(root, "traces", key[:16])
        path.parent.mkdir(parents=True, exist_ok=True)
        marks = {layout.KEY: key, layout.ROW: msgspec.json.encode(row).decode()}
        path.write_bytes(sealed.seal(payload, {**metadata, **marks}))
    Store.open(root).close()  # makes the index
    return root


def quickest(work: Callable[[], object], times: int = 5) -> float:
    durations = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        durations.append(time.perf_counter() - started)
    return min(durations)


@pytest.mark.soak
def test_ten_thousand_traces_open_list_and_search_quickly(ten_thousand: Path) -> None:
    def open_and_list() -> None:
        with Store.open(ten_thousand) as store:
            assert len(store.traces(limit=50)) == 50

    assert quickest(open_and_list) < 0.2
    with Store.open(ten_thousand) as store:
        assert len(store.traces(text="NUMBER 9999:")) == 1
        assert quickest(lambda: store.traces(text="number 123")) < 0.1
        assert quickest(lambda: store.traces(text="nowhere")) < 0.1
