"""The store: what is put is found, listed, evicted in order, and damage is seen."""

from __future__ import annotations

import os
import shutil
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load
from support_cache import Clock, key_of, make_trace, payload_of, put

from emotui.cache import files, layout, upkeep
from emotui.cache.index import Index
from emotui.cache.layout import EntryKind
from emotui.cache.store import Store
from emotui.core.errors import CacheError


def trace_file(root: Path, name: str) -> Path:
    return layout.file_of(root, "traces", key_of(name)[:16])


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
        kinds: tuple[tuple[EntryKind, int], ...] = (("activations", 1), ("features", 2))
        for kind, seed in kinds:
            content = store.get_entry(kind, key)
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
    real_sync, real_replace, real_record = os.fsync, os.replace, Index.record

    def sync(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        steps.append(f"sync {kind}")
        real_sync(descriptor)

    def replace(path: str, target: str) -> None:
        assert Path(path).parent == Path(target).parent
        steps.append("rename")
        real_replace(path, target)

    def record(*arguments: Any, **parts: Any) -> None:
        steps.append("row")
        real_record(*arguments, **parts)

    with Store.open(cache_dir) as store:
        put(store, "a")  # makes the folders
        monkeypatch.setattr(os, "fsync", sync)
        monkeypatch.setattr(os, "replace", replace)
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


# Threads and closing


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
