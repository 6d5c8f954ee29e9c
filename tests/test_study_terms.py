"""The study of emotion words: its measures against scikit-learn and scipy, planted answers."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import f1_score
from support_command import emotui_here
from support_studies import TEXTS, files_of, run_here, write_texts

from emotui.cache.demo import demo_spec
from emotui.core.emotion_terms import Term, load_terms, terms_for
from emotui.core.emotions import PLUTCHIK
from emotui.core.engine.answer import whole_label_scores
from emotui.core.engine.capture import Hook, QuietJob, capture, hooked
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.terms import profile_of, score_terms, term_tokens
from emotui.core.errors import EditError, UsageError
from emotui.core.studies.common.pages import schema_of
from emotui.core.studies.terms_measures import (
    HALF,
    Vectors,
    against_first,
    confusions,
    controls,
    divergence,
    scored,
    true_words,
    words_in,
)
from emotui.core.studies.terms_results import TermsResult

TERMS = load_terms()
VECTORS = Vectors.of(TERMS)
PROMPT = "My dog died last week, and the house is very quiet now. The emotion is"


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load_model(demo_spec(), QuietJob())


# -- measures -----------------------------------------------------------------------------------


def test_f1_is_scikit_learns_on_the_sets_of_emotions() -> None:
    draw = np.random.default_rng(0)
    names = [term.term for term in TERMS]
    guess, true = (list(draw.choice(names, 60)) for _ in range(2))
    found = scored(guess, true, VECTORS)
    for number in range(60):
        a, b = (np.array(VECTORS.weights[w[number]]) >= HALF for w in (guess, true))
        assert float(found.f1[number]) == pytest.approx(f1_score(b, a, zero_division=0), abs=1e-9)
        assert bool(found.same_set[number]) == bool((a == b).all())
    assert not found.same.any() or guess != true


def test_divergence_is_scipys_squared_and_undefined_for_nothing() -> None:
    p, q = torch.rand(4, 8, dtype=torch.float64), torch.rand(4, 8, dtype=torch.float64)
    p[3] = 0
    found = divergence(p, q)
    for number in range(3):
        assert float(found[number]) == pytest.approx(
            jensenshannon(p[number], q[number]) ** 2, abs=1e-9
        )
    assert bool(found[3].isnan())


def test_an_unknown_word_is_wrong_and_empty() -> None:
    found = scored(["qwerty", "joyful"], ["joyful", "joyful"], VECTORS)
    assert found.same.tolist() == [False, True] and found.f1.tolist() == [0, 1]
    nothing = scored(["qwerty"], ["asdf"], VECTORS)
    assert (float(nothing.f1[0]), bool(nothing.same_set[0])) == (0, False)


def test_an_invalid_answer_has_no_set_to_be_right_with() -> None:
    """Many words of the table stand for no basic emotion; what is no word is not one of them."""
    empty = [term.term for term in TERMS if max(term.weights) < HALF]
    assert empty
    assert not scored(["qqqq"] * len(empty), empty, VECTORS).same_set.any()
    assert bool(scored(empty, empty, VECTORS).same_set.all())
    assert bool(scored(["qqqq"], ["qqqq"], VECTORS).same_set.all())  # it is the very word


def test_controls_are_measured_as_the_condition_is() -> None:
    """Compositions that know nothing of the text must not seem nearer than those of others."""
    draw = torch.Generator().manual_seed(0)
    names = [term.term for term in TERMS]
    true = [names[n] for n in torch.randint(len(names), (150,), generator=draw).tolist()]
    mixed = torch.rand(150, 8, generator=draw).double() + 1  # every one nearly the same
    predicted = [names[n] for n in torch.randint(len(names), (150,), generator=draw).tolist()]
    found = scored(predicted, true, VECTORS, composition=mixed)
    rows = controls(
        predicted, true, VECTORS, condition="c", readout="r", generator=draw, composition=mixed
    )
    assert len(rows) == 2 and all(row.control for row in rows)
    gold = VECTORS.rows(true)
    own = float(found.js.nanmean())
    for row in rows:
        assert row.js == pytest.approx(own, abs=0.01)
    of_others = np.nanmean(
        [
            jensenshannon(mixed[a] / mixed[a].sum(), gold[b] / gold[b].sum()) ** 2
            for a in range(150)
            for b in range(150)
            if float(gold[b].sum()) > 0
        ]
    )
    assert rows[0].js == pytest.approx(of_others, abs=0.003)
    shares = mixed / mixed.sum(dim=1, keepdim=True)
    constant = [
        jensenshannon(shares.mean(dim=0), one / one.sum()) ** 2 for one in gold if one.sum() > 0
    ]
    assert rows[1].js == pytest.approx(float(np.mean(constant)), abs=1e-9)


def test_confusions_are_shares_of_the_true_word() -> None:
    true = ["sad", "sad", "sad", "sad", "angry"]
    guess = ["sad", "alone", "alone", "numb", "angry"]
    found = confusions(guess, true, condition="c", readout="r", most=1)
    assert [(one.term, one.predicted, one.texts, one.share) for one in found] == [
        ("sad", "alone", 2, 0.5)
    ]


def test_conditions_are_compared_on_the_examples_they_share() -> None:
    first = {n: 0.0 for n in range(20)}
    second = {n: 1.0 - 0.01 * n for n in range(5, 25)}
    (none, also), (d, p) = against_first([first, second])
    assert (none, also) == (None, None) and d is not None and p is not None
    assert p < 0.01
    values = np.array([second[n] for n in range(5, 20)])
    assert d == pytest.approx(values.mean() / values.std(ddof=1))


@pytest.mark.parametrize(
    ("answer", "count", "words"),
    [
        (" Sad. Text: more", 1, ["sad"]),
        (" ['sad', 'left out']", 2, ["sad", "left out"]),
        ("\n\njoy", 2, ["joy", ""]),
        ("I feel sad", 1, ["i feel sad"]),
        ("", 1, [""]),
    ],
)
def test_written_words_are_read(answer: str, count: int, words: list[str]) -> None:
    assert words_in(answer, count) == words


def test_what_was_thought_before_the_answer_is_left_out() -> None:
    assert words_in("She lost a friend. Answer: grieving.", 1, thought=True) == ["grieving"]
    assert true_words("['sad', 'alone']") == ["sad", "alone"]


# -- scoring against plain PyTorch ----------------------------------------------------------------


def test_scores_are_those_of_whole_prompts(demo: LoadedModel) -> None:
    tokens = term_tokens(demo.reader, TERMS, chat=False)
    ids = demo.reader.prompt_ids(PROMPT)
    ours = score_terms(demo, ids, tokens, layers=True)
    theirs = whole_label_scores(demo, ids, tokens.sequences)
    assert ours.shape == (demo.n_layers, len(TERMS))
    assert torch.allclose(ours[-1], theirs, atol=1e-4)


def test_scores_at_a_layer_are_those_of_its_lens(demo: LoadedModel) -> None:
    tokens = term_tokens(demo.reader, TERMS, chat=False)
    ids = demo.reader.prompt_ids(PROMPT)
    ours = score_terms(demo, ids, tokens, layers=True)[3]
    longest = max(range(len(TERMS)), key=lambda n: len(tokens.sequences[n]))
    sequence = tokens.sequences[longest]
    run = capture(demo, [*ids, *sequence[:-1]])
    shares = demo.sites.logits_of(run.resid[4, len(ids) - 1 :]).log_softmax(dim=-1).detach()
    assert len(sequence) > 2
    by_hand = sum(float(shares[step, token]) for step, token in enumerate(sequence))
    assert float(ours[longest]) == pytest.approx(by_hand, abs=1e-3)


def test_edits_of_the_prompt_reach_words_of_several_tokens(demo: LoadedModel) -> None:
    tokens = term_tokens(demo.reader, TERMS, chat=False)
    ids = demo.reader.prompt_ids(PROMPT)
    added = torch.randn(demo.d_model, generator=torch.Generator().manual_seed(0))

    def edit(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        changed[:, 3] += added
        return changed

    hooks = (Hook("resid", 2, edit),)
    with hooked(demo, hooks):
        theirs = whole_label_scores(demo, ids, tokens.sequences)
    ours = score_terms(demo, ids, tokens, hooks=hooks)[0]
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert not torch.allclose(ours, score_terms(demo, ids, tokens)[0], atol=1e-2)


def test_an_edit_beyond_float32_is_refused(demo: LoadedModel) -> None:
    tokens = term_tokens(demo.reader, TERMS, chat=False)
    ids = demo.reader.prompt_ids(PROMPT)
    hooks = (Hook("resid", 2, lambda tensor: tensor + 1e30),)
    with pytest.raises(EditError, match="too large"):
        score_terms(demo, ids, tokens, hooks=hooks)


def test_a_profile_is_the_sum_of_its_words() -> None:
    p = torch.zeros(len(TERMS))
    joy, empty = (
        next(n for n, term in enumerate(TERMS) if term.term == "joy"),
        next((n for n, term in enumerate(TERMS) if term.empty), None),
    )
    p[joy] = 1.0
    weights = torch.tensor([term.weights for term in TERMS])
    found = profile_of(p, weights)
    assert found.weights.tolist() == list(TERMS[joy].weights)
    assert float(found.undecomposed) == 0 and float(found.entropy) == 0
    if empty is not None:
        assert float(profile_of(torch.eye(len(TERMS))[empty], weights).undecomposed) == 1


def test_words_with_the_same_tokens_are_refused(demo: LoadedModel) -> None:
    twice = [Term("joy", "emotion", (0.0,) * 8), Term("joy", "emotion", (0.0,) * 8)]
    with pytest.raises(UsageError, match="cannot be told apart"):
        term_tokens(demo.reader, twice, chat=False)


# -- the study ------------------------------------------------------------------------------------


@contextmanager
def writing(model: LoadedModel, word: Callable[[str], str]) -> Iterator[None]:
    """Let the model write the word that is given for its prompt, then a full stop."""

    prompts: list[str] = []

    def hook(_module: Any, _inputs: Any, named: dict[str, Any], output: Any) -> Any:
        ids = named["input_ids"][0].tolist()
        if len(ids) > 1:
            prompts[:] = [model.reader.decode(ids, after=[]), ""]
        wanted = model.reader.continuation_ids(f" {word(prompts[0])}.")
        step = len(prompts[1])
        output.logits.zero_()
        output.logits[:, -1, wanted[min(step, len(wanted) - 1)]] = 20.0
        prompts[1] += "."
        return output

    handle = model.hf.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


GOLD = {text.split(".")[0]: label for text, label in TEXTS}


def _last_gold(prompt: str) -> str:
    asked = prompt[prompt.rindex("Text:") :]
    return next(label for start, label in GOLD.items() if start in asked)


def _result(document: Any) -> TermsResult:
    return msgspec.convert(document.result, TermsResult)


def test_a_writer_of_the_true_words_is_right_in_every_condition(
    demo: LoadedModel, tmp_path: Path
) -> None:
    data = write_texts(tmp_path / "texts.csv", 16)
    settings = {"mode": "generate", "shots": "0,1", "thinking": "no"}
    with writing(demo, _last_gold):
        result = _result(run_here(demo, tmp_path, "terms", data, settings=settings))
    mine = [row for row in result.rows if not row.control]
    assert [row.condition for row in mine] == [
        "generate, zero-shot",
        "generate, 1 random shots",
        "generate, 1 nearest shots",
    ]
    assert all((row.acc_l, row.acc_v, row.f1_v, row.invalid) == (1, 1, 1, 0) for row in mine)
    assert all(row.f1_v < 0.6 for row in result.rows if row.control)
    assert result.worst == () and result.confusions == ()


def test_masks_are_asked_one_by_one_and_wrong_words_are_listed(
    demo: LoadedModel, tmp_path: Path
) -> None:
    path = tmp_path / "masked.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "words"))
        writer.writerow(("I feel <mask> as he left, and <mask>.", "['sad', 'alone']"))
        writer.writerow(("We won, I feel <mask> today.", "qqword"))
    settings = {"mode": "generate,score", "term": "words", "layers": "3"}
    with writing(demo, lambda _prompt: "sad, angry"):
        result = _result(run_here(demo, tmp_path, "terms", path, settings=settings))
    assert (result.texts, result.examples, result.unknown) == (2, 3, 1)
    written = next(row for row in result.rows if row.readout == "written")
    assert written.acc_l == pytest.approx(1 / 3)
    pairs = {(one.term, one.predicted) for one in result.confusions if one.readout == "written"}
    assert pairs == {("alone", "angry"), ("qqword", "sad")}
    assert len(result.layers) == demo.n_layers and result.layer_texts == 3


def test_from_the_command_line_with_an_edit(tmp_path: Path) -> None:
    data = write_texts(tmp_path / "texts.csv", 8)
    done = emotui_here(
        *("study", "terms", str(data), "--template", "ask", "--do", "knock attn L1 zero"),
        *("--set", "layers=2", "--out", str(tmp_path / "run"), "--html"),
        cache_dir=tmp_path / "cache",
    )
    assert done.returncode == 0, done.stderr
    document = msgspec.json.decode((tmp_path / "run" / "result.json").read_bytes())
    jsonschema.validate(document, schema_of(TermsResult))
    result = msgspec.convert(document["result"], TermsResult)
    moved = result.moved
    assert moved is not None and moved.texts == 8
    assert moved.js > 1e-3 and abs(sum(moved.weights)) < 1e-6 < max(moved.weights)
    first = next(row for row in result.rows if row.readout == "likeliest")
    control = next(row for row in result.rows if row.control)
    assert first.f1_v > control.f1_v
    assert b"It was day" not in b"".join(files_of(tmp_path / "run").values())


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"mode": "guess"}, "mode cannot be"),
        ({"pick": "best", "shots": "1"}, "pick cannot be"),
        ({"shots": "100"}, "too few texts"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    settings: dict[str, str], why: str, demo: LoadedModel, tmp_path: Path
) -> None:
    data = write_texts(tmp_path / "texts.csv", 2)
    with pytest.raises(UsageError, match=why):
        run_here(demo, tmp_path, "terms", data, settings={"layers": "0", **settings})


def test_a_table_that_is_none_is_refused(demo: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "terms.tsv"
    path.write_text("term\tkind\nsad\temotion\n")
    data = write_texts(tmp_path / "texts.csv", 2)
    with pytest.raises(UsageError, match="cannot be used"):
        run_here(demo, tmp_path, "terms", data, settings={"terms": str(path)})
    done = emotui_here("terms", "He won.", "--terms", str(path), cache_dir=tmp_path / "cache")
    assert done.returncode == 2 and "cannot be used" in done.stderr and not done.stdout


def test_of_a_large_lexicon_the_bundled_words_are_scored_with_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "emolex.txt"
    names = [term.term for term in TERMS[:5]] + [f"word{n}" for n in range(1100)]
    lines = [f"{name}\t{emotion}\t1" for name in names for emotion in ("joy", "positive")]
    path.write_text("\n".join(lines))
    scored_terms, known, table = terms_for(str(path))
    assert [term.term for term in scored_terms] == sorted(names[:5])
    assert len(known) == len(names) and table == "emolex.txt"
    joy = PLUTCHIK.index("joy")
    assert all(term.weights[joy] == 1 and sum(term.weights) == 1 for term in scored_terms)
