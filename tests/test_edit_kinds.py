"""Knock-outs, patches, promotion, projection and modulation against plain PyTorch hooks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from support_edits import (
    EMOTIONS,
    TEXTS,
    groups_under,
    ids_of,
    materials_of,
    random_probe,
    read,
)
from support_hooks import Change, arriving, changed_run
from support_models import LAYERS, WIDTH, tiny_model
from support_saes import write_sae
from test_intervene import FAMILIES, TOLERANCE, in_dtype
from torch import Tensor

from emotui.cache.statistics import emotion_texts
from emotui.cache.store import Store
from emotui.core.corpus import APPRAISALS, load_situations
from emotui.core.edits import ModulateEdit, Source, parse_edit
from emotui.core.engine.appraisals import modulation, regression, ridge
from emotui.core.engine.capture import QuietJob, capture
from emotui.core.engine.emotion_means import EmotionMeans, emotion_means
from emotui.core.engine.intervene import EditGroup, hooks_of, modulation_at, places_of
from emotui.core.engine.materials import Materials, Other
from emotui.core.engine.model import LoadedModel
from emotui.core.engine.saes import load_saes
from emotui.core.errors import EditError
from emotui.core.text import template_named

OTHER_TEXT = "Lily was happy."


@pytest.fixture(scope="module", params=[(f, d) for f in FAMILIES for d in TOLERANCE], ids=str)
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return in_dtype(*request.param)


def check(
    model: LoadedModel, groups: tuple[EditGroup, ...], changes: Mapping[tuple[str, int], Change]
) -> None:
    """Hold edits to a run with ordinary hooks, and to having an effect."""
    ids = ids_of(model)
    edited = capture(model, ids, hooks=hooks_of(groups)).logits
    expected = changed_run(model, ids, changes)
    tolerance = TOLERANCE[model.dtype]
    assert (edited - expected).abs().max() < tolerance
    assert (edited - changed_run(model, ids, {})).abs().max() > 10 * tolerance


def replacing(positions: list[int], values: Tensor, columns: slice = slice(None)) -> Change:
    """Return a change that overwrites columns at positions."""

    def change(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        for row, position in enumerate(positions):
            changed[0, position, columns] = values[row].to(tensor)
        return changed

    return change


@pytest.mark.parametrize("site", ["attn", "mlp"])
@pytest.mark.parametrize("where", ["readout", "all"])
def test_zero_and_mean_knock_out_a_window(model: LoadedModel, site: str, where: str) -> None:
    text = read(model)
    rows = [i for i, token in enumerate(text.tokens) if token.part == "text"]
    positions, kind = ([text.readout], "readout") if where == "readout" else (rows, "text")
    materials = materials_of(model)
    for how in ("zero", "mean"):
        groups = groups_under(materials, f"knock {site} L1-2 {how} at {where}")
        changes = {}
        for layer in (1, 2):
            mean = materials.statistics.means[f"{site}.{kind}"][layer]
            value = torch.zeros(WIDTH) if how == "zero" else mean
            changes[site, layer] = replacing(positions, value.expand(len(positions), -1))
        check(model, groups, changes)
        assert places_of(groups) == 2 * len(positions)


def test_a_random_knock_out_keeps_the_norm_and_nothing_else(model: LoadedModel) -> None:
    ids, at = ids_of(model), read(model).readout
    h = arriving(model, ids, "mlp", 1)[at]
    (group,) = groups_under(materials_of(model), "knock mlp L1 random")
    after = h + group.delta(h[None], [at])[0]
    assert float(after.norm()) == pytest.approx(float(h.norm()), rel=1e-5)
    assert abs(float(torch.cosine_similarity(h, after, dim=0))) < 0.7
    check(model, (group,), {("mlp", 1): replacing([at], after[None])})
    (again,) = groups_under(materials_of(model), "knock mlp L1 random")
    (other,) = groups_under(materials_of(model, seed=1), "knock mlp L1 random")
    assert torch.equal(again.delta(h[None], [at]), group.delta(h[None], [at]))
    assert not torch.allclose(other.delta(h[None], [at]), group.delta(h[None], [at]))


def test_resampling_takes_what_one_text_of_the_corpus_has(model: LoadedModel) -> None:
    materials = materials_of(model)
    at = read(model).readout
    (group,) = groups_under(materials, "knock attn L2 resample")
    h = arriving(model, ids_of(model), "attn", 2)[at]
    after = h + group.delta(h[None], [at])[0]
    samples = materials.statistics.samples["attn.readout"][2]
    assert len(samples) == TEXTS
    distance = (samples - after).abs().amax(dim=-1)
    assert int((distance < 1e-5).sum()) == 1
    check(model, (group,), {("attn", 2): replacing([at], samples[distance.argmin()][None])})


@pytest.mark.parametrize("how", ["zero", "mean", "random", "resample"])
def test_a_head_is_its_columns_before_the_output_projection(model: LoadedModel, how: str) -> None:
    at, size = read(model).readout, 12  # 48 wide, 4 heads
    h = arriving(model, ids_of(model), "z", 1)[at]
    materials = materials_of(model)
    (group,) = groups_under(materials, f"knock head L1.2 {how}")
    added = group.delta(h[None], [at])[0]
    assert not added[: 2 * size].any() and not added[3 * size :].any()
    columns = slice(2 * size, 3 * size)
    after = (h + added)[columns]
    if how == "zero":
        expected = torch.zeros(size)
    elif how == "mean":
        expected = materials.statistics.means["z.readout"][1][columns]
    else:
        expected = after
        if how == "random":
            assert float(after.norm()) == pytest.approx(float(h[columns].norm()), rel=1e-5)
        else:
            samples = materials.statistics.samples["z.readout"][1][:, columns]
            assert (samples - after).abs().amax(dim=-1).min() < 1e-5
    check(model, (group,), {("z", 1): replacing([at], expected[None], columns)})


@pytest.mark.parametrize("site", ["resid", "attn", "mlp"])
@pytest.mark.parametrize("where", ["readout", "last"])
def test_a_patch_is_what_the_other_text_has(model: LoadedModel, site: str, where: str) -> None:
    text, source = read(model), read(model, OTHER_TEXT)
    ids = [token.id for token in source.tokens]

    def other(asked: Source) -> Other:
        assert asked == Source("text", OTHER_TEXT)
        return capture(model, ids, all_sites=True), source

    line = f'patch {site} L1-2 from "{OTHER_TEXT}" at {where}'
    groups = groups_under(materials_of(model, other=other), line)
    to, at = (text.readout, source.readout) if where == "readout" else (text.last, source.last)
    changes = {
        (site, layer): replacing([to], arriving(model, ids, site, layer)[at][None])
        for layer in (1, 2)
    }
    check(model, groups, changes)


@pytest.mark.parametrize("along", ["", " along row"])
@pytest.mark.parametrize("where", ["readout", "all"])
def test_promoting_adds_the_unit_direction_at_each_layer(
    model: LoadedModel, where: str, along: str
) -> None:
    text = read(model)
    rows = [i for i, token in enumerate(text.tokens) if token.part == "text"]
    positions = [text.readout] if where == "readout" else rows
    probe = random_probe(model)
    materials = materials_of(model, probes=[probe])
    groups = groups_under(materials, f"promote joy L1-2 -0.3{along} at {where}")

    def adding(layer: int) -> Change:
        row = probe.weight[layer + 1, :, EMOTIONS.index("joy")].double()
        if not along:  # joy less the mean of anger and neutral, the probe's other emotions
            anger, joy, neutral, _pride = materials.emotion_means.means[layer].double()
            row = joy - (anger + neutral) / 2
        strength = -0.3 * float(materials.statistics.norms["resid.text"][layer + 1])

        def change(tensor: Tensor) -> Tensor:
            changed = tensor.clone()
            changed[0, positions] += (strength * row / row.norm()).to(tensor)
            return changed

        return change

    check(model, groups, {("resid", layer): adding(layer) for layer in (1, 2)})


@pytest.mark.parametrize("window", ["", " L2"])
def test_projecting_out_leaves_nothing_along_the_row(model: LoadedModel, window: str) -> None:
    at = read(model).readout
    probe = random_probe(model)
    groups = groups_under(materials_of(model, probes=[probe]), f"project out anger{window}")

    def without(layer: int) -> Change:
        row = probe.weight[layer + 1, :, EMOTIONS.index("anger")].to(model.dtype)

        def change(tensor: Tensor) -> Tensor:
            changed = tensor.clone()
            h = changed[0, at]
            changed[0, at] = h - (h @ row) / (row @ row) * row
            return changed

        return change

    layers = range(LAYERS) if window == "" else [2]
    check(model, groups, {("resid", layer): without(layer) for layer in layers})
    edited = capture(model, ids_of(model), hooks=hooks_of(groups))
    row = probe.weight[3, :, EMOTIONS.index("anger")].to(model.dtype)
    assert abs(float(edited.resid[3, at] @ row)) < TOLERANCE[model.dtype]


def test_modulating_moves_some_appraisals_and_holds_others(model: LoadedModel) -> None:
    at = read(model).readout
    materials = materials_of(model)
    groups = groups_under(
        materials,
        "modulate +other_agency -pleasantness L1-2 +0.4 keep predictability effort",
    )

    def row(name: str, layer: int) -> Tensor:
        return materials.appraisals.rows[layer, APPRAISALS.index(name)].double()

    def moved(layer: int) -> Change:
        kept = torch.stack([row("predict_event", layer), row("effort", layer)])
        wanted = row("other_responsblt", layer) - row("pleasantness", layer)
        # P = W^T (W W^T)^-1 W, as METHODS 1.7 writes it
        projection = kept.T @ torch.linalg.inv(kept @ kept.T) @ kept
        v = wanted - projection @ wanted
        assert (kept @ v).abs().max() < 1e-9
        strength = 0.4 * float(materials.statistics.norms["resid.text"][layer + 1])

        def change(tensor: Tensor) -> Tensor:
            changed = tensor.clone()
            changed[0, at] += (strength * v / v.norm()).to(tensor)
            return changed

        return change

    check(model, groups, {("resid", layer): moved(layer) for layer in (1, 2)})


def test_edits_at_one_place_act_in_the_order_they_were_made(
    model: LoadedModel, tmp_path: Path
) -> None:
    at, ids = read(model).readout, ids_of(model)
    folder = write_sae(tmp_path / "sae", d_in=WIDTH, hook="blocks.1.hook_resid_post", seed=1)
    saes = list(load_saes(str(folder), model))
    probe = random_probe(model)
    materials = materials_of(model, saes=saes, probes=[probe])
    h = arriving(model, ids, "resid", 1)[at]
    row = probe.weight[2, :, EMOTIONS.index("joy")].double()
    unit = (row / row.norm()).to(h)
    strength = 2.0 * float(materials.statistics.norms["resid.text"][2])
    promoted = h + strength * unit
    index = int(saes[0].encode(promoted).argmax())
    f = saes[0].encode(promoted)[index]
    expected = promoted - f * saes[0].weights.decoder[index]
    lines = ("promote joy L1 +2 along row", f"ablate L1/{index} at readout")
    check(
        model,
        groups_under(materials, *lines),
        {("resid", 1): replacing([at], expected[None])},
    )
    # The other way round, the feature is read before the direction is added.
    g = saes[0].encode(h)[index]
    other_way = h - g * saes[0].weights.decoder[index] + strength * unit
    (group,) = groups_under(materials, *reversed(lines))
    assert (h + group.delta(h[None], [at])[0] - other_way).abs().max() < TOLERANCE[model.dtype]


def test_nothing_changes_where_an_edit_changes_nothing(model: LoadedModel) -> None:
    """Promoting by zero, and patching from the text itself, give the parent's very numbers."""
    text, ids = read(model), ids_of(model)
    clean = capture(model, ids, all_sites=True)
    materials = materials_of(model, probes=[random_probe(model)], other=lambda _s: (clean, text))
    for line in ("promote joy L1-3 +0", 'patch attn L1 from "same"', 'patch resid L2 from "same"'):
        edited = capture(model, ids, hooks=hooks_of(groups_under(materials, line)))
        assert torch.equal(edited.logits, clean.logits), line


def test_the_emotions_means_are_those_of_texts_run_one_by_one(tmp_path: Path) -> None:
    model = tiny_model("llama")
    chosen = emotion_texts()
    assert Counter(one.emotion for one in chosen) == dict.fromkeys(
        {one.emotion for one in load_situations()}, 32
    )
    assert {one.split for one in chosen} == {"train"}
    assert len({one.pair for one in chosen}) == len(chosen)
    assert len({one.topic for one in chosen if one.emotion == "joy"}) > 15
    with Store.open(tmp_path) as store:
        found = emotion_means(model, template_named("ask"), store, QuietJob())
        before = model.forwards
        again = emotion_means(model, template_named("ask"), store, QuietJob())
        assert model.forwards == before and torch.equal(again.means, found.means)
    texts = [one.text for one in chosen if one.emotion == "fear"]
    states = [capture(model, ids_of(model, text)).resid[3, -1].double() for text in texts]
    mean = torch.stack(states).mean(dim=0)
    ours = found.means[2, found.emotions.index("fear")].double()
    assert (ours - mean).abs().max() < 1e-4


def test_as_released_nothing_is_kept(model: LoadedModel) -> None:
    """The sum of the changed rows alone, as in the published code; what would survive is told."""
    materials = materials_of(model)
    line = "modulate +other_agency -pleasantness L1 +0.4 {}keep predictability effort"
    kept, released = (parse_edit(line.format(word)) for word in ("", "released "))
    assert isinstance(kept, ModulateEdit) and isinstance(released, ModulateEdit)
    rows = materials.appraisals.rows[1].double()
    named = {name: rows[APPRAISALS.index(name)] for name in APPRAISALS}
    plain = named["other_responsblt"] - named["pleasantness"]
    held, loose = (modulation_at(edit, 1, materials) for edit in (kept, released))
    assert torch.allclose(loose.unit, plain / plain.norm())
    assert loose.surviving == held.surviving < 1
    fixed = torch.stack([named["predict_event"], named["effort"]])
    fixed = fixed / fixed.norm(dim=-1, keepdim=True)
    assert max(abs(cosine) for cosine in held.along_kept) < 1e-9
    assert loose.along_kept == pytest.approx((fixed @ loose.unit).tolist())
    assert max(abs(cosine) for cosine in loose.along_kept) > 0.01


# What is refused


def refused(materials: Materials, line: str) -> EditError:
    with pytest.raises(EditError) as caught:
        groups_under(materials, line)
    assert "stayed as they were" in caught.value.todo
    return caught.value


def test_what_is_not_there_is_named_beside_what_is() -> None:
    model = tiny_model("llama")
    materials = materials_of(model, probes=[random_probe(model)])
    assert "layers 0 to 3" in refused(materials, "knock attn L2-4 mean").why
    assert "layers 0 to 3" in refused(materials, "promote joy L4 +0.1").why
    assert "heads 0 to 3" in refused(materials, "knock head L1.4").why
    wrong = refused(materials, "promote envy L1 +0.1")
    assert "'envy'" in wrong.what and "anger, joy, neutral" in wrong.why
    wrong = refused(materials, "project out envy")
    assert "'envy'" in wrong.what
    wrong = refused(materials, "modulate +valence L1 +0.1")
    assert "'valence'" in wrong.what and "pleasantness" in wrong.why
    wrong = refused(materials, "modulate +effort L1 +0.1 keep calm")
    assert "'calm'" in wrong.what
    wrong = refused(materials, "modulate +other_agency L1 +0.1 keep other_responsblt")
    assert "named twice" in wrong.what
    assert "no readout probe" in refused(materials_of(model), "promote joy L1 +0.1").what
    materials.emotion_means = EmotionMeans(("anger", "neutral"), torch.ones(LAYERS, 2, WIDTH))
    wrong = refused(materials, "promote joy L1 +0.1")
    assert "no texts" in wrong.what and "anger, neutral" in wrong.why and "along row" in wrong.todo
    assert "no direction" in refused(materials, "promote anger L1 +0.1").what


def test_a_mean_is_not_made_up_for_template_tokens() -> None:
    materials = materials_of(tiny_model("llama"))
    for how in ("mean", "resample"):
        assert "Position 0" in refused(materials, f"knock attn L1 {how} at 0").what
    groups_under(materials, "knock attn L1 zero at 0")


def test_kept_appraisals_that_cannot_be_told_apart_are_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(3, 20, generator=generator)
    with pytest.raises(EditError, match="cannot be told apart"):
        modulation([(1, c)], [a, a + 1e-6 * b])
    with pytest.raises(EditError, match="Nothing is left"):
        modulation([(1, a + b)], [a, b])
    with pytest.raises(EditError, match="Nothing is left"):
        modulation([(1, a), (-1, a)], [])
    assert modulation([(1, a)], []).surviving == pytest.approx(1)


def test_the_surviving_share_is_the_sine_of_the_angle() -> None:
    a = torch.tensor([1.0, 0.0])
    b = torch.tensor([3.0, 4.0])
    found = modulation([(1, b)], [a])
    assert found.surviving == pytest.approx(0.8)
    assert found.unit.tolist() == pytest.approx([0, 1])


def test_aliases_mean_the_corpus_appraisals() -> None:
    materials = materials_of(tiny_model("llama"))
    (short,) = groups_under(materials, "modulate +other_agency L1 +0.1 keep predictability")
    (long,) = groups_under(materials, "modulate +other_responsblt L1 +0.1 keep predict_event")
    assert short.identity == long.identity


def test_ridge_equals_scikit_learn() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(90, 12, generator=generator, dtype=torch.float64)
    truth = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    y = x @ truth + 0.5 * torch.randn(90, 2, generator=generator, dtype=torch.float64) + 3
    splits = {"train": torch.arange(50), "dev": torch.arange(50, 70), "test": torch.arange(70, 90)}
    rows, score = ridge(x, y, splits)
    scale = float(torch.linalg.svdvals(x[:50] - x[:50].mean(0)).square().mean())
    fits = [
        linear.Ridge(alpha=strength * scale).fit(x[:50].numpy(), y[:50].numpy())
        for strength in (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
    ]
    best = max(fits, key=lambda fit: fit.score(x[50:70].numpy(), y[50:70].numpy()))
    assert rows.numpy() == pytest.approx(best.coef_, abs=1e-9)
    assert float(score.mean()) == pytest.approx(best.score(x[70:].numpy(), y[70:].numpy()))
    found = regression(x, y, splits, shuffles=20)
    assert torch.equal(found.rows, rows) and torch.equal(found.score, score)
    assert float(found.dev.mean()) == pytest.approx(best.score(x[50:70].numpy(), y[50:70].numpy()))
    # What was planted is found, and in shuffled values next to nothing of it.
    assert found.shuffled.shape == (20, 2)
    assert float(found.score.min()) > 0.8 and float(found.shuffled.mean()) < 0.1


def test_the_share_shown_is_that_of_the_layer() -> None:
    materials = materials_of(tiny_model("llama"))
    edit = parse_edit("modulate +effort L1-2 +0.1 keep urgency")
    assert isinstance(edit, ModulateEdit)
    first, second = (modulation_at(edit, layer, materials).surviving for layer in (1, 2))
    assert 0 < first < 1 and 0 < second < 1 and first != second
