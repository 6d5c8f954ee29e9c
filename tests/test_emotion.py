"""Emotions of one's own: the direction and its judgement by hand, planted truths, screen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load as tensors_of
from support_command import emotui_here
from support_models import tiny_folder
from support_screen import TEXT, Scene, lines_of, text_on, until

from emotui.cache.demo import DEMO_MODEL
from emotui.cache.prepare import probes_in_force
from emotui.cache.store import Store
from emotui.commands.emotion import elsewhere_of
from emotui.core.corpus import load_situations
from emotui.core.engine.capture import QuietJob, capture
from emotui.core.engine.collect import Place, text_mask
from emotui.core.engine.define import (
    FRAMES,
    _design,
    _fits,
    _left_out,
    _scores,
    define_emotion,
)
from emotui.core.engine.inspect import inspect
from emotui.core.engine.instruments import Instruments
from emotui.core.engine.model import load_model
from emotui.core.errors import ProbeError, UsageError
from emotui.core.protocol import Defined, DefineRequest, InspectRequest, ModelSpec
from emotui.core.text import template_named
from emotui.ui.definition import Definition, definition_in

GRIEF = (
    "My grandmother's chair is still by the window and nobody sits in it.",
    "We folded his shirts into a box and could not close the lid.",
    "She thought it was her brother on the phone, who died in May.",
    "At the grave it rained and nobody opened an umbrella.",
    "I set two plates on the table again and put one back.",
    "The dog waited at the door for weeks after the funeral.",
)


class Bench:
    def __init__(self, root: Path, folder: Path) -> None:
        self.spec = ModelSpec(str(folder))
        self.store = Store.open(root / "cache")
        self.model = load_model(self.spec, QuietJob(), memo=self.store)

    def define(self, name: str = "grief", **options: Any) -> Defined:
        if not {"texts", "word"} & options.keys():
            options["texts"] = GRIEF
        request = DefineRequest(self.spec, str(self.store.root), name, **options)
        return define_emotion(request, self.model, self.store, QuietJob())

    def card(self, probe_id: str) -> Any:
        return next(card for card in self.store.probes() if card.id == probe_id)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("demo"), DEMO_MODEL)


@pytest.fixture(scope="module")
def grief(demo: Bench) -> Defined:
    return demo.define()


def _vectors(bench: Bench, texts: list[str], layer: int, kind: str) -> Any:
    """One forward a text, read without emotui's batches."""
    rows = []
    for text in texts:
        record = bench.model.reader.read(text, template_named("ask"))
        run = capture(bench.model, [token.id for token in record.tokens])
        h = run.at("resid", layer).double().numpy()
        inside = np.array(text_mask(record))
        rows.append(h[-1] if kind == "readout" else h[inside].mean(0))
    return np.stack(rows)


@pytest.mark.parametrize("kind", ["readout", "token"])
def test_direction_and_accuracy_are_those_of_numpy(demo: Bench, grief: Defined, kind: str) -> None:
    probe_id = next(one for one in grief.probe_ids if f"-{kind}-" in one)
    tensors = tensors_of(demo.store.get_probe(probe_id))
    neutral = [item for item in load_situations() if item.emotion == "neutral"]
    positive = _vectors(demo, list(GRIEF), 4, kind)
    zero = _vectors(demo, [item.text for item in neutral], 4, kind)
    spread = zero.var(0, ddof=1)
    spread = spread + 0.01 * spread.mean()

    def fitted(plus: Any, minus: Any) -> tuple[Any, Any]:
        gap = plus - minus
        raw = gap / spread
        return 2 * raw / (raw @ gap), (plus + minus) / 2

    weight, middle = fitted(positive.mean(0), zero.mean(0))
    place = 1 + 4
    assert np.allclose(tensors["weight"][place, :, 0].numpy(), weight, rtol=2e-3, atol=1e-5)
    assert np.allclose(tensors["center"][place].numpy(), middle, atol=1e-4)
    hits = []
    for left in range(len(GRIEF)):
        one, center = fitted(np.delete(positive, left, 0).mean(0), zero.mean(0))
        hits.append((positive[left] - center) @ one > 0)
    topics = sorted({item.topic for item in neutral})
    folds = np.array([topics.index(item.topic) % 5 for item in neutral])
    rejected = np.zeros(len(zero), dtype=bool)
    for fold in range(5):
        one, center = fitted(positive.mean(0), zero[folds != fold].mean(0))
        rejected[folds == fold] = (zero[folds == fold] - center) @ one <= 0
    score = demo.card(probe_id).score_at("resid", 4)
    assert score.dev_accuracy == pytest.approx((np.mean(hits) + rejected.mean()) / 2, abs=0.01)


def test_it_is_a_row_of_traces_and_without_it_there_is_none(tmp_path: Path) -> None:
    bench = Bench(tmp_path, tiny_folder("llama"))

    def trace() -> Any:
        ids = probes_in_force(
            bench.store, bench.model.fingerprint, template="ask", label_set="ekman7"
        )
        request = InspectRequest(bench.spec, TEXT, str(bench.store.root), probes=ids)
        instruments = Instruments(bench.model, bench.store)
        done = inspect(request, bench.model, instruments, bench.store, QuietJob())
        return bench.store.get_trace(done.trace_id)

    assert not trace().readouts.emotion
    done = bench.define()
    found = trace()
    assert set(found.readouts.emotion) == {"grief"}
    assert {probe.label_set for probe in found.probes} == {"defined-grief"}
    assert {probe.kind for probe in found.probes} == {"readout", "token"}
    z = [z for z, at in zip(found.readouts.z, found.readouts.layer, strict=True) if at >= 0]
    assert z and all(value is not None for value in z)
    # Random weights know nothing of grief.
    assert all(trust != "trusted" for _, _, trust in done.best)
    assert not any(GRIEF[0] in str(card) for card in bench.store.probes())


def test_without_texts_of_another_source_nothing_is_trusted(demo: Bench, grief: Defined) -> None:
    assert "never trusted" in grief.judged_on
    scores = [score for i in grief.probe_ids for score in demo.card(i).scores]
    assert {score.trust for score in scores} <= {"lexical", "untrusted"}
    corpus = [s.text for s in load_situations() if s.emotion == "sadness" and not s.named]
    judged = demo.define("sorrow", texts=tuple(corpus[:60]), other=tuple(corpus[60:]))
    assert judged.judged_on.startswith(f"{len(corpus) - 60} texts of another source")
    cards = [demo.card(name) for name in judged.probe_ids]
    lines = elsewhere_of(cards)
    assert len(lines) == 2 and not elsewhere_of([demo.card(name) for name in grief.probe_ids])
    for card, line in zip(cards, lines, strict=True):
        told = {one.layer: one.other_accuracy for one in card.scores if one.site == "resid"}
        best = max(told.values())
        assert f"best {best:.2f} at" in line and "trust goes by these" in line
    # The bag of embeddings tells these as well, and so the verdict is lexical.
    assert all(accuracy > 0.7 and trust == "lexical" for _, accuracy, trust in judged.best)


@pytest.mark.parametrize("elsewhere", [True, False])
def test_what_the_embedding_does_not_hold_is_trusted_where_it_is(elsewhere: bool) -> None:
    """Layer -1 is noise; layer 0 holds the emotion, on the texts of another source too."""
    given, neutral, judging = 12, 60, 20 if elsewhere else 0
    design = _design(given, neutral, judging, [row % 5 for row in range(neutral)])
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, given + neutral + judging, 16, generator=generator)
    inputs[1, :, 3] += 6.0 * design.labels
    places: tuple[Place, ...] = (("resid", -1), ("resid", 0))
    bag = _left_out(inputs[:1], design).predicted[0]
    scores = _scores(
        inputs, _fits(inputs, design), _left_out(inputs, design), bag, design, places, 0
    )
    assert [score.trust for score in scores] == [
        "untrusted",
        "trusted" if elsewhere else "lexical",
    ]
    inputs[1, given + neutral :, 3] -= 6.0  # the other source does not have it
    scores = _scores(
        inputs, _fits(inputs, design), _left_out(inputs, design), bag, design, places, 0
    )
    assert scores[1].trust == ("untrusted" if elsewhere else "lexical")


def test_random_texts_are_untrusted(demo: Bench) -> None:
    rows = [s.text for s in load_situations() if s.emotion == "neutral"][::27][:6]
    done = demo.define("nothing", texts=tuple(rows))
    scores = [score for i in done.probe_ids for score in demo.card(i).scores]
    assert sum(score.trust != "untrusted" for score in scores) <= 0.1 * len(scores)


def test_a_word_says_how_the_tokenizer_reads_it(demo: Bench) -> None:
    whole = demo.define("remorse", word="guilt")
    assert whole.texts == len(FRAMES) and "(one token)" in whole.data
    ids = demo.model.reader.continuation_ids(" sonder")
    assert len(ids) > 1
    split = demo.define("sonder", word="sonder")
    assert f"splits it into {len(ids)}" in split.data
    assert all(trust != "trusted" for _, _, trust in split.best)


def test_a_name_of_the_corpus_is_judged_on_its_situations(demo: Bench) -> None:
    texts = tuple(s.text for s in load_situations() if s.emotion == "guilt" and s.named)
    done = demo.define("guilt", texts=texts[:20])
    assert done.judged_on.startswith("corpus situations of guilt")
    score = demo.card(done.probe_ids[0]).score_at("resid", 4)
    assert score.other_accuracy == score.balanced_accuracy


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"texts": GRIEF[:4]}, "4 different texts are too few"),
        ({"texts": (GRIEF[0],) * 9}, "1 different texts"),
        ({"texts": ("", "  ", *GRIEF[:3])}, "3 different texts"),
        ({"word": " "}, "word is empty"),
        ({"texts": ()}, "from a word or from texts"),
        ({"name": "joy"}, "a label of ekman7 already"),
        ({"name": "../x"}, "cannot be called"),
        ({"name": "\x1b[31m"}, "cannot be called"),
    ],
)
def test_bad_definitions_are_refused(demo: Bench, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        demo.define(**options)


# --- the console's words -------------------------------------------------------------------------


def test_lines_of_the_console(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("one\n\n two \n", encoding="utf-8")
    assert definition_in("emotion joy") is None
    assert definition_in("steer L5/12 +0.2 at all") is None
    assert definition_in(":emotion awe from wonder") == Definition("awe", word="wonder")
    assert definition_in('emotion awe from "a b" "c"') == Definition("awe", texts=("a b", "c"))
    assert definition_in(f"emotion awe from {file}") == Definition("awe", texts=("one", "two"))
    over_the_name = definition_in(f"emotion emotion awe from {file} from")
    assert over_the_name == Definition("awe", texts=("one", "two")), "typed whole where f opens"
    assert definition_in("emotion emotion from word") == Definition("emotion", word="word")
    for line, words in (
        ("emotion awe from", "from"),
        ('emotion awe from "open', "quotation mark"),
        ("emotion awe from ./absent.txt", "no file"),
        (f"emotion awe from {tmp_path}/none", "no file"),
    ):
        with pytest.raises(UsageError, match=words):
            definition_in(line)


# --- the screen -----------------------------------------------------------------------------------


async def test_f_opens_the_console_and_the_answer_is_a_report(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.put_trace(probes=scene.put_probes())
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        await pilot.press("1", "f")
        console = app.explorer.console
        assert console.value.startswith("emotion NAME from ")
        console.value = "emotion awe from wonder"
        await pilot.press("enter")
        await until(
            pilot, lambda: any(isinstance(a.operation, DefineRequest) for a in scene.engine.asked)
        )
        asked = next(a for a in scene.engine.asked if isinstance(a.operation, DefineRequest))
        assert (asked.operation.name, asked.operation.word) == ("awe", "wonder")
        asked.finish(
            Defined(
                name="awe",
                probe_ids=("a", "b"),
                best=((3, 0.91, "lexical"), (-1, 0.8, "untrusted")),
                texts=10,
                data="the word 'wonder' [bold]",
                judged_on="its own texts",
                forwards=3,
                seconds=1.0,
            )
        )
        await until(pilot, lambda: len(app.screen_stack) > 2 or "awe" in "".join(lines_of(app)))
        page = text_on(app)
        assert "0.91 balanced accuracy" in page and "layer 3: lexical" in page
        assert "'wonder' [bold]" in page and "at emb: untrusted" in page


async def test_a_definition_that_is_not_understood_stays_in_the_console(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.put_trace(probes=scene.put_probes())
    async with scene.open() as (app, pilot):
        await until(pilot, lambda: app.explorer.state.readings)
        await pilot.press("1", "f")
        app.explorer.console.value = "emotion awe from ./nowhere.txt"
        await pilot.press("enter")
        await until(pilot, lambda: "no file" in "".join(lines_of(app)))
        assert app.explorer.console.value
        assert not any(isinstance(a.operation, DefineRequest) for a in scene.engine.asked)


# --- the command line -----------------------------------------------------------------------------


def emotui(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "emotui", *arguments, "--cache-dir", str(cache)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_define_list_and_remove_from_the_command_line(tmp_path: Path) -> None:
    file, cache = tmp_path / "grief.txt", tmp_path / "cache"
    file.write_text("\n".join(GRIEF), encoding="utf-8")
    model = ("--model", str(tiny_folder("llama")))
    done = emotui("emotion", "define", "grief", "--from", str(file), *model, "--json", cache=cache)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["texts"] == len(GRIEF)
    assert "grave" not in done.stdout + done.stderr
    listed = json.loads(emotui_here("emotion", "list", "--json", cache_dir=cache).stdout)
    assert [one["name"] for one in listed] == ["grief"]
    trace = emotui_here("inspect", TEXT, *model, "--sae", "none", "--json", cache_dir=cache)
    assert set(json.loads(trace.stdout)["readouts"]["emotion"]) == {"grief"}
    few = emotui_here("emotion", "define", "awe", "--text", "one text", *model, cache_dir=cache)
    assert few.returncode == 2 and "too few" in few.stderr
    both = emotui_here(
        "emotion", "define", "awe", "--text", "a", "--word", "b", *model, cache_dir=cache
    )
    assert both.returncode == 2 and "not from both" in both.stderr
    said = emotui_here("emotion", "list", cache_dir=cache).stdout
    assert said.count("(in force)") == 2
    gone = emotui_here("emotion", "remove", "grief", cache_dir=cache)
    assert gone.returncode == 0 and "2 probes" in gone.stderr
    again = emotui_here("emotion", "remove", "grief", cache_dir=cache)
    assert again.returncode == 2
    with Store.open(cache) as store, pytest.raises(ProbeError):
        store.get_probe(listed[0]["probe_ids"][0])
