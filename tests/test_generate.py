"""Writing with edits in force: every step against a full run, counts, readings, lineage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import torch
from support_models import LAYERS, WIDTH, tiny_model
from support_saes import write_residual_saes
from torch import Tensor

from emotui.cache.store import Store
from emotui.core.engine.answer import label_tokens
from emotui.core.engine.capture import Hook, QuietJob, capture
from emotui.core.engine.generate import (
    EditsInForce,
    Watched,
    edits_in_force,
    generation_of,
    prompt_of,
    write,
)
from emotui.core.engine.materials import Materials
from emotui.core.engine.model import LoadedModel
from emotui.core.engine.operations import Session, handle
from emotui.core.engine.probes import Probe
from emotui.core.engine.saes import Sae, load_saes
from emotui.core.engine.speak import generate
from emotui.core.errors import Cancelled, EditError, TextError, UsageError
from emotui.core.protocol import GenerationSpec, Inspected, InspectRequest, ModelSpec
from emotui.core.records import TextRecord, Trace
from emotui.core.text import template_named

FAMILIES = ("llama", "gemma2", "gpt2")
TEXT = "He shouted at me for no reason."
ASK = template_named("ask")
NEW = 24  # with the prompt, past the sliding window of Gemma-2


def read(model: LoadedModel, text: str = TEXT) -> TextRecord:
    return model.reader.read(text, ASK, context_length=model.context_length)


def materials_of(model: LoadedModel, saes: list[Sae], text: TextRecord, store: Store) -> Materials:
    return Materials(
        model,
        store,
        text=text,
        template=ASK,
        saes=saes,
        probes=(),
        other=cast(Any, None),
        seed=0,
        job=QuietJob(),
    )


@pytest.fixture
def store(cache_dir: Path) -> Iterator[Store]:
    with Store.open(cache_dir) as opened:
        yield opened


def removing(sae: Sae, index: int, positions: set[int]) -> Hook:
    """Ablation by hand: f D taken away at some positions of a whole prompt."""

    def function(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        for position in positions & set(range(tensor.shape[1])):
            f = sae.encode(tensor[0, position])[index]
            changed[0, position] -= f * sae.weights.decoder[index]
        return changed

    return Hook(sae.site, sae.layer, function)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_with_the_cache_equals_a_full_run_without_it(
    family: str, tmp_path: Path, store: Store
) -> None:
    model = tiny_model(family)
    saes = list(load_saes(str(write_residual_saes(tmp_path / "s", d_in=WIDTH, layers=4)), model))
    text = read(model)
    prompt = prompt_of(text, ASK)
    plain = capture(model, prompt)
    strongest = [int(sae.encode(plain.at("resid", sae.layer)[-1]).argmax()) for sae in saes]
    lines = (
        f"ablate L1/{strongest[1]} at all",
        f"ablate L2/{strongest[2]} at last",
        f"ablate L0/{strongest[0]} at 3",
        f"ablate L3/{strongest[3]} at readout",
    )
    edits = edits_in_force(lines, materials_of(model, saes, text, store), text, len(prompt))
    watched = Watched(tuple(range(LAYERS)))
    spec = GenerationSpec(NEW)
    before = model.forwards
    tokens, firing = write(
        model, prompt, spec, seed=0, edits=edits, watched=watched, job=QuietJob()
    )
    steps = model.forwards - before - 1
    assert steps >= 3
    of_text = {p for p, token in enumerate(text.tokens) if token.part == "text"}
    later = set(range(len(prompt), len(prompt) + NEW))
    by_hand = [
        removing(saes[1], strongest[1], of_text | later),
        removing(saes[2], strongest[2], {len(prompt) - 1} | later),
        removing(saes[0], strongest[0], {3}),
        removing(saes[3], strongest[3], {len(prompt) - 1}),
    ]
    assert firing.in_prompt == len(of_text) + 3, "every place in the prompt"
    assert firing.at_written == 2 * steps, "and at every token that the model read after it"
    assert firing.places == firing.in_prompt + firing.at_written
    for step in range(steps + 1):
        ids = [*prompt, *tokens[:step]]
        full = capture(model, ids, hooks=by_hand)
        if step < len(tokens):
            assert int(full.logits.argmax()) == tokens[step]
        for layer in range(LAYERS):
            kept = watched.rows[layer]
            if step > 0:
                assert torch.allclose(
                    kept[step - 1], full.at("resid", layer)[-1], rtol=1e-4, atol=1e-4
                )
    unedited = generate(model, prompt, new_tokens=NEW)
    assert generate(model, prompt, new_tokens=NEW, hooks=(), step_hooks=()) == unedited


def test_ranges_words_and_readout_are_the_prompts(tmp_path: Path, store: Store) -> None:
    model = tiny_model("llama")
    saes = list(load_saes(str(write_residual_saes(tmp_path / "s", d_in=WIDTH, layers=4)), model))
    text = read(model)
    materials = materials_of(model, saes, text, store)
    n_prompt = text.last + 1
    lines = ('ablate L1/2 at "reason"', "ablate L1/3 at readout", "ablate L2/1 at last")
    edits = edits_in_force(lines, materials, text, n_prompt)
    assert [group.place for group in edits.step] == [("resid", 2)]
    assert max(edits.prompt[0].positions) == text.last
    # The question after the text is no part of the prompt, so nothing is edited there.
    outside = edits_in_force(
        (f"ablate L1/2 at {text.last + 1}-{text.readout}",), materials, text, n_prompt
    )
    assert outside.prompt == () and outside.step == ()
    with pytest.raises(EditError):
        edits_in_force(("ablate L1/2 at 99",), materials, text, n_prompt)


def fake_probe(kind: str, seed: int) -> Probe:
    generator = torch.Generator().manual_seed(seed)
    places = tuple(("resid", layer) for layer in range(-1, LAYERS))
    scores = [
        SimpleNamespace(
            site="resid",
            layer=layer,
            trust="trusted",
            dev_accuracy=0.9 if layer == 2 else 0.3,
            balanced_accuracy=0.5,
        )
        for _, layer in places
    ]
    card = SimpleNamespace(id=f"probe-{kind}", kind=kind, emotions=("joy", "fear"), scores=scores)
    n = len(places)
    return Probe(
        cast(Any, SimpleNamespace(card=card)),
        weight=torch.randn(n, WIDTH, 2, generator=generator),
        center=torch.randn(n, WIDTH, generator=generator),
        bias=torch.zeros(n, 2),
        neutral_mean=torch.full((n, 2), 0.5),
        neutral_sd=torch.full((n, 2), 2.0),
    )


def request_of(**changes: Any) -> InspectRequest:
    request = InspectRequest(spec=ModelSpec("m"), text=TEXT, cache_dir="")
    return msgspec.structs.replace(request, **changes)


def test_readings_are_those_of_the_tokens_written_and_of_the_text_read_again() -> None:
    model = tiny_model("gemma2")
    text = read(model)
    labels = label_tokens(model.reader, "ekman7", ASK)
    token, readout = fake_probe("token", 1), fake_probe("readout", 2)
    generation = generation_of(
        model,
        request_of(),
        GenerationSpec(12, temperature=1.0, samples=3),
        text=text,
        template=ASK,
        labels=labels,
        probes=(readout, token),
        materials=None,
        job=QuietJob(),
    )
    assert [sample.seed for sample in generation.samples] == [0, 1, 2]
    assert len({sample.tokens for sample in generation.samples}) == 3
    prompt = list(prompt_of(text, ASK))

    def by_hand(probe: Probe, h: Tensor) -> float:
        """z of joy at layer 2, which is the fourth place, over the rows of h."""
        logit = (h - probe.center[3]) @ probe.weight[3, :, 0]
        return float(((logit - 0.5) / 2.0).mean())

    sample = generation.samples[0]
    assert sample.fired == 0 and len(sample.tokens) == 12
    assert sample.text == model.reader.decode(sample.tokens, after=prompt)
    rows = {
        (how, kind): z
        for how, kind, emotion, z in zip(
            sample.readings.how,
            sample.readings.kind,
            sample.readings.emotion,
            sample.readings.z,
            strict=True,
        )
        if emotion == "joy"
    }
    assert set(sample.readings.layer) == {2}
    while_written = capture(model, [*prompt, *sample.tokens]).at("resid", 2)[len(prompt) : -1]
    assert rows["while_written", "token"] == pytest.approx(by_hand(token, while_written), abs=1e-3)
    again = read(model, sample.text)
    run = capture(model, [one.id for one in again.tokens])
    inside = [p for p, one in enumerate(again.tokens) if one.part == "text"]
    h = run.at("resid", 2)
    assert rows["read_again", "token"] == pytest.approx(by_hand(token, h[inside]), abs=1e-3)
    assert rows["read_again", "readout"] == pytest.approx(
        by_hand(readout, h[[again.readout]]), abs=1e-3
    )
    assert sample.answer is not None
    assert sum(sample.answer.labels.values()) == pytest.approx(1, abs=1e-4)


@pytest.fixture(scope="module")
def saes_of_stories(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_residual_saes(tmp_path_factory.mktemp("s"), d_in=64, layers=5))


class Bench:
    def __init__(self, stories: Path, cache: Path, saes: str) -> None:
        self.session = Session()
        self.request = InspectRequest(
            spec=ModelSpec(str(stories)),
            text="Once upon a time, there was",
            cache_dir=str(cache),
            saes=(saes,),
            metric="none",
            generation=GenerationSpec(30),
        )
        self.store = self.session.store(str(cache))
        self.model = self.session.model(self.request.spec, QuietJob(), store=self.store)

    def inspect(self, *edits: str, **changes: Any) -> Inspected:
        request = msgspec.structs.replace(self.request, edits=edits, **changes)
        done = handle(request, QuietJob(), self.session)
        assert isinstance(done, Inspected)
        return done

    def trace(self, *edits: str, **changes: Any) -> Trace:
        return self.store.get_trace(self.inspect(*edits, **changes).trace_id)


@pytest.fixture
def bench(stories: Path, cache_dir: Path, saes_of_stories: str) -> Iterator[Bench]:
    made = Bench(stories, cache_dir, saes_of_stories)
    yield made
    made.session.close_store()


def test_a_trace_carries_the_continuation_before_and_after(bench: Bench, stories: Path) -> None:
    root = bench.trace()
    assert root.generation is not None
    (before,) = root.generation.samples
    story = (stories / "expected.txt").read_text(encoding="utf-8")
    assert story.startswith(root.text.raw + before.text) and before.fired == 0
    edit = "steer L2/5 +1.5 at all"
    trace = bench.trace(edit)
    assert trace.generation is not None and trace.intervention is not None
    (after,) = trace.generation.samples
    assert after.tokens != before.tokens and after.seed == before.seed
    of_text = sum(token.part == "text" for token in trace.text.tokens)
    assert after.fired == of_text + len(after.tokens) - 1
    assert after.fired_in_prompt == of_text
    # The parent is the ordinary trace, which an inspection without writing shares.
    assert trace.parent == bench.inspect(generation=None).trace_id != root.id
    again = bench.inspect(edit)
    assert (again.cached, again.forwards) == (True, 0)
    assert bench.trace(edit, seed=1).id != trace.id


def test_an_edit_that_changes_nothing_writes_the_same(bench: Bench) -> None:
    root = bench.trace(generation=GenerationSpec(20, temperature=1.0, samples=2))
    none = bench.trace(
        "scale L2/5 x1 at all", generation=GenerationSpec(20, temperature=1.0, samples=2)
    )
    assert root.generation is not None and none.generation is not None
    for one, other in zip(root.generation.samples, none.generation.samples, strict=True):
        assert one.tokens == other.tokens and other.fired > 0
        assert one.answer == other.answer


def test_the_text_grows_before_the_eyes_and_can_be_cancelled(bench: Bench) -> None:
    told: list[tuple[str, int, int]] = []

    class Watching(QuietJob):
        def progress(self, phase: str, done: int = 0, total: int = 0, /) -> None:
            if phase.startswith("writing"):
                told.append((phase, done, total))

        def check(self) -> None:
            if len(told) >= 8:
                raise Cancelled("The work was cancelled.")

    before = bench.model.forwards
    text = read_plain(bench)
    with pytest.raises(Cancelled):
        write(
            bench.model,
            prompt_of(text, ASK),
            GenerationSpec(400),
            seed=0,
            edits=EditsInForce(),
            watched=Watched(()),
            job=Watching(),
        )
    assert [(done, total) for _, done, total in told] == [(n, 400) for n in range(1, 9)]
    assert told[2][0] == "writing: a little g"
    assert bench.model.forwards - before == 9, "the ninth was stopped in its first block"


def read_plain(bench: Bench) -> TextRecord:
    return bench.model.reader.read(bench.request.text, ASK, context_length=512)


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        (GenerationSpec(0), UsageError),
        (GenerationSpec(5, temperature=-1.0), UsageError),
        (GenerationSpec(5, samples=3), UsageError),
        (GenerationSpec(5, temperature=1.0, samples=0), UsageError),
        (GenerationSpec(600), TextError),
    ],
)
def test_what_cannot_be_written_is_refused(
    bench: Bench, spec: GenerationSpec, error: type[Exception]
) -> None:
    traces = bench.store.traces()
    with pytest.raises(error):
        bench.inspect(generation=spec)
    assert bench.store.traces() == traces
