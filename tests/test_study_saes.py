"""The studies of SAEs on models built by hand, whose phases, features and causes are known."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import msgspec
import pytest
import torch
from safetensors.torch import load_file
from support_command import emotui_here
from support_models import CORPUS, WIDTH, plain_model, tiny_folder, tiny_model
from support_phases import (
    AFFECT,
    CALM,
    EMOTION,
    GRADUAL,
    LABELS,
    LAYERS,
    PHASED,
    VALENCE,
    coordinate_saes,
    f1,
    phased_model,
    write_letters,
)
from support_saes import write_residual_saes
from support_studies import files_of, run_here

from emotui.cache.demo import demo_saes, demo_spec
from emotui.cache.recipes import load_recipe, recipes
from emotui.core.engine.answer import label_tokens
from emotui.core.engine.capture import QuietJob
from emotui.core.engine.labelled import draw
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.saes import load_saes
from emotui.core.errors import UsageError
from emotui.core.protocol import ModelSpec
from emotui.core.records import TextRecord
from emotui.core.studies.common.folder import StudyDocument
from emotui.core.studies.decided import captured
from emotui.core.studies.features import FeaturesResult
from emotui.core.studies.phase_results import PhasesResult
from emotui.core.studies.phases import _patch
from emotui.core.studies.steer_runs import Scaler, scaled_scores
from emotui.core.studies.trace_results import TraceResult
from emotui.core.text import template_named

TEXTS = 210
TWINS = 3
TEMPLATE = template_named("ask")


class Built:
    """A model built by hand, with SAEs, and a folder for runs."""

    def __init__(self, root: Path, layers: Any, *, twins: int = 0) -> None:
        self.root = root
        self.model: LoadedModel = load_model(
            ModelSpec(str(phased_model(root / "model", layers))), QuietJob()
        )
        self.saes = coordinate_saes(root / "saes", twins=twins)

    def run(self, study: str, name: str, *, texts: int = TEXTS, **settings: str) -> StudyDocument:
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        data = write_letters(folder / "letters.csv", texts)
        return run_here(self.model, folder, study, data, saes=(str(self.saes),), settings=settings)


@pytest.fixture(scope="module")
def phased(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("phased"), PHASED)


@pytest.fixture(scope="module")
def phases(phased: Built) -> PhasesResult:
    document = phased.run("phases", "phases", texts=140, semantic="subject", pairs="42")
    return msgspec.convert(document.result, PhasesResult)


def test_phases_that_were_built_are_found_within_one_layer(phases: PhasesResult) -> None:
    assert phases.main.phases == 3 and not phases.noise
    for boundary, at in zip(phases.main.boundaries, (4, 8), strict=True):
        assert abs(boundary.layer - at) <= 1 and not boundary.unstable
        assert boundary.low - 1 <= at <= boundary.high + 1
    assert abs((phases.onset["emotion (patched)"] or 0) - 8) <= 1
    curves = {curve.name: curve.net for curve in phases.curves}
    for curve in phases.curves:
        taken = [a - b for a, b in zip(curve.observed, curve.null, strict=True)]
        assert curve.net == pytest.approx(taken) and curve.null_is
    assert curves["emotion (patched)"] == (0.0,) * 8 + (1.0,) * 4, "by construction"
    assert max(curves["semantic"][:4]) < 0.1 and min(curves["semantic"][4:]) > 0.7
    assert curves["token"][0] > curves["token"][5] > curves["token"][11]


def test_a_model_without_phases_is_gradual(tmp_path: Path) -> None:
    document = Built(tmp_path, GRADUAL).run(
        "phases", "g", texts=140, semantic="subject", pairs="84"
    )
    result = msgspec.convert(document.result, PhasesResult)
    assert result.main.phases == 1 and result.main.steps < 0.1
    assert result.main.boundaries == ()
    assert any(line.startswith("Gradual, no phases") for line in document.report.sentences)


def test_features_that_were_built_are_found_with_their_kind(phased: Built) -> None:
    document = phased.run("features", "features", shuffles="100")
    last = msgspec.convert(document.result, FeaturesResult).layers[-1]
    found = {(row.feature, row.kind, row.label) for row in last.features}
    planted = {
        *((f"L11/{EMOTION + n}", "specific", label) for n, label in enumerate(LABELS)),
        (f"L11/{CALM}", "specific", "neutral"),
        (f"L11/{VALENCE}", "valence", "negative"),
        (f"L11/{AFFECT}", "shared", ""),
    }
    assert f1(found, planted) >= 0.9, found ^ planted
    assert all(count == 0 for count in last.shuffled.values())
    assert last.on_words["specific"] == 0.0, "letters name no emotion"


@pytest.fixture(scope="module")
def twinned(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("twinned"), PHASED, twins=TWINS)


@pytest.fixture(scope="module")
def traced(twinned: Built) -> TraceResult:
    document = twinned.run("trace", "trace", examples="10", boundaries="4,8")
    return msgspec.convert(document.result, TraceResult)


def test_the_causes_that_were_built_are_found(traced: TraceResult) -> None:
    found = {(one.emotion, one.feature) for one in traced.features if one.verdict == "causal"}
    planted = {
        (label, f"L{layer}/{EMOTION + n}")
        for n, label in enumerate(LABELS)
        if label != "neutral"
        for layer in range(8, LAYERS)
    }
    assert f1(found, planted) >= 0.9, found ^ planted
    assert all(cell.causal == 0 for cell in traced.cells if cell.phase < 3)
    for cell in traced.cells:
        if cell.phase == 3:
            assert cell.paired >= 4 and abs(cell.balance.size or 0) < 0.1 < cell.largest
    # What is selective but not read has no effect: selectivity only nominates.
    assert not [f for _, f in found if f.endswith((f"/{AFFECT}", f"/{VALENCE}"))]
    assert all(value == (0.0 if a != b else 1.0) for a, row in enumerate(traced.overlap)
               for b, value in enumerate(row))  # fmt: skip
    own = [traced.cross[n][n] for n in range(len(traced.emotions))]
    others = [v for a, row in enumerate(traced.cross) for b, v in enumerate(row) if a != b]
    assert min(own) > 3 * max(abs(v) for v in others)


def test_texts_of_one_group_count_once_in_a_trace(twinned: Built, tmp_path: Path) -> None:
    """Six groups of two texts of each label: three to list on, three to ablate in."""
    rows = write_letters(tmp_path / "plain.csv", 84).read_text().splitlines()
    data = tmp_path / "grouped.csv"
    grouped = [f"{row},{number // 14}" for number, row in enumerate(rows[1:])]
    data.write_text("\n".join([f"{rows[0]},group", *grouped]))
    document = run_here(twinned.model, tmp_path, "trace", data, saes=(str(twinned.saes),))
    result = msgspec.convert(document.result, TraceResult)
    assert set(result.emotions.values()) == {3} and len(result.too_few) == 6
    assert all(one.causal == 0 and not one.judged for one in result.cells)


@torch.no_grad()
def test_an_effect_is_that_of_plain_hooks(twinned: Built, traced: TraceResult) -> None:
    """The largest effect of joy, measured again by transformers and a hook of its own."""
    template = TEMPLATE
    plain = plain_model(twinned.root / "model")
    tokens = label_tokens(twinned.model.reader, "ekman7", template)
    deciding, own = list(tokens.deciding), LABELS.index("joy")
    best = max((f for f in traced.features if f.emotion == "joy"), key=lambda f: f.effect)
    layer, index = (int(part) for part in best.feature[1:].split("/"))
    rows = (twinned.root / "trace" / "letters.csv").read_text().splitlines()[1:]
    texts = sorted(
        (row.split(",")[0] for row in rows if row.split(",")[1] == "joy"),
        key=lambda text: draw(text, 0),
    )
    effects = []
    for text in texts[:10]:
        ids = torch.tensor([[t.id for t in twinned.model.reader.read(text, template).tokens]])

        def margin(scores: torch.Tensor) -> float:
            others = [k for k in range(len(LABELS)) if k != own]
            return float(scores[own] - scores[others].mean())

        def remove(_module: Any, _inputs: Any, output: Any) -> Any:
            h = output[0] if isinstance(output, tuple) else output
            active = index in h[0, -1, :42].topk(3).indices.tolist()
            h = h.clone()
            h[0, -1, index] -= h[0, -1, index].clamp(min=0) * active
            return (h, *output[1:]) if isinstance(output, tuple) else h

        before = margin(plain(ids).logits[0, -1, deciding])
        handle = plain.model.layers[layer].register_forward_hook(remove)
        effects.append(before - margin(plain(ids).logits[0, -1, deciding]))
        handle.remove()
    assert best.effect == pytest.approx(sum(effects) / len(effects), abs=1e-4)


class Standing(SimpleNamespace):
    """What the parts of a study ask of it, on a small random model."""

    def __init__(self) -> None:
        super().__init__(model=tiny_model("llama"), job=QuietJob())
        self.tokens = label_tokens(self.model.reader, "ekman7", TEMPLATE)

    def read(self, text: str) -> TextRecord:
        found: TextRecord = self.model.reader.read(text, TEMPLATE)
        return found

    def ids(self, text: str) -> list[int]:
        return [*(token.id for token in self.read(text).tokens), *self.tokens.prefix]


def _putting(h: Any, at: int) -> Any:
    """Return the plain hook that puts `h` at token `at` of a block's output."""

    def put(_module: Any, _inputs: Any, output: Any) -> Any:
        changed = (output[0] if isinstance(output, tuple) else output).clone()
        changed[0, at] = h
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return put


@torch.no_grad()
def test_patched_answers_are_those_of_plain_hooks() -> None:
    study: Any = Standing()
    plain = plain_model(tiny_folder("llama"))
    items: list[Any] = [SimpleNamespace(text=text) for text in CORPUS[:4]]
    deciding = list(study.tokens.deciding)
    for pair in ((0, 1), (2, 3), (3, 0)):
        found = _patch(study, items, pair, range(4))
        source, target = (study.ids(CORPUS[row]) for row in pair)
        readouts = [study.read(CORPUS[row]).readout for row in pair]
        states = plain(torch.tensor([source]), output_hidden_states=True).hidden_states
        for layer in range(3):  # the last entry of these has the final norm applied
            h = states[layer + 1][0, readouts[0]]
            put = _putting(h, readouts[1])
            handle = plain.model.layers[layer].register_forward_hook(put)
            answer = plain(torch.tensor([target])).logits[0, -1, deciding].argmax()
            handle.remove()
            assert int(found[layer]) == int(answer)


@torch.no_grad()
def test_scaled_scores_are_those_of_plain_hooks(tmp_path: Path) -> None:
    """Two layers at once: the second is encoded from what the first left."""
    study: Any = Standing()
    plain = plain_model(tiny_folder("llama"))
    root = write_residual_saes(tmp_path / "saes", d_in=WIDTH, layers=4)
    saes = sorted(load_saes(str(root), study.model), key=lambda sae: sae.layer)
    text = study.read(CORPUS[0])
    run = captured(study, text)
    active = {
        n: saes[n].encode(run.resid[n + 1, text.readout]).topk(2).indices.tolist() for n in (1, 3)
    }
    scales = {(n, j): 2.5 if n == 1 else 0.0 for n in active for j in active[n]}
    scaler = Scaler(saes, [{}, scales, dict.fromkeys(scales, 1.0)])
    scores = scaled_scores(study, run, scaler, position=text.readout)
    handles = []
    for n in active:
        files = load_file(root / f"layer_{n}" / "sae_weights.safetensors")

        def scale(_m: Any, _i: Any, output: Any, n: int = n, files: Any = files) -> Any:
            h = (output[0] if isinstance(output, tuple) else output).clone()
            before = (h[0, text.readout] - files["b_dec"]) @ files["W_enc"] + files["b_enc"]
            kept = before.topk(8)
            for value, j in zip(kept.values.relu(), kept.indices.tolist(), strict=True):
                if (n, j) in scales:
                    h[0, text.readout] += (scales[n, j] - 1) * value * files["W_dec"][j]
            return (h, *output[1:]) if isinstance(output, tuple) else h

        handles.append(plain.model.layers[n].register_forward_hook(scale))
    ids, deciding = torch.tensor([study.ids(CORPUS[0])]), list(study.tokens.deciding)
    edited = plain(ids).logits[0, -1, deciding]
    for handle in handles:
        handle.remove()
    clean = plain(ids).logits[0, -1, deciding]
    assert torch.allclose(scores[1], edited, atol=1e-4) and not torch.allclose(edited, clean)
    assert torch.allclose(scores[0], clean, atol=1e-4) and torch.equal(scores[0], scores[2])


def _demo(folder: Path, study: str, **settings: str) -> StudyDocument:
    model = load_model(demo_spec(), QuietJob())
    fields: dict[str, Any] = {
        "saes": tuple(demo_saes()),
        "limit": 28 if study == "steer" else 42,
        "settings": settings,
    }
    return run_here(model, folder, study, "bundled", **fields)


@pytest.mark.parametrize(
    ("study", "settings", "columns"),
    [
        ("phases", {"pairs": "8"}, "curve,layer,observed,null,net,low,high"),
        (
            "features",
            {"least": "2", "shuffles": "40"},
            "site,layer,label,specific,shuffled,shuffled_95",
        ),
        ("trace", {"examples": "2"}, "feature,emotion,phase,layer,effect"),
        ("steer", {"shots": "1", "features": "2"}, "dataset,shots,method,balanced_accuracy"),
    ],
)
def test_the_demo_on_forty_texts_and_killed_on_the_way(
    tmp_path: Path, study: str, settings: dict[str, str], columns: str
) -> None:
    document = _demo(tmp_path, study, **settings)
    assert len(document.report.sentences) > 3 and document.report.plots
    assert (tmp_path / "run" / "result.csv").read_text().startswith(columns)
    schema = json.loads((tmp_path / "run" / "result.schema.json").read_bytes())
    jsonschema.validate(json.loads((tmp_path / "run" / "result.json").read_bytes()), schema)
    whole = files_of(tmp_path / "run")
    for chunk in sorted((tmp_path / "run" / "chunks").rglob("*.safetensors"))[1::3]:
        chunk.unlink()  # as if the run had been killed there
    _demo(tmp_path, study, **settings)
    assert files_of(tmp_path / "run") == whole


def test_steering_the_demo_from_the_command_line(tmp_path: Path) -> None:
    """Other data, a label map of its own, a recipe that the explorer takes; nothing claimed."""
    other, mapping = tmp_path / "other.csv", tmp_path / "map.json"
    other.write_text("line,mood\nI shouted at him.,cross\nShe sang all day.,glad\n" * 3)
    mapping.write_text('{"cross": "anger", "glad": "joy"}')
    arguments = (
        "study",
        "steer",
        "bundled",
        "--limit",
        "42",
        "--template",
        "ask",
        "--shots",
        "1,2",
    )
    options = ("eval_text=line", "eval_label=mood", f"eval_maps={mapping}", "features=4")
    done = emotui_here(
        *(*arguments, "--eval", str(other), "--save", "mine", "--out", str(tmp_path / "out")),
        *(part for option in options for part in ("--set", option)),
        "--json",
        cache_dir=tmp_path / "cache",
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["result"]
    assert [(one["name"], one["own"]) for one in result["datasets"]][1] == ("other.csv", False)
    assert result["datasets"][1]["labels"] == {"anger": 3, "joy": 3}
    methods = {one["method"] for one in result["scored"]}
    assert methods >= {"none", "targeted", "global", "matched", "logit bias", "few-shot"}
    for gain in result["gains"]:
        beaten = gain["low"] > 0 and all(value > 0 for value in gain["over"].values())
        assert gain["claimed"] is beaten
    scaled = [one for one in result["setting"] if one["scale"] != 1]
    if scaled:
        recipe = load_recipe(tmp_path / "cache", "mine")
        assert len(recipe.edits) == len(scaled) and scaled[0]["feature"] in recipe.edits[0]
    else:
        assert recipes(tmp_path / "cache") == []


def test_too_few_texts_and_other_boundaries_are_refused(phased: Built) -> None:
    with pytest.raises(UsageError, match="too few texts"):
        phased.run("features", "few", texts=28)
    with pytest.raises(UsageError, match="boundaries cannot be used"):
        phased.run("trace", "bad", texts=28, boundaries="8,4")
