"""SAEs on the heads' outputs (hook_z): read, encoded and edited before the output projection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support_models import LAYERS, WIDTH, plain_model, tiny_folder
from support_saes import write_sae

from emotui.core.edits import parse_edit
from emotui.core.engine import statistics
from emotui.core.engine.answer import label_tokens
from emotui.core.engine.capture import QuietJob
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.operations import Session, handle
from emotui.core.engine.saes import load_saes
from emotui.core.engine.sites import SITE_TABLES
from emotui.core.errors import EditError, SaeError
from emotui.core.protocol import Inspected, InspectRequest, ModelSpec
from emotui.core.records import Trace
from emotui.core.sae_directory import chosen
from emotui.core.text import DEFAULT_TEMPLATE, template_named

TEXT = "My dog died last week, and the house is very quiet now."
HEADS, HEAD, LAYER = 4, 16, 1
HOOK = f"blocks.{LAYER}.attn.hook_z"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma-2 whose heads together are wider than its residual stream: 64 against 48."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    small = tiny_folder("gemma2")
    config = Gemma2Config.from_pretrained(small)
    config.head_dim = config.query_pre_attn_scalar = HEAD
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(config)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.12
    root = tmp_path_factory.mktemp("heads")
    model.save_pretrained(root / "model")
    for file in small.glob("tokenizer*"):
        (root / "model" / file.name).write_bytes(file.read_bytes())
    sae = write_sae(root / "saes" / "z", d_in=HEADS * HEAD, hook=HOOK, k=None)
    config_file = sae / "cfg.json"
    text = config_file.read_text().replace(
        '"reshape_activations": "none"', '"reshape_activations": "hook_z"'
    )
    config_file.write_text(text)
    write_sae(root / "saes" / "mlp", d_in=WIDTH, hook=f"blocks.{LAYER}.hook_mlp_out", seed=3)
    return root


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load_model(ModelSpec(str(folder / "model")), QuietJob())


def _inspected(folder: Path, cache: Path, session: Session, *edits: str) -> Trace:
    request = InspectRequest(
        spec=ModelSpec(str(folder / "model")),
        text=TEXT,
        cache_dir=str(cache),
        saes=(str(folder / "saes"),),
        edits=edits,
    )
    done = handle(request, QuietJob(), session)
    assert isinstance(done, Inspected)
    return session.store(str(cache)).get_trace(done.trace_id)


def test_features_are_sae_lens_on_transformer_lens_hook_z(
    folder: Path, tmp_path: Path, model: LoadedModel
) -> None:
    from sae_lens import SAE
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    session = Session()
    trace = _inspected(folder, tmp_path / "cache", session)
    session.close_store()
    bridge = TransformerBridge.boot_transformers(
        str(folder / "model"),
        hf_model=plain_model(folder / "model"),
        tokenizer=AutoTokenizer.from_pretrained(folder / "model"),
        device="cpu",
        dtype=torch.float32,
    )
    ids = torch.tensor([[token.id for token in trace.text.tokens]])
    with torch.no_grad():
        _, cache = bridge.run_with_cache(ids)
        z = cache[HOOK]
        assert z.shape == (1, ids.shape[1], HEADS, HEAD)
        theirs = SAE.load_from_disk(str(folder / "saes" / "z"), device="cpu")
        encoded = theirs.encode(z)[0]
    features = trace.features
    rows = [row for row, site in enumerate(features.site) if site == "z"]
    assert len(rows) > 20
    assert {features.layer[row] for row in rows} == {LAYER}
    assert {features.sae[row] for row in rows} == {f"saes/z.{LAYER}"}
    for row in rows:
        expected = float(encoded[features.position[row], features.index[row]])
        assert features.activation[row] == pytest.approx(expected, abs=1e-4)
    active = {index for index in range(64) if encoded[trace.text.readout, index] > 0}
    kept = {features.index[row] for row in rows if features.position[row] == trace.text.readout}
    assert kept == active


def test_an_edit_acts_before_the_output_projection(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: LoadedModel
) -> None:
    """The trace of an ablation has the answer of a plain model with the row taken out of z."""
    few = statistics.statistics_texts()[:24]
    monkeypatch.setattr(statistics, "statistics_texts", lambda: few)
    session = Session()
    before = _inspected(folder, tmp_path / "cache", session)
    columns = before.features
    row = max(
        (row for row, site in enumerate(columns.site) if site == "z"),
        key=lambda row: columns.activation[row],
    )
    line = f"ablate z:L{LAYER}/{columns.index[row]} at all"
    assert str(parse_edit(line)) == line
    after = _inspected(folder, tmp_path / "cache", session, line)
    steered = _inspected(
        folder,
        tmp_path / "cache",
        session,
        line.replace("ablate", "steer", 1).replace(" at", " +2 at"),
    )
    session.close_store()
    sae = load_saes(str(folder / "saes"), model).get("z", LAYER)
    direction = sae.directions([columns.index[row]])[0]
    plain = plain_model(folder / "model")
    inside = [p for p, token in enumerate(after.text.tokens) if token.part == "text"]

    def ablate(_module: object, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        z = inputs[0].clone()
        z[0, inside] -= sae.encode(z[0, inside])[:, [columns.index[row]]] * direction
        return (z, *inputs[1:])

    block: Any = plain.get_submodule(SITE_TABLES["gemma2"].blocks)[LAYER]
    hook = block.self_attn.o_proj.register_forward_pre_hook(ablate)
    with torch.no_grad():
        ids = torch.tensor([[token.id for token in after.text.tokens]])
        logits = plain(ids).logits[0, -1]
    hook.remove()
    assert before.answer is not None and after.answer is not None and after.lens is not None
    assert after.answer.labels != before.answer.labels
    top = [
        p
        for at, p in zip(after.lens.layer, after.lens.probability, strict=True)
        if at == LAYERS - 1
    ]
    assert top == pytest.approx(logits.softmax(dim=-1).topk(len(top)).values.tolist(), rel=1e-3)
    assert steered.intervention is not None and steered.intervention.delta_norm > 0
    assert any(control.deltas for effect in after.effects for control in effect.controls)


def test_attributions_are_the_slope_along_the_feature(
    folder: Path, tmp_path: Path, model: LoadedModel
) -> None:
    """-f <D, dm/dz> against a finite difference of a plain model's margin."""
    session = Session()
    trace = _inspected(folder, tmp_path / "cache", session)
    session.close_store()
    columns = trace.features
    rows = [r for r, site in enumerate(columns.site) if site == "z" and columns.attribution[r]]
    row = max(rows, key=lambda r: abs(columns.attribution[r] or 0.0))
    sae = load_saes(str(folder / "saes"), model).get("z", LAYER)
    step = 1e-3 * columns.activation[row] * sae.directions([columns.index[row]])[0]
    plain = plain_model(folder / "model").double()
    block: Any = plain.get_submodule(SITE_TABLES["gemma2"].blocks)[LAYER]
    labels = label_tokens(model.reader, "ekman7", template_named(DEFAULT_TEMPLATE))
    assert trace.answer is not None and trace.attribution is not None
    own = labels.labels.index(trace.attribution.metric.removeprefix("answer."))
    ids = [token.id for token in trace.text.tokens]

    def margin(sign: float) -> float:
        def moved(_module: object, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            z = inputs[0].clone()
            z[0, columns.position[row]] += sign * step
            return (z, *inputs[1:])

        hook = block.self_attn.o_proj.register_forward_pre_hook(moved)
        with torch.no_grad():
            scores = plain(torch.tensor([[*ids, *labels.prefix]])).logits[0, -1][
                list(labels.deciding)
            ]
        hook.remove()
        others = [i for i in range(len(scores)) if i != own]
        return float(scores[own] - scores[others].mean())

    slope = (margin(-1) - margin(+1)) / 2e-3
    assert columns.attribution[row] == pytest.approx(slope, rel=0.02)


def test_words_of_a_feature_go_through_the_output_projection(model: LoadedModel) -> None:
    """What one unit writes, against the difference that it makes to the attention's own output."""
    block: Any = model.sites.blocks[LAYER]
    vector = torch.randn(1, HEADS * HEAD, generator=torch.Generator().manual_seed(5))
    written = model.sites.written_by_heads(LAYER, vector)
    expected = block.post_attention_layernorm(vector @ block.self_attn.o_proj.weight.T)
    torch.testing.assert_close(written, expected)
    assert written.shape == (1, WIDTH)


def test_where_several_saes_are_loaded_the_site_names_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mlp:` and `z:` tell two SAEs of a layer apart; two of one place cannot be told apart."""
    few = statistics.statistics_texts()[:24]
    monkeypatch.setattr(statistics, "statistics_texts", lambda: few)
    session = Session()
    trace = _inspected(folder, tmp_path / "cache", session)
    assert {(sae.sae, sae.site) for sae in trace.saes} == {
        (f"saes/z.{LAYER}", "z"),
        (f"saes/mlp.{LAYER}", "mlp"),
    }
    columns = trace.features
    row = columns.site.index("mlp")
    line = f"ablate mlp:L{LAYER}/{columns.index[row]} at all"
    edited = _inspected(folder, tmp_path / "cache", session, line)
    assert edited.edits == (line,)
    another = write_sae(tmp_path / "another", d_in=WIDTH, hook=f"blocks.{LAYER}.hook_mlp_out")
    request = InspectRequest(
        spec=ModelSpec(str(folder / "model")),
        text=TEXT,
        cache_dir=str(tmp_path / "cache"),
        saes=(str(folder / "saes"), str(another)),
        edits=(line,),
    )
    with pytest.raises(EditError, match="several SAEs") as caught:
        handle(request, QuietJob(), session)
    session.close_store()
    assert f"saes/mlp.{LAYER}, another/mlp.{LAYER}" in caught.value.why


def test_a_width_that_is_not_that_of_the_heads_is_refused(
    tmp_path: Path, model: LoadedModel
) -> None:
    write_sae(tmp_path / "z", d_in=WIDTH, hook=HOOK)
    with pytest.raises(SaeError, match="does not fit the model") as caught:
        load_saes(str(tmp_path / "z"), model)
    assert "width 48; the model's have 64 (all heads together)" in caught.value.why


def test_gemma_scope_attention_saes_are_readable() -> None:
    release, saes = chosen("gemma-scope-2b-pt-att-canonical:layer_*/width_16k/canonical")
    assert release.readable and len(saes) == 26
