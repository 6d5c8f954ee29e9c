"""A transformer built by hand, in which one known feature causes the answer: it is found.

Embeddings carry what a token means in coordinates of its own; the attention of layer 1 carries it
to the readout; the label tokens are read from these coordinates. Everything else is idle or noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support_models import LAYERS, WIDTH, copied, tiny_folder
from support_saes import write_sae
from torch import Tensor
from transformers import LlamaForCausalLM

from emotui.cache.store import Store
from emotui.core.emotions import LABEL_SETS
from emotui.core.engine.answer import label_tokens
from emotui.core.engine.capture import QuietJob, capture
from emotui.core.engine.exact import ablations
from emotui.core.engine.inspect import inspect
from emotui.core.engine.instruments import Instruments
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.saes import load_saes
from emotui.core.protocol import InspectRequest, ModelSpec
from emotui.core.records import Trace
from emotui.core.text import template_named

TEXT = "My dog died last week, and the house is very quiet now."
LABELS = LABEL_SETS["ekman7"]
SADNESS, JOY = LABELS.index("sadness"), LABELS.index("joy")
CARRIER = 1
"""The layer whose attention carries the meaning to the readout."""


@torch.no_grad()
def planted_model(root: Path) -> Path:
    folder = copied(tiny_folder("llama"), root / "planted")
    reader = load_model(ModelSpec(str(folder)), QuietJob()).reader
    template = template_named("ask")
    tokens = reader.read(TEXT, template).tokens
    meaningful = next(token for token in tokens if token.part == "text").id
    model = LlamaForCausalLM.from_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    meaning = slice(0, len(LABELS))
    embedding = torch.randn(512, WIDTH, generator=generator)
    embedding[:, meaning] = 0
    embedding[meaningful, SADNESS] = 40.0
    embedding[tokens[-1].id, JOY] = 0.5
    model.model.embed_tokens.weight.copy_(embedding)
    model.lm_head.weight.zero_()
    for number, token in enumerate(label_tokens(reader, "ekman7", template).deciding):
        model.lm_head.weight[token, number] = 4.0
    model.model.norm.weight.fill_(1.0)
    for layer, block in enumerate(model.model.layers):
        block.mlp.down_proj.weight.zero_()
        block.self_attn.o_proj.weight.zero_()
        block.input_layernorm.weight.fill_(1.0)
        if layer == CARRIER:
            # No query and no key: every token is attended to alike.
            block.self_attn.q_proj.weight.zero_()
            block.self_attn.k_proj.weight.zero_()
            block.self_attn.v_proj.weight.zero_()
            for number in range(len(LABELS)):
                block.self_attn.v_proj.weight[number, number] = 1.0
                block.self_attn.o_proj.weight[number, number] = 10.0
    model.save_pretrained(folder)
    return folder


def coordinate_saes(root: Path) -> Path:
    """Write SAEs with a feature for each coordinate and one for each with its sign turned."""
    for layer in range(LAYERS):
        hook = f"blocks.{layer}.hook_resid_post"
        folder = write_sae(root / f"layer_{layer}", d_in=WIDTH, width=2 * WIDTH, hook=hook, k=None)
        weights = load_file(folder / "sae_weights.safetensors")
        both = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
        zero = {name: torch.zeros_like(value) for name, value in weights.items()}
        save_file(
            {**zero, "W_dec": both, "W_enc": both.T.contiguous()},
            folder / "sae_weights.safetensors",
        )
    return root


class Planted:
    def __init__(self, root: Path) -> None:
        self.folder = planted_model(root)
        self.saes = coordinate_saes(root / "saes")
        self.model: LoadedModel = load_model(ModelSpec(str(self.folder)), QuietJob())
        self.store = Store.open(root / "cache")
        self.instruments = Instruments(self.model, self.store)

    def trace(self, *edits: str) -> Trace:
        request = InspectRequest(
            spec=ModelSpec(str(self.folder)),
            text=TEXT,
            cache_dir=str(self.store.root),
            saes=(str(self.saes),),
            edits=edits,
        )
        done = inspect(request, self.model, self.instruments, self.store, QuietJob())
        return self.store.get_trace(done.trace_id)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planted]:
    made = Planted(tmp_path_factory.mktemp("planted"))
    yield made
    made.store.close()


def answer_of(trace: Trace) -> str:
    assert trace.answer is not None and trace.answer.rule == "first_token"
    return max(trace.answer.labels, key=trace.answer.labels.__getitem__)


def test_the_planted_model_says_what_was_planted(planted: Planted) -> None:
    assert answer_of(planted.trace()) == "sadness"


def test_of_all_active_features_only_the_planted_ones_flip_the_answer(planted: Planted) -> None:
    trace = planted.trace()
    ids = [token.id for token in trace.text.tokens]
    run = capture(planted.model, ids)
    saes = load_saes(str(planted.saes), planted.model)
    features = [
        (sae, int(index))
        for sae in saes
        for index in sae.encode(run.at("resid", sae.layer)[-1]).nonzero().flatten()
    ]
    assert len(features) > 3 * WIDTH
    tokens = label_tokens(planted.model.reader, "ekman7", template_named("ask"))
    rows = ablations(planted.model, run, features, position=len(ids) - 1)
    answers: Tensor = rows.logits[:, list(tokens.deciding)].argmax(dim=-1)
    flipping = {
        (sae.layer, index)
        for (sae, index), answer in zip(features, answers.tolist(), strict=True)
        if answer != SADNESS
    }
    assert flipping == {(layer, SADNESS) for layer in range(CARRIER, LAYERS)}
    assert set(answers.tolist()) == {SADNESS, JOY}


def test_the_ranking_of_the_screen_begins_with_the_planted_features(planted: Planted) -> None:
    """Of all features of all layers and tokens, by attribution."""
    columns = planted.trace().features
    values = [value or 0.0 for value in columns.attribution]
    order = sorted(range(len(values)), key=lambda row: values[row])
    count = LAYERS - CARRIER
    first = {(columns.layer[r], columns.index[r], columns.position[r]) for r in order[:count]}
    readout = planted.trace().text.readout
    assert first == {(layer, SADNESS, readout) for layer in range(CARRIER, LAYERS)}
    # What is next moves the answer by half as much at most.
    rest = max(abs(values[row]) for row in order[count:])
    assert rest < 0.5 * abs(values[order[count - 1]])


def test_the_effect_of_the_planted_feature_stands_out_among_its_controls(planted: Planted) -> None:
    trace = planted.trace(f"ablate L2/{SADNESS} at readout")
    assert answer_of(trace) == "joy"
    effect = next(effect for effect in trace.effects if effect.metric == "answer.sadness")
    matched = effect.controls[0]
    assert len(matched.deltas) == 32 and matched.rank == 1
    assert max(abs(delta) for delta in matched.deltas) < 0.3 * abs(effect.delta)
    # Directions drawn with the covariance lie along what was planted: they prove nothing here.
    assert "Rank 1 of 33" in effect.verdict


def test_a_control_does_not_flip_the_answer(planted: Planted) -> None:
    trace = planted.trace()
    controls = {
        trace.features.index[row]
        for row, (layer, position) in enumerate(
            zip(trace.features.layer, trace.features.position, strict=True)
        )
        if layer == 2 and position == trace.text.readout
    } - {SADNESS}
    for index in sorted(controls)[:5]:
        assert answer_of(planted.trace(f"ablate L2/{index} at readout")) == "sadness"


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (f"knock attn L{CARRIER} zero", "joy"),
        (f"knock head L{CARRIER}.0 zero", "joy"),
        (f"knock head L{CARRIER}.1 zero", "sadness"),
        ("knock attn L2-3 zero", "sadness"),
        ("knock mlp L0-3 zero", "sadness"),
        (f"ablate L0/{SADNESS} at all", "joy"),
        (f"ablate L{CARRIER}/{SADNESS} at all", "sadness"),
        (f"ablate L0/{SADNESS} at readout", "sadness"),
    ],
)
def test_only_what_carries_the_meaning_matters(planted: Planted, line: str, answer: str) -> None:
    """Before the carrier the meaning is at its token, behind it at the readout."""
    trace = planted.trace(line)
    assert answer_of(trace) == answer
    effect = next(effect for effect in trace.effects if effect.metric == "answer.sadness")
    # What lowers the probability without turning the answer is none of these.
    idle = answer == "sadness"
    assert ("No measurable effect" in effect.verdict) is idle


def test_patching_carries_the_meaning_over(planted: Planted) -> None:
    """The other text begins with another word, so nothing sad is planted in it."""
    other = "The bus came at nine."
    for layer, answer in ((0, "sadness"), (CARRIER, "joy"), (LAYERS - 1, "joy")):
        assert answer_of(planted.trace(f'patch resid L{layer} from "{other}"')) == answer
    assert answer_of(planted.trace(f'patch attn L{CARRIER} from "{other}"')) == "joy"
