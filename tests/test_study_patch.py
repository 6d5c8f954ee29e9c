"""Patching: what a hand-built model must show, and the numbers of ordinary PyTorch hooks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support_hooks import arriving, changed_run, putting
from support_planted import (
    LABELS,
    WORDS,
    deciding_tokens,
    ids_of,
    planted_model,
    planted_texts,
    run_planted,
    texts_of,
)
from support_studies import files_of, result_of, run_here

from emotui.core.errors import UsageError
from emotui.core.studies.common.chunks import Chunks
from emotui.core.studies.common.running import Running
from emotui.core.studies.patch import (
    PatchCurve,
    PatchResult,
    measure,
    report,
    shares,
)
from emotui.core.studies.patch_pairs import Pair, draw_pairs
from emotui.core.studies.variants import windows_of

SETTINGS = {"pairs": "24", "span": "1,3"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("patch")
    run_planted(found, "patch", settings=SETTINGS)
    return found


@pytest.fixture(scope="module")
def result(folder: Path) -> PatchResult:
    return result_of(folder, PatchResult)


def curve(result: PatchResult, site: str, span: int, **wanted: str) -> PatchCurve:
    given = {"task": "emotion", "source": "other", **wanted}
    return next(
        c
        for c in result.curves
        if (c.site, c.span, c.task, c.source) == (site, span, given["task"], given["source"])
    )


def test_it_transfers_at_and_after_the_layer_that_writes_and_nowhere_else(
    result: PatchResult,
) -> None:
    assert curve(result, "resid", 1).transfer == (0, 1, 1, 1)
    assert curve(result, "attn", 1).transfer == (0, 1, 0, 0)
    assert curve(result, "mlp", 1).transfer == (0, 0, 1, 0)
    assert curve(result, "mlp", 1).kept == (1, 1, 0, 1)
    # A window of three holds the writing layer, also where it is cut at an end of the model.
    assert curve(result, "attn", 3).transfer == (1, 1, 1, 0)
    assert curve(result, "attn", 3).layers == (2, 3, 3, 2)
    assert curve(result, "resid", 1).recovery == pytest.approx((0, 1, 1, 1), abs=1e-5)


def test_a_source_of_the_same_emotion_and_a_random_vector_carry_nothing_over(
    result: PatchResult,
) -> None:
    for site in ("resid", "attn", "mlp"):
        same = curve(result, site, 1, source="same")
        assert same.transfer == (0, 0, 0, 0) and same.kept == (1, 1, 1, 1)
        assert max(curve(result, site, 1, source="random").transfer) < 0.5


def test_pairs_are_the_same_everywhere_and_spread_over_the_emotions(result: PatchResult) -> None:
    assert result.pairs == 24 and sum(map(sum, result.drawn)) == 24
    known = [LABELS.index(label) for label in WORDS]
    counts = [result.drawn[a][b] for a in known for b in known if a != b]
    assert counts == [2] * 12
    assert result.usable == {"anger": 12, "fear": 12, "joy": 12, "sadness": 12}


def test_of_the_residual_one_span_is_patched_because_the_others_are_it_one_layer_later(
    result: PatchResult,
) -> None:
    assert {c.span for c in result.curves if c.site == "resid"} == {1}
    assert {c.span for c in result.curves if c.site == "attn"} == {1, 3}
    assert sum(one.startswith("Residual") for one in report(result).sentences) == 1


def test_texts_repeat_as_little_as_the_turns_of_the_answers_allow(result: PatchResult) -> None:
    # 24 pairs of 4 emotions with 12 texts each have 48 places: every text once.
    assert (result.distinct, result.most_used) == (48, 1)
    assert result.distinct_by_answer == {"anger": 12, "fear": 12, "joy": 12, "sadness": 12}
    assert "48 different texts" in " ".join(report(result).sentences)
    # 40, 10 and 2 texts, 30 pairs: each answer has 20 places, 10 as source and 10 as target.
    answers = torch.tensor([0] * 40 + [1] * 10 + [2] * 2)
    pairs = draw_pairs(answers, range(52), 30, torch.Generator().manual_seed(0))
    times = Counter(row for pair in pairs for row in (pair.source, pair.target))
    assert len({(pair.source, pair.target) for pair in pairs}) == 30
    assert {times[row] for row in range(40)} == {0, 1}
    assert {times[row] for row in range(40, 50)} == {2}
    assert [times[row] for row in (50, 51)] == [10, 10]
    assert all(answers[pair.same] == answers[pair.target] for pair in pairs)
    assert all(pair.same != pair.target for pair in pairs)


def test_intervals_know_that_texts_repeat() -> None:
    """Twenty pairs that all have one text in common, on which all depends, are two texts."""
    scores = torch.zeros(20, 1, 1, 2)
    scores[:10, ..., 0] = 1
    scores[10:, ..., 1] = 1
    source, target = torch.tensor([[4.0, 0]]).repeat(20, 1), torch.tensor([[0, 4.0]]).repeat(20, 1)
    pairs = [Pair(n // 10, 2 + n, 0) for n in range(20)]
    kept: Any = SimpleNamespace(
        joined={"scores": scores, "source": source, "target": target}.__getitem__
    )
    windows = windows_of(1, (1,), ("attn",))
    (found,) = measure(
        kept, windows, ("other",), pairs, torch.Generator().manual_seed(0), task="emotion"
    )
    assert found.transfer == (0.5,) and (found.low, found.high) == ((0.0,), (1.0,))


def test_the_first_word_is_carried_by_attention_alone(result: PatchResult) -> None:
    assert result.first_words is not None and result.first_words.used
    assert result.first_words.accuracy == 1
    assert curve(result, "attn", 1, task="first word").transfer == (0, 1, 0, 0)
    assert curve(result, "mlp", 1, task="first word").transfer == (0, 0, 0, 0)


def test_one_pair_is_patched_as_ordinary_hooks_do(folder: Path, result: PatchResult) -> None:
    model, kept = planted_model(), Chunks(folder / "run", "even-pairs", 6)
    found = Chunks(folder / "run", "texts", 1)
    answers = found.joined("scores").argmax(dim=1)
    seeded: Any = SimpleNamespace(run=SimpleNamespace(seed=0))
    generator = Running.generator(seeded, "pairs")
    pair = draw_pairs(answers, range(len(answers)), 24, generator)[0]
    texts = texts_of(folder)
    ids = [ids_of(texts[row]) for row in (pair.source, pair.target)]
    windows = [w for w in windows_of(4, (1, 3)) if w.site != "resid" or w.span == 1]
    deciding = deciding_tokens()
    for number, window in enumerate(windows):
        vectors = {place: arriving(model, ids[0], *place)[-1] for place in window.places}
        plain = changed_run(
            model,
            ids[1],
            {place: putting(vector) for place, vector in vectors.items()},
        )
        assert torch.allclose(kept.joined("scores")[0, 0, number], plain[deciding], atol=1e-4)


def test_shares_on_numbers_that_are_known() -> None:
    source = torch.tensor([[4.0, 0, 0], [4.0, 0, 0]])
    target = torch.tensor([[0, 2.0, 0], [0, 2.0, 0]])
    scores = torch.tensor([[[3.0, 2, 0], [0, 2, 0]], [[0, 0, 1.0], [1, 2, 0]]])
    moved, kept, recovery = shares(scores, source, target)
    assert moved.tolist() == [[1, 0], [0, 0]]
    assert kept.tolist() == [[0, 1], [0, 1]]
    # m is -2 before, 4 at the source; patched 1, -2, 0, -1.
    assert recovery.flatten().tolist() == pytest.approx([0.5, 0, 1 / 3, 1 / 6])


def test_the_same_run_has_the_same_bytes_and_its_words_give_the_controls(
    folder: Path, result: PatchResult, tmp_path: Path
) -> None:
    run_planted(tmp_path, "patch", settings=SETTINGS)
    assert files_of(tmp_path / "run") == files_of(folder / "run")
    said = " ".join(report(result).sentences)
    assert "attn, span 1: most transfer around layer 1, 1.00" in said
    assert "a source of the same emotion 0.00" in said


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"span": "2"}, "cannot span 2 layers"),
        ({"sites": "resid,heads"}, "no site called 'heads'"),
        ({"pairs": "0"}, "pairs cannot be '0'"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    settings: dict[str, str], what: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=what):
        data = planted_texts(tmp_path / "texts.csv")
        run_here(planted_model(), tmp_path, "patch", data, settings=settings)


def test_texts_the_model_answers_wrongly_are_paired_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text(
        planted_texts(tmp_path / "right.csv")
        .read_text()
        .replace(",joy,", ",surprise,")
        .replace(",anger,", ",disgust,")
        .replace(",fear,", ",neutral,")
    )
    with pytest.raises(UsageError, match="No texts could be paired") as refused:
        run_here(planted_model(), tmp_path, "patch", path, settings={"control": "no"})
    assert "sadness 12" in refused.value.why and "correct=no" in refused.value.todo
    document = run_here(
        planted_model(),
        tmp_path / "b",
        "patch",
        path,
        settings={"control": "no", "correct": "no", "pairs": "4", "span": "1"},
    )
    assert document.result["pairs"] == 4 and document.result["first_words"] is None
