"""From text to trace: what is stored, what it costs, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from support_models import plain_model

from emotui.cache.keys import request_key
from emotui.cache.store import Store
from emotui.core.engine.answer import label_tokens
from emotui.core.engine.capture import QuietJob
from emotui.core.engine.operations import Session, handle
from emotui.core.errors import (
    Cancelled,
    EditError,
    EmotuiError,
    ProbeError,
    SaeError,
    TextError,
    UsageError,
)
from emotui.core.protocol import Inspected, InspectRequest, ModelSpec
from emotui.core.records import Trace
from emotui.core.text import template_named

SAD = "Lily was sad because her toy was lost."


class Bench:
    """One engine session over one cache, and requests for stories260K."""

    def __init__(self, stories: Path, cache: Path) -> None:
        self.spec = ModelSpec(model=str(stories))
        self.cache = str(cache)
        self.session = Session()

    def request(self, text: str = SAD, **changes: object) -> InspectRequest:
        # Attribution is a pass of its own, counted in test_attribute.
        request = InspectRequest(spec=self.spec, text=text, cache_dir=self.cache, metric="none")
        return msgspec.structs.replace(request, **changes)

    def inspect(self, text: str = SAD, **changes: object) -> Inspected:
        outcome = handle(self.request(text, **changes), QuietJob(), self.session)
        assert isinstance(outcome, Inspected)
        return outcome

    @property
    def store(self) -> Store:
        return self.session.store(self.cache)

    def trace(self, text: str = SAD, **changes: object) -> Trace:
        return self.store.get_trace(self.inspect(text, **changes).trace_id)


@pytest.fixture
def bench(stories: Path, cache_dir: Path) -> Iterator[Bench]:
    bench = Bench(stories, cache_dir)
    yield bench
    bench.session.close_store()


@pytest.fixture
def sae_folder(tmp_path: Path) -> Path:
    """A standard SAE of the SAELens format on mlp.3, with random weights."""
    folder = tmp_path / "sae"
    folder.mkdir()
    config = {
        "architecture": "standard",
        "d_in": 64,
        "d_sae": 128,
        "apply_b_dec_to_input": False,
        "metadata": {"hook_name": "blocks.3.hook_mlp_out", "prepend_bos": True},
    }
    (folder / "cfg.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=generator) * 0.3
        for name, shape in (("W_enc", (64, 128)), ("W_dec", (128, 64)), ("b_enc", (128,)))
    }
    save_file({**weights, "b_dec": torch.zeros(64)}, folder / "sae_weights.safetensors")
    return folder


def test_a_text_becomes_a_trace_that_can_be_read_back(bench: Bench, stories: Path) -> None:
    outcome = bench.inspect()
    assert (outcome.cached, outcome.forwards) == (False, 1)
    trace = bench.store.get_trace(outcome.trace_id)
    run, text = trace.run, trace.text
    assert outcome.trace_id == trace.id == request_key(bench.request(), run.fingerprint)[:16]
    assert (run.model, run.architecture, run.layers) == ("stories260K", "llama", 5)
    assert (run.dtype, run.device, run.template, run.bos) == ("float32", "cpu", "ask", True)
    assert run.packages["torch"] == torch.__version__
    assert text.raw == SAD
    assert [t.part for t in text.tokens].count("text") == text.last
    assert trace.answer is not None
    assert sum(trace.answer.labels.values()) == pytest.approx(1, abs=1e-5)
    assert trace.lens is not None
    assert len(trace.lens.layer) == 50
    assert trace.readouts.probe == () and trace.features.sae == ()
    # The numbers are those of plain transformers on these tokens.
    ids = torch.tensor([[token.id for token in text.tokens]])
    with torch.no_grad():
        best = plain_model(stories)(ids).logits[0, -1].softmax(-1).topk(10).values
    assert list(trace.lens.probability[-10:]) == pytest.approx(best.tolist(), abs=1e-6)


def test_reopening_costs_no_forward(bench: Bench, stories: Path) -> None:
    first = bench.inspect()
    again = bench.inspect()
    assert (again.trace_id, again.cached, again.forwards) == (first.trace_id, True, 0)
    other = Bench(stories, Path(bench.cache))
    restarted = other.inspect()
    assert (restarted.trace_id, restarted.cached, restarted.forwards) == (first.trace_id, True, 0)
    other.session.close_store()


def test_activations_serve_again_where_the_request_is_another(bench: Bench) -> None:
    bench.inspect()
    again = bench.inspect(seed=3)
    assert (again.cached, again.forwards) == (False, 0)
    # These 28 have no first tokens of their own: their whole labels cost one forward, once.
    goemotions = bench.inspect(label_set="goemotions28")
    answer = bench.store.get_trace(goemotions.trace_id).answer
    assert answer is not None and answer.rule == "whole_label"
    assert goemotions.forwards == 1
    assert bench.inspect(label_set="goemotions28", seed=4).forwards == 0
    # The raw text has other tokens, so it needs a forward of its own.
    assert bench.inspect(template="raw").forwards == 1


def test_all_sites_serve_the_narrow_request_and_not_the_other_way(bench: Bench) -> None:
    assert bench.inspect(all_sites=True).forwards == 1
    assert bench.inspect().forwards == 0
    assert bench.inspect("The dog ran away.").forwards == 1
    assert bench.inspect("The dog ran away.", all_sites=True).forwards == 1


def test_the_same_request_gives_the_same_bytes(stories: Path, tmp_path: Path) -> None:
    encoded = []
    for name in ("one", "two"):
        bench = Bench(stories, tmp_path / name)
        # The second cache reaches the numbers by another way: from wider activations.
        if name == "two":
            bench.inspect(all_sites=True)
        encoded.append(msgspec.json.encode(bench.trace()))
        bench.session.close_store()
    assert encoded[0] == encoded[1]


def test_a_new_sae_costs_no_forward_and_a_known_one_no_encoding(
    bench: Bench, sae_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.inspect(all_sites=True)
    outcome = bench.inspect(saes=(str(sae_folder),))
    assert (outcome.cached, outcome.forwards) == (False, 0)
    trace = bench.store.get_trace(outcome.trace_id)
    assert [reading.site for reading in trace.saes] == ["mlp"]
    assert set(trace.features.layer) == {3}
    positions = set(trace.features.position)
    assert positions == set(range(1, len(trace.text.tokens))), "every token but BOS"
    monkeypatch.setattr("emotui.core.engine.saes.Sae.encode", None)
    known = bench.trace(saes=(str(sae_folder),), seed=1)
    assert known.features == trace.features
    assert known.saes == trace.saes


def test_the_features_are_those_of_the_hooked_activations(bench: Bench, sae_folder: Path) -> None:
    """relu(h W_enc + b_enc) on the MLP output that plain transformers computes."""
    from safetensors.torch import load_file

    trace = bench.trace(saes=(str(sae_folder),))
    assert bench.inspect(saes=(str(sae_folder),)).cached
    plain = plain_model(Path(bench.spec.model))
    seen: list[torch.Tensor] = []
    plain.model.layers[3].mlp.register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.no_grad():
        plain(torch.tensor([[token.id for token in trace.text.tokens]]))
    weights = load_file(sae_folder / "sae_weights.safetensors")
    expected = torch.relu(seen[0][0] @ weights["W_enc"] + weights["b_enc"])
    features = trace.features
    for position, index, activation in zip(
        features.position, features.index, features.activation, strict=True
    ):
        assert activation == pytest.approx(float(expected[position, index]), abs=1e-4)
    at_readout = sum(p == trace.text.readout for p in features.position)
    assert at_readout == int((expected[-1] > 0).sum())


def test_the_same_tokens_as_text_and_as_template_are_not_mixed_up(
    bench: Bench, sae_folder: Path
) -> None:
    """`X The emotion is` as a raw text has the tokens of `X` in the asking template."""
    asked = bench.trace(saes=(str(sae_folder),))
    raw = bench.trace(f"{SAD} The emotion is", template="raw", saes=(str(sae_folder),))
    assert [t.id for t in asked.text.tokens] == [t.id for t in raw.text.tokens]
    assert asked.text.last < raw.text.last
    assert asked.saes[0].mean_active != raw.saes[0].mean_active


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "empty"), (" \n\t ", "empty"), ("Lily was sad. " * 300, "too long"), ("\ud800", "decod")],
    ids=["empty", "blank", "long", "surrogate"],
)
def test_texts_that_cannot_be_read(bench: Bench, text: str, said: str) -> None:
    with pytest.raises(TextError) as caught:
        bench.inspect(text)
    assert said in caught.value.what
    assert caught.value.exit_code == 2
    assert caught.value.todo
    assert bench.store.traces() == []
    assert not bench.inspect().cached, "the engine goes on"


@pytest.mark.parametrize(
    "text",
    [
        "One line.\n\nAnother paragraph,\r\nand a third.\n",
        "escape \x1b[31mred\x1b[0m bell\x07 nul\x00",
        "[bold]markup[/bold] [/nope]",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467 שלום \u202eevil\u202c",
        "</s><s> special words",
    ],
)
def test_unusual_texts_are_kept_to_the_letter(bench: Bench, text: str) -> None:
    trace = bench.trace(text)
    assert trace.text.raw == text
    assert [t.id for t in trace.text.tokens].count(1) == 1, "one BOS"
    spans = [(t.start, t.end) for t in trace.text.tokens if t.part == "text"]
    assert spans[0][0] == 0 and spans[-1][1] == len(text)
    assert bench.inspect(text).cached


def test_the_answer_needs_room_behind_the_prompt(bench: Bench) -> None:
    """Whole labels are written behind the prompt, so the text must leave room for them."""
    model = bench.session.model(bench.spec, QuietJob())
    room = label_tokens(model.reader, "goemotions28", template_named("raw")).room
    assert room > 5
    most = 512 - 1 - room  # tokens of the text beside BOS
    text = "a" + " a" * (most - 1)
    assert len(bench.trace(text, template="raw", label_set="goemotions28").text.tokens) == 1 + most
    with pytest.raises(TextError) as caught:
        bench.inspect(text + " a", template="raw", label_set="goemotions28")
    assert f"at most {512 - room:,}" in caught.value.why
    # The first-token rule needs no room.
    assert not bench.inspect("a" + " a" * 510, template="raw").cached


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("template", "nope", UsageError),
        ("label_set", "nope", UsageError),
        ("edits", ("ablate L1/2 at all",), EditError),
        ("probes", ("no-such-probe",), ProbeError),
        ("saes", ("/no/such/folder",), SaeError),
    ],
)
def test_requests_that_cannot_be_meant(
    bench: Bench, name: str, value: object, kind: type[EmotuiError]
) -> None:
    request = msgspec.structs.replace(bench.request(), **{name: value})
    with pytest.raises(kind) as caught:
        handle(request, QuietJob(), bench.session)
    assert caught.value.what
    assert bench.store.traces() == []


@pytest.mark.parametrize("after", range(5))
def test_a_cancelled_inspection_leaves_no_trace_and_no_hook(bench: Bench, after: int) -> None:
    bench.inspect("Warm up.")

    class Cancelling(QuietJob):
        left = after

        def check(self) -> None:
            self.left -= 1
            if self.left < 0:
                raise Cancelled("The work was cancelled.")

    with pytest.raises(Cancelled):
        handle(bench.request(), Cancelling(), bench.session)
    assert len(bench.store.traces()) == 1
    model = bench.session.model(bench.spec, QuietJob())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules()]
    assert sum(hooks) == 0
    assert bench.inspect().cached is False


def test_a_damaged_entry_is_computed_again(bench: Bench) -> None:
    first = bench.trace()
    for path in Path(bench.cache).rglob("*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    again = bench.inspect()
    assert (again.cached, again.forwards) == (False, 1)
    assert bench.store.get_trace(again.trace_id) == first


def test_bfloat16_traces_hold_together(stories: Path, cache_dir: Path) -> None:
    bench = Bench(stories, cache_dir)
    exact = bench.trace()
    bench.spec = ModelSpec(model=str(stories), dtype="bfloat16")
    rough = bench.trace()
    assert rough.run.dtype == "bfloat16"
    assert rough.id != exact.id
    assert rough.answer is not None and exact.answer is not None
    assert rough.answer.labels == pytest.approx(exact.answer.labels, abs=0.05)
    bench.session.close_store()
