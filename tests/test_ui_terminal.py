"""The program on a pseudo-terminal: what a pilot cannot see."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from support_screen import TEXT, Scene
from support_terminal import PseudoTerminal, explorer, painted

from emotui.core.errors import UsageError
from emotui.ui.appearance import theme_at_start
from emotui.ui.terminal import has_few_colours, prepare_environment, prepare_terminal, shielded

COLOURS = re.compile(rb"\x1b\[(?:[0-9;:]*;)?(?:[34][0-7]|9[0-7]|10[0-7]|[34]8[;:])[0-9;:]*m")


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    scene = Scene(tmp_path)
    scene.put_trace(probes=scene.put_probes())
    return scene


def opened(scene: Scene, *arguments: str, **settings: object) -> PseudoTerminal:
    return explorer(
        *(arguments or (TEXT,)), model=str(scene.model), cache=str(scene.cache), **settings
    )


def ready(text: str) -> bool:
    return painted(text) and "cache" in text


def test_it_paints_a_cached_trace_and_gives_the_terminal_back(scene: Scene) -> None:
    with opened(scene) as terminal:
        before = terminal.modes
        terminal.wait_for(ready)
        terminal.send("?")
        terminal.wait_for(lambda text: "Keys: Text" in text)
        terminal.send("\x1b")
        terminal.wait_for(lambda text: "Keys: Text" not in text)
        terminal.send("q")
        assert terminal.wait() == 0
        after = bytes(terminal.output)
        assert b"\x1b[?1049h" in after
        assert after.rindex(b"\x1b[?1049l") > after.rindex(b"\x1b[?1049h")
        assert after.rindex(b"\x1b[?25h") > after.rindex(b"\x1b[?25l")
        assert after.rindex(b"\x1b[?2004l") > after.rindex(b"\x1b[?2004h")
        assert terminal.modes[3] == before[3]  # echo and line editing as before
    logs = list((scene.cache / "logs").iterdir())
    assert [log.name for log in logs] == ["screen.log"]  # no engine was started
    assert stat.S_IMODE(logs[0].stat().st_mode) == 0o600


def test_torch_is_not_imported_for_a_cached_trace(scene: Scene, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from emotui.ui.terminal import prepare_environment\n"
        "prepare_environment()\n"
        "from emotui.app import EmotuiApp\n"
        "from emotui.core.protocol import InspectRequest, ModelSpec\n"
        "from emotui.ui.state import OpenOptions\n"
        "import asyncio\n"
        "async def main():\n"
        f"    request = InspectRequest(spec=ModelSpec(model={str(scene.model)!r}),\n"
        f"        text={TEXT!r}, cache_dir={str(scene.cache)!r})\n"
        "    app = EmotuiApp(OpenOptions(request=request))\n"
        "    async with app.run_test(size=(100, 30)) as pilot:\n"
        "        while app.workbench.busy or app.explorer.state.readings is None:\n"
        "            await pilot.pause(0.01)\n"
        "        await pilot.press('2', '0', '3', 'down', 'i', 'escape')\n"
        "    app.workbench.close()\n"
        "asyncio.run(main())\n"
        "heavy = {'torch', 'transformers', 'sae_lens', 'transformer_lens'} & set(sys.modules)\n"
        "print(sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_a_burst_of_keys_is_text_and_does_not_close(scene: Scene) -> None:
    with opened(scene) as terminal:
        terminal.wait_for(ready)
        terminal.send("quite\rx marks q\r")
        terminal.wait_for(lambda text: "marks q" in text)
        terminal.settle()
        assert "enter run" in terminal.text  # the editor has the keys
        assert not terminal.ended
        terminal.send("\x1b")
        time.sleep(0.2)
        terminal.wait_for(lambda text: "edited, not run" in text)
        terminal.send("q")
        assert terminal.wait() == 0
    assert list(Path.cwd().glob("emotui-*.json")) == []


def test_a_marked_paste_is_text(scene: Scene) -> None:
    with opened(scene) as terminal:
        terminal.wait_for(ready)
        terminal.send("\x1b[200~q\x1b[31mx\rq\x1b[201~")
        terminal.wait_for(lambda text: "enter run" in text)
        terminal.settle()
        assert "q␛[31mx" in terminal.text
        assert not terminal.ended


def test_escape_and_a_letter_at_once(scene: Scene) -> None:
    with opened(scene) as terminal:
        terminal.wait_for(ready)
        terminal.send("i")
        terminal.wait_for(lambda text: "enter run" in text)
        terminal.send("\x1bq")
        assert terminal.wait() == 0


@pytest.mark.parametrize(
    ("keys", "heading"), [("\x1b2", "┏━ 2 Layers"), ("\x1b3", "┏━ 3 Features")]
)
def test_escape_and_a_number_at_once(scene: Scene, keys: str, heading: str) -> None:
    with opened(scene) as terminal:
        terminal.wait_for(ready)
        terminal.send("i")
        terminal.wait_for(lambda text: "enter run" in text)
        terminal.send(keys)
        terminal.wait_for(lambda text: heading in text and "enter run" not in text)
        assert "edited, not run" not in terminal.text
        terminal.send("q")
        assert terminal.wait() == 0


def test_no_mouse_and_few_frames_over_ssh(scene: Scene) -> None:
    with opened(scene, environment={"SSH_CONNECTION": "10.0.0.1 5 10.0.0.2 22"}) as terminal:
        terminal.wait_for(ready)
        terminal.send("q")
        assert terminal.wait() == 0
        assert b"?1003h" not in terminal.output
        assert b"?1000h" not in terminal.output
    with opened(scene) as terminal:
        terminal.wait_for(ready)
        assert b"?1000h" in terminal.output
    over_ssh = {"SSH_CONNECTION": "10.0.0.1 5 10.0.0.2 22"}
    with opened(scene, TEXT, "--mouse", environment=over_ssh) as terminal:
        terminal.wait_for(ready)
        assert b"?1000h" in terminal.output


def test_no_color_sends_no_colour(scene: Scene) -> None:
    with opened(scene, environment={"NO_COLOR": "", "COLORTERM": "truecolor"}) as terminal:
        terminal.wait_for(ready)
        terminal.send("i")
        terminal.wait_for(lambda text: "enter run" in text)
        terminal.settle()
        assert COLOURS.findall(bytes(terminal.output)) == []


@pytest.mark.parametrize("term", ["linux", "xterm", "screen-256color"])
def test_other_terminals_and_a_plain_locale(scene: Scene, term: str) -> None:
    with opened(scene, environment={"TERM": term, "LANG": "C", "LC_ALL": "C"}) as terminal:
        terminal.wait_for(ready)
        terminal.send("q")
        assert terminal.wait() == 0


@pytest.mark.parametrize(("columns", "lines"), [(60, 15), (30, 8)])
def test_other_sizes(scene: Scene, columns: int, lines: int) -> None:
    with opened(scene, columns=columns, lines=lines) as terminal:
        small = columns < 40
        terminal.wait_for(lambda text: "40 x 12" in text if small else ready(text))
        terminal.send("q")
        assert terminal.wait() == 0


HOSTILE = "[bold]a [/nope] \x1b]0;owned\x07 \x9b2J \u202eb 👩‍👩‍👧 مرحبا \x08\x7f"


def test_hostile_text_reaches_the_terminal_harmless(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    probes = scene.put_probes()
    scene.put_trace(HOSTILE, probes=probes)
    with opened(scene, HOSTILE) as terminal:
        terminal.wait_for(ready)
        terminal.send("i")
        terminal.wait_for(lambda text: "enter run" in text)
        terminal.send("\x1b")
        terminal.settle()
        # Textual itself says which pointer it wants.
        output = re.sub(rb"\x1b\]22;[a-z-]*\x07", b"", bytes(terminal.output))
        assert b"owned" in output
        assert b"\x1b]0;owned" not in output
        for bad in (b"\x07", b"\xc2\x9b", "\u202e".encode(), b"\x08", b"\x7f"):
            assert bad not in output
        assert b"[/nope]" in output


def test_a_wrong_theme_and_no_terminal_are_one_message(scene: Scene) -> None:
    with opened(scene, TEXT, "--theme", "[/nope]") as terminal:
        assert terminal.wait() == 2
        assert "There is no theme" in terminal.text
    command = [sys.executable, "-m", "emotui", "--model", str(scene.model), TEXT]
    environment = {**os.environ, "TERM": "xterm", "EMOTUI_CACHE_DIR": str(scene.cache)}
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL,
                          env=environment, timeout=30)  # fmt: skip
    assert done.returncode == 2
    assert "emotui inspect" in done.stderr
    assert done.stdout == ""
    with opened(scene, environment={"TERM": "dumb"}) as terminal:
        assert terminal.wait() == 2
        assert "emotui inspect" in terminal.text
        assert b"\x1b" not in terminal.output


def test_settings_of_the_user_stay() -> None:
    environment = {"TEXTUAL_FPS": "7", "SSH_CONNECTION": "1 2 3 4"}
    prepare_environment(environment)
    assert environment["TEXTUAL_FPS"] == "7"
    assert environment["TEXTUAL_ANIMATIONS"] == "none"
    plain: dict[str, str] = {}
    prepare_environment(plain)
    assert "TEXTUAL_FPS" not in plain


def test_a_dumb_terminal_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with pytest.raises(UsageError) as caught:
        prepare_terminal()
    assert "emotui inspect" in str(caught.value)


LEAK = """
import ctypes, os, subprocess, sys
from pathlib import Path
from emotui.ui.terminal import shielded
with shielded(Path(sys.argv[1])) as screen:
    os.write(1, b"LEAK-one "); os.write(2, b"LEAK-two ")
    subprocess.run([sys.executable, "-c", "import os; os.write(2, b'LEAK-three ')"])
    ctypes.CDLL(None).puts(b"LEAK-four")
    ctypes.CDLL(None).fflush(None)
    sys.__stderr__.write("PAINTED"); sys.__stderr__.flush()
print(" AFTER")
"""


def test_nothing_else_writes_on_the_screen(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "screen.log"
    with PseudoTerminal([sys.executable, "-c", LEAK, str(log)]) as terminal:
        assert terminal.wait() == 0
        assert b"PAINTED AFTER" in terminal.output.replace(b"\r\n", b"\n")
        assert b"LEAK" not in terminal.output
    assert log.read_bytes().count(b"LEAK") == 4
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_the_shield_is_lifted_after_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    with pytest.raises(RuntimeError), shielded(tmp_path / "log"):
        raise RuntimeError
    assert (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__) == before
    os.write(1, b"seen")
    assert "seen" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("environ", "few"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "linux"}, True),
        ({"TERM": "xterm", "COLORTERM": "truecolor"}, False),
        ({"TERM": "tmux-256color"}, False),
        ({"TERM": "xterm-kitty"}, False),
    ],
)
def test_sixteen_colours_are_told_as_rich_tells_them(environ: dict[str, str], few: bool) -> None:
    assert has_few_colours(environ) is few
    console = Console(force_terminal=True, _environ=environ)
    assert (console.color_system == "standard") is few


@pytest.mark.parametrize(
    ("wanted", "coloured", "few", "theme"),
    [
        (None, True, False, "emotui-dark"),
        (None, True, True, "emotui-16"),
        ("nord", True, True, "nord"),
        ("nord", False, False, "emotui-mono"),
    ],
)
def test_the_theme_at_the_start(wanted: str | None, coloured: bool, few: bool, theme: str) -> None:
    assert theme_at_start(wanted, themes=(), coloured=coloured, few_colours=few) == theme
