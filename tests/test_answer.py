"""The model's answer equals what a plain loop over transformers computes, under each rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support_models import plain_model, tiny_folder, tiny_model

from emotui.cache.demo import DEMO_MODEL
from emotui.core.agreement import sentence_of_fragments
from emotui.core.emotions import LABEL_SETS
from emotui.core.engine import answer as answers
from emotui.core.engine.answer import AnswerReading, label_tokens, read_answer, to_bytes
from emotui.core.engine.capture import QuietJob, capture
from emotui.core.engine.lens import read_lens
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.protocol import ModelSpec
from emotui.core.text import TEMPLATES

SAD = "Lily was sad because her toy was lost."
ASK = TEMPLATES["ask"]
PROMPT = SAD + ASK.after


@pytest.fixture(scope="module")
def model(stories: Path) -> LoadedModel:
    return load_model(ModelSpec(model=str(stories)), QuietJob())


@pytest.fixture(scope="module")
def plain(stories: Path) -> Any:
    return plain_model(stories)


@pytest.fixture(scope="module")
def tokenizer(stories: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(stories))


@pytest.fixture(autouse=True)
def _label_sets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Add a set whose labels share their first token in stories260K: a lone space."""
    sets: Mapping[str, tuple[str, ...]] = {**LABEL_SETS, "spaced": ("joy", "zoo", "quiet")}
    monkeypatch.setattr(answers, "LABEL_SETS", sets)
    yield


def _read(model: LoadedModel, label_set: str) -> AnswerReading:
    record = model.reader.read(SAD, ASK)
    kept = capture(model, [token.id for token in record.tokens])
    return read_answer(model, kept, label_tokens(model.reader, label_set, ASK))


@torch.no_grad()
def _log_probability(plain: Any, tokenizer: Any, prompt: str, continuation: str) -> float:
    """Sum log p of the tokens that `continuation` adds to `prompt`, one forward per label."""
    start = tokenizer(prompt)["input_ids"]
    whole = tokenizer(prompt + continuation)["input_ids"]
    assert whole[: len(start)] == start
    log_probabilities = plain(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(float(log_probabilities[i - 1, whole[i]]) for i in range(len(start), len(whole)))


@torch.no_grad()
def _next_logits(plain: Any, ids: list[int]) -> torch.Tensor:
    logits: torch.Tensor = plain(torch.tensor([ids])).logits[0, -1]
    return logits


def test_first_token_rule(model: LoadedModel, plain: Any, tokenizer: Any) -> None:
    reading = _read(model, "ekman7")
    prompt = tokenizer(PROMPT)["input_ids"]
    labels = LABEL_SETS["ekman7"]
    first = [tokenizer(f"{PROMPT} {label}")["input_ids"][len(prompt)] for label in labels]
    assert len(set(first)) == len(labels)
    expected = _next_logits(plain, prompt)[first].softmax(-1)
    assert reading.answer.rule == "first_token"
    assert (reading.answer.set, reading.answer.prompts) == ("ekman7", 1)
    assert tuple(reading.answer.labels) == labels
    got = torch.tensor(list(reading.answer.labels.values()))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    assert got.max() - got.min() > 0.05, "an even answer would prove little"


def test_shared_prefix_rule(model: LoadedModel, plain: Any, tokenizer: Any) -> None:
    before = model.forwards
    reading = _read(model, "spaced")
    assert model.forwards - before == 2
    prompt = tokenizer(PROMPT)["input_ids"]
    sequences = [
        tokenizer(f"{PROMPT} {label}")["input_ids"][len(prompt) :]
        for label in ("joy", "zoo", "quiet")
    ]
    shared = sequences[0][:1]
    assert all(sequence[:1] == shared for sequence in sequences)
    expected = _next_logits(plain, prompt + shared)[[s[1] for s in sequences]].softmax(-1)
    assert reading.answer.rule == "after_shared_prefix"
    assert reading.answer.prompts == 1
    assert reading.label_tokens.room == 1
    got = torch.tensor(list(reading.answer.labels.values()))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_whole_label_rule(model: LoadedModel, plain: Any, tokenizer: Any) -> None:
    before = model.forwards
    reading = _read(model, "goemotions28")
    assert model.forwards - before == 2
    labels = LABEL_SETS["goemotions28"]
    scores = [_log_probability(plain, tokenizer, PROMPT, f" {label}") for label in labels]
    expected = torch.tensor(scores).softmax(-1)
    assert (reading.answer.rule, reading.answer.prompts) == ("whole_label", 28)
    assert reading.resid is None
    got = torch.tensor(list(reading.answer.labels.values()))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(reading.scores, torch.tensor(scores), rtol=0, atol=1e-4)


@pytest.mark.parametrize("label_set", ["ekman7", "spaced", "goemotions28"])
def test_stored_answers_need_no_forward(model: LoadedModel, label_set: str) -> None:
    record = model.reader.read(SAD, ASK)
    kept = capture(model, [token.id for token in record.tokens])
    tokens = label_tokens(model.reader, label_set, ASK)
    reading = read_answer(model, kept, tokens)
    stored = to_bytes(reading)
    assert (stored is None) == (label_set == "ekman7")
    before = model.forwards
    again = read_answer(model, kept, tokens, stored=stored)
    assert model.forwards == before
    assert again.answer == reading.answer
    assert read_lens(model, kept, again) == read_lens(model, kept, reading)


def test_chat_labels_follow_the_turn_mark_without_a_space() -> None:
    reader = tiny_model("gemma2").reader
    plain_tokens = label_tokens(reader, "ekman7", ASK)
    chat_tokens = label_tokens(reader, "ekman7", TEMPLATES["chat"])
    spaced = [reader.decode(ids, after=()) for ids in plain_tokens.sequences]
    bare = [reader.decode(ids, after=()) for ids in chat_tokens.sequences]
    assert spaced == [f" {label}" for label in LABEL_SETS["ekman7"]]
    assert bare == list(LABEL_SETS["ekman7"])


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_top_layer_of_the_lens_is_the_logits(family: str) -> None:
    tiny = tiny_model(family)
    record = tiny.reader.read("My dog died last week.", ASK)
    ids = [token.id for token in record.tokens]
    kept = capture(tiny, ids)
    reading = read_answer(tiny, kept, label_tokens(tiny.reader, "ekman7", ASK))
    lens = read_lens(tiny, kept, reading)
    assert len(lens.layer) == tiny.n_layers * 10 == len(lens.token) == len(lens.probability)
    top = tiny.n_layers - 1
    rows = [i for i, layer in enumerate(lens.layer) if layer == top]
    with torch.no_grad():
        logits = plain_model(tiny_folder(family))(torch.tensor([ids])).logits[0, -1]
    best = logits.softmax(-1).topk(10)
    assert [lens.rank[i] for i in rows] == list(range(10))
    assert [lens.token[i] for i in rows] == [tiny.reader.string(t) for t in best.indices.tolist()]
    torch.testing.assert_close(
        torch.tensor([lens.probability[i] for i in rows]), best.values, rtol=0, atol=1e-6
    )
    assert {label: values[top] for label, values in lens.answers.items()} == pytest.approx(
        reading.answer.labels, abs=1e-6
    )


def test_lower_layers_of_the_lens_renormalise_and_soft_cap() -> None:
    """Against the definition, written out with Gemma-2's own weights."""
    tiny = tiny_model("gemma2")
    record = tiny.reader.read("My dog died last week.", ASK)
    kept = capture(tiny, [token.id for token in record.tokens])
    lens = read_lens(tiny, kept, read_answer(tiny, kept, label_tokens(tiny.reader, "ekman7", ASK)))
    h = kept.at("resid", 1)[-1]
    weights = tiny.hf.state_dict()
    normed = h / (h.square().mean() + tiny.hf.config.rms_norm_eps).sqrt()
    normed = normed * (1 + weights["model.norm.weight"])
    cap = tiny.hf.config.final_logit_softcapping
    logits = cap * torch.tanh(weights["lm_head.weight"] @ normed / cap)
    rows = [i for i, layer in enumerate(lens.layer) if layer == 1]
    expected = logits.softmax(-1).topk(10).values
    got = torch.tensor([lens.probability[i] for i in rows])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_lens_under_the_prefix_rule_ends_in_the_answer(model: LoadedModel) -> None:
    record = model.reader.read(SAD, ASK)
    kept = capture(model, [token.id for token in record.tokens])
    reading = _read(model, "spaced")
    lens = read_lens(model, kept, reading)
    assert {label: v[-1] for label, v in lens.answers.items()} == pytest.approx(
        reading.answer.labels, abs=1e-6
    )
    whole = read_lens(model, kept, _read(model, "goemotions28"))
    assert whole.answers == {}


def test_mass_is_what_the_labels_hold_of_the_whole_distribution(stories: Path) -> None:
    model = load_model(ModelSpec(model=str(stories)), QuietJob())
    text = model.reader.read("Lily was sad.", TEMPLATES["ask"], context_length=512)
    ids = [token.id for token in text.tokens]
    tokens = label_tokens(model.reader, "ekman7", TEMPLATES["ask"])
    answer = read_answer(model, capture(model, ids), tokens).answer
    plain = plain_model(stories)
    with torch.no_grad():
        shares = plain(torch.tensor([ids])).logits[0, -1].softmax(-1)
    expected = sum(float(shares[sequence[0]]) for sequence in tokens.sequences)
    assert answer.mass == pytest.approx(expected, abs=1e-5)


def test_labels_of_more_than_one_token_are_named_with_what_they_are_compared_by(
    model: LoadedModel, tokenizer: Any
) -> None:
    """` a` of ` anger` is the article too: an answer by it says little of anger."""
    answer = _read(model, "ekman7").answer
    prompt = tokenizer(PROMPT)["input_ids"]
    tokens = {
        label: tokenizer(f"{PROMPT} {label}")["input_ids"][len(prompt) :] for label in answer.labels
    }
    assert answer.rule == "first_token"
    assert set(answer.fragments) == {label for label, ids in tokens.items() if len(ids) > 1}
    assert answer.fragments["anger"] == " a"
    said = sentence_of_fragments(answer)
    assert "anger by ' a'" in said and "begin another word" in said


def test_labels_of_one_token_have_no_such_flag() -> None:
    demo = load_model(ModelSpec(model=str(DEMO_MODEL)), QuietJob())
    record = demo.reader.read(SAD, ASK)
    kept = capture(demo, [token.id for token in record.tokens])
    found = label_tokens(demo.reader, "ekman7", ASK)
    assert all(len(sequence) == 1 for sequence in found.sequences)
    answer = read_answer(demo, kept, found).answer
    assert answer.fragments == {} and sentence_of_fragments(answer) == ""
