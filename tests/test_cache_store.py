"""The store: what is put is found, listed, searched, evicted in order, and damage is seen."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load
from support_cache import key_of, make_trace, payload_of

from emotui.cache import codec, files, layout, sealed, upkeep
from emotui.cache.index import Index, TraceRow
from emotui.cache.store import Store
from emotui.core.errors import CacheError


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        self.now += 1000.0
        return self.now


def put(store: Store, name: str, **parts: str) -> str:
    key = key_of(name)
    trace = make_trace(key, **parts)  # type: ignore[arg-type]
    store.put_trace(trace, key)
    return trace.id


def trace_file(root: Path, name: str) -> Path:
    return layout.file_of(root, "traces", key_of(name)[:16])


def index_rows(root: Path, table: str = "items") -> list[tuple[object, ...]]:
    database = sqlite3.connect(root / "index.sqlite")
    try:
        return database.execute(f"SELECT * FROM {table}").fetchall()
    finally:
        database.close()


# Finding


def test_a_trace_is_found_by_key_id_and_prefix(cache_dir: Path) -> None:
    with Store.open(cache_dir) as store:
        assert store.find_trace(key_of("a")) is None
        name = put(store, "a", text="It rained.")
        assert store.find_trace(key_of("a")) == name == key_of("a")[:16]
        for asked in (name, name[:6], name.upper(), key_of("a")):
            assert store.get_trace(asked) == make_trace(key_of("a"), text="It rained.")
    with Store.open(cache_dir) as again:
        assert again.get_trace(name).text.raw == "It rained."


@pytest.mark.parametrize("name", ["0123456789abcdef", "xyz", "", "../../etc/passwd", "a\x1b[2J"])
def test_an_unknown_trace_is_a_clear_error(cache_dir: Path, name: str) -> None:
    with Store.open(cache_dir) as store:
        with pytest.raises(CacheError, match="no trace") as caught:
            store.get_trace(name)
        assert "cache list" in caught.value.todo
        assert "\x1b" not in str(caught.value)


def test_an_ambiguous_prefix_is_an_error_that_names_traces(cache_dir: Path) -> None:
    with Store.open(cache_dir) as store:
        ids = {put(store, str(number), text="x") for number in range(40)}
        digit = next(d for d in "0123456789abcdef" if sum(i.startswith(d) for i in ids) > 1)
        with pytest.raises(CacheError, match="traces start with") as caught:
            store.get_trace(digit)
        assert any(name in caught.value.why for name in ids)


def test_a_trace_must_stand_under_its_own_key(cache_dir: Path) -> None:
    with Store.open(cache_dir) as store, pytest.raises(ValueError, match="request key"):
        store.put_trace(make_trace(key_of("a")), key_of("b"))


def test_entries_of_three_kinds_are_apart(cache_dir: Path) -> None:
    key = key_of("e")
    with Store.open(cache_dir) as store:
        store.put_entry("activations", key, payload_of(1))
        store.put_entry("features", key, payload_of(2))
        assert store.get_entry("readouts", key) is None
        for kind, seed in (("activations", 1), ("features", 2)):
            content = store.get_entry(kind, key)  # type: ignore[arg-type]
            assert content is not None
            assert np.array_equal(load(content)["resid"], load(payload_of(seed))["resid"])
        with pytest.raises(ValueError, match="64 hex"):
            store.get_entry("features", "../../x")


def test_a_later_put_replaces_the_earlier(cache_dir: Path) -> None:
    with Store.open(cache_dir) as store:
        for seed in (1, 2):
            store.put_entry("features", key_of("e"), payload_of(seed))
        content = store.get_entry("features", key_of("e"))
        assert content is not None
        assert np.array_equal(load(content)["resid"], load(payload_of(2))["resid"])
        assert store.size().features.count == 1


def test_traces_are_listed_newest_first_and_searched(cache_dir: Path) -> None:
    with Store(cache_dir, clock=Clock()) as store:
        first = put(store, "1", text="Der STRASSENLÄRM war 100% laut", model="m1")
        second = put(store, "2", text="She wept.", model="m2", parent=first)
        assert [row.id for row in store.traces()] == [second, first]
        assert [row.id for row in store.traces(limit=1)] == [second]
        assert [row.id for row in store.traces(text="straßenlärm")] == [first]
        assert [row.id for row in store.traces(text="100%")] == [first]
        assert store.traces(text="%") == store.traces(text="100%")
        assert store.traces(text="_") == []
        assert [row.id for row in store.traces(model="m2")] == [second]
        row = store.traces(model="m2")[0]
        assert (row.text, row.parent, row.pinned) == ("She wept.", first, False)
        assert row.size == trace_file(cache_dir, "2").stat().st_size
        assert store.row_of(second) == row


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


# Files


def test_files_are_private_and_nothing_half_written_is_left(cache_dir: Path) -> None:
    root = cache_dir / "new"
    old = os.umask(0)
    try:
        with Store.open(root) as store:
            name = put(store, "a")
            store.put_entry("activations", key_of("a"), payload_of(1))
            store.pin(name, True)
            for path in [root, *root.rglob("*")]:
                mode = stat.S_IMODE(path.stat().st_mode)
                wanted = 0o700 if path.is_dir() else 0o600
                assert mode == wanted, path
    finally:
        os.umask(old)
    assert not list(root.rglob(f"{files.TEMPORARY}*"))


def test_a_write_is_synced_then_renamed_then_listed(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_sync, real_replace, real_record = os.fsync, Path.replace, Index.record

    def sync(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        steps.append(f"sync {kind}")
        real_sync(descriptor)

    def replace(path: Path, target: Path) -> Path:
        assert path.parent == target.parent
        steps.append("rename")
        return real_replace(path, target)

    def record(*arguments: Any, **parts: Any) -> None:
        steps.append("row")
        real_record(*arguments, **parts)

    with Store.open(cache_dir) as store:
        put(store, "a")  # makes the folders
        monkeypatch.setattr(os, "fsync", sync)
        monkeypatch.setattr(Path, "replace", replace)
        monkeypatch.setattr(Index, "record", record)
        put(store, "a")
    assert steps == ["sync file", "rename", "sync folder", "row"]


def test_a_trace_that_cannot_be_written_down_is_refused(cache_dir: Path) -> None:
    trace = make_trace(key_of("a"))
    text = msgspec.structs.replace(trace.text, raw="lone \ud800")
    with Store.open(cache_dir) as store:
        with pytest.raises(CacheError, match="could not be kept") as caught:
            store.put_trace(msgspec.structs.replace(trace, text=text), key_of("a"))
        assert "lone" not in str(caught.value)
        assert store.traces() == []


def test_leftovers_of_killed_writers_are_swept_once_they_are_old(cache_dir: Path) -> None:
    with Store.open(cache_dir) as store:
        put(store, "a")
    folder = trace_file(cache_dir, "a").parent
    young, old = folder / f"{files.TEMPORARY}1-a", folder / f"{files.TEMPORARY}2-b"
    for path in (young, old):
        path.write_bytes(b"half")
    os.utime(old, (1_600_000_000, 1_600_000_000))
    with Store.open(cache_dir):
        assert young.exists()
        assert not old.exists()


def damage_by_cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def damage_by_flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 4
    path.write_bytes(content)


def damage_to_nothing(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = [damage_by_cut, damage_by_flip, damage_to_nothing]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_set_aside_and_can_be_made_again(
    cache_dir: Path, damage: Callable[[Path], None]
) -> None:
    key = key_of("a")
    entry = layout.file_of(cache_dir, "activations", key)
    with Store.open(cache_dir) as store:
        name = put(store, "a")
        store.put_entry("activations", key, payload_of(1))
        damage(trace_file(cache_dir, "a"))
        damage(entry)
        assert store.find_trace(key) is None
        assert store.get_entry("activations", key) is None
        assert not trace_file(cache_dir, "a").exists()
        assert len(list((cache_dir / "damaged").iterdir())) == 2
        assert store.traces() == []
        with pytest.raises(CacheError, match="no trace"):
            store.get_trace(name)
        put(store, "a")
        assert store.find_trace(key) == name
        assert store.clear().count == 3
        assert not list((cache_dir / "damaged").iterdir())


def test_get_says_so_where_the_file_proves_damaged_just_then(cache_dir: Path) -> None:
    with Store.open(cache_dir) as store:
        name = put(store, "a")
        damage_by_flip(trace_file(cache_dir, "a"))
        with pytest.raises(CacheError, match="damaged"):
            store.get_trace(name)


def test_a_file_under_another_name_is_not_taken_for_its_own(cache_dir: Path) -> None:
    with Store.open(cache_dir) as store:
        store.put_entry("features", key_of("a"), payload_of(1))
        target = layout.file_of(cache_dir, "features", key_of("b"))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(layout.file_of(cache_dir, "features", key_of("a")), target)
        assert store.get_entry("features", key_of("b")) is None
        assert store.get_entry("features", key_of("a")) is not None


def test_a_file_rewritten_meanwhile_is_not_set_aside(cache_dir: Path) -> None:
    with Store.open(cache_dir) as store:
        name = put(store, "a")
        assert (
            store._shelf.with_index(
                lambda index: upkeep.set_aside(cache_dir, index, "traces", name)
            )
            is False
        )
        assert store.find_trace(key_of("a")) == name


def test_verify_names_what_is_damaged(cache_dir: Path) -> None:
    with Store.open(cache_dir) as store:
        for name in "abc":
            put(store, name)
        store.put_entry("readouts", key_of("r"), payload_of(1))
        assert store.verify().damaged == ()
        damage_by_flip(trace_file(cache_dir, "b"))
        damage_by_cut(layout.file_of(cache_dir, "readouts", key_of("r")))
        report = store.verify()
        assert report.checked == 4
        assert sorted(report.damaged) == sorted(
            path.relative_to(cache_dir).as_posix()
            for path in (
                trace_file(cache_dir, "b"),
                layout.file_of(cache_dir, "readouts", key_of("r")),
            )
        )
        assert len(store.traces()) == 2
        assert store.verify().damaged == ()


# The index


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


# The budget


def test_the_least_recently_used_goes_first_and_entries_before_traces(cache_dir: Path) -> None:
    with Store(cache_dir, clock=Clock()) as store:
        traces = [put(store, name) for name in "ab"]
        for name in "xyz":
            store.put_entry("activations", key_of(name), payload_of(1, kilobytes=8))
        store.get_entry("activations", key_of("x"))  # x was used last, y now first
        size = store.size()
        store.prune(size.evictable_bytes - 1)
        kept = [n for n in "xyz" if store.get_entry("activations", key_of(n))]
        assert kept == ["x", "z"]
        store.get_trace(traces[0])
        store.prune(store.size().traces.bytes - 1)
        assert store.size().activations.count == 0
        assert [row.id for row in store.traces()] == [traces[0]]


def test_a_write_keeps_to_the_budget(cache_dir: Path) -> None:
    budget = 60_000
    with Store(cache_dir, budget_bytes=budget, clock=Clock()) as store:
        for number in range(40):
            store.put_entry("activations", key_of(str(number)), payload_of(1, kilobytes=4))
            assert store.size().evictable_bytes <= budget
            assert store.get_entry("activations", key_of(str(number))) is not None
        assert store.size().activations.count >= 10
        # What is larger than the whole budget stays until the next write, or it never could.
        store.put_entry("activations", key_of("big"), payload_of(1, kilobytes=100))
        assert store.get_entry("activations", key_of("big")) is not None


def test_pinned_and_open_traces_stay(cache_dir: Path) -> None:
    with Store(cache_dir, clock=Clock()) as store, Store(cache_dir, clock=Clock()) as other:
        pinned, held, free = (put(store, name) for name in "abc")
        store.pin(pinned, True)
        other.hold(held)
        store.prune(0)
        assert {row.id for row in store.traces()} == {pinned, held}
        assert {row.id: row.pinned for row in store.traces()}[pinned]
        with pytest.raises(CacheError):
            store.get_trace(free)
        other.release(held)
        store.prune(0)
        assert [row.id for row in store.traces()] == [pinned]
        store.pin(pinned, False)
        store.prune(0)
        assert store.traces() == []


def test_closing_releases_and_a_dead_process_holds_nothing(cache_dir: Path) -> None:
    with Store(cache_dir) as store:
        name = put(store, "a")
        with Store(cache_dir) as other:
            other.hold(name)
        dead = os.fork()
        if dead == 0:
            os._exit(0)
        os.waitpid(dead, 0)
        store._shelf.with_index(
            lambda index: index.hold(name, host=upkeep.host_name(), pid=dead, since=time.time())
        )
        store.prune(0)
        assert store.traces() == []


def test_a_trace_open_on_another_machine_stays_for_a_week(cache_dir: Path) -> None:
    with Store(cache_dir) as store:
        name = put(store, "a")
        for age, left in ((86_400.0, 1), (8 * 86_400.0, 0)):
            since = time.time() - age
            with store._shelf._index.writing():
                store._shelf._index.hold(name, host="far", pid=1, since=since)
            store.prune(0)
            assert len(store.traces()) == left


def test_clear_keeps_pinned_traces_and_probes_unless_told(cache_dir: Path) -> None:
    with Store(cache_dir) as store:
        pinned = put(store, "a")
        put(store, "b")
        store.put_entry("features", key_of("f"), payload_of(1))
        store.pin(pinned, True)
        freed = store.clear()
        assert freed.count == 2
        assert [row.id for row in store.traces()] == [pinned]
        store.clear(everything=True)
        assert store.traces() == []
        assert store.size().evictable_bytes == 0


def test_delete_removes_a_trace_and_its_pin(cache_dir: Path) -> None:
    with Store(cache_dir) as store:
        name = put(store, "a")
        store.pin(name, True)
        assert store.delete(name[:8]) == name
        assert store.traces() == []
        put(store, "a")
        assert not store.traces()[0].pinned


# Threads and size


def test_two_threads_share_one_store(cache_dir: Path) -> None:
    problems: list[BaseException] = []
    with Store.open(cache_dir) as store:

        def work(start: int) -> None:
            try:
                for number in range(25):
                    put(store, str(start + number), text="x")
                    store.traces(limit=5)
                    assert store.find_trace(key_of(str(number + start)))
            except BaseException as problem:
                problems.append(problem)

        threads = [threading.Thread(target=work, args=(start,)) for start in (0, 10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        assert len(store.traces()) == 35


def test_a_closed_store_says_so_and_harms_nothing(cache_dir: Path) -> None:
    store = Store.open(cache_dir)
    put(store, "a")
    store.close()
    store.close()
    with pytest.raises(ValueError, match="closed"):
        store.traces()
    with Store.open(cache_dir) as again:
        assert len(again.traces()) == 1


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


def test_ten_thousand_traces_open_list_and_search_quickly(ten_thousand: Path) -> None:
    def open_and_list() -> None:
        with Store.open(ten_thousand) as store:
            assert len(store.traces(limit=50)) == 50

    assert quickest(open_and_list) < 0.2
    with Store.open(ten_thousand) as store:
        assert len(store.traces(text="NUMBER 9999:")) == 1
        assert quickest(lambda: store.traces(text="number 123")) < 0.1
        assert quickest(lambda: store.traces(text="nowhere")) < 0.1
