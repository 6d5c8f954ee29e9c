"""Promotion: what a hand-built model must show, and the numbers of ordinary PyTorch hooks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support_hooks import adding, changed_run
from support_planted import WORDS, deciding_tokens, planted_model, run_planted, text_scored
from support_studies import files_of, result_of

from emotui.core.errors import UsageError
from emotui.core.studies.common.chunks import Chunks
from emotui.core.studies.label_mix import written_under
from emotui.core.studies.promote_results import Kind, PromoteCurve, PromoteResult
from emotui.core.studies.promote_score import Plan, Promotion, measure, promotion_score
from emotui.core.studies.variants import windows_of

SETTINGS = {"strengths": "0.5,4", "draws": "4", "generations": "2"}
EMOTIONS = ("anger", "fear", "joy", "sadness")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("promote")
    run_planted(found, "promote", settings=SETTINGS)
    return found


@pytest.fixture(scope="module")
def result(folder: Path) -> PromoteResult:
    return result_of(folder, PromoteResult)


def curve(result: PromoteResult, along: str, emotion: str, strength: float = 4) -> PromoteCurve:
    return next(
        c for c in result.curves if (c.along, c.emotion, c.strength) == (along, emotion, strength)
    )


def test_the_planted_direction_promotes_from_the_layer_it_is_at_and_random_ones_do_not(
    result: PromoteResult,
) -> None:
    for emotion in EMOTIONS:
        means = curve(result, "means", emotion)
        assert means.before == 0.25 and means.score == (0, 1, 1, 1) == means.low
        assert means.after == (0.25, 1, 1, 1)
        assert min(means.margin[1:]) > 5 and means.margin[0] == pytest.approx(0, abs=1e-5)
        # Another emotion does not rise on average: all texts lose theirs.
        assert max(means.leak) < 0.01
    random = [curve(result, "isotropic", emotion) for emotion in EMOTIONS]
    for layer in (1, 2, 3):
        assert sum(c.score[layer] for c in random) / 4 < 0.3
    assert all(c.low[n] <= c.score[n] <= c.high[n] for c in random for n in range(4))


def test_where_the_readout_knows_nothing_there_is_no_direction(result: PromoteResult) -> None:
    assert result.directions.without == (0,)
    assert result.directions.held_accuracy == (0.25, 1, 1, 1)
    assert result.fitted_on + result.chosen_on + sum(result.labels.values()) == result.texts == 48
    assert result.labels == dict.fromkeys(EMOTIONS, 6)


def test_half_a_unit_does_too_little(result: PromoteResult) -> None:
    assert max(max(curve(result, "means", emotion, 0.5).score) for emotion in EMOTIONS) < 0.5
    margins = [curve(result, "means", emotion, 0.5).margin[2] for emotion in EMOTIONS]
    assert min(margins) > 0


def test_one_text_is_promoted_as_ordinary_hooks_do(folder: Path, result: PromoteResult) -> None:
    model = planted_model()
    fitted, kept = Chunks(folder / "run", "directions", 4), Chunks(folder / "run", "promotions", 6)
    # Which text was the first of the held half follows from its clean scores.
    ids, deciding = text_scored(folder, kept.joined("clean")[0]), deciding_tokens()
    for layer in (1, 3):
        vector = 4 * result.norms[layer] * fitted.joined("means")[layer, EMOTIONS.index("fear")]
        plain = changed_run(model, ids, {("resid", layer): adding(vector)})[deciding]
        # Directions by strengths by layers: fear is the second direction, 4 the second strength.
        row = (EMOTIONS.index("fear") * 2 + 1) * 4 + layer
        assert torch.allclose(kept.joined("scores")[0, row], plain, atol=1e-3)


def test_what_is_written_is_what_ordinary_hooks_write() -> None:
    model = planted_model()
    prompt = model.reader.prompt_ids("there told would 003")
    vector = 30 * torch.randn(model.d_model, generator=torch.Generator().manual_seed(3))
    written = written_under(model, prompt, {1: vector, 3: -vector}, new_tokens=6)

    def added(sign: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def change(tensor: torch.Tensor) -> torch.Tensor:
            changed = tensor.clone()
            changed[0, len(prompt) - 1 :] += sign * vector
            return changed

        return change

    expected: list[int] = []
    for _ in range(6):
        logits = changed_run(
            model, [*prompt, *expected], {("resid", 1): added(1), ("resid", 3): added(-1)}
        )
        expected.append(int(logits.argmax()))
    assert list(written) == expected
    assert expected != list(written_under(model, prompt, {}, new_tokens=6))


def test_texts_are_continued_under_every_condition(result: PromoteResult) -> None:
    conditions = [(mix.condition, mix.strength) for mix in result.generations]
    assert conditions[0] == ("none", 0) and ("fear, means", 4) in conditions
    assert len(conditions) == 1 + 2 * (len(EMOTIONS) + 2)
    assert all(sum(mix.answers.values()) + mix.empty == 2 for mix in result.generations)
    assert result.generations_layer == 1, "the first of the layers that are best on dev"


def test_the_score_is_that_of_the_paper() -> None:
    before = torch.tensor([0.2, 0.2, 0.5, 0.0, 1.0, 1.0]).double()
    after = torch.tensor([0.6, 0.1, 0.5, 0.0, 1.0, 0.0]).double()
    assert promotion_score(before, after).tolist() == pytest.approx([0.5, -0.5, 0, 0, 0, -1])


def test_the_measure_on_numbers_that_are_known() -> None:
    """Two texts, two labels of three are emotions; one direction each, and one random one."""
    clean = torch.tensor([[2.0, 0, 0], [0, 2.0, 0]])
    rows: tuple[tuple[Kind, int], ...] = (("means", 0), ("means", 1), ("isotropic", 0))
    scores = torch.stack([clean, clean, clean], dim=1)
    scores[:, 0, 0] += 4  # promotes the first
    scores[:, 2, 2] += 9  # random: whatever it was, now the third
    plan = Plan(rows, (1.0,), windows_of(1, (1,), ("resid",)))
    found = measure(
        Promotion(clean, scores), plan, ("a", "b"), [0, 1], torch.Generator().manual_seed(0)
    )
    by_name = {(c.along, c.emotion): c for c in found}
    first = by_name["means", "a"]
    assert (first.before, first.after, first.score) == (0.5, (1.0,), (1.0,))
    assert first.margin == pytest.approx((4.0,)) and first.leak[0] < 0
    assert by_name["means", "b"].score == (0,) == by_name["means", "b"].margin
    control = by_name["isotropic", "a"]
    third = (scores[:, 2].softmax(dim=1) - clean.softmax(dim=1))[:, 2].mean()
    assert control.score == (-1,) and control.leak[0] == pytest.approx(float(third))


def test_the_same_run_has_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    run_planted(tmp_path, "promote", settings=SETTINGS)
    assert files_of(tmp_path / "run") == files_of(folder / "run")


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"settings": {"strengths": "0,0.1"}}, "strengths cannot hold 0"),
        ({"settings": {"span": "1,3"}}, "span cannot be '1,3'"),
        ({"settings": {"along": "rows"}}, "along cannot be 'rows'"),
        ({"settings": {"draws": "0"}}, "draws cannot be '0'"),
        ({"settings": {"layer": "4"}}, "no layer '4'"),
        ({"limit": 8}, "too few texts to cut in two halves"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields: dict[str, Any], what: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=what):
        run_planted(tmp_path, "promote", **fields)
    assert set(WORDS) == set(EMOTIONS)
