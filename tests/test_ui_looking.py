"""Comparing, copying, the next template, searching, and maps that are blank."""

from __future__ import annotations

import base64
import gc
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from support_looking import SIZES, is_on, pane_of, ready, scene_in
from support_screen import TEXT, Scene, lines_of, text_on, trace_of, until
from textual.pilot import Pilot

from emotui.app import EmotuiApp
from emotui.cli import _run
from emotui.core.errors import SaeError
from emotui.core.protocol import Inspected, InspectRequest
from emotui.core.records import Trace
from emotui.ui.clipboard import LIMIT, copying
from emotui.ui.handlers.compare import compare
from emotui.ui.handlers.search import features_found, next_of, tokens_found
from emotui.ui.panes.difference import DifferenceCell, change_step, change_text
from emotui.ui.readings import FeatureRow
from emotui.ui.screens.compare import CompareScreen
from emotui.ui.screens.explore import ExploreScreen
from emotui.ui.screens.traces import TracesScreen

EDIT = "ablate L1/5 at readout"


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return scene_in(tmp_path, monkeypatch)


# Compare.


def family(scene: Scene) -> tuple[Trace, Trace]:
    probes = scene.put_probes()
    root = scene.put_trace(probes=probes)

    def change(trace: Trace) -> Trace:
        readouts = trace.readouts
        z = tuple(
            None if value is None else value - 1.25 * (layer == 3)
            for value, layer in zip(readouts.z, readouts.layer, strict=True)
        )
        return msgspec.structs.replace(
            trace,
            parent=root.id,
            edits=(EDIT,),
            readouts=msgspec.structs.replace(readouts, z=z),
        )

    return root, scene.put_trace(probes=probes, edits=(EDIT,), change=change)


async def comparing(app: EmotuiApp, pilot: Pilot[int]) -> CompareScreen:
    await until(pilot, lambda: isinstance(app.screen, CompareScreen))
    screen = app.screen
    assert isinstance(screen, CompareScreen)
    await pilot.pause()
    return screen


@pytest.mark.parametrize("size", SIZES)
async def test_an_edited_trace_is_compared_with_its_parent(
    scene: Scene, size: tuple[int, int], tmp_path: Path
) -> None:
    root, edited = family(scene)
    async with scene.open(size=size) as (app, pilot):
        await ready(app, pilot)
        app.workbench.open_trace(edited.id)
        await until(pilot, lambda: trace_of(app).id == edited.id)
        await pilot.press("c")
        screen = await comparing(app, pilot)
        assert (screen.difference.first.id, screen.difference.second.id) == (root.id, edited.id)
        await until(pilot, lambda: "-1.25" in text_on(app))
        lines = lines_of(app)
        changed = [line for line in lines if line.count("-1.25") > 1]
        assert len(changed) == 1 and "3" in changed[0], "the layer that changed, and no other"
        assert "▼" in changed[0], "the sign is a glyph too"
        assert EDIT in text_on(app)
        assert max(map(len, lines)) <= size[0]
        layer = screen.view.layer
        await pilot.press("j", "e", "0", "S")
        assert screen.view.layer == layer - 1 and screen.view.view == "tokens"
        await pilot.press("h", "h")
        assert screen.view.pair == screen.difference.first.readout - 2
        await pilot.press("P")
        assert screen.view.pair == screen.difference.first.readout
        await pilot.press("x")
        await until(pilot, lambda: list(tmp_path.glob("emotui-compare-*.json")))
        (path,) = tmp_path.glob("emotui-compare-*.json")
        assert json.loads(path.read_bytes())["schema"] == "emotui-compare"
        await pilot.press("escape")
        assert is_on(app, ExploreScreen)
        assert scene.engine.asked == []


async def test_without_an_edit_another_is_chosen_in_the_list(scene: Scene) -> None:
    root, edited = family(scene)
    async with scene.open() as (app, pilot):
        await ready(app, pilot)
        await pilot.press("c")
        await until(pilot, lambda: isinstance(app.screen, TracesScreen))
        traces = app.screen
        assert isinstance(traces, TracesScreen)
        await until(pilot, lambda: len(traces.list.entries) == 2)
        assert traces.list.marked == root.id and "c on another trace" in text_on(app)
        while traces.list.row is None or traces.list.row.id != edited.id:
            await pilot.press("j")
        await pilot.press("c")
        screen = await comparing(app, pilot)
        assert (screen.difference.first.id, screen.difference.second.id) == (root.id, edited.id)
        await pilot.press("escape")
        assert is_on(app, TracesScreen)
        await pilot.press("k", "c")
        assert traces.list.marked == "", "c on the marked one takes the mark away"


async def test_the_text_a_trace_was_compared_with_is_suggested_for_a_patch(scene: Scene) -> None:
    shown = scene.put_trace(probes=scene.put_probes())
    other = scene.put_trace("Another text.")
    async with scene.open() as (app, pilot):
        await ready(app, pilot)
        assert trace_of(app).id == shown.id
        compare(app.explorer, other.id, shown.id, lambda _line: None)
        await comparing(app, pilot)
        await pilot.press("escape")
        await until(pilot, lambda: is_on(app, ExploreScreen))
        await pilot.press("p")
        assert 'from "Another text." at readout' in app.explorer.console.value


async def test_traces_without_any_readout_are_shown(scene: Scene) -> None:
    root = scene.put_trace()
    edited = scene.put_trace(
        edits=(EDIT,),
        change=lambda trace: msgspec.structs.replace(trace, parent=root.id, edits=(EDIT,)),
    )
    async with scene.open() as (app, pilot):
        app.workbench.open_trace(edited.id)
        await until(pilot, lambda: app.explorer.state.readings)
        await pilot.press("c")
        await comparing(app, pilot)
        await pilot.press("j", "l", "e", "0", "S", "P")
        assert "They share no readout" in text_on(app)


def test_a_change_has_a_sign_a_number_and_marks() -> None:
    def cell(change: float, *, hollow: bool = False, along: bool = False) -> DifferenceCell:
        return DifferenceCell(1.0, 1.0 + change, "trusted", hollow, along)

    assert change_text(cell(1.5), 2.0, cursor=False) == "▲+1.50 "
    assert change_text(cell(-1.5), 2.0, cursor=False) == "▼-1.50 "
    assert change_text(cell(0.0), 2.0, cursor=False) == "  0.00 "
    assert change_text(cell(-12.25), 20.0, cursor=False) == "▼-12.2 "
    assert change_text(cell(1.5, hollow=True), 2.0, cursor=False) == "(+1.50)"
    assert change_text(cell(1.5, along=True), 2.0, cursor=False) == "▲+1.50c"
    assert change_text(cell(1.5), 2.0, cursor=True) == "[+1.50]"
    assert change_text(None, 2.0, cursor=False).strip() == ""
    assert [change_step(x, 4.0) for x in (-4, -1, -0.2, 0, 0.1, 2, 4)] == [-4, -2, -1, 0, 0, 3, 4]
    assert change_step(1.0, 0.0) == 0


# Copy.


def payload(sequence: str) -> str:
    inner = sequence.split("]52;c;")[1].split("\x07")[0]
    return base64.b64decode(inner).decode()


def test_osc_52_plain_in_tmux_and_in_screen() -> None:
    text = "fear \x1b[2J é"
    (plain,) = copying(text, {"TERM": "xterm"}) or ()
    assert plain.startswith("\x1b]52;c;") and plain.endswith("\x07")
    assert payload(plain) == text and plain.count("\x1b") == 1
    first, wrapped = copying(text, {"TERM": "screen-256color", "TMUX": "/tmp/x,1,0"}) or ()
    assert first == plain
    assert wrapped == "\x1bPtmux;" + plain.replace("\x1b", "\x1b\x1b") + "\x1b\\"
    long = "word " * 300
    pieces = copying(long, {"TERM": "screen", "STY": "1.a"}) or ()
    assert len(pieces) > 1 and all(len(piece) <= 768 for piece in pieces)
    assert all(piece.startswith("\x1bP") and piece.endswith("\x1b\\") for piece in pieces)
    assert payload("".join(piece[2:-2] for piece in pieces)) == long


@pytest.mark.parametrize("environ", [{}, {"TMUX": "1"}, {"STY": "1"}])
def test_the_bytes_on_the_wire_are_capped(environ: dict[str, str]) -> None:
    kept = 0
    for size in range(0, 10_000, 500):
        found = copying("x" * size, environ)
        if found is not None:
            assert sum(map(len, found)) <= LIMIT
            kept = size
    assert 2500 <= kept < 6500
    assert copying("x" * 20_000, environ) is None


def in_tmux(server: str, config: Path, command: str) -> None:
    run = ["tmux", "-L", server, "-f", str(config), "new-session", "-d", "-x", "80", "-y", "24"]
    environ = {name: value for name, value in os.environ.items() if name != "TMUX"}
    subprocess.run([*run, command], check=True, timeout=20, env=environ)


def buffer_of(server: str) -> str:
    done = subprocess.run(
        ["tmux", "-L", server, "show-buffer"], capture_output=True, text=True, check=False
    )
    return done.stdout


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
@pytest.mark.parametrize("nested", [False, True], ids=["plain", "wrapped"])
def test_tmux_takes_a_copy_and_hands_on_the_wrapped_one(tmp_path: Path, nested: bool) -> None:
    """An inner tmux that takes nothing itself stands for one on the other end of a connection."""
    text = "fear; 'é' $(x)"
    program = tmp_path / "copy.py"
    program.write_text(
        "import sys, time\nfrom emotui.ui.clipboard import copying\n"
        f"sys.stdout.write(''.join(copying({text!r})))\nsys.stdout.flush()\ntime.sleep(20)\n"
    )
    outer, inner = tmp_path / "outer.conf", tmp_path / "inner.conf"
    outer.write_text("set -g set-clipboard on\n")
    inner.write_text("set -g set-clipboard external\nset -g allow-passthrough on\n")
    command = f"{sys.executable} {program}"
    names = [f"emotui-{os.getpid()}-{place}" for place in ("outer", "inner")]
    if nested:
        command = (
            f"env -u TMUX TERM=tmux-256color tmux -L {names[1]} -f {inner} new-session '{command}'"
        )
    try:
        in_tmux(names[0], outer, command)
        deadline = time.monotonic() + 15
        while buffer_of(names[0]) != text and time.monotonic() < deadline:
            time.sleep(0.1)
        assert buffer_of(names[0]) == text
        if nested:
            assert buffer_of(names[1]) == "", "the inner one kept nothing for itself"
    finally:
        for name in names:
            subprocess.run(["tmux", "-L", name, "kill-server"], capture_output=True, check=False)


async def test_y_copies_what_the_pane_is_about(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = scene.put_trace(probes=scene.put_probes())
    async with scene.open() as (app, pilot):
        await ready(app, pilot)
        written: list[str] = []
        monkeypatch.setattr(app._driver, "write", written.append)
        expected = [("1", TEXT), ("2", trace.id), ("3", app.explorer.state.features[0].name)]
        for pane, text in expected:
            written.clear()
            await pilot.press(pane, "y")
            assert [payload(one) for one in written if "]52;" in one] == [text], pane
        await until(pilot, lambda: "Copied" in text_on(app))


async def test_a_long_text_goes_to_a_private_file(scene: Scene) -> None:
    text = "A very long story about a dog. " * 400
    scene.put_trace(text, probes=scene.put_probes(), tokens=40)
    async with scene.open(text) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press("1", "y")
        await until(pilot, lambda: list((scene.cache / "copied").glob("*.txt")))
        (path,) = (scene.cache / "copied").glob("*.txt")
        assert path.read_text() == text
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        await until(pilot, lambda: "longer than 8 kB" in text_on(app))


# Template.


@pytest.mark.parametrize("by", ["key", "console"])
async def test_another_template_reads_the_text_again_and_fits_nothing(
    scene: Scene, by: str
) -> None:
    scene.put_trace(probes=scene.put_probes())
    async with scene.open(size=(160, 45)) as (app, pilot):
        await ready(app, pilot)
        await pilot.press(*(["T"] if by == "key" else ["colon", *"template", "space", *"raw"]))
        if by == "console":
            await pilot.press("enter")
        await until(pilot, lambda: scene.engine.asked)
        asked = scene.engine.asked[0]
        assert (asked.operation.template, asked.operation.probes) == ("raw", ())
        trace = scene.put_trace("as raw", change=lambda one: msgspec.structs.replace(
            one, run=msgspec.structs.replace(one.run, template="raw")))  # fmt: skip
        asked.finish(Inspected(trace_id=trace.id, cached=False, forwards=1, seconds=0.1))
        await until(pilot, lambda: "No probes for this model and prompt" in text_on(app))
        await until(pilot, lambda: not app.workbench.busy)
        assert len(scene.engine.asked) == 1, "no fit begins by itself"
        assert "F fits them" in text_on(app)
        await pilot.press("T")
        await until(pilot, lambda: len(scene.engine.asked) == 2)
        assert scene.engine.asked[1].operation.template == "tak1"


async def test_a_template_that_fails_is_passed_by_the_next_time(scene: Scene) -> None:
    scene.put_trace(
        probes=scene.put_probes(),
        change=lambda one: msgspec.structs.replace(
            one, run=msgspec.structs.replace(one.run, template="tak4")
        ),
    )
    async with scene.open() as (app, pilot):
        await ready(app, pilot)
        await pilot.press("T")
        await until(pilot, lambda: scene.engine.asked)
        assert scene.engine.asked[0].operation.template == "chat"
        scene.engine.asked[0].fail(SaeError("The tokenizer has no chat template."))
        await until(pilot, lambda: "no chat template" in text_on(app))
        await pilot.press("T")
        await until(pilot, lambda: app.explorer.state.cached and not app.workbench.busy)
        assert app.explorer.state.readings is not None
        assert len(scene.engine.asked) == 1, "ask is cached, and came after chat"


# Search.


def test_places_are_gone_through_around_the_end() -> None:
    assert [next_of([2, 5, 9], now, 1) for now in (0, 2, 5, 9)] == [2, 5, 9, 2]
    assert [next_of([2, 5, 9], now, -1) for now in (0, 2, 5, 9)] == [9, 9, 2, 5]


def test_tokens_are_found_where_an_occurrence_begins() -> None:
    tokens = ["<bos>", "The", " dark", " door", " was", " DOOR", "way"]
    assert tokens_found(tokens, "door") == [3, 5]
    assert tokens_found(tokens, "k d") == [2]
    assert tokens_found(tokens, "doorway") == [5]
    assert tokens_found(tokens, "window") == tokens_found(tokens, "") == []
    assert tokens_found(["aaa"], "a") == [0]


def test_features_are_found_by_number_name_or_words() -> None:
    def row(index: int, label: str) -> FeatureRow:
        return FeatureRow("s", "resid", 3, index, 1.0, None, label)

    rows = [row(7, "fear .8: dark door"), row(70, "joy: glad"), row(12, "Dark fear")]
    assert features_found(rows, "7") == [0]
    assert features_found(rows, "l3/70") == [1]
    assert features_found(rows, "fear dark") == [0, 2]
    assert features_found(rows, "anger") == []


async def test_slash_finds_a_token_and_n_goes_on(scene: Scene) -> None:
    scene.put_trace(probes=scene.put_probes())
    async with scene.open() as (app, pilot):
        await ready(app, pilot)
        readings = app.explorer.state.readings
        assert readings is not None
        places = tokens_found(readings.token_texts, "word")
        await pilot.press("1", "home", "slash")
        assert app.explorer.console.value == "find "
        await pilot.press(*"word", "enter")
        assert app.explorer.state.position == places[0] and pane_of(app) == "text"
        await pilot.press("n")
        assert app.explorer.state.position == places[1]
        await pilot.press("N", "N")
        assert app.explorer.state.position == places[-1]
        await pilot.press("slash", *"window", "enter")
        await until(pilot, lambda: "'window' is not found in the text" in text_on(app))
        assert pane_of(app) == "console", "it stays open, to be changed"


async def test_slash_in_features_finds_a_number(scene: Scene) -> None:
    scene.put_trace(probes=scene.put_probes())
    async with scene.open() as (app, pilot):
        await ready(app, pilot)
        wanted = app.explorer.state.features[3]
        await pilot.press("3", "slash", *str(wanted.index), "enter")
        assert app.explorer.state.features[app.explorer.state.feature] == wanted
        assert pane_of(app) == "features"
        await pilot.press("2", "n")
        await until(pilot, lambda: "is not found in the text" in text_on(app))


async def test_n_without_a_search_says_how_to_begin(scene: Scene) -> None:
    scene.put_trace(probes=scene.put_probes())
    async with scene.open() as (app, pilot):
        await ready(app, pilot)
        await pilot.press("n")
        await until(pilot, lambda: "/ begins" in text_on(app))


# Blank maps.


@pytest.mark.parametrize("size", SIZES)
async def test_blank_maps_say_why(scene: Scene, size: tuple[int, int]) -> None:
    def at_readout(trace: Trace) -> Trace:
        columns = trace.readouts
        rows = [
            row
            for row, site in enumerate(columns.site)
            if site == "resid" or columns.position[row] == trace.text.readout
        ]
        kept = {
            name: tuple(getattr(columns, name)[row] for row in rows)
            for name in columns.__struct_fields__
        }
        return msgspec.structs.replace(trace, readouts=type(columns)(**kept))

    scene.put_trace(probes=scene.put_probes(), change=at_readout)
    async with scene.open(size=size) as (app, pilot):
        await ready(app, pilot)
        await pilot.press("2", "S")
        assert app.explorer.state.site == "attn"
        await pilot.pause()
        assert "kept at the readout only" not in text_on(app), "the cursor is on the readout"
        await pilot.press("1", "left", "2")
        await until(pilot, lambda: "attn: kept at the readout only" in text_on(app))
        assert "emotui open --all-sites" in text_on(app)
        await pilot.press("0")
        await until(pilot, lambda: "at every token" in text_on(app))
        assert "attn: kept at the readout only" in text_on(app)
        await pilot.press("S", "S")
        await pilot.pause()
        assert "kept at the readout only" not in text_on(app)


@pytest.mark.parametrize("option", [(), ("--all-sites",)])
def test_open_all_sites_asks_for_all_of_them(
    scene: Scene, option: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[InspectRequest] = []
    monkeypatch.setattr("emotui.app.run_explorer", lambda request, **_: seen.append(request))
    monkeypatch.setattr("emotui.ui.terminal.prepare_terminal", lambda **_: None)
    where = ("--model", str(scene.model), "--sae", "none", "--cache-dir", str(scene.cache))
    try:
        assert _run(["open", TEXT, *where, *option], debug=True) == 0
    finally:
        gc.enable()
    assert [request.all_sites for request in seen] == [bool(option)]
