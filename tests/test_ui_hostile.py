"""Strings from models, files and users on the screen: text, whatever they hold."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from support_screen import Scene, text_on, until

from emotui.core.records import Token, Trace
from emotui.ui import state as states


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


HOSTILE = ("[bold]x", "[/nope]", "[@click=app.exit]go[/]", "\x1b]0;owned\x07", "a\x9bb", "\r\n\t",
           "\u202eabc", "👩‍👩‍👧", "🇫🇷", "❤️", "مرحبا", "\u0301", "")  # fmt: skip


def _hostile(trace: Trace) -> Trace:
    tokens = list(trace.text.tokens)
    for index, string in enumerate(HOSTILE, start=1):
        tokens[index] = msgspec.structs.replace(tokens[index], string=string)
    features = msgspec.structs.replace(
        trace.features,
        label=tuple(HOSTILE[i % len(HOSTILE)] for i in range(len(trace.features.label))),
    )
    answer = trace.answer
    assert answer is not None
    labels = {f"{label}[/x]\x1b": value for label, value in answer.labels.items()}
    return msgspec.structs.replace(
        trace,
        text=msgspec.structs.replace(trace.text, tokens=tuple(tokens)),
        features=features,
        answer=msgspec.structs.replace(answer, labels=labels),
        run=msgspec.structs.replace(trace.run, device="cpu[/nope]\x1b"),
    )


async def test_hostile_strings_are_text_everywhere(scene: Scene) -> None:
    text = "[bold]x [/nope] \x1b]0;owned\x07 👩‍👩‍👧"
    scene.put_trace(text, probes=scene.put_probes(), change=_hostile, tokens=24)
    async with scene.open(text, size=(140, 40)) as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        for key in ("1", "0", "0", "3", "1"):
            await pilot.press(key)
        for position in range(24):
            app.explorer.update(states.at_token(app.explorer.state, position))
            await pilot.pause()
            shown = text_on(app)
            for character in "\x1b\x07\x9b\r\t\u202e\u200d":
                assert character not in shown
        assert "[bold]x" in shown
        assert "[/nope]" in shown
        assert app.is_running


async def test_new_line_tokens_are_seen(scene: Scene) -> None:
    def with_line_end(trace: Trace) -> Trace:
        tokens = list(trace.text.tokens)
        tokens[3] = Token(9, "\n", 3, 4, False, "text")
        return msgspec.structs.replace(
            trace, text=msgspec.structs.replace(trace.text, tokens=tuple(tokens))
        )

    scene.put_trace("a\nb", probes=scene.put_probes(), change=with_line_end)
    async with scene.open("a\nb") as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        assert "␊" in text_on(app)
