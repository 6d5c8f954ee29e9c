"""g: two sides that grow, what is said of them, cancel, export; and once with a real engine."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from support_screen import TEXT, FakeAsked, Scene, edits_of, lines_of, text_on, until
from support_traces import LABELS, made_up_trace
from textual.pilot import Pilot

from emotui.app import EmotuiApp
from emotui.cache.keys import request_key, trace_id
from emotui.cache.prepare import prepare
from emotui.cache.store import Store
from emotui.core.client import EngineClient
from emotui.core.errors import Cancelled, TextError
from emotui.core.protocol import GenerationSpec, Inspected, InspectRequest, ModelSpec, Progress
from emotui.core.records import Answer, Generation, Trace, Written, WrittenReadings
from emotui.ui.screens.generate import GenerateScreen
from emotui.ui.state import OpenOptions
from emotui.ui.writing import Writing, doubts_of, finished, more, parse_spec, reading_lines, remarks

EDIT = "ablate L3/1 at all"


def written(text: str, joy: float, *, seed: int = 0, fired: int = 0) -> Written:
    rest = (1 - joy) / (len(LABELS) - 1)
    answer = Answer(
        {label: joy if label == "joy" else rest for label in LABELS}, "ekman7", "first_token", 1
    )
    readings = WrittenReadings(
        how=("read_again",) * 7 + ("while_written",) * 7,
        probe=("probe-readout",) * 7 + ("probe-token",) * 7,
        kind=("readout",) * 7 + ("token",) * 7,
        layer=(3,) * 7 + (2,) * 7,
        emotion=LABELS * 2,
        value=(0.0,) * 14,
        z=tuple(4 * joy if label == "joy" else -1.0 for label in LABELS) * 2,
    )
    tokens = tuple(range(len(text.split())))
    return Written(text, tokens, seed, fired, answer, readings, min(fired, 8))


def tell(asked: FakeAsked, **fields: Any) -> None:
    progress = Progress(asked.number, **{"phase": "writing", **fields})
    for callback in asked._progress:
        callback(progress)


def finish(scene: Scene, asked: FakeAsked, *samples: Written) -> Trace:
    """Answer as an engine does: the trace with the continuation into the cache, then its id."""
    request = asked.operation
    assert isinstance(request, InspectRequest) and request.generation is not None
    with Store.open(scene.cache) as store:
        fingerprint = prepare(scene.request(), store).fingerprint
        assert fingerprint is not None
        key = request_key(request, fingerprint)
        trace = made_up_trace(trace_id=trace_id(key), raw=request.text, model=str(scene.model))
        trace = msgspec.structs.replace(
            trace,
            run=msgspec.structs.replace(trace.run, fingerprint=fingerprint),
            edits=request.edits,
            generation=Generation(
                request.generation.new_tokens, request.generation.temperature, samples
            ),
        )
        store.put_trace(trace, key)
    asked.finish(Inspected(trace_id=trace.id, cached=False, forwards=1, seconds=0.5))
    return trace


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.chdir(tmp_path)
    scene = Scene(tmp_path)
    probes = scene.put_probes()
    scene.put_trace(probes=probes)
    scene.put_trace(
        probes=probes,
        edits=(EDIT,),
        change=lambda trace: msgspec.structs.replace(trace, edits=(EDIT,)),
    )
    return scene


def words(app: EmotuiApp) -> str:
    return " ".join(text_on(app).replace("│", " ").split())


async def edited(app: EmotuiApp, pilot: Pilot[int]) -> None:
    await until(pilot, lambda: app.explorer.state.features)
    app.explorer.workbench.read(TEXT, edits=(EDIT,))
    await until(pilot, lambda: edits_of(app) == (EDIT,))


async def joy(app: EmotuiApp, pilot: Pilot[int]) -> None:
    while app.explorer.state.emotion != "joy":
        await pilot.press("e")


@pytest.mark.parametrize("size", [(80, 24), (160, 45)])
async def test_two_sides_grow_and_are_compared(scene: Scene, size: tuple[int, int]) -> None:
    async with scene.open(size=size) as (app, pilot):
        await edited(app, pilot)
        await joy(app, pilot)
        await pilot.press("g")
        await until(pilot, lambda: scene.engine.asked)
        first = scene.engine.asked[0]
        assert first.operation.edits == () and first.operation.generation == GenerationSpec(40)
        tell(first, done=3, total=40, text=" a little girl")
        await until(pilot, lambda: "a little girl▌" in words(app))
        assert "writing · 3 of 40" in words(app) and "esc cancels" in words(app)
        tell(first, done=5, total=40, text=" a little girl named Lily")
        await until(pilot, lambda: "a little girl named Lily▌" in words(app))
        finish(scene, first, written(" a little girl named Lily.", 0.2))
        await until(pilot, lambda: len(scene.engine.asked) == 2)
        second = scene.engine.asked[1]
        assert second.operation.edits == (EDIT,) and second.operation.selected
        assert second.operation.seed == first.operation.seed, "the same seed"
        tell(second, done=2, total=40, text=" a happy")
        await until(pilot, lambda: "a happy▌" in words(app))
        finish(scene, second, written(" a happy boy.", 0.7, fired=20))
        await until(pilot, lambda: "0.20 → 0.70" in text_on(app))
        shown = words(app)
        assert "a little girl named Lily." in shown and "a happy boy." in shown
        assert "acted 8 in prompt, 12 after" in shown and EDIT in shown
        assert "+0.8 → +2.8" in shown and "esc closes" in shown
        table = [line for line in lines_of(app) if "→" in line and "joy" in line]
        assert table, "the chosen emotion is a row"
        sides = [
            next(i for i, line in enumerate(lines_of(app)) if s in line) for s in ("Lily.", "boy.")
        ]
        assert (sides[0] == sides[1]) == (size[0] >= 100), "side by side, or one over the other"
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is app.explorer)
        # Asking again asks no engine.
        await pilot.press("g")
        await until(pilot, lambda: "0.20 → 0.70" in text_on(app))
        assert len(scene.engine.asked) == 2


async def test_without_edits_there_is_one_side_and_it_says_so(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press("g")
        await until(pilot, lambda: scene.engine.asked)
        finish(scene, scene.engine.asked[0], written(" a girl.", 0.2))
        await until(pilot, lambda: "a girl." in text_on(app))
        assert "Nothing is edited" in text_on(app) and "edited ·" not in text_on(app)
        assert len(scene.engine.asked) == 1


async def test_cancel_keeps_what_is_finished(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press("g")
        await until(pilot, lambda: scene.engine.asked)
        finish(scene, scene.engine.asked[0], written(" one.", 0.2))
        await until(pilot, lambda: "one." in text_on(app))
        await pilot.press("n")
        await until(pilot, lambda: len(scene.engine.asked) == 2)
        asked = scene.engine.asked[1]
        assert asked.operation.generation == GenerationSpec(40, 0.8, 8)
        tell(asked, phase="written", done=1, total=8, written=written(" first text.", 0.2))
        tell(asked, done=4, total=40, text=" half of the sec")
        await until(pilot, lambda: "half of the sec▌" in text_on(app))
        await pilot.press("escape")
        await until(pilot, lambda: "Cancelled" in text_on(app))
        assert asked.cancelled
        assert "first text." in text_on(app), "finished ones stay"
        assert isinstance(app.screen, GenerateScreen)
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is app.explorer)


async def test_a_paste_closes_the_screen_and_it_opens_again(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press("g")
        await until(pilot, lambda: scene.engine.asked)
        await app.paste_outside("another text")
        await until(pilot, lambda: app.screen is app.explorer)
        tell(scene.engine.asked[0], done=3, total=40, text=" too late")
        await pilot.press("escape", "g")
        await until(pilot, lambda: isinstance(app.screen, GenerateScreen))
        await until(pilot, lambda: len(scene.engine.asked) == 2)
        finish(scene, scene.engine.asked[1], written(" a girl.", 0.2))
        await until(pilot, lambda: "a girl." in text_on(app))


async def test_what_went_wrong_is_said_on_the_screen(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press("g")
        await until(pilot, lambda: scene.engine.asked)
        scene.engine.asked[0].fail(TextError("It is too long.", todo="Ask for at most 3."))
        await until(pilot, lambda: "Ask for at most 3." in text_on(app))
        assert isinstance(app.screen, GenerateScreen)
        await pilot.press("x")
        await until(pilot, lambda: "nothing finished to export" in text_on(app))


async def test_export_is_the_document_of_the_command_line(scene: Scene, tmp_path: Path) -> None:
    async with scene.open() as (app, pilot):
        await edited(app, pilot)
        await pilot.press("g")
        await until(pilot, lambda: scene.engine.asked)
        finish(scene, scene.engine.asked[0], written(" one.", 0.2))
        await until(pilot, lambda: len(scene.engine.asked) == 2)
        after = finish(scene, scene.engine.asked[1], written(" two.", 0.7, fired=9))
        await until(pilot, lambda: "two." in text_on(app))
        await pilot.press("x")
        path = tmp_path / f"emotui-generation-{after.id}.json"
        await until(pilot, path.exists)
        await until(pilot, lambda: "Wrote" in text_on(app))
        document = json.loads(path.read_bytes())
        assert document["schema"] == "emotui-generation" and document["edits"] == [EDIT]
        assert document["after"]["samples"][0]["text"] == " two."


async def test_export_while_writing_is_done_at_the_end(scene: Scene, tmp_path: Path) -> None:
    async with scene.open() as (app, pilot):
        await edited(app, pilot)
        await pilot.press("g")
        await until(pilot, lambda: scene.engine.asked)
        await pilot.press("x")
        await until(pilot, lambda: "exported as soon as it is finished" in words(app))
        finish(scene, scene.engine.asked[0], written(" one.", 0.2))
        await until(pilot, lambda: len(scene.engine.asked) == 2)
        assert not list(tmp_path.glob("emotui-generation-*")), "one side of two is no result"
        after = finish(scene, scene.engine.asked[1], written(" two.", 0.7, fired=9))
        path = tmp_path / f"emotui-generation-{after.id}.json"
        await until(pilot, path.exists)
        await until(pilot, lambda: "Wrote" in text_on(app))
        assert json.loads(path.read_bytes())["after"]["samples"][0]["text"] == " two."


async def test_export_that_was_waiting_falls_with_a_cancel(scene: Scene, tmp_path: Path) -> None:
    async with scene.open() as (app, pilot):
        await edited(app, pilot)
        await pilot.press("g")
        await until(pilot, lambda: scene.engine.asked)
        before = finish(scene, scene.engine.asked[0], written(" one.", 0.2))
        await until(pilot, lambda: len(scene.engine.asked) == 2)
        await pilot.press("x", "escape")
        await until(pilot, lambda: "Nothing was exported; x exports" in words(app))
        assert not list(tmp_path.glob("emotui-generation-*"))
        await pilot.press("x")
        path = tmp_path / f"emotui-generation-{before.id}.json"
        await until(pilot, path.exists)
        assert json.loads(path.read_bytes())["after"] is None


async def test_hostile_text_is_painted_as_text(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press("g")
        await until(pilot, lambda: scene.engine.asked)
        tell(scene.engine.asked[0], done=3, total=40, text=" [red]no[/red] \x1b[31mred\u202e end")
        await until(pilot, lambda: "[red]no[/red]" in text_on(app))
        assert "\x1b" not in text_on(app) and "\u202e" not in text_on(app)


def compared(writing: Writing, before: tuple[Written, ...], after: tuple[Written, ...]) -> Writing:
    """Both sides written."""
    spec = writing.spec
    for edited, samples in ((False, before), (True, after)):
        generation = Generation(spec.new_tokens, spec.temperature, samples)
        writing = finished(writing, generation, edited=edited)
    assert not writing.running
    return writing


def test_remarks_say_where_there_is_nothing_to_see() -> None:
    writing = Writing(TEXT, (EDIT,), "joy", GenerationSpec(4))

    def both(before: Written, after: Written) -> list[str]:
        return remarks(compared(writing, (before,), (after,)))

    one, other = written(" one two.", 0.2), written(" other words here.", 0.3, fired=9)
    assert both(one, other) == []
    assert "acted nowhere" in both(one, written(" one two.", 0.2))[0]
    assert "changed no token" in both(one, written(" one two.", 0.2, fired=9))[0]
    assert reading_lines(writing) == []


def test_a_probe_that_is_not_trusted_where_it_is_read_says_so() -> None:
    trace = made_up_trace()
    columns = trace.readouts
    trust = tuple("lexical" if layer == 3 else "trusted" for layer in columns.layer)
    trace = msgspec.structs.replace(trace, readouts=msgspec.structs.replace(columns, trust=trust))
    doubts = doubts_of(trace)
    assert doubts == {("readout", 3): "l", ("token", 3): "l"}
    now = Writing(TEXT, (), "joy", GenerationSpec(4), doubts)
    generation = Generation(4, 0.0, (written(" one.", 0.2),))
    now = finished(now, generation, edited=False)
    lines = reading_lines(now)
    assert "readout z L3l" in lines[0] and "writing z L2" in lines[0]
    assert "lexical" in lines[-1]
    trusting = finished(Writing(TEXT, (), "joy", GenerationSpec(4)), generation, edited=False)
    assert "lexical" not in "".join(reading_lines(trusting))


def test_intervals_are_beside_several_samples() -> None:
    samples = tuple(written(f" text {n}.", 0.1 + n / 100, seed=n) for n in range(8))
    edited = tuple(written(f" text {n} x.", 0.5 + n / 50, seed=n, fired=9) for n in range(8))
    writing = Writing(TEXT, (EDIT,), "joy", GenerationSpec(4, 0.8, 8))
    writing = compared(writing, samples, edited)
    lines = reading_lines(writing)
    assert lines[1].startswith("joy") and re.search(r"0\.1[34] → 0\.57", lines[1])
    assert "95 % over 8 pairs: answer.joy +0." in lines[-1]
    assert max(map(len, lines[:8])) <= 76, "the table fits 80 columns"


@pytest.mark.parametrize(
    ("words_typed", "spec"),
    [
        ("60 x8 t0.5", GenerationSpec(60, 0.5, 8)),
        ("x4", GenerationSpec(40, 0.8, 4)),
        ("12", GenerationSpec(12)),
        ("t1.5", GenerationSpec(40, 1.5)),
        ("sixty", None),
        ("0", None),
        ("x0", None),
        ("tnan", None),
        ("t-1", None),
    ],
)
def test_words_of_the_console(words_typed: str, spec: GenerationSpec | None) -> None:
    assert parse_spec(words_typed) == spec


def test_more_samples_go_on_from_those_there_are() -> None:
    assert more(GenerationSpec(40)) == GenerationSpec(40, 0.8, 8)
    assert more(GenerationSpec(40, 0.8, 8)) == GenerationSpec(40, 0.8, 16)


async def test_the_console_says_how_much(scene: Scene) -> None:
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.features)
        await pilot.press("colon")
        app.explorer.console.value = "generate lots"
        await pilot.press("enter")
        await until(pilot, lambda: "was not understood" in text_on(app))
        assert scene.engine.asked == [] and app.explorer.pane == "console"
        app.explorer.console.value = "generate 12 x3"
        await pilot.press("enter")
        await until(pilot, lambda: scene.engine.asked)
        assert scene.engine.asked[0].operation.generation == GenerationSpec(12, 0.8, 3)
        assert isinstance(app.screen, GenerateScreen)


# A real engine


def plain_continuation(stories: Path, text: str, count: int) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(stories))
    model = AutoModelForCausalLM.from_pretrained(str(stories), dtype=torch.float32)
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        out = model.generate(ids, do_sample=False, max_new_tokens=count)
    return str(tokenizer.decode(out[0], skip_special_tokens=True))


def test_what_streams_is_what_is_kept_and_what_transformers_writes(
    stories: Path, cache_dir: Path
) -> None:
    text = "Once upon a time, there was"
    told: list[Progress] = []
    with EngineClient(cache_dir) as client:
        request = InspectRequest(
            spec=ModelSpec(str(stories)),
            text=text,
            cache_dir=str(cache_dir),
            metric="none",
            generation=GenerationSpec(120),
        )
        pending = client.submit(request)
        pending.on_progress(told.append)
        done = pending.result(timeout=120)
        assert isinstance(done, Inspected)
        with Store.open(cache_dir) as store:
            generation = store.get_trace(done.trace_id).generation
        assert generation is not None
        (sample,) = generation.samples
        growing = [progress.text for progress in told if progress.text]
        assert len(growing) >= 2 and all(sample.text.startswith(part) for part in growing)
        assert growing == sorted(growing, key=len)
        assert [progress.written for progress in told if progress.written] == [sample]
        assert plain_continuation(stories, text, 120) == text + sample.text
        # Many samples, stopped after some: those are kept, and taken from the cache.
        many = msgspec.structs.replace(request, generation=GenerationSpec(60, 0.8, 500))
        told.clear()
        pending = client.submit(many)
        pending.on_progress(told.append)
        deadline = time.monotonic() + 60
        while sum(progress.written is not None for progress in told) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        started = time.monotonic()
        pending.cancel()
        with pytest.raises(Cancelled):
            pending.result(timeout=10)
        assert time.monotonic() - started < 1.0
        kept = [progress.written for progress in told if progress.written]
        few = msgspec.structs.replace(request, generation=GenerationSpec(60, 0.8, 3))
        again: list[Progress] = []
        pending = client.submit(few)
        pending.on_progress(again.append)
        done = pending.result(timeout=60)
        assert isinstance(done, Inspected) and done.forwards == 0, "nothing is written twice"
        assert [one.written for one in again if one.written] == kept[:3]


async def test_the_screen_writes_what_transformers_writes(stories: Path, cache_dir: Path) -> None:
    text = "Once upon a time, there was"
    request = InspectRequest(spec=ModelSpec(str(stories)), text=text, cache_dir=str(cache_dir))
    app = EmotuiApp(OpenOptions(request=request), engine=EngineClient(cache_dir))
    app.workbench._fit_missing = False
    try:
        async with app.run_test(size=(160, 45)) as pilot:
            for _ in range(12):
                if app.explorer.state.readings is not None and not app.workbench.busy:
                    break
                await until(pilot, lambda: True)
                await pilot.pause(1)
            assert app.explorer.state.readings is not None
            app.explorer.handlers.edit.put("knock mlp L2 zero at all")
            for _ in range(20):
                if app.explorer.state.readings.trace.edits and not app.workbench.busy:
                    break
                await pilot.pause(0.5)
            await pilot.press("g")
            for _ in range(40):
                if isinstance(app.screen, GenerateScreen) and not app.screen.writing.running:
                    break
                await pilot.pause(0.25)
            screen = app.screen
            assert isinstance(screen, GenerateScreen)
            before, after = screen.writing.before.finished[0], screen.writing.after.finished[0]
            assert plain_continuation(stories, text, 40) == text + before.text
            assert after.text != before.text and after.fired > 40
            assert " ".join(after.text.split()[:4]) in words(app)
    finally:
        app.workbench.close()


def test_an_emotion_of_ones_own_says_nothing_of_the_other_probes() -> None:
    trace = made_up_trace()
    own = msgspec.structs.replace(
        trace.probes[0], id="own", label_set="defined-nostalgia", emotions=("nostalgia",)
    )
    kind, columns = own.kind, trace.readouts
    more_rows = {
        name: (*getattr(columns, name), value)
        for name, value in {
            "probe": "own",
            "site": "resid",
            "layer": 3,
            "position": 0,
            "emotion": "nostalgia",
            "value": 0.1,
            "z": None,
            "trust": "lexical",
            "mark": "",
        }.items()
    }
    trust = (*("trusted" for _ in columns.trust), "lexical")
    columns = msgspec.structs.replace(columns, **more_rows | {"trust": trust})
    doubts = doubts_of(
        msgspec.structs.replace(trace, probes=(*trace.probes, own), readouts=columns)
    )
    assert doubts == {(f"{kind} nostalgia", 3): "l"}
    now = Writing(TEXT, (), "joy", GenerationSpec(4), doubts)
    now = finished(now, Generation(4, 0.0, (written(" one.", 0.2),)), edited=False)
    assert "readout z L3 " in f"{reading_lines(now)[0]} ", "no letter of another probe's"
