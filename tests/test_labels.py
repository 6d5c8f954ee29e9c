"""Labels of features: selectivity against scipy and the demo's own figures, planted SAEs, words."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file
from scipy import stats
from sklearn.metrics import roc_auc_score
from support_models import LAYERS, WIDTH, plain_model, tiny_folder, tiny_model
from support_saes import write_residual_saes, write_sae
from torch import Tensor

from emotui.cache import labels as shelf
from emotui.cache.demo import DEMO_FOLDER, DEMO_MODEL
from emotui.cache.keys import sae_identity
from emotui.cache.labels import Explanation, Measured, label_of, mismatch
from emotui.cache.store import Store
from emotui.core.corpus import load_situations
from emotui.core.engine.capture import QuietJob, capture
from emotui.core.engine.feature_labels import fit_labels
from emotui.core.engine.inspect import inspect
from emotui.core.engine.instruments import Instruments
from emotui.core.engine.lens_words import promoted_tokens, promoted_words
from emotui.core.engine.model import load_model
from emotui.core.engine.selectivity import Halves, SelectivityMeter, areas, mid_ranks
from emotui.core.errors import SaeError, UsageError
from emotui.core.protocol import InspectRequest, LabelsFitRequest, LabelsFitted, ModelSpec
from emotui.core.records import Trace


def halves_of(texts: int, classes: int, *, pairs: bool = False, seed: int = 0) -> Halves:
    generator = torch.Generator().manual_seed(seed)
    units = torch.arange(texts) // (2 if pairs else 1)
    of_unit = torch.randint(classes, (int(units.max()) + 1,), generator=generator)
    first = torch.rand(len(of_unit), generator=generator) < 0.5
    return Halves(of_unit[units], classes, classes - 1, first[units], units)


# --- the arithmetic ----------------------------------------------------------------------------


def test_ranks_and_areas_are_those_of_scipy_and_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(90, 12, generator=generator).relu()  # half of them tied at zero
    values[:, 3] = 0
    expected = stats.rankdata(values.numpy(), axis=0)
    assert torch.equal(mid_ranks(values), torch.from_numpy(expected).float())
    labels = torch.randint(4, (90,), generator=generator)
    members = torch.stack([labels == label for label in range(4)])
    found = areas(mid_ranks(values), members)
    for label in range(4):
        for feature in range(12):
            area = roc_auc_score(members[label].numpy(), values[:, feature].numpy())
            assert float(found[label, feature]) == pytest.approx(area, abs=1e-6)


def test_chunks_give_what_one_chunk_gives() -> None:
    halves = halves_of(120, 4)
    features = torch.randn(120, 1500, generator=torch.Generator().manual_seed(1))
    whole, parts = (SelectivityMeter(halves, shuffles=20) for _ in range(2))
    whole.add(features)
    for start in range(0, 1500, 37):
        parts.add(features[:, start : start + 37])
    for one, other in zip(
        vars(whole.result()).values(), vars(parts.result()).values(), strict=True
    ):
        assert torch.allclose(one.double(), other.double(), atol=1e-6)


@pytest.mark.parametrize("pairs", [False, True])
def test_features_of_noise_are_left_unnamed(pairs: bool) -> None:
    """Of twenty families of noise at most a few have a named feature; texts of a pair agree."""
    named = 0
    for seed in range(20):
        halves = halves_of(200, 5, pairs=pairs, seed=seed)
        generator = torch.Generator().manual_seed(100 + seed)
        of_unit = torch.randn(200, 300, generator=generator)
        features = of_unit[halves.units] + 0.3 * torch.randn(200, 300, generator=generator)
        meter = SelectivityMeter(halves, shuffles=100)
        meter.add(features.relu())
        named += bool(meter.result().named.any())
    assert named <= 3


def test_planted_features_are_named_and_only_those() -> None:
    halves = halves_of(400, 5, pairs=True)
    features = torch.randn(400, 2000, generator=torch.Generator().manual_seed(2)).relu()
    for label in range(5):
        features[:, 400 * label + 7] += 4.0 * (halves.labels == label)
    features[:, 11] += 4.0 * (halves.labels < 3)  # three emotions: selective, not specific
    meter = SelectivityMeter(halves, shuffles=200)
    meter.add(features)
    found = meter.result()
    planted = [400 * label + 7 for label in range(5)]
    assert set(found.named.nonzero().flatten().tolist()) - {11} == set(planted)
    assert found.emotion[planted].tolist() == list(range(5))
    assert found.specific[planted].all() and not found.specific[11]
    assert float(found.breadth[11]) == pytest.approx(3, abs=0.5)


# --- the demo's own figures ---------------------------------------------------------------------


def _script(name: str) -> Any:
    sys.path.insert(0, str(ROOT / "scripts" / "demo"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def _demo_features(data: Path, layer: int) -> tuple[Tensor, Tensor]:
    """Activations and labels as scripts/demo/label_features.py takes them, by hand."""
    texts, tokens, runs = (_script(f"demo_{part}") for part in ("data", "model", "residuals"))
    from transformers import AutoTokenizer

    kept: dict[int, int] = {}
    rows = []
    for row in (*texts.situations("dev"), *texts.single_label(texts.goemotions(data, "dev"))):
        if row.ekman is None or row.weight != 1:
            continue
        label = row.ekman.index(1.0)
        kept[label] = kept.get(label, 0) + 1
        if kept[label] <= 250:
            rows.append(row)
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    model = plain_model(DEMO_MODEL)
    found = runs.residuals(model, tokenizer, tokens.encode(rows, tokenizer), question=True)
    labels = torch.tensor([row.ekman.index(1.0) for row in rows if row.ekman])
    folder = DEMO_FOLDER / "saes" / f"resid.{layer}"
    sae = {k: v.float() for k, v in load_file(folder / "sae_weights.safetensors").items()}
    k = json.loads((folder / "cfg.json").read_text())["k"]
    h = found.layers[layer][found.readout].float()
    config = json.loads((folder / "cfg.json").read_text())
    before = (h - sae["b_dec"] * config["apply_b_dec_to_input"]) @ sae["W_enc"] + sae["b_enc"]
    if config.get("rescale_acts_by_decoder_norm"):
        before = before * sae["W_dec"].norm(dim=-1)
    values, indices = before.topk(k, dim=-1)
    features = torch.zeros_like(before).scatter_(-1, indices, values.relu())
    return features, labels[found.row[found.readout]]


def test_the_figures_of_the_demo_come_out_again(data_dir: Path) -> None:
    features, labels = _demo_features(data_dir, 4)
    select = torch.rand(len(labels), generator=torch.Generator().manual_seed(0)) < 0.5
    meter = SelectivityMeter(Halves(labels, 7, 6, select, torch.arange(len(labels))), shuffles=200)
    meter.add(features)
    found = meter.result()
    names = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")
    stored = json.loads((DEMO_FOLDER / "saes" / "resid.4" / "selectivity.json").read_text())
    stored = {int(index): row for index, row in stored.items()}
    gaps = np.array(
        [
            [float(found.area[i]) - row["area"], float(found.confirmed[i]) - row["confirmed"]]
            for i, row in stored.items()
            if names[int(found.emotion[i])] == row["emotion"]
        ]
    )
    assert len(gaps) > 0.98 * len(stored)
    assert np.abs(gaps).max() < 0.01 and np.abs(gaps).mean() < 1e-3
    agree = [bool(found.specific[i]) == row["specific"] for i, row in stored.items()]
    assert np.mean(agree) > 0.99
    assert sum(row["specific"] for row in stored.values()) > 5


def test_promoted_tokens_are_those_of_the_demo(data_dir: Path) -> None:
    """labels.json of the demo was written with the gain of its norm taken by name."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    allowed = _script("label_features").readable(tokenizer, data_dir)
    model = load_model(ModelSpec(str(DEMO_MODEL)), QuietJob())
    folder = DEMO_FOLDER / "saes" / "resid.4"
    decoder = load_file(folder / "sae_weights.safetensors")["W_dec"].float()
    ids = promoted_tokens(model, decoder, allowed=allowed)
    stored = json.loads((folder / "labels.json").read_text())
    for index in range(0, len(decoder), 13):
        words = " ".join(tokenizer.decode([token]).strip() for token in ids[index].tolist())
        assert re.sub(r"^\w+ [\d.]+\*?: ", "", stored[str(index)]) == words


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "stablelm"])
def test_promoted_words_are_those_of_the_norms_gain(family: str) -> None:
    model = tiny_model(family)
    directions = torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(3))
    plain = plain_model(tiny_folder(family))
    norm = {
        "gpt2": lambda m: m.transformer.ln_f,
        "llama": lambda m: m.model.norm,
        "gemma2": lambda m: m.model.norm,
        "stablelm": lambda m: m.model.norm,
    }[family](plain)
    gain = norm.weight + (1 if family == "gemma2" else 0)
    centred = directions - directions.mean(-1, keepdim=True)
    through = (centred if family in ("gpt2", "stablelm") else directions) * gain
    logits = through @ plain.lm_head.weight.T
    assert torch.equal(promoted_tokens(model, directions, count=5), logits.topk(5).indices)
    for words in promoted_words(model, directions):
        assert all(word.isalpha() for word in words.split())


# --- the fit, end to end -----------------------------------------------------------------------


class Fitted:
    def __init__(self, root: Path) -> None:
        self.spec = ModelSpec(str(tiny_folder("llama")))
        self.store = Store.open(root / "cache")
        self.model = load_model(self.spec, QuietJob(), memo=self.store)
        self.saes = write_residual_saes(root / "saes", d_in=WIDTH, layers=LAYERS)

    def fit(self, **options: Any) -> LabelsFitted:
        request = LabelsFitRequest(self.spec, str(self.store.root), (str(self.saes),), **options)
        instruments = Instruments(self.model, self.store)
        return fit_labels(request, self.model, self.store, instruments, QuietJob())

    def trace(self, text: str = "My dog died last week.") -> Trace:
        request = InspectRequest(self.spec, text, str(self.store.root), saes=(str(self.saes),))
        instruments = Instruments(self.model, self.store)
        done = inspect(request, self.model, instruments, self.store, QuietJob())
        return self.store.get_trace(done.trace_id)

    def measured(self) -> Path:
        identity = sae_identity(str(self.saes), self.store) or ""
        return shelf.measured_path(self.store.root, identity, self.model.fingerprint)


def test_without_any_label_a_feature_has_the_words_it_promotes(tmp_path: Path) -> None:
    fitted = Fitted(tmp_path)
    trace = fitted.trace()
    assert trace.features.index
    weights = load_file(fitted.saes / "layer_2" / "sae_weights.safetensors")
    columns = trace.features
    for layer, index, label in zip(columns.layer, columns.index, columns.label, strict=True):
        if layer == 2:
            assert label == promoted_words(fitted.model, weights["W_dec"][index][None])[0]


def test_a_fit_names_what_a_planted_sae_singles_out(tmp_path: Path) -> None:
    """A feature that reads the mean difference of one emotion at the readout is found again."""
    fitted = Fitted(tmp_path)
    model, texts = fitted.model, [s for s in load_situations() if s.emotion in ("fear", "joy")]
    folder = fitted.saes / "layer_3"
    weights = load_file(folder / "sae_weights.safetensors")
    words = {"fear": "The dog", "joy": "We went"}
    rows = [f"{words[s.emotion]} {n} {'abcde'[n % 5]}\t{s.emotion}" for n, s in enumerate(texts)]
    data = tmp_path / "mine.tsv"
    data.write_text("text\tlabel\n" + "\n".join(rows), encoding="utf-8")
    from emotui.core.text import template_named

    means = {}
    for emotion, start in words.items():
        ids = model.reader.read(f"{start} 7 a", template_named("ask")).tokens
        means[emotion] = capture(model, [t.id for t in ids]).at("resid", 3)[-1]
    weights["W_enc"] = torch.zeros_like(weights["W_enc"])
    weights["b_enc"] = torch.zeros_like(weights["b_enc"])
    weights["b_dec"] = torch.zeros_like(weights["b_dec"])
    direction = means["fear"] - means["joy"]
    middle = (means["fear"] + means["joy"]) @ direction / 2
    for column, sign in ((5, 1.0), (6, -1.0)):
        weights["W_enc"][:, column] = sign * direction
        weights["b_enc"][column] = -sign * middle
    save_file(weights, folder / "sae_weights.safetensors")
    done = fitted.fit(data=str(data))
    assert done.sources[0].features == 64 * LAYERS and done.texts == len(rows)
    rows_of = shelf.read_measured(fitted.measured(), "resid.3")
    assert rows_of[5].emotion == "fear" and rows_of[6].emotion == "joy"
    assert rows_of[5].named and rows_of[5].confirmed > 0.9 and rows_of[5].p < 0.05
    label = label_of(rows_of[5])
    assert label.startswith("fear ")
    trace = fitted.trace("The dog 3 b")
    shown = {
        (layer, index): text
        for layer, index, text in zip(
            trace.features.layer, trace.features.index, trace.features.label, strict=True
        )
    }
    assert shown[3, 5] == label


def test_a_fit_changes_the_trace_and_its_removal_gives_the_old_one_back(tmp_path: Path) -> None:
    fitted = Fitted(tmp_path)
    before = fitted.trace()
    fitted.fit()
    after = fitted.trace()
    assert after.id != before.id
    assert after.features.index == before.features.index
    assert after.features.activation == before.features.activation
    listed = shelf.label_files(fitted.store.root)
    assert [one.meta["kind"] for one in listed] == ["measured"]
    assert str(tmp_path) in listed[0].meta["source"] and listed[0].rows > 0
    shelf.remove(fitted.store.root, listed[0].path)
    assert fitted.trace().id == before.id


def test_a_second_fit_measures_the_same(tmp_path: Path) -> None:
    fitted = Fitted(tmp_path)
    first = fitted.fit()
    rows = shelf.measured_of(fitted.measured())
    again = fitted.fit()
    assert shelf.measured_of(fitted.measured()) == rows
    assert first.sources == again.sources
    noise = sum(first.sources[0].named.values())
    assert noise <= 0.2 * len(rows)  # random weights: nothing much to name


def test_too_few_texts_and_damaged_files_are_said(tmp_path: Path) -> None:
    fitted = Fitted(tmp_path)
    data = tmp_path / "few.tsv"
    data.write_text(
        "text\tlabel\n" + "\n".join(f"text {n}\t{'joy' if n % 2 else 'fear'}" for n in range(30))
    )
    with pytest.raises(UsageError, match="too few texts"):
        fitted.fit(data=str(data))
    with pytest.raises(UsageError, match="No SAEs"):
        fit_labels(
            LabelsFitRequest(fitted.spec, str(fitted.store.root), ()),
            fitted.model,
            fitted.store,
            Instruments(fitted.model, fitted.store),
            QuietJob(),
        )
    fitted.fit()
    fitted.measured().write_bytes(b"SQLite format 3\0 but not really")
    with pytest.raises(SaeError, match="could not be read"):
        fitted.trace("Another text.")


# --- what is shown -----------------------------------------------------------------------------

_FEAR = Measured("fear", 0.9, 0.88, 0.002, 1.1, True, True, "dark night")
_NOTHING = Measured("joy", 0.55, 0.5, 0.8, 2.0, False, False, "the of")


def test_labels_say_what_was_measured_where_they_come_from_and_what_does_not_match() -> None:
    told = Explanation("words about rage", "neuronpedia gpt-4o-mini 2026-01-01")
    assert label_of(_FEAR) == "fear .88*: dark night"
    assert label_of(_NOTHING) == "the of"
    assert label_of(None, words="a b") == "a b"
    assert label_of(_NOTHING, Explanation("commas", "x")) == 'the of · "commas" (x)'
    assert mismatch(_FEAR, "words about rage") == "label says anger; measured: fear"
    assert mismatch(_NOTHING, "expressions of anger") == "label says anger; measured: none"
    assert mismatch(_FEAR, "fear and panic") == mismatch(_FEAR, "commas") == ""
    assert mismatch(None, "rage") == ""
    assert label_of(_FEAR, told).endswith("2026-01-01; label says anger; measured: fear)")


def test_an_sae_of_another_source_has_no_labels_of_these(tmp_path: Path) -> None:
    fitted = Fitted(tmp_path)
    fitted.fit()
    other = write_sae(tmp_path / "other", d_in=WIDTH, hook="blocks.1.hook_resid_post", seed=9)
    identity = sae_identity(str(other), fitted.store) or ""
    assert fitted.store.labels_state(str(other), identity, fitted.model.fingerprint) == ""
    own = sae_identity(str(fitted.saes), fitted.store) or ""
    assert fitted.store.labels_state(str(fitted.saes), own, fitted.model.fingerprint)
    assert fitted.store.labels_state(str(fitted.saes), own, "0" * 64) == ""
