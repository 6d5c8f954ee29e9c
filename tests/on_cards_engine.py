"""What the engine does on pretend cards is what it does on the CPU; run by `test_cards.py`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save_file
from support_edits import ids_of, random_probe
from support_models import LAYERS, WIDTH, tiny_folder, tiny_model
from support_on_cards import ON, TOLERANCE, cards, differences, few_texts, loaded, spec_on
from support_saes import write_residual_saes, write_sae
from torch import Tensor
from torch.utils._mode_utils import no_dispatch

from emotui.core.engine.answer import label_tokens
from emotui.core.engine.attribute import answer_metric, gradients
from emotui.core.engine.capture import Hook, QuietJob, capture
from emotui.core.engine.operations import Session, handle
from emotui.core.engine.rerun import adding, rerun
from emotui.core.engine.saes import load_saes
from emotui.core.engine.sites import HOOK_SITES
from emotui.core.engine.speak import generate
from emotui.core.protocol import (
    ActivationsRequest,
    ConsistencyRequest,
    DefineRequest,
    FeatureRequest,
    FitRequest,
    GenerationSpec,
    Inspected,
    InspectRequest,
    LabelsFitRequest,
    LoadRequest,
    PrefetchRequest,
    TermsRequest,
    VerifyRequest,
    WhereRequest,
    WithoutRequest,
)
from emotui.core.records import Site, Trace
from emotui.core.text import template_named

__all__ = ["cards", "few_texts"]

TEXT = "My sad dog died last week, and the angry house is quiet now."
FAMILIES = (
    *("llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2"),
    *("gemma2", "gemma3_text", "gemma3", "gpt_neox", "gpt2"),
)


EVERY_DAY = ("llama", "gemma2", "gpt_neox", "gpt2")
"""Families that are not left to `make soak`: each has something of its own."""


def _cases(names: Sequence[str], every_day: Sequence[str]) -> list[Any]:
    """Return each name with each place; those on two cards of some names are run every day."""
    return [
        pytest.param(
            *(name, where),
            marks=() if name in every_day and where == "two cards" else pytest.mark.soak,
        )
        for name in names
        for where in ON
    ]


def _same(mine: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(mine.cpu(), theirs, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(("family", "where"), _cases(FAMILIES, EVERY_DAY))
def test_every_family_runs_resumes_and_writes(family: str, where: str) -> None:
    model, plain = loaded(where, family), tiny_model(family)
    assert model.spread == (where == "two cards")
    ids = ids_of(plain)
    mine, theirs = capture(model, ids, all_sites=True), capture(plain, ids, all_sites=True)
    _same(mine.logits, theirs.logits)
    for site in HOOK_SITES:
        _same(mine.kept[site].cpu(), theirs.kept[site].whole())
    lens = [model.sites.logits_of(h[-1]).cpu() for h in mine.kept["resid"]]
    _same(torch.stack(lens), plain.sites.logits_of(theirs.resid[:, -1]).detach())
    metric = answer_metric(label_tokens(plain.reader, "ekman7", template_named("ask")), "joy")
    assert metric is not None
    slopes, wanted = (gradients(one, ids, metric, all_sites=True) for one in (model, plain))
    assert slopes.value == pytest.approx(wanted.value, abs=TOLERANCE)
    for site in HOOK_SITES:
        _same(slopes.kept[site].cpu(), wanted.kept[site].whole())
    deltas = torch.randn(2, len(ids), WIDTH, generator=torch.Generator().manual_seed(1))
    deltas[:, :3] = 0
    for start in (0, 2, LAYERS):
        at = start - 1
        added = adding(deltas[:, 3:].to(model.device_at(at)), "resid", at)
        resid = mine.at("resid", at)
        rows = rerun(model, resid, start=start, n_rows=2, hooks=added, first=3)
        for row, delta in enumerate(deltas):
            hook = Hook("resid", at, partial(torch.add, delta))
            _same(rows.logits[row], capture(plain, ids, hooks=[hook]).logits)
    for temperature in (0.0, 0.8):
        written = [
            generate(one, ids, new_tokens=4, temperature=temperature, seed=3)
            for one in (model, plain)
        ]
        assert written[0] == written[1]


class Bench:
    """An engine with a cache of its own, two probes, and a model on a device."""

    def __init__(self, where: str, family: str, saes: Path, root: Path) -> None:
        self.session = Session()
        self.request = InspectRequest(
            spec=spec_on(where, tiny_folder(family)),
            text=TEXT,
            cache_dir=str(root),
            saes=(str(saes),),
        )
        self.model = self.session.model(self.request.spec, QuietJob())
        self.model.context_length = 512  # for questions with all labels in them
        self.store = self.session.store(str(root))
        self.request = msgspec.structs.replace(
            self.request, probes=tuple(self._put_probe(kind) for kind in ("readout", "token"))
        )

    def _put_probe(self, kind: str) -> str:
        probe = random_probe(self.model)
        card = msgspec.structs.replace(probe.file.card, id=f"random-{kind}", kind=kind)
        probe = type(probe)(
            msgspec.structs.replace(probe.file, card=card),
            *(probe.weight, probe.center, probe.bias, probe.neutral_mean, probe.neutral_sd),
        )
        self.store.put_probe(card.id, probe.to_bytes(), card)
        return card.id

    def like(self, *edits: str, **changes: Any) -> InspectRequest:
        return msgspec.structs.replace(self.request, edits=edits, **changes)

    def ask(self, request: Any) -> Any:
        if self.model.device.type == "cpu":
            with no_dispatch():  # quicker: the cards need not look on
                return handle(request, QuietJob(), self.session)
        return handle(request, QuietJob(), self.session)

    def trace(self, *edits: str, **changes: Any) -> Trace:
        done = self.ask(self.like(*edits, **changes))
        assert isinstance(done, Inspected)
        return anonymous(self.store.get_trace(done.trace_id))

    def read_by(self, *probes: str) -> list[float | None]:
        readouts = self.trace(probes=probes, metric="none").readouts
        return [*readouts.value, *readouts.z]


def anonymous(trace: Trace) -> Trace:
    """Return a trace without what names the device it was computed on."""
    run = msgspec.structs.replace(trace.run, device="")
    return msgspec.structs.replace(trace, id="", parent=None, run=run)


Benches = tuple[Bench, Bench]
"""On cards, and on the CPU."""


@pytest.fixture(scope="session")
def saes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TopK SAEs of every residual, JumpReLU ones of attention and MLP outputs, a head's one."""
    root = write_residual_saes(tmp_path_factory.mktemp("saes"), d_in=WIDTH, layers=LAYERS)
    hooks = [f"blocks.{layer}.hook_{site}_out" for layer in (0, 3) for site in ("attn", "mlp")]
    for seed, hook in enumerate((*hooks, "blocks.2.attn.hook_z"), start=20):
        write_sae(root / hook, d_in=WIDTH, hook=hook, seed=seed, k=None)
    return root


@pytest.fixture(scope="session")
def _on_cpu(saes: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench("cpu", "llama", saes, tmp_path_factory.mktemp("cpu"))


@pytest.fixture(
    scope="session",
    params=[pytest.param("one card"), pytest.param("two cards", marks=pytest.mark.soak)],
)
def benches(
    request: pytest.FixtureRequest,
    saes: Path,
    _on_cpu: Bench,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Benches]:
    yield Bench(request.param, "llama", saes, tmp_path_factory.mktemp("cards")), _on_cpu


EDITS = (
    "ablate L1/{active} at all",
    "scale mlp:L3/{mlp} x2 at all",
    "clamp attn:L0/5 = 4 at all",
    "steer L2/3 +0.2 at last",
    "ablate z:L2/{z} at all",
    "ablate L1/{active} L3/4 at all",
    "knock attn L1-2 mean",
    "knock mlp L2 zero at all",
    "knock mlp L1 resample",
    "knock attn L0-3 random",
    "knock head L1.2 mean",
    'patch resid L2 from "Lily was happy because her friend came back."',
    'patch attn L1-2 from "Lily was happy because her friend came back."',
    "promote joy L1-2 +0.2",
    "promote joy L2 +0.2 along row",
    "project out anger",
    "modulate +other_agency -pleasantness L1-2 +0.2 keep predictability",
)


DAILY_EDITS = (
    "ablate L1",
    "ablate z",
    "steer",
    "knock head",
    "patch resid",
    "promote joy L2",
    "project",
)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(line, marks=() if line.startswith(DAILY_EDITS) else pytest.mark.soak)
        for line in EDITS
    ],
)
def test_traces_and_every_kind_of_edit(line: str, benches: Benches) -> None:
    features = benches[1].trace().features
    rows = list(zip(features.site, features.layer, strict=True))
    places: dict[str, tuple[Site, int]] = {"active": ("resid", 1), "mlp": ("mlp", 3), "z": ("z", 2)}
    active = {name: features.index[rows.index(place)] for name, place in places.items()}
    edits = (line.format(**active),)
    mine, theirs = (bench.trace(*edits, selected="last" in line) for bench in benches)
    assert differences(mine, theirs) == []
    assert theirs.intervention is not None and theirs.intervention.delta_norm > 0
    assert theirs.effects and theirs.effects[0].controls


def test_a_trace(benches: Benches) -> None:
    mine, theirs = (bench.trace() for bench in benches)
    assert differences(mine, theirs) == []
    assert theirs.attribution is not None and theirs.readouts.value and theirs.features.index


ASKED: dict[str, Callable[[Bench], Any]] = {
    "without": lambda bench: WithoutRequest(bench.like()),
    "where": lambda bench: WhereRequest(
        *(bench.request.spec, TEXT, bench.request.cache_dir, "sadness"),
        probes=bench.request.probes,
    ),
    "verify": lambda bench: VerifyRequest(bench.like("ablate L1/7 at all"), texts=5),
    "verify knock": lambda bench: VerifyRequest(bench.like("knock attn L1 mean"), texts=5),
    "consistency": lambda bench: ConsistencyRequest(bench.like()),
    "terms": lambda bench: TermsRequest(bench.like("promote joy L1 +0.2")),
    "feature": lambda bench: FeatureRequest(bench.like(), feature="L2/5"),
    "attn feature": lambda bench: FeatureRequest(bench.like(), feature="attn:L3/5"),
}


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(name, marks=() if name in ("without", "where") else pytest.mark.soak)
        for name in ASKED
    ],
)
def test_what_else_is_asked_of_a_text(asked: str, benches: Benches) -> None:
    mine, theirs = (found_by(bench.ask(ASKED[asked](bench))) for bench in benches)
    assert differences(mine, theirs) == []


def test_texts_are_continued_prefetched_and_kept_alike(benches: Benches) -> None:
    written = GenerationSpec(new_tokens=6, temperature=0.9, samples=2)
    edit = "steer L2/3 +0.2 at all"
    traces = [bench.trace(edit, generation=written, metric="none") for bench in benches]
    assert differences(*traces) == []
    assert traces[1].generation is not None
    texts = ("The bus came at nine.", "Nobody came at nine.")
    kept = []
    for bench in benches:
        bench.ask(PrefetchRequest(bench.like(), texts))
        done = bench.ask(bench.like(text=texts[0]))
        found = bench.store.get_entry(
            "activations", bench.ask(ActivationsRequest(bench.like())).key
        )
        assert found is not None
        trace = anonymous(bench.store.get_trace(done.trace_id))
        kept.append([trace, {n: t.tolist() for n, t in tensors_from_bytes(found).items()}])
    assert differences(*kept) == []


@pytest.mark.parametrize("where", ON)
@pytest.mark.parametrize(
    ("k", "options"),
    [
        (8, {}),
        (None, {}),
        (8, {"rescale_acts_by_decoder_norm": True}),
        (None, {"architecture": "standard"}),
        (None, {"normalize_activations": "expected_average_only_in", "norm_scaling_factor": 0.7}),
        (8, {"apply_b_dec_to_input": False}),
        (8, {"model_from_pretrained_kwargs": {"center_writing_weights": True}}),
    ],
)
def test_every_kind_of_sae(
    k: int | None, options: dict[str, Any], where: str, tmp_path: Path
) -> None:
    folder = write_sae(tmp_path / "sae", d_in=WIDTH, hook="blocks.3.hook_resid_post", k=k)
    config = json.loads((folder / "cfg.json").read_text()) | options
    (folder / "cfg.json").write_text(json.dumps(config))
    if options.get("architecture") == "standard":
        file = folder / "sae_weights.safetensors"
        tensors = tensors_from_bytes(file.read_bytes())
        save_file({n: t for n, t in tensors.items() if n != "threshold"}, file)
    model, plain = loaded(where, "gpt2"), tiny_model("gpt2")
    mine, theirs = (load_saes(str(folder), one).get("resid", 3) for one in (model, plain))
    h = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(2))
    f = theirs.encode(h)
    assert float(f.max()) > 0
    _same(mine.encode(h.to(model.device_at(3))), f)
    _same(mine.decode(mine.encode(h)), theirs.decode(f))
    _same(mine.directions([3, 1]), theirs.directions([3, 1]))
    _same(mine.weights.decoder_norm, theirs.weights.decoder_norm)


_OF_THE_RUN = ("seconds", "forwards", "cached", "trace_id", "trace", "root", "created", "probe_ids")


def found_by(outcome: Any) -> Any:
    """Return what an outcome says as plain data, without when it was and of which trace."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(one) for key, one in value.items() if key not in _OF_THE_RUN}
        return [without(one) for one in value] if isinstance(value, list) else value

    return without(msgspec.to_builtins(outcome))


@pytest.mark.soak
@pytest.mark.parametrize("where", ON)
def test_what_is_fitted_defined_and_labelled(where: str, saes: Path, tmp_path: Path) -> None:
    """Probes of both kinds, an emotion of a word and of texts, and the labels of features."""
    texts = tuple(f"Nobody came, and the day was long and grey, {n} times." for n in range(6))
    found: list[list[Any]] = []
    for place in (where, "cpu"):
        bench = Bench(place, "llama", saes, tmp_path / place)
        spec, cache = bench.request.spec, bench.request.cache_dir
        outcomes = [
            bench.ask(request)
            for request in (
                LoadRequest(spec, cache, template="ask"),
                FitRequest(spec, cache),
                FitRequest(spec, cache, preview=True, seed=1),
                DefineRequest(spec, cache, "gloom", texts=texts),
                DefineRequest(spec, cache, "dread", word="dread"),
                LabelsFitRequest(spec, cache, bench.request.saes),
            )
        ]
        made = [
            {name: tensor.tolist() for name, tensor in tensors_from_bytes(payload).items()}
            for outcome in outcomes[1:5]
            for payload in map(bench.store.get_probe, outcome.probe_ids)
        ]
        told = [{**found_by(one), "device": ""} for one in outcomes[1:]]
        found.append([made, told, bench.read_by(*outcomes[1].probe_ids, *outcomes[3].probe_ids)])
    # Fits stop at a tolerance: their last digits go their own way.
    assert differences(*found, within=1e-3) == []
