"""The study of consistency: planted answerers, its numbers against scipy and scikit-learn."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.metrics import cohen_kappa_score
from support_command import emotui_here
from support_studies import TEXTS, files_of, run_here, stories_model, write_texts

from emotui.cache.demo import demo_spec
from emotui.core.emotions import LABEL_SETS
from emotui.core.engine.answer import label_tokens
from emotui.core.engine.capture import QuietJob
from emotui.core.engine.forms import (
    Asking,
    fragments,
    pair_cosine,
    read_labels,
    spellings,
)
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.errors import UsageError
from emotui.core.forms import ANSWER_LAST, orders
from emotui.core.studies.common.pages import schema_of
from emotui.core.studies.common.paired import chi_square, cohen_d, holm, wilcoxon
from emotui.core.studies.consistency_measures import (
    agreement_row,
    badge_of,
    form_rows,
    negation_kappas,
    pair_row,
    position_of,
)
from emotui.core.studies.consistency_report import report
from emotui.core.studies.consistency_results import ConsistencyResult
from emotui.core.studies.questionnaires import read_items
from emotui.core.text import template_named

LABELS = LABEL_SETS["ekman7"]
GOLD = {text.split(".")[0]: label for text, label in TEXTS}


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# -- numbers against others' -------------------------------------------------------------------


def test_wilcoxon_is_scipys() -> None:
    draw = np.random.default_rng(0)
    values = np.round(draw.normal(0.2, 1, 60), 1)  # with ties and zeros
    theirs = scipy.stats.wilcoxon(
        values, zero_method="wilcox", correction=False, method="asymptotic"
    )
    assert wilcoxon(torch.tensor(values)) == pytest.approx(theirs.pvalue, abs=1e-9)
    assert wilcoxon(torch.zeros(5)) is None


def test_chi_square_is_scipys() -> None:
    observed, expected = [12, 7, 9, 22], [10.0, 15.0, 10.0, 15.0]
    statistic, p = chi_square(torch.tensor(observed), torch.tensor(expected))
    theirs = scipy.stats.chisquare(observed, expected)
    assert statistic == pytest.approx(theirs.statistic, abs=1e-9)
    assert p == pytest.approx(theirs.pvalue, abs=1e-9)


def test_holm_is_what_its_definition_says() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])


def test_cohen_d_of_differences() -> None:
    values = torch.tensor([1.0, 2.0, 4.0])
    assert cohen_d(values) == pytest.approx(np.mean([1, 2, 4]) / np.std([1, 2, 4], ddof=1))
    assert cohen_d(torch.ones(3)) is None


def test_a_negation_answered_alike_is_inconsistent_however_often_it_is_affirmed() -> None:
    """The lesson of METHODS 6: a bias to `True` makes raw numbers look as they like."""
    draw = torch.Generator().manual_seed(1)
    first = (torch.rand(400, generator=draw) < 0.9).double() * 0.8 + 0.1
    second = (torch.rand(400, generator=draw) < 0.9).double() * 0.8 + 0.1
    names = ("True/False", "not")
    valid = torch.ones(400, dtype=torch.bool)
    texts = torch.arange(400)
    row = pair_row(first, second, valid, kind="negation", names=names, texts=texts, generator=draw)
    theirs = cohen_kappa_score(first > 0.5, second <= 0.5)
    assert row.kappa == pytest.approx(theirs, abs=1e-6) and abs(row.kappa or 0) < 0.1
    assert row.consistent == pytest.approx(row.chance, abs=0.05)
    turned = pair_row(
        first, 1 - first, valid, kind="negation", names=names, texts=texts, generator=draw
    )
    assert turned.consistent == 1 and turned.kappa == pytest.approx(1.0)
    assert turned.gap == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("kind", ["negation", "wording"])
def test_an_answer_that_never_varies_has_no_kappa(kind: str) -> None:
    never, sometimes = torch.full((40,), 0.1), torch.arange(40).remainder(2).double()
    valid, texts = torch.ones(40, dtype=torch.bool), torch.arange(40)
    for pair in ((never, never), (never, sometimes), (sometimes, never)):
        row = pair_row(
            *pair, valid, kind=kind, names=("a", "b"), texts=texts, generator=_generator()
        )
        assert (row.kappa, row.low, row.high) == (None, None, None)
        assert row.consistent == pytest.approx(row.chance)


def test_negations_the_model_does_not_answer_are_not_judged() -> None:
    first = torch.rand(40, generator=_generator())
    names, texts = ("True/False", "not"), torch.arange(40)
    rows = [
        pair_row(
            first,
            1 - first,
            torch.full((40,), valid),
            kind="negation",
            names=names,
            texts=texts,
            generator=_generator(),
        )
        for valid in (True, False)
    ]
    assert negation_kappas(rows) == [pytest.approx(1.0), None]


def test_orders_that_are_followed_and_orders_that_are_not() -> None:
    forms = orders(LABELS, template_named("ask"), seed=0)
    slots = torch.tensor([form.order for form in forms]).argsort(dim=-1).expand(50, -1, -1)
    first_listed = torch.tensor([form.order[0] for form in forms]).expand(50, -1)
    follows = position_of(first_listed, slots)
    assert follows.counts[0] == 50 * len(forms) and sum(follows.counts) == 50 * len(forms)
    assert follows.p is None and follows.statistic > 100
    stays = position_of(torch.full((50, len(forms)), 3), slots)
    assert stays.statistic == pytest.approx(0)
    agreeing = agreement_row(
        torch.arange(50).remainder(7)[:, None].expand(-1, 6),
        classes=7,
        group="order",
        readout="answer",
        generator=_generator(),
    )
    assert (agreeing.kappa, agreeing.agreement, agreeing.majority) == (1, 1, 1)


def test_agreement_counts_pairs() -> None:
    answers = torch.tensor([[0, 0, 0, 1], [2, 1, 1, 2]])
    row = agreement_row(answers, classes=3, group="g", readout="answer", generator=_generator())
    pairs = [
        np.mean([a == b for i, a in enumerate(one) for b in one[i + 1 :]])
        for one in answers.numpy()
    ]
    assert row.agreement == pytest.approx(np.mean(pairs))
    assert row.majority == pytest.approx((3 / 4 + 2 / 4) / 2)


def test_accuracy_lost_is_that_of_the_true_label() -> None:
    right = torch.eye(3)[torch.arange(30).remainder(3)] * 4
    wrong = right.roll(1, dims=1)
    gold = torch.arange(30).remainder(3)
    scores = torch.stack([right, wrong], dim=1)
    valid = torch.ones(30, 2, dtype=torch.bool)
    first, second = form_rows(scores, valid, gold, ("a", "a"), ("x", "y"), ("p", "q", "r"))
    assert (first.accuracy, first.lost, first.p) == (1, 0, None)
    shares = right[0].softmax(dim=0)
    assert second.accuracy == 0
    assert second.lost == pytest.approx(float(shares[0] - shares[1]), abs=1e-6)
    assert second.p is not None and second.p < 1e-5


@pytest.mark.parametrize(
    ("kappas", "badge"),
    [
        ((0.9, 0.85, [0.7, 0.9]), "robust"),
        ((0.9, 0.7, [0.7, 0.9]), "form-dependent (orders)"),
        ((0.9, 0.9, [0.1, 0.9]), "form-dependent (negations)"),
        ((None, 0.9, [0.7]), "not judged (templates: no valid answers, or one that never varies)"),
        (
            (0.9, 0.1, [None, 0.9]),
            "form-dependent (orders); not judged (negations: no valid answers, or one that never "
            "varies)",
        ),
    ],
)
def test_the_badge(kappas: tuple[Any, Any, Any], badge: str) -> None:
    assert badge_of(*kappas) == badge


def test_pair_cosine_is_the_mean_over_pairs() -> None:
    vectors = torch.randn(3, 4, 5, generator=_generator())
    units = vectors / vectors.norm(dim=-1, keepdim=True)
    pairs = [units[:, a] @ units[:, b].T for a in range(4) for b in range(a)]
    wanted = torch.stack([pair.diagonal() for pair in pairs]).mean(dim=0)
    assert torch.allclose(pair_cosine(vectors), wanted, atol=1e-6)


# -- planted answerers: the demo's weights run, its logits are replaced ---------------------------


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load_model(demo_spec(), QuietJob())


@contextmanager
def answering(model: LoadedModel, answer: Callable[[str], str]) -> Iterator[None]:
    """Let the model write the word that `answer` gives for the prompt, all of its tokens."""
    asked: dict[tuple[int, ...], tuple[int, ...]] = {}

    def wanted(ids: tuple[int, ...]) -> int:
        """Return the next token: after a prompt of a word, within the word, or a full stop."""
        for written in range(1, 10):
            word = asked.get(ids[:-written])
            if word is not None:
                begun = ids[-written:] == word[:written]
                full_stop = model.reader.continuation_ids(".")[0]
                return word[written] if begun and written < len(word) else full_stop
        said = answer(model.reader.decode(ids, after=[]))
        asked[ids] = tuple(model.reader.continuation_ids(f" {said}"))
        return asked[ids][0]

    def hook(_module: Any, _inputs: Any, named: dict[str, Any], output: Any) -> Any:
        output.logits.zero_()
        kept = output.logits.shape[1]
        for row, ids in enumerate(named["input_ids"].tolist()):
            for step in range(kept):
                end = len(ids) - kept + 1 + step
                output.logits[row, step, wanted(tuple(ids[:end]))] = 20.0
        return output

    handle = model.hf.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def gold_of(prompt: str) -> str:
    return next(label for start, label in GOLD.items() if start in prompt)


def statement_holds(prompt: str) -> bool:
    said = re.search(r"The writer (feels|does not feel|is free of) (\w+)\.", prompt)
    assert said is not None
    return (said[2] == gold_of(prompt)) == (said[1] == "feels")


def steady(prompt: str) -> str:
    """Always the label of the text; statements as they are."""
    if "Statement:" not in prompt:
        return gold_of(prompt)
    holds = statement_holds(prompt)
    return ("Yes" if holds else "No") if "agree with" in prompt else str(holds)


def follower(prompt: str) -> str:
    """The label that is listed first; `True` to every statement."""
    if "Statement:" in prompt:
        return "Yes" if "agree with" in prompt else "True"
    listed = re.search(r"Options: (\w+)", prompt)
    return listed[1] if listed else gold_of(prompt)


def _run(model: LoadedModel, folder: Path, answer: Callable[[str], str]) -> ConsistencyResult:
    data = write_texts(folder / "texts.csv", 16)
    with answering(model, answer):
        document = run_here(model, folder, "consistency", data)
    return msgspec.convert(document.result, ConsistencyResult)


def test_an_answerer_that_never_changes_is_robust(demo: LoadedModel, tmp_path: Path) -> None:
    result = _run(demo, tmp_path, steady)
    assert result.badge == "robust"
    answer = {row.group: row for row in result.agreements if row.readout == "answer"}
    assert all(answer[group].kappa == 1 for group in ("template", "order"))
    assert all(row.valid == 1 and row.accuracy == 1 for row in result.forms)
    assert all(pair.consistent == 1 and pair.kappa == pytest.approx(1) for pair in result.pairs)
    assert result.averaged_accuracy == 1 and result.position.statistic == pytest.approx(0)
    assert result.denied_unchanged == 1
    assert result.statements == 32 and result.pairs[0].agrees_first == 0.5


def test_an_answerer_that_follows_the_order_is_found(demo: LoadedModel, tmp_path: Path) -> None:
    result = _run(demo, tmp_path, follower)
    assert result.badge.startswith("form-dependent (orders); not judged (negations:")
    answer = {row.group: row for row in result.agreements if row.readout == "answer"}
    assert answer["template"].kappa == 1
    assert answer["order"].kappa is not None and answer["order"].kappa < 0
    position = result.position
    assert position.counts[0] == sum(position.counts) == 16 * 6
    assert position.p is None and position.statistic > 100
    negations = [pair for pair in result.pairs if pair.kind == "negation"]
    assert [pair.consistent for pair in negations] == [0, 0]
    assert all(pair.kappa is None for pair in result.pairs)
    assert "kappa not defined" in " ".join(report(result).sentences)
    assert [pair.agrees_second for pair in negations] == [1, 1]


def test_the_last_order_puts_the_answer_last(demo: LoadedModel) -> None:
    template = template_named("ask")
    tokens = label_tokens(demo.reader, "ekman7", template)
    asking = Asking(demo, template, "ekman7", tokens, seed=0)
    texts = [text for text, _ in TEXTS]
    read = read_labels(asking, texts)
    first = len(asking.templates)
    assert asking.names[first + asking.n_orders - 1] == ANSWER_LAST
    answers = read.scores[:, first].argmax(dim=-1)
    last = read.slots[torch.arange(len(texts)), -1, answers]
    assert last.tolist() == [len(LABELS) - 1] * len(texts)
    assert bool((read.slots.sort(dim=-1).values == torch.arange(len(LABELS))).all())


def test_the_lens_at_the_last_layer_is_the_answer(demo: LoadedModel) -> None:
    template = template_named("ask")
    tokens = label_tokens(demo.reader, "ekman7", template)
    read = read_labels(Asking(demo, template, "ekman7", tokens, seed=0), [TEXTS[0][0], TEXTS[7][0]])
    assert torch.equal(read.lens[..., -1], read.scores.argmax(dim=-1))
    ids = [token.id for token in demo.reader.read(TEXTS[0][0], template).tokens]
    plain = demo.hf(input_ids=torch.tensor([ids])).logits[0, -1, list(tokens.deciding)]
    assert torch.allclose(read.scores[0, 0], plain.log_softmax(dim=-1), atol=1e-4)


def test_validity_counts_every_spelling(demo: LoadedModel) -> None:
    found, unsure = spellings(demo.reader, ["joy"])
    assert not unsure & found
    wanted = {demo.reader.continuation_ids(one)[0] for one in (" joy", "joy", " Joy", "JOY")}
    assert wanted <= found | unsure
    with answering(demo, lambda _prompt: "banana"):
        template = template_named("ask")
        tokens = label_tokens(demo.reader, "ekman7", template)
        read = read_labels(Asking(demo, template, "ekman7", tokens, seed=0), [TEXTS[0][0]])
    assert not read.valid.any()


def test_words_whose_first_token_is_a_fragment_are_compared_whole(stories: Path) -> None:
    """`joy` begins with a bare space there, `anger` with the article a: both begin other words."""
    model, template = stories_model(stories), template_named("ask")
    tokens = label_tokens(model.reader, "ekman7", template)
    assert tokens.rule == "first_token"  # what the answer of a trace is read by
    assert fragments(model.reader, tokens) == ("anger", "disgust", "fear", "joy", "surprise")
    asking = Asking(model, template, "ekman7", tokens, seed=0)
    text = "Once upon a time a girl was very happy."
    read = read_labels(asking, [text])
    ids = [token.id for token in model.reader.read(text, template).tokens]
    by_hand = []
    for label in LABELS:
        word = model.reader.continuation_ids(f" {label}")
        logits = model.forward([[*ids, *word]], keep=0)[0].detach().log_softmax(dim=-1)
        places = range(len(ids) - 1, len(ids) + len(word) - 1)
        by_hand.append(float(sum(logits[at, one] for at, one in zip(places, word, strict=True))))
    wanted = torch.tensor(by_hand).log_softmax(dim=-1)
    assert torch.allclose(read.scores[0, 0], wanted, atol=1e-4)


@pytest.mark.parametrize(("word", "valid"), [("joy", True), ("jumped", False), ("a", False)])
def test_what_begins_like_an_answer_is_none_unless_it_goes_on_as_one(
    stories: Path, word: str, valid: bool
) -> None:
    model, template = stories_model(stories), template_named("ask")
    tokens = label_tokens(model.reader, "ekman7", template)
    with answering(model, lambda _prompt: word):
        read = read_labels(Asking(model, template, "ekman7", tokens, seed=0), ["A girl was happy."])
    assert bool(read.valid.all()) is valid and bool(read.valid.any()) is valid


# -- questionnaire, files, command line -----------------------------------------------------------


ITEMS = "statement\tnegation\taxis\tkey\n"


def test_a_questionnaire_is_scored_by_its_keys(demo: LoadedModel, tmp_path: Path) -> None:
    rows = [
        ("I like parties.", "I dislike parties.", "open", "1"),
        ("I talk a lot.", "I am silent.", "open", "+1"),
        ("I like to be alone.", "I hate to be alone.", "open", "-1"),
        ("I worry.", "I never worry.", "calm", "-1"),
    ]
    path = tmp_path / "items.tsv"
    path.write_text(ITEMS + "".join("\t".join(row) + "\n" for row in rows))
    true = {rows[0][0], rows[1][0], rows[2][1], rows[3][1]}

    def answer(prompt: str) -> str:
        if "Text:" in prompt or "Statement:" not in prompt:
            return steady(prompt)
        holds = any(one in prompt for one in true)
        return ("Yes" if holds else "No") if "agree with" in prompt else str(holds)

    data = write_texts(tmp_path / "texts.csv", 8)
    with answering(demo, answer):
        document = run_here(demo, tmp_path, "consistency", data, settings={"items": str(path)})
    found = msgspec.convert(document.result, ConsistencyResult).questionnaire
    assert found is not None and (found.items, found.valid) == (4, 1)
    assert {axis.axis: (axis.items, axis.score, axis.negated_score) for axis in found.axes} == {
        "open": (3, 1, 1),
        "calm": (1, 1, 1),
    }
    assert all(pair.consistent == 1 for pair in found.pairs)
    assert found.pairs[-1].kind == "negation"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "statement"),
        ("statement,negation,axis\na,b,c\n", "key"),
        (ITEMS + "a\tb\tc\t2\n", "line 2"),
        (ITEMS + "a\t\tc\t1\n", "negation"),
        (ITEMS + "a\tb\tc\t1\n", "1 items"),
    ],
)
def test_items_that_are_malformed_are_named(content: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "items.tsv"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        read_items(path)
    assert why in (caught.value.why or "")


def test_items_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "items.tsv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="could not be read"):
        read_items(path)
    with pytest.raises(UsageError, match="could not be read"):
        read_items(tmp_path / "absent.tsv")


def test_labels_without_distinct_tokens_show_their_rule(demo: LoadedModel, tmp_path: Path) -> None:
    data = tmp_path / "texts.csv"
    data.write_text("text,label\nHe won the race.,joy\n")
    document = run_here(demo, tmp_path, "consistency", data, label_set="goemotions28")
    rule = label_tokens(demo.reader, "goemotions28", template_named("ask")).rule
    assert rule != "first_token"
    assert any(repr(rule) in sentence for sentence in document.report.sentences)
    result = msgspec.convert(document.result, ConsistencyResult)
    assert result.rule == rule
    assert not any(row.readout == "lens" for row in result.agreements)


def test_texts_too_long_in_every_form_are_an_error(demo: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    text = "a word and another " * 40
    path.write_text(f"text,label\n{text},joy\n{text} again,joy\n")
    with pytest.raises(UsageError, match="in every form"):
        run_here(demo, tmp_path, "consistency", path)


def test_from_the_command_line(tmp_path: Path) -> None:
    data = write_texts(tmp_path / "texts.csv", 8)
    done = emotui_here(
        *("study", "consistency", str(data), "--template", "ask", "--html"),
        *("--out", str(tmp_path / "run")),
        cache_dir=tmp_path / "cache",
    )
    assert done.returncode == 0, done.stderr
    assert "Badge:" in done.stdout and "probe at layer" in done.stdout
    document = msgspec.json.decode((tmp_path / "run" / "result.json").read_bytes())
    jsonschema.validate(document, schema_of(ConsistencyResult))
    assert b"It was day" not in b"".join(files_of(tmp_path / "run").values())
    assert "<svg" in (tmp_path / "run" / "result.html").read_text()


def test_the_same_run_has_the_same_bytes(demo: LoadedModel, tmp_path: Path) -> None:
    data = write_texts(tmp_path / "texts.csv", 4)
    for folder in ("a", "b"):
        run_here(demo, tmp_path / folder, "consistency", data)
    assert files_of(tmp_path / "a" / "run") == files_of(tmp_path / "b" / "run")
