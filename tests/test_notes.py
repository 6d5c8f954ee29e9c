"""Notes beside traces and the console's history: private, kept whole, removed with their trace."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from support_screen import Scene

from emotui.cache.history import MAX_LINES, add_to_history, history_file, load_history, with_line
from emotui.cache.notes import MAX_CHARACTERS, add_note, note_files, notes_of
from emotui.cache.store import Store
from emotui.cli import main
from emotui.core.errors import CacheError, UsageError
from emotui.core.export.json import document_bytes, read_document
from emotui.core.export.markdown import markdown_bytes
from emotui.core.records import Note, Trace

ID = "0123456789abcdef"


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_a_note_is_kept_beside_its_trace_and_private(cache_dir: Path) -> None:
    first = add_note(cache_dir, ID, "  it starts\x1b[31m at L3 ", now=0)
    assert first == Note(ID, "1970-01-01T00:00:00Z", "it starts␛[31m at L3")
    second = add_note(cache_dir, ID, "again")
    assert notes_of(cache_dir, [ID]) == (first, second)
    assert notes_of(cache_dir, ["ff" * 8]) == ()
    (path,) = note_files(cache_dir)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("text", ["", " \n ", "x" * (MAX_CHARACTERS + 1)])
def test_a_note_without_words_or_too_long_is_refused(cache_dir: Path, text: str) -> None:
    with pytest.raises(UsageError):
        add_note(cache_dir, ID, text)
    assert note_files(cache_dir) == []


def test_damaged_notes_are_named_and_left_as_they_are(cache_dir: Path) -> None:
    add_note(cache_dir, ID, "one")
    (path,) = note_files(cache_dir)
    path.write_bytes(b"{")
    with pytest.raises(CacheError, match="cannot be read"):
        add_note(cache_dir, ID, "two")
    assert path.read_bytes() == b"{"


def test_deleting_or_clearing_removes_notes_and_history_and_eviction_does_not(scene: Scene) -> None:
    trace, other = scene.put_trace(), scene.put_trace("Another text.")
    for one in (trace, other):
        add_note(scene.cache, one.id, "kept")
    add_to_history(scene.cache, "undo")
    with Store.open(scene.cache) as store:
        store.prune(0)
        assert len(notes_of(scene.cache, [trace.id, other.id])) == 2
    scene.put_trace()
    with Store.open(scene.cache) as store:
        store.pin(trace.id, True)
        store.clear()
        assert notes_of(scene.cache, [trace.id, other.id])[0].trace == trace.id
        assert len(note_files(scene.cache)) == 1
        assert not history_file(scene.cache).exists()
        store.delete(trace.id)
    assert note_files(scene.cache) == []


def test_notes_of_a_trace_and_its_ancestors_are_in_the_document_and_in_prose(scene: Scene) -> None:
    trace = scene.put_trace()
    notes = (Note(trace.id, "2026-01-01T00:00:00Z", "a *note*"), Note(ID, "2026-01-02", "before"))
    data = document_bytes(trace, notes=notes, all_tokens=False)
    document = read_document(data)
    assert document.notes == notes
    page = markdown_bytes(trace, notes=notes).decode()
    assert "## Notes\n\n- 2026-01-01T00:00:00Z: a \\*note\\*\n" in page
    assert f"on `{ID}`: before" in page
    assert "## Notes" not in markdown_bytes(trace).decode()


def test_note_and_recipe_from_the_command_line(
    scene: Scene, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    edits = ("ablate L3/1 at all",)
    trace: Trace = scene.put_trace(edits=edits, change=lambda t: _with_edits(t, edits))
    where = ("--cache-dir", str(scene.cache))
    assert run("note", trace.id[:8], "first", *where) == 0
    assert run("note", trace.id, "--json", *where) == 0
    out = capsysbinary.readouterr().out
    assert [note["text"] for note in json.loads(out)] == ["first"]
    assert run("export", trace.id, *where) == 0
    assert json.loads(capsysbinary.readouterr().out)["notes"][0]["text"] == "first"
    assert run("note", trace.id, " ", *where) == 2
    assert run("note", "beef", "text", *where) == 2
    assert run("recipe", "save", "calm", trace.id, *where) == 0
    capsysbinary.readouterr()
    assert run("recipe", "show", "@calm", "--json", *where) == 0
    shown = json.loads(capsysbinary.readouterr().out)
    assert shown["edits"] == list(edits) and shown["model"] == str(scene.model)
    assert run("recipe", "list", *where) == 0
    assert b"@calm" in capsysbinary.readouterr().out
    assert run("recipe", "save", "Not a name", trace.id, *where) == 2
    assert run("recipe", "remove", "calm", *where) == 0
    assert run("recipe", "show", "calm", *where) == 2
    plain = scene.put_trace()
    assert run("recipe", "save", "none", plain.id, *where) == 2


def _with_edits(trace: Trace, edits: tuple[str, ...]) -> Trace:
    import msgspec

    return msgspec.structs.replace(trace, edits=edits)


def test_history_keeps_lines_once_the_last_at_the_end(cache_dir: Path) -> None:
    for line in ("undo", "ablate L1/2", "undo", "  ", "redo"):
        add_to_history(cache_dir, line)
    assert load_history(cache_dir) == ("ablate L1/2", "undo", "redo")
    assert stat.S_IMODE(history_file(cache_dir).stat().st_mode) == 0o600


def test_history_is_capped_and_a_damaged_one_is_none(cache_dir: Path) -> None:
    lines: tuple[str, ...] = ()
    for number in range(MAX_LINES + 7):
        lines = with_line(lines, f"line {number}")
    assert len(lines) == MAX_LINES and lines[-1] == f"line {MAX_LINES + 6}"
    assert with_line(lines, "x" * 20_000) == lines
    for content in (b"", b"{}", b"[1]", b"\xff"):
        history_file(cache_dir).write_bytes(content)
        assert load_history(cache_dir) == ()
    add_to_history(cache_dir, "undo")
    assert load_history(cache_dir) == ("undo",)
