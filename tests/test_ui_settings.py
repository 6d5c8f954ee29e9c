"""The user's own keys and themes: what a file changes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from support_screen import Scene, lines_of, text_on, until

from emotui.core.errors import UsageError
from emotui.themes import DARK
from emotui.themes.user import user_themes
from emotui.ui.actions import ACTIONS, action_for
from emotui.ui.keymap import load_keymap, remapped


def keymap(folder: Path, text: str) -> Path:
    path = folder / "keymap.toml"
    path.write_text(text)
    return path


def test_without_a_file_the_keys_are_the_projects_own(tmp_path: Path) -> None:
    assert load_keymap(tmp_path / "keymap.toml") == ACTIONS


def test_a_file_gives_actions_other_keys(tmp_path: Path) -> None:
    path = keymap(
        tmp_path, '[keys]\n"edit.undo" = "f5"\n"app.help" = ["?", "f1"]\n"look.view" = "="'
    )
    table = load_keymap(path)
    for key, name in [("f5", "edit.undo"), ("f1", "app.help"), ("question_mark", "app.help"),
                      ("equals_sign", "look.view")]:  # fmt: skip
        found = action_for("layers", key, actions=table)
        assert found is not None
        assert found.id == name
    assert action_for("layers", "u", actions=table) is None


def test_two_keys_may_change_places() -> None:
    table = remapped({"edit.undo": ("x",), "trace.export": ("u",)})
    found = [action_for("text", key, actions=table) for key in "xu"]
    assert [one and one.id for one in found] == ["edit.undo", "trace.export"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[keys]\n"edit.undo" = "x"', ("edit.undo", "trace.export", "x in")),
        ('[keys]\n"edit.undoo" = "b"', ("no action called edit.undoo", "edit.undo")),
        ('[keys]\n"edit.undo" = 3', ("edit.undo are not understood", '"b"')),
        ('[keys]\n"edit.undo" = []', ("edit.undo are not understood",)),
        ('[keys]\n"edit.undo" = "shift+enter"', ("shift+enter does not reach emotui in tmux",)),
        ('[key]\n"edit.undo" = "b"', ("not understood", "[keys]")),
        ("[keys", ("could not be read", "keymap.toml")),
    ],
)
def test_a_wrong_keymap_is_refused_in_words(
    tmp_path: Path, text: str, said: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as raised:
        load_keymap(keymap(tmp_path, text))
    whole = f"{raised.value.what} {raised.value.why} {raised.value.todo}"
    assert "keymap" in whole
    for part in said:
        assert part in whole


async def test_the_users_keys_act_and_stand_in_footer_and_help(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.put_trace(probes=scene.put_probes())
    table = remapped({"look.emotion": ("f2",), "app.help": ("f1",), "look.view": ("e",)})
    async with scene.open(actions=table) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        before, view = app.explorer.state.emotion, app.explorer.state.view
        await pilot.press("f2")
        assert app.explorer.state.emotion != before
        now = app.explorer.state.emotion
        await pilot.press("e")
        assert (app.explorer.state.emotion, app.explorer.state.view) == (now, "tokens")
        assert view == "emotions"
        assert "f2 emotion" in lines_of(app)[-1]
        await pilot.press("question_mark")
        assert app.screen is app.explorer
        await pilot.press("f1")
        assert app.screen is not app.explorer
        shown = text_on(app)
        while "Next emotion." not in shown:
            await pilot.press("pagedown")
            assert text_on(app) != shown, "it is nowhere in the help"
            shown = text_on(app)
        (line,) = (line for line in lines_of(app) if "Next emotion." in line)
        assert "f2 " in line


def test_a_theme_file_changes_what_it_names(tmp_path: Path) -> None:
    assert user_themes(tmp_path / "none") == []
    ramp = ", ".join(f'"#0000{n}0"' for n in range(9))
    (tmp_path / "mine.toml").write_text(
        f'base = "emotui-light"\nprimary = "#ff0000"\nramp = [{ramp}]'
    )
    (theme,) = user_themes(tmp_path)
    assert theme.name == "mine"
    assert theme.primary == "#ff0000"
    assert theme.dark is False
    assert theme.variables["ramp-less-4"] == "#000000"
    assert theme.variables["ramp-zero"] == "#000040"
    assert theme.variables["ramp-more-4"] == "#000080"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('primry = "#ff0000"', "primry"),
        ('primary = "nocolour"', "nocolour"),
        ('ramp = ["#000000"]', "ramp holds 1 colours; it takes 9"),
        ('base = "dracula"', "base is one of emotui-dark"),
        ('panel = "#00000080"', "panel is not opaque"),
        ("primary =", "Invalid"),
    ],
)
def test_a_wrong_theme_names_file_and_field(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UsageError) as raised:
        user_themes(tmp_path)
    assert "mine.toml" in raised.value.what
    assert said in raised.value.why


async def test_a_key_goes_through_the_themes(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.put_trace(probes=scene.put_probes())
    async with scene.open() as (app, pilot):
        assert app.theme == DARK
        seen = []
        for _ in range(5):
            await pilot.press("ctrl+t")
            seen.append(app.theme)
        assert seen == ["emotui-light", "emotui-contrast", "emotui-16", "emotui-mono", DARK]
        assert "Theme" in text_on(app)
