"""SAEs of a local SAELens folder: equal to SAELens, checked, ranked, and what a feature adds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from emotui.core.engine.capture import QuietJob, capture
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.saes import Sae, load_saes
from emotui.core.engine.text_features import features_of
from emotui.core.errors import SaeError
from emotui.core.protocol import ModelSpec
from emotui.core.records import TextRecord
from emotui.core.text import template_named

D_IN, WIDTH = 64, 256
TEXT = "Lily was sad because her toy was lost. She looked in every box and cried."


@pytest.fixture(scope="module")
def model(stories: Path) -> LoadedModel:
    return load_model(ModelSpec(model=str(stories)), QuietJob())


@pytest.fixture(scope="module")
def text(model: LoadedModel) -> TextRecord:
    return model.reader.read(TEXT, template_named("ask"), context_length=model.context_length)


def _randomised(sae: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise.abs() * 0.3 if name == "threshold" else noise * 0.2)
    return sae


def _build(kind: str, hook: str, **options: Any) -> Any:
    sae_lens = pytest.importorskip("sae_lens")
    from sae_lens.saes.sae import SAEMetadata

    names = {
        "standard": (sae_lens.StandardSAE, sae_lens.StandardSAEConfig),
        "topk": (sae_lens.TopKSAE, sae_lens.TopKSAEConfig),
        "jumprelu": (sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig),
        "gated": (sae_lens.GatedSAE, sae_lens.GatedSAEConfig),
    }
    make, make_config = names[kind]
    metadata = SAEMetadata(hook_name=hook, prepend_bos=options.pop("prepend_bos", True))
    config = make_config(d_in=D_IN, d_sae=WIDTH, metadata=metadata, **options)
    return _randomised(make(config), seed=len(hook) + len(kind))


Saved = Callable[..., Path]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """Save an SAE with SAELens and return its folder."""

    def save(
        kind: str, hook: str = "blocks.2.hook_resid_post", *, name: str = "sae", **options: Any
    ) -> Path:
        _build(kind, hook, **options).save_model(tmp_path / name)
        return tmp_path / name

    return save


def _theirs(folder: Path) -> Any:
    from sae_lens import SAE

    return SAE.load_from_disk(folder, device="cpu")


VARIANTS = [
    ("standard", {}),
    ("standard", {"apply_b_dec_to_input": False}),
    ("topk", {"k": 16}),
    ("topk", {"k": 16, "rescale_acts_by_decoder_norm": True}),
    ("jumprelu", {}),
    ("jumprelu", {"apply_b_dec_to_input": False}),
]


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_encode_and_decode_equal_saelens_bit_for_bit(
    kind: str, options: dict[str, Any], saved: Saved, model: LoadedModel, text: TextRecord
) -> None:
    folder = saved(kind, **options)
    ours = load_saes(str(folder), model).get("resid", 2)
    theirs = _theirs(folder)
    h = capture(model, [token.id for token in text.tokens]).at("resid", 2)
    for inputs in (h, h[3], torch.randn(7, 5, D_IN)):
        features = ours.encode(inputs)
        expected = theirs.encode(inputs)
        assert torch.equal(features, expected)
        assert torch.equal(ours.decode(features), theirs.decode(expected))
    assert 0 < int((ours.encode(h) > 0).sum()) < h.shape[0] * WIDTH


def test_bfloat16_weights_equal_saelens_at_the_dtype_of_the_run(
    saved: Saved, model: LoadedModel
) -> None:
    from sae_lens import SAE

    folder = saved("topk", k=8, dtype="bfloat16")
    assert load_file(folder / "sae_weights.safetensors")["W_enc"].dtype == torch.bfloat16
    h = torch.randn(9, D_IN)
    theirs = SAE.load_from_disk(folder, device="cpu", dtype="float32")
    assert torch.equal(load_saes(str(folder), model).get("resid", 2).encode(h), theirs.encode(h))


def test_the_average_norm_factor_is_folded_in_as_saelens_does(
    saved: Saved, model: LoadedModel
) -> None:
    folder = saved("standard", normalize_activations="expected_average_only_in")
    with pytest.raises(SaeError, match="not stored"):
        load_saes(str(folder), model)
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 2.5}))
    theirs = _theirs(folder)
    theirs.fold_activation_norm_scaling_factor(2.5)
    h = torch.randn(9, D_IN)
    ours = load_saes(str(folder), model).get("resid", 2)
    assert torch.equal(ours.encode(h), theirs.encode(h))
    assert torch.equal(ours.decode(ours.encode(h)), theirs.decode(theirs.encode(h)))


def test_sites_of_hook_names(saved: Saved, model: LoadedModel) -> None:
    saved("standard", "blocks.3.hook_resid_pre", name="all/a")
    saved("standard", "blocks.3.hook_attn_out", name="all/b")
    saved("standard", "blocks.0.hook_resid_pre", name="all/c")
    root = saved("standard", "blocks.4.hook_mlp_out", name="all/d").parent
    saes = load_saes(str(root), model)
    assert saes.places == [("attn", 3), ("mlp", 4), ("resid", -1), ("resid", 2)]
    assert saes.get("resid", 2).id == "all/resid_pre.3"
    assert [sae.layer for sae in saes] == [3, 4, -1, 2]
    with pytest.raises(SaeError, match=r"resid\.4") as refused:
        saes.get("resid", 4)
    assert "attn.3, mlp.4, resid.-1, resid.2" in refused.value.todo


def test_lazy_loading_under_a_budget(saved: Saved, model: LoadedModel) -> None:
    for layer in range(4):
        root = saved("standard", f"blocks.{layer}.hook_resid_post", name=f"all/{layer}").parent
    one = 2 * D_IN * WIDTH * 4
    saes = load_saes(str(root), model, budget_bytes=2 * one)
    assert len(tuple(saes)) == 4
    assert saes.loaded_bytes == 0
    first = saes.get("resid", 0).weights
    assert saes.get("resid", 0).weights is first
    second = saes.get("resid", 1).weights
    assert saes.get("resid", 0).weights is first
    assert saes.get("resid", 2).weights is not first  # layer 1, least recently used, is let go
    assert saes.loaded_bytes == 2 * one
    assert saes.get("resid", 0).weights is first
    again = saes.get("resid", 1).weights
    assert again is not second
    assert torch.equal(again.encoder, second.encoder)


def _edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "cfg.json"
    config = json.loads(path.read_text())
    metadata = changes.pop("metadata", {})
    config["metadata"].update(metadata)
    path.write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "temporal"}, "'temporal'"),
        ({"d_in": 65}, "do not fit"),
        ({"normalize_activations": "layer_norm"}, "'layer_norm'"),
        ({"reshape_activations": "hook_z"}, "does not have"),
        ({"metadata": {"hook_name": "blocks.2.hook_resid_mid"}}, "hook_resid_mid"),
        ({"metadata": {"hook_name": "blocks.9.hook_resid_post"}}, "last layer is 4"),
    ],
)
def test_what_does_not_fit_is_refused_and_named(
    changes: dict[str, Any], words: str, saved: Saved, model: LoadedModel
) -> None:
    folder = saved("standard")
    _edit_config(folder, **changes)
    with pytest.raises(SaeError, match=words) as refused:
        load_saes(str(folder), model)
    assert refused.value.what
    assert refused.value.todo


def test_gated_and_foreign_widths_are_refused(
    saved: Saved, model: LoadedModel, tmp_path: Path
) -> None:
    with pytest.raises(SaeError, match="'gated'"):
        load_saes(str(saved("gated", name="gated")), model)
    folder = saved("standard", name="wide")
    weights = load_file(folder / "sae_weights.safetensors")
    wide = {
        "W_enc": torch.randn(80, WIDTH),
        "W_dec": torch.randn(WIDTH, 80),
        "b_enc": weights["b_enc"],
        "b_dec": torch.zeros(80),
    }
    save_file(wide, folder / "sae_weights.safetensors")
    _edit_config(folder, d_in=80)
    with pytest.raises(SaeError, match="width 80; the model's have 64"):
        load_saes(str(folder), model)
    with pytest.raises(SaeError, match="does not exist"):
        load_saes(str(tmp_path / "nowhere"), model)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SaeError, match="holds no SAE"):
        load_saes(str(tmp_path / "empty"), model)


def test_a_bos_rule_that_cannot_be_kept_is_refused(
    saved: Saved, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_with_bos = saved("standard", name="with", prepend_bos=True)
    trained_without = saved("standard", name="without", prepend_bos=False)
    load_saes(str(trained_with_bos), model)
    load_saes(str(trained_without), model)
    monkeypatch.setattr(model.reader, "bos_id", None)
    load_saes(str(trained_without), model)
    with pytest.raises(SaeError, match="BOS"):
        load_saes(str(trained_with_bos), model)


def test_two_saes_for_one_place_are_refused(saved: Saved, model: LoadedModel) -> None:
    saved("standard", "blocks.3.hook_resid_pre", name="all/a")
    root = saved("topk", "blocks.2.hook_resid_post", name="all/b", k=4).parent
    with pytest.raises(SaeError, match=r"two SAEs for resid\.2"):
        load_saes(str(root), model)


def test_damaged_files_are_refused(saved: Saved, model: LoadedModel) -> None:
    folder = saved("jumprelu")
    path = folder / "sae_weights.safetensors"
    whole = path.read_bytes()

    path.write_bytes(whole[:-100])
    with pytest.raises(SaeError, match="cut short"):
        load_saes(str(folder), model)

    weights = load_file(saved("jumprelu", name="again") / "sae_weights.safetensors")
    weights["b_enc"][3] = float("nan")
    save_file(weights, path)
    saes = load_saes(str(folder), model)
    with pytest.raises(SaeError, match="b_enc holds numbers that are not finite"):
        saes.get("resid", 2).directions([0])

    del weights["threshold"], weights["b_enc"]
    save_file({**weights, "b_enc": torch.zeros(WIDTH)}, path)
    with pytest.raises(SaeError, match="threshold is absent"):
        load_saes(str(folder), model).get("resid", 2).directions([0])

    path.unlink()
    torch.save(weights, folder / "sae_weights.pt")
    with pytest.raises(SaeError, match="pickle"):
        load_saes(str(folder), model)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(SaeError, match="damaged or cut short"):
        load_saes(str(folder), model)


def test_a_pickle_under_the_name_of_safetensors_is_refused(
    saved: Saved, model: LoadedModel
) -> None:
    folder = saved("standard")
    torch.save({"W_enc": torch.zeros(2)}, folder / "sae_weights.safetensors")
    with pytest.raises(SaeError, match="pickle") as caught:
        load_saes(str(folder), model)
    assert caught.value.todo == "Save the SAE with SAELens: it writes safetensors."


def _brute_force(sae: Sae, h: Tensor, text: TextRecord) -> dict[int, dict[int, float]]:
    """Features by position, ranked one number at a time."""
    kept = {}
    for position, token in enumerate(text.tokens):
        if token.part == "special":
            continue
        values = sae.encode(h[position]).tolist()
        norms = [float(row.norm()) for row in sae.weights.decoder]
        ranked = sorted(
            (-v * n, j) for j, (v, n) in enumerate(zip(values, norms, strict=True)) if v > 0
        )
        limit = 512 if position == text.readout else 32
        kept[position] = {j: values[j] for _, j in ranked[:limit]}
    return kept


@pytest.mark.parametrize(("kind", "options"), [("standard", {}), ("topk", {"k": 16})])
def test_features_of_a_text(
    kind: str, options: dict[str, Any], saved: Saved, model: LoadedModel, text: TextRecord
) -> None:
    folder = saved(kind, **options)
    (folder / "labels.json").write_text(json.dumps({"3": "toys", "250": "loss"}))
    sae = load_saes(str(folder), model).get("resid", 2)
    activations = capture(model, [token.id for token in text.tokens])
    h = activations.at("resid", 2)
    features, reading = features_of(sae, activations, text)
    expected = _brute_force(sae, h, text)
    found: dict[int, dict[int, float]] = {}
    for position, index, value, label in zip(
        features.position, features.index, features.activation, features.label, strict=True
    ):
        found.setdefault(position, {})[index] = value
        assert label == {3: "toys", 250: "loss"}.get(index, "")
    assert text.tokens[0].special
    assert 0 not in found
    assert found.keys() == expected.keys()
    for position, values in expected.items():
        assert found[position].keys() == values.keys()
        assert found[position] == pytest.approx(values, rel=1e-5, abs=1e-6)
    inside = [p for p, token in enumerate(text.tokens) if token.part == "text"]
    active = sae.encode(h[inside])
    rebuilt = active @ sae.weights.decoder + sae.weights.decoder_bias
    centred = h[inside] - h[inside].mean(dim=0)
    explained = 1 - float((h[inside] - rebuilt).square().sum() / centred.square().sum())
    assert reading.variance_explained == pytest.approx(explained, rel=1e-4)
    assert reading.mean_active == pytest.approx(float((active > 0).sum(dim=1).float().mean()))
    assert (reading.site, reading.layer, reading.width) == ("resid", 2, WIDTH)


def test_variance_is_centred_on_the_stored_corpus_mean(
    saved: Saved, model: LoadedModel, text: TextRecord
) -> None:
    folder = saved("standard")
    mean = torch.randn(D_IN)
    save_file({"mean": mean}, folder / "statistics.safetensors")
    sae = load_saes(str(folder), model).get("resid", 2)
    activations = capture(model, [token.id for token in text.tokens])
    inside = [p for p, token in enumerate(text.tokens) if token.part == "text"]
    h = activations.at("resid", 2)[inside]
    rebuilt = sae.decode(sae.encode(h))
    expected = 1 - float((h - rebuilt).square().sum() / (h - mean).square().sum())
    _, reading = features_of(sae, activations, text)
    assert reading.variance_explained == pytest.approx(expected, rel=1e-4)


def test_a_perfect_sae_explains_everything(
    saved: Saved, model: LoadedModel, text: TextRecord
) -> None:
    folder = saved("standard", apply_b_dec_to_input=False)
    identity = torch.eye(D_IN)
    weights = {
        "W_enc": torch.cat([identity, -identity], dim=1).contiguous(),
        "W_dec": torch.cat([identity, -identity], dim=0).contiguous(),
        "b_enc": torch.zeros(2 * D_IN),
        "b_dec": torch.zeros(D_IN),
    }
    save_file(weights, folder / "sae_weights.safetensors")
    _edit_config(folder, d_sae=2 * D_IN)
    sae = load_saes(str(folder), model).get("resid", 2)
    activations = capture(model, [token.id for token in text.tokens])
    _, reading = features_of(sae, activations, text)
    assert reading.variance_explained == 1.0
    assert reading.mean_active == D_IN


def test_sites_kept_at_the_readout_alone(
    saved: Saved, model: LoadedModel, text: TextRecord
) -> None:
    folder = saved("standard", "blocks.1.hook_mlp_out")
    sae = load_saes(str(folder), model).get("mlp", 1)
    features, reading = features_of(sae, capture(model, [t.id for t in text.tokens]), text)
    assert set(features.position) == {text.readout}
    assert reading.variance_explained is None
    assert reading.mean_active == len(features.index)
    everywhere = capture(model, [t.id for t in text.tokens], all_sites=True)
    _, whole = features_of(sae, everywhere, text)
    assert whole.variance_explained is not None


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_directions_are_what_a_unit_of_each_feature_adds_to_the_reconstruction(
    kind: str, options: dict[str, Any], saved: Saved, model: LoadedModel
) -> None:
    sae = load_saes(str(saved(kind, **options)), model).get("resid", 2)
    features = sae.encode(torch.randn(5, D_IN))
    changed = features.clone()
    changed[:, 7] = 0.0
    changed[:, 9] = 2 * features[:, 9] + 1
    expected = sae.decode(changed) - sae.decode(features)
    found = (changed - features)[:, [7, 9]] @ sae.directions([7, 9])
    assert torch.allclose(found, expected, atol=1e-5)
    assert float(found.abs().max()) > 0.1


def test_the_key_follows_the_content(saved: Saved, model: LoadedModel, tmp_path: Path) -> None:
    folder = saved("standard")
    before = load_saes(str(folder), model).get("resid", 2).key
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert load_saes(str(copy), model).get("resid", 2).key == before
    (folder / "labels.json").write_text('{"1": "new"}')
    assert load_saes(str(folder), model).get("resid", 2).key != before
    _randomised_again = _build("standard", "blocks.2.hook_resid_post")
    with torch.no_grad():
        _randomised_again.W_enc.mul_(2)
    _randomised_again.save_model(copy)
    assert load_saes(str(copy), model).get("resid", 2).key != before
