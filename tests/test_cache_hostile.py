"""A cache that cannot be written, a full disk, many writers, and writers that are killed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support_cache import key_of, make_trace, payload_of

from emotui.cache import files
from emotui.cache.store import Store
from emotui.core.errors import CacheError

HERE = Path(__file__).parent


@contextlib.contextmanager
def tmpfs(folder: Path, size: str) -> Iterator[Path]:
    """Mount a small disk in memory; skips where that is not allowed."""
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def leftovers(root: Path) -> list[Path]:
    return list(root.rglob(f"{files.TEMPORARY}*"))


def test_a_real_full_disk_gives_one_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "1m") as disk, Store.open(disk / "cache") as store:
        kept = []
        with pytest.raises(CacheError, match="full") as caught:
            for number in range(500):
                key = key_of(str(number))
                store.put_entry("activations", key, payload_of(number, kilobytes=20))
                kept.append(key)
        assert "prune" in caught.value.todo
        assert "--cache-dir" in caught.value.todo
        assert len(kept) > 20
        assert leftovers(disk) == []
        assert store.get_entry("activations", key_of(str(len(kept)))) is None
        for key in kept:
            assert store.get_entry("activations", key) is not None
        # Room is made by what the message says, and then writing works again.
        assert store.prune(200_000).count > 0
        store.put_trace(make_trace(key_of("t")), key_of("t"))
        assert store.find_trace(key_of("t"))
        report = store.verify()
        assert report.damaged == ()


def test_a_disk_full_from_the_start_still_opens(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "64k") as disk:
        with contextlib.suppress(OSError):
            (disk / "ballast").write_bytes(b"x" * 100_000)
        with Store.open(disk / "cache") as store:
            with pytest.raises(CacheError, match="full"):
                store.put_trace(make_trace(key_of("a")), key_of("a"))
            assert store.traces() == []


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_an_error_at_any_step_of_a_write_leaves_nothing(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    with Store.open(cache_dir) as store:
        store.put_trace(make_trace(key_of("old")), key_of("old"))
        with monkeypatch.context() as patch:
            if call == "write":

                class Full:
                    def __init__(self, descriptor: int, mode: str) -> None:
                        self._descriptor = descriptor

                    def __enter__(self) -> Full:
                        return self

                    def __exit__(self, *_: object) -> None:
                        os.close(self._descriptor)

                    write = fail

                patch.setattr(os, "fdopen", Full)
            elif call == "fsync":
                patch.setattr(os, "fsync", fail)
            else:
                patch.setattr(os, "replace", fail)
            with pytest.raises(CacheError) as caught:
                store.put_trace(make_trace(key_of("new")), key_of("new"))
        assert ("full" in caught.value.what) is (number != errno.EIO)
        assert "--cache-dir" in caught.value.todo
        assert leftovers(cache_dir) == []
        assert store.find_trace(key_of("new")) is None
        assert [row.id for row in store.traces()] == [key_of("old")[:16]]
        store.put_trace(make_trace(key_of("new")), key_of("new"))
        assert store.find_trace(key_of("new"))


def test_an_index_that_finds_the_disk_full_leaves_no_file_without_a_row(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emotui.cache.index import Index

    with Store.open(cache_dir) as store:
        with monkeypatch.context() as patch:

            def full(*_: Any, **__: Any) -> None:
                raise OSError(errno.ENOSPC, "full")

            patch.setattr(Index, "record", full)
            with pytest.raises(CacheError, match="full"):
                store.put_trace(make_trace(key_of("a")), key_of("a"))
        assert store.find_trace(key_of("a")) is None
        assert store.traces() == []
        assert leftovers(cache_dir) == []


@contextlib.contextmanager
def freezable(folder: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Yield a folder and what makes it read-only: by its modes, or for root by its mount."""
    if os.geteuid() == 0:
        with tmpfs(folder, "8m"):
            remount = ["mount", "-o", "remount,ro", str(folder)]
            yield folder, lambda: void(subprocess.run(remount, check=True))
        return
    folder.mkdir()

    def set_modes(mode: int) -> None:
        for path in [folder, *folder.rglob("*")]:
            if path.is_dir():
                path.chmod(mode)

    try:
        yield folder, lambda: set_modes(0o500)
    finally:
        set_modes(0o700)


def void(_: object) -> None:
    """Make a call's value None."""


@pytest.mark.parametrize("index", ["as it was", "missing", "behind"])
def test_a_read_only_cache_can_be_read_and_says_how_to_write(tmp_path: Path, index: str) -> None:
    with freezable(tmp_path / "disk") as (disk, freeze):
        root = disk / "cache"
        with Store.open(root) as store:
            for name in "ab":
                store.put_trace(make_trace(key_of(name), text=name), key_of(name))
            store.put_entry("features", key_of("f"), payload_of(1))
            store.pin(key_of("a")[:16], True)
            before = store.traces()
            if index == "behind":
                shutil.copy(root / "index.sqlite", tmp_path / "early")
        if index == "missing":
            (root / "index.sqlite").unlink()
        elif index == "behind":
            shutil.copy(tmp_path / "early", root / "index.sqlite")
        freeze()
        listing = sorted(disk.rglob("*"))
        with Store.open(root) as store:
            assert not store.writable
            assert store.traces() == before
            assert store.get_trace(before[0].id).text.raw == "b"
            assert store.find_trace(key_of("a"))
            assert store.get_entry("features", key_of("f")) is not None
            assert store.verify().damaged == ()
            store.remember_fingerprint("m", "f")
            store.hold(before[0].id)
            writes = (
                lambda: store.put_trace(make_trace(key_of("c")), key_of("c")),
                lambda: store.put_entry("features", key_of("c"), payload_of(1)),
                lambda: store.pin(before[0].id, True),
                lambda: store.delete(before[0].id),
                lambda: store.prune(0),
                lambda: store.clear(),
            )
            for write in writes:
                with pytest.raises(CacheError, match="cannot be written") as caught:
                    write()
                assert "--cache-dir" in caught.value.todo
            assert store.traces() == before
        assert sorted(disk.rglob("*")) == listing


def test_a_damaged_file_in_a_read_only_cache_counts_as_absent(tmp_path: Path) -> None:
    with freezable(tmp_path / "disk") as (disk, freeze):
        with Store.open(disk / "cache") as store:
            store.put_entry("features", key_of("f"), payload_of(1))
            (path,) = (disk / "cache" / "features").rglob("*.safetensors")
            os.truncate(path, 100)
        freeze()
        with Store.open(disk / "cache") as store:
            assert store.get_entry("features", key_of("f")) is None
            assert len(store.verify().damaged) == 1


def test_a_cache_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("I am a file")
    for root in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(CacheError) as caught:
            Store.open(root)
        assert "--cache-dir" in caught.value.todo


# Many writers

WRITER = """
import random, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from support_cache import key_of, make_trace, payload_of
from emotui.cache.store import Store

root, seed, operations, budget = Path(sys.argv[2]), *map(int, sys.argv[3:6])
chance = random.Random(seed)
with Store.open(root, budget_bytes=budget) as store:
    for step in range(operations):
        name = f"text {chance.randrange(30)}"
        key = key_of(name)
        act = chance.random()
        if act < 0.35:
            trace = make_trace(key, text=name)
            store.put_trace(trace, key)
            print(trace.id, flush=True)
        elif act < 0.55:
            store.put_entry("activations", key, payload_of(chance.randrange(30), kilobytes=4))
        elif act < 0.75:
            if (found := store.find_trace(key)) is not None:
                try:
                    assert store.get_trace(found).text.raw == name
                except Exception as error:
                    # Evicted between the two calls: that is a plain absence.
                    assert type(error).__name__ == "CacheError" and "no trace" in error.what, error
        elif act < 0.9:
            content = store.get_entry("activations", key)
            assert content is None or len(content) > 4000
        else:
            store.traces(text="text", limit=10)
            store.size()
print("done")
"""


def start_writer(root: Path, seed: int, operations: int, budget: int) -> subprocess.Popen[str]:
    arguments = [str(HERE), str(root), str(seed), str(operations), str(budget)]
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", WRITER, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_four_processes_share_a_cache_under_eviction(cache_dir: Path) -> None:
    budget = 150_000  # about ten traces of the thirty
    writers = [start_writer(cache_dir, seed, 200, budget) for seed in range(4)]
    for writer in writers:
        output, problems = writer.communicate(timeout=120)
        assert problems == ""
        assert writer.returncode == 0
        assert output.endswith("done\n")
    with Store.open(cache_dir, budget_bytes=budget) as store:
        report = store.verify()
        assert report.damaged == ()
        assert report.listed_again == 0
        assert not (cache_dir / "damaged").exists()
        assert leftovers(cache_dir) == []
        assert store.size().evictable_bytes <= budget
        assert store.traces()


def test_whatever_a_killed_writer_had_said_is_readable(cache_dir: Path) -> None:
    for round_ in range(4):
        writers = [start_writer(cache_dir, 10 * round_ + n, 10_000, 10**9) for n in range(2)]
        said = set()
        for number, writer in enumerate(writers):
            assert writer.stdout is not None
            assert writer.stderr is not None
            said.add(writer.stdout.readline().strip())
            time.sleep(0.05 * (2 * number + round_))
            writer.send_signal(signal.SIGKILL)
            output, _ = writer.communicate()
            # The last line may be cut off by the kill.
            said |= set(output.splitlines()[:-1])
        assert said
        with Store.open(cache_dir) as store:
            for name in said:
                assert store.get_trace(name).id == name
            assert store.verify().damaged == ()
            listed = {row.id for row in store.traces()}
            assert said <= listed
