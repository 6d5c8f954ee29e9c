"""Knockouts: what a hand-built model must lose, and the numbers of ordinary PyTorch hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from support_hooks import arriving, changed_run, putting
from support_planted import (
    WORDS,
    deciding_tokens,
    ids_of,
    planted_model,
    planted_texts,
    run_planted,
    texts_of,
)
from support_studies import files_of, result_of, run_here

from emotui.core.engine.answer import LabelTokens, label_tokens
from emotui.core.engine.capture import QuietJob
from emotui.core.errors import Cancelled, UsageError
from emotui.core.records import AnswerRule
from emotui.core.studies.common.chunks import Chunks
from emotui.core.studies.knockout import KnockoutCurve, KnockoutResult, margins
from emotui.core.studies.variants import Change, run_variants, windows_of
from emotui.core.text import template_named

SETTINGS = {"span": "1", "sites": "resid,attn,mlp"}


def _run(folder: Path, **fields: Any) -> None:
    run_planted(folder, "knockout", count=24, settings=SETTINGS, **fields)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("knockout")
    _run(found)
    return found


@pytest.fixture(scope="module")
def result(folder: Path) -> KnockoutResult:
    return result_of(folder, KnockoutResult)


def curve(result: KnockoutResult, kind: str, site: str, task: str = "emotion") -> KnockoutCurve:
    return next(c for c in result.curves if (c.task, c.kind, c.site) == (task, kind, site))


def test_only_what_writes_the_answer_is_needed(result: KnockoutResult) -> None:
    assert result.accuracy == 1 and result.labels == dict.fromkeys(sorted(WORDS), 6)
    zero = curve(result, "zero", "mlp")
    assert zero.agreement == (1, 1, 0, 1)
    assert zero.accuracy_lost == (0, 0, 1, 0)
    assert zero.kl[2] > 1 > 1e-6 > max(zero.kl[0], zero.kl[1], zero.kl[3])
    assert zero.margin[2] < -1 and zero.margin[0] == pytest.approx(0, abs=1e-5)
    assert curve(result, "zero", "attn").agreement == (1, 0, 1, 1)
    # The mean holds a little of every emotion, so that the same answer stands after every text.
    assert curve(result, "mean", "attn").accuracy[1] == pytest.approx(0.25)
    assert curve(result, "mean", "attn").accuracy_lost[1] == pytest.approx(0.75)
    other = curve(result, "resample", "mlp")
    assert (other.agreement[0], other.agreement[1], other.agreement[3]) == (1, 1, 1)
    assert other.agreement[2] < 0.6


def test_random_directions_have_the_norm_and_show_their_spread(result: KnockoutResult) -> None:
    random = curve(result, "random", "mlp")
    assert random.draws == 5 and curve(result, "zero", "mlp").draws == 1
    # What adds nothing has no norm, so a random direction of that norm is nothing.
    assert (random.agreement[0], random.agreement[1], random.agreement[3]) == (1, 1, 1)
    assert random.lowest[2] <= random.agreement[2] <= random.highest[2] < 0.8


def test_the_first_word_needs_attention_and_no_mlp(result: KnockoutResult) -> None:
    assert result.first_words is not None and result.first_words.used
    assert curve(result, "zero", "attn", "first word").agreement[1] < 0.5
    assert curve(result, "zero", "mlp", "first word").agreement == (1, 1, 1, 1)
    assert curve(result, "zero", "mlp", "first word").texts == result.first_words.texts


def test_saying_the_commonest_word_to_everything_is_not_doing_the_task(tmp_path: Path) -> None:
    """Texts begin with a word the model cannot tell: it answers the same to all of them."""
    path = tmp_path / "texts.csv"
    text = planted_texts(tmp_path / "right.csv", 40).read_text()
    lines = text.replace("\nthere ", "\nnine ").splitlines(keepends=True)
    # Of ten texts nine begin with a word it names, one with another that it never does.
    marked = [line.replace("nine ", "of ") if n % 10 == 0 else line for n, line in enumerate(lines)]
    path.write_text("".join(marked).replace("\nwas ", "\nnine "))
    settings = {"span": "1", "sites": "attn", "kinds": "zero"}
    document = run_here(planted_model(), tmp_path, "knockout", path, settings=settings)
    found = msgspec.convert(document.result, KnockoutResult).first_words
    assert found is not None and found.commonest is not None and found.accuracy is not None
    assert found.words == 2 and found.commonest > 0.8
    assert found.accuracy == pytest.approx(0.5) and not found.used


def test_one_text_is_knocked_out_as_ordinary_hooks_do(folder: Path) -> None:
    model, kept = planted_model(), Chunks(folder / "run", "knockouts", 3)
    prompts, deciding = [ids_of(text) for text in texts_of(folder)], deciding_tokens()
    at = 3
    clean = changed_run(model, prompts[at], {})
    answer = int(clean[deciding].argmax())
    windows = windows_of(4, (1,))
    for number, window in enumerate(windows):
        site, layer = window.places[0]
        mean = torch.stack([arriving(model, ids, site, layer)[-1] for ids in prompts]).mean(0)
        for kind, value in enumerate((torch.zeros_like(mean), mean)):
            plain = changed_run(model, prompts[at], {(site, layer): putting(value)})
            row = kind * len(windows) + number
            stored = float(kept.joined("margin")[at, row])
            expected = margins(plain[None, deciding], answer) - margins(
                clean[None, deciding], answer
            )
            assert stored == pytest.approx(float(expected), abs=1e-3)
            kl = torch.nn.functional.kl_div(
                plain.log_softmax(0), clean.log_softmax(0), log_target=True, reduction="sum"
            )
            assert float(kept.joined("kl")[at, row]) == pytest.approx(float(kl), abs=1e-3)


@pytest.mark.parametrize("rule", ["after_shared_prefix", "whole_label"])
def test_labels_of_several_tokens_are_read_under_the_same_changes(rule: AnswerRule) -> None:
    """The change stays at the readout while the prompt grows; held against ordinary hooks."""
    model, template = planted_model(), template_named("ask")
    ids = [token.id for token in model.reader.read("nine spider would 001", template).tokens]
    first = label_tokens(model.reader, "ekman7", template)
    sequences = tuple((70, one) for one in first.deciding)
    prefix = (70,) if rule == "after_shared_prefix" else ()
    tokens = LabelTokens("made", first.labels, sequences, prefix, rule)
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    outcome = run_variants(
        model, ids, tokens, [[Change(("mlp", 1), "add", vector)], []], reading=[2, 2]
    )

    def added(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        changed[0, len(ids) - 1] += vector
        return changed

    for row, changes in enumerate(({("mlp", 1): added}, {})):
        after = changed_run(model, [*ids, 70], changes)[list(first.deciding)]
        scores = outcome.scores[row]
        assert torch.allclose(scores - scores[0], after - after[0], atol=1e-4)
    assert torch.allclose(outcome.scores[1], outcome.clean, atol=1e-6)
    assert float(outcome.kl[1]) == 0
    assert torch.allclose(
        outcome.resid[1], arriving(model, ids, "resid", 2)[-1], atol=1e-4
    ) and not torch.allclose(outcome.resid[0], outcome.resid[1], atol=1e-2)


class _Stops(QuietJob):
    def progress(self, phase: str, done: int = 0, total: int = 0, /) -> None:
        if phase == "knockouts" and done == 16:
            raise Cancelled("The work was cancelled.")


def test_interrupted_and_resumed_it_has_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        _run(tmp_path, job=_Stops())
    _run(tmp_path)
    assert files_of(tmp_path / "run") == files_of(folder / "run")


def test_a_kind_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="kinds cannot be 'noise'") as refused:
        run_planted(tmp_path, "knockout", count=8, settings={"kinds": "noise"})
    assert "resample" in refused.value.todo
