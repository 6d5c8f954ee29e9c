"""`emotui cache`: results on standard output, the rest on standard error, the right exit code."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from support_cache import key_of, make_trace, payload_of

from emotui.cache.store import Store
from emotui.commands.cache import _bytes_of
from emotui.core.errors import UsageError

HOSTILE = "sad\x1b[2J\u202e\nsecond [bold]line"


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "emotui", "cache", *arguments, "--cache-dir", str(root)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


@pytest.fixture
def filled(cache_dir: Path) -> Path:
    with Store.open(cache_dir) as store:
        for name, text in (("a", "Lily lost her toy."), ("b", HOSTILE)):
            store.put_trace(make_trace(key_of(name), text=text, model="/x/tiny"), key_of(name))
        store.put_entry("features", key_of("f"), payload_of(1))
    return cache_dir


def test_list_and_show_print_clean_text(filled: Path) -> None:
    done = run(filled, "list")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line[:16] for line in lines] == [key_of("b")[:16], key_of("a")[:16]]
    assert "tiny" in lines[0]
    assert "[bold]line" in lines[0]
    assert "2 traces" in done.stderr
    shown = run(filled, "show", key_of("b")[:8])
    assert shown.returncode == 0
    assert "[bold]line" in shown.stdout
    for output in (done.stdout, shown.stdout):
        assert "\x1b" not in output
        assert "\u202e" not in output


def test_json_is_one_document_and_nothing_else(filled: Path) -> None:
    rows = json.loads(run(filled, "list", "--json", "LILY").stdout)
    assert [(row["id"], row["text"]) for row in rows] == [(key_of("a")[:16], "Lily lost her toy.")]
    facts = json.loads(run(filled, "show", key_of("b")[:16], "--json").stdout)
    assert facts["text"] == HOSTILE
    assert facts["probes"] == ["p1"]
    sizes = json.loads(run(filled, "size", "--json").stdout)
    assert (sizes["traces"]["count"], sizes["features"]["count"]) == (2, 1)
    assert json.loads(run(filled, "verify", "--json").stdout)["damaged"] == []


def test_path_prints_the_folder_and_makes_nothing(tmp_path: Path) -> None:
    done = run(tmp_path / "new", "path")
    assert done.stdout == f"{tmp_path / 'new'}\n"
    assert not (tmp_path / "new").exists()


def test_an_unknown_trace_is_exit_code_2_and_one_message(filled: Path) -> None:
    done = run(filled, "show", "ffffffff")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "no trace" in done.stderr
    assert "Traceback" not in done.stderr


def test_verify_names_damage_and_fails(filled: Path) -> None:
    (path,) = (filled / "features").rglob("*.safetensors")
    os.truncate(path, 200)
    done = run(filled, "verify")
    assert done.returncode == 1
    assert path.name in done.stdout
    assert "1 file in the cache was damaged" in done.stderr
    assert run(filled, "verify").returncode == 0


def test_prune_pin_and_delete(filled: Path) -> None:
    pinned = key_of("a")[:16]
    assert run(filled, "pin", pinned[:6]).stdout == f"{pinned}\n"
    done = run(filled, "prune", "--to", "0")
    assert done.returncode == 0
    assert "Removed 2 files" in done.stdout
    assert run(filled, "list").stdout.startswith(f"{pinned}*")
    assert run(filled, "pin", pinned, "--off").returncode == 0
    assert run(filled, "delete", pinned).returncode == 0
    assert run(filled, "list").stdout == ""
    assert run(filled, "prune", "--to", "much").returncode == 2


def test_clear_asks_and_does_nothing_where_it_cannot_ask(filled: Path) -> None:
    done = run(filled, "clear")
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert len(run(filled, "list").stdout.splitlines()) == 2
    done = run(filled, "clear", "--yes", "--json")
    assert json.loads(done.stdout)["count"] == 3
    assert run(filled, "list").stdout == ""


def test_converted_saes_are_counted_and_stay_unless_all_is_cleared(filled: Path) -> None:
    folder = filled / "saes" / "release" / "layer_0" / "float32"
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_bytes(b"{}")
    (folder / "sae_weights.safetensors").write_bytes(b"x" * 5_000_000)
    sizes = json.loads(run(filled, "size", "--json").stdout)
    assert sizes["saes"] == {"count": 2, "bytes": 5_000_002}
    assert "saes               2     5.0 MB" in run(filled, "size").stdout
    done = run(filled, "clear", "--yes")
    assert "5.0 MB of converted SAEs stayed; --all removes them too." in done.stderr
    assert (folder / "cfg.json").exists()
    done = run(filled, "clear", "--yes", "--all")
    assert done.stdout == "Removed 2 files, 5.0 MB.\n"
    assert done.stderr == ""
    assert not list((filled / "saes").iterdir())


def test_saes_that_are_only_linked_to_are_never_removed(filled: Path, tmp_path: Path) -> None:
    kept = tmp_path / "elsewhere" / "cfg.json"
    kept.parent.mkdir()
    kept.write_bytes(b"{}")
    (filled / "saes").symlink_to(kept.parent, target_is_directory=True)
    assert json.loads(run(filled, "size", "--json").stdout)["saes"]["count"] == 0
    assert run(filled, "clear", "--yes", "--all").returncode == 0
    assert kept.exists()


@pytest.mark.parametrize(("answer", "code", "left"), [("n", 130, 2), ("y", 0, 0)])
def test_clear_on_a_terminal_does_what_is_answered(
    filled: Path, answer: str, code: int, left: int
) -> None:
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    command = [sys.executable, "-m", "emotui", "cache", "clear", "--cache-dir", str(filled)]
    done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, check=False)
    os.close(theirs)
    os.close(ours)
    assert done.returncode == code
    with Store.open(filled) as store:
        assert len(store.traces()) == left


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("500MB", 500_000_000), ("2GiB", 2 * 2**30), ("1.5k", 1500), (" 10 b ", 10)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert _bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "-1", "MB", "1e9", "10 miles"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no size"):
        _bytes_of(text)
