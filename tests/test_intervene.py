"""Edits of features against plain PyTorch: subtract by hand, run without any of our hooks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from support_edits import materials_of, read
from support_hooks import arriving, plain_run
from support_models import LAYERS, SLIDING_WINDOW, WIDTH, tiny_folder, tiny_model
from support_saes import write_residual_saes, write_sae
from torch import Tensor

from emotui.core.edits import parse_edit
from emotui.core.engine.capture import Hook, QuietJob, capture, hooked
from emotui.core.engine.effects import first_block
from emotui.core.engine.exact import ablations
from emotui.core.engine.intervene import (
    EditGroup,
    Place,
    check_layers,
    group_edits,
    hooks_of,
    place_edits,
    places_of,
)
from emotui.core.engine.materials import Materials
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.probes import Probe
from emotui.core.engine.rerun import adding, rerun
from emotui.core.engine.saes import Sae, load_saes
from emotui.core.engine.sites import HookSite
from emotui.core.engine.statistics import Kind, Statistics
from emotui.core.engine.steps import AddStep
from emotui.core.errors import Cancelled, EditError
from emotui.core.protocol import ModelSpec

FAMILIES = ("llama", "gemma2", "gpt2")
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


def in_dtype(family: str, dtype: torch.dtype) -> LoadedModel:
    if dtype == torch.float32:
        return tiny_model(family)
    model = load_model(ModelSpec(model=str(tiny_folder(family))), QuietJob())
    return dataclasses.replace(model, hf=model.hf.double(), dtype=dtype)


@pytest.fixture(scope="module", params=[(f, d) for f in FAMILIES for d in TOLERANCE], ids=str)
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return in_dtype(*request.param)


@pytest.fixture(scope="module")
def sae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_residual_saes(tmp_path_factory.mktemp("saes"), d_in=WIDTH, layers=LAYERS)
    write_sae(root / "mlp_1", d_in=WIDTH, hook="blocks.1.hook_mlp_out", seed=11, k=None)
    write_sae(root / "attn_2", d_in=WIDTH, hook="blocks.2.hook_attn_out", seed=12, k=None)
    return root


def saes_of(folder: Path, model: LoadedModel) -> list[Sae]:
    return list(load_saes(str(folder), model))


def groups_of(
    model: LoadedModel, folder: Path, *lines: str, unit: float = 7.0
) -> tuple[EditGroup, ...]:
    edits = [parse_edit(line) for line in lines]
    check_layers(edits, model)
    return group_edits(place_edits(edits, read(model)), bench_of(model, folder, unit=unit))


def bench_of(
    model: LoadedModel,
    folder: Path,
    *,
    unit: float = 7.0,
    statistics: Statistics | None = None,
    probes: Sequence[Probe] = (),
    seed: int = 0,
) -> Materials:
    """Return materials that read no corpus: every mean norm is `unit`."""

    materials = materials_of(model, saes=saes_of(folder, model), probes=probes, seed=seed)
    materials.statistics = statistics or Flat({}, {}, {}, unit)
    return materials


@dataclasses.dataclass(frozen=True)
class Flat(Statistics):
    """A corpus of which only the mean norm is known."""

    unit: float = 1.0

    def mean_norm(self, site: HookSite, layer: int, kind: Kind = "text") -> float:
        return self.unit


def delta_everywhere(group: EditGroup, h: Tensor) -> Tensor:
    """Return what a group adds to every token of `h`, [tokens, d]."""
    return group.delta(h, range(len(h)))


def encoded_by_hand(sae: Sae, h: Tensor) -> Tensor:
    """TopK or JumpReLU of the stored weights, written out."""
    w = sae.weights
    before = (h - w.decoder_bias) @ w.encoder + w.encoder_bias
    if w.threshold is not None:
        return torch.where(before > w.threshold, before.clamp_min(0), torch.zeros_like(before))
    kth = before.topk(8, dim=-1).values[:, -1:]
    return torch.where(before >= kth, before.clamp_min(0), torch.zeros_like(before))


@pytest.mark.parametrize(("site", "layer"), [("resid", 1), ("resid", 3), ("mlp", 1), ("attn", 2)])
@pytest.mark.parametrize("where", ["all", "last", "readout", "3-5"])
def test_ablating_equals_subtracting_by_hand(
    model: LoadedModel, sae_folder: Path, site: str, layer: int, where: str
) -> None:
    text = read(model)
    ids = [token.id for token in text.tokens]
    sae = next(s for s in saes_of(sae_folder, model) if (s.site, s.layer) == (site, layer))
    h = arriving(model, ids, site, layer)
    features = encoded_by_hand(sae, h)
    rows = {
        "all": [i for i, token in enumerate(text.tokens) if token.part == "text"],
        "last": [text.last],
        "readout": [len(ids) - 1],
        "3-5": [3, 4, 5],
    }[where]
    index = int(features[rows].sum(dim=0).argmax())
    added = torch.zeros_like(h)
    added[rows] = -features[rows, index, None] * sae.weights.decoder[index]
    expected = plain_run(model, ids, site, layer, added)

    prefix = "" if site == "resid" else f"{site}:"
    groups = groups_of(model, sae_folder, f"ablate {prefix}L{layer}/{index} at {where}")
    edited = capture(model, ids, hooks=hooks_of(groups)).logits

    tolerance = TOLERANCE[model.dtype]
    assert (edited - expected).abs().max() < tolerance
    # The last block's output at another token reaches nothing that the readout sees.
    reaches = layer < LAYERS - 1 or where == "readout"
    unedited = plain_run(model, ids, site, layer, torch.zeros_like(h))
    assert bool((edited - unedited).abs().max() > tolerance) is reaches
    assert places_of(groups) == len(rows)


def test_ablating_an_inactive_feature_changes_nothing_at_all(
    model: LoadedModel, sae_folder: Path
) -> None:
    ids = [token.id for token in read(model).tokens]
    clean = capture(model, ids)
    sae = next(s for s in saes_of(sae_folder, model) if (s.site, s.layer) == ("resid", 2))
    inactive = int((sae.encode(clean.at("resid", 2)).sum(dim=0) == 0).nonzero()[0])
    edited = capture(
        model, ids, hooks=hooks_of(groups_of(model, sae_folder, f"ablate L2/{inactive} at all"))
    )
    assert torch.equal(edited.logits, clean.logits)
    assert torch.equal(edited.resid, clean.resid)


def test_scale_clamp_and_steer_add_what_they_say(model: LoadedModel, sae_folder: Path) -> None:
    text = read(model)
    ids = [token.id for token in text.tokens]
    h = arriving(model, ids, "resid", 1)
    sae = next(s for s in saes_of(sae_folder, model) if (s.site, s.layer) == ("resid", 1))
    f = encoded_by_hand(sae, h)[text.last]
    index = int(f.argmax())
    row = sae.weights.decoder[index]
    wanted = {
        f"scale L1/{index} x2.5 at last": 1.5 * f[index] * row,
        f"clamp L1/{index} = 3 at last": (3 - f[index]) * row,
        f"steer L1/{index} -0.1 at last": -0.7 * row / row.norm(),
    }
    for line, expected in wanted.items():
        (group,) = groups_of(model, sae_folder, line)
        added = delta_everywhere(group, h)
        assert (added[text.last] - expected).abs().max() < TOLERANCE[model.dtype], line
        added[text.last] = 0
        assert not added.any(), "nothing is added elsewhere"


def test_edits_of_one_feature_compose_before_one_delta(
    model: LoadedModel, sae_folder: Path
) -> None:
    text = read(model)
    h = arriving(model, [token.id for token in text.tokens], "resid", 1)
    sae = next(s for s in saes_of(sae_folder, model) if (s.site, s.layer) == ("resid", 1))
    features = encoded_by_hand(sae, h)
    index = int(features[text.last].argmax())
    ablate, scale = f"ablate L1/{index} at last", f"scale L1/{index} x2 at last"
    (both,) = groups_of(model, sae_folder, ablate, scale)
    (alone,) = groups_of(model, sae_folder, ablate)
    assert torch.equal(delta_everywhere(both, h), delta_everywhere(alone, h))
    (undone,) = groups_of(
        model,
        sae_folder,
        ablate,
        f"clamp L1/{index} = {float(features[text.last, index])!r} at last",
    )
    assert delta_everywhere(undone, h).abs().max() < 1e-6


@pytest.mark.parametrize("start", range(LAYERS))
def test_resuming_equals_the_full_run(model: LoadedModel, sae_folder: Path, start: int) -> None:
    text = read(model)
    ids = [token.id for token in text.tokens]
    clean = capture(model, ids)
    generator = torch.Generator().manual_seed(start)
    deltas = torch.randn(3, len(ids), WIDTH, generator=generator).to(model.dtype)
    deltas[0] = 0
    for site in ("resid", "attn", "mlp"):
        rows = rerun(
            model,
            clean.resid[start],
            start=start,
            n_rows=3,
            hooks=adding(deltas, site, start),
        )
        for row in range(3):
            full = plain_run(model, ids, site, start, deltas[row])
            assert (rows.logits[row] - full).abs().max() < TOLERANCE[model.dtype]
    assert set(rows.resid) == set(range(max(start - 1, 0), LAYERS))


@pytest.mark.usefixtures("exact_softmax")
@pytest.mark.parametrize("layer", range(LAYERS))
def test_an_edit_of_a_residual_needs_not_its_own_block(model: LoadedModel, layer: int) -> None:
    """From block L + 1 on, of the top layer without any block: as the full run, blocks counted."""
    text = read(model)
    ids = [token.id for token in text.tokens]
    clean = capture(model, ids)
    generator = torch.Generator().manual_seed(layer)
    fired: list[torch.Size] = []
    ran: list[int] = []
    handles = [
        model.sites.point("mlp", number).module.register_forward_hook(
            lambda *_, number=number: ran.append(number)
        )
        for number in range(LAYERS)
    ]
    try:
        for first in (0, 5, len(ids) - 1):
            deltas = torch.randn(3, len(ids) - first, WIDTH, generator=generator).to(model.dtype)
            deltas[0] = 0

            def hooks(rows: range, deltas: Tensor = deltas) -> list[Hook]:
                (adds,) = adding(deltas, "resid", layer)(rows)

                def function(tensor: Tensor) -> Tensor | None:
                    fired.append(tensor.shape)
                    return adds.function(tensor)

                return [Hook("resid", layer, function)]

            ran.clear()
            rows = rerun(
                model,
                clean.resid[layer + 1],
                start=layer + 1,
                n_rows=3,
                hooks=hooks,
                first=first,
            )
            # The tokens before are run once, without the hook; no block up to the edit's is.
            assert ran == list(range(layer + 1, LAYERS)) * (1 if first == 0 else 2)
            assert fired == [(3, len(ids) - first, WIDTH)]
            fired.clear()
            assert set(rows.resid) == set(range(layer, LAYERS))
            kept = clean.resid[layer + 1, -1] + deltas[:, -1]
            assert (rows.resid[layer] - kept).abs().max() < TOLERANCE[model.dtype]
            for row in range(3):
                added = torch.cat([torch.zeros(first, WIDTH, dtype=model.dtype), deltas[row]])
                full = plain_run(model, ids, "resid", layer, added)
                assert (rows.logits[row] - full).abs().max() < TOLERANCE[model.dtype]
    finally:
        for handle in handles:
            handle.remove()
    blocks = model.sites.blocks
    assert all("forward" not in block.__dict__ for block in blocks)


def test_the_first_block_that_a_row_needs() -> None:
    empty = EditGroup(("resid", 2), ())
    taken = EditGroup(("resid", 2), (AddStep((0,), torch.zeros(WIDTH)),))
    cases: list[tuple[list[Place], dict[Place, EditGroup], int]] = [
        ([("resid", 2)], {("resid", 2): empty}, 3),
        ([("resid", 2)], {("resid", 2): taken}, 2),
        ([("resid", 2), ("resid", 3), ("mlp", 3)], {("resid", 2): empty}, 3),
        ([("mlp", 2), ("resid", 2)], {("resid", 2): empty}, 2),
        ([("z", 0)], {}, 0),
    ]
    for places, before, expected in cases:
        assert first_block(places, before) == expected


@pytest.fixture
def exact_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let eager attention take its softmax in float64 where the model is: it forces float32."""
    original = torch.nn.functional.softmax

    def softmax(scores: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return original(scores, dim=dim, dtype=None if scores.dtype == torch.float64 else dtype)

    monkeypatch.setattr(torch.nn.functional, "softmax", softmax)


@pytest.mark.usefixtures("exact_softmax")
@pytest.mark.parametrize("first", [1, 5, 20, -1])
@pytest.mark.parametrize("start", range(LAYERS))
def test_resuming_from_a_token_equals_the_full_run(
    model: LoadedModel, start: int, first: int
) -> None:
    """Longer than the sliding window, so that Gemma-2's two kinds of layer see different pasts."""
    ids = [token.id for token in read(model).tokens]
    assert len(ids) > 3 * SLIDING_WINDOW
    first %= len(ids)
    clean = capture(model, ids)
    generator = torch.Generator().manual_seed(start)
    deltas = torch.randn(3, len(ids) - first, WIDTH, generator=generator).to(model.dtype)
    deltas[0] = 0
    for site in ("resid", "attn", "mlp"):
        rows = rerun(
            model,
            clean.resid[start],
            start=start,
            n_rows=3,
            hooks=adding(deltas, site, start),
            first=first,
        )
        for row in range(3):
            added = torch.cat([torch.zeros(first, WIDTH, dtype=model.dtype), deltas[row]])
            full = plain_run(model, ids, site, start, added)
            assert (rows.logits[row] - full).abs().max() < TOLERANCE[model.dtype]
        assert (rows.resid[LAYERS - 1][0] - clean.resid[-1, -1]).abs().max() < 1e-4


@pytest.mark.usefixtures("exact_softmax")
def test_rows_that_do_not_fit_at_once_are_run_in_turn(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [token.id for token in read(model).tokens]
    clean = capture(model, ids)
    deltas = torch.randn(5, 1, WIDTH, generator=torch.Generator().manual_seed(1)).to(model.dtype)

    def run() -> Tensor:
        hooks = adding(deltas, "resid", 1)
        return rerun(
            model, clean.resid[1], start=1, n_rows=5, hooks=hooks, first=len(ids) - 1
        ).logits

    together = run()
    monkeypatch.setattr("emotui.core.engine.rerun.KEYS_AT_ONCE", 2 * len(ids))
    before = model.forwards
    apart = run()
    assert model.forwards - before == 1 + 3
    assert (together - apart).abs().max() < TOLERANCE[model.dtype]


@pytest.mark.usefixtures("exact_softmax")
def test_exact_ablations_are_those_made_one_by_one(model: LoadedModel, sae_folder: Path) -> None:
    ids = [token.id for token in read(model).tokens]
    clean = capture(model, ids)
    saes = saes_of(sae_folder, model)
    features = [
        (sae, int(index))
        for sae in saes
        for index in sae.encode(clean.at(sae.site, sae.layer)[-1]).topk(4).indices
    ]
    rows = ablations(model, clean, features, position=len(ids) - 1)
    assert len({(sae.site, sae.layer) for sae, _ in features}) == len(saes) == 6
    for row, (sae, index) in enumerate(features):
        h = arriving(model, ids, sae.site, sae.layer)
        added = torch.zeros_like(h)
        added[-1] = -encoded_by_hand(sae, h)[-1, index] * sae.weights.decoder[index]
        full = plain_run(model, ids, sae.site, sae.layer, added)
        assert (rows.logits[row] - full).abs().max() < TOLERANCE[model.dtype]


def all_hooks(model: LoadedModel) -> Iterator[object]:
    for module in model.hf.modules():
        yield from module._forward_hooks.values()
        yield from module._forward_pre_hooks.values()
        if "forward" in module.__dict__:
            yield module


def test_nothing_stays_behind_a_failure(sae_folder: Path) -> None:
    model = tiny_model("llama")
    ids = [token.id for token in read(model).tokens]
    clean = capture(model, ids)

    class Stopped(QuietJob):
        calls = 0

        def check(self) -> None:
            self.calls += 1
            if self.calls > 2:
                raise Cancelled("Cancelled.")

    zero = torch.zeros(1, len(ids), WIDTH)
    with pytest.raises(Cancelled):
        rerun(
            model,
            clean.resid[1],
            start=1,
            n_rows=1,
            hooks=adding(zero, "resid", 1),
            job=Stopped(),
        )
    assert list(all_hooks(model)) == []
    groups = groups_of(model, sae_folder, "ablate L1/3 at all")
    with pytest.raises(Cancelled), hooked(model, hooks_of(groups), job=Stopped()):
        model.forward([ids])
    assert list(all_hooks(model)) == []
    assert torch.equal(capture(model, ids).logits, clean.logits)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("ablate L1/64 at all", "features 0 to 63"),
        ("ablate mlp:L2/3 at all", "SAEs are loaded for: attn.2, mlp.1, resid.0"),
        ("ablate L1/3 at 99", "the last is"),
        ('ablate L1/3 at "absent"', "does not occur"),
    ],
)
def test_an_edit_that_does_not_fit_says_what_does(sae_folder: Path, line: str, why: str) -> None:
    model = tiny_model("llama")
    with pytest.raises(EditError) as caught:
        groups_of(model, sae_folder, line)
    assert why in str(caught.value)


def test_a_layer_past_the_end_is_refused() -> None:
    with pytest.raises(EditError, match="layers 0 to 3"):
        check_layers([parse_edit("ablate L4/1 at all")], tiny_model("llama"))
