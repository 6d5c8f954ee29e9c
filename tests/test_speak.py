"""Decoding: the published story, the same tokens with and without a cache, edits on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support_models import LAYERS, plain_model, tiny_folder, tiny_model
from torch import Tensor

from emotui.core.engine.capture import Hook, QuietJob
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.operations import Session, handle
from emotui.core.engine.speak import generate
from emotui.core.errors import Cancelled, TextError, UsageError
from emotui.core.protocol import Generated, GenerateRequest, ModelSpec


@pytest.fixture(scope="module")
def teller(stories: Path) -> LoadedModel:
    return load_model(ModelSpec(model=str(stories)), QuietJob())


def test_greedy_decoding_from_bos_gives_the_published_story(
    teller: LoadedModel, stories: Path
) -> None:
    """llama2.c publishes this text for stories260K; the hooks are active in every step."""
    seen: list[int] = []
    hooks = [
        Hook(site, layer, lambda tensor: seen.append(tensor.shape[1]))
        for site in ("resid", "attn", "mlp")
        for layer in range(5)
    ]
    assert teller.reader.bos_id is not None
    prompt = [teller.reader.bos_id]
    tokens = generate(teller, prompt, new_tokens=200, hooks=hooks)
    assert len(tokens) == 200
    assert seen == [1] * (15 * 200)
    text = teller.reader.decode(tokens, after=prompt)
    assert text == (stories / "expected.txt").read_text(encoding="utf-8")


def test_generate_request_continues_the_text(stories: Path) -> None:
    spec = ModelSpec(model=str(stories))
    request = GenerateRequest(spec=spec, text="Once upon a time, there was", new_tokens=40)
    outcome = handle(request, QuietJob(), Session())
    assert isinstance(outcome, Generated)
    story = (stories / "expected.txt").read_text(encoding="utf-8")
    assert len(outcome.tokens) == 40
    assert story.startswith("Once upon a time, there was" + outcome.text)
    assert outcome.text.startswith(" a little girl")


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2"])
def test_cached_decoding_equals_plain_decoding_without_a_cache(family: str) -> None:
    """Long enough that sliding windows have slid."""
    model, plain = tiny_model(family), plain_model(tiny_folder(family))
    prompt = model.reader.prompt_ids("My dog died last week.")
    ids = list(prompt)
    while len(ids) < len(prompt) + 24:
        with torch.no_grad():
            ids.append(int(plain(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] == model.reader.eos_id:
            ids.pop()
            break
    assert len(ids) > len(prompt) + 2
    assert list(generate(model, prompt, new_tokens=24)) == ids[len(prompt) :]


def test_an_edit_of_nothing_changes_nothing_and_an_edit_does(teller: LoadedModel) -> None:
    prompt = teller.reader.prompt_ids("Once upon a time")
    plain = generate(teller, prompt, new_tokens=30)
    zero = [Hook("resid", layer, lambda h: h + 0.0) for layer in range(5)]
    assert generate(teller, prompt, new_tokens=30, hooks=zero) == plain

    def push(h: Tensor) -> Tensor:
        return h + 3.0

    assert generate(teller, prompt, new_tokens=30, hooks=[Hook("resid", 2, push)]) != plain


def test_a_seed_gives_the_same_tokens_again(teller: LoadedModel) -> None:
    prompt = teller.reader.prompt_ids("Once upon a time")
    one = generate(teller, prompt, new_tokens=30, temperature=1.0, seed=7)
    assert generate(teller, prompt, new_tokens=30, temperature=1.0, seed=7) == one
    assert generate(teller, prompt, new_tokens=30, temperature=1.0, seed=8) != one
    torch.manual_seed(0)
    state = torch.get_rng_state()
    generate(teller, prompt, new_tokens=3, temperature=1.0, seed=7)
    assert torch.equal(torch.get_rng_state(), state), "nobody else's generator is touched"


def test_sampling_follows_the_softmax(teller: LoadedModel) -> None:
    prompt = teller.reader.prompt_ids("Lily was")
    logits = teller.forward([prompt])[0, -1]
    expected = (logits / 0.8).softmax(-1)
    likeliest = int(expected.argmax())
    draws = [
        generate(teller, prompt, new_tokens=1, temperature=0.8, seed=seed)[0] for seed in range(200)
    ]
    share, p = draws.count(likeliest) / 200, float(expected[likeliest])
    assert abs(share - p) < 4 * (p * (1 - p) / 200) ** 0.5


def test_the_end_of_text_token_ends_the_text(
    teller: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = teller.reader.prompt_ids("Once upon a time")
    whole = generate(teller, prompt, new_tokens=10)
    monkeypatch.setattr(teller.reader, "eos_id", whole[4])
    assert generate(teller, prompt, new_tokens=10) == whole[: whole.index(whole[4])]


def test_cancel_while_writing(teller: LoadedModel) -> None:
    class Cancelling(QuietJob):
        written = 0

        def progress(self, phase: str, done: int = 0, total: int = 0, /) -> None:
            self.written = done

        def check(self) -> None:
            if self.written >= 5:
                raise Cancelled("The work was cancelled.")

    prompt = teller.reader.prompt_ids("Once upon a time")
    job = Cancelling()
    before = teller.forwards
    with pytest.raises(Cancelled):
        generate(teller, prompt, new_tokens=100, job=job)
    assert teller.forwards - before == 6
    assert job.written == 5
    assert sum(len(m._forward_pre_hooks) for m in teller.hf.modules()) == 0


def test_more_than_the_context_holds(teller: LoadedModel) -> None:
    prompt = teller.reader.prompt_ids("Once upon a time")
    with pytest.raises(TextError) as caught:
        generate(teller, prompt, new_tokens=512)
    most = 512 + 1 - len(prompt)
    assert f"at most {most:,}" in caught.value.todo
    with pytest.raises(UsageError):
        generate(teller, prompt, new_tokens=5, temperature=-1.0)


def test_positions_beyond_a_learned_table_are_refused_not_reached() -> None:
    model = tiny_model("gpt2")
    prompt = model.reader.prompt_ids("My dog died.")
    generate(model, prompt, new_tokens=model.context_length + 1 - len(prompt))
    with pytest.raises(TextError):
        generate(model, prompt, new_tokens=model.context_length + 2 - len(prompt))
    assert model.n_layers == LAYERS
