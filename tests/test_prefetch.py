"""Texts in batches: what a batch stores is what separate runs store, and spares their passes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from support_models import plain_model, tiny_folder

from emotui.cache.store import Store
from emotui.core.engine.capture import QuietJob
from emotui.core.engine.operations import Session, handle
from emotui.core.errors import Cancelled, UsageError
from emotui.core.private import private_words
from emotui.core.protocol import (
    Inspected,
    InspectRequest,
    ModelSpec,
    Prefetched,
    PrefetchRequest,
)
from emotui.core.records import Trace

WORDS = ("cat", "dog", "hen", "hat", "dad")
"""One token each for both models, so that texts with them are of equal length."""
TEXTS = (
    *(f"The {word} was sad." for word in WORDS),
    *(f"Lily and the {word} ran home because it was late." for word in WORDS),
    "A text of a length of its own, longer than all others here, and on its own.",
)


class Bench:
    """An engine session over a cache of its own."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.like = InspectRequest(
            spec=ModelSpec(model=str(folder)), text="", cache_dir=str(cache), metric="none"
        )
        self.session = Session()

    def prefetch(self, texts: tuple[str, ...] = TEXTS, /, **changes: object) -> Prefetched:
        request = PrefetchRequest(msgspec.structs.replace(self.like, **changes), texts)
        outcome = handle(request, QuietJob(), self.session)
        assert isinstance(outcome, Prefetched)
        return outcome

    def inspect(self, text: str, **changes: object) -> Inspected:
        request = msgspec.structs.replace(self.like, text=text, **changes)
        outcome = handle(request, QuietJob(), self.session)
        assert isinstance(outcome, Inspected)
        return outcome

    def trace(self, text: str, **changes: object) -> Trace:
        return self.store.get_trace(self.inspect(text, **changes).trace_id)

    @property
    def store(self) -> Store:
        return self.session.store(self.like.cache_dir)

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return the tensors of all activations entries, by key."""
        from safetensors.torch import load_file

        return {path.stem: load_file(path) for path in self._files()}

    def _files(self) -> list[Path]:
        return sorted((Path(self.like.cache_dir) / "activations").rglob("*.safetensors"))


@pytest.fixture(params=["stories260K", "gemma2"])
def benches(
    request: pytest.FixtureRequest, stories: Path, tmp_path: Path
) -> Iterator[tuple[Bench, Bench]]:
    """One session that runs texts in batches and one that runs them one by one."""
    folder = stories if request.param == "stories260K" else tiny_folder("gemma2")
    pair = Bench(folder, tmp_path / "batched"), Bench(folder, tmp_path / "single")
    yield pair
    for bench in pair:
        bench.session.close_store()


@pytest.mark.parametrize("all_sites", [False, True])
@pytest.mark.parametrize("metric", ["none", "top", "answer.sadness"])
def test_a_batch_stores_what_single_runs_store(
    benches: tuple[Bench, Bench], metric: str, all_sites: bool
) -> None:
    batched, single = benches
    outcome = batched.prefetch(metric=metric, all_sites=all_sites)
    passes = 1 if metric == "none" else 2
    assert outcome.texts == len(TEXTS)
    assert outcome.forwards < len(TEXTS) * passes / 2, "texts share forwards"
    for text in TEXTS:
        ready = batched.inspect(text, metric=metric, all_sites=all_sites)
        assert (ready.cached, ready.forwards) == (False, 0)
        assert single.inspect(text, metric=metric, all_sites=all_sites).forwards == passes
    ours, theirs = batched.tensors(), single.tensors()
    assert list(ours) == list(theirs)
    assert len(ours) == len(TEXTS) * passes
    for key, tensors in ours.items():
        assert tensors.keys() == theirs[key].keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, theirs[key][name], atol=1e-5, rtol=1e-5)


def test_the_numbers_are_those_of_plain_transformers(stories: Path, cache_dir: Path) -> None:
    bench = Bench(stories, cache_dir)
    bench.prefetch()
    plain = plain_model(stories)
    for text in TEXTS[:2]:
        trace = bench.trace(text)
        ids = torch.tensor([[token.id for token in trace.text.tokens]])
        with torch.no_grad():
            best = plain(ids).logits[0, -1].softmax(-1).topk(10).values
        assert trace.lens is not None
        assert list(trace.lens.probability[-10:]) == pytest.approx(best.tolist(), abs=1e-6)
    bench.session.close_store()


def test_what_stands_there_is_not_run_again(stories: Path, cache_dir: Path) -> None:
    bench = Bench(stories, cache_dir)
    bench.inspect(TEXTS[0])
    assert bench.prefetch().texts == len(TEXTS) - 1
    again = bench.prefetch()
    assert (again.texts, again.forwards) == (0, 0)
    # Only the backward passes are missing for another metric; each counts as one forward.
    assert bench.prefetch(metric="top").forwards == 3
    # The same prompt twice is one prompt, and what kept more serves too.
    assert bench.prefetch(("Once more.", "Once more."), all_sites=True).texts == 1
    assert bench.prefetch(("Once more.",)).forwards == 0
    bench.session.close_store()


def test_texts_that_cannot_be_read_are_left_to_their_own_requests(
    stories: Path, cache_dir: Path
) -> None:
    bench = Bench(stories, cache_dir)
    outcome = bench.prefetch(("", " \n", "Lily was sad. " * 300, "Lily was sad."))
    assert (outcome.texts, outcome.forwards) == (1, 1)
    assert bench.prefetch(("",)).forwards == 0
    assert bench.prefetch(()).forwards == 0
    bench.session.close_store()


def test_labels_told_apart_as_a_whole_leave_the_answer_to_the_request(
    stories: Path, cache_dir: Path
) -> None:
    """Their answer takes a forward of its own, and so the top metric is not known before it."""
    bench = Bench(stories, cache_dir)
    assert bench.prefetch(label_set="goemotions28", metric="top").forwards == 3
    assert bench.inspect(TEXTS[0], label_set="goemotions28", metric="top").forwards == 1
    bench.session.close_store()


@pytest.mark.parametrize(
    "change", [{"metric": "nope"}, {"label_set": "nope"}, {"template": "nope"}]
)
def test_a_request_that_cannot_be_meant_is_refused(
    stories: Path, cache_dir: Path, change: dict[str, str]
) -> None:
    bench = Bench(stories, cache_dir)
    with pytest.raises(UsageError):
        bench.prefetch(**change)
    bench.session.close_store()


def test_a_cancel_keeps_what_is_finished(stories: Path, cache_dir: Path) -> None:
    class CancelledInTheSecondBatch(QuietJob):
        batches = 0

        def progress(self, phase: str, done: int = 0, total: int = 0, /) -> None:
            self.batches += phase.startswith("running the model")

        def check(self) -> None:
            if self.batches == 2:
                raise Cancelled("The work was cancelled.")

    bench = Bench(stories, cache_dir)
    with pytest.raises(Cancelled):
        handle(PrefetchRequest(bench.like, TEXTS), CancelledInTheSecondBatch(), bench.session)
    assert bench.prefetch().texts == len(TEXTS) - len(WORDS)
    bench.session.close_store()


def test_the_texts_are_private() -> None:
    like = InspectRequest(ModelSpec("m"), "", "cache", edits=("patch resid L1 from 'brother'",))
    words = private_words(PrefetchRequest(like, ("my sister", "his secret")))
    assert words is not None and {"sister", "secret", "brother"} <= words
