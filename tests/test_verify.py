"""An edit on other texts: planted truth, what is no effect, positions, cancelling, bad input."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from scipy import stats
from support_findings import CARRIER, LABELS, SADNESS, word_reader
from support_models import WIDTH, tiny_folder
from support_saes import write_sae
from test_planted import coordinate_saes

from emotui.cache.findings import verification_of
from emotui.cache.store import Store
from emotui.core.corpus import load_situations
from emotui.core.edits import parse_edit
from emotui.core.engine.capture import Hook, QuietJob, capture
from emotui.core.engine.elsewhere import MOST_ACTIVE, check_portable
from emotui.core.engine.exact import ablations
from emotui.core.engine.instruments import Instruments
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.other_texts import other_texts
from emotui.core.engine.repeated import Directions, Judged, repeated, spread
from emotui.core.engine.saes import load_saes
from emotui.core.engine.verify import verify
from emotui.core.errors import Cancelled, EditError, UsageError
from emotui.core.findings import Repeated, Verification
from emotui.core.protocol import InspectRequest, ModelSpec, Verified, VerifyRequest
from emotui.core.records import Effect
from emotui.core.text import template_named

WORD = " and"
TEXT = "The bus was late and nobody was there."
CAUSE = f"ablate L2/{SADNESS} at readout"
NOISE = "ablate L2/20 at readout"
TEXTS = 30


class Bench:
    """A planted model, its coordinate SAEs, a cache."""

    def __init__(self, root: Path) -> None:
        self.folder = word_reader(root, {WORD: 40.0})
        self.saes = coordinate_saes(root / "saes")
        self.model: LoadedModel = load_model(ModelSpec(str(self.folder)), QuietJob())
        self.store = Store.open(root / "cache")
        self.instruments = Instruments(self.model, self.store)

    def request(self, *edits: str, **changes: Any) -> VerifyRequest:
        inspect: dict[str, Any] = {"selected": False, **changes}
        texts, metric = inspect.pop("texts", TEXTS), inspect.pop("metric", "")
        request = InspectRequest(
            spec=ModelSpec(str(self.folder)),
            text=TEXT,
            cache_dir=str(self.store.root),
            saes=(str(self.saes),),
            edits=edits,
            **inspect,
        )
        return VerifyRequest(request, texts=texts, metric=metric)

    def verified(self, *edits: str, job: Any = None, **changes: Any) -> Verified:
        request = self.request(*edits, **changes)
        return verify(request, self.model, self.instruments, self.store, job or QuietJob())

    def ids(self, text: str) -> list[int]:
        return [token.id for token in self.model.reader.read(text, template_named("ask")).tokens]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("verify"))
    yield made
    made.store.close()


def about(found: Verification, metric: str) -> Repeated:
    return next(one for one in found.metrics if one.metric == metric)


def text_of(situation: str) -> str:
    return next(one.text for one in load_situations() if one.id == situation)


def test_the_planted_cause_is_verified_and_active_where_its_word_stands(bench: Bench) -> None:
    found = bench.verified(CAUSE).verification
    assert found.metric == "answer.sadness" and found.complete
    (word,) = bench.model.reader.continuation_ids(WORD)
    there = tuple(word in bench.ids(text_of(name)) for name in found.others.id)
    assert 10 <= sum(there) < TEXTS
    assert found.others.active == found.others.acted == there
    effect = about(found, "answer.sadness")
    assert effect.verified is True and "; verified" in effect.verdict
    assert effect.acted.texts == effect.acted.same_sign == sum(there)
    assert effect.here < 0 and effect.acted.high is not None and effect.acted.high < 0
    assert effect.controls[0].name == "any_way" and effect.controls[0].rank == 1
    # Directions drawn with the covariance lie along what was planted: said, and no veto.
    assert effect.controls[1].rank is not None and effect.controls[1].rank > 1
    assert "directions shaped like the data do as much" in effect.verdict
    assert effect.verdict.startswith(f"median {effect.acted.median:+.3g} [")


def test_each_change_is_that_of_a_plain_run_with_a_hook(bench: Bench) -> None:
    found = bench.verified(CAUSE).verification
    tokens = bench.model.reader
    labels = [tokens.continuation_ids(f" {label}")[0] for label in LABELS]

    def ablated(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        changed[:, -1, SADNESS] -= changed[:, -1, SADNESS].clamp(min=0)
        return changed

    for row in (0, 7, 13):
        ids = bench.ids(text_of(found.others.id[row]))
        before, after = (
            capture(bench.model, ids, hooks=hooks).logits[labels].softmax(dim=-1)[SADNESS]
            for hooks in ((), (Hook("resid", 2, ablated),))
        )
        assert found.others.deltas["answer.sadness"][row] == pytest.approx(
            float(after - before), abs=1e-5
        )


def test_a_feature_that_causes_nothing_is_not_verified(bench: Bench) -> None:
    found = bench.verified(NOISE, metric="answer.sadness").verification
    assert about(found, "answer.sadness").verified is not True


def test_an_ablation_counts_as_nothing_where_the_feature_is_not_active(bench: Bench) -> None:
    found = bench.verified(CAUSE).verification
    deltas = np.array(found.others.deltas["answer.sadness"])
    acted = np.array(found.others.acted)
    assert (deltas[~acted] == 0).all() and (deltas[acted] != 0).all()
    effect = about(found, "answer.sadness")
    assert effect.every.texts == TEXTS and effect.acted.texts == acted.sum()
    assert effect.every.median == pytest.approx(float(np.median(deltas)))
    assert effect.acted.median == pytest.approx(float(np.median(deltas[acted])))
    assert any(f"active on {acted.sum()} of {TEXTS} texts" in note for note in found.notes)


def test_a_change_that_keeps_its_sign_but_not_its_size_says_so() -> None:
    """Whatever is verified by sign alone, its size on other texts stands beside that here."""
    generator = np.random.default_rng(0)
    deltas = -0.015 + 0.002 * generator.standard_normal(50)
    controls = (
        Directions("any_way", np.zeros(39), np.zeros((50, 39))),
        Directions("shaped_like_data", np.zeros(19), np.zeros((50, 19))),
    )

    def said(here: float) -> str:
        effect = Effect("answer.fear", 0.5, 0.5, 0.5 + here, here, (), 0.0, "")
        judged = Judged(effect, deltas, controls, np.ones(50, dtype=bool), True, "kl")
        return repeated(judged, seed=0).verdict

    assert said(-0.39).endswith("; verified, though it is 26 times smaller there than here")
    assert said(-0.016).endswith("; verified")


def test_the_interval_is_that_of_scipys_bootstrap() -> None:
    drawn = np.random.default_rng(3).gamma(2.0, size=40)
    found = spread(drawn, 1.0, seed=0)
    peer = stats.bootstrap(
        (drawn,), np.median, method="percentile", n_resamples=9999, rng=np.random.default_rng(1)
    ).confidence_interval
    assert found.median == pytest.approx(float(np.median(drawn)))
    assert found.low == pytest.approx(peer.low, abs=0.15)
    assert found.high == pytest.approx(peer.high, abs=0.15)
    assert spread(drawn[:0], 1.0, seed=0).median is None


def test_texts_are_held_out_drawn_by_seed_one_of_a_pair_and_half_of_the_emotion() -> None:
    texts = other_texts(50, but="", seed=0, emotion="sadness")
    assert len({one.pair for one in texts}) == len(texts) == 50
    assert {one.split for one in texts} == {"dev", "test"}
    assert sum(one.emotion == "sadness" for one in texts) >= 24
    assert len({one.emotion for one in texts}) == 13
    assert other_texts(20, but="", seed=0, emotion="sadness") == texts[:20]
    assert other_texts(50, but="", seed=1, emotion="sadness") != texts
    own = texts[0]
    assert own.text not in {one.text for one in other_texts(50, but=own.text, seed=0)}
    assert 200 < len(other_texts(10_000, but="", seed=0)) < 10_000


def test_a_token_of_the_text_becomes_the_one_the_feature_is_most_active_on(bench: Bench) -> None:
    text = bench.model.reader.read(TEXT, template_named("ask"))
    (word,) = bench.model.reader.continuation_ids(WORD)
    here = [token.id for token in text.tokens].index(word)
    found = bench.verified(f"ablate L0/{SADNESS} at {here}").verification
    assert found.positions == MOST_ACTIVE
    for name, where, active in zip(
        found.others.id, found.others.positions, found.others.active, strict=True
    ):
        ids = bench.ids(text_of(name))
        assert active == (word in ids)
        assert where == "" if not active else ids[int(where)] == word
    assert about(found, "answer.sadness").acted.same_sign >= 10


@pytest.mark.parametrize(
    "line",
    [
        "ablate L2/4 at 2-4",
        'ablate L2/4 at "bus"',
        "knock attn L1 zero at 3",
        "ablate L2/4 L2/5 at 3",
    ],
)
def test_positions_that_mean_nothing_elsewhere_are_refused(bench: Bench, line: str) -> None:
    with pytest.raises(EditError, match="cannot be repeated on other texts"):
        bench.verified(line)


@pytest.mark.parametrize("line", ["knock attn L1 zero", "knock head L1.0 mean", CAUSE])
def test_edits_at_the_same_words_carry_over_as_they_are(bench: Bench, line: str) -> None:
    text = bench.model.reader.read(TEXT, template_named("ask"))
    assert "same positions" in check_portable((parse_edit(line),), text)
    found = bench.verified(line, texts=12).verification
    readouts = [str(len(bench.ids(text_of(name))) - 1) for name in found.others.id]
    assert list(found.others.positions) == readouts


def test_earlier_edits_are_in_force_on_the_other_texts_too(bench: Bench) -> None:
    """With the carrier knocked out first, the planted feature is active nowhere."""
    first = f"knock attn L{CARRIER} zero"
    found = bench.verified(first, CAUSE, texts=12, metric="answer.sadness").verification
    assert not any(found.others.acted)
    effect = about(found, "answer.sadness")
    assert effect.acted.median is None and effect.verified is None
    assert effect.controls[0].rank is None
    assert "the earlier ones in force" in " ".join(found.notes)


class Cancelling(QuietJob):
    """A job that is cancelled once some texts are done."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.done = 0
        self.seen: list[tuple[int, int]] = []

    def progress(self, phase: str, done: int = 0, total: int = 0, /) -> None:
        if phase == "on other texts":
            self.done = done
            self.seen.append((done, total))

    def check(self) -> None:
        if self.done >= self.after:
            raise Cancelled("The work was cancelled.")


def test_what_was_done_is_kept_where_it_is_cancelled_and_gone_on_from(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = Cancelling(11)
    with pytest.raises(Cancelled):
        bench.verified(CAUSE, job=job)
    assert job.seen[:3] == [(0, TEXTS), (1, TEXTS), (2, TEXTS)]
    trace_id = verify(
        bench.request(CAUSE, texts=1), bench.model, bench.instruments, bench.store, QuietJob()
    ).trace_id
    with pytest.raises(Cancelled):
        bench.verified(CAUSE, job=Cancelling(11))
    partial = verification_of(bench.store, trace_id)
    assert partial is not None and not partial.complete and len(partial.others.id) == 11
    job = Cancelling(10_000)
    whole = bench.verified(CAUSE, job=job)
    assert job.seen[0] == (11, TEXTS)
    again = bench.verified(CAUSE)
    assert again.cached and again.forwards == 0
    assert again.verification == whole.verification
    bench.store.close()
    fresh = Bench(tmp_path / "fresh")
    other = fresh.verified(CAUSE).verification
    assert other.metrics == whole.verification.metrics
    fresh.store.close()


def test_a_picked_feature_is_held_against_directions_picked_the_same_way(bench: Bench) -> None:
    plain = bench.verified(CAUSE).verification
    picked = bench.verified(CAUSE, selected=True).verification
    assert plain.picked_from == 1 and picked.picked_from > 20
    metric = "answer.sadness"
    largest = [max(about(found, metric).controls[0].medians) for found in (plain, picked)]
    assert largest[1] > largest[0]
    assert about(picked, metric).verified is True
    assert about(picked, "answer.joy").verified is None
    assert "picked by answer.sadness" in about(picked, "answer.joy").verdict


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_where_no_feature_is_special_the_best_of_them_is_not_verified(
    family: str, tmp_path: Path
) -> None:
    """Random SAEs on a random model: the feature that moves an answer most on this text."""
    folder = tiny_folder(family)
    model = load_model(ModelSpec(str(folder)), QuietJob())
    labels = [model.reader.continuation_ids(f" {label}")[0] for label in LABELS]
    ids = [token.id for token in model.reader.read(TEXT, template_named("ask")).tokens]
    run = capture(model, ids)
    verified = []
    with Store.open(tmp_path / "cache") as store:
        for seed in range(20):
            saes = write_sae(
                tmp_path / str(seed),
                d_in=WIDTH,
                width=64,
                hook="blocks.2.hook_resid_post",
                seed=seed,
                k=None,
            )
            (sae,) = load_saes(str(saes), model)
            active = sae.encode(run.at("resid", 2)[-1]).nonzero().flatten().tolist()
            rows = ablations(model, run, [(sae, index) for index in active], position=len(ids) - 1)
            moved = rows.logits[:, labels].softmax(dim=-1) - run.logits[labels].softmax(dim=-1)
            best, label = divmod(int(moved.abs().argmax()), len(LABELS))
            request = InspectRequest(
                spec=ModelSpec(str(folder)),
                text=TEXT,
                cache_dir=str(store.root),
                saes=(str(saes),),
                edits=(f"ablate L2/{active[best]} at readout",),
                selected=True,
            )
            metric = f"answer.{LABELS[label]}"
            asked = VerifyRequest(request, texts=20, metric=metric)
            done = verify(asked, model, Instruments(model, store), store, QuietJob())
            assert done.verification.picked_from == len(active)
            verified.append(about(done.verification, metric).verified)
    # By chance it beats all 39 one time in 40, and it must keep its sign besides.
    assert verified.count(True) <= 1
    assert verified.count(False) >= 12


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"texts": 0}, "0 texts cannot be meant"),
        ({"metric": "answer.envy"}, "'answer.envy'"),
    ],
)
def test_what_cannot_be_is_refused(bench: Bench, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        bench.verified(CAUSE, **changes)


def test_without_an_edit_there_is_nothing_to_verify(bench: Bench) -> None:
    with pytest.raises(UsageError, match="nothing to verify"):
        bench.verified()


def test_a_verification_survives_the_cache(bench: Bench) -> None:
    done = bench.verified(CAUSE)
    kept = verification_of(bench.store, done.trace_id)
    assert kept == done.verification
    assert msgspec.json.decode(msgspec.json.encode(kept), type=Verification) == kept
